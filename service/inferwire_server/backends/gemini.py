"""Google's Gemini API: answers by `streamGenerateContent`, vectors by `batchEmbedContents`.

Source of the format: the provider's REST reference of these methods (v1beta), and its guides on thinking, function calling,
structured output and thought signatures.
"""

from __future__ import annotations

import base64
import math
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2

from ._http import HttpRequest
from .answer import EventStreamParser, broken
from .base import Call
from .http_provider import HttpProvider, Refusal, failure
from .lines import ServerSentEvent
from .openai import check_embedding, plain, tool_declaration

# The service's own bounds: on the texts of one batch, and on a seed, which is a signed number of 32 bits there.
MAX_BATCH = 100
MAX_SEED = (1 << 31) - 1


class Gemini(HttpProvider):
    """See the module."""

    default_base_url = "https://generativelanguage.googleapis.com"
    display_name = "Google Gemini"
    image_types = frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
    capabilities = models_pb2.Capabilities(
        chat=True,
        tools=True,
        reasoning=True,
        structured_output=True,
        logprobs=True,
        embeddings=True,
        images=True,
    )
    supported = frozenset(
        {
            "chat",
            "chat.tools",
            "chat.tool_choice",
            "chat.images",
            "chat.reasoning.enabled",
            "chat.reasoning.budget_tokens",
            "chat.reasoning.effort",
            "response_format.json_object",
            "response_format.json_schema",
            "sampling.temperature",
            "sampling.top_p",
            "sampling.top_k",
            "sampling.seed",
            "sampling.presence_penalty",
            "sampling.frequency_penalty",
            "stopping.max_tokens",
            "output.logprobs",
            "output.top_logprobs",
        }
    )

    def authorization(self, key: str) -> Mapping[str, str]:
        """A header of its own; the service takes a key in the URL too, where every log would have it."""
        return {"x-goog-api-key": key}

    def listing(self) -> HttpRequest:
        """The list of models."""
        return HttpRequest("/v1beta/models", method="GET")

    def listed(self, body: bytes) -> list[str]:
        """Reads `{"models": [{"name": "models/..."}]}`."""
        models = msgspec.json.decode(body, type=_Models).models
        return [model.name.removeprefix("models/") for model in models]

    def completion(self, request: pb.CompleteRequest, model: str) -> tuple[HttpRequest, Parser]:
        """See `HttpProvider.completion`. Without `alt=sse` the answer would be one JSON array."""
        body = msgspec.json.encode(_body(request))
        return HttpRequest(f"{_path(model)}:streamGenerateContent?alt=sse", body), Parser()

    def refusal(self, status: int, body: bytes) -> Refusal:
        """Reads `{"error": {...}}`, alone or in an array."""
        error = next((each.error for each in _listed(_CHUNKS.decode(body)) if each.error), _Error())
        return _refusal(error, status)

    async def embed(self, request: pb.EmbedRequest, model: str, call: Call) -> pb.EmbedResponse:
        """See `Provider.embed`. More texts than a batch may have are several batches, one after the other."""
        response = pb.EmbedResponse()
        for first in range(0, len(request.inputs), MAX_BATCH):
            batch = pb.EmbedRequest()
            batch.CopyFrom(request)
            batch.inputs[:] = request.inputs[first : first + MAX_BATCH]
            part = await super().embed(batch, model, call)
            response.embeddings.extend(part.embeddings)
            response.usage.prompt_tokens += part.usage.prompt_tokens
        return response

    def violations(self, request: pb.CompleteRequest) -> list[tuple[str, str]]:
        """See `Provider.violations`."""
        violations = []
        if request.sampling.seed > MAX_SEED:
            violations.append(("sampling.seed", f"this backend takes at most {MAX_SEED}"))
        if request.stopping.HasField("max_tokens") and request.stopping.max_tokens == 0:
            violations.append(("stopping.max_tokens", "this backend takes 1 or more"))
        if request.chat.reasoning.effort and _thinking_budget(request.chat.reasoning) is not None:
            violations.append(("chat.reasoning.effort", "this backend takes an effort or a budget, not both"))
        return violations

    def embedding(self, request: pb.EmbedRequest, model: str) -> HttpRequest:
        """See `HttpProvider.embedding`."""
        check_embedding(request, self.id, takes_dimensions=True)
        wish = {"outputDimensionality": request.dimensions} if request.HasField("dimensions") else {}
        texts = [
            {"model": f"models/{model}", "content": {"parts": [{"text": text}]}, **wish}
            for text in request.inputs
        ]
        return HttpRequest(f"{_path(model)}:batchEmbedContents", msgspec.json.encode({"requests": texts}))

    def embedded(self, request: pb.EmbedRequest, body: bytes) -> pb.EmbedResponse:
        """See `HttpProvider.embedded`. The service leaves a vector with fewer dimensions than its own as it was cut."""
        answer = msgspec.json.decode(body, type=_Vectors)
        if len(answer.embeddings) != len(request.inputs):
            raise broken("not one vector for each text")
        response = pb.EmbedResponse(
            embeddings=[pb.Embedding(values=_of_length_1(each.values)) for each in answer.embeddings]
        )
        response.usage.prompt_tokens = (answer.usage_metadata or _Usage()).prompt_token_count or 0
        return response


