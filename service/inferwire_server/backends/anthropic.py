"""Anthropic's Messages, and the servers that speak them.

Source of the format: the provider's reference of `POST /v1/messages` (version 2023-06-01), its pages on streaming, extended
and adaptive thinking, effort, structured outputs and errors, and the types of its own client.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings

from ._http import HttpRequest
from .answer import EventStreamParser, broken
from .base import Call
from .http_provider import HttpProvider, Refusal, failure
from .lines import ServerSentEvent
from .openai import IMAGES, model_ids, plain, tool_declaration

SUPPORTED = frozenset(
    {
        "chat",
        "chat.tools",
        "chat.tool_choice",
        "chat.parallel_tool_calls",
        "chat.images",
        "chat.tool_images",
        "chat.reasoning.enabled",
        "chat.reasoning.budget_tokens",
        "chat.reasoning.effort",
        "response_format.json_schema",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "stopping.max_tokens",
    }
)
MIN_THINKING_TOKENS = 1024
_UINT32_MAX = (1 << 32) - 1


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`max_tokens` bounds an answer where the request does not, since the API wants a bound; thoughts come on top, and
    `thinking_tokens` is how many where the request asks for some.

    `adaptive_thinking` True: for models that take no budget and decide themselves how long they think. `refuses` takes fields
    away, spelt as in a violation. `body` is added to every request and gives way to what the request says itself.
    """

    version: str = "2023-06-01"
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 4096
    thinking_tokens: Annotated[int, msgspec.Meta(ge=MIN_THINKING_TOKENS, le=1 << 24)] = 4096
    adaptive_thinking: bool = False
    refuses: list[str] = []
    body: dict[str, Any] = {}


class Anthropic(HttpProvider):
    """See the module. Stop texts are the gateway's: the API would cut them off where they are to stay."""

    default_base_url = "https://api.anthropic.com"
    Options = Options
    display_name = "Anthropic"
    image_types = IMAGES

    def __init__(self, id: str, settings: BackendSettings) -> None:
        super().__init__(id, settings)
        assert isinstance(self.options, Options), "of this class"
        self._own: Options = self.options
        self._headers = {"anthropic-version": self._own.version}
        self.supported = SUPPORTED - set(self._own.refuses)
        self.capabilities = models_pb2.Capabilities(
            chat=True,
            tools="chat.tools" in self.supported,
            reasoning=True,
            structured_output="response_format.json_schema" in self.supported,
            images="chat.images" in self.supported,
        )

    def authorization(self, key: str) -> Mapping[str, str]:
        """A header of its own."""
        return {"x-api-key": key}

    def listing(self) -> HttpRequest:
        """The list of models."""
        return HttpRequest("/v1/models", method="GET", headers=self._headers)

    def listed(self, body: bytes) -> list[str]:
        """The form is OpenAI's."""
        return model_ids(body)

    async def answer(
        self, request: pb.CompleteRequest, model: str, call: Call
    ) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """See `Provider.answer`. Its `started` tells the bound in force, which may be the operator's."""
        max_tokens = min(_Body(request, model, self._own).max_tokens, _UINT32_MAX)
        yield pb.StreamCompleteResponse(started=pb.Started(sampling=request.sampling, max_tokens=max_tokens))
        async with contextlib.aclosing(super().answer(request, model, call)) as events:
            async for event in events:
                yield event

    def completion(self, request: pb.CompleteRequest, model: str) -> tuple[HttpRequest, Parser]:
        """See `HttpProvider.completion`."""
        data = msgspec.json.encode({**self._own.body, **_Body(request, model, self._own).build()})
        return HttpRequest("/v1/messages", data, headers=self._headers), Parser()

    def violations(self, request: pb.CompleteRequest) -> list[tuple[str, str]]:
        """See `Provider.violations`."""
        return _Body(request, "", self._own).violations()

    def refusal(self, status: int, body: bytes) -> Refusal:
        """Reads `{"type": "error", "error": {...}}`."""
        return _refusal(msgspec.json.decode(body, type=_Failed).error, status)


