"""Ollama's own API: answers as JSON lines, and models that are fetched, loaded and freed there.

Source of the format: the provider's `docs/api.md` and `docs/openapi.yaml` for `POST /api/chat`, `/api/generate`, `/api/embed` and
`/api/pull`; its `api/types.go` for what these leave out (`truncate`, `shift`, `tool_call_id`, `prompt_eval_cached_count`).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings, Positive, unknown_value

from ._http import HttpClient, HttpRequest
from .answer import JsonLinesParser, broken
from .http_provider import HttpProvider, Refusal, failure
from .lines import LineReader
from .openai import Logprob, check_embedding, plain, tool_declaration

_SUPPORTED = frozenset(
    {
        "prompt",
        "chat",
        "chat.tools",
        "chat.tool_choice",
        "chat.images",
        "chat.reasoning.enabled",
        "chat.reasoning.effort",
        "response_format.json_object",
        "response_format.json_schema",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.typical_p",
        "sampling.repetition_penalty",
        "sampling.frequency_penalty",
        "sampling.presence_penalty",
        "sampling.penalty_window",
        "sampling.seed",
        "stopping.max_tokens",
        "output.logprobs",
        "output.top_logprobs",
    }
)
# Servers of 2025 and later pass over it with no more than a line in their log.
_OF_OLD_SERVERS = frozenset({"sampling.mirostat"})


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`keep_alive`: how long a model stays loaded after each request, such as "5m"; unset, as it was loaded.

    `parameters` are Ollama's own, such as num_ctx; they go with everything that is asked, and a request's own words outrank them.
    `pull`: a load fetches a model that is not there. `load_seconds` bounds the time without a byte meanwhile. `supports` adds
    sampling.mirostat, which old servers know; `refuses` takes fields away, such as the penalties, which some versions
    pass over in silence. Both are spelt as in a violation.
    """

    keep_alive: str = ""
    parameters: dict[str, Any] = {}
    pull: bool = False
    load_seconds: Positive = 300.0
    supports: list[str] = []
    refuses: list[str] = []


