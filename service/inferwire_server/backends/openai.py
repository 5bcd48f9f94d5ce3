"""OpenAI's chat completions, and the many servers that speak them.

Source of the format: the provider's reference of `POST /chat/completions`, `/completions` and `/embeddings`; for the dialects
the documentation of vLLM, SGLang, llama.cpp's server, LM Studio, Groq, Mistral, DeepSeek, OpenRouter and Azure.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from google.protobuf import json_format

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings

from ._http import HttpRequest
from .answer import EventStreamParser, broken
from .http_provider import HttpProvider, Refusal, failure
from .lines import ServerSentEvent

_DONE = b"[DONE]"
IMAGES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})

# What every dialect takes.
_PLAIN = frozenset(
    {
        "chat",
        "chat.tools",
        "chat.tool_choice",
        "chat.images",
        "response_format.json_object",
        "response_format.json_schema",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.frequency_penalty",
        "sampling.presence_penalty",
        "sampling.seed",
        "stopping.max_tokens",
    }
)
_LOGPROBS = frozenset({"output.logprobs", "output.top_logprobs"})
_PARALLEL = frozenset({"chat.parallel_tool_calls"})
_EFFORT = frozenset({"chat.reasoning.effort"})
_SAMPLERS = frozenset({"sampling.top_k", "sampling.min_p", "sampling.repetition_penalty"})
_ENGINE = (
    _PLAIN | _LOGPROBS | _PARALLEL | _SAMPLERS | {"prompt", "stopping.ignore_eos", "chat.template_arguments"}
)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How one service differs from the others.

    `names` are those of sampling fields that are not ours; `thoughts` is the field in which earlier thoughts go back, empty
    where the service does not want them; `regex` and `choice` are the paths of these forms.
    """

    display_name: str
    base_url: str = ""
    supported: frozenset[str] = _PLAIN
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    key_header: Literal["authorization", "api-key"] = "authorization"
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    thoughts: str = ""
    regex: tuple[str, ...] = ()
    choice: tuple[str, ...] = ()


DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(
        "OpenAI",
        "https://api.openai.com/v1",
        _PLAIN | _LOGPROBS | _PARALLEL | _EFFORT | {"sampling.logit_bias"},
        max_tokens="max_completion_tokens",
    ),
    "azure": Dialect(
        "Azure OpenAI",
        supported=_PLAIN | _LOGPROBS | _PARALLEL | _EFFORT | {"sampling.logit_bias"},
        max_tokens="max_completion_tokens",
        key_header="api-key",
    ),
    "vllm": Dialect(
        "vLLM",
        supported=_ENGINE
        | {
            "sampling.logit_bias",
            "stopping.stop_token_ids",
            "response_format.regex",
            "response_format.choice",
            "scheduling.cache_salt",
        },
        thoughts="reasoning_content",
        regex=("structured_outputs", "regex"),
        choice=("structured_outputs", "choice"),
    ),
    "sglang": Dialect(
        "SGLang",
        supported=_ENGINE | {"stopping.stop_token_ids", "response_format.regex"},
        thoughts="reasoning_content",
        regex=("regex",),
    ),
    "llama-server": Dialect(
        "llama.cpp's server",
        supported=_ENGINE | {"sampling.typical_p", "sampling.top_n_sigma", "response_format.grammar"},
        names={"repetition_penalty": "repeat_penalty"},
        thoughts="reasoning_content",
    ),
    "lm-studio": Dialect(
        "LM Studio",
        "http://127.0.0.1:1234/v1",
        _PLAIN | {"prompt", "sampling.top_k", "sampling.repetition_penalty"},
        names={"repetition_penalty": "repeat_penalty"},
    ),
    "groq": Dialect(
        "Groq",
        "https://api.groq.com/openai/v1",
        _PLAIN | _PARALLEL | _EFFORT,
        max_tokens="max_completion_tokens",
    ),
    "mistral": Dialect(
        "Mistral", "https://api.mistral.ai/v1", _PLAIN | _PARALLEL, names={"seed": "random_seed"}
    ),
    "deepseek": Dialect(
        "DeepSeek",
        "https://api.deepseek.com",
        (_PLAIN | _LOGPROBS) - {"chat.images", "response_format.json_schema", "sampling.seed"},
        thoughts="reasoning_content",
    ),
    "openrouter": Dialect(
        "OpenRouter", "https://openrouter.ai/api/v1", _PLAIN | _LOGPROBS | _PARALLEL | _SAMPLERS
    ),
    # llama-cpp-python's own server, and whatever else speaks the format: what all of them take.
    "openai-compatible": Dialect("OpenAI-compatible server", supported=_PLAIN | {"prompt"}),
}


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`supports` adds fields to what the dialect takes, `refuses` takes some away; both as a violation spells them.

    `body` is added to every request and gives way to what the request says itself. `done_marker` False: the service ends its streams without "[DONE]", so that a finish reason is the end.
    """

    supports: list[str] = []
    refuses: list[str] = []
    embeddings: bool = True
    usage: bool = True
    done_marker: bool = True
    body: dict[str, Any] = {}


class OpenAI(HttpProvider):
    """See the module. One class for all dialects: what differs is data."""

    Options = Options
    image_types = IMAGES

    def __init__(self, id: str, settings: BackendSettings) -> None:
        self._dialect = dialect = DIALECTS[settings.type]
        self.display_name, self.default_base_url = dialect.display_name, dialect.base_url
        super().__init__(id, settings)
        assert isinstance(self.options, Options), "of this class"
        self._own: Options = self.options
        self.supported = (dialect.supported | set(self._own.supports)) - set(self._own.refuses)
        self.capabilities = models_pb2.Capabilities(
            prompt="prompt" in self.supported,
            chat=True,
            tools="chat.tools" in self.supported,
            reasoning=True,
            structured_output=any(field.startswith("response_format.") for field in self.supported),
            logprobs="output.logprobs" in self.supported,
            embeddings=self._own.embeddings,
            images="chat.images" in self.supported,
        )

    def authorization(self, key: str) -> Mapping[str, str]:
        """A bearer token, but for Azure."""
        return (
            {"api-key": key} if self._dialect.key_header == "api-key" else {"authorization": f"Bearer {key}"}
        )

    def listing(self) -> HttpRequest:
        """The list of models."""
        return HttpRequest("/models", method="GET")

    def listed(self, body: bytes) -> list[str]:
        """Reads `{"data": [{"id": ...}]}`."""
        return model_ids(body)

    def completion(self, request: pb.CompleteRequest, model: str) -> tuple[HttpRequest, Parser]:
        """See `HttpProvider.completion`."""
        own = _Body(request, model, self._dialect, self.supported).build(usage=self._own.usage)
        body = {**self._own.body, **own}
        path = "/completions" if request.WhichOneof("input") == "prompt" else "/chat/completions"
        return HttpRequest(path, msgspec.json.encode(body)), Parser(done_marker=self._own.done_marker)

    def violations(self, request: pb.CompleteRequest) -> list[tuple[str, str]]:
        """Of the two syntaxes of a grammar, a server that takes one reads GBNF."""
        grammar = request.response_format.grammar
        is_other = request.response_format.HasField("grammar") and grammar.syntax != pb.GRAMMAR_SYNTAX_GBNF
        return [("response_format.grammar.syntax", "this backend reads GBNF")] if is_other else []

    def refusal(self, status: int, body: bytes) -> Refusal:
        """Reads `{"error": {...}}`."""
        return _refusal(msgspec.json.decode(body, type=_Failed).told(), status)

    def embedding(self, request: pb.EmbedRequest, model: str) -> HttpRequest:
        """See `HttpProvider.embedding`. Vectors come as base64, a quarter of their size as JSON."""
        if not self._own.embeddings:
            return super().embedding(request, model)
        check_embedding(request, self.id, takes_dimensions=True)
        body: dict[str, Any] = {"model": model, "input": list(request.inputs), "encoding_format": "base64"}
        if request.HasField("dimensions"):
            body["dimensions"] = request.dimensions
        return HttpRequest("/embeddings", msgspec.json.encode(body))

    def embedded(self, request: pb.EmbedRequest, body: bytes) -> pb.EmbedResponse:
        """See `HttpProvider.embedded`."""
        answer = msgspec.json.decode(body, type=_Vectors)
        vectors = sorted(answer.data, key=lambda each: each.index)
        if len(vectors) != len(request.inputs):
            raise broken("not one vector for each text")
        response = pb.EmbedResponse(embeddings=[pb.Embedding(values=each.values()) for each in vectors])
        response.usage.prompt_tokens = answer.usage.prompt_tokens if answer.usage else 0
        return response


def check_embedding(request: pb.EmbedRequest, id: str, *, takes_dimensions: bool) -> None:
    """Raises errors.UnsupportedByBackend for what no provider does: pooling is its own, and vectors come as they are."""
    violations = []
    if request.pooling:
        violations.append(("pooling", "the provider pools in its own way"))
    if request.HasField("normalize") and not request.normalize:
        violations.append(("normalize", "the provider decides it"))
    if request.HasField("dimensions") and not takes_dimensions:
        violations.append(("dimensions", "this backend cannot honour it"))
    if violations:
        raise errors.UnsupportedByBackend(
            "the backend cannot honour a field of the request",
            metadata={"model": request.model, "backend": id},
            violations=violations,
        )


class _Body:
    """A request as the provider's JSON."""

    def __init__(
        self, request: pb.CompleteRequest, model: str, dialect: Dialect, supported: frozenset[str]
    ) -> None:
        self._request = request
        self._model = model
        self._dialect = dialect
        self._supported = supported

    def build(self, *, usage: bool) -> dict[str, Any]:
        request = self._request
        body: dict[str, Any] = {"model": self._model, "stream": True}
        if usage:
            body["stream_options"] = {"include_usage": True}
        if request.WhichOneof("input") == "chat":
            body["messages"] = [
                each
                for message in request.chat.messages
                for each in _messages(message, self._dialect.thoughts)
            ]
            self._add_chat(body)
        else:
            body["prompt"] = request.prompt
        self._add_sampling(body)
        self._add_stopping(body)
        self._add_form(body)
        if request.scheduling.cache_salt:
            body["cache_salt"] = request.scheduling.cache_salt
        return body

    def _add_chat(self, body: dict[str, Any]) -> None:
        chat = self._request.chat
        if chat.tools:
            body["tools"] = [
                {"type": "function", "function": tool_declaration(tool, "parameters")} for tool in chat.tools
            ]
        if chat.tools and chat.HasField("parallel_tool_calls"):
            body["parallel_tool_calls"] = chat.parallel_tool_calls
        match chat.tool_choice.WhichOneof("choice"):
            case "name":
                body["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice.name}}
            case "mode":
                body["tool_choice"] = _CHOICES[chat.tool_choice.mode]
        if chat.reasoning.effort:
            body["reasoning_effort"] = EFFORTS[chat.reasoning.effort]
        if chat.HasField("template_arguments"):
            body["chat_template_kwargs"] = json_format.MessageToDict(chat.template_arguments)

    def _add_sampling(self, body: dict[str, Any]) -> None:
        sampling = self._request.sampling
        for field, value in sampling.ListFields():
            name = self._dialect.names.get(field.name, field.name)
            if f"sampling.{field.name}" not in self._supported:
                continue  # a value that says no more than that the field is not used
            if field.name == "logit_bias":
                body[name] = {str(token): plain(value[token]) for token in value}
            else:
                body[name] = plain(value)

    def _add_stopping(self, body: dict[str, Any]) -> None:
        request, stopping = self._request, self._request.stopping
        is_chat = request.WhichOneof("input") == "chat"
        if stopping.HasField("max_tokens"):
            body[self._dialect.max_tokens if is_chat else "max_tokens"] = stopping.max_tokens
        if stopping.ignore_eos:
            body["ignore_eos"] = True
        if stopping.stop_token_ids:
            body["stop_token_ids"] = list(stopping.stop_token_ids)
        if request.output.logprobs and is_chat:
            body.update({"logprobs": True, "top_logprobs": request.output.top_logprobs})
        elif request.output.logprobs:
            body["logprobs"] = request.output.top_logprobs

    def _add_form(self, body: dict[str, Any]) -> None:
        form, dialect = self._request.response_format, self._dialect
        match form.WhichOneof("format"):
            case "json_object":
                body["response_format"] = {"type": "json_object"}
            case "json_schema":
                schema = {"name": "answer", "schema": msgspec.Raw(form.json_schema.encode()), "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            case "regex":
                _put(body, dialect.regex, form.regex)
            case "choice":
                _put(body, dialect.choice, list(form.choice.choices))
            case "grammar":
                body["grammar"] = form.grammar.text


_CHOICES = {
    pb.TOOL_CHOICE_MODE_AUTO: "auto",
    pb.TOOL_CHOICE_MODE_NONE: "none",
    pb.TOOL_CHOICE_MODE_REQUIRED: "required",
}
EFFORTS = {
    pb.REASONING_EFFORT_MINIMAL: "minimal",
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}


def _put(body: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        body = body.setdefault(key, {})
    body[path[-1]] = value


def plain(value: float) -> float:
    """Returns a float of 32 bits as people write it: 0.7 and not 0.699999988079071. A whole number stays as it is."""
    return value if isinstance(value, int) else float(f"{value:.7g}")


def tool_declaration(tool: pb.Tool, key: str) -> dict[str, Any]:
    """Returns a tool's name, what it does and, under `key`, its schema: an object without properties when it has none."""
    schema: object = {"type": "object", "properties": {}}
    if tool.parameters:
        schema = msgspec.Raw(tool.parameters.encode())
    declaration: dict[str, Any] = {"name": tool.name, key: schema}
    if tool.description:
        declaration["description"] = tool.description
    return declaration


def data_url(image: pb.Image) -> str:
    """Returns an image as a URL that holds it (RFC 2397)."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _messages(message: pb.Message, thoughts: str) -> Iterator[dict[str, Any]]:
    """Yields what a message is here; the results of several tools are several messages."""
    match message.role:
        case pb.ROLE_SYSTEM:
            yield {"role": "system", "content": "".join(part.text for part in message.parts)}
        case pb.ROLE_USER:
            if all(part.HasField("text") for part in message.parts):
                yield {"role": "user", "content": "".join(part.text for part in message.parts)}
            else:
                yield {"role": "user", "content": [_piece(part) for part in message.parts]}
        case pb.ROLE_ASSISTANT:
            yield _assistant(message, thoughts)
        case pb.ROLE_TOOL:
            for part in message.parts:
                result = part.tool_result
                yield {"role": "tool", "tool_call_id": result.call_id, "content": result.text}


def _assistant(message: pb.Message, thoughts: str) -> dict[str, Any]:
    text = "".join(part.text for part in message.parts)
    thought = "".join(part.reasoning.text for part in message.parts)
    calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
    told: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in calls
        ]
    if thought and thoughts:
        told[thoughts] = thought
    return told


def _piece(part: pb.Part) -> dict[str, Any]:
    if part.HasField("image"):
        return {"type": "image_url", "image_url": {"url": data_url(part.image)}}
    return {"type": "text", "text": part.text}


# What comes back. Fields that are not named are skipped.


class _Struct(msgspec.Struct, frozen=True):
    pass


class _Function(_Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(_Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: _Function = _Function()


class _Thinking(_Struct, frozen=True):
    text: str = ""


class _Content(_Struct, frozen=True):
    """Mistral's content in pieces."""

    type: str = ""
    text: str = ""
    thinking: list[_Thinking] | str = []


class _Delta(_Struct, frozen=True):
    content: str | list[_Content] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Candidate(_Struct, frozen=True):
    token: str
    logprob: float
    token_bytes: list[_Byte] | None = msgspec.field(default=None, name="bytes")

    @property
    def piece(self) -> bytes:
        return self.token.encode() if self.token_bytes is None else bytes(self.token_bytes)


class Logprob(_Candidate, frozen=True):
    """A token with its log probability, in the form that others have taken over."""

    top_logprobs: list[_Candidate] | None = None

    def message(self) -> pb.TokenLogprob:
        """Returns it as our contract's message."""
        tops = [pb.TopLogprob(piece=each.piece, logprob=each.logprob) for each in self.top_logprobs or ()]
        return pb.TokenLogprob(piece=self.piece, logprob=self.logprob, top=tops)


class _Logprobs(_Struct, frozen=True):
    """Of chats, `content`; of raw prompts, the other three."""

    content: list[Logprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(_Struct, frozen=True):
    index: int = 0
    delta: _Delta = _Delta()
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


# A count that our own message can hold.
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class _PromptDetails(_Struct, frozen=True):
    cached_tokens: _Count | None = None


class _CompletionDetails(_Struct, frozen=True):
    reasoning_tokens: _Count | None = None


class _Usage(_Struct, frozen=True):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: _Count | None = None

    def message(self) -> pb.Usage:
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        thought = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None
        return pb.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_prompt_tokens=cached or self.prompt_cache_hit_tokens or 0,
            reasoning_tokens=thought or 0,
        )


class _Groq(_Struct, frozen=True):
    usage: _Usage | None = None


class _Error(_Struct, frozen=True):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    status: int | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Failed(_Struct, frozen=True):
    """A failure. Some wrap it, some do not."""

    error: _Error | str | None = None
    message: str | None = None
    type: str | None = None
    code: str | int | None = None

    def told(self) -> _Error:
        match self.error:
            case None:
                return _Error(self.message, self.type, self.code)
            case str(text):
                return _Error(text)
            case error:
                return error


class _Chunk(_Failed, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    x_groq: _Groq | None = None


class _Model(_Struct, frozen=True):
    id: str


class _Models(_Struct, frozen=True):
    data: list[_Model] = []


def model_ids(body: bytes) -> list[str]:
    """Reads a list of models in this form, which others have taken over. msgspec.MsgspecError when it is none."""
    return [model.id for model in msgspec.json.decode(body, type=_Models).data]


class _Vector(_Struct, frozen=True):
    embedding: str | list[float]
    index: int = 0

    def values(self) -> Sequence[float]:
        if not isinstance(self.embedding, str):
            return self.embedding
        try:
            data = base64.b64decode(self.embedding, validate=True)
            return struct.unpack(f"<{len(data) // 4}f", data)
        except (ValueError, struct.error):
            raise broken("a vector that cannot be read") from None


class _Vectors(_Struct, frozen=True):
    data: list[_Vector]
    usage: _Usage | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_FAILED = msgspec.json.Decoder(_Failed)
_FINISHES = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "model_length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}


class Parser(EventStreamParser):
    """Reads chunks until "[DONE]". The finish reason comes before it, and the usage may come between the two."""

    def __init__(self, *, done_marker: bool = True) -> None:
        super().__init__()
        self._done_marker = done_marker
        self._finish = ""
        self._usage: pb.Usage | None = None
        self._call_ids: dict[int, str] = {}
        self._num_renamed = 0

    def _take(self, event: ServerSentEvent) -> None:
        if event.data == _DONE:
            if self._finish:
                self._end()
                return
            raise errors.UpstreamTruncated("the provider's stream ended before its answer did")
        if event.is_stray:
            raise failure(_refusal(_FAILED.decode(event.data).told()))
        chunk = _CHUNK.decode(event.data)
        if chunk.error is not None or (not chunk.choices and chunk.message is not None):
            raise failure(_refusal(chunk.told()))
        usage = chunk.usage or (chunk.x_groq.usage if chunk.x_groq else None)
        if usage is not None:
            self._usage = usage.message()
        said = False
        for choice in chunk.choices:
            if choice.index == 0:
                said = self._take_choice(choice) or said
        self._count_idle(is_idle=not said)

    def _close(self) -> None:
        super()._close()
        if self._finish and not self._done_marker and self.completion is None:
            self._end()

    def _end(self) -> None:
        reason = _FINISHES.get(self._finish, pb.FINISH_REASON_OTHER)
        self._complete(reason, self._finish, self._usage)

    def _take_choice(self, choice: _Choice) -> bool:
        """Returns whether the choice says anything."""
        delta, deltas = choice.delta, self.deltas
        logprobs = _logprobs(choice.logprobs) if choice.logprobs else None
        thought = delta.reasoning_content or delta.reasoning or ""
        deltas.reasoning(thought)
        text = delta.content or choice.text or delta.refusal or ""
        if isinstance(text, list):
            for piece in text:
                thinking = piece.thinking
                deltas.reasoning(
                    thinking if isinstance(thinking, str) else "".join(each.text for each in thinking)
                )
                deltas.text(piece.text)
        else:
            deltas.text(text, logprobs)
        for call in delta.tool_calls or ():
            self._take_call(call)
        if choice.finish_reason in ("error", "insufficient_system_resource"):
            raise errors.UpstreamUnavailable(
                "the provider gave up on its answer", detail=choice.finish_reason
            )
        self._finish = choice.finish_reason or self._finish
        return bool(thought or text or delta.tool_calls or choice.finish_reason)

    def _take_call(self, call: _ToolCall) -> None:
        index = call.index if call.index is not None else len(self._call_ids) if call.id else -1
        if index == -1:
            index = max(self._call_ids, default=0)
        known = self._call_ids.get(index)
        if call.id and known and call.id != known:
            # Another call under the number of the one before it, as some servers count.
            index = max(self._call_ids) + 1
            known = None
        if known is None:
            self._call_ids[index] = call.id or ""
        function = call.function
        self.deltas.tool_call(
            index, id=call.id or "", name=function.name or "", arguments=function.arguments or ""
        )


def _logprobs(logprobs: _Logprobs) -> list[pb.TokenLogprob]:
    if logprobs.content is not None:
        return [each.message() for each in logprobs.content]
    tops = logprobs.top_logprobs or []
    return [
        pb.TokenLogprob(
            piece=token.encode(),
            logprob=value or 0.0,
            top=[
                pb.TopLogprob(piece=text.encode(), logprob=number)
                for text, number in sorted(((top or {}).items()), key=lambda item: -item[1])
            ],
        )
        for token, value, top in itertools.zip_longest(
            logprobs.tokens or [], logprobs.token_logprobs or [], tops[: len(logprobs.tokens or [])]
        )
    ]


# What services call a failure, and the status that stands for it.
_STATUSES = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "tokens": 429,
    "requests": 429,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "overloaded_error": 503,
    "service_unavailable": 503,
    "unavailable_error": 503,
    "server_error": 500,
    "api_error": 500,
    "internal_server_error": 500,
}
_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"}
)
_CONTEXT_WORDS = (
    "maximum context length",
    "context length exceeded",
    "context window",
    "exceeds the available context",
)
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation", "responsibleaipolicyviolation"})


def _refusal(error: _Error, status: int = 0) -> Refusal:
    words = [str(word).lower() for word in (error.code, error.type) if word is not None]
    numbers = [int(word) for word in words if word.isdecimal() and len(word) == 3]
    code = next((word for word in words if not word.isdecimal()), "")
    status = status or error.status or next(iter(numbers), 0)
    if not 400 <= status < 600:
        status = next((_STATUSES[word] for word in words if word in _STATUSES), 500)
    message = (error.message or "").lower()
    is_refused = status in (400, 413, 422, 500)
    return Refusal(
        status,
        code,
        is_context=any(word in _CONTEXT_CODES for word in words)
        or (is_refused and any(text in message for text in _CONTEXT_WORDS)),
        is_filtered=any(word in _FILTER_CODES for word in words),
        prompt_tokens=error.n_prompt_tokens,
        context_length=error.n_ctx,
    )
