"""A backend that says what it is told: for tests of clients and servers, without a model.

Public and deterministic. The prompt, or the text of the last message, is the script if it is a JSON object:

    {"events": [{"text": "Hel"}, {"text": "lo"}, {"delay_seconds": 0.1}], "finish_reason": "STOP"}

An event is one of
    {"text": "..."}                                           a text delta, counted as one token
    {"reasoning": "..."}                                      a reasoning delta, counted as one token
    {"tool_call": {"index": 0, "id": "a", "name": "f", "arguments": "{}"}}   a tool-call delta, counted as one token
    {"delay_seconds": 0.1}                                    silence
    {"error": {"reason": "ENGINE_CRASHED", "message": "...", "metadata": {}, "retry_delay_seconds": 1}}
and may carry "repeat": N. Without "finish_reason" it is TOOL_CALLS after a tool call, else STOP. Any other input is
answered with words drawn by the seed, as many as it has words itself or max_tokens allows.

It honours max_tokens, stop texts, time limits, seeds, progress events and the final message; it refuses what it cannot.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from typing import cast

import msgspec

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.engine.detokenizer import TextStream

from .base import Call, Occupancy

BACKEND_ID = "scripted"
MAX_REPEAT = 10_000_000
DEFAULT_MAX_TOKENS = 1 << 31
EVENTS_BETWEEN_PAUSES = 64
WORDS = (
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "héron",
    "ivy",
    "jasmin",
    "köln",
    "λέξη",
    "月",
    "🙂",
)


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ToolCall(_Struct, frozen=True):
    """Fields of a ToolCallDelta."""

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


class Error(_Struct, frozen=True):
    """A failure by its reason."""

    reason: str
    message: str = "the script says so"
    metadata: dict[str, str] = {}
    retry_delay_seconds: float | None = None


class Event(_Struct, frozen=True):
    """One event of a script; exactly one of the first five is set."""

    text: str | None = None
    reasoning: str | None = None
    tool_call: ToolCall | None = None
    delay_seconds: float | None = None
    error: Error | None = None
    repeat: int = 1


class Script(_Struct, frozen=True):
    """A whole answer."""

    events: list[Event]
    finish_reason: str = ""


class ScriptedBackend:
    """See the module. One object may answer for any number of names."""

    id = BACKEND_ID
    display_name = "Scripted answers"
    candidates = ()
    problem = None
    capabilities = models_pb2.Capabilities(prompt=True, chat=True, tools=True, reasoning=True, tokens=True)

    def __init__(self, models: tuple[str, ...] = ("scripted",)) -> None:
        self.available_models = list(models)
        self.default_model = models[0]
        self._instance_id = secrets.token_hex(8)
        self._num_streams = 0
        self.completion_tokens_total = 0

    def __repr__(self) -> str:
        return f"<ScriptedBackend [{', '.join(self.available_models)} | streams {self._num_streams}]>"

    @property
    def occupancy(self) -> Occupancy:
        """How many streams it answers; it never queues."""
        return Occupancy(
            streams_in_flight=self._num_streams, completion_tokens_total=self.completion_tokens_total
        )

    async def stream(
        self, request: pb.CompleteRequest, call: Call
    ) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """See `Backend.stream`."""
        _check_supported(request)
        self._num_streams += 1
        try:
            answer = _Answer(self, request, call, self._instance_id)
            async for event in answer.events():
                yield event
        finally:
            self._num_streams -= 1

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Refuses: a script has no vectors."""
        raise errors.UnsupportedByBackend(
            "the scripted backend gives no embeddings",
            metadata={"model": request.model, "backend": BACKEND_ID},
            violations=[("model", "gives no embeddings")],
        )

    async def count_tokens(self, request: pb.CompleteRequest, call: Call) -> pb.CountTokensResponse:
        """Counts words."""
        return pb.CountTokensResponse(model=request.model, tokens=len(_input_text(request).split()))

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """A token is a byte."""
        data = request.text.encode()
        return pb.TokenizeResponse(
            model=request.model, token_ids=list(data), pieces=[bytes([byte]) for byte in data]
        )

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """A token is a byte."""
        if any(token > 255 for token in request.token_ids):
            raise errors.InvalidRequest(
                "a token id is outside the vocabulary", violations=[("token_ids", "must be below 256")]
            )
        return pb.DetokenizeResponse(model=request.model, data=bytes(request.token_ids))


