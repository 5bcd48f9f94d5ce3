"""R16: memory does not grow with the requests that were answered, cancelled or refused."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re

import grpc
import pytest

from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from tests.serving import rest

from . import rig

NUM_WARM_UP, NUM_WHOLE, NUM_CANCELLED, NUM_WRONG = 500, 5000, 2000, 500
GATEWAY_MIB, ENGINE_MIB = 10, 16


def held_mib(pid: int) -> float:
    """Returns what a process holds of its own: anonymous memory, swapped or not. Shared files and caches do not count."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    kib: list[str] = re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", status, re.MULTILINE)
    assert 2 == len(kib)
    return sum(map(int, kib)) / 1024


async def growth(
    gateway: rig.Process, num_whole: int, num_cancelled: int, num_wrong: int
) -> tuple[float, float]:
    """Returns by how many MiB a gateway and its engine grow over requests, after some that nobody counts."""
    (engine,) = gateway.children
    async with grpc.aio.insecure_channel(gateway.address, [("grpc.enable_retries", 0)]) as channel:
        stub = InferenceServiceStub(channel)
        slots = asyncio.Semaphore(16)

        async def whole(number: int) -> None:
            await stub.Complete(rig.request(f"number {number}", max_tokens=20, endless=True))

        async def cancelled(number: int) -> None:
            call = stub.StreamComplete(rig.request(f"number {number}", endless=True))
            await call.read()
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await rest(call)

        async def wrong(number: int) -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.Complete(rig.request("x" * 9000 if number % 2 else "", "stub"))

        async def limited(kind, number: int) -> None:
            async with slots:
                await kind(number)

        async def send(*counts: int) -> None:
            for kind, count in zip((whole, cancelled, wrong), counts, strict=True):
                for first in range(0, count, 100):
                    await asyncio.gather(*(limited(kind, first + i) for i in range(min(100, count - first))))

        await send(NUM_WARM_UP, NUM_WARM_UP // 2, NUM_WARM_UP // 5)
        before = held_mib(gateway.popen.pid), held_mib(engine.pid)
        await send(num_whole, num_cancelled, num_wrong)
        after = held_mib(gateway.popen.pid), held_mib(engine.pid)
    return after[0] - before[0], after[1] - before[1]


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_r16_memory_does_not_grow(stub, card):
    """The gateway and its engine are about as large afterwards as after the warm-up. A gateway and an engine that keep something
    of each request are seen.
    """
    num = NUM_WHOLE + NUM_CANCELLED + NUM_WRONG
    with rig.gateway(f"--model=stub={stub(slots=8).path}", log_level="warning") as gateway:
        await rig.until_ready(gateway.address)
        of_gateway, of_engine = await growth(gateway, NUM_WHOLE, NUM_CANCELLED, NUM_WRONG)
    card.tell("R16", "gateway", max(0.0, of_gateway), n=num)
    card.tell("R16", "engine", max(0.0, of_engine), n=num)
    assert of_gateway < 2 * GATEWAY_MIB
    assert of_engine < 2 * ENGINE_MIB

    leaky = stub("leaky", slots=8, leaks=True)
    with rig.gateway(f"--model=stub={leaky.path}", log_level="warning", rig_leaks="1") as gateway:
        await rig.until_ready(gateway.address)
        of_gateway, of_engine = await growth(gateway, 500, 0, 0)
    assert of_gateway > 2 * GATEWAY_MIB
    assert of_engine > 2 * ENGINE_MIB
