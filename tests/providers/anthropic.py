"""Anthropic's Messages, from the provider's side."""

from __future__ import annotations

from typing import Any

import msgspec

from .server import Call, Request, Script, Text, Thought

MODEL = "claude-scripted"
_FINISHES = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicWire:
    """See `server.Wire`. Neighbouring texts are the deltas of one block, and so are thoughts up to their signature."""

    type = "anthropic"
    media_type = "text/event-stream"

    def __init__(self) -> None:
        self.keep_alive = event("ping")
        self.empty = _delta(0, "text_delta", text="")

    def events(self, script: Script) -> list[bytes]:
        usage = {
            "input_tokens": script.prompt_tokens - script.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": script.cached_tokens,
            "output_tokens": 1,
        }
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        events = [event("message_start", message=message)]
        for index, block in enumerate(_blocks(script)):
            events += _block(index, block)
        if len(events) > 1:
            # The API keeps the connection busy behind the first block's beginning.
            events.insert(2, self.keep_alive)
        end = {"stop_reason": _FINISHES[script.finish], "stop_sequence": None}
        counts = {
            "output_tokens": script.completion_tokens,
            "output_tokens_details": {"thinking_tokens": script.reasoning_tokens},
        }
        return [*events, event("message_delta", delta=end, usage=counts), event("message_stop")]

    def error(self, status: int, code: str = "", message: str = "secret words of the provider") -> bytes:
        error = {"type": code or _TYPES.get(status, "api_error"), "message": message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": "req_secret"})

    def error_event(self, code: str = "overloaded_error") -> bytes:
        return b"event: error\ndata: " + self.error(529, code) + b"\n\n"

    def is_completion(self, request: Request) -> bool:
        return request.method == "POST" and request.path.partition("?")[0].endswith("/v1/messages")

    def other(self, request: Request) -> bytes | None:
        if not request.path.partition("?")[0].endswith("/v1/models"):
            return None
        model = {
            "type": "model",
            "id": MODEL,
            "display_name": "Scripted",
            "created_at": "2026-01-01T00:00:00Z",
        }
        return msgspec.json.encode({"data": [model], "has_more": False, "first_id": MODEL, "last_id": MODEL})


def event(name: str, **fields: Any) -> bytes:
    """Returns an event with its name, which its data repeats."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))


def _blocks(script: Script) -> list[list[Text | Thought | Call]]:
    blocks: list[list[Text | Thought | Call]] = []
    for piece in script.pieces:
        last = blocks[-1][-1] if blocks else None
        is_ended = isinstance(last, Call) or (isinstance(last, Thought) and bool(last.signature))
        if type(last) is type(piece) and not is_ended:
            blocks[-1].append(piece)
        else:
            blocks.append([piece])
    return blocks


def _block(index: int, pieces: list[Text | Thought | Call]) -> list[bytes]:
    """Returns the events of one block."""
    events = [event("content_block_start", index=index, content_block=_beginning(pieces[0]))]
    for piece in pieces:
        match piece:
            case Text(text):
                events.append(_delta(index, "text_delta", text=text))
            case Thought(text, signature):
                if text:
                    events.append(_delta(index, "thinking_delta", thinking=text))
                if signature:
                    events.append(_delta(index, "signature_delta", signature=signature))
            case Call(_, _, arguments):
                events += [_delta(index, "input_json_delta", partial_json=each) for each in ("", *arguments)]
    return [*events, event("content_block_stop", index=index)]


def _beginning(piece: Text | Thought | Call) -> dict[str, Any]:
    """Returns a block before its first delta."""
    match piece:
        case Text():
            return {"type": "text", "text": ""}
        case Thought():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Call(id, name, _):
            return {"type": "tool_use", "id": id, "name": name, "input": {}}


def _delta(index: int, type: str, **fields: str) -> bytes:
    return event("content_block_delta", index=index, delta={"type": type, **fields})