def _path(model: str) -> str:
    return f"/v1beta/models/{urllib.parse.quote(model, safe='')}"


def _of_length_1(values: list[float]) -> list[float]:
    length = math.hypot(*values)
    return [value / length for value in values] if length else values


# A request as the provider's JSON.


def _body(request: pb.CompleteRequest) -> dict[str, Any]:
    chat = request.chat
    body: dict[str, Any] = {"contents": _contents(chat.messages)}
    system = [
        _piece(part) for message in chat.messages if message.role == pb.ROLE_SYSTEM for part in message.parts
    ]
    if system:
        body["systemInstruction"] = {"parts": system}
    if chat.tools:
        declarations = [tool_declaration(tool, "parametersJsonSchema") for tool in chat.tools]
        body["tools"] = [{"functionDeclarations": declarations}]
        # Without functions the service refuses it, and there AUTO and NONE are the same.
        if chat.HasField("tool_choice"):
            body["toolConfig"] = {"functionCallingConfig": _choice(chat.tool_choice)}
    config = _generation_config(request)
    if config:
        body["generationConfig"] = config
    return body


def _contents(messages: Iterable[pb.Message]) -> list[dict[str, Any]]:
    """Returns the turns. The results of one turn's calls are one turn, in however many messages they come."""
    contents: list[dict[str, Any]] = []
    names: dict[str, list[str]] = {}
    previous = pb.ROLE_UNSPECIFIED
    for message in messages:
        match message.role:
            case pb.ROLE_USER:
                contents.append({"role": "user", "parts": [_piece(part) for part in message.parts]})
            case pb.ROLE_ASSISTANT:
                contents.append({"role": "model", "parts": [_piece(part) for part in message.parts]})
                names = {}
                for part in message.parts:
                    if part.HasField("tool_call"):
                        names.setdefault(part.tool_call.id, []).append(part.tool_call.name)
            case pb.ROLE_TOOL:
                if previous != pb.ROLE_TOOL:
                    contents.append({"role": "user", "parts": []})
                contents[-1]["parts"] += [_result(part.tool_result, names) for part in message.parts]
        previous = message.role
    return contents


def _piece(part: pb.Part) -> dict[str, Any]:
    match part.WhichOneof("part"):
        case "image":
            image = part.image
            return {"inlineData": {"mimeType": image.media_type, "data": _base64(image.data)}}
        case "tool_call":
            call = part.tool_call
            told: dict[str, Any] = {"id": call.id} if call.id else {}
            told |= {"name": call.name, "args": msgspec.Raw((call.arguments or "{}").encode())}
            return {"functionCall": told, **_signature(call.signature)}
        case "reasoning":
            # What has no text is the signature of the text before it: see `Parser`.
            thought = {"text": part.reasoning.text, "thought": True} if part.reasoning.text else {"text": ""}
            return {**thought, **_signature(part.reasoning.signature)}
    return {"text": part.text}


