"""The law of a stream as a client reads it, without any I/O: the sync and the async door both ask here."""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

from google.protobuf.message import Message

from inferwire.errors import stream_truncated

E = TypeVar("E", bound=Message)


class State(enum.Enum):
    """Where a stream is. All but OPEN are final."""

    OPEN = "open"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reading(Generic[E]):
    """What has been read of one stream.

    `terminal` is the arm of the event that must come last. That event is held back until the status is OK, so whoever
    has it knows that the answer is whole; events of an arm that this version does not know are skipped. Without a
    terminal (a watch) everything passes.
    """

    def __init__(self, terminal: str | None) -> None:
        self.state = State.OPEN
        self.first: E | None = None
        self.last: E | None = None
        self._terminal = terminal
        self._held: E | None = None

    def passes(self, event: E) -> bool:
        """Returns whether the caller sees this event now."""
        if self._terminal is not None:
            arm = event.WhichOneof("event")
            if arm is None:
                return False
            if arm == self._terminal:
                self._held = event
                return False
        if self.first is None:
            self.first = event
        return True

    def end(self) -> E | None:
        """Takes the status OK and returns the terminal event.

        Raises:
            InferwireError: STREAM_TRUNCATED, when the terminal event never came.
        """
        if self._terminal is not None and self._held is None:
            self.state = State.FAILED
            raise stream_truncated()
        self.state = State.COMPLETED
        self.last = self._held
        return self._held

    def stop(self, state: State) -> None:
        """Takes the end that is not OK; the first end counts."""
        if self.state is State.OPEN:
            self.state = state