class _Answer:
    """One answer: the script played under the request's own rules."""

    def __init__(
        self, backend: ScriptedBackend, request: pb.CompleteRequest, call: Call, instance_id: str
    ) -> None:
        stopping = request.stopping
        self._backend = backend
        self._request = request
        self._call = call
        self._begin = time.monotonic()
        self._max_tokens = stopping.max_tokens if stopping.HasField("max_tokens") else DEFAULT_MAX_TOKENS
        self._text = TextStream(stopping.stop, include_stop=stopping.include_stop)
        self._has_stops = bool(stopping.stop)
        sampling = pb.Sampling()
        sampling.CopyFrom(request.sampling)
        if not sampling.HasField("seed"):
            sampling.seed = secrets.randbits(32)
        self._started = pb.Started(
            id=call.request_id,
            model=request.model,
            backend=BACKEND_ID,
            model_instance_id=instance_id,
            sampling=sampling,
            max_tokens=self._max_tokens,
        )
        self._script = _read_script(request, sampling.seed)
        self._num_tokens = 0
        self._called_tool = False
        self._gatherer = Gatherer() if request.output.message else None

    async def events(self) -> AsyncGenerator[pb.StreamCompleteResponse]:
        has_started = False
        num_since_pause = 0
        if self._request.output.progress:
            has_started = True
            yield pb.StreamCompleteResponse(started=self._started)
            tokens = len(_input_text(self._request).split())
            progress = pb.PrefillProgress(processed_tokens=tokens, total_tokens=tokens)
            yield pb.StreamCompleteResponse(progress=pb.Progress(prefill=progress))
        async for event in self._deltas():
            if not has_started:
                has_started = True
                yield pb.StreamCompleteResponse(started=self._started)
            if self._gatherer is not None:
                self._gatherer.add(event)
            yield event
            num_since_pause += 1
            if num_since_pause == EVENTS_BETWEEN_PAUSES:
                num_since_pause = 0
                await asyncio.sleep(0)  # a reader that never waits must not starve the others
        if not has_started:
            yield pb.StreamCompleteResponse(started=self._started)
        yield pb.StreamCompleteResponse(completion=self._completion)

    async def _deltas(self) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """Yields the deltas and leaves the completion."""
        if self._max_tokens == 0:
            self._complete(pb.FINISH_REASON_LENGTH)
            return
        for event in self._script.events:
            message = None if self._has_stops else _delta(event)
            for _ in range(event.repeat):
                if event.error is not None:
                    raise _failure(event.error)
                if time.monotonic() >= self._call.time_limit or (
                    event.delay_seconds is not None and await self._sleep(event.delay_seconds)
                ):
                    if rest := self._text.finish():
                        yield _text_delta(rest)
                    self._complete(pb.FINISH_REASON_TIME_LIMIT)
                    return
                if event.delay_seconds is not None:
                    continue
                self._num_tokens += 1
                self._backend.completion_tokens_total += 1
                self._call.tokens_emitted = self._num_tokens
                self._called_tool = self._called_tool or event.tool_call is not None
                if event.text is not None and self._has_stops:
                    if text := self._text.push(event.text.encode()):
                        yield _text_delta(text)
                    if self._text.stop is not None:
                        self._complete(pb.FINISH_REASON_STOP_STRING)
                        return
                elif message := message or _delta(event):
                    yield message
                if self._num_tokens >= self._max_tokens:
                    if rest := self._text.finish():
                        yield _text_delta(rest)
                    self._complete(pb.FINISH_REASON_LENGTH)
                    return
        if rest := self._text.finish():
            yield _text_delta(rest)
        if self._script.finish_reason:
            name = f"FINISH_REASON_{self._script.finish_reason}"
            self._complete(cast(pb.FinishReason, pb.FinishReason.Value(name)))
        else:
            self._complete(pb.FINISH_REASON_TOOL_CALLS if self._called_tool else pb.FINISH_REASON_STOP)

    async def _sleep(self, seconds: float) -> bool:
        """Waits, no longer than the limits allow. True: the time limit came first."""
        left = self._call.time_limit - time.monotonic()
        deadline = self._call.deadline_seconds
        if deadline is not None and deadline < min(seconds, left):
            await asyncio.sleep(deadline)
            raise errors.DeadlineExceeded("the call's deadline passed")
        await asyncio.sleep(max(0.0, min(seconds, left)))
        return left < seconds

    def _complete(self, reason: pb.FinishReason) -> None:
        completion = self._completion = pb.Completion(finish_reason=reason)
        if self._text.stop is not None:
            completion.finish_reason = pb.FINISH_REASON_STOP_STRING
            completion.stop_string = self._text.stop
        completion.usage.prompt_tokens = len(_input_text(self._request).split())
        completion.usage.completion_tokens = self._num_tokens
        completion.timing.total.FromNanoseconds(int((time.monotonic() - self._begin) * 1e9))
        if self._gatherer is not None:
            completion.message.CopyFrom(self._gatherer.response().message)
            completion.message.role = pb.ROLE_ASSISTANT


