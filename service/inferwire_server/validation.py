"""Checks requests against the contract: everything that can be said without a model.

Pure and table-driven; ranges are those of the contract's comments. All violations of a request are told at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors

Violation = tuple[str, str]

MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 256 << 10
MAX_IMAGE_BYTES = 16 << 20
MAX_MESSAGES = 4096
MAX_EMBED_INPUTS = 2048
MAX_LOGIT_BIAS = 4096

Ranges = Mapping[str, tuple[float, float | None]]
"""Field -> least and most value; None for no bound. `nan` never passes."""

ABOVE_ZERO = 1e-6
SAMPLING_RANGES: Ranges = {
    "temperature": (0, 100),
    "top_k": (0, None),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (0, 100),
    "repetition_penalty": (ABOVE_ZERO, 100),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "penalty_window": (-1, 1 << 20),
}
XTC_RANGES: Ranges = {"probability": (0, 1), "threshold": (0, 1)}
DRY_RANGES: Ranges = {
    "multiplier": (0, 100),
    "base": (1, 100),
    "allowed_length": (0, 1 << 20),
    "window": (-1, 1 << 20),
}
MIROSTAT_RANGES: Ranges = {"version": (1, 2), "tau": (0, 100), "eta": (0, 1)}
CONFIG_RANGES: Ranges = {
    "context_length": (8, 1 << 20),
    "parallel_sequences": (1, 256),
    "gpu_layers": (-1, 1 << 20),
    "threads": (1, 512),
    "batch_threads": (1, 512),
    "batch_size": (1, 16384),
    "micro_batch_size": (1, 16384),
    "main_gpu": (0, 255),
    "cache_tokens": (8, 1 << 28),
}

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PARTS = {
    pb.ROLE_SYSTEM: {"text"},
    pb.ROLE_USER: {"text", "image"},
    pb.ROLE_ASSISTANT: {"text", "tool_call", "reasoning"},
    pb.ROLE_TOOL: {"tool_result"},
}


def complete_request(request: pb.CompleteRequest, *, max_prompt_bytes: int) -> None:
    """Raises errors.InvalidRequest with every violation, PromptTooLarge or RequestTooLarge."""
    violations: list[Violation] = []
    if request.model:
        violations += _model_name("model", request.model)
    match request.WhichOneof("input"):
        case None:
            violations.append(("input", "set prompt or chat"))
        case "prompt":
            if not request.prompt:
                violations.append(("prompt", "must not be empty"))
            _check_size("prompt", len(request.prompt.encode()), max_prompt_bytes)
        case "chat":
            violations += _chat(request.chat, max_prompt_bytes)
    violations += _sampling(request.sampling)
    violations += _stopping(request.stopping)
    if request.HasField("response_format"):
        violations += _response_format(request.response_format)
    if request.output.HasField("top_logprobs"):
        if request.output.top_logprobs > 20:
            violations.append(("output.top_logprobs", "must be from 0 to 20"))
        if not request.output.logprobs:
            violations.append(("output.top_logprobs", "needs output.logprobs"))
    if not -100 <= request.scheduling.priority <= 100:
        violations.append(("scheduling.priority", "must be from -100 to 100"))
    if len(request.scheduling.cache_salt.encode()) > 256:
        violations.append(("scheduling.cache_salt", "must be at most 256 bytes"))
    _raise(violations)


def tokenize_request(request: pb.TokenizeRequest, *, max_prompt_bytes: int) -> None:
    """Raises errors.InvalidRequest or PromptTooLarge."""
    _raise(_model_name("model", request.model) if request.model else [])
    _check_size("text", len(request.text.encode()), max_prompt_bytes)


def detokenize_request(request: pb.DetokenizeRequest, *, max_prompt_bytes: int) -> None:
    """Raises errors.InvalidRequest or PromptTooLarge."""
    _raise(_model_name("model", request.model) if request.model else [])
    _check_size("token_ids", len(request.token_ids), max_prompt_bytes)


def embed_request(request: pb.EmbedRequest, *, max_prompt_bytes: int) -> None:
    """Raises errors.InvalidRequest, PromptTooLarge or RequestTooLarge."""
    violations: list[Violation] = []
    if request.model:
        violations += _model_name("model", request.model)
    if not request.inputs:
        violations.append(("inputs", "at least one"))
    if len(request.inputs) > MAX_EMBED_INPUTS:
        raise _too_large("inputs", len(request.inputs), MAX_EMBED_INPUTS)
    violations += [
        (f"inputs[{index}]", "must not be empty") for index, text in enumerate(request.inputs) if not text
    ]
    if request.HasField("dimensions") and request.dimensions == 0:
        violations.append(("dimensions", "at least 1"))
    if request.pooling not in pb.Pooling.values():
        violations.append(("pooling", "is not known"))
    _check_size("inputs", sum(len(text.encode()) for text in request.inputs), max_prompt_bytes)
    _raise(violations)


def load_request(request: models_pb2.LoadRequest) -> None:
    """Raises errors.InvalidRequest with every violation."""
    violations = list(_model_name("model", request.model))
    if request.HasField("source") and request.source.WhichOneof("source") is None:
        violations.append(("source", "set local, hub or remote"))
    config = request.config
    violations += _ranges("config", config, CONFIG_RANGES)
    if config.HasField("batch_size"):
        if config.micro_batch_size > config.batch_size:
            violations.append(("config.micro_batch_size", "must not exceed batch_size"))
        if config.parallel_sequences > config.batch_size:
            violations.append(("config.batch_size", "must not be below parallel_sequences"))
    quantized = config.value_cache_type >= models_pb2.CACHE_TYPE_Q8_0
    if quantized and config.flash_attention == models_pb2.FLASH_ATTENTION_OFF:
        violations.append(("config.value_cache_type", "a quantized type needs flash attention"))
    for name in ("key_cache_type", "value_cache_type", "flash_attention"):
        violations += _enum(f"config.{name}", config, name)
    violations += _enum("config.rope.scaling", config.rope, "scaling")
    for field, value in config.rope.ListFields():
        if field.cpp_type == field.CPPTYPE_FLOAT and not (math.isfinite(value) and abs(value) <= 1e9):
            violations.append((f"config.rope.{field.name}", "must be a finite number"))
    violations += [
        (f"config.tensor_split[{index}]", "must be a finite number, 0 or more")
        for index, share in enumerate(config.tensor_split)
        if not (math.isfinite(share) and share >= 0)
    ]
    if len(config.chat_template.encode()) > MAX_SCHEMA_BYTES:
        violations.append(("config.chat_template", f"must be at most {MAX_SCHEMA_BYTES} bytes"))
    if request.HasField("keep_alive"):
        violations += _duration("keep_alive", request.keep_alive, 365 * 86400, least=0.001)
    _raise(violations)


def unload_request(request: models_pb2.UnloadRequest) -> None:
    """Raises errors.InvalidRequest with every violation."""
    violations = list(_model_name("model", request.model))
    if request.HasField("drain_timeout"):
        violations += _duration("drain_timeout", request.drain_timeout, 3600)
    _raise(violations)


def get_model_request(request: pb.GetModelRequest) -> None:
    """Raises errors.InvalidRequest."""
    _raise(_model_name("model", request.model))


def _chat(chat: pb.Chat, max_prompt_bytes: int) -> Iterator[Violation]:
    if not chat.messages:
        yield "chat.messages", "at least one"
        return
    if len(chat.messages) > MAX_MESSAGES:
        raise _too_large("chat.messages", len(chat.messages), MAX_MESSAGES)
    size = 0
    previous = pb.ROLE_UNSPECIFIED
    open_calls: set[str] = set()
    for index, message in enumerate(chat.messages):
        where = f"chat.messages[{index}]"
        if message.role not in _PARTS:
            yield f"{where}.role", "set SYSTEM, USER, ASSISTANT or TOOL"
            continue
        if message.role == pb.ROLE_SYSTEM and previous not in (pb.ROLE_UNSPECIFIED, pb.ROLE_SYSTEM):
            yield f"{where}.role", "a SYSTEM message stands before all others"
        if message.role == pb.ROLE_TOOL and not (previous == pb.ROLE_TOOL or open_calls):
            yield f"{where}.role", "a TOOL message follows the ASSISTANT message whose calls it answers"
        if not message.parts:
            yield f"{where}.parts", "at least one"
        if message.role != pb.ROLE_TOOL:
            open_calls = set()
        for place, part in enumerate(message.parts):
            at = f"{where}.parts[{place}]"
            kind = part.WhichOneof("part")
            if kind is None:
                yield at, "set one kind of part"
            elif kind not in _PARTS[message.role]:
                yield f"{at}.{kind}", "has no place in a message of this role"
            else:
                size += part.ByteSize() if kind != "image" else 0
                yield from _part(at, part, open_calls)
        previous = message.role
    if previous not in (pb.ROLE_USER, pb.ROLE_TOOL):
        yield f"chat.messages[{len(chat.messages) - 1}].role", "the last message is from USER or TOOL"
    _check_size("chat.messages", size, max_prompt_bytes)
    yield from _tools(chat)
    yield from _template_arguments("chat.template_arguments", chat.template_arguments)


def _template_arguments(at: str, struct: Struct) -> Iterator[Violation]:
    for name, value in struct.fields.items():
        yield from _template_value(f"{at}.{name}", value)


def _template_value(at: str, value: Value) -> Iterator[Violation]:
    match value.WhichOneof("kind"):
        case "number_value" if not math.isfinite(value.number_value):
            yield at, "must be a finite number"
        case "struct_value":
            yield from _template_arguments(at, value.struct_value)
        case "list_value":
            for index, item in enumerate(value.list_value.values):
                yield from _template_value(f"{at}[{index}]", item)


def _part(at: str, part: pb.Part, open_calls: set[str]) -> Iterator[Violation]:
    match part.WhichOneof("part"):
        case "image":
            yield from _image(f"{at}.image", part.image)
        case "tool_call":
            open_calls.add(part.tool_call.id)
            if not _TOOL_NAME.fullmatch(part.tool_call.name):
                yield f"{at}.tool_call.name", "1 to 64 of the characters a-z A-Z 0-9 _ - ."
            if not isinstance(_json(part.tool_call.arguments or "{}"), dict):
                yield f"{at}.tool_call.arguments", "must be the JSON text of an object"
        case "tool_result":
            if part.tool_result.call_id not in open_calls:
                yield f"{at}.tool_result.call_id", "answers no call of the ASSISTANT message before"
            for index, image in enumerate(part.tool_result.images):
                yield from _image(f"{at}.tool_result.images[{index}]", image)


def _image(at: str, image: pb.Image) -> Iterator[Violation]:
    if len(image.data) > MAX_IMAGE_BYTES:
        raise _too_large(f"{at}.data", len(image.data), MAX_IMAGE_BYTES)
    if not image.data:
        yield f"{at}.data", "must not be empty"
    if not image.media_type.startswith("image/"):
        yield f"{at}.media_type", "must be an image type, such as image/png"


def _tools(chat: pb.Chat) -> Iterator[Violation]:
    if len(chat.tools) > MAX_TOOLS:
        raise _too_large("chat.tools", len(chat.tools), MAX_TOOLS)
    names: set[str] = set()
    for index, tool in enumerate(chat.tools):
        at = f"chat.tools[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name):
            yield f"{at}.name", "1 to 64 of the characters a-z A-Z 0-9 _ - ."
        if tool.name in names:
            yield f"{at}.name", "two tools have this name"
        names.add(tool.name)
        _check_schema_size(f"{at}.parameters", tool.parameters)
        schema = _json(tool.parameters or "{}")
        if not isinstance(schema, dict):
            yield f"{at}.parameters", "must be the JSON text of a JSON Schema object"
        elif not isinstance(schema.get("properties", {}), dict):
            yield f"{at}.parameters", "its properties must be an object"
    if chat.HasField("tool_choice"):
        choice = chat.tool_choice
        match choice.WhichOneof("choice"):
            case None:
                yield "chat.tool_choice", "set mode or name"
            case "name" if choice.name not in names:
                yield "chat.tool_choice.name", "names no tool of chat.tools"
            case "mode":
                yield from _enum("chat.tool_choice.mode", choice, "mode", zero=False)
                if choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED and not names:
                    yield "chat.tool_choice.mode", "REQUIRED needs a tool"
    yield from _enum("chat.reasoning.effort", chat.reasoning, "effort")


def _sampling(sampling: pb.Sampling) -> Iterator[Violation]:
    yield from _ranges("sampling", sampling, SAMPLING_RANGES)
    if sampling.HasField("xtc"):
        yield from _ranges("sampling.xtc", sampling.xtc, XTC_RANGES)
    if sampling.HasField("dry"):
        yield from _ranges("sampling.dry", sampling.dry, DRY_RANGES)
        if len(sampling.dry.sequence_breakers) > 32:
            yield "sampling.dry.sequence_breakers", "at most 32"
        for index, breaker in enumerate(sampling.dry.sequence_breakers):
            if not 1 <= len(breaker.encode()) <= 64 or "\0" in breaker:
                yield f"sampling.dry.sequence_breakers[{index}]", "must have 1 to 64 bytes, none of them 0"
    if sampling.HasField("mirostat"):
        yield from _ranges("sampling.mirostat", sampling.mirostat, MIROSTAT_RANGES)
    if len(sampling.logit_bias) > MAX_LOGIT_BIAS:
        yield "sampling.logit_bias", f"at most {MAX_LOGIT_BIAS} entries"
    for token, bias in sampling.logit_bias.items():
        if math.isnan(bias) or bias == math.inf:
            yield f"sampling.logit_bias[{token}]", "must be a number or negative infinity"


def _stopping(stopping: pb.Stopping) -> Iterator[Violation]:
    if len(stopping.stop) > 16:
        yield "stopping.stop", "at most 16"
    for index, stop in enumerate(stopping.stop):
        if not 1 <= len(stop.encode()) <= 256:
            yield f"stopping.stop[{index}]", "must have 1 to 256 bytes"
    if len(stopping.stop_token_ids) > 16:
        yield "stopping.stop_token_ids", "at most 16"
    if stopping.HasField("time_limit"):
        yield from _duration("stopping.time_limit", stopping.time_limit, 86400, least=0.001)
    if stopping.HasField("repetition_limit") and stopping.repetition_limit < 2:
        yield "stopping.repetition_limit", "must be 2 or more"


def _response_format(form: pb.ResponseFormat) -> Iterator[Violation]:
    match form.WhichOneof("format"):
        case None:
            yield "response_format", "set one form"
        case "json_schema":
            _check_schema_size("response_format.json_schema", form.json_schema)
            if not isinstance(_json(form.json_schema), dict | bool):
                yield "response_format.json_schema", "must be the JSON text of a JSON Schema"
        case "regex":
            _check_schema_size("response_format.regex", form.regex)
        case "choice":
            choices = form.choice.choices
            if not choices or "" in choices or len(set(choices)) != len(choices):
                yield "response_format.choice.choices", "at least one, none empty, no two the same"
        case "grammar":
            yield from _enum("response_format.grammar.syntax", form.grammar, "syntax", zero=False)
            _check_schema_size("response_format.grammar.text", form.grammar.text)


def _ranges(where: str, message: Message, ranges: Ranges) -> Iterator[Violation]:
    for name, (least, most) in ranges.items():
        has_presence = message.DESCRIPTOR.fields_by_name[name].has_presence
        is_said = message.HasField(name) if has_presence else True
        # Written so that `nan` fails.
        if is_said and not least <= getattr(message, name) <= (math.inf if most is None else most):
            low = "above 0" if least == ABOVE_ZERO else f"{least:g} or more"
            yield f"{where}.{name}", f"must be {low}" if most is None else f"must be {low}, at most {most:g}"


def _enum(path: str, message: Message, name: str, *, zero: bool = True) -> Iterator[Violation]:
    enum = message.DESCRIPTOR.fields_by_name[name].enum_type
    values = enum.values_by_number if enum else {}
    value = getattr(message, name)
    if value not in values or (value == 0 and not zero):
        yield path, "is not a value of this enum"


def _duration(path: str, duration: Duration, most: float, *, least: float = 0) -> Iterator[Violation]:
    if not least <= duration.seconds + duration.nanos / 1e9 <= most:
        yield path, f"must be from {least:g} s to {most:g} s"


def _model_name(path: str, name: str) -> Iterable[Violation]:
    return [] if _MODEL_NAME.fullmatch(name) else [(path, "1 to 128 of the characters a-z A-Z 0-9 _ - . : /")]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _check_size(field: str, size: int, most: int) -> None:
    if size > most:
        raise errors.PromptTooLarge(
            f"the text has {size} bytes, the server's limit is {most}",
            metadata={"bytes": str(size), "maxBytes": str(most)},
            violations=[(field, f"at most {most} bytes")],
        )


def _check_schema_size(field: str, text: str) -> None:
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise _too_large(field, size, MAX_SCHEMA_BYTES)


def _too_large(field: str, size: int, most: int) -> errors.RequestTooLarge:
    return errors.RequestTooLarge(
        "a part of the request exceeds the server's limit",
        metadata={"field": field, "size": str(size), "maxSize": str(most)},
        violations=[(field, f"{size} exceeds {most}")],
    )


def _raise(violations: Iterable[Violation]) -> None:
    found = list(violations)
    if found:
        raise errors.InvalidRequest(f"{found[0][0]}: {found[0][1]}", violations=found)
