"""Which fields of a request are set, and whether a provider honours them: so that nothing is ever dropped in silence.

A field is spelt by its path, with the name of the arm where it is one of several: `sampling.top_k`, `chat.tools`,
`response_format.json_schema`. Two more say what messages hold: `chat.images` and `chat.tool_images`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.message import Message

from inferwire.v1 import inference_pb2 as pb

# Kept by the gateway for every provider, or without an effect on a single answer.
_KEPT = frozenset(
    {
        "model",
        "chat.messages",
        "stopping.stop",
        "stopping.include_stop",
        "stopping.time_limit",
        "output.progress",
        "output.message",
        "scheduling.priority",
    }
)
# Values that say no more than that the field is not used; top_logprobs 0 is what logprobs alone means.
_NEUTRAL: Mapping[str, object] = {
    "sampling.top_k": 0,
    "sampling.top_p": 1.0,
    "sampling.min_p": 0.0,
    "sampling.typical_p": 1.0,
    "sampling.top_n_sigma": 0.0,
    "sampling.repetition_penalty": 1.0,
    "sampling.frequency_penalty": 0.0,
    "sampling.presence_penalty": 0.0,
    "output.top_logprobs": 0,
}
# Messages whose fields are told one by one; any other is one field.
_OPENED = ("chat", "chat.reasoning", "sampling", "stopping", "output", "scheduling")


def unsupported(
    request: pb.CompleteRequest, supported: frozenset[str], image_types: frozenset[str] = frozenset()
) -> list[tuple[str, str]]:
    """Returns a violation for each field that is set and neither supported nor without an effect."""
    violations = [
        (path, "this backend cannot honour it")
        for path, value in _set_fields(request)
        if path not in supported and path not in _KEPT and not (path in _NEUTRAL and _NEUTRAL[path] == value)
    ]
    if request.WhichOneof("input") == "chat":
        violations += _parts(request.chat, supported, image_types)
    return violations


def _set_fields(message: Message, prefix: str = "") -> Iterator[tuple[str, object]]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if path == "response_format":
            path += f".{value.WhichOneof('format')}"
        if path == "chat" or path not in _OPENED:
            yield path, value
        if path in _OPENED:
            yield from _set_fields(value, f"{path}.")


def _parts(
    chat: pb.Chat, supported: frozenset[str], image_types: frozenset[str]
) -> Iterator[tuple[str, str]]:
    for index, message in enumerate(chat.messages):
        for number, part in enumerate(message.parts):
            where = f"chat.messages[{index}].parts[{number}]"
            images = [(f"{where}.image", part.image)] if part.HasField("image") else []
            field = "chat.images"
            if part.tool_result.images:
                field = "chat.tool_images"
                images = [
                    (f"{where}.tool_result.images[{place}]", image)
                    for place, image in enumerate(part.tool_result.images)
                ]
            for path, image in images:
                if field not in supported:
                    yield path, "this backend takes no such images"
                elif image.media_type not in image_types:
                    yield f"{path}.media_type", f"this backend takes {', '.join(sorted(image_types))}"
