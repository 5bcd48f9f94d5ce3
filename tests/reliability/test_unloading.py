"""R19: a model can always be unloaded: its streams finish, or are ended in time, whatever the engine does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import grpc
import pytest

from inferwire import InferwireError
from inferwire_server.backends.local import LocalBackend
from inferwire_server.server import Server
from tests.serving import bare_stub, rest

from . import rig
from .scorecard import spread

NUM_RUNNING, NUM_QUEUED = 8, 4
LATE_SECONDS = 2.0
OK = (grpc.StatusCode.OK, "")


async def unloaded(
    server: Server,
    *,
    drain_seconds: float,
    max_tokens: int | None,
    stopped: bool = False,
    guard_seconds: float = 20,
) -> tuple[list[tuple[grpc.StatusCode, str]], float, float]:
    """Loads a model, begins streams and unloads it; `stopped`: its engine does nothing any more.

    Returns the statuses, and the seconds until the last status and until the end of the unload.
    """
    async with bare_stub(server) as stub, _loaded(server) as pid:
        asked = rig.request(max_tokens=max_tokens, endless=True)
        asked.output.progress = True
        calls = [stub.StreamComplete(asked) for _ in range(NUM_RUNNING + NUM_QUEUED)]
        for call in calls:
            await call.read()
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        unload = asyncio.ensure_future(server.registry.unload("stub", drain_seconds))
        statuses = await rig.within(
            guard_seconds, asyncio.gather(*(_status(call) for call in calls)), "the end of the streams"
        )
        told_seconds = time.monotonic() - begin
        await rig.within(guard_seconds, asyncio.wait([unload]), "the unload")
        return statuses, told_seconds, time.monotonic() - begin


@contextlib.asynccontextmanager
async def _loaded(server: Server):
    from inferwire.v1 import models_pb2

    await server.registry.load(models_pb2.LoadRequest(model="stub"))
    with server.registry.lease("stub") as backend:
        pid = backend.pid
    yield pid


async def _status(call) -> tuple[grpc.StatusCode, str]:
    try:
        events = await rest(call)
    except grpc.aio.AioRpcError as raised:
        error = InferwireError.of(raised)
        return error.code, error.reason
    return OK if events[-1].HasField("completion") else (grpc.StatusCode.OK, "no completion")


async def test_r19_an_unload_ends(stub, card, monkeypatch):
    """With time enough all streams finish; without, they are ABORTED at once; a hung engine delays nothing. An unload that does
    not wait, and one that cannot kill, are seen.
    """
    model = stub(slots=NUM_RUNNING, step_seconds=0.005)
    async with rig.stub_server(models={"stub": model}) as (server, _):
        late = []
        for _ in range(5):
            statuses, _, seconds = await unloaded(server, drain_seconds=15, max_tokens=60)
            lost = [status for status in statuses if status != OK]
            card.tell("R19", "lost", len(lost), n=len(statuses))
            assert [] == lost
            late.append(seconds - 15)
        forced = []
        for _ in range(5):
            statuses, told, seconds = await unloaded(server, drain_seconds=0, max_tokens=None)
            assert {(grpc.StatusCode.ABORTED, "MODEL_UNLOADED")} == set(statuses)
            forced.append(told * 1000)
            late.append(seconds)
        for _ in range(3):
            statuses, _, seconds = await unloaded(server, drain_seconds=0.5, max_tokens=None, stopped=True)
            assert {(grpc.StatusCode.ABORTED, "MODEL_UNLOADED")} == set(statuses)
            late.append(seconds - 0.5)
        print(f"forced: {spread(forced)}")
        card.tell("R19", "force", max(forced), n=len(forced))
        card.tell("R19", "late", max(0.0, *late), n=len(late))

        statuses, _, _ = await unloaded(server, drain_seconds=0.05, max_tokens=60)
        assert any(status != OK for status in statuses)

        with monkeypatch.context() as patch:
            patch.setattr(LocalBackend, "_kill", lambda self: None)
            with pytest.raises(rig.Hung):
                await unloaded(
                    server, drain_seconds=0, max_tokens=None, stopped=True, guard_seconds=LATE_SECONDS
                )
        server.registry._entries["stub"].instance.local._kill()
