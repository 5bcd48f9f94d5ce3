"""grpc.health.v1: the truth for probes and for clients that balance by health.

Names: "" and "inferwire.v1.InferenceService" are readiness (required models READY, not draining); "liveness" says that the
process moves and never depends on a model; "model/<name>" is each model. Answered from memory by the standard servicer, so
Watch is a real watch.
"""

from __future__ import annotations

from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from inferwire.v1 import models_pb2
from inferwire_server.registry import Registry

LIVENESS = "liveness"
READINESS = ("", "inferwire.v1.InferenceService")
MODEL_PREFIX = "model/"

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Mirrors the registry into the standard health service."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._told: dict[str, HealthCheckResponse.ServingStatus] = {}
        self._draining = False
        self.servicer = health.aio.HealthServicer()

    async def update(self) -> None:
        """Tells what changed since the last time."""
        ready = self._registry.is_ready and not self._draining
        now = {LIVENESS: SERVING, **dict.fromkeys(READINESS, SERVING if ready else NOT_SERVING)}
        for model in self._registry.models():
            serves = model.state == models_pb2.MODEL_STATE_READY and not self._draining
            now[MODEL_PREFIX + model.name] = SERVING if serves else NOT_SERVING
        for gone in self._told.keys() - now.keys():
            now[gone] = SERVICE_UNKNOWN
        for name, status in now.items():
            if self._told.get(name) != status:
                self._told[name] = status
                await self.servicer.set(name, status)

    async def drain(self) -> None:
        """Tells that the server is going away; liveness stays, because the process still moves."""
        self._draining = True
        await self.update()

    async def run(self) -> None:
        """Follows the registry until it is cancelled."""
        revision = self._registry.changes.revision
        while True:
            await self.update()
            revision = await self._registry.changes.after(revision)


SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