def _result(result: pb.ToolResult, names: dict[str, list[str]]) -> dict[str, Any]:
    """`names` has those of the calls by id; where calls share an id, or have none, they are answered in their order."""
    called = names[result.call_id]
    told: dict[str, Any] = {"id": result.call_id} if result.call_id else {}
    told["name"] = called.pop(0) if len(called) > 1 else called[0]
    told["response"] = {"error" if result.is_error else "result": result.text}
    return {"functionResponse": told}


def _signature(signature: bytes) -> dict[str, str]:
    return {"thoughtSignature": _base64(signature)} if signature else {}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _choice(choice: pb.ToolChoice) -> dict[str, Any]:
    if choice.WhichOneof("choice") == "name":
        return {"mode": "ANY", "allowedFunctionNames": [choice.name]}
    return {"mode": _MODES[choice.mode]}


_MODES = {
    pb.TOOL_CHOICE_MODE_AUTO: "AUTO",
    pb.TOOL_CHOICE_MODE_NONE: "NONE",
    pb.TOOL_CHOICE_MODE_REQUIRED: "ANY",
}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}


def _generation_config(request: pb.CompleteRequest) -> dict[str, Any]:
    # A top_k of 0 says that it is not used, and what is not used is not sent.
    config: dict[str, Any] = {
        _SAMPLING[field.name]: plain(value)
        for field, value in request.sampling.ListFields()
        if field.name in _SAMPLING and (field.name, value) != ("top_k", 0)
    }
    if request.stopping.HasField("max_tokens"):
        config["maxOutputTokens"] = request.stopping.max_tokens
    if request.HasField("response_format"):
        config["responseMimeType"] = "application/json"
    if request.response_format.HasField("json_schema"):
        config["responseJsonSchema"] = msgspec.Raw(request.response_format.json_schema.encode())
    if request.output.logprobs:
        config["responseLogprobs"] = True
        if request.output.top_logprobs:
            config["logprobs"] = request.output.top_logprobs
    thinking = _thinking(request.chat.reasoning)
    if thinking:
        config["thinkingConfig"] = thinking
    return config


def _thinking(reasoning: pb.ReasoningOptions) -> dict[str, Any]:
    """Returns nothing where nothing is asked: models that do not think refuse any such wish."""
    budget = _thinking_budget(reasoning)
    if budget == 0:
        # Thoughts may not be asked for where there are none.
        return {"thinkingBudget": 0}
    thinking: dict[str, Any] = {}
    if budget is not None:
        thinking["thinkingBudget"] = budget
    if reasoning.effort:
        thinking["thinkingLevel"] = _LEVELS[reasoning.effort]
    return {"includeThoughts": True, **thinking} if thinking or reasoning.enabled else {}


def _thinking_budget(reasoning: pb.ReasoningOptions) -> int | None:
    if reasoning.HasField("enabled") and not reasoning.enabled:
        return 0
    return reasoning.budget_tokens if reasoning.HasField("budget_tokens") else None


_LEVELS = {
    pb.REASONING_EFFORT_MINIMAL: "MINIMAL",
    pb.REASONING_EFFORT_LOW: "LOW",
    pb.REASONING_EFFORT_MEDIUM: "MEDIUM",
    pb.REASONING_EFFORT_HIGH: "HIGH",
}


# What comes back. Fields that are not named are skipped.

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class _Struct(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _FunctionCall(_Struct, frozen=True):
    id: str | None = None
    name: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"{}")

    def arguments(self) -> str:
        """Returns the arguments as they came. Raises errors.UpstreamProtocolError when they are no object."""
        data = bytes(self.args).strip()
        if data == b"null":
            return "{}"
        if not data.startswith(b"{"):
            raise broken("arguments of a call that are no object")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise broken("arguments of a call that are no UTF-8") from None


