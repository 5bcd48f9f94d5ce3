"""What Claude Code documents of `claude -p --output-format stream-json --verbose --include-partial-messages`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

SESSION = "11111111-2222-3333-4444-555555555555"


def line(**values: Any) -> None:
    """Prints a message."""
    print(json.dumps({**values, "session_id": SESSION, "uuid": "u"}), flush=True)


def event(inside: str | None = None, **values: Any) -> None:
    """Prints an event of the Messages API."""
    line(type="stream_event", event=values, parent_tool_use_id=inside)


def block(index: int, content: dict[str, Any], *deltas: dict[str, str], inside: str | None = None) -> None:
    """Prints a content block in its pieces, and then the message that holds all of it."""
    event(inside, type="content_block_start", index=index, content_block=content)
    whole = dict(content)
    for delta in deltas:
        event(inside, type="content_block_delta", index=index, delta=delta)
        for key, text in delta.items():
            if key in whole and key != "type":
                whole[key] += text
    event(inside, type="content_block_stop", index=index)
    message = {"role": "assistant", "type": "message", "content": [whole], "stop_reason": None}
    line(type="assistant", message=message, parent_tool_use_id=inside)


def text(*pieces: str) -> tuple[dict[str, str], ...]:
    """Returns the deltas of a text."""
    return tuple({"type": "text_delta", "text": piece} for piece in pieces)


def main() -> int:
    """Answers with what it was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--print", action="store_true", required=True)
    parser.add_argument("--output-format", choices=["stream-json"], required=True)
    for flag in ("verbose", "include-partial-messages", "no-session-persistence", "strict-mcp-config"):
        parser.add_argument(f"--{flag}", action="store_true", required=True)
    parser.add_argument("--tools", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--system-prompt", default="none")
    flags = parser.parse_args()
    assert flags.tools == ""
    prompt = sys.stdin.read()
    line(type="system", subtype="init", model=flags.model, tools=[], cwd="/secret/directory")
    if "fail" in prompt:
        content = [{"type": "text", "text": "Invalid API key secret-words"}]
        message = {"role": "assistant", "model": "<synthetic>", "content": content}
        line(type="assistant", message=message, error="authentication_failed", parent_tool_use_id=None)
        line(type="result", subtype="success", is_error=True, result="Invalid API key secret-words")
        return 1
    if prompt.startswith("/"):
        line(type="result", subtype="success", is_error=False, result="A command's answer.", usage={})
        return 0
    event(type="message_start", message={"id": "msg_1", "role": "assistant", "content": []})
    thought = (
        {"type": "thinking_delta", "thinking": "Let me "},
        {"type": "thinking_delta", "thinking": "see."},
    )
    block(0, {"type": "thinking", "thinking": "", "signature": ""}, *thought)
    block(1, {"type": "text", "text": ""}, *text("I will ", "look."))
    block(2, {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}})
    event(type="message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3})
    block(0, {"type": "text", "text": ""}, *text("words of another agent"), inside="toolu_1")
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "secret file"}
    line(type="user", message={"role": "user", "content": [result]}, parent_tool_use_id=None)
    event(type="message_start", message={"id": "msg_2", "role": "assistant", "content": []})
    block(0, {"type": "text", "text": ""}, *text(flags.model, "|", flags.system_prompt, "|", prompt))
    event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4})
    event(type="message_stop")
    usage = {
        "input_tokens": 2,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 6,
        "output_tokens": 7,
    }
    answer = f"{flags.model}|{flags.system_prompt}|{prompt}"
    line(type="result", subtype="success", is_error=False, num_turns=2, result=answer, usage=usage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
