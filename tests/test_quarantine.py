"""Who may have killed an engine is tried alone; who did so twice is kept out; nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.backends import quarantine
from inferwire_server.backends.quarantine import MARGIN_TOKENS, Quarantine
from tests.engine_fakes import FakeClock


def asked(prompt: str) -> pb.CompleteRequest:
    return pb.CompleteRequest(prompt=prompt)


def never() -> bool:
    return False


class Visitor:
    """A request that stays with the engine until it is told to leave."""

    def __init__(self, it: Quarantine, prompt: str) -> None:
        self.visit: quarantine.Visit | None = None
        self._it = it
        self.begun = asyncio.Event()
        self._leave = asyncio.Event()
        self._task = asyncio.ensure_future(self._stay(asked(prompt)))

    async def _stay(self, request: pb.CompleteRequest) -> None:
        async with self._it.visit(request, never) as self.visit:
            self.begun.set()
            await self._leave.wait()

    async def settle(self) -> bool:
        """Returns whether it is with the engine, once everybody had a turn."""
        for _ in range(10):
            await asyncio.sleep(0)
        return self.visit is not None and not self._task.done()

    async def leave(self) -> None:
        self._leave.set()
        await self._task

    async def cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def crashed(it: Quarantine, *prompts: str) -> None:
    """The engine dies with these requests."""
    visitors = [Visitor(it, prompt) for prompt in prompts]
    for visitor in visitors:
        assert await visitor.settle()
    it.crashed()
    for visitor in visitors:
        await visitor.leave()


async def test_before_a_crash_nobody_waits():
    """Any number of requests, equal ones too."""
    it = Quarantine("demo")
    visitors = [Visitor(it, "same") for _ in range(9)]
    assert all([await visitor.settle() for visitor in visitors])
    for visitor in visitors:
        await visitor.leave()
    assert "<Quarantine demo [0 suspects | 0 guilty | 0 with the engine]>" == repr(it)


async def test_suspects_go_one_at_a_time_and_alone():
    """While one is on trial, other suspects and newcomers wait; behind its crash point newcomers go on beside it."""
    it = Quarantine("demo")
    await crashed(it, "a", "b")
    trial, suspect, newcomer = Visitor(it, "a"), Visitor(it, "b"), Visitor(it, "c")
    assert [True, False, False] == [await each.settle() for each in (trial, suspect, newcomer)]
    it.reached(trial.visit, MARGIN_TOKENS)
    assert not await newcomer.settle()
    it.reached(trial.visit, MARGIN_TOKENS + 1)
    assert await newcomer.settle()
    # Not alone any more, so the other suspect waits for both.
    assert not await suspect.settle()
    await trial.leave()
    await newcomer.leave()
    assert await suspect.settle()
    await suspect.leave()
    assert "0 suspects" in repr(it)


async def test_the_end_of_the_last_trial_wakes_who_waits():
    """A newcomer goes on at once when a trial ends that leaves no suspect, not when its patience does."""
    it = Quarantine("demo")
    await crashed(it, "a")
    trial, newcomer = Visitor(it, "a"), Visitor(it, "c")
    assert [True, False] == [await each.settle() for each in (trial, newcomer)]
    await trial.leave()
    assert await newcomer.settle()
    await newcomer.leave()


async def test_the_second_crash_names_the_one_and_clears_the_others():
    """It is refused for good; those who were there with it need no trial."""
    it = Quarantine("demo")
    await crashed(it, "a", "b", "c")
    await crashed(it, "b")
    with pytest.raises(errors.RequestQuarantined):
        async with it.visit(asked("b"), never):
            pass
    both = Visitor(it, "a"), Visitor(it, "c")
    assert all([await each.settle() for each in both])
    for each in both:
        await each.leave()


async def test_who_leaves_a_trial_has_proved_nothing():
    """A caller that cancels in the middle is a suspect still; one that is refused at the engine's door is none."""
    it = Quarantine("demo")
    await crashed(it, "a")
    trial = Visitor(it, "a")
    assert await trial.settle()
    await trial.cancel()
    assert "1 suspects" in repr(it)
    with contextlib.suppress(errors.ContextLengthExceeded):
        async with it.visit(asked("a"), never):
            raise errors.ContextLengthExceeded("too long")
    assert "0 suspects" in repr(it)


async def test_nobody_waits_for_ever(monkeypatch):
    """A suspect that is never alone goes in among others, and newcomers do not wait for a long trial."""
    monkeypatch.setattr(quarantine, "MAX_WAIT_SECONDS", 0.05)
    it = Quarantine("demo")
    await crashed(it, "a")
    busy = Visitor(it, "busy")
    assert await busy.settle()
    trial, newcomer = Visitor(it, "a"), Visitor(it, "c")
    assert not await trial.settle()
    for each in (trial, newcomer, busy):
        await each.begun.wait()
        await each.leave()


async def test_an_engine_that_is_gone_ends_the_wait():
    """Who waits is let through to be told so, and stays what it was."""
    it = Quarantine("demo")
    await crashed(it, "a")
    busy = Visitor(it, "busy")
    assert await busy.settle()
    is_gone = False

    async def waiting() -> None:
        with pytest.raises(errors.EngineCrashed):
            async with it.visit(asked("a"), lambda: is_gone):
                raise errors.EngineCrashed("gone")

    task = asyncio.ensure_future(waiting())
    assert await busy.settle()
    is_gone = True
    it.changes.bump()
    await task
    await busy.leave()
    assert "1 suspects" in repr(it)


async def test_what_is_remembered_is_bounded(monkeypatch):
    """The oldest are forgotten."""
    monkeypatch.setattr(quarantine, "MAX_REMEMBERED", 3)
    it = Quarantine("demo")
    await crashed(it, *"abcdef")
    assert "3 suspects" in repr(it)


async def test_it_is_forgotten_some_day():
    """A suspect after minutes, the guilty after an hour: a crash may have been nobody's doing."""
    clock = FakeClock()
    it = Quarantine("demo", clock)
    await crashed(it, "a", "b")
    await crashed(it, "a")
    clock.now += quarantine.SUSPECT_SECONDS
    await crashed(it, "c")
    with pytest.raises(errors.RequestQuarantined):
        async with it.visit(asked("a"), never):
            pass
    clock.now += quarantine.GUILTY_SECONDS
    async with it.visit(asked("a"), never):
        assert "<Quarantine demo [0 suspects | 0 guilty | 1 with the engine]>" == repr(it)


def test_a_fingerprint_is_the_requests_own():
    """Equal requests have one, whatever the order of their maps; another kind of request has another."""
    one, other = pb.CompleteRequest(prompt="x"), pb.CompleteRequest(prompt="x")
    for number in range(20):
        one.sampling.logit_bias[number] = 1.0
        other.sampling.logit_bias[19 - number] = 1.0
    assert quarantine.fingerprint(one) == quarantine.fingerprint(other)
    assert quarantine.fingerprint(pb.CompleteRequest()) != quarantine.fingerprint(pb.EmbedRequest())