class _Part(_Struct, frozen=True):
    text: str | None = None
    thought: bool | None = None
    thought_signature: bytes | None = None
    function_call: _FunctionCall | None = None


class _Content(_Struct, frozen=True):
    parts: list[_Part] | None = None


class _Token(_Struct, frozen=True):
    token: str | None = None
    token_id: _Count | None = None
    # JSON has no infinity; the service writes it as text.
    log_probability: float | Literal["-Infinity"] | None = None

    @property
    def piece(self) -> bytes:
        return (self.token or "").encode()

    @property
    def logprob(self) -> float:
        return float(self.log_probability or 0.0)


class _Tokens(_Struct, frozen=True):
    candidates: list[_Token] | None = None


class _Logprobs(_Struct, frozen=True):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_Tokens] | None = None

    def messages(self) -> list[pb.TokenLogprob]:
        tops = [each.candidates or [] for each in self.top_candidates or ()]
        return [
            pb.TokenLogprob(
                token_id=chosen.token_id or 0,
                piece=chosen.piece,
                logprob=chosen.logprob,
                top=[
                    pb.TopLogprob(token_id=top.token_id or 0, piece=top.piece, logprob=top.logprob)
                    for top in (tops[place] if place < len(tops) else ())
                ],
            )
            for place, chosen in enumerate(self.chosen_candidates or ())
        ]


class _Candidate(_Struct, frozen=True):
    index: int | None = None
    content: _Content | None = None
    finish_reason: str | None = None
    logprobs_result: _Logprobs | None = None


class _PromptFeedback(_Struct, frozen=True):
    block_reason: str | None = None


class _Model(_Struct, frozen=True):
    name: str


class _Models(_Struct, frozen=True):
    models: list[_Model] = []


class _Usage(_Struct, frozen=True):
    """Counts of 0 are left out."""

    prompt_token_count: _Count | None = None
    cached_content_token_count: _Count | None = None
    candidates_token_count: _Count | None = None
    thoughts_token_count: _Count | None = None

    def message(self) -> pb.Usage:
        thoughts = self.thoughts_token_count or 0
        return pb.Usage(
            prompt_tokens=self.prompt_token_count or 0,
            cached_prompt_tokens=self.cached_content_token_count or 0,
            completion_tokens=(self.candidates_token_count or 0) + thoughts,
            reasoning_tokens=thoughts,
        )


class _Detail(_Struct, frozen=True):
    reason: str | None = None
    retry_delay: str | None = None


class _Error(_Struct, frozen=True):
    code: int | None = None
    message: str | None = None
    status: str | None = None
    details: list[_Detail] | None = None


class _Chunk(_Struct, frozen=True):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _PromptFeedback | None = None
    usage_metadata: _Usage | None = None
    error: _Error | None = None


class _Vector(_Struct, frozen=True):
    values: list[float]


class _Vectors(_Struct, frozen=True):
    embeddings: list[_Vector]
    usage_metadata: _Usage | None = None


_CHUNKS = msgspec.json.Decoder(_Chunk | list[_Chunk])


def _listed(chunks: _Chunk | list[_Chunk]) -> list[_Chunk]:
    """Some failures come in an array of one."""
    return chunks if isinstance(chunks, list) else [chunks]


_FINISHES = {
    "STOP": pb.FINISH_REASON_STOP,
    "MAX_TOKENS": pb.FINISH_REASON_LENGTH,
    "SAFETY": pb.FINISH_REASON_CONTENT_FILTER,
    "RECITATION": pb.FINISH_REASON_CONTENT_FILTER,
    "BLOCKLIST": pb.FINISH_REASON_CONTENT_FILTER,
    "PROHIBITED_CONTENT": pb.FINISH_REASON_CONTENT_FILTER,
    "SPII": pb.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_SAFETY": pb.FINISH_REASON_CONTENT_FILTER,
    "LANGUAGE": pb.FINISH_REASON_CONTENT_FILTER,
}


