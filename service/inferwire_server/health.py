"""grpc.health.v1: the truth for probes and for clients that balance by health.

Names: "" and "inferwire.v1.InferenceService" are readiness (required models READY, not draining); "liveness" says that the
process moves and never depends on a model; "model/<name>" is each model. Answered from memory by the standard servicer, so
Watch is a real watch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.access import Access, Principal
from inferwire_server.registry import Registry

_Request = TypeVar("_Request")

LIVENESS = "liveness"
READINESS = ("", "inferwire.v1.InferenceService")
MODEL_PREFIX = "model/"
# A servicer need not list more (grpc/health/v1/health.proto).
MAX_LISTED = 100

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


def check_asked(principal: Principal, request: object) -> None:
    """Checks that a caller may ask for what a request of the health service names.

    Readiness and liveness are for everybody, because a kubelet and a balancing client have no key. The name of a model is
    for who may use it, and all names for who may use all. Raises errors.TokenMissing or ScopeRequired.
    """
    name = getattr(request, "service", None)
    if name == LIVENESS or name in READINESS:
        return
    if not principal.scopes:
        raise errors.TokenMissing("send a key: metadata authorization, 'Bearer <key>'")
    if not principal.may_use("*" if name is None else name.removeprefix(MODEL_PREFIX)):
        raise errors.ScopeRequired("the key does not allow this name", metadata={"scope": "health"})


def admit(
    access: Access,
    method: str,
    metadata: Mapping[str, str | bytes],
    certificate: Sequence[str],
    read: Callable[[], _Request],
) -> _Request:
    """Returns the request of a call of a library's service, "package.Service/Method", when its caller may make it.

    Raises what `Access` and `check_asked` do.
    """
    principal = access.identify(metadata, certificate)
    access.check(principal, method)
    request = read()
    if method.startswith(SERVICE_NAME):
        check_asked(principal, request)
    return request


class Health:
    """Mirrors the registry into the standard health service."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._told: dict[str, int] = {}
        self._draining = False
        self.servicer = _Servicer(self._told)

    async def update(self) -> None:
        """Tells what changed since the last time."""
        ready = self._registry.is_ready and not self._draining
        now = {LIVENESS: SERVING, **dict.fromkeys(READINESS, SERVING if ready else NOT_SERVING)}
        for name, state in self._registry.states().items():
            serves = state == models_pb2.MODEL_STATE_READY and not self._draining
            now[MODEL_PREFIX + name] = SERVING if serves else NOT_SERVING
        for gone in self._told.keys() - now.keys():
            now[gone] = SERVICE_UNKNOWN
        for name, status in now.items():
            if self._told.get(name) != status:
                self._told[name] = status
                await self.servicer.set(name, status)
        for name in [name for name, status in self._told.items() if status == SERVICE_UNKNOWN]:
            del self._told[name]

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


class _Servicer(health.aio.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The standard servicer with the List that its asyncio variant lacks, and with words for a name that nobody has."""

    def __init__(self, told: Mapping[str, int]) -> None:
        super().__init__()
        self._told = told

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        if request.service not in self._told:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no health under this name; there are {LIVENESS}, the empty name and {MODEL_PREFIX}<name>",
            )
        return await super().Check(request, context)

    async def List(
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        if len(self._told) > MAX_LISTED:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_LISTED} names; use Check"
            )
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._told.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