class Ollama(HttpProvider):
    """See the module. A model that is not there is an error: nothing is fetched unless the operator says `pull`."""

    display_name = "Ollama"
    default_base_url = "http://127.0.0.1:11434"
    media_types = frozenset({"application/x-ndjson"})
    image_types = frozenset({"image/png", "image/jpeg", "image/webp"})
    Options = Options

    def __init__(self, id: str, settings: BackendSettings) -> None:
        super().__init__(id, settings)
        assert isinstance(self.options, Options), "of this class"
        self._own: Options = self.options
        for key, named, known in (
            ("supports", self._own.supports, _OF_OLD_SERVERS),
            ("refuses", self._own.refuses, _SUPPORTED),
        ):
            for field in named:
                if field not in known:
                    raise unknown_value(f"backends.{id}.options.{key}", field, known)
        self.supported = (_SUPPORTED | set(self._own.supports)) - set(self._own.refuses)
        self.capabilities = models_pb2.Capabilities(
            prompt="prompt" in self.supported,
            chat=True,
            tools="chat.tools" in self.supported,
            reasoning=True,
            structured_output=any(field.startswith("response_format.") for field in self.supported),
            logprobs="output.logprobs" in self.supported,
            embeddings=True,
            images="chat.images" in self.supported,
        )
        # Nothing is heard of a model while it is loaded, which may take minutes.
        self._patient = HttpClient(
            msgspec.structs.replace(settings, idle_seconds=self._own.load_seconds),
            settings.base_url or self.default_base_url,
            self._authorization,
        )

    def authorization(self, key: str) -> Mapping[str, str]:
        """A bearer token: Ollama's cloud wants one, and so may a proxy."""
        return {"authorization": f"Bearer {key}"}

    def listing(self) -> HttpRequest:
        """The models that are there, which costs nothing: they are files."""
        return HttpRequest("/api/tags", method="GET")

    def listed(self, body: bytes) -> list[str]:
        """Reads `{"models": [{"name": ...}]}`."""
        return [model.name for model in msgspec.json.decode(body, type=_Models).models]

    def completion(self, request: pb.CompleteRequest, model: str) -> tuple[HttpRequest, Parser]:
        """See `HttpProvider.completion`."""
        body = {**self._asked(model), "stream": True, **_body(request)}
        # What the request says goes over what the operator has set.
        body["options"] = {**self._own.parameters, **_parameters(request)}
        path = "/api/generate" if request.WhichOneof("input") == "prompt" else "/api/chat"
        return HttpRequest(path, msgspec.json.encode(body)), Parser()

    def violations(self, request: pb.CompleteRequest) -> list[tuple[str, str]]:
        """See `Provider.violations`."""
        return list(_violations(request))

    def refusal(self, status: int, body: bytes) -> Refusal:
        """Reads `{"error": "text"}`."""
        return _refusal(msgspec.json.decode(body, type=_Failed).error or "", status)

    def embedding(self, request: pb.EmbedRequest, model: str) -> HttpRequest:
        """See `HttpProvider.embedding`. Vectors come with length 1."""
        check_embedding(request, self.id, takes_dimensions=True)
        # Else the end of a long text is cut off in silence.
        body = {**self._asked(model), "input": list(request.inputs), "truncate": False}
        if request.HasField("dimensions"):
            body["dimensions"] = request.dimensions
        return HttpRequest("/api/embed", msgspec.json.encode(body))

    def embedded(self, request: pb.EmbedRequest, body: bytes) -> pb.EmbedResponse:
        """See `HttpProvider.embedded`."""
        answer = msgspec.json.decode(body, type=_Vectors)
        vectors = answer.embeddings or []
        if len(vectors) != len(request.inputs):
            raise broken("not one vector for each text")
        if request.HasField("dimensions") and any(len(each) != request.dimensions for each in vectors):
            # A server gives what the model has when that is less, and an old one knows nothing of dimensions.
            raise errors.UnsupportedByBackend(
                "the backend's vectors have another length",
                metadata={"model": request.model, "backend": self.id},
                violations=[("dimensions", "this model cannot honour it")],
            )
        response = pb.EmbedResponse(embeddings=[pb.Embedding(values=each) for each in vectors])
        response.usage.prompt_tokens = answer.prompt_eval_count or 0
        return response

    async def load(self, model: str, keep_alive_seconds: float | None) -> None:
        """Loads a model there, to stay so long after its last use; None: until it is unloaded."""
        # Whole seconds: old servers cut the rest off, and 0 would free the model at once.
        seconds = -1 if keep_alive_seconds is None else math.ceil(keep_alive_seconds)
        try:
            await self._hold(model, seconds)
        except errors.UpstreamModelNotFound:
            if not self._own.pull:
                raise
            await self._pull(model)
            await self._hold(model, seconds)
        except errors.UpstreamRejected:
            # A model that only gives embeddings takes no prompt, not even none. It is loaded by a request for no vector.
            body = {**self._asked(model), "input": [], "keep_alive": seconds}
            await self._ask(HttpRequest("/api/embed", msgspec.json.encode(body)))

    async def unload(self, model: str) -> None:
        """Frees a model there as soon as nobody uses it."""
        await self._hold(model, 0)

    async def close(self) -> None:
        """Closes every connection."""
        await super().close()
        await self._patient.close()

    async def _hold(self, model: str, seconds: int) -> None:
        """Says how long a model stays loaded after its last use: -1 without end, 0 not at all. Loads it if need be."""
        body = {**self._asked(model), "stream": False, "keep_alive": seconds}
        answer = await self._ask(HttpRequest("/api/generate", msgspec.json.encode(body)))
        try:
            is_done = _LINE.decode(answer).done
        except msgspec.MsgspecError as error:
            raise broken(str(error)) from None
        if not is_done:
            raise broken("a load that is not done")

    async def _pull(self, model: str) -> None:
        """Fetches a model to where Ollama is, or finds that it is there in its newest form."""
        body = msgspec.json.encode({"model": model, "stream": True})
        reader, is_whole = LineReader(), False
        async with self._patient.stream(HttpRequest("/api/pull", body)) as response:
            if response.status != 200:
                raise await self._failure(response)
            while (data := await response.read()) is not None:
                for line in reader.feed(data):
                    is_whole = _is_fetched(line) or is_whole
        if not (_is_fetched(reader.close()) or is_whole):
            raise errors.UpstreamTruncated("the provider's stream ended before its answer did")

    async def _ask(self, request: HttpRequest) -> bytes:
        """Returns the body of a response that may be long in coming."""
        response = await self._patient.fetch(request)
        if response.status >= 300:
            raise self.failure(response.status, response.headers, response.body)
        return response.body

    def _asked(self, model: str) -> dict[str, Any]:
        """Returns what every request says. Other parameters than those of its load would load a model anew."""
        asked: dict[str, Any] = {"model": model, "options": self._own.parameters}
        if self._own.keep_alive:
            asked["keep_alive"] = self._own.keep_alive
        return asked


