"""What LLM documents of `llm prompt`, with the prompt on standard input."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Answers with what it was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["prompt"])
    parser.add_argument("-n", "--no-log", action="store_true", required=True)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--system", default="none")
    flags = parser.parse_args()
    prompt = sys.stdin.read()
    if "fail" in prompt:
        print("Error: secret-words", file=sys.stderr)
        return 1
    for piece in (flags.model, "|", flags.system, "|", prompt):
        print(piece, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
