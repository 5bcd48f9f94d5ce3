"""The circuit breaker: opens after enough failures within its window, probes with one request, closes or opens again."""

from __future__ import annotations

from inferwire_server.backends.breaker import Breaker, Permit, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock) -> Breaker:
    return Breaker(max_failures=5, window_seconds=10, open_seconds=15, clock=clock)


def admitted(breaker: Breaker) -> Permit:
    permit = breaker.admit()
    assert permit is not None
    return permit


def state_of(breaker: Breaker) -> State:
    return breaker.state


def opened(clock: Clock) -> Breaker:
    made = breaker(clock)
    for _ in range(5):
        admitted(made).failed()
    assert State.OPEN == state_of(made)
    return made


def test_it_opens_after_five_failures_within_the_window():
    """Four are not enough; the fifth opens, and nobody passes any more."""
    made = breaker(Clock())
    for _ in range(4):
        admitted(made).failed()
    assert State.CLOSED == state_of(made)
    admitted(made).failed()
    assert State.OPEN == state_of(made)
    assert made.admit() is None
    assert "<Breaker [open | failures 0/5]>" == repr(made)


def test_failures_outside_the_window_do_not_count():
    """Five failures, one every three seconds, are no outage."""
    clock = Clock()
    made = breaker(clock)
    for _ in range(20):
        admitted(made).failed()
        clock.now += 3
    assert State.CLOSED == state_of(made)


def test_a_success_forgets_the_failures():
    """What answers in between is not down."""
    made = breaker(Clock())
    for _ in range(20):
        for _ in range(4):
            admitted(made).failed()
        admitted(made).succeeded()
    assert State.CLOSED == state_of(made)


def test_one_probe_passes_on_time_and_closes_it():
    """Not a moment earlier, and only one at a time."""
    clock = Clock()
    made = opened(clock)
    clock.now += 14.9
    assert 0 < made.retry_after_seconds < 0.2
    assert made.admit() is None
    clock.now += 0.1
    assert 0 == made.retry_after_seconds
    probe = admitted(made)
    assert State.HALF_OPEN == state_of(made)
    assert made.admit() is None
    probe.answering()
    assert State.CLOSED == state_of(made)
    admitted(made)
    admitted(made)


def test_a_probe_that_fails_opens_it_again_for_as_long():
    """The time starts anew."""
    clock = Clock()
    made = opened(clock)
    clock.now += 15
    admitted(made).failed()
    assert State.OPEN == state_of(made)
    assert 15 == made.retry_after_seconds


def test_a_probe_whose_caller_left_makes_room_for_another():
    """Nobody knows anything, so the next one is the probe."""
    clock = Clock()
    made = opened(clock)
    clock.now += 15
    admitted(made).abandoned()
    assert State.HALF_OPEN == state_of(made)
    admitted(made)


def test_those_who_passed_before_it_opened_say_nothing_new():
    """Their late failures neither take the probe's place nor keep it open for longer."""
    clock = Clock()
    made = breaker(clock)
    early = admitted(made)
    for _ in range(5):
        admitted(made).failed()
    clock.now += 15
    probe = admitted(made)
    early.failed()
    assert State.HALF_OPEN == state_of(made)
    assert made.admit() is None
    probe.succeeded()
    assert State.CLOSED == state_of(made)


def test_an_answer_that_breaks_off_is_a_failure_after_all():
    """A backend that begins every answer and ends none is down too."""
    made = breaker(Clock())
    for _ in range(5):
        permit = admitted(made)
        permit.answering()
        permit.failed()
    assert State.OPEN == state_of(made)
