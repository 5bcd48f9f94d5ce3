"""R5, R6, R7, R27: with more work than it can do, a server refuses at once and rightly, and stays itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferwire import InferwireError
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire.v1.models_pb2_grpc import ModelServiceStub
from inferwire_server import errors, rpc
from inferwire_server.backends.admission import Admission
from inferwire_server.config import EngineSettings
from inferwire_server.server import Server
from tests.serving import bare_stub, rest

from . import rig, stub_engine
from .scorecard import quantile, spread

NUM_SLOTS, NUM_QUEUED = 4, 8
NUM_AT_ONCE = 200


class Crowd:
    """Many requests to one gateway, and what came of them. Times in milliseconds."""

    def __init__(self, stub) -> None:
        self._stub = stub
        self.admitted: list[float] = []
        self.rejected: list[float] = []
        self.num_with_delay = 0
        self.wrong: list[str] = []

    async def one(self, *, max_tokens: int | None = None, after_seconds: float = 0.0) -> None:
        await asyncio.sleep(after_seconds)
        begin = time.perf_counter()
        try:
            await rest(self._stub.StreamComplete(rig.request(max_tokens=max_tokens, endless=True)))
        except grpc.aio.AioRpcError as raised:
            self.rejected.append((time.perf_counter() - begin) * 1000)
            error = InferwireError.of(raised)
            if (error.code, error.reason) != (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"):
                self.wrong.append(f"{error.code} {error.reason}")
            self.num_with_delay += error.retry_delay is not None
        else:
            self.admitted.append((time.perf_counter() - begin) * 1000)


async def num_admitted(stub) -> int:
    """Returns how many of many requests at once are let in. None of them ends while the others come."""
    crowd = Crowd(stub)
    tasks = [asyncio.ensure_future(crowd.one()) for _ in range(NUM_AT_ONCE)]

    async def refused() -> None:
        while len(crowd.rejected) < NUM_AT_ONCE - NUM_SLOTS - NUM_QUEUED:
            await asyncio.wait(
                [task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED
            )

    try:
        await rig.within(10, refused(), "the refusal of what is too much")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert [] == crowd.wrong
    return NUM_AT_ONCE - len(crowd.rejected)


async def test_r5_what_is_too_much_is_refused_at_once(stub, card):
    """Exactly the slots and the queue are let in; the others are told so, and when to come again. A longer queue is seen."""
    flags = (f"--model=stub={stub(slots=NUM_SLOTS, step_seconds=0.01).path}",)
    num_waves = 4
    calm_ms, admitted_ms, rejected_ms = [], [], []
    async with _gateway_stub(*flags, engine_queue_capacity=str(NUM_QUEUED)) as calls:
        for _ in range(num_waves):
            beyond = await num_admitted(calls) - NUM_SLOTS - NUM_QUEUED
            card.tell("R5", "admitted", abs(beyond), n=NUM_AT_ONCE)
            assert 0 == beyond
            calm, crowd = Crowd(calls), Crowd(calls)
            fill = [calm.one(max_tokens=60) for _ in range(NUM_SLOTS + NUM_QUEUED)]
            await asyncio.gather(*fill)
            fill = [crowd.one(max_tokens=60) for _ in range(NUM_SLOTS + NUM_QUEUED)]
            # The others come within less than the time in which the first place becomes free.
            many = [crowd.one(max_tokens=1, after_seconds=0.05 + 0.002 * i) for i in range(NUM_AT_ONCE)]
            await asyncio.gather(*fill, *many)
            calm_ms += calm.admitted
            admitted_ms += sorted(crowd.admitted)[-NUM_SLOTS - NUM_QUEUED :]
            rejected_ms += crowd.rejected
            card.tell("R5", "retry", 100 * crowd.num_with_delay / len(crowd.rejected), n=len(crowd.rejected))
            assert len(crowd.rejected) == crowd.num_with_delay
            assert [] == crowd.wrong + calm.wrong + calm.rejected
    print(f"rejected: {spread(rejected_ms)}; admitted: {spread(admitted_ms)}; calm: {spread(calm_ms)}")
    card.tell("R5", "reject", quantile(rejected_ms, 0.99), n=len(rejected_ms))
    slower = quantile(admitted_ms, 0.99) / quantile(calm_ms, 0.99) - 1
    card.tell("R5", "slower", 100 * max(0.0, slower), n=len(admitted_ms))

    with pytest.raises(rig.Hung):
        async with _gateway_stub(*flags, engine_queue_capacity=str(NUM_QUEUED + 3)) as calls:
            await num_admitted(calls)


@contextlib.asynccontextmanager
async def _gateway_stub(*flags: str, **settings: str):
    with rig.gateway(*flags, **settings) as gateway:
        await rig.until_ready(gateway.address)
        async with grpc.aio.insecure_channel(gateway.address, [("grpc.enable_retries", 0)]) as channel:
            yield InferenceServiceStub(channel)


# Asks from a process of its own, so that only the server's delays count.
PROBE = """
import json, sys, time
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
samples = []
with grpc.insecure_channel(sys.argv[1]) as channel:
    check = health_pb2_grpc.HealthStub(channel).Check
    check(health_pb2.HealthCheckRequest())
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        begin = time.perf_counter()
        check(health_pb2.HealthCheckRequest())
        samples.append((time.perf_counter() - begin) * 1000)
        time.sleep(0.05)
