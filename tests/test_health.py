"""grpc.health.v1: what probes and balancing clients are told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from inferwire.v1 import models_pb2
from inferwire_server.config import ModelSettings, Settings
from inferwire_server.server import Server

from .serving import DEMO, demo, running, until_state

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
READINESS = ("", "inferwire.v1.InferenceService")


@contextlib.asynccontextmanager
async def health_stub(server: Server):
    """Yields the standard stub."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def check(stub, service: str) -> int:
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_the_port_is_open_before_a_model_is_loaded():
    """Liveness is SERVING at once; readiness and the model's own name wait for the model."""
    server = Server(Settings(address="127.0.0.1:0", models={"demo": demo()}))
    await server.start()
    try:
        async with health_stub(server) as stub:
            assert SERVING == await check(stub, "liveness")
            assert models_pb2.MODEL_STATE_LOADING == server.registry.model("demo").state
            for name in (*READINESS, "model/demo"):
                assert NOT_SERVING == await check(stub, name)
            await until_state(server, "demo", models_pb2.MODEL_STATE_READY)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
            while (await watch.read()).status != SERVING:
                pass
            for name in ("liveness", *READINESS, "model/demo"):
                assert SERVING == await check(stub, name)
            watch.cancel()
    finally:
        await server.stop(drain_seconds=0)


async def test_a_model_that_cannot_be_loaded_keeps_readiness_down_and_liveness_up(tmp_path):
    """A required model that FAILED makes the server not ready; the process is alive all the same."""
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    models = {"broken": ModelSettings(path=str(tmp_path / "broken.gguf"))}
    server = Server(Settings(address="127.0.0.1:0", models=models, scripted=True))
    await server.start()
    try:
        while server.registry.model("broken").state != models_pb2.MODEL_STATE_FAILED:
            await server.registry.changes.after(server.registry.changes.revision)
        await server.health.update()
        async with health_stub(server) as stub:
            assert SERVING == await check(stub, "liveness")
            assert NOT_SERVING == await check(stub, "")
            assert NOT_SERVING == await check(stub, "model/broken")
            assert SERVING == await check(stub, "model/scripted")
    finally:
        await server.stop(drain_seconds=0)


async def test_a_load_by_rpc_moves_only_its_models_own_name(tmp_path):
    """Readiness does not wait for models that callers load."""
    shutil.copy(DEMO, tmp_path / "a.gguf")
    async with running(model_roots=[str(tmp_path)]) as (server, client), health_stub(server) as stub:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="model/a"))
        assert HealthCheckResponse.SERVICE_UNKNOWN == (await watch.read()).status
        ready = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert SERVING == (await ready.read()).status
        await client.load(
            "a", "a.gguf", config=models_pb2.LoadConfig(context_length=256, parallel_sequences=1)
        )
        assert [NOT_SERVING, SERVING] == [(await watch.read()).status for _ in range(2)]
        await client.unload("a")
        while (await watch.read()).status != HealthCheckResponse.SERVICE_UNKNOWN:
            pass
        assert SERVING == await check(stub, "")
        watch.cancel()
        # The watch of readiness saw no change in all this: its next word is that of the drain.
        await server.health.drain()
        assert NOT_SERVING == (await ready.read()).status
        ready.cancel()


async def test_an_unknown_name_is_not_found():
    """Check says NOT_FOUND, where Watch says SERVICE_UNKNOWN and stays."""
    async with running() as (server, _), health_stub(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(stub, "model/nope")
        assert grpc.StatusCode.NOT_FOUND == caught.value.code()
        listed = await stub.List(health_pb2.HealthListRequest())
        assert {"liveness", "", "inferwire.v1.InferenceService", "model/scripted"} == set(listed.statuses)


async def test_a_crash_of_a_required_model_is_seen_by_a_watch():
    """SERVING, NOT_SERVING while the engine starts again, SERVING; one Watch sees it all."""
    async with running(models={"demo": demo()}) as (server, _), health_stub(server) as stub:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        while (await watch.read()).status != SERVING:
            pass
        with server.registry.lease("demo") as backend:
            os.kill(backend.pid, signal.SIGKILL)
        assert [NOT_SERVING, SERVING] == [(await watch.read()).status for _ in range(2)]
        assert SERVING == await check(stub, "liveness")
        watch.cancel()
