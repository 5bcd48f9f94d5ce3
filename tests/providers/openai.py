"""OpenAI's chat completions, from the provider's side."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from .server import Call, Request, Script, Text, Thought

MODEL = "gpt-scripted"


class OpenAIWire:
    """See `server.Wire`."""

    type = "openai"
    media_type = "text/event-stream"
    keep_alive = b": keep-alive\n\n"

    def __init__(self) -> None:
        self.empty = _event(self._chunk({"content": ""}))

    def events(self, script: Script) -> list[bytes]:
        chunks = [self._chunk({"role": "assistant", "content": ""})]
        num_calls = 0
        for piece in script.pieces:
            match piece:
                case Text(text):
                    chunks.append(self._chunk({"content": text}))
                case Thought(text):
                    chunks.append(self._chunk({"reasoning_content": text}))
                case Call(id, name, arguments):
                    first = {"index": num_calls, "id": id, "type": "function"}
                    chunks.append(
                        self._chunk({"tool_calls": [{**first, "function": {"name": name, "arguments": ""}}]})
                    )
                    chunks += [
                        self._chunk({"tool_calls": [{"index": num_calls, "function": {"arguments": part}}]})
                        for part in arguments
                    ]
                    num_calls += 1
        chunks.append(self._chunk({}, finish_reason=script.finish))
        usage = {
            "prompt_tokens": script.prompt_tokens,
            "completion_tokens": script.completion_tokens,
            "total_tokens": script.prompt_tokens + script.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": script.reasoning_tokens},
        }
        chunks.append({**self._chunk({}), "choices": [], "usage": usage})
        return [*map(_event, chunks), b"data: [DONE]\n\n"]

    def error(self, status: int, code: str = "", message: str = "secret words of the provider") -> bytes:
        types = {401: "invalid_request_error", 429: "rate_limit_error", 400: "invalid_request_error"}
        error = {
            "message": message,
            "type": types.get(status, "server_error"),
            "param": None,
            "code": code or None,
        }
        return msgspec.json.encode({"error": error})

    def error_event(self, code: str = "server_error") -> bytes:
        return b"data: " + self.error(500, code) + b"\n\n"

    def is_completion(self, request: Request) -> bool:
        return request.method == "POST" and request.path.partition("?")[0].endswith("/completions")

    def other(self, request: Request) -> bytes | None:
        path = request.path.partition("?")[0]
        if path.endswith("/models"):
            return msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        if path.endswith("/embeddings"):
            return self._embeddings(request.json)
        return None

    @staticmethod
    def _embeddings(body: Mapping[str, Any]) -> bytes:
        """Each text's vector is its length, and its number."""
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data: list[dict[str, Any]] = []
        for index, text in enumerate(texts):
            values = [float(len(text)), float(index)]
            packed = base64.b64encode(struct.pack("<2f", *values)).decode()
            vector = packed if body.get("encoding_format") == "base64" else values
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        # In another order than asked: the index tells.
        return msgspec.json.encode({"object": "list", "data": data[::-1], "model": MODEL, "usage": usage})

    @staticmethod
    def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1760000000,
            "model": MODEL,
            "choices": [choice],
        }


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