class Parser(EventStreamParser):
    """Reads chunks to the end of the body, which ends the answer if a finish reason came before it; more may come after one.

    Any part may be signed. A thought and a call keep their signature; that of a text comes alone, as a thought without
    words after the text, and goes back as a text without words, so that no part is merged with a signed one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finish = pb.FINISH_REASON_UNSPECIFIED
        self._raw_finish = ""
        self._usage: pb.Usage | None = None

    def _take(self, event: ServerSentEvent) -> None:
        said = False
        for chunk in _listed(_CHUNKS.decode(event.data)):
            if chunk.error is not None:
                raise failure(_refusal(chunk.error))
            if event.is_stray:
                raise broken("a line that belongs to no event")
            said = self._take_chunk(chunk) or said
        self._count_idle(is_idle=not said)

    def _close(self) -> None:
        super()._close()
        if self._finish:
            self._complete(self._finish, self._raw_finish, self._usage)

    def _take_chunk(self, chunk: _Chunk) -> bool:
        """Returns whether the chunk has more of the answer."""
        if chunk.usage_metadata is not None:
            self._usage = chunk.usage_metadata.message()
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            self._finish = pb.FINISH_REASON_CONTENT_FILTER
            self._raw_finish = chunk.prompt_feedback.block_reason
        said = False
        for candidate in chunk.candidates or ():
            if not candidate.index:
                said = self._take_candidate(candidate) or said
        return said

    def _take_candidate(self, candidate: _Candidate) -> bool:
        if candidate.logprobs_result is not None:
            self.deltas.text("", candidate.logprobs_result.messages())
        said = False
        for part in (candidate.content.parts if candidate.content else None) or ():
            said = self._take_part(part) or said
        reason = candidate.finish_reason
        if reason and reason != "FINISH_REASON_UNSPECIFIED":
            self._finish = _FINISHES.get(reason, pb.FINISH_REASON_OTHER)
            self._raw_finish = reason
        return said

    def _take_part(self, part: _Part) -> bool:
        deltas, call = self.deltas, part.function_call
        text, signature = part.text or "", part.thought_signature or b""
        if call is not None:
            # A call comes whole, so each is another one.
            deltas.tool_call(
                deltas.num_calls,
                id=call.id or "",
                name=call.name or "",
                arguments=call.arguments(),
                signature=signature,
            )
        elif part.thought:
            deltas.reasoning(text, signature)
        else:
            deltas.text(text)
            deltas.reasoning("", signature)
        return bool(text or signature or call)


# The statuses that the service's words stand for, in a stream that has begun with another.
_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_TOO_LONG = re.compile(
    r"(?:\((\d{1,12})\) )?exceeds the maximum number of tokens(?: allowed)?(?: \((\d{1,12})\))?"
)


def _refusal(error: _Error, status: int = 0) -> Refusal:
    code = error.status or ""
    status = status or error.code or 0
    if not 400 <= status < 600:
        status = _STATUSES.get(code, 500)
    if any(detail.reason == "API_KEY_INVALID" for detail in error.details or ()):
        # The service takes a bad key for a bad argument.
        status = 401
    if code == "CANCELLED":
        # 499, though nobody here has cancelled: the service gave up.
        status = 503
    delays = [_DELAY.fullmatch(detail.retry_delay or "") for detail in error.details or ()]
    delay = next((float(found[1]) for found in delays if found), None)
    too_long = _TOO_LONG.search(error.message or "") if status == 400 else None
    if too_long is None:
        return Refusal(status, code, retry_after_seconds=delay)
    counts = [int(count) if count else None for count in too_long.groups()]
    return Refusal(status, code, is_context=True, prompt_tokens=counts[0], context_length=counts[1])