def _read_script(request: pb.CompleteRequest, seed: int) -> Script:
    text = _input_text(request)
    if not text.lstrip().startswith("{"):
        return Script(list(_words(text, seed)))
    field = request.WhichOneof("input") or "input"
    try:
        script = msgspec.json.decode(text, type=Script)
    except msgspec.DecodeError as error:
        raise errors.InvalidRequest("the script cannot be read", violations=[(field, str(error))]) from error
    reasons = {name.removeprefix("FINISH_REASON_") for name in pb.FinishReason.DESCRIPTOR.values_by_name} | {
        ""
    }
    for index, event in enumerate(script.events):
        kinds = (event.text, event.reasoning, event.tool_call, event.delay_seconds, event.error)
        problem = ""
        if sum(kind is not None for kind in kinds) != 1:
            problem = "set one of text, reasoning, tool_call, delay_seconds, error"
        elif not 1 <= event.repeat <= MAX_REPEAT:
            problem = f"repeat must be from 1 to {MAX_REPEAT}"
        elif event.error is not None and event.error.reason not in errors.BY_REASON:
            problem = "error.reason is not a reason of the contract"
        if problem:
            raise errors.InvalidRequest(
                "the script cannot be played", violations=[(field, f"events[{index}]: {problem}")]
            )
    if script.finish_reason not in reasons:
        raise errors.InvalidRequest(
            "the script cannot be played", violations=[(field, "finish_reason is not one of the contract")]
        )
    return script


def _words(text: str, seed: int) -> Iterator[Event]:
    draw = random.Random(f"{seed} {text}")
    for index in range(max(1, len(text.split()))):
        yield Event(text=(" " if index else "") + draw.choice(WORDS))


def _input_text(request: pb.CompleteRequest) -> str:
    if request.WhichOneof("input") == "prompt":
        return request.prompt
    parts = request.chat.messages[-1].parts
    return "".join(part.text + part.tool_result.text for part in parts)


def _delta(event: Event) -> pb.StreamCompleteResponse | None:
    """Returns an event's delta; None when it would be empty."""
    if event.text:
        return _text_delta(event.text)
    if event.reasoning:
        return pb.StreamCompleteResponse(reasoning=pb.ReasoningDelta(text=event.reasoning))
    if event.tool_call is not None:
        call = event.tool_call
        return pb.StreamCompleteResponse(
            tool_call=pb.ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
        )
    return None


def _text_delta(text: str) -> pb.StreamCompleteResponse:
    return pb.StreamCompleteResponse(text=pb.TextDelta(text=text))


def _failure(error: Error) -> errors.ServingError:
    return errors.BY_REASON[error.reason](
        error.message, metadata=error.metadata, retry_delay_seconds=error.retry_delay_seconds
    )


def _check_supported(request: pb.CompleteRequest) -> None:
    violations = []
    if request.HasField("response_format"):
        violations.append(("response_format", "scripted answers are not constrained"))
    if request.output.logprobs:
        violations.append(("output.logprobs", "scripted answers have none"))
    if request.output.token_ids:
        violations.append(("output.token_ids", "scripted answers have none"))
    if violations:
        raise errors.UnsupportedByBackend(
            "the scripted backend cannot honour a field of the request",
            metadata={"model": request.model, "backend": BACKEND_ID},
            violations=violations,
        )
