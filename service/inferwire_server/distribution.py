"""How often a value was how large: the few numbers behind a histogram, cheap enough for every event of every stream.

Knows nothing of who shows it. One writer; who reads from another thread may see a value in the sum a moment before the
count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Distribution:
    """Counts values between bounds, as Prometheus does: a bound belongs to the values below it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        # One more than bounds: the last counts what is beyond all of them.
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"<Distribution [{sum(self.counts)} values | sum {self.sum:.4g}]>"

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def merge(self, other: Distribution) -> None:
        """Counts all values of another one with the same bounds."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def cumulative(self) -> list[tuple[float, int]]:
        """Returns each bound, infinity last, with how many values are not above it."""
        total, rows = 0, []
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            total += count
            rows.append((bound, total))
        return rows
