"""Who may wait for a model: bounded by their number, by their prompts and by their deadlines. Pure, so that a refusal costs nothing."""

from __future__ import annotations

import dataclasses

from inferwire_server import errors
from inferwire_server.departures import Departures

# Before a prompt is tokenized its tokens are guessed: English text in common vocabularies has about this much per token.
_BYTES_PER_TOKEN = 4
_FIRST_GUESS_SECONDS = 1.0
# Waiting in vain costs a caller its deadline at worst, being refused wrongly its answer: nine of ten refusals should be right.
# The guess is too long by this much now and then, also because some who wait ahead give up.
_SLACK = 1.3


@dataclasses.dataclass
class _Request:
    prompt_tokens: int
    has_begun: bool = False


class Admission:
    """The requests on one model, those that run in its places and those that wait for one."""

    def __init__(self, *, model: str, num_places: int, queue_capacity: int, queue_prompt_tokens: int) -> None:
        self._model = model
        self._num_places = num_places
        self._queue_capacity = queue_capacity
        self._queue_prompt_tokens = queue_prompt_tokens
        self._requests: dict[int, _Request] = {}
        self._prompt_tokens = 0
        self._departures = Departures(_FIRST_GUESS_SECONDS)

    def __repr__(self) -> str:
        return (
            f"<Admission {self._model} [{len(self._requests)} on {self._num_places} places | "
            f"prompts {self._prompt_tokens} | {self._departures!r}]>"
        )

    def check(self, prompt_bytes: int, deadline_seconds: float | None) -> None:
        """Raises errors.QueueFull or DeadlineUnreachable, with the time until there is probably room."""
        position = len(self._requests) - self._num_places + 1
        if position > self._queue_capacity:
            raise self._full({"queueCapacity": str(self._queue_capacity)})
        prompts = self._prompt_tokens + prompt_bytes // _BYTES_PER_TOKEN
        # One that is alone may be as long as it likes: the context bounds it.
        if position > 0 and self._requests and prompts > self._queue_prompt_tokens:
            raise self._full({"queuePromptTokens": str(self._queue_prompt_tokens)})
        wait_seconds = self._departures.wait_seconds(position)
        if (
            deadline_seconds is not None
            and self._departures.num_seen
            and wait_seconds > _SLACK * deadline_seconds
        ):
            raise errors.DeadlineUnreachable(
                "the queue is longer than the call's deadline; give it more time, or retry on another replica",
                metadata={"model": self._model, "expectedWaitMs": str(int(wait_seconds * 1000))},
                retry_delay_seconds=wait_seconds,
            )

    def enter(self, id: int, prompt_bytes: int, now: float) -> None:
        """Counts a request in."""
        request = _Request(prompt_bytes // _BYTES_PER_TOKEN)
        self._requests[id] = request
        self._prompt_tokens += request.prompt_tokens
        self._departures.arrived(now, is_full=len(self._requests) >= self._num_places)

    def begin(self, id: int) -> None:
        """Tells that a request's first token came: it has a place, and its prompt is read."""
        request = self._requests[id]
        if not request.has_begun:
            request.has_begun = True
            self._prompt_tokens -= request.prompt_tokens

    def leave(self, id: int, now: float) -> None:
        """Counts a request off. One that had not begun freed nothing, so it says nothing about how long others wait."""
        request = self._requests.pop(id)
        if request.has_begun:
            self._departures.left(now, is_full=len(self._requests) >= self._num_places)
        else:
            self._prompt_tokens -= request.prompt_tokens

    def _full(self, metadata: dict[str, str]) -> errors.QueueFull:
        return errors.QueueFull(
            "the model's queue is full; retry later, or on another replica",
            metadata={"model": self._model, **metadata},
            retry_delay_seconds=self._departures.wait_seconds(1),
        )
