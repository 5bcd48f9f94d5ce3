"""R10, R12, and engines that talk nonsense: what happens to callers, to other models and to processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time

import grpc
import psutil
import pytest

from inferwire import AsyncClient, InferwireError
from inferwire.v1 import error_reason_pb2, models_pb2
from inferwire_server.backends.local import LocalBackend
from inferwire_server.backends.quarantine import Quarantine
from inferwire_server.config import EngineSettings
from inferwire_server.server import Server
from tests.serving import DEMO, bare_stub, failure, rest, until_state

from . import rig
from .scorecard import quantile, spread

# Restarts that never end for too many of them, each after the first delay.
FOR_EVER = EngineSettings(max_restarts=10_000, restart_window_seconds=0.01)
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


class Kills:
    """Kills a model's engine again and again while it works, and keeps what came of it. Times in milliseconds."""

    def __init__(self, server: Server, stub, draw: random.Random, *, guard_seconds: float = 5.0) -> None:
        self._server = server
        self._stub = stub
        self._draw = draw
        self._guard_seconds = guard_seconds
        self.detected: list[float] = []
        self.told: list[float] = []
        self.serving_again: list[float] = []
        self.wrong: list[InferwireError] = []

    async def run(self, model: str, num: int) -> None:
        for number in range(num):
            await self._kill(model, number)

    async def _kill(self, model: str, number: int) -> None:
        # No request is there twice: it would be taken for the cause.
        prompts = [f"Once upon a time, {number}.{index}" for index in range(4)]
        calls = [self._stub.StreamComplete(rig.request(prompt, model, endless=True)) for prompt in prompts]
        num_seen = [0] * len(calls)
        far_enough = asyncio.Event()
        wanted = self._draw.choice([0, 1, 5, 20])

        async def status(index: int) -> InferwireError | None:
            try:
                while await calls[index].read() is not grpc.aio.EOF:
                    num_seen[index] += 1
                    if num_seen[index] >= wanted:
                        far_enough.set()
            except grpc.aio.AioRpcError as error:
                return InferwireError.of(error)
            return None

        statuses = [asyncio.ensure_future(status(index)) for index in range(len(calls))]
        if wanted:
            await far_enough.wait()
        else:
            # Read or queued: nothing was said yet.
            await rig.until(
                self._server, lambda: self._server.registry.model(model).streams_in_flight == 4, 5
            )
        with self._server.registry.lease(model) as backend:
            pid = backend.pid
        begin = time.perf_counter()
        os.kill(pid, self._draw.choice(SIGNALS))
        changes = self._server.registry.changes
        async with asyncio.timeout(self._guard_seconds):
            while self._server.registry.states()[model] == models_pb2.MODEL_STATE_READY:
                await changes.after(changes.revision)
        self.detected.append((time.perf_counter() - begin) * 1000)
        ended = await rig.within(self._guard_seconds, asyncio.gather(*statuses), "a status")
        self.told.append((time.perf_counter() - begin) * 1000)
        for index, error in enumerate(ended):
            code = grpc.StatusCode.ABORTED if num_seen[index] else grpc.StatusCode.UNAVAILABLE
            if error is None or (error.code, error.reason) != (code, "ENGINE_CRASHED"):
                self.wrong.append(error)
        await rig.within(30, until_state(self._server, model, models_pb2.MODEL_STATE_READY), "a restart")
        self.serving_again.append((time.perf_counter() - begin) * 1000)


