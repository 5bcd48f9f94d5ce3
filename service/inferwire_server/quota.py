"""How much each principal may ask for: calls at a time, calls and tokens per minute. Refuses before any work.

One account per principal. Tokens are taken off when an answer ends, because nobody knows them before: an account may be
overdrawn by what runs, and is closed until it is even.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from inferwire_server import errors
from inferwire_server.access import Limits, Principal
from inferwire_server.departures import Departures

_FIRST_GUESS_SECONDS = 1.0


class Bucket:
    """A token bucket: so much per minute, saved up for a minute at most."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_minute = per_minute
        self._level = per_minute
        self._at = now

    def __repr__(self) -> str:
        return f"<Bucket [{self._level:.1f} of {self._per_minute:g}]>"

    def seconds_until(self, amount: float, now: float) -> float:
        """Returns how long it takes until there is `amount`, or as much as ever fits; 0 when it is there."""
        self._level = min(self._per_minute, self._level + (now - self._at) / 60 * self._per_minute)
        self._at = now
        return max(0.0, min(amount, self._per_minute) - self._level) / self._per_minute * 60

    def take(self, amount: float) -> None:
        """Takes off what was used, also below zero."""
        self._level -= amount


class Account:
    """What one principal uses."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.num_running = 0
        self.departures = Departures(_FIRST_GUESS_SECONDS)
        self.renew(limits, now)

    def __repr__(self) -> str:
        return f"<Account [running {self.num_running} | {self._requests!r} | {self._tokens!r}]>"

    def renew(self, limits: Limits, now: float) -> None:
        """Begins anew with other limits. What runs stays counted."""
        self.limits = limits
        self._requests = Bucket(limits.requests_per_minute, now) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute, now) if limits.tokens_per_minute else None

    @property
    def is_full(self) -> bool:
        """Whether no further call may run."""
        return self.limits.max_concurrent is not None and self.num_running >= self.limits.max_concurrent

    def refusal(self, now: float) -> tuple[str, float] | None:
        """Returns what is used up and in how many seconds it may be there again; None when a call may begin."""
        if self.is_full:
            return "max_concurrent", self.departures.wait_seconds(1)
        # Any token that is left lets a call begin: its size is not known yet.
        for name, bucket, amount in (
            ("requests_per_minute", self._requests, 1.0),
            ("tokens_per_minute", self._tokens, 1.0),
        ):
            if bucket is not None and (seconds := bucket.seconds_until(amount, now)) > 0:
                return name, seconds
        return None

    def begin(self, now: float) -> None:
        """Counts a call."""
        self.num_running += 1
        self.departures.arrived(now, is_full=self.is_full)
        if self._requests is not None:
            self._requests.take(1)

    def end(self, now: float) -> None:
        """Counts it off."""
        self.num_running -= 1
        self.departures.left(now, is_full=self.is_full)

    def spend(self, num_tokens: int) -> None:
        """Takes off the tokens of a prompt and of an answer."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)


class Quotas:
    """The accounts. One per server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def __repr__(self) -> str:
        return f"<Quotas {self._accounts!r}>"

    @contextlib.contextmanager
    def entered(self, principal: Principal) -> Iterator[Account]:
        """Counts a call for as long as it runs. Raises errors.RateLimited, with the time after which it may be let in."""
        now = self._clock()
        account = self._accounts.get(principal.name)
        if account is None:
            account = self._accounts[principal.name] = Account(principal.limits, now)
        elif account.limits != principal.limits:
            account.renew(principal.limits, now)
        if (refusal := account.refusal(now)) is not None:
            name, seconds = refusal
            raise errors.RateLimited(
                f"the caller's {name} is used up; retry after the delay",
                metadata={"limit": name},
                retry_delay_seconds=seconds,
            )
        account.begin(now)
        try:
            yield account
        finally:
            account.end(self._clock())
