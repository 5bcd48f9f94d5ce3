"""What Gemini CLI documents of `gemini --output-format stream-json`, with the prompt on standard input."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def line(type: str, **values: Any) -> None:
    """Prints an event."""
    print(json.dumps({"type": type, "timestamp": "2026-01-01T00:00:00.000Z", **values}), flush=True)


def main() -> int:
    """Answers with what it was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-format", choices=["stream-json"], required=True)
    parser.add_argument("--model", required=True)
    flags = parser.parse_args()
    prompt = sys.stdin.read()
    print("Loaded cached credentials.", flush=True)
    line("init", session_id="s", model=flags.model)
    line("message", role="user", content=prompt)
    if "fail" in prompt:
        line("result", status="error", error={"type": "FatalAuthenticationError", "message": "secret-words"})
        return 41
    line("message", role="assistant", content="I will look.", delta=True)
    line("tool_use", tool_name="read_file", tool_id="t", parameters={"path": "a"})
    line("tool_result", tool_id="t", status="success", output="secret")
    line("error", severity="warning", message="Loop detected secret-words")
    for piece in (flags.model, "|", prompt):
        line("message", role="assistant", content=piece, delta=True)
    stats = {
        "total_tokens": 18,
        "input_tokens": 11,
        "output_tokens": 7,
        "cached": 3,
        "input": 8,
        "duration_ms": 5,
        "tool_calls": 1,
    }
    line("result", status="success", stats=stats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