class Witness:
    """Streams of another model, one after another, while engines are killed beside it."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.failures: list[InferwireError] = []

    async def run(self, stub, model: str) -> None:
        while True:
            call = stub.StreamComplete(rig.request(model=model, endless=True))
            last = None
            try:
                while await call.read() is not grpc.aio.EOF:
                    now = time.perf_counter()
                    if last is not None:
                        self.gaps.append((now - last) * 1000)
                    last = now
            except grpc.aio.AioRpcError as error:
                self.failures.append(InferwireError.of(error))


async def test_r10_a_killed_engine_is_a_status_for_its_streams_and_nobody_elses(
    stub, card, draw, monkeypatch
):
    """Sixty kills in every phase. A gateway that does not tell its streams is seen."""
    num = 60
    models = {name: stub(name, slots=2, step_seconds=0.005) for name in ("one", "two", "other")}
    witness = Witness()
    async with rig.stub_server(models=models, engine=FOR_EVER) as (server, _), bare_stub(server) as calls:
        begin = time.perf_counter()
        await server.registry.unload("one")
        server.registry.begin_load(models_pb2.LoadRequest(model="one"))
        begin = time.perf_counter()
        await until_state(server, "one", models_pb2.MODEL_STATE_READY)
        load_ms = (time.perf_counter() - begin) * 1000
        watching = asyncio.create_task(witness.run(calls, "other"))
        kills = Kills(server, calls, draw)
        await asyncio.gather(kills.run("one", num // 2), kills.run("two", num // 2))
        watching.cancel()
        await asyncio.wait([watching])
        assert 0 == server.registry.model("other").restarts
    print(f"detected: {spread(kills.detected)}; told: {spread(kills.told)}")
    print(f"serving again: {spread(kills.serving_again)}; a load: {load_ms:.0f} ms")
    print(f"gaps of the other model: {spread(witness.gaps)}")
    card.tell("R10", "detect", quantile(kills.detected, 0.99), n=num)
    card.tell("R10", "status", max(kills.told), n=num)
    card.tell("R10", "wrong", len(kills.wrong), n=4 * num)
    card.tell("R10", "others", len(witness.failures), n=num)
    card.tell("R10", "gap", max(witness.gaps), n=len(witness.gaps))
    card.tell("R10", "again", (max(kills.serving_again) - load_ms) / 1000, n=num)
    assert [] == kills.wrong
    assert [] == witness.failures

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "_fail_all", lambda self, error: None)
        with pytest.raises(rig.Hung):
            async with (
                rig.stub_server(models={"one": models["one"]}) as (server, _),
                bare_stub(server) as calls,
            ):
                await Kills(server, calls, draw, guard_seconds=1).run("one", 1)


@pytest.mark.parametrize("fault", ["crash", "abort", "exit", "garbage"])
async def test_however_an_engine_fails_it_is_started_again(stub, fault):
    """Signals, an exit, and a frame that is no report: the stream is told, and the model serves again."""
    async with rig.stub_server(models={"stub": stub()}) as (server, client), bare_stub(server) as calls:
        call = calls.StreamComplete(rig.request(f"!{fault}@3 ", endless=True))
        assert "ENGINE_CRASHED" == (await failure(call)).reason
        await rig.within(30, until_state(server, "stub", models_pb2.MODEL_STATE_READY))
        assert (await client.complete(rig.request(max_tokens=3))).HasField("completion")


async def _kill_restarts(server: Server, num: int) -> None:
    """Kills a model's engine, and then each next one while it loads."""
    with server.registry.lease("stub") as backend:
        pids = {backend.pid}
        os.kill(backend.pid, signal.SIGKILL)
    for _ in range(num):
        await rig.until(server, lambda: any(each.pid not in pids for each in _engines()), 20, "a restart")
        (engine,) = (each for each in _engines() if each.pid not in pids)
        pids.add(engine.pid)
        engine.kill()


def _engines() -> list[psutil.Process]:
    """Returns the stub engines of this process. One that was not yet started by its fork would be killed with the name of ours."""
    return [
        each for each in psutil.Process().children() if _lives(each) and "stub_engine" in str(each.cmdline())
    ]


async def test_an_engine_that_ends_while_it_is_started_again_is_started_again(stub):
    """Nobody waits for a restart who could try again."""
    async with rig.stub_server(models={"stub": stub(load_seconds=1)}, engine=FOR_EVER) as (server, client):
        await _kill_restarts(server, 3)
        await rig.within(30, until_state(server, "stub", models_pb2.MODEL_STATE_READY), "a restart")
        assert 4 == server.registry.model("stub").restarts
        assert (await client.complete(rig.request(max_tokens=3))).HasField("completion")


async def test_restarts_that_fail_count_as_crashes(stub):
    """Too many of them, and the model has failed, until somebody loads it."""
    engine = EngineSettings(max_restarts=2)
    async with rig.stub_server(models={"stub": stub(load_seconds=1)}, engine=engine) as (server, client):
        await _kill_restarts(server, 2)
        await rig.within(30, until_state(server, "stub", models_pb2.MODEL_STATE_FAILED), "the end of it")
        # Its loads were the last that failed, not a request.
        assert (
            error_reason_pb2.ERROR_REASON_MODEL_FILE_INVALID == server.registry.model("stub").failure.reason
        )
        await client.load("stub")
        assert (await client.complete(rig.request(max_tokens=3))).HasField("completion")


async def test_a_model_that_is_unloaded_is_not_started_again(stub):
    """Even while its restarts fail."""
    async with rig.stub_server(models={"stub": stub(load_seconds=1)}, engine=FOR_EVER) as (server, client):
        await _kill_restarts(server, 1)
        assert (await client.unload("stub")).was_loaded
        await asyncio.sleep(1)  # twice the time after which it would be started
        assert models_pb2.MODEL_STATE_UNLOADED == server.registry.model("stub").state
        assert [] == _engines()


async def test_an_engine_that_ends_while_it_is_replaced_is_not_started_again(stub):
    """The one that replaces it serves."""
    config = models_pb2.LoadConfig(context_length=1024)
    async with rig.stub_server(models={"stub": stub(load_seconds=1)}) as (server, client):
        replacing = asyncio.create_task(client.load("stub", config=config, replace=True))
        await rig.until(server, lambda: len(_engines()) == 2, 20, "the second engine")
        with server.registry.lease("stub") as backend:
            os.kill(backend.pid, signal.SIGKILL)
        await rig.until(server, lambda: server.registry.states()["stub"] != models_pb2.MODEL_STATE_READY, 20)
        await rig.within(20, asyncio.wait([replacing]), "the load")
        assert 1024 == (await replacing).model.context_length
        assert (await client.complete(rig.request(max_tokens=3))).HasField("completion")
        assert (1, 0) == (len(_engines()), server.registry.model("stub").restarts)


