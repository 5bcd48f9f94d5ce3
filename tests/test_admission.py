"""Who may wait for a model: its queue is bounded in three ways, and every refusal says when to come again."""

from __future__ import annotations

import pytest

from inferwire_server import errors
from inferwire_server.backends.admission import Admission


def admission(**bounds: int) -> Admission:
    return Admission(
        model="demo", **{"num_places": 2, "queue_capacity": 2, "queue_prompt_tokens": 1000, **bounds}
    )


def fill(it: Admission, ids: range, prompt_bytes: int = 4, now: float = 0.0) -> None:
    for id in ids:
        it.check(prompt_bytes, None)
        it.enter(id, prompt_bytes, now)


def test_bounded_by_number() -> None:
    """Exactly the places and the queue are let in; one that leaves lets one in."""
    it = admission()
    fill(it, range(4))
    with pytest.raises(errors.QueueFull) as refused:
        it.check(4, None)
    assert {"model": "demo", "queueCapacity": "2"} == refused.value.metadata
    it.leave(3, 0.0)
    it.check(4, None)


def test_no_queue_at_all() -> None:
    """A capacity of zero means that nobody waits."""
    it = admission(queue_capacity=0)
    fill(it, range(2))
    with pytest.raises(errors.QueueFull):
        it.check(4, None)


def test_bounded_by_prompts() -> None:
    """Long prompts that nobody has read yet fill the queue before its places do."""
    it = admission(queue_capacity=100)
    fill(it, range(3), prompt_bytes=1200)
    with pytest.raises(errors.QueueFull) as refused:
        it.check(1200, None)
    assert "1000" == refused.value.metadata["queuePromptTokens"]
    it.check(100, None)
    it.begin(0)
    it.begin(0)
    it.check(1200, None)
    it.leave(1, 0.0)
    it.check(2000, None)


def test_one_alone_may_be_long() -> None:
    """The bound is on who waits: where a place is free, the context alone bounds a prompt."""
    it = admission()
    it.check(1 << 30, None)
    fill(it, range(1))
    it.check(1 << 30, None)


def test_a_deadline_that_cannot_be_kept() -> None:
    """Who would wait clearly longer than its deadline is told so at once, with the wait; who may make it is let in."""
    it = admission(queue_capacity=10)
    fill(it, range(4))
    it.begin(0)
    it.leave(0, 3.0)
    # One place in 3 s: the next is second of those who wait.
    it.check(4, 5.0)
    with pytest.raises(errors.DeadlineUnreachable) as refused:
        it.check(4, 4.0)
    assert (6.0, "6000") == (refused.value.retry_delay_seconds, refused.value.metadata["expectedWaitMs"])
    it.check(4, None)


def test_nothing_is_predicted_before_anything_was_seen() -> None:
    """A guess refuses nobody."""
    it = admission(queue_capacity=10)
    fill(it, range(9))
    it.check(4, 0.001)


def test_the_delay_of_a_full_queue_is_the_queues() -> None:
    """RetryInfo is the time in which one place becomes free, as it was seen."""
    it = admission()
    fill(it, range(4))
    it.begin(0)
    it.leave(0, 7.5)
    fill(it, range(4, 5), now=7.5)
    with pytest.raises(errors.QueueFull) as refused:
        it.check(4, None)
    assert 7.5 == refused.value.retry_delay_seconds


def test_who_gave_up_waiting_says_nothing_about_the_places() -> None:
    """A cancel in the queue frees no place, so it does not make the queue look fast."""
    it = admission(queue_capacity=10)
    fill(it, range(4))
    it.begin(0)
    it.leave(0, 10.0)
    before = repr(it._departures)
    it.leave(3, 10.001)
    assert before == repr(it._departures)
