"""The life of the process `inferwire serve`: signals, drain, exit codes. Real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferwire import AsyncClient, InferwireError
from inferwire.v1 import inference_pb2 as pb

from .serving import failure, rest

SLOW = '{"events": [{"text": "a"}, {"delay_seconds": %s}, {"text": "b"}]}'


class Process:
    """A server as a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        import os

        self.popen = subprocess.Popen(
            [sys.executable, "-m", "inferwire_server.cli", "serve", "--address", "127.0.0.1:0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        line = self.popen.stdout.readline()
        found = re.search(r"listens on (127\.0\.0\.1:\d+)", line)
        assert found, line
        self.address = found[1]

    async def wait(self) -> int:
        return await asyncio.to_thread(self.popen.wait)


@contextlib.contextmanager
def serving(*arguments: str, **environment: str):
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()
        process.popen.stdout.close()


async def test_sigterm_drains_and_exits_with_zero():
    """NOT_SERVING at once; in the lame duck calls are still answered; running streams finish; then exit code 0."""
    environment = {"INFERWIRE_LAME_DUCK_SECONDS": "0.5", "INFERWIRE_DRAIN_SECONDS": "20"}
    with serving("--scripted", **environment) as server:
        async with (
            grpc.aio.insecure_channel(server.address) as channel,
            AsyncClient(server.address) as client,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
            assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status
            stream = asyncio.ensure_future(client.complete(prompt=SLOW % 2, model="scripted"))
            while not (await client.health()).models[0].streams_in_flight:
                pass
            server.popen.send_signal(signal.SIGTERM)
            assert health_pb2.HealthCheckResponse.NOT_SERVING == (await watch.read()).status
            alive = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
            assert health_pb2.HealthCheckResponse.SERVING == alive.status
            late = await client.complete(prompt="still answered", model="scripted")
            assert pb.FINISH_REASON_STOP == late.completion.finish_reason
            assert "ab" == (await stream).message.parts[0].text
        assert 0 == await server.wait()


async def test_streams_that_outlast_the_drain_end_with_their_status():
    """At the limit they are ABORTED DRAIN_TIMEOUT, and the exit code is 0 all the same."""
    from .serving import DEMO

    environment = {"INFERWIRE_LAME_DUCK_SECONDS": "0", "INFERWIRE_DRAIN_SECONDS": "0.2"}
    with serving("--model", f"demo={DEMO}", "--scripted", **environment) as server:
        async with AsyncClient(server.address) as client:
            while not (await client.health()).ready:
                pass
            calls = [client.stream(prompt=SLOW % 60, model="scripted") for _ in range(2)]
            for call in calls:
                async for event in call:
                    if event.WhichOneof("event") == "text":
                        break
            server.popen.send_signal(signal.SIGTERM)
            assert 0 == await server.wait()
            for call in calls:
                with pytest.raises(InferwireError) as caught:
                    async for _event in call:
                        pass
                assert ("ABORTED", "DRAIN_TIMEOUT") == (caught.value.code.name, caught.value.reason)


async def test_a_second_signal_ends_at_once():
    """The first Ctrl-C waits for the running answer, the second does not."""
    with serving("--scripted", INFERWIRE_DRAIN_SECONDS="60") as server:
        async with AsyncClient(server.address) as client:
            stream = client.stream(prompt=SLOW % 120, model="scripted")
            async for event in stream:
                if event.WhichOneof("event") == "text":
                    break
            begin = time.monotonic()
            # Two at once are one signal that came twice; a later one is a second thought.
            while server.popen.poll() is None:
                server.popen.send_signal(signal.SIGINT)
                await asyncio.sleep(0.3)  # longer than a signal that comes twice, shorter than a person
            assert 0 == server.popen.returncode
            assert time.monotonic() - begin < 30


async def test_a_draining_server_refuses_what_is_new():
    """A call on a connection that is still open gets UNAVAILABLE DRAINING with a short delay."""
    from .serving import bare_stub, running

    async with running() as (server, _), bare_stub(server) as stub:
        held = stub.StreamComplete(pb.CompleteRequest(prompt=SLOW % 1, model="scripted"))
        await held.read()
        server.gate.draining = True
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="late", model="scripted")))
        assert (grpc.StatusCode.UNAVAILABLE, "DRAINING") == (error.code, error.reason)
        assert error.retry_delay is not None
        assert error.retry_delay <= 0.1
        assert "completion" == (await rest(held))[-1].WhichOneof("event")
