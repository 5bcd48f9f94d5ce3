"""When a backend that fails is left alone. Pure but for the clock, which is given.

CLOSED ── enough failures within the window ──▶ OPEN ── after a while ──▶ HALF_OPEN ── one probe ──▶ CLOSED or OPEN
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable


class State(enum.Enum):
    """What a breaker lets through: everything, nothing, or one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """One per backend; its calls are on one event loop."""

    def __init__(
        self,
        *,
        max_failures: int = 5,
        window_seconds: float = 10.0,
        open_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._window_seconds = window_seconds
        self._open_seconds = open_seconds
        self._clock = clock
        self._on_change = on_change
        self._failures: deque[float] = deque(maxlen=max_failures)
        self._opened_at = 0.0
        self._probe: Permit | None = None
        self.state = State.CLOSED

    def __repr__(self) -> str:
        return f"<Breaker [{self.state.value} | failures {len(self._failures)}/{self._failures.maxlen}]>"

    @property
    def retry_after_seconds(self) -> float:
        """Seconds until a request may pass; 0 when one may pass now, or as soon as the probe's outcome is known."""
        if self.state != State.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._open_seconds - self._clock())

    def admit(self) -> Permit | None:
        """Lets a request pass, or not. Whoever gets a permit says once how it went."""
        if self.state == State.OPEN and self.retry_after_seconds == 0:
            self._become(State.HALF_OPEN)
        if self.state == State.CLOSED:
            return Permit(self)
        if self.state == State.HALF_OPEN and self._probe is None:
            self._probe = Permit(self)
            return self._probe
        return None

    def _ended(self, permit: Permit, *, has_succeeded: bool | None) -> None:
        is_probe = permit is self._probe
        if is_probe:
            self._probe = None
        if has_succeeded is None:
            return
        if has_succeeded:
            self._failures.clear()
            self._become(State.CLOSED)
            return
        now = self._clock()
        if self.state == State.CLOSED:
            self._failures.append(now)
            is_full = len(self._failures) == self._failures.maxlen
            if not (is_full and self._failures[0] >= now - self._window_seconds):
                return
        elif not is_probe:
            return  # it passed before the breaker opened and says nothing new
        self._opened_at = now
        self._failures.clear()
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        if self.state != state:
            self.state = state
            self._on_change()


class Permit:
    """A request that passed. Its last word is one of `succeeded`, `failed` and `abandoned`."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def answering(self) -> None:
        """The backend has begun to answer. For a probe that is enough: others need not wait for its end."""
        if self is self._breaker._probe:
            self.succeeded()

    def succeeded(self) -> None:
        """The backend answered."""
        self._breaker._ended(self, has_succeeded=True)

    def failed(self) -> None:
        """The backend did not answer."""
        self._breaker._ended(self, has_succeeded=False)

    def abandoned(self) -> None:
        """The caller left before anybody could know."""
        self._breaker._ended(self, has_succeeded=None)
