"""Requests that an engine died of: one that did it twice is refused, one that may have done it is tried alone.

A crash tells only who was there. All of them are suspects until they end well, and go to the engine one at a time: the one on
trial when it dies again is the one, and the others are cleared. Where it can be had at once or soon, a trial has the engine for
itself, so that the second crash hurts nobody else. Until a first crash all of this costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

import structlog
from google.protobuf.message import Message

from inferwire_server import errors
from inferwire_server.changes import Changes

log = structlog.get_logger()

# How long a suspect waits for the engine to be idle before it goes in among others, and how long others wait for a trial.
MAX_WAIT_SECONDS = 5.0
# A trial is over when the answer has come further than at the crash by so many tokens.
MARGIN_TOKENS = 16
# Some day a crash is nobody's doing, or another's; and what was guilty may be sound with a machine that has more memory.
SUSPECT_SECONDS = 300.0
GUILTY_SECONDS = 3600.0
MAX_REMEMBERED = 1024


class Visit:
    """A request that is with the engine."""

    def __init__(self, request: Message) -> None:
        self.request = request
        self.num_tokens = 0
        # On trial until it has so many tokens.
        self.until_tokens: int | None = None

    @property
    def is_on_trial(self) -> bool:
        """Whether a crash now would be its doing."""
        return self.until_tokens is not None and self.num_tokens <= self.until_tokens


class Quarantine:
    """What is known of one model's requests. It outlives the engine's process; one event loop."""

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        # By fingerprint, the oldest first: how many tokens a suspect had when the engine died, and until when all is remembered.
        self._suspects: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._guilty: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._visits: set[Visit] = set()
        self.changes = Changes()

    def __repr__(self) -> str:
        return (
            f"<Quarantine {self._model} [{len(self._suspects)} suspects | {len(self._guilty)} guilty | "
            f"{len(self._visits)} with the engine]>"
        )

    @contextlib.asynccontextmanager
    async def visit(self, request: Message, is_over: Callable[[], bool]) -> AsyncIterator[Visit]:
        """Keeps a request while it is with the engine; waits first if it, or another, is on trial.

        `is_over` ends the wait, when `changes` are told: the engine is gone. Raises errors.RequestQuarantined.
        """
        visit = Visit(request)
        if self._suspects or self._guilty:
            await self._wait(visit, is_over)
        if not is_over():
            self._visits.add(visit)
        has_ended = False
        try:
            yield visit
            has_ended = True
        except errors.ServingError:
            has_ended = True
            raise
        finally:
            if visit in self._visits:
                self._visits.remove(visit)
                # Who left in the middle of a trial has proved nothing.
                if visit.until_tokens is not None and (has_ended or not visit.is_on_trial):
                    self._suspects.pop(fingerprint(request), None)
                if self._suspects or visit.until_tokens is not None:
                    self.changes.bump()

    async def _wait(self, visit: Visit, is_over: Callable[[], bool]) -> None:
        key = fingerprint(visit.request)
        until = self._clock() + MAX_WAIT_SECONDS
        while not is_over():
            self._forget()
            if key in self._guilty:
                raise errors.RequestQuarantined(
                    "this very request crashed the engine more than once; do not send it again",
                    metadata={"model": self._model},
                )
            left = until - self._clock()
            is_trial = any(other.is_on_trial for other in self._visits)
            if key in self._suspects:
                if not is_trial and (left <= 0 or not self._visits):
                    visit.until_tokens = self._suspects[key][0] + MARGIN_TOKENS
                    return
            elif not is_trial or left <= 0:
                return
            timeout = left if left > 0 else None
            await self.changes.after(self.changes.revision, timeout_seconds=timeout)

    def reached(self, visit: Visit, num_tokens: int) -> None:
        """Tells how far an answer has come."""
        was_on_trial = visit.is_on_trial
        visit.num_tokens = num_tokens
        if was_on_trial and not visit.is_on_trial:
            self.changes.bump()

    def crashed(self) -> None:
        """Tells that the engine died, and not because it was told to."""
        visits, self._visits = self._visits, set()
        tried = [visit for visit in visits if visit.is_on_trial]
        if tried:
            # Whoever was there with it, now or before, had no part in it.
            self._suspects.clear()
            for visit in tried:
                self._remember(self._guilty, visit, GUILTY_SECONDS)
                log.error("request_quarantined", model=self._model)
        else:
            for visit in visits:
                self._remember(self._suspects, visit, SUSPECT_SECONDS)
        self.changes.bump()

    def _remember(self, among: OrderedDict[bytes, tuple[int, float]], visit: Visit, seconds: float) -> None:
        key = fingerprint(visit.request)
        among[key] = visit.num_tokens, self._clock() + seconds
        among.move_to_end(key)
        if len(among) > MAX_REMEMBERED:
            among.popitem(last=False)

    def _forget(self) -> None:
        """Forgets what was long ago."""
        now = self._clock()
        for among in (self._suspects, self._guilty):
            while among and next(iter(among.values()))[1] <= now:
                among.popitem(last=False)


def fingerprint(request: Message) -> bytes:
    """Returns what is the same for a request that is sent again, and for no other."""
    kind = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(kind + request.SerializeToString(deterministic=True)).digest()