def _violations(request: pb.CompleteRequest) -> Iterator[tuple[str, str]]:
    """Yields what a supported field must not say: Ollama would pass over it."""
    chat = request.chat
    match chat.tool_choice.WhichOneof("choice"):
        case "name":
            yield "chat.tool_choice.name", "this backend cannot be made to call a tool"
        case "mode" if chat.tool_choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED:
            yield "chat.tool_choice.mode", "this backend cannot be made to call a tool"
    if chat.reasoning.effort == pb.REASONING_EFFORT_MINIMAL:
        yield "chat.reasoning.effort", "this backend knows LOW, MEDIUM and HIGH"
    if request.stopping.HasField("max_tokens") and request.stopping.max_tokens == 0:
        yield "stopping.max_tokens", "at least 1; this backend takes 0 for no bound"
    if request.response_format.HasField("json_schema"):
        schema = request.response_format.json_schema
        if not schema.lstrip().startswith("{"):
            yield "response_format.json_schema", "this backend takes a schema that is an object"


def _body(request: pb.CompleteRequest) -> dict[str, Any]:
    # As it is by default, Ollama drops the beginning of what is too long for the context, before the answer and within it.
    body: dict[str, Any] = {"truncate": False, "shift": False}
    if request.WhichOneof("input") == "prompt":
        body |= {"prompt": request.prompt, "raw": True}
    else:
        chat = request.chat
        body["messages"] = list(_messages(chat.messages))
        if chat.tools and chat.tool_choice.mode != pb.TOOL_CHOICE_MODE_NONE:
            body["tools"] = [
                {"type": "function", "function": tool_declaration(tool, "parameters")} for tool in chat.tools
            ]
        reasoning = chat.reasoning
        if reasoning.HasField("enabled") and not reasoning.enabled:
            body["think"] = False
        elif reasoning.effort:
            body["think"] = _EFFORTS[reasoning.effort]
        elif reasoning.HasField("enabled"):
            body["think"] = True
    match request.response_format.WhichOneof("format"):
        case "json_object":
            body["format"] = "json"
        case "json_schema":
            body["format"] = msgspec.Raw(request.response_format.json_schema.encode())
    if request.output.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.output.top_logprobs}
    return body


_EFFORTS = {
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}
# A field that is not here was let through because it says nothing.
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "penalty_window": "repeat_last_n",
    "seed": "seed",
}


def _parameters(request: pb.CompleteRequest) -> dict[str, float]:
    """Returns what Ollama calls options."""
    sampling, mirostat = request.sampling, request.sampling.mirostat
    parameters = {
        _PARAMETERS[field.name]: plain(value)
        for field, value in sampling.ListFields()
        if field.name in _PARAMETERS
    }
    if sampling.HasField("mirostat"):
        parameters["mirostat"] = mirostat.version
        for name in ("tau", "eta"):
            if mirostat.HasField(name):
                parameters[f"mirostat_{name}"] = plain(getattr(mirostat, name))
    if request.stopping.HasField("max_tokens"):
        parameters["num_predict"] = request.stopping.max_tokens
    return parameters


def _messages(messages: Iterable[pb.Message]) -> Iterator[dict[str, Any]]:
    """Yields what the messages are here; the results of several tools are several messages."""
    tool_names: dict[str, str] = {}
    for message in messages:
        text = "".join(part.text for part in message.parts)
        match message.role:
            case pb.ROLE_SYSTEM:
                yield {"role": "system", "content": text}
            case pb.ROLE_USER:
                told: dict[str, Any] = {"role": "user", "content": text}
                images = [part.image for part in message.parts if part.HasField("image")]
                if images:
                    told["images"] = [base64.b64encode(image.data).decode() for image in images]
                yield told
            case pb.ROLE_ASSISTANT:
                calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
                tool_names.update((call.id, call.name) for call in calls)
                told = {"role": "assistant", "content": text}
                if thought := "".join(part.reasoning.text for part in message.parts):
                    told["thinking"] = thought
                if calls:
                    told["tool_calls"] = [_call(index, call) for index, call in enumerate(calls)]
                yield told
            case pb.ROLE_TOOL:
                for part in message.parts:
                    result = part.tool_result
                    told = {
                        "role": "tool",
                        "tool_name": tool_names[result.call_id],
                        "content": result.text,
                    }
                    if result.call_id:
                        told["tool_call_id"] = result.call_id
                    yield told


