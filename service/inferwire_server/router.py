"""Routes: one name for several models, asked in turn until one answers.

A route is a caller of `Backend.stream` that is one itself. Here is the server's only retry loop: what decides what comes next
is `Attempts`, which is pure; the loop does what it says. Nothing is asked again once an event was passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.backends.base import Backend, Call, Event, Occupancy, as_message
from inferwire_server.config import Cause, RouteSettings
from inferwire_server.registry import Registry

log = structlog.get_logger()

BACKEND_ID = "route"

_Answer = TypeVar("_Answer")

_CAUSES: dict[type[errors.ServingError], Cause] = {
    errors.UpstreamUnavailable: "unreachable",
    errors.UpstreamStalled: "unreachable",
    errors.UpstreamTruncated: "unreachable",
    errors.UpstreamProtocolError: "unreachable",
    errors.UpstreamAuth: "unreachable",
    errors.UpstreamModelNotFound: "unreachable",
    errors.UpstreamRedirect: "unreachable",
    errors.EngineCrashed: "unreachable",
    errors.EngineStalled: "unreachable",
    errors.ModelNotFound: "unreachable",
    errors.ModelNotLoaded: "unreachable",
    errors.ModelLoading: "unreachable",
    errors.ModelUnloading: "unreachable",
    errors.ModelUnloaded: "unreachable",
    errors.ModelFailed: "unreachable",
    errors.UpstreamRateLimited: "rate_limited",
    errors.QueueFull: "rate_limited",
    errors.DeadlineUnreachable: "rate_limited",
    errors.ContextLengthExceeded: "context_too_long",
    errors.PromptTooLarge: "context_too_long",
    errors.UnsupportedByBackend: "unsupported",
}
# Causes that may be gone a moment later; the others are asked once.
_PASSING = (
    errors.UpstreamUnavailable,
    errors.UpstreamStalled,
    errors.UpstreamTruncated,
    errors.UpstreamProtocolError,
    errors.UpstreamRateLimited,
    errors.EngineCrashed,
    errors.EngineStalled,
    errors.ModelLoading,
    errors.QueueFull,
)


def cause_of(error: errors.ServingError) -> Cause | None:
    """Returns what kind of failure this is for a route; None for one that another candidate would have too."""
    if isinstance(error, errors.UpstreamRejected) and error.metadata.get("upstreamCode") == "content_filter":
        return "content_filter"
    return _CAUSES.get(type(error))


class Budget:
    """What bounds retries when everything fails: a retry takes one token, an answer gives a tenth back.

    Source: gRFC A6, "Throttling retry attempts". A retry is allowed while more than half of the tokens are there.
    """

    def __init__(self, max_tokens: float) -> None:
        self._max_tokens = max_tokens
        self._tokens = max_tokens

    def __repr__(self) -> str:
        return f"<Budget [{self._tokens:.1f}/{self._max_tokens:.1f}]>"

    def succeeded(self) -> None:
        """An answer came."""
        self._tokens = min(self._max_tokens, self._tokens + 0.1)

    def take(self) -> bool:
        """Whether a retry is allowed. True takes a token."""
        if self._tokens <= self._max_tokens / 2:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True


class Attempts:
    """Who is asked next for one request. Pure: times are given, and nobody is asked here.

    First all candidates in their order, each at once when the one before it failed for a cause that the route falls back on.
    Then, up to `retries` times and as the budget allows, those again whose failure may have passed, after a pause: the one
    that they asked for, else one that doubles.
    """

    def __init__(
        self,
        settings: RouteSettings,
        order: Sequence[str],
        budget: Budget,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._draw = draw
        self._left = list(order)
        self._again: list[tuple[str, float | None]] = []
        self._num_rounds = 0

    def __repr__(self) -> str:
        return f"<Attempts [left {self._left} | again {self._again} | round {self._num_rounds}]>"

    def next(self) -> str:
        """Returns whom to ask now. There is always one when `failed` has returned a pause, and at the start."""
        return self._left.pop(0)

    def failed(self, model: str, error: errors.ServingError, seconds_left: float) -> float | None:
        """Takes a failure. Returns how long to wait before `next`, or None when the failure stands."""
        cause = cause_of(error)
        if cause is None or cause not in self._settings.fallback_on:
            return None
        if isinstance(error, _PASSING):
            self._again.append((model, error.retry_delay_seconds))
        if self._left:
            return 0.0
        if not self._again or self._num_rounds >= self._settings.retries:
            return None
        pause = self._pause()
        if pause is None or pause >= seconds_left or not self._budget.take():
            return None
        self._num_rounds += 1
        self._left = [name for name, _ in self._again]
        self._again = []
        return pause

    def _pause(self) -> float | None:
        """Returns the pause before the next round; None when everybody asks for a longer one than we would wait."""
        settings = self._settings
        own = min(settings.backoff_seconds * (1 << self._num_rounds), settings.max_backoff_seconds)
        asked = min(delay or 0.0 for _, delay in self._again)
        if asked > settings.max_backoff_seconds:
            return None
        # Between half and all of it, so that those who failed together do not come back together.
        return max(asked, own * (0.5 + self._draw() / 2))


class RouteBackend:
    """A route; see `base.Backend`."""

    id = BACKEND_ID
    display_name = "Route"

    def __init__(
        self,
        name: str,
        settings: RouteSettings,
        registry: Registry,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.default_model = name
        self._settings = settings
        self._registry = registry
        self._draw = draw
        self._budget = Budget(settings.retry_budget)
        self.candidates = [candidate.model for candidate in settings.models]

    def __repr__(self) -> str:
        return f"<RouteBackend {self.name} [{', '.join(self.candidates)} | {self._budget!r}]>"

    @property
    def capabilities(self) -> models_pb2.Capabilities:
        """What any candidate can do: one that cannot passes a request on."""
        capabilities = models_pb2.Capabilities()
        for model in self.candidates:
            capabilities.MergeFrom(self._registry.capabilities(model))
        return capabilities

    @property
    def available_models(self) -> list[str]:
        """Its own name, while a candidate would answer."""
        return [] if self.problem else [self.name]

    @property
    def occupancy(self) -> Occupancy:
        """None of its own: its candidates tell theirs."""
        return Occupancy()

    @property
    def problem(self) -> errors.ServingError | None:
        """The first candidate's, when all have one."""
        first: errors.ServingError | None = None
        for model in self.candidates:
            problem = self._registry.problem(model)
            if problem is None:
                return None
            first = first or problem
        return first

    async def stream(self, request: pb.CompleteRequest, call: Call) -> AsyncGenerator[Event]:
        """See `Backend.stream`. The answer is that of the first candidate that gives one."""
        attempts = self._attempts()
        asked = pb.CompleteRequest()
        asked.CopyFrom(request)
        while True:
            asked.model = model = attempts.next()
            call.tokens_emitted = 0
            has_begun = False
            held: list[Event] = []
            try:
                with self._registry.lease(model) as backend:
                    async with contextlib.aclosing(backend.stream(asked, call)) as events:
                        async for event in events:
                            if has_begun:
                                yield event
                                continue
                            # A `started` alone is nothing yet: an answer that is filtered whole is one for another candidate.
                            held.append(event)
                            if event.WhichOneof("event") == "started" and not request.output.progress:
                                continue
                            if _is_filtered(event):
                                raise _filtered()
                            has_begun = True
                            for each in held:
                                yield each
            except errors.ServingError as error:
                if has_begun:
                    raise
                failure = error
            else:
                self._budget.succeeded()
                return
            pause = attempts.failed(model, failure, _seconds_left(call))
            if pause is None:
                if held and _is_filtered(held[-1]):
                    # Nobody else: then the filtered answer is the answer.
                    for each in held:
                        yield each
                    return
                raise failure
            self._tell(model, failure, pause)
            await asyncio.sleep(pause)

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """See `Backend.embed`. Candidates without embeddings are passed over."""
        attempts = self._attempts()
        asked = pb.EmbedRequest()
        asked.CopyFrom(request)
        while True:
            asked.model = model = attempts.next()
            try:
                with self._registry.lease(model) as backend:
                    response = await backend.embed(asked, call)
            except errors.ServingError as failure:
                pause = attempts.failed(model, failure, _seconds_left(call))
                if pause is None:
                    raise
                self._tell(model, failure, pause)
            else:
                self._budget.succeeded()
                return response
            await asyncio.sleep(pause)

    async def count_tokens(self, request: pb.CompleteRequest, call: Call) -> pb.CountTokensResponse:
        """The first candidate's that can count."""
        asked = pb.CompleteRequest()
        asked.CopyFrom(request)
        return await self._first(lambda backend: backend.count_tokens(asked, call), asked)

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """The first candidate's that shows its tokens."""
        asked = pb.TokenizeRequest()
        asked.CopyFrom(request)
        return await self._first(lambda backend: backend.tokenize(asked, call), asked)

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """The first candidate's that shows its tokens."""
        asked = pb.DetokenizeRequest()
        asked.CopyFrom(request)
        return await self._first(lambda backend: backend.detokenize(asked, call), asked)

    async def _first(
        self,
        ask: Callable[[Backend], Awaitable[_Answer]],
        asked: pb.CompleteRequest | pb.TokenizeRequest | pb.DetokenizeRequest,
    ) -> _Answer:
        """Asks the candidates in their order: a count of one model is not that of another, so no weight is drawn."""
        first: errors.ServingError | None = None
        for model in self.candidates:
            asked.model = model
            try:
                with self._registry.lease(model) as backend:
                    return await ask(backend)
            except errors.ServingError as error:
                if cause_of(error) is None:
                    raise
                first = first or error
        assert first is not None, "a route has candidates"
        raise first

    def _attempts(self) -> Attempts:
        return Attempts(self._settings, self._order(), self._budget, self._draw)

    def _order(self) -> list[str]:
        """Returns whom to ask in which order: as configured or drawn by weight, those last that would not answer now."""
        candidates = self._settings.models
        if any(candidate.weight is not None for candidate in candidates):
            # The smallest of exponential times with these rates: a draw without replacement (Efraimidis and Spirakis, 2006).
            candidates = tuple(
                sorted(candidates, key=lambda each: -math.log(1 - self._draw()) / (each.weight or 1.0))
            )
        names = [candidate.model for candidate in candidates]
        return sorted(names, key=lambda model: self._registry.problem(model) is not None)

    def _tell(self, model: str, failure: errors.ServingError, pause: float) -> None:
        log.info(
            "route_goes_on",
            route=self.name,
            model=model,
            reason=failure.reason,
            pause_seconds=round(pause, 3),
        )


def _is_filtered(event: Event) -> bool:
    return (
        event.WhichOneof("event") == "completion"
        and as_message(event).completion.finish_reason == pb.FINISH_REASON_CONTENT_FILTER
    )


def _filtered() -> errors.UpstreamRejected:
    return errors.UpstreamRejected(
        "the provider's filter refuses the request", metadata={"upstreamCode": "content_filter"}
    )


def _seconds_left(call: Call) -> float:
    left = call.deadline_seconds
    return call.time_limit_seconds if left is None else min(left, call.time_limit_seconds)