class _Body:
    """A request as the provider's JSON."""

    def __init__(self, request: pb.CompleteRequest, model: str, options: Options) -> None:
        self._request = request
        self._model = model
        self._options = options
        self._budget = _thinking_tokens(request.chat.reasoning, options)

    @property
    def max_tokens(self) -> int:
        """The bound on the answer, thoughts included."""
        stopping = self._request.stopping
        if stopping.HasField("max_tokens"):
            return stopping.max_tokens
        return self._options.max_tokens + (self._budget or 0)

    def violations(self) -> list[tuple[str, str]]:
        """Returns what the API takes the field for, but not its value."""
        request, reasoning, budget = self._request, self._request.chat.reasoning, self._budget or 0
        is_adaptive = self._options.adaptive_thinking
        found = []
        if request.sampling.temperature > 1:
            found.append(("sampling.temperature", "this backend takes 0 to 1"))
        if reasoning.effort == pb.REASONING_EFFORT_MINIMAL:
            found.append(("chat.reasoning.effort", "this backend knows LOW, MEDIUM and HIGH"))
        if is_adaptive and budget and reasoning.HasField("budget_tokens"):
            found.append(("chat.reasoning.budget_tokens", "the model decides it itself; set effort"))
        elif not is_adaptive and 0 < budget < MIN_THINKING_TOKENS:
            found.append(
                ("chat.reasoning.budget_tokens", f"this backend takes 0, or {MIN_THINKING_TOKENS} or more")
            )
        elif not is_adaptive and budget and self.max_tokens <= budget:
            found.append(("stopping.max_tokens", f"must be above the {budget} tokens of thought"))
        return found

    def build(self) -> dict[str, Any]:
        request = self._request
        body: dict[str, Any] = {"model": self._model, "stream": True, "max_tokens": self.max_tokens}
        system, body["messages"] = _conversation(request.chat)
        if system:
            body["system"] = system
        self._add_tools(body)
        self._add_thinking(body)
        self._add_sampling(body)
        form = request.response_format
        if form.WhichOneof("format") == "json_schema":
            schema = {"type": "json_schema", "schema": msgspec.Raw(form.json_schema.encode())}
            body.setdefault("output_config", {})["format"] = schema
        return body

    def _add_tools(self, body: dict[str, Any]) -> None:
        chat = self._request.chat
        if not chat.tools:
            # The API refuses a choice among none, and what validation lets through asks for nothing.
            return
        body["tools"] = [tool_declaration(tool, "input_schema") for tool in chat.tools]
        choice: dict[str, Any] = {"type": "auto"}
        match chat.tool_choice.WhichOneof("choice"):
            case "name":
                choice = {"type": "tool", "name": chat.tool_choice.name}
            case "mode":
                choice = {"type": _CHOICES[chat.tool_choice.mode]}
        if chat.HasField("parallel_tool_calls") and choice["type"] != "none":
            choice["disable_parallel_tool_use"] = not chat.parallel_tool_calls
        if chat.HasField("tool_choice") or chat.HasField("parallel_tool_calls"):
            body["tool_choice"] = choice

    def _add_thinking(self, body: dict[str, Any]) -> None:
        if self._budget == 0:
            body["thinking"] = {"type": "disabled"}
        elif self._budget and self._options.adaptive_thinking:
            # Some models hide their thoughts unless told otherwise.
            body["thinking"] = {"type": "adaptive", "display": "summarized"}
        elif self._budget:
            body["thinking"] = {"type": "enabled", "budget_tokens": self._budget}
        if effort := self._request.chat.reasoning.effort:
            body["output_config"] = {"effort": _EFFORTS[effort]}

    def _add_sampling(self, body: dict[str, Any]) -> None:
        """Adds what is set. A value that keeps every token is not said: newer models refuse top_p beside temperature."""
        sampling = self._request.sampling
        if sampling.HasField("temperature"):
            body["temperature"] = plain(sampling.temperature)
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.HasField("top_p") and sampling.top_p != 1:
            body["top_p"] = plain(sampling.top_p)


_CHOICES = {
    pb.TOOL_CHOICE_MODE_AUTO: "auto",
    pb.TOOL_CHOICE_MODE_NONE: "none",
    pb.TOOL_CHOICE_MODE_REQUIRED: "any",
}
_EFFORTS = {
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}
# Begins the signature of a thought that the provider hides. No signature of a visible one has a colon: they are base64.
_REDACTED = b"redacted:"
_CALL_ID = re.compile(r"[A-Za-z0-9_-]+")


