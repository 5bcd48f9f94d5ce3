"""When the deltas of one answer came. Counted for every one of them, so nothing here may cost more than a microsecond."""

from __future__ import annotations

import time
from collections.abc import Callable

from inferwire_server.distribution import Distribution

# From a small model on a large card to a large one on a laptop.
GAP_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip


class Pace:
    """The first delta, the last one, and the gaps between them. Times are seconds of `time.monotonic`."""

    __slots__ = ("_clock", "first", "gaps", "last")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.first: float | None = None
        self.last = 0.0
        self.gaps = Distribution(GAP_BOUNDS)

    def __repr__(self) -> str:
        return f"<Pace [first {self.first} | last {self.last} | {self.gaps!r}]>"

    def delta(self) -> None:
        """Says that a delta came."""
        now = self._clock()
        if self.first is None:
            self.first = now
        else:
            self.gaps.add(now - self.last)
        self.last = now