def _call(index: int, call: pb.ToolCall) -> dict[str, Any]:
    arguments = msgspec.Raw((call.arguments or "{}").encode())
    told: dict[str, Any] = {"function": {"index": index, "name": call.name, "arguments": arguments}}
    if call.id:
        told["id"] = call.id
    return told


# What comes back. Fields that are not named are skipped.

_Count = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class _Struct(msgspec.Struct, frozen=True):
    pass


class _Failed(_Struct, frozen=True):
    error: str | None = None


class _Function(_Struct, frozen=True):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"null")


class _ToolCall(_Struct, frozen=True):
    id: str | None = None
    function: _Function = _Function()


class _Message(_Struct, frozen=True):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(_Failed, frozen=True):
    """A line of an answer: of chats, `message`; of raw prompts, `response` and `thinking`."""

    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    logprobs: list[Logprob] | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: _Count | None = None
    prompt_eval_cached_count: _Count | None = None
    eval_count: _Count | None = None

    def usage(self) -> pb.Usage:
        prompt_tokens = self.prompt_eval_count or 0
        return pb.Usage(
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=min(self.prompt_eval_cached_count or 0, prompt_tokens),
            completion_tokens=self.eval_count or 0,
        )


class _Progress(_Failed, frozen=True):
    status: str | None = None


class _Model(_Struct, frozen=True):
    name: str


class _Models(_Struct, frozen=True):
    models: list[_Model] = []


class _Vectors(_Struct, frozen=True):
    embeddings: list[list[float]] | None = None
    prompt_eval_count: _Count | None = None


_LINE = msgspec.json.Decoder(_Line)
_FINISHES = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


class Parser(JsonLinesParser):
    """Reads lines until one is done."""

    def _take(self, line: bytes) -> None:
        answer, deltas = _LINE.decode(line), self.deltas
        if answer.error is not None:
            raise failure(_refusal(answer.error))
        message = answer.message or _Message(answer.response, answer.thinking)
        calls, logprobs = message.tool_calls or (), answer.logprobs or ()
        deltas.reasoning(message.thinking or "")
        deltas.text(message.content or "", [each.message() for each in logprobs])
        for call in calls:
            # Each comes whole, so that the next one is another.
            function = call.function
            deltas.tool_call(
                deltas.num_calls,
                id=call.id or "",
                name=function.name or "",
                arguments=_arguments(function.arguments),
            )
        self._count_idle(is_idle=not (message.thinking or message.content or calls or logprobs))
        if answer.done:
            raw = answer.done_reason or ""
            self._complete(_FINISHES.get(raw, pb.FINISH_REASON_OTHER), raw, answer.usage())


def _arguments(raw: msgspec.Raw) -> str:
    """Returns a call's arguments as they were written: a JSON object, empty where the call has none."""
    try:
        text = bytes(raw).decode()
    except UnicodeDecodeError:
        raise broken("a call whose arguments are no UTF-8") from None
    if text == "null":
        return "{}"
    if not text.startswith("{"):
        raise broken("a call whose arguments are no object")
    return text


def _is_fetched(line: bytes) -> bool:
    """Whether a line of a fetch says that all is there. Raises errors.ServingError when it tells a failure."""
    if not line.strip():
        return False
    try:
        progress = msgspec.json.decode(line, type=_Progress)
    except msgspec.MsgspecError as error:
        raise broken(str(error)) from None
    if progress.error is not None:
        raise failure(_refusal(progress.error))
    return progress.status == "success"


# What is longer is no sentence, and not read to its end.
_MAX_SENTENCE = 2000
_CONTEXT = re.compile(r"exceed\w*[ _](?:\w+ ){0,2}context|larger than the max context")
_COUNTS = re.compile(r"\((\d{1,9}) tokens\).*?\((\d{1,9}) tokens\)", re.DOTALL)
_NO_MODEL = re.compile(r"\bmodel\b.*\bnot found\b|file does not exist", re.DOTALL)


def _refusal(error: str, status: int = 0) -> Refusal:
    """Reads a failure. Ollama has no codes: a status where there is one, and else nothing but its sentence."""
    text = error[:_MAX_SENTENCE].lower()
    if status in (0, 500):
        status = 404 if _NO_MODEL.search(text) else 500
    # The status of a prompt that is too long differs from version to version.
    if status in (400, 413, 500) and _CONTEXT.search(text):
        counts = _COUNTS.search(text)
        return Refusal(
            status,
            is_context=True,
            prompt_tokens=int(counts[1]) if counts else None,
            context_length=int(counts[2]) if counts else None,
        )
    return Refusal(status)
