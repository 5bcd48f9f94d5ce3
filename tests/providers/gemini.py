"""Gemini's generateContent, from the provider's side."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from .server import Call, Request, Script, Text, Thought

MODEL = "gemini-scripted"
MAX_BATCH = 100
FINISHES = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GeminiWire:
    """See `server.Wire`."""

    type = "gemini"
    media_type = "text/event-stream"
    keep_alive = b": keep-alive\r\n\r\n"

    def __init__(self) -> None:
        self.empty = event(chunk({"text": ""}))

    def events(self, script: Script) -> list[bytes]:
        chunks = [chunk(_part(piece)) for piece in script.pieces]
        last = chunk({"text": ""}, finish=FINISHES[script.finish])
        # What is 0 is left out, as protobuf's JSON does.
        counts = {
            "promptTokenCount": script.prompt_tokens,
            "cachedContentTokenCount": script.cached_tokens,
            "candidatesTokenCount": script.completion_tokens - script.reasoning_tokens,
            "thoughtsTokenCount": script.reasoning_tokens,
            "totalTokenCount": script.prompt_tokens + script.completion_tokens,
        }
        last["usageMetadata"] = {name: count for name, count in counts.items() if count}
        return [event(each) for each in (*chunks, last)]

    def error(self, status: int, code: str = "", message: str = "secret words of the provider") -> bytes:
        error: dict[str, Any] = {
            "code": status,
            "message": message,
            "status": _STATUSES.get(status, "UNKNOWN"),
        }
        if code:
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            error["details"] = [{"@type": kind, "reason": code, "domain": "googleapis.com"}]
        return msgspec.json.encode({"error": error})

    def error_event(self, code: str = "") -> bytes:
        return b"data: " + self.error(503, code) + b"\r\n\r\n"

    def is_completion(self, request: Request) -> bool:
        path, _, query = request.path.partition("?")
        return (
            request.method == "POST"
            and path.endswith(":streamGenerateContent")
            and "alt=sse" in query.split("&")
        )

    def other(self, request: Request) -> bytes | None:
        path = request.path.partition("?")[0]
        if request.method == "GET" and path == "/v1beta/models":
            return msgspec.json.encode({"models": [{"name": f"models/{MODEL}"}]})
        if path.endswith(":batchEmbedContents") and len(request.json["requests"]) <= MAX_BATCH:
            return self._embeddings(
                [each["content"]["parts"][0]["text"] for each in request.json["requests"]]
            )
        return None

    @staticmethod
    def _embeddings(texts: list[str]) -> bytes:
        """Each text's vector is its length, and its number in the batch."""
        vectors = [{"values": [float(len(text)), float(index)]} for index, text in enumerate(texts)]
        return msgspec.json.encode({"embeddings": vectors, "usageMetadata": {"promptTokenCount": 5}})


def chunk(*parts: dict[str, Any], finish: str = "") -> dict[str, Any]:
    """Returns a piece of an answer."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": MODEL, "responseId": "r1"}


def event(chunk: object) -> bytes:
    """Returns what the provider sends for it."""
    return b"data: " + msgspec.json.encode(chunk) + b"\r\n\r\n"


def _part(piece: Text | Thought | Call) -> dict[str, Any]:
    match piece:
        case Text(text):
            return {"text": text}
        case Thought(text, signature):
            told: dict[str, Any] = {"text": text, "thought": True}
            if signature:
                told["thoughtSignature"] = base64.b64encode(signature.encode()).decode()
            return told
        case Call(id, name, arguments):
            args = msgspec.Raw("".join(arguments).encode() or b"{}")
            return {"functionCall": {"id": id, "name": name, "args": args}}
