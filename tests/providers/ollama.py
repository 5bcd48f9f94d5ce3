"""Ollama's own API, from the provider's side."""

from __future__ import annotations

from typing import Any

import msgspec

from .server import Call, Request, Script, Text, Thought

MODEL = "scripted:1b"
FINISHES = {"stop": "stop", "tool_calls": "stop", "length": "length"}


class OllamaWire:
    """See `server.Wire`. `is_raw`: of /api/generate, else of /api/chat.

    `models` are those that are there, `library` those that can be fetched; `held` is for how many seconds each model that is loaded
    stays so.
    """

    type = "ollama"
    media_type = "application/x-ndjson"
    keep_alive = b"\n"

    def __init__(self, *, is_raw: bool = False) -> None:
        self.is_raw = is_raw
        self.empty = self._line()
        self.models = {MODEL}
        self.library: set[str] = set()
        self.held: dict[str, int] = {}

    def events(self, script: Script) -> list[bytes]:
        lines = []
        num_calls = 0
        for piece in script.pieces:
            match piece:
                case Text(text):
                    lines.append(self._line(text))
                case Thought(text):
                    lines.append(self._line(thinking=text))
                case Call(id, name, arguments):
                    whole = msgspec.Raw(("".join(arguments) or "{}").encode())
                    function = {"index": num_calls, "name": name, "arguments": whole}
                    lines.append(self._line(tool_calls=[{"id": id, "function": function}]))
                    num_calls += 1
        lines.append(
            self._line(
                done=True,
                done_reason=FINISHES[script.finish],
                total_duration=10_000_000,
                load_duration=1_000_000,
                prompt_eval_count=script.prompt_tokens,
                prompt_eval_cached_count=script.cached_tokens,
                prompt_eval_duration=4_000_000,
                eval_count=script.completion_tokens,
                eval_duration=5_000_000,
            )
        )
        return lines

    def error(self, status: int, code: str = "", message: str = "secret words of the provider") -> bytes:
        return msgspec.json.encode({"error": message})

    def error_event(self, code: str = "") -> bytes:
        return self.error(500) + b"\n"

    def is_completion(self, request: Request) -> bool:
        if request.path.endswith("/api/generate"):
            # Without a prompt it is about the model alone.
            return "prompt" in request.json
        return request.path.endswith("/api/chat")

    def other(self, request: Request) -> bytes | None:
        path = request.path.partition("?")[0]
        if path == "/api/version":
            return msgspec.json.encode({"version": "0.15.0"})
        if path == "/api/tags":
            return msgspec.json.encode(
                {"models": [{"name": name, "model": name} for name in sorted(self.models)]}
            )
        if path == "/api/pull":
            return self._pulled(request.json["model"])
        if request.method != "POST" or request.json["model"] not in self.models:
            return None
        if path == "/api/generate":
            return self._held(request.json)
        if path == "/api/embed":
            return self._embeddings(request.json)
        return None

    def _pulled(self, model: str) -> bytes:
        steps: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if model in self.models | self.library:
            self.models.add(model)
            layer = {"status": "pulling 6a0746a1ec1a", "digest": "sha256:6a0746a1ec1a", "total": 20}
            steps += [
                layer,
                {**layer, "completed": 20},
                {"status": "verifying sha256 digest"},
                {"status": "success"},
            ]
        else:
            steps.append({"error": "pull model manifest: file does not exist"})
        return b"".join(msgspec.json.encode(step) + b"\n" for step in steps)

    def _held(self, body: dict[str, Any]) -> bytes:
        model, seconds = body["model"], body["keep_alive"]
        self.held[model] = seconds
        if seconds == 0:
            del self.held[model]
        reason = "load" if seconds else "unload"
        return msgspec.json.encode({"model": model, "response": "", "done": True, "done_reason": reason})

    def _embeddings(self, body: dict[str, Any]) -> bytes:
        """Each text's vector is its length, its number and 0.5, as far as dimensions go."""
        if not body["input"]:
            self.held[body["model"]] = body["keep_alive"]
        vectors = [[float(len(text)), float(index), 0.5] for index, text in enumerate(body["input"])]
        vectors = [vector[: body.get("dimensions", 3)] for vector in vectors]
        return msgspec.json.encode({"model": body["model"], "embeddings": vectors, "prompt_eval_count": 5})

    def _line(self, text: str = "", *, done: bool = False, **more: Any) -> bytes:
        end = {key: more.pop(key) for key in list(more) if key not in ("thinking", "tool_calls")}
        line: dict[str, Any] = {"model": MODEL, "created_at": "2026-01-01T00:00:00.123456789Z"}
        if self.is_raw:
            line |= {"response": text, **more}
        else:
            line["message"] = {"role": "assistant", "content": text, **more}
        return msgspec.json.encode({**line, "done": done, **end}) + b"\n"
