"""A bound on how long something may be waited for, which moves for nothing.

`asyncio.timeout` costs several microseconds, which is much for each of a thousand events; here a whole answer has one timer,
which looks when it fires whether its time has really come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

# How soon it looks again at a task that somebody else has cancelled just now.
RETRY_SECONDS = 0.05


class OutOfPatience(Exception):
    """What was waited for did not come in time."""


class Patience:
    """Waits of one task, each until a time of `time.monotonic`. `close` when the last one is over."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._limit: float | None = None
        self._has_fired = False

    def __repr__(self) -> str:
        return f"<Patience [{'waits' if self._limit is not None else 'rests'}]>"

    async def wait(self, awaitable: Awaitable[T], limit: float) -> T:
        """Returns what comes. Raises OutOfPatience at the limit, after what was waited for has been cancelled."""
        assert self._task is not None, "made in a task"
        if self._timer is None or self._timer.when() > limit:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(limit, self._fire)
        self._limit = limit
        try:
            return await awaitable
        except asyncio.CancelledError:
            # Our own cancel, and nobody else's beside it: then it is a matter between us and the clock.
            if self._has_fired and self._task.uncancel() == 0:
                raise OutOfPatience from None
            raise
        finally:
            self._limit = None
            self._has_fired = False

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if self._limit is None:
            return  # nobody waits; the next wait sets the timer again
        if self._limit > time.monotonic():
            self._timer = self._loop.call_at(self._limit, self._fire)
        elif self._task is not None and self._task.cancelling():
            # The task is on its way out for another reason. A second cancel would strike in the middle of the clean-up of the
            # first, and httpcore would leave the connection open for ever.
            self._timer = self._loop.call_later(RETRY_SECONDS, self._fire)
        elif self._task is not None:
            self._has_fired = True
            self._task.cancel()
