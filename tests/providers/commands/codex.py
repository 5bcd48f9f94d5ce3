"""What Codex documents of `codex exec --json -`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def line(type: str, **values: Any) -> None:
    """Prints an event."""
    print(json.dumps({"type": type, **values}), flush=True)


def main() -> int:
    """Answers with what it was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["exec"])
    parser.add_argument("--json", action="store_true", required=True)
    parser.add_argument("--skip-git-repo-check", action="store_true")
    parser.add_argument("--sandbox", choices=["read-only"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("prompt", choices=["-"])
    flags = parser.parse_args()
    prompt = sys.stdin.read()
    print("Reading prompt from stdin...", file=sys.stderr)
    line("thread.started", thread_id="0199a213-81c0-7800-8aa1-bbab2a035a53")
    line("turn.started")
    line("error", message="Reconnecting... 1/5 secret-words")
    if "fail" in prompt:
        line("turn.failed", error={"message": "secret-words"})
        return 1
    line("item.completed", item={"id": "item_0", "type": "reasoning", "text": "**Searching**"})
    call = {"id": "item_1", "type": "command_execution", "command": "bash -lc ls", "aggregated_output": ""}
    line("item.started", item={**call, "status": "in_progress"})
    line(
        "item.completed", item={**call, "aggregated_output": "secret", "exit_code": 0, "status": "completed"}
    )
    line("item.completed", item={"id": "item_2", "type": "reasoning", "text": "**Checking**"})
    line("item.completed", item={"id": "item_3", "type": "agent_message", "text": "I looked."})
    line("item.completed", item={"id": "item_4", "type": "agent_message", "text": f"{flags.model}|{prompt}"})
    line("turn.completed", usage={"input_tokens": 11, "cached_input_tokens": 3, "output_tokens": 7})
    return 0


if __name__ == "__main__":
    sys.exit(main())