async def num_outliving(
    *arguments: str, guard_seconds: float, num_gateways: int, **settings: str
) -> tuple[int, int]:
    """Kills gateways with kill -9. Returns how many of their engines live after 2 s, and how many there were.

    Raises Hung when one lives after the guard.
    """
    with contextlib.ExitStack() as stack:
        gateways = [stack.enter_context(rig.gateway(*arguments, **settings)) for _ in range(num_gateways)]
        engines: list[psutil.Process] = []
        for gateway in gateways:
            await rig.until_ready(gateway.address)
            async with AsyncClient(gateway.address) as client:
                call = client.stream(rig.request(model="", endless=True))
                async for event in call:
                    if event.WhichOneof("event") == "text":
                        break
                engines += gateway.children
                gateway.popen.kill()
                gateway.popen.wait()
        stack.callback(_kill, engines)
        begin = time.monotonic()
        num_alive = None
        while any(map(_lives, engines)):
            elapsed = time.monotonic() - begin
            if elapsed >= 2 and num_alive is None:
                num_alive = sum(map(_lives, engines))
            if elapsed >= guard_seconds:
                raise rig.Hung(f"{engines} outlive their gateway")
            await asyncio.sleep(0.01)
        return num_alive or 0, len(engines)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        if _lives(process):
            process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_r12_no_engine_outlives_its_gateway(tmp_path, card):
    """Twenty gateways end by kill -9, with stub engines and with real ones. An engine that leaves a process behind is seen."""
    for name, plan in {"first": {}, "second": {}, "leaving": {"leaves_a_child": True}}.items():
        rig.stub_model(tmp_path, name, **plan)
    first, second, leaving = (
        f"--model={name}={tmp_path}/{name}.json" for name in ("first", "second", "leaving")
    )
    num = 0
    for round_ in range(5):
        arguments, has_stub = ((first, second), True) if round_ < 4 else ((f"--model=demo={DEMO}",), False)
        alive, num_engines = await num_outliving(
            *arguments, guard_seconds=20, num_gateways=4, has_stub=has_stub
        )
        num += num_engines
        card.tell("R12", "alive", alive, n=num_engines)
    assert 4 * 4 * 2 + 4 == num

    with pytest.raises(rig.Hung):
        await num_outliving(leaving, guard_seconds=2.5, num_gateways=1)


async def poison(server: Server, draw: random.Random) -> tuple[int, int, int, InferwireError | None]:
    """One client sends a request that kills the engine again and again, eight others send sound ones; all retry.

    Returns the crashes, how many of how many sound requests were answered, and the poisonous one's last status.
    """
    answers: list[InferwireError | None] = []

    async def sent(stub, asked) -> InferwireError | None:
        """Retries what may be retried, as a client does at a higher level."""
        error: InferwireError | None = None
        for _ in range(200):
            try:
                await rest(stub.StreamComplete(asked))
                return None
            except grpc.aio.AioRpcError as raised:
                error = InferwireError.of(raised)
                if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED):
                    return error
                await asyncio.sleep(0.05)
                if server.registry.model("stub").restarts > 3:
                    return error
        return error

    async def sound(stub, client: int) -> None:
        for number in range(10):
            prompt = f"client {client}, {number}, {draw.random()}"
            answers.append(await sent(stub, rig.request(prompt, max_tokens=40, endless=True)))

    async with bare_stub(server) as stub:
        group = [asyncio.ensure_future(sound(stub, client)) for client in range(8)]
        await asyncio.sleep(0.2)
        last = await rig.within(60, sent(stub, rig.request("!crash@5 please", endless=True)), "a last word")
        await rig.within(60, asyncio.gather(*group), "the answers of the others")
    return server.registry.model("stub").restarts, answers.count(None), len(answers), last


async def test_r13_a_request_that_kills_the_engine_is_kept_out(stub, card, draw, monkeypatch):
    """After its second crash it is INTERNAL REQUEST_QUARANTINED, and everybody else is answered. Without the quarantine the
    crashes go on.
    """
    models = {"stub": stub(slots=4, step_seconds=0.005)}
    for _ in range(2):
        async with rig.stub_server(models=models, engine=FOR_EVER) as (server, _), bare_stub(server) as calls:
            crashes, answered, sent, last = await poison(server, draw)
            assert (grpc.StatusCode.INTERNAL, "REQUEST_QUARANTINED") == (last.code, last.reason)
            again = await failure(calls.StreamComplete(rig.request("!crash@5 please", endless=True)))
            assert "REQUEST_QUARANTINED" == again.reason
            assert crashes == server.registry.model("stub").restarts
        card.tell("R13", "crashes", crashes, n=1)
        card.tell("R13", "others", 100 * answered / sent, n=sent)
        assert crashes <= 2
        assert sent == answered

    monkeypatch.setattr(Quarantine, "crashed", lambda self: None)
    async with rig.stub_server(models=models, engine=FOR_EVER) as (server, _):
        crashes, *_ = await poison(server, draw)
    assert crashes > 2
