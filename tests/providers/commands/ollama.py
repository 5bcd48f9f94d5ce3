"""What Ollama documents of `ollama run MODEL`, with the prompt on standard input."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Answers with what it was told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--hidethinking", action="store_true", required=True)
    parser.add_argument("--nowordwrap", action="store_true", required=True)
    parser.add_argument("model")
    flags = parser.parse_args()
    prompt = sys.stdin.read()
    print("\x1b[?25l⠋ \x1b[?25h", file=sys.stderr)
    if "fail" in prompt:
        print("Error: secret-words", file=sys.stderr)
        return 1
    for piece in (flags.model, "|", prompt):
        print(piece, end="", flush=True)
    print("\n\n", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
