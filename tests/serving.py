"""A real server in the test's own process and loop: real ports, real engine processes, real GGUF files."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from inferwire import AsyncClient, InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire_server.config import EngineSettings, ModelSettings, Settings
from inferwire_server.models import demo_model_path
from inferwire_server.server import Server

DEMO = str(demo_model_path())
CASES: dict[str, Any] = json.loads((pathlib.Path(__file__).parent / "models" / "demo_cases.json").read_text())


def demo(**config: Any) -> ModelSettings:
    """Returns the settings of a demo model with a config of its own."""
    return ModelSettings(
        path=DEMO, config={"context_length": 1024, "parallel_sequences": 8, "threads": 1, **config}
    )


@contextlib.asynccontextmanager
async def running(
    *,
    models: Mapping[str, ModelSettings] | None = None,
    engine: EngineSettings | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Server, AsyncClient]]:
    """Yields a server whose models are READY, and a client of it. At the end nothing may be held any more."""
    server = Server(
        Settings(
            address=settings.pop("address", "127.0.0.1:0"),
            models=dict(models or {}),
            scripted=settings.pop("scripted", not models),
            engine=engine or EngineSettings(),
            **settings,
        )
    )
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            for name, model in (models or {}).items():
                if model.load:
                    await until_state(server, name, models_pb2.MODEL_STATE_READY)
            yield server, client
            await until_idle(server)
    finally:
        await server.stop(drain_seconds=0)
    assert server.registry.leases_created == server.registry.leases_released


@contextlib.asynccontextmanager
async def bare_stub(server: Server) -> AsyncIterator[Any]:
    """Yields a stub on a channel that never retries, to see the first status of a call."""
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        yield InferenceServiceStub(channel)


def endless(model: str = "demo", **output: bool) -> pb.CompleteRequest:
    """Returns a request whose answer goes on until the context is full."""
    request = pb.CompleteRequest(prompt="Once upon a time", model=model, output=pb.OutputOptions(**output))
    request.stopping.ignore_eos = True
    return request


async def rest(call: Any) -> list[pb.StreamCompleteResponse]:
    """Reads a call to its end and returns the events that were left."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def failure(call: Any) -> InferwireError:
    """Returns the failure that a call ends with; reads a stream to its end for it."""
    try:
        await (rest(call) if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return InferwireError.of(error)
    raise AssertionError("the call ended OK")


async def until_state(server: Server, name: str, state: models_pb2.ModelState) -> models_pb2.Model:
    """Waits until a model is in a state, and returns it."""
    changes = server.registry.changes
    while True:
        revision = changes.revision
        model = server.registry.model(name)
        if model.state == state:
            return model
        if model.state == models_pb2.MODEL_STATE_FAILED:
            raise AssertionError(f"{name} failed: {model.failure}")
        await changes.after(revision)


async def until_idle(server: Server) -> None:
    """Waits until no stream holds a model and no engine has a KV cell in use. The test's timeout is the guard."""
    while server.registry.num_leases or any(
        backend.problem is None and backend.occupancy.cells_used for backend in server.registry.backends()
    ):
        await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.01)
