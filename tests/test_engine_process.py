"""An engine process ends, hangs or is killed: who hears of it, who does not, and what comes next."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import grpc
import pytest

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.config import EngineSettings
from inferwire_server.registry import Registry

from .serving import DEMO, bare_stub, demo, endless, failure, rest, running, until_state


def engine_pid(registry: Registry, model: str) -> int:
    """Returns the process that serves a model."""
    with registry.lease(model) as backend:
        return backend.pid


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_killed_engine_is_a_typed_status_for_its_streams_and_nobody_elses(
    signal_number, record_property
):
    """Eight streams end ABORTED ENGINE_CRASHED, the other model's stream goes on, and the model serves again."""
    models = {"demo": demo(), "other": demo(context_length=1024)}
    async with running(models=models) as (server, client), bare_stub(server) as stub:
        calls = [stub.StreamComplete(endless()) for _ in range(8)]
        for call in calls:
            for _ in range(3):
                await call.read()
        other = stub.StreamComplete(endless("other"))
        await other.read()

        async def status_of(call) -> tuple[float, InferwireError]:
            error = await failure(call)
            return time.monotonic(), error

        instance = server.registry.model("demo").instance_id
        pid = engine_pid(server.registry, "demo")
        killed = time.monotonic()
        os.kill(pid, signal_number)
        ended = await asyncio.gather(*map(status_of, calls))
        slowest = max(when for when, _ in ended) - killed
        record_property("slowest_status_ms", round(slowest * 1000))
        print(f"{signal.Signals(signal_number).name}: slowest of 8 statuses after {slowest * 1000:.0f} ms")
        for _, error in ended:
            assert (grpc.StatusCode.ABORTED, "ENGINE_CRASHED") == (error.code, error.reason)
            assert "demo" == error.metadata["model"]
            assert int(error.metadata["tokensEmitted"]) >= 2

        assert "completion" == (await rest(other))[-1].WhichOneof("event")

        await until_state(server, "demo", models_pb2.MODEL_STATE_READY)
        print(f"serving again after {time.monotonic() - killed:.2f} s")
        again = server.registry.model("demo")
        assert instance != again.instance_id
        assert 1 == again.restarts
        response = await client.complete(prompt="Once", model="demo", max_tokens=2)
        assert response.completion.usage.completion_tokens <= 2
        assert 0 == server.registry.model("other").restarts


async def test_before_the_first_delta_a_crash_may_be_retried():
    """A unary call, and a stream without a delta, end UNAVAILABLE with a delay; a client's retry policy may act."""
    async with running(models={"demo": demo()}) as (server, _), bare_stub(server) as stub:
        unary = asyncio.ensure_future(failure(stub.Complete(endless())))
        while server.registry.occupancy("demo").cells_used == 0:
            await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.005)
        os.kill(engine_pid(server.registry, "demo"), signal.SIGKILL)
        error = await unary
        assert (grpc.StatusCode.UNAVAILABLE, "ENGINE_CRASHED") == (error.code, error.reason)
        assert error.retry_delay is not None
        # The same while it starts again, and the client's own policy waits for it.
        refused = await failure(stub.Complete(pb.CompleteRequest(prompt="Once", model="demo")))
        assert (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING") == (refused.code, refused.reason)
        await until_state(server, "demo", models_pb2.MODEL_STATE_READY)


async def test_an_engine_that_crashes_too_often_is_left_alone():
    """More crashes than the limit within the window make the model FAILED; Load tries again."""
    settings = EngineSettings(max_restarts=1)
    async with (
        running(models={"demo": demo()}, engine=settings) as (server, client),
        bare_stub(server) as stub,
    ):
        os.kill(engine_pid(server.registry, "demo"), signal.SIGKILL)
        while server.registry.model("demo").restarts == 0:
            await server.registry.changes.after(server.registry.changes.revision)
        await until_state(server, "demo", models_pb2.MODEL_STATE_READY)
        os.kill(engine_pid(server.registry, "demo"), signal.SIGKILL)
        while server.registry.model("demo").state != models_pb2.MODEL_STATE_FAILED:
            await server.registry.changes.after(server.registry.changes.revision)
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="Once", model="demo")))
        assert (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_FAILED") == (error.code, error.reason)
        assert "ENGINE_CRASHED" in str(server.registry.model("demo").failure)
        loaded = await client.load("demo")
        assert models_pb2.MODEL_STATE_READY == loaded.model.state


async def test_an_engine_that_hangs_is_ended():
    """With work in flight and no step for the stall limit, its streams get ENGINE_STALLED and it starts again."""
    settings = EngineSettings(stall_seconds=1.0)
    async with running(models={"demo": demo()}, engine=settings) as (server, _), bare_stub(server) as stub:
        call = stub.StreamComplete(endless())
        await call.read()
        os.kill(engine_pid(server.registry, "demo"), signal.SIGSTOP)
        error = await failure(call)
        assert (grpc.StatusCode.ABORTED, "ENGINE_STALLED") == (error.code, error.reason)
        await until_state(server, "demo", models_pb2.MODEL_STATE_READY)


async def test_an_engine_does_not_know_the_gateways_secrets(monkeypatch):
    """Its environment holds what finds libraries, and nothing else."""
    monkeypatch.setenv("PROVIDER_API_KEY", "canary-73")
    async with running(models={"demo": demo()}) as (server, _):
        pid = engine_pid(server.registry, "demo")
        environment = pathlib.Path(f"/proc/{pid}/environ")
        if not environment.exists():
            pytest.skip("no /proc here")
        data = environment.read_bytes()
        assert b"canary-73" not in data
        assert b"GGML_NO_BACKTRACE=1" in data


def test_no_engine_outlives_its_gateway():
    """kill -9 of the server ends its engine processes within the guard."""
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "inferwire_server.cli",
            "serve",
            "--address",
            "127.0.0.1:0",
            "--model",
            f"demo={DEMO}",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        pid = next(int(line.rsplit("pid=", 1)[1]) for line in server.stderr if "model_ready" in line)
        assert _is_engine(pid)
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    limit = time.monotonic() + 20
    while _is_engine(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not _is_engine(pid)


def _is_engine(pid: int) -> bool:
    command = subprocess.run(
        ["ps", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "inferwire_server.engine" in command.stdout and not command.stdout.lstrip().startswith("Z")


def test_an_engine_ends_when_its_socket_closes():
    """The way that holds on every system, also in the middle of a load."""
    ours, theirs = socket.socketpair()
    with theirs:
        engine = subprocess.Popen(
            [sys.executable, "-m", "inferwire_server.engine", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
        )
    try:
        ours.close()
        assert 0 == engine.wait(30)
    finally:
        engine.kill()
        engine.wait()
