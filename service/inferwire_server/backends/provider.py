"""Who answers elsewhere: what stands behind a backend that the operator configured.

A `Provider` knows one service, tool or server. `RemoteBackend` makes of one of its models what the server knows: a
backend with the one primitive. It keeps the law of the stream, the times, the breaker and what all providers owe alike, so a
provider only translates. Third parties subclass `Provider` too; see CONTRIBUTING.md.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import ClassVar, TypeVar

import msgspec
import structlog

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings, convert_options
from inferwire_server.engine.detokenizer import TextStream

from .base import Attempt, Call, Event, Occupancy, as_message
from .breaker import Breaker, Permit
from .fields import unsupported
from .patience import OutOfPatience, Patience

log = structlog.get_logger()

# Failures that say something of the backend's health and not of the request.
_FAILURES = (
    errors.UpstreamUnavailable,
    errors.UpstreamProtocolError,
    errors.UpstreamStalled,
    errors.UpstreamTruncated,
)
# Answers after which asking for anything is useless until somebody acts.
_PROBLEMS = (errors.UpstreamAuth, errors.UpstreamRedirect)
DEFAULT_RETRY_SECONDS = 1.0
CHECK_SECONDS = 10.0
GRACE_SECONDS = 2.0


_Question = TypeVar(
    "_Question", pb.EmbedRequest, pb.CompleteRequest, pb.TokenizeRequest, pb.DetokenizeRequest
)
_Reply = TypeVar(
    "_Reply", pb.EmbedResponse, pb.CountTokensResponse, pb.TokenizeResponse, pb.DetokenizeResponse
)


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a provider that has none."""


