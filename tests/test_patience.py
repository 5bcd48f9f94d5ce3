"""Waits with a limit: who fires does so alone, so that what is cancelled can clean up."""

from __future__ import annotations

import asyncio
import time

import pytest

from inferwire_server.backends.patience import OutOfPatience, Patience


async def test_two_that_end_together_interrupt_once():
    """One wait inside another, over while the other's clean-up runs: that is not disturbed, and the inner one tells."""
    outer, inner = Patience(), Patience()
    cleaned_up = []

    async def thing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # Beyond the limit of the outer one.
            await asyncio.sleep(0.1)
            cleaned_up.append("whole")

    async def inside() -> None:
        try:
            await inner.wait(thing(), now + 0.02)
        finally:
            inner.close()

    now = time.monotonic()
    with pytest.raises(OutOfPatience):
        await outer.wait(inside(), now + 0.05)
    outer.close()
    assert ["whole"] == cleaned_up
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()


async def test_another_cancel_is_not_taken_for_ones_own():
    """Who cancels from outside is obeyed, also when the limit passes meanwhile."""
    patience = Patience()
    begun = asyncio.Event()

    async def thing() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)

    async def waiting() -> None:
        # Of the task that waits.
        nonlocal patience
        patience = Patience()
        try:
            await patience.wait(thing(), time.monotonic() + 0.02)
        finally:
            patience.close()

    task = asyncio.ensure_future(waiting())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
