"""R11: an engine that hangs is ended in time, and one that is only busy is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import grpc
import pytest
from msgspec import structs

from inferwire.v1 import models_pb2
from inferwire_server.server import Server
from tests.serving import bare_stub, failure, until_state

from . import rig
from .scorecard import spread
from .test_crashes import FOR_EVER

STALL_SECONDS = 2.0


async def hangs(server: Server, model: str, num: int, *, guard_seconds: float = 30) -> list[float]:
    """Returns the seconds from each of some hangs until its status: every other one is a livelock, the others SIGSTOP."""
    samples = []
    async with bare_stub(server) as stub:
        for number in range(num):
            is_stopped = number % 2 == 1
            words = f"{number}" if is_stopped else f"{number} !hang@3 "
            call = stub.StreamComplete(rig.request(words, model, endless=True))
            await call.read()
            if is_stopped:
                with server.registry.lease(model) as backend:
                    os.kill(backend.pid, signal.SIGSTOP)
            begin = time.monotonic()
            error = await rig.within(guard_seconds, failure(call), "the status of a hang")
            samples.append(time.monotonic() - begin)
            assert (grpc.StatusCode.ABORTED, "ENGINE_STALLED") == (error.code, error.reason)
            await rig.until(server, lambda: server.registry.model(model).restarts > number, 30, "a restart")  # noqa: B023
            await rig.within(30, until_state(server, model, models_pb2.MODEL_STATE_READY), "a restart")
    return samples


@pytest.mark.nightly
async def test_r11_a_hung_engine_is_ended_and_a_busy_one_is_not(stub, card):
    """Twenty hangs are told within the stall limit and a second; a prompt that is read for a minute, step by step, is no hang.
    Without the limit a hang is seen.
    """
    engine = structs.replace(FOR_EVER, stall_seconds=STALL_SECONDS)
    models = {name: stub(name, step_seconds=0.005) for name in ("a", "b", "c", "d")}
    models["busy"] = stub("busy", prompt_token_seconds=1 / 512, context_length=1 << 16)
    async with rig.stub_server(models=models, engine=engine) as (server, client):
        begin = time.monotonic()
        reading = asyncio.ensure_future(client.complete(rig.request("x" * 30_000, "busy", max_tokens=1)))
        samples = [
            sample
            for each in await asyncio.gather(*(hangs(server, name, 5) for name in ("a", "b", "c", "d")))
            for sample in each
        ]
        assert (await reading).HasField("completion")
        read_seconds = time.monotonic() - begin
        assert read_seconds > 50
        restarts = server.registry.model("busy").restarts
    print(f"hangs: {spread(samples, 's')}; the prompt was read for {read_seconds:.0f} s")
    card.tell("R11", "detect", max(samples) - STALL_SECONDS, n=len(samples))
    card.tell("R11", "false", restarts, n=1)
    assert 0 == restarts

    blind = structs.replace(FOR_EVER, stall_seconds=600.0)
    async with rig.stub_server(models={"a": models["a"]}, engine=blind) as (server, _):
        with pytest.raises(rig.Hung):
            await hangs(server, "a", 1, guard_seconds=2 * STALL_SECONDS)
        server.registry._entries["a"].instance.local._kill()