class Provider(abc.ABC):
    """A service that the operator configured. Made inside the event loop that it lives in; `close` when it is over.

    `supported` are the fields of a request that it honours, as `fields` spells them; whatever else is set is refused before
    `answer` is called. Stop texts, time limits, progress and the final message are kept by `RemoteBackend` where a provider
    does not list them itself.
    """

    display_name = ""
    capabilities = models_pb2.Capabilities(chat=True)
    supported: frozenset[str] = frozenset({"chat"})
    image_types: frozenset[str] = frozenset()
    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    def __init__(self, id: str, settings: BackendSettings) -> None:
        self.id = id
        self.settings = settings
        self.display_name = settings.display_name or self.display_name or id
        self.options = convert_options(settings.options, self.Options, f"backends.{id}.options")
        self.instance_id = secrets.token_hex(8)
        self.base_url = settings.base_url
        self.models = list(settings.models)
        # The service's own list, as of the last check that asked for it.
        self.offered: list[str] = []
        self.on_change: Callable[[], None] = lambda: None
        self.breaker = Breaker(
            max_failures=settings.breaker_failures,
            window_seconds=settings.breaker_window_seconds,
            open_seconds=settings.breaker_open_seconds,
            on_change=self._breaker_changed,
        )
        self._problem: errors.ServingError | None = None
        self._answered_at = -1e9
        self.num_attempts = 0
        self.failures: Counter[str] = Counter()
        self._backends: dict[str, RemoteBackend] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} [{self.breaker!r} | {self._problem!r}]>"

    # What a provider fills in.

    @abc.abstractmethod
    def answer(self, request: pb.CompleteRequest, model: str, call: Call) -> AsyncGenerator[Event]:
        """Yields deltas, then exactly one completion, and ends; closing it ends the work there.

        `request` must not be changed. Raises one errors.ServingError. A `started` of its own may come first; its sampling and
        max_tokens are kept.
        """

    def violations(self, request: pb.CompleteRequest) -> Iterable[tuple[str, str]]:
        """Returns the fields that it honours but not with these values, each with why; asked before anything is sent."""
        return ()

    async def check(self) -> None:
        """Asks cheaply whether the service would answer. Raises errors.ServingError. Nothing, for most."""

    async def embed(self, request: pb.EmbedRequest, model: str, call: Call) -> pb.EmbedResponse:
        """Turns texts into vectors, as they are: what the request says of them was refused or is kept by the service."""
        raise errors.UnsupportedByBackend(
            "the backend gives no embeddings",
            metadata={"model": request.model, "backend": self.id},
            violations=[("model", "gives no embeddings")],
        )

    async def count_tokens(
        self, request: pb.CompleteRequest, model: str, call: Call
    ) -> pb.CountTokensResponse:
        """Counts the tokens of a request. Refuses, as most: their tokens are their own."""
        raise self._no_tokens(request.model)

    async def tokenize(self, request: pb.TokenizeRequest, model: str, call: Call) -> pb.TokenizeResponse:
        """Splits a text. Refuses, as most."""
        raise self._no_tokens(request.model)

    async def detokenize(
        self, request: pb.DetokenizeRequest, model: str, call: Call
    ) -> pb.DetokenizeResponse:
        """Joins tokens. Refuses, as most."""
        raise self._no_tokens(request.model)

    async def load(self, model: str, keep_alive_seconds: float | None) -> None:
        """Makes a model ready there. Raises errors.ServingError. Nothing, where that is not ours to say."""

    async def unload(self, model: str) -> None:
        """Frees a model there. Nothing, where that is not ours to say."""

    async def close(self) -> None:
        """Closes what is open."""

    # What it has from here.

    def allows(self, model: str) -> bool:
        """Whether callers may ask for a model of this name."""
        return model in self.models or self.settings.allow_unlisted

    def backend(self, model: str) -> RemoteBackend:
        """Returns the backend of one of its models."""
        if model not in self._backends and model in self.models:
            self._backends[model] = RemoteBackend(self, model)
        return self._backends.get(model) or RemoteBackend(self, model)

    @property
    def default_model(self) -> str:
        """The operator's choice among its models; empty when there is none."""
        return self.settings.default_model

    @property
    def available_models(self) -> list[str]:
        """The models that the operator has listed, and where any may be asked for, those that the service lists itself."""
        if self.problem:
            return []
        return sorted({*self.models, *(self.offered if self.settings.allow_unlisted else ())})

    @property
    def problem(self) -> errors.ServingError | None:
        """Why it would not answer now; None when it would."""
        wait = self.breaker.retry_after_seconds
        return self._left_alone(wait) if wait else self._problem

    async def watch(self) -> None:
        """Keeps `problem` true until it is cancelled: asks the service how it is, unless an answer has just told."""
        seconds = self.settings.health_seconds
        if not seconds:
            return
        while True:
            if time.monotonic() - self._answered_at >= seconds:
                try:
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self.check()
                    self._tell(None)
                except TimeoutError:
                    self._tell(errors.UpstreamStalled("the provider sent nothing for too long"))
                except errors.ServingError as error:
                    self._tell(error)
            await asyncio.sleep(seconds if self._problem is None else min(seconds, 5.0))

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Permit]:
        """Asks the breaker, and tells it how the body ended. Raises errors.UpstreamUnavailable when it is open."""
        permit = self.breaker.admit()
        if permit is None:
            raise self._left_alone(self.breaker.retry_after_seconds)
        self.num_attempts += 1
        try:
            yield permit
        except _FAILURES as error:
            self.failures[error.reason] += 1
            permit.failed()
            if isinstance(error, errors.UpstreamUnavailable):
                self._tell(error.copy())
            raise
        except (errors.CallEnded, errors.LoadSheddingError, errors.UnsupportedByBackend):
            # The caller's time was over, or nobody was asked.
            permit.abandoned()
            raise
        except errors.ServingError as error:
            # It answered, if only to refuse.
            self.failures[error.reason] += 1
            permit.succeeded()
            if isinstance(error, _PROBLEMS):
                self._tell(error.copy())
            raise
        except BaseException:
            permit.abandoned()
            raise
        permit.succeeded()
        self._answered_at = time.monotonic()
        self._tell(None)

    def _no_tokens(self, model: str) -> errors.UnsupportedByBackend:
        return errors.UnsupportedByBackend(
            "the backend does not show its tokens",
            metadata={"model": model, "backend": self.id},
            violations=[("model", "does not show its tokens")],
        )

    def _tell(self, problem: errors.ServingError | None) -> None:
        if (problem and problem.reason) != (self._problem and self._problem.reason):
            self._problem = problem
            if problem is None:
                log.info("backend_serving", backend=self.id)
            else:
                log.warning(
                    "backend_not_serving", backend=self.id, reason=problem.reason, detail=problem.detail
                )
            self.on_change()

    def _breaker_changed(self) -> None:
        log.warning("breaker", backend=self.id, state=self.breaker.state.value)
        self.on_change()
        if wait := self.breaker.retry_after_seconds:
            # That it may be asked again is news, and comes by the clock alone.
            asyncio.get_running_loop().call_later(wait, lambda: self.on_change())

    def _left_alone(self, wait: float) -> errors.UpstreamUnavailable:
        return errors.UpstreamUnavailable(
            "the provider has failed several times and is left alone for a while",
            metadata={"backend": self.id},
            retry_delay_seconds=wait or DEFAULT_RETRY_SECONDS,
        )


