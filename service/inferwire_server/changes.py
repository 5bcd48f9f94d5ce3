"""A counter that can be waited for: how one task learns that another changed the state they share."""

from __future__ import annotations

import asyncio


class Changes:
    """Counts changes. A waiter may miss intermediate ones, never the last. One event loop."""

    def __init__(self) -> None:
        self.revision = 1
        self._waiters: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<Changes [revision {self.revision} | {len(self._waiters)} waiting]>"

    def bump(self) -> None:
        """Counts a change and wakes who waits."""
        self.revision += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def after(self, revision: int, *, timeout_seconds: float | None = None) -> int:
        """Returns the current revision as soon as it is not `revision`, or when the time is over."""
        if self.revision == revision:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=timeout_seconds)
            finally:
                self._waiters.discard(waiter)
        return self.revision
