"""R34: certificates are replaced under load, and nobody's stream or handshake fails."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire_server.server import Server
from tests.serving import rest
from tests.test_tls import Authority, Files, answers, channel, running, shown, spoil

from . import rig

STREAM = '{"events": [{"text": "a"}, {"delay_seconds": 0.5}, {"text": "b"}]}'
SPOILT = ("half", "mismatch", "expired", "empty", "gone", "not yet")


class Traffic:
    """Streams over one connection and a new connection at all times; what failed of it."""

    def __init__(self, server: Server, files: Files) -> None:
        self._server = server
        self._files = files
        self.num = 0
        self.failures: list[str] = []

    async def streams(self) -> None:
        async with channel(self._server, self._files.authority.ca) as it:
            stub = InferenceServiceStub(it)
            while True:
                self.num += 1
                try:
                    await rest(stub.StreamComplete(pb.CompleteRequest(model="scripted", prompt=STREAM)))
                except grpc.aio.AioRpcError as error:
                    self.failures.append(f"stream: {error.code()}")

    async def handshakes(self) -> None:
        while True:
            self.num += 1
            if not await answers(channel(self._server, self._files.authority.ca)):
                self.failures.append("handshake")
            await asyncio.sleep(0.02)


async def rotated(files: Files, num: int, *, foreign: bool = False) -> tuple[Traffic, list[float]]:
    """Returns what became of traffic while pairs were replaced, and the seconds until each was shown."""
    took = []
    async with running(files.settings()) as server:
        traffic = Traffic(server, files)
        tasks = [
            asyncio.create_task(traffic.handshakes()), *(asyncio.create_task(traffic.streams()) for _ in range(8))
        ]  # fmt: skip
        try:
            for number in range(num):
                before = await asyncio.to_thread(shown, server)
                if number % 3 == 2:
                    spoil(files, SPOILT[number // 3 % len(SPOILT)])
                    # Long enough for the server to have looked at it.
                    await asyncio.sleep(1.5)
                    assert before == await asyncio.to_thread(shown, server)
                trusted = files.authority
                if foreign:
                    (files.folder / "foreign").mkdir()
                    files.authority = Authority(files.folder / "foreign", "foreign")
                files.put(f"pair {number}")
                begin = time.monotonic()
                files.authority = trusted
                while await asyncio.to_thread(shown, server) == before:
                    pass
                took.append(time.monotonic() - begin)
                if foreign:
                    await asyncio.sleep(0.2)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
    return traffic, took


@pytest.mark.nightly
async def test_r34_nobody_notices_a_new_certificate(card, tmp_path):
    """Twenty new pairs, some after one that cannot be used, beside eight streams and a new connection at all times. A pair that
    callers do not trust is seen.
    """
    traffic, took = await rig.within(200, rotated(Files(tmp_path), 20), "twenty rotations")
    card.tell("R34", "failed", len(traffic.failures), n=traffic.num)
    card.tell("R34", "effective", max(took), n=len(took))
    assert [] == traffic.failures

    (tmp_path / "control").mkdir()
    control, _ = await rig.within(60, rotated(Files(tmp_path / "control"), 1, foreign=True), "a rotation")
    assert "handshake" in control.failures