class RemoteBackend:
    """One model of a provider; see `base.Backend`."""

    candidates = ()

    def __init__(self, provider: Provider, model: str) -> None:
        self.provider = provider
        self.model = model
        self._num_streams = 0
        self._limited_until = 0.0
        self.prompt_tokens_total = 0
        self.completion_tokens_total = 0

    def __repr__(self) -> str:
        return f"<RemoteBackend {self.provider.id}/{self.model} [streams {self._num_streams}]>"

    @property
    def id(self) -> str:
        """The provider's."""
        return self.provider.id

    @property
    def display_name(self) -> str:
        """The provider's."""
        return self.provider.display_name

    @property
    def capabilities(self) -> models_pb2.Capabilities:
        """The provider's."""
        return self.provider.capabilities

    @property
    def default_model(self) -> str:
        """Its one model."""
        return self.model

    @property
    def available_models(self) -> list[str]:
        """Its one model, while the provider would answer."""
        return [] if self.problem else [self.model]

    @property
    def occupancy(self) -> Occupancy:
        """How many streams it answers; whether they wait there, nobody tells."""
        return Occupancy(
            streams_in_flight=self._num_streams,
            prompt_tokens_total=self.prompt_tokens_total,
            completion_tokens_total=self.completion_tokens_total,
        )

    @property
    def problem(self) -> errors.ServingError | None:
        """See `Provider.problem`."""
        return self.provider.problem

    async def stream(self, request: pb.CompleteRequest, call: Call) -> AsyncGenerator[Event]:
        """See `Backend.stream`. It is read by one task."""
        self._admit(request)
        self._num_streams += 1
        try:
            attempt = self._attempt("chat" if request.HasField("chat") else "text_completion")
            with self._told(), self.provider.attempt() as permit, call.attempt(attempt):
                async with contextlib.aclosing(_Answer(self, request, call).events()) as events:
                    async for event in events:
                        permit.answering()
                        yield event
        finally:
            self._num_streams -= 1

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """See `Backend.embed`."""
        response = await self._ask(self.provider.embed, request, call, "embeddings")
        self.prompt_tokens_total += response.usage.prompt_tokens
        return response

    async def count_tokens(self, request: pb.CompleteRequest, call: Call) -> pb.CountTokensResponse:
        """See `Backend.count_tokens`. Most providers refuse."""
        return await self._ask(self.provider.count_tokens, request, call, "count_tokens")

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """See `Backend.tokenize`. Most providers refuse."""
        return await self._ask(self.provider.tokenize, request, call, "tokenize")

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """See `Backend.detokenize`. Most providers refuse."""
        return await self._ask(self.provider.detokenize, request, call, "detokenize")

    async def _ask(
        self,
        ask: Callable[[_Question, str, Call], Awaitable[_Reply]],
        request: _Question,
        call: Call,
        operation: str,
    ) -> _Reply:
        """Asks a question with one answer."""
        self._wait_out()
        with self._told(), self.provider.attempt(), call.attempt(self._attempt(operation)):
            try:
                async with asyncio.timeout_at(call.time_limit):
                    response = await ask(request, self.model, call)
            except TimeoutError:
                raise errors.UpstreamStalled("the provider sent nothing for too long") from None
        response.model = request.model
        return response

    def _admit(self, request: pb.CompleteRequest) -> None:
        violations = unsupported(request, self.provider.supported, self.provider.image_types)
        violations += self.provider.violations(request)
        if violations:
            raise errors.UnsupportedByBackend(
                "the backend cannot honour a field of the request",
                metadata={"model": request.model, "backend": self.id},
                violations=violations,
            )
        self._wait_out()

    def _attempt(self, operation: str) -> Attempt:
        provider = self.provider
        return Attempt(self.id, provider.settings.type, provider.base_url, self.model, operation)

    def _wait_out(self) -> None:
        """Raises errors.UpstreamRateLimited until the time has passed that the provider asked for."""
        left = self._limited_until - time.monotonic()
        if left > 0:
            raise errors.UpstreamRateLimited(
                "the provider limits the operator's key",
                metadata={"backend": self.id},
                retry_delay_seconds=left,
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Adds to a failure whose it is."""
        try:
            yield
        except errors.UpstreamError as error:
            error.metadata.setdefault("backend", self.id)
            if isinstance(error, errors.UpstreamModelNotFound):
                error.metadata.setdefault("model", self.model)
            if isinstance(error, errors.UpstreamRateLimited) and error.retry_delay_seconds:
                self._limited_until = time.monotonic() + error.retry_delay_seconds
            raise
        except errors.ContextLengthExceeded as error:
            error.metadata.setdefault("model", self.model)
            raise


class _Answer:
    """One answer of a provider, made lawful."""

    def __init__(self, backend: RemoteBackend, request: pb.CompleteRequest, call: Call) -> None:
        provider = backend.provider
        self._provider = provider
        self._backend = backend
        self._request = request
        self._call = call
        self._begin = time.monotonic()
        self._first_at: float | None = None
        self._last_at = self._begin
        self._progress_seconds = provider.settings.progress_seconds
        self._patience = Patience()
        # Who ends an answer with TIME_LIMIT itself is given a little more, so that its own end comes through.
        self._limit = call.time_limit + (
            GRACE_SECONDS if "stopping.time_limit" in provider.supported else 0.0
        )
        self._started = pb.Started(
            id=call.request_id,
            model=request.model,
            backend=provider.id,
            model_instance_id=provider.instance_id,
            sampling=request.sampling,
            max_tokens=request.stopping.max_tokens,
        )
        self._stops = (
            self._new_stops() if request.stopping.stop and "stopping.stop" not in provider.supported else None
        )
        keeps_message = request.output.message and "output.message" not in provider.supported
        self._gatherer = Gatherer() if keeps_message else None
        self._completion: pb.Completion | None = None

    async def events(self) -> AsyncGenerator[Event]:
        """Yields the lawful stream: `started` with the first event behind it, or at once for who asks for progress."""
        is_told = self._request.output.progress and "output.progress" not in self._provider.supported
        if is_told:
            yield self._start()
        async with contextlib.aclosing(self._deltas()) as deltas:
            async for event in deltas:
                if not is_told:
                    is_told = True
                    yield self._start()
                if event.WhichOneof("event") == "started":
                    continue
                if self._gatherer is not None:
                    self._gatherer.add(as_message(event))
                yield event
        if not is_told:
            yield self._start()
        yield pb.StreamCompleteResponse(completion=self._finished())

    async def _deltas(self) -> AsyncGenerator[Event]:
        """Yields what the provider says, stop texts kept, and leaves the completion.

        Of a provider that makes progress events, for who asked for them, its `started` too: the request has its place.
        """
        answer = self._provider.answer(self._request, self._backend.model, self._call)
        async with contextlib.AsyncExitStack() as held:
            held.callback(self._patience.close)
            given = await held.enter_async_context(contextlib.aclosing(answer))
            while self._completion is None:
                try:
                    event = await self._next(given)
                except _TimeLimit:
                    self._completion = pb.Completion(finish_reason=pb.FINISH_REASON_TIME_LIMIT)
                    break
                kind = event.WhichOneof("event")
                if kind == "completion":
                    self._completion = as_message(event).completion
                    break
                if kind == "started":
                    self._keep(as_message(event).started)
                    if self._request.output.progress:
                        yield event
                    continue
                self._note(kind)
                if kind == "text" and self._stops is not None:
                    text = self._stops.push(as_message(event).text.text.encode())
                else:
                    # What might have been the beginning of a stop text is none: something else stands behind it.
                    text = self._held_text()
                if text:
                    yield pb.StreamCompleteResponse(text=pb.TextDelta(text=text))
                if kind != "text" or self._stops is None:
                    yield event
                elif self._stops.stop is not None:
                    self._completion = pb.Completion(
                        finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string=self._stops.stop
                    )
        if text := self._held_text():
            yield pb.StreamCompleteResponse(text=pb.TextDelta(text=text))

    def _held_text(self) -> str:
        """Returns the text that was held back as the possible beginning of a stop text, and looks for one anew."""
        if self._stops is None or self._stops.stop is not None:
            return ""
        text, self._stops = self._stops.finish(), self._new_stops()
        return text

    def _note(self, kind: str | None) -> None:
        self._last_at = time.monotonic()
        if kind != "progress":
            self._call.tokens_emitted += 1
            self._backend.completion_tokens_total += 1
            self._first_at = self._first_at or self._last_at

    def _start(self) -> pb.StreamCompleteResponse:
        return pb.StreamCompleteResponse(started=self._started)

    def _new_stops(self) -> TextStream:
        return TextStream(self._request.stopping.stop, include_stop=self._request.stopping.include_stop)

    async def _next(self, given: AsyncIterator[Event]) -> Event:
        """Returns the next event. Raises _TimeLimit, errors.UpstreamStalled, or what the provider raises."""
        limit = min(self._limit, self._last_at + self._progress_seconds)
        try:
            return await self._patience.wait(anext(given), limit)
        except OutOfPatience:
            # Where the provider makes the final message, an end of our own would lack it.
            has_message = self._gatherer is not None or not self._request.output.message
            if time.monotonic() >= self._limit and has_message:
                raise _TimeLimit from None
            raise errors.UpstreamStalled("the provider sent nothing of use for too long") from None
        except StopAsyncIteration:
            raise errors.UpstreamTruncated("the provider's stream ended before its answer did") from None

    def _keep(self, started: pb.Started) -> None:
        self._started.sampling.CopyFrom(started.sampling)
        self._started.max_tokens = started.max_tokens

    def _finished(self) -> pb.Completion:
        completion, now = self._completion, time.monotonic()
        assert completion is not None, "the deltas left it"
        usage = completion.usage
        self._backend.prompt_tokens_total += max(0, usage.prompt_tokens - usage.cached_prompt_tokens)
        # A delta was counted as a token; now the provider has told how many there were.
        self._backend.completion_tokens_total += max(0, usage.completion_tokens - self._call.tokens_emitted)
        timing = completion.timing
        timing.total.FromNanoseconds(int((now - self._begin) * 1e9))
        if self._first_at is not None:
            timing.time_to_first_token.FromNanoseconds(int((self._first_at - self._begin) * 1e9))
            timing.decode.FromNanoseconds(int((self._last_at - self._first_at) * 1e9))
        if self._gatherer is not None:
            completion.message.CopyFrom(self._gatherer.response().message)
            completion.message.role = pb.ROLE_ASSISTANT
        return completion


class _TimeLimit(Exception):
    pass