print(json.dumps(samples))
"""


async def load(address: str, seconds: float, draw: random.Random) -> list[float]:
    """Keeps a gateway busy: streams, long prompts, rejections, and loads. Returns how late a watch told each load, in ms."""
    end = time.monotonic() + seconds
    late: list[float] = []
    async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        stub, models, health = (
            InferenceServiceStub(channel), ModelServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        )  # fmt: skip

        async def streams() -> None:
            while time.monotonic() < end:
                prompt = "x" * (100_000 if draw.random() < 0.05 else 100)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await rest(stub.StreamComplete(rig.request(prompt, max_tokens=30, endless=True)))
                await asyncio.sleep(0.01)

        async def loads() -> None:
            watch = health.Watch(health_pb2.HealthCheckRequest(service="model/other"))
            await watch.read()
            while time.monotonic() < end:
                begin = time.perf_counter()
                unload = models.Unload(models_pb2.UnloadRequest(model="other"))
                while (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING:
                    pass
                late.append((time.perf_counter() - begin) * 1000)
                await unload
                await models.Load(models_pb2.LoadRequest(model="other"))
                while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                    pass
            watch.cancel()

        await asyncio.gather(loads(), *(streams() for _ in range(64)))
    return late


async def test_r6_r7_health_answers_and_the_loop_moves_under_load(stub, card, draw, tmp_path, is_nightly):
    """Probes from another process, while streams, prompts of 100,000 characters, rejections and loads go on. A loop that is held
    up is seen.
    """
    seconds = 30.0 if is_nightly else 10.0
    flags = [
        f"--model={name}={stub(name, slots=16, step_seconds=0.01, context_length=1 << 17).path}"
        for name in ("stub", "other")
    ]

    async def measured(seconds: float, **settings: str) -> tuple[list[float], list[float], list[float]]:
        lag_file = tmp_path / "lag.json"
        with rig.gateway(*flags, rig_lag_file=str(lag_file), **settings) as gateway:
            await rig.until_ready(gateway.address)
            probe = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROBE, gateway.address, str(seconds), stdout=asyncio.subprocess.PIPE
            )
            late = await load(gateway.address, seconds, draw)
            told, _ = await rig.within(60, probe.communicate(), "the probe")
            gateway.popen.terminate()
            await gateway.exit_code(30)
        return json.loads(told), late, json.loads(lag_file.read_text())

    checks, late, lag = await measured(seconds, lame_duck_seconds="0")
    print(f"Check: {spread(checks)}; Watch: {spread(late)}; lag: {spread(lag)}")
    card.tell("R6", "p99", quantile(checks, 0.99), n=len(checks))
    card.tell("R6", "max", max(checks), n=len(checks))
    card.tell("R6", "watch", max(late), n=len(late))
    card.tell("R7", "p99", quantile(lag, 0.99), n=len(lag))
    card.tell("R7", "max", max(lag), n=len(lag))
    assert len(checks) > 5 * seconds, "the probe hardly came through"

    checks, _, lag = await measured(2.0, lame_duck_seconds="0", rig_blocks_loop_seconds="0.3")
    assert max(checks) > 250
    assert max(lag) > 250


class Deadlines:
    """What a server made of deadlines under three times the load it can do. Times in milliseconds."""

    def __init__(self, server: Server, draw: random.Random, monkeypatch) -> None:
        self._server = server
        self._draw = draw
        self.overshoot: list[float] = []
        self.refusals: list[tuple[float, int, float]] = []
        self.departures: list[float] = []
        self.ended: dict[str, int] = {}
        self._watch(monkeypatch)

    def _watch(self, monkeypatch) -> None:
        entered, check, leave = rpc.Gate.entered, Admission.check, Admission.leave
        deadlines = self

        @contextlib.contextmanager
        def watched(gate, context, *rest_):
            try:
                with entered(gate, context, *rest_) as it:
                    yield it
            finally:
                if context.deadline is not None and (over := time.monotonic() - context.deadline) > 0:
                    deadlines.overshoot.append(over * 1000)

        def checked(admission, prompt_bytes, deadline_seconds):
            position = len(admission._requests) - admission._num_places + 1
            try:
                check(admission, prompt_bytes, deadline_seconds)
            except errors.DeadlineUnreachable:
                deadlines.refusals.append((time.monotonic(), position, deadline_seconds))
                raise

        def left(admission, id, now):
            leave(admission, id, now)
            deadlines.departures.append(now)

        monkeypatch.setattr(rpc.Gate, "entered", watched)
        monkeypatch.setattr(Admission, "check", checked)
        monkeypatch.setattr(Admission, "leave", left)

    async def run(self, num: int, seconds: float) -> None:
        """Sends so many requests, spread over the time."""
        async with bare_stub(self._server) as stub:

            async def one() -> None:
                await asyncio.sleep(self._draw.uniform(0, seconds))
                asked = rig.request(max_tokens=20, endless=True)
                try:
                    await rest(stub.StreamComplete(asked, timeout=self._draw.uniform(0.05, 0.5)))
                    told = "OK"
                except grpc.aio.AioRpcError as raised:
                    told = InferwireError.of(raised).reason or raised.code().name
                self.ended[told] = self.ended.get(told, 0) + 1

            await asyncio.gather(*(one() for _ in range(num)))

    @property
    def num_right(self) -> int:
        """How many refusals were right: no place became free in time, as it turned out."""
        return sum(
            len([left for left in self.departures if at < left <= at + within]) < position
            for at, position, within in self.refusals
        )


async def test_r27_no_deadline_is_missed_by_much_and_nothing_late_is_computed(stub, card, draw, monkeypatch):
    """Three times the load that the engine can do, with short deadlines: what expires in the queue never reaches the engine, and
    who is refused for its deadline would have missed it. An engine that is not told of deadlines is seen.
    """
    num = 500
    engine = EngineSettings(queue_capacity=64)
    model = stub(slots=4, step_seconds=0.005)
    async with rig.stub_server(models={"stub": model}, engine=engine) as (server, _):
        with monkeypatch.context() as patch:
            deadlines = Deadlines(server, draw, patch)
            # 4 places, 20 steps of 5 ms: at best 40 answers per second.
            await deadlines.run(num, num / 120)
        expired = expired_in_engine(server)
    print(f"ended: {deadlines.ended}; overshoot: {spread(deadlines.overshoot or [0.0])}")
    print(f"refused for the deadline: {len(deadlines.refusals)}, rightly: {deadlines.num_right}")
    card.tell("R27", "expired", expired, n=num)
    card.tell("R27", "overshoot", quantile(deadlines.overshoot or [0.0], 0.99), n=len(deadlines.overshoot))
    if deadlines.refusals:
        card.tell(
            "R27", "precision", 100 * deadlines.num_right / len(deadlines.refusals), n=len(deadlines.refusals)
        )
    assert 0 == expired
    assert set(deadlines.ended) <= {"OK", "DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE", "QUEUE_FULL"}

    deaf = stub("stub", slots=4, step_seconds=0.005, ignores_deadlines=True, ignores_cancels=True)
    async with rig.stub_server(models={"stub": deaf}, engine=engine) as (server, _):
        with monkeypatch.context() as patch:
            patch.setattr(Admission, "check", lambda self, prompt_bytes, deadline_seconds: None)
            await Deadlines(server, draw, patch).run(100, 0.2)
            await rig.until(server, lambda: not server.registry.num_leases, 20)
        assert expired_in_engine(server) > 0


def expired_in_engine(server: Server) -> int:
    """Returns how many requests the stub engine began to compute though their deadline had passed."""
    with server.registry.lease("stub") as backend:
        return list(backend._stderr).count(stub_engine.LATE)
