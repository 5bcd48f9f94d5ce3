"""How soon a place becomes free, guessed from how places became free before. Pure: the clock is the caller's."""

from __future__ import annotations

# Weight of the newest interval: about the last sixteen count. Sequences of one batch end in the same step, so intervals come as
# several that are nothing and one that is long; fewer of them would take each long one for a change of pace.
_NEWEST = 1 / 16


class Departures:
    """Those who leave a number of places, watched while all places are taken and others wait or would."""

    def __init__(self, first_guess_seconds: float) -> None:
        self._interval_seconds = first_guess_seconds
        self._since: float | None = None
        self.num_seen = 0

    def __repr__(self) -> str:
        return f"<Departures [one in {self._interval_seconds:.3f} s | seen {self.num_seen}]>"

    def arrived(self, now: float, *, is_full: bool) -> None:
        """Tells that somebody came; `is_full`: now all places are taken."""
        if is_full and self._since is None:
            self._since = now

    def left(self, now: float, *, is_full: bool) -> None:
        """Tells that somebody left; `is_full`: who waited has taken the place, and all are taken still."""
        if self._since is not None:
            seconds = now - self._since
            self.num_seen += 1
            self._interval_seconds += max(1 / self.num_seen, _NEWEST) * (seconds - self._interval_seconds)
        self._since = now if is_full else None

    def wait_seconds(self, position: int) -> float:
        """Returns how long who is at `position` of those who wait, from 1, will probably do so; 0 for who need not."""
        return max(0, position) * self._interval_seconds
