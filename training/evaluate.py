"""Asks a GGUF file all the listed cases at temperature 0: `python -m training.evaluate [demo.gguf]`.

Uses nothing of the training but the renderer: template, tokens and weights come from the file. Exits with 1
when any answer misses.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from training.chat import ChatRenderer
from training.corpus import FunctionCall, Message, Tool
from training.export import DEMO_PATH

CASES_PATH = Path(__file__).parents[1] / "tests" / "models" / "demo_cases.json"
MAX_TOKENS = 400
MIN_STORY_SENTENCES = 5


@dataclass(frozen=True)
class Reply:
    """A completion, taken apart. `ended` says whether the model stopped by itself."""

    text: str
    thought: str
    calls: list[FunctionCall]
    ended: bool


@dataclass(frozen=True)
class Outcome:
    group: str
    asked: str
    passed: bool
    completion: str


class DemoModel:
    """A GGUF file in llama.cpp, asked one conversation at a time and greedily."""

    def __init__(self, path: Path) -> None:
        self._llama = llama_cpp.Llama(str(path), n_ctx=2048, n_threads=2, verbose=False)
        self._renderer = ChatRenderer(self._llama.metadata["tokenizer.chat_template"])

    def complete(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, thinking: bool = False
    ) -> tuple[str, bool]:
        """Return the completion as the model wrote it, and whether it ended by itself."""
        prompt = self._renderer.render(messages, tools, enable_thinking=thinking, add_generation_prompt=True)
        tokens = self._llama.tokenize(prompt.encode(), add_bos=False, special=True)
        self._llama.reset()
        written: list[int] = []
        for token in self._llama.generate(tokens, temp=0.0, repeat_penalty=1.0):
            if token == self._llama.token_eos() or len(written) == MAX_TOKENS:
                break
            written.append(token)
        text = self._llama.detokenize(written, special=False).decode(errors="replace")
        return text, len(written) < MAX_TOKENS

    def ask(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, thinking: bool = False
    ) -> Reply:
        text, ended = self.complete(messages, tools, thinking=thinking)
        thought = re.match(r"<think>\n(.*?)\n</think>\n\n", text, re.DOTALL)
        calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL)
        return Reply(
            text=text[thought.end() :] if thought else text,
            thought=thought[1] if thought else "",
            calls=[_parsed(call) for call in calls],
            ended=ended,
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("gguf", type=Path, nargs="?", default=DEMO_PATH)
    arguments.add_argument("--verbose", action="store_true", help="print the completions that passed too")
    options = arguments.parse_args()
    cases = json.loads(CASES_PATH.read_text(encoding="utf-8"))
    outcomes = list(outcomes_of(DemoModel(options.gguf), cases))
    for outcome in outcomes:
        if options.verbose or not outcome.passed:
            mark = "ok  " if outcome.passed else "MISS"
            print(f"{mark} {outcome.group}: {outcome.asked!r} -> {outcome.completion!r}")
    groups = list(dict.fromkeys(outcome.group for outcome in outcomes))
    for group in groups:
        results = [outcome.passed for outcome in outcomes if outcome.group == group]
        print(f"{group:<24} {sum(results):>3} of {len(results):>3}")
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


def outcomes_of(model: DemoModel, cases: dict[str, list[dict]]) -> Iterator[Outcome]:  # type: ignore[type-arg]
    """Yield one outcome per case. A completion that does not end by itself never passes."""

    def outcome(group: str, messages: list[Message], reply: Reply, passed: bool) -> Outcome:
        said = f"<{reply.thought}> {reply.text}" if reply.thought else reply.text
        return Outcome(group, str(messages[-1]["content"]), passed and reply.ended, said)

    for case in cases["questions"]:
        messages = _user(case["ask"])
        reply = model.ask(messages)
        group = "questions, new wording" if case["unseen_wording"] else "questions"
        yield outcome(group, messages, reply, reply.text == case["answer"] and not reply.thought)
    for case in cases["tools"]:
        messages = _user(case["ask"])
        reply = model.ask(messages, case["tools"])
        yield outcome("tool calls", messages, reply, reply.calls == case["calls"])
    for case in cases["no_tool"]:
        messages = _user(case["ask"])
        reply = model.ask(messages, case["tools"])
        yield outcome("no tool fits", messages, reply, reply.text == case["answer"])
    for case in cases["thoughts"]:
        messages = _user(case["ask"])
        reply = model.ask(messages, thinking=True)
        yield outcome("thoughts", messages, reply, reply.text == case["answer"] and bool(reply.thought))
    for case in cases["tool_results"]:
        reply = model.ask(case["messages"], case["tools"])
        yield outcome("tool results", case["messages"], reply, reply.text == case["answer"])
    for case in cases["chats"]:
        reply = model.ask(case["messages"])
        yield outcome("systems and turns", case["messages"], reply, reply.text == case["answer"])
    for case in cases["stories"]:
        messages = _user(case["ask"])
        reply = model.ask(messages)
        enough = len(re.findall(r"[.!?]", reply.text)) >= MIN_STORY_SENTENCES
        yield outcome(
            "stories", messages, reply, enough and all(word in reply.text for word in case["words"])
        )
    # Listed so that nobody takes them for granted; one that is answered after all belongs to the others.
    for case in cases["known_misses"]:
        messages = _user(case["ask"])
        reply = model.ask(messages, case["tools"])
        yield outcome("known misses, missed", messages, reply, reply.text != case["answer"])


def _user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def _parsed(call: str) -> FunctionCall:
    try:
        parsed: FunctionCall = json.loads(call)
    except json.JSONDecodeError:
        return {"name": "", "arguments": {"not JSON": call}}
    return parsed


if __name__ == "__main__":
    main()