def _thinking_tokens(reasoning: pb.ReasoningOptions, options: Options) -> int | None:
    """Returns how many tokens of thought are asked for: 0 for none, None where nothing is said."""
    if reasoning.HasField("enabled") and not reasoning.enabled:
        return 0
    if reasoning.HasField("budget_tokens"):
        return reasoning.budget_tokens
    return options.thinking_tokens if reasoning.enabled else None


def _conversation(chat: pb.Chat) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the blocks of the system prompt, and the messages.

    Neighbours of one role are one message, as the API reads them: the results of a turn's calls must stand together.
    """
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for message in chat.messages:
        blocks = _blocks(message)
        role = "assistant" if message.role == pb.ROLE_ASSISTANT else "user"
        if message.role == pb.ROLE_SYSTEM:
            system += blocks
        elif messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks or role == "user":
            messages.append({"role": role, "content": blocks})
    return system, messages


def _blocks(message: pb.Message) -> list[dict[str, Any]]:
    """Returns a message's content. Neighbouring texts are one; whitespace alone is left out, for the API refuses it."""
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        block = _block(part)
        if block is None:
            continue
        if blocks and block["type"] == blocks[-1]["type"] == "text":
            blocks[-1]["text"] += block["text"]
        else:
            blocks.append(block)
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _block(part: pb.Part) -> dict[str, Any] | None:
    match part.WhichOneof("part"):
        case "image":
            return _image(part.image)
        case "tool_call":
            call = part.tool_call
            arguments = msgspec.Raw((call.arguments or "{}").encode())
            return {"type": "tool_use", "id": _call_id(call.id), "name": call.name, "input": arguments}
        case "tool_result":
            return _result(part.tool_result)
        case "reasoning":
            return _thought(part.reasoning)
        case _:
            return {"type": "text", "text": part.text}


def _image(image: pb.Image) -> dict[str, Any]:
    data = base64.b64encode(image.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": data}}


def _result(result: pb.ToolResult) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": _call_id(result.call_id)}
    if result.images:
        texts = [{"type": "text", "text": result.text}] if result.text.strip() else []
        block["content"] = [*texts, *map(_image, result.images)]
    elif result.text:
        block["content"] = result.text
    if result.is_error:
        block["is_error"] = True
    return block


def _thought(reasoning: pb.Reasoning) -> dict[str, Any] | None:
    """Returns a thought as it came. None without a signature of this provider's kind: the API takes no other thoughts."""
    try:
        signature = reasoning.signature.decode()
    except UnicodeDecodeError:
        return None
    if not signature:
        return None
    hidden = _REDACTED.decode()
    if signature.startswith(hidden):
        return {"type": "redacted_thinking", "data": signature.removeprefix(hidden)}
    return {"type": "thinking", "thinking": reasoning.text, "signature": signature}


def _call_id(id: str) -> str:
    """Returns an id that the API takes, the same for the call and its result: other providers' ids have other characters."""
    if _CALL_ID.fullmatch(id):
        return id
    return f"call_{hashlib.sha256(id.encode()).hexdigest()[:24]}"


# What comes back. Fields that are not named are skipped. The bound keeps the sum of three counts within a uint32.

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]


class _Struct(msgspec.Struct, frozen=True):
    pass


class _OutputDetails(_Struct, frozen=True):
    thinking_tokens: _Count | None = None


class _Usage(_Struct, frozen=True):
    """Counts so far. What an event does not tell stays as it was."""

    input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    output_tokens_details: _OutputDetails | None = None

    def updated(self, later: _Usage | None) -> _Usage:
        if later is None:
            return self
        told = {
            name: value for name in later.__struct_fields__ if (value := getattr(later, name)) is not None
        }
        return msgspec.structs.replace(self, **told)

    def message(self) -> pb.Usage:
        cached = self.cache_read_input_tokens or 0
        details = self.output_tokens_details
        return pb.Usage(
            prompt_tokens=(self.input_tokens or 0) + (self.cache_creation_input_tokens or 0) + cached,
            cached_prompt_tokens=cached,
            completion_tokens=self.output_tokens or 0,
            reasoning_tokens=(details.thinking_tokens if details else None) or 0,
        )


class _Message(_Struct, frozen=True):
    usage: _Usage | None = None


class _Block(_Struct, frozen=True):
    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None


class _Delta(_Struct, frozen=True):
    """Of a block, the first four; of the message, the others."""

    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Error(_Struct, frozen=True):
    type: str | None = None
    message: str | None = None


