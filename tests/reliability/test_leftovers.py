"""R17, R37: nothing piles up in the gateway's process, and the wall clock may do what it likes."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import os
import pathlib
import signal
import time

import psutil

import inferwire_server
from inferwire.v1 import models_pb2
from inferwire_server.backends.local import LocalBackend
from inferwire_server.server import Server
from tests.serving import bare_stub, rest, until_state

from . import rig
from .test_cancelling import Storm
from .test_crashes import FOR_EVER

SLACK = 2


@dataclasses.dataclass(frozen=True)
class Held:
    """What a process holds of the system."""

    fds: int
    threads: int
    tasks: int
    processes: int

    @classmethod
    def now(cls) -> Held:
        me = psutil.Process()
        return cls(me.num_fds(), me.num_threads(), len(asyncio.all_tasks()), len(me.children(recursive=True)))

    def beyond(self, before: Held) -> dict[str, int]:
        """Returns how much more it is than before."""
        return {
            field.name: max(0, getattr(self, field.name) - getattr(before, field.name))
            for field in dataclasses.fields(self)
        }


async def left_over(server: Server, draw, num_rounds: int) -> dict[str, int]:
    """Returns what is held beyond what was held before rounds of crashes, loads, cancels and resets."""

    async def round_(num: int) -> None:
        await Storm(server, "", draw).run(num)
        with server.registry.lease("stub") as backend:
            os.kill(backend.pid, signal.SIGKILL)
        await rig.until(server, lambda: server.registry.states()["stub"] != models_pb2.MODEL_STATE_READY, 5)
        await rig.within(30, until_state(server, "stub", models_pb2.MODEL_STATE_READY), "a restart")
        await server.registry.unload("stub", 0)
        await server.registry.load(models_pb2.LoadRequest(model="stub"))

    await round_(100)
    await rig.until(server, lambda: not server.gate.num_calls, 5)
    before = Held.now()
    for _ in range(num_rounds):
        await round_(100)

    # Sockets and processes need a moment to be gone.
    with contextlib.suppress(rig.Hung):
        await rig.until(server, lambda: not any(Held.now().beyond(before).values()), 5)
    return Held.now().beyond(before)


async def test_r17_nothing_piles_up(stub, card, draw, monkeypatch):
    """Descriptors, threads, tasks and processes are as before after crashes, loads, cancels and resets. One forgotten
    descriptor per engine process is seen.
    """
    num_rounds = 5
    async with rig.stub_server(models={"stub": stub(step_seconds=0.0005)}, engine=FOR_EVER) as (server, _):
        beyond = await left_over(server, draw, num_rounds)
    for name, number in beyond.items():
        card.tell("R17", name, number, n=num_rounds)
        assert number <= SLACK, name

    forgotten: list[int] = []
    start = LocalBackend._start

    async def forgetful(self):
        forgotten.append(os.dup(0))
        return await start(self)

    monkeypatch.setattr(LocalBackend, "_start", forgetful)
    try:
        async with rig.stub_server(models={"stub": stub()}, engine=FOR_EVER) as (server, _):
            assert (await left_over(server, draw, 2))["fds"] > SLACK
    finally:
        for fd in forgotten:
            os.close(fd)


async def num_spurious(server: Server, jump) -> int:
    """Returns how many of twenty streams, ten queued ones among them, or of the models, do not survive two jumps of a clock."""
    async with bare_stub(server) as stub:
        asked = rig.request(max_tokens=150, endless=True)
        asked.stopping.time_limit.FromSeconds(120)
        calls = [stub.StreamComplete(asked, timeout=300) for _ in range(20)]
        ending = [asyncio.ensure_future(rest(call)) for call in calls]
        await rig.until(server, lambda: server.registry.occupancy("stub").queue_length == 10, 10)
        for seconds in (3600.0, -7200.0):
            jump(seconds)
            # Every timer and watch of the server has looked at its clock meanwhile.
            await asyncio.sleep(0.6)
        ended = await rig.within(60, asyncio.gather(*ending, return_exceptions=True), "the streams")
    failed = [
        end
        for end in ended
        if isinstance(end, BaseException) or not end or end[-1].completion.usage.completion_tokens != 150
    ]
    states = server.registry.states()
    return len(failed) + sum(state != models_pb2.MODEL_STATE_READY for state in states.values())


class Clock:
    """A clock that can be put forward and back; the others go on."""

    def __init__(self, real) -> None:
        self._real = real
        self._offset = 0.0

    def __call__(self) -> float:
        return self._real() + self._offset

    def jump(self, seconds: float) -> None:
        self._offset += seconds


async def test_r37_a_clock_that_jumps_disturbs_nobody(stub, card, monkeypatch):
    """An hour forward and two back, with running and queued streams and an idle timer armed. The same jump of the clock that
    the server does go by is seen.
    """
    models = {"stub": stub(slots=10, step_seconds=0.01), "idle": stub("idle", keep_alive_seconds=600.0)}
    async with rig.stub_server(models=models) as (server, client):
        await client.complete(rig.request(model="idle", max_tokens=1))
        with monkeypatch.context() as patch:
            clock = Clock(time.time)
            patch.setattr(time, "time", clock)
            spurious = await num_spurious(server, clock.jump)
    card.tell("R37", "spurious", spurious, n=22)
    assert 0 == spurious

    # The timers of the event loop go by that clock, too: streams that never end are as bad as those that end wrongly.
    with contextlib.suppress(rig.Hung):
        async with rig.stub_server(models=models) as (server, _):
            with monkeypatch.context() as patch:
                clock = Clock(time.monotonic)
                patch.setattr(time, "monotonic", clock)
                assert await num_spurious(server, clock.jump) > 0


def wall_clock_uses(source: str) -> list[int]:
    """Returns the lines that read the wall clock in a way that is made for durations."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in ("time", "time_ns")
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    ]


def test_r37_no_duration_comes_from_the_wall_clock(card):
    """Nothing in the server reads `time.time`, but for dates: a provider's Retry-After, and when a span began."""
    folder = pathlib.Path(inferwire_server.__file__).parent
    files = sorted(set(folder.rglob("*.py")) - {folder / "backends/_http.py", folder / "traces.py"})
    uses = [f"{path.name}:{line}" for path in files for line in wall_clock_uses(path.read_text())]
    card.tell("R37", "lint", len(uses), n=len(files))
    assert [] == uses
    assert [1] == wall_clock_uses("begin = time.time()")