class _Failed(_Struct, frozen=True):
    error: _Error | None = None


class _Event(_Failed, frozen=True):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None


_EVENT = msgspec.json.Decoder(_Event)
_FINISHES = {
    "end_turn": pb.FINISH_REASON_STOP,
    "stop_sequence": pb.FINISH_REASON_STOP_STRING,
    "max_tokens": pb.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": pb.FINISH_REASON_LENGTH,
    "tool_use": pb.FINISH_REASON_TOOL_CALLS,
    "refusal": pb.FINISH_REASON_CONTENT_FILTER,
}


class Parser(EventStreamParser):
    """Reads blocks until "message_stop". The stop reason comes before it, with the last counts.

    Kinds of events and blocks that are not known say nothing: the provider adds some from time to time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[int, str] = {}
        self._usage = _Usage()
        self._reason = ""
        self._stop_string = ""

    def _take(self, event: ServerSentEvent) -> None:
        told = _EVENT.decode(event.data)
        kind = told.type or event.name
        if event.is_stray or kind == "error":
            raise failure(_refusal(told.error))
        delta = told.delta or _Delta()
        said = False
        match kind:
            case "message_start":
                self._usage = self._usage.updated(told.message.usage if told.message else None)
            case "content_block_start":
                said = self._begin(told.index, told.content_block)
            case "content_block_delta":
                said = self._add(told.index, delta)
            case "message_delta":
                self._usage = self._usage.updated(told.usage)
                self._reason = delta.stop_reason or self._reason
                self._stop_string = delta.stop_sequence or self._stop_string
            case "message_stop":
                self._end()
        self._count_idle(is_idle=not said)

    def _begin(self, index: int, block: _Block | None) -> bool:
        """Returns whether the block says anything yet."""
        if block is None:
            raise broken("a block begins without its kind")
        self._kinds[index] = block.type
        match block.type:
            case "text":
                self.deltas.text(block.text or "")
                return bool(block.text)
            case "thinking":
                self.deltas.reasoning(block.thinking or "", (block.signature or "").encode())
                return bool(block.thinking or block.signature)
            case "redacted_thinking":
                self.deltas.reasoning("", _REDACTED + (block.data or "").encode())
                return True
            case "tool_use":
                self.deltas.tool_call(index, id=block.id or "", name=block.name or "")
                return True
        return False

    def _add(self, index: int, delta: _Delta) -> bool:
        """Returns whether the delta says anything."""
        self.deltas.text(delta.text or "")
        self.deltas.reasoning(delta.thinking or "", (delta.signature or "").encode())
        if delta.partial_json:
            kind = self._kinds.get(index)
            if kind is None:
                raise broken("arguments of a call that has not begun")
            # The provider's own tools have arguments too; such calls are not the caller's.
            if kind == "tool_use":
                self.deltas.tool_call(index, arguments=delta.partial_json)
        return bool(delta.text or delta.thinking or delta.signature or delta.partial_json)

    def _end(self) -> None:
        if not self._reason:
            raise errors.UpstreamTruncated("the provider's stream ended before its answer did")
        reason = _FINISHES.get(self._reason, pb.FINISH_REASON_OTHER)
        self._complete(reason, self._reason, self._usage.message(), self._stop_string)


# What the provider calls a failure, and the status that stands for it.
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_CONTEXT_WORDS = ("prompt is too long", "exceed context limit")
# As in "208310 tokens > 200000 maximum" and "178959 + 64000 > 200000", the second number being max_tokens.
_COUNTS = re.compile(r"(\d{1,12})(?: tokens)?(?: \+ \d{1,12})? > (\d{1,12})")


def _refusal(error: _Error | None, status: int = 0) -> Refusal:
    error = error or _Error()
    code = error.type or ""
    status = status or _STATUSES.get(code, 500)
    message = (error.message or "").lower()
    is_refused = status in (400, 413)
    is_context = is_refused and any(words in message for words in _CONTEXT_WORDS)
    counts = _COUNTS.search(message) if is_context else None
    return Refusal(
        status,
        code,
        is_context=is_context,
        is_filtered=is_refused and "content filtering policy" in message,
        prompt_tokens=int(counts[1]) if counts else None,
        context_length=int(counts[2]) if counts else None,
    )
