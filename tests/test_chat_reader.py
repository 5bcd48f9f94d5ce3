"""The reader of an answer: which form holds for the next token, over a vocabulary of single bytes and some special tokens."""

from __future__ import annotations

import codecs
import json
import random
import re
from typing import Any

import numpy as np
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.engine.chat.call_grammar import call_grammar, text_without
from inferwire_server.engine.chat.family import family, names
from inferwire_server.engine.chat.parser import AnswerParser
from inferwire_server.engine.chat.reader import AnswerReader
from inferwire_server.engine.grammar import Constraint

from .test_call_grammar import EOS, Bytes, matcher

import llguidance  # isort: skip

TOOLS: dict[str, Any] = {
    "pick": {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}, "on": {"type": "boolean"}},
        "required": ["n", "on"],
        "additionalProperties": False,
    }
}
CALLING = [name for name in names() if family(name).calls]


class Answer:
    """An answer that is written token by token, and what was told of it."""

    def __init__(
        self, name: str, *, has_controls: bool, prompt: str = "", form: bool = True, **options: Any
    ) -> None:
        self.family = family(name)
        self.vocabulary = Bytes(self.family.tokens if has_controls else ())
        self.characters = codecs.getincrementaldecoder("utf-8")()
        self.told: list[pb.StreamCompleteResponse] = []
        grammars = [
            call_grammar(
                self.family, TOOLS, is_parallel=False, is_inner=is_inner, special_tokens=self.vocabulary.ids
            )
            for is_inner in (False, True)
        ]
        self.reader = AnswerReader(
            AnswerParser(self.family.response_template, prompt=prompt, tools=TOOLS if form else None),
            tokenize=self.tokenize,
            new_call_id=str,
            num_vocab=len(self.vocabulary.tokens),
            end_tokens=[EOS],
            calls=[self.constraint(grammar) for grammar in grammars] if form else [],
            call_token=self.vocabulary.ids.get(self.family.call_marker or "") if form else None,
            is_strict=self.family.is_strict,
            **options,
        )

    def constraint(self, lark: str) -> Constraint:
        made = matcher(self.vocabulary, llguidance.LLMatcher.grammar_from_lark(lark))
        return Constraint(made, len(self.vocabulary.tokens), "chat.tools")

    def tokenize(self, text: str) -> list[int]:
        tokens: list[int] = []
        while text:
            special = next((name for name in self.vocabulary.ids if text.startswith(name)), None)
            if special is None:
                tokens += text[0].encode()
                text = text[1:]
            else:
                tokens.append(self.vocabulary.ids[special])
                text = text[len(special) :]
        return tokens

    def allowed(self) -> list[int]:
        assert self.reader.constraint is not None
        bits = np.unpackbits(self.reader.constraint.mask().view(np.uint8), bitorder="little")
        return [int(token) for token in np.nonzero(bits)[0] if token < len(self.vocabulary.tokens)]

    def take(self, token: int) -> None:
        if self.reader.constraint is not None:
            self.reader.constraint.accept(token)
        text = "" if token == EOS else self.characters.decode(self.vocabulary.tokens[token])
        self.told += self.reader.read(token, text)

    def write(self, text: str) -> None:
        for token in self.tokenize(text):
            self.take(token)

    def finish(self) -> None:
        self.told += self.reader.finish("")

    def is_bound(self) -> bool:
        """Whether a form holds for the next token."""
        return self.reader.constraint is not None

    @property
    def text(self) -> str:
        return "".join(event.text.text for event in self.told)

    @property
    def arguments(self) -> str:
        return "".join(event.tool_call.arguments for event in self.told)


@pytest.mark.parametrize("has_controls", [False, True], ids=["text", "special tokens"])
@pytest.mark.parametrize("name", CALLING)
def test_a_call_that_was_begun_ends_in_its_form(name: str, has_controls: bool) -> None:
    """Whatever is drawn from then on is the rest of one valid call; before and after it nothing is bound."""
    for seed in range(4):
        answer = Answer(name, has_controls=has_controls)
        syntax = answer.family.calls
        assert syntax is not None
        if name not in ("llama3-json", "pythonic"):
            answer.write("<|channel|>final<|message|>Hm.<|end|>" if name == "gpt-oss" else "Hm.\n")
        assert not answer.is_bound()
        # The model begins, up to where its arguments do.
        opening = (syntax.begin + syntax.call).partition("{arguments}")[0]
        id = "123456789" if re.fullmatch(syntax.id, "123456789") else "0"
        answer.write(opening.replace("{name}", "pick").replace("{id}", id))
        if not answer.is_bound():
            # Some say only by the beginning of an argument that this is a call.
            answer.write({"json": "{", "bare": "{"}.get(syntax.form, syntax.argument.partition("{key}")[0]))
        assert answer.is_bound(), "a call has begun"
        chance = random.Random(seed)
        for _ in range(400):
            if not answer.is_bound():
                break
            ending = [token for token in answer.allowed() if token >= EOS or token in b"}])>"]
            answer.take(chance.choice(ending or answer.allowed()))
        assert not answer.is_bound(), "the call has ended"
        answer.finish()
        arguments = json.loads(answer.arguments)
        assert {"n", "on"} == set(arguments)
        assert arguments["n"] in range(10, 100)
        assert arguments["on"] in (True, False)
        assert answer.reader.has_called


def test_what_is_no_call_stays_free() -> None:
    """A marker with something else behind it binds nothing that it could not have been."""
    answer = Answer("mistral-v3", has_controls=False)
    answer.write("[TOOL_CALL is not one, nor is [TOOL_")
    assert answer.reader.constraint is None
    answer.finish()
    assert "[TOOL_CALL is not one, nor is [TOOL_" == answer.text


def test_one_call_is_enough_where_that_was_said() -> None:
    """The answer is over behind it."""
    answer = Answer("hermes", has_controls=True, is_parallel=False)
    answer.write('<tool_call>\n{"name": "pick", "arguments": {"n": 12, "on": true')
    assert not answer.reader.is_over
    answer.write("}")
    assert answer.reader.is_over


def test_a_form_waits_for_the_end_of_the_thought() -> None:
    """In the thought all but the end is allowed; behind it the form, or another call in its place."""
    answer = Answer("hermes", has_controls=True, prompt="<|im_start|>assistant\n<think>\n", form=False)
    form = answer.constraint('start: "yes" | "no"\n')
    answer.reader = AnswerReader(
        AnswerParser(answer.family.response_template, prompt="<|im_start|>assistant\n<think>\n"),
        tokenize=answer.tokenize, new_call_id=str, num_vocab=len(answer.vocabulary.tokens), end_tokens=[EOS],
        answer=form, thought_token=answer.vocabulary.ids["<think>"], thought_end=answer.tokenize("\n</think>\n"),
        max_thought_tokens=5,
    )  # fmt: skip
    assert EOS not in answer.allowed()
    assert len(answer.allowed()) == len(answer.vocabulary.tokens) - 1
    answer.write("Well,")
    assert [ord("\n")] == answer.allowed(), "the budget is spent"
    answer.write("\n</think>\n")
    assert 5 == answer.reader.num_thought_tokens
    assert sorted(b"yn") == sorted(answer.allowed())
    answer.write("no")
    assert answer.reader.constraint is form
    assert form.is_complete


def test_a_thought_may_come_before_a_form() -> None:
    """Once, and only at the beginning."""
    answer = Answer("hermes", has_controls=True, form=False)
    think = answer.vocabulary.ids["<think>"]
    answer.reader = AnswerReader(
        AnswerParser(answer.family.response_template), tokenize=answer.tokenize, new_call_id=str,
        num_vocab=len(answer.vocabulary.tokens), end_tokens=[EOS],
        answer=answer.constraint('start: "yes" | "no"\n'), thought_token=think,
    )  # fmt: skip
    assert sorted([*b"yn", think]) == sorted(answer.allowed())
    answer.write("<think>so</think>")
    assert sorted(b"yn") == sorted(answer.allowed())
    answer.write("y")
    assert [ord("e")] == answer.allowed()


def test_a_token_may_end_the_thought_and_begin_the_answer() -> None:
    """What stands behind the marker in the same token counts for the form."""
    answer = Answer("hermes", has_controls=False, prompt="<|im_start|>assistant\n<think>\n", form=False)
    answer.reader = AnswerReader(
        AnswerParser(answer.family.response_template, prompt="<|im_start|>assistant\n<think>\n"),
        tokenize=answer.tokenize, new_call_id=str, num_vocab=len(answer.vocabulary.tokens), end_tokens=[EOS],
        answer=answer.constraint('start: "yes" | "no"\n'),
    )  # fmt: skip
    answer.told += answer.reader.read(0, "Hm.</think>\n\nye")
    assert [ord("s")] == answer.allowed()
    answer.take(ord("s"))
    answer.finish()
    assert "yes" == answer.text


@pytest.mark.parametrize("name", CALLING)
def test_a_marker_can_be_forbidden(name: str) -> None:
    """Any text is allowed in which it is not, and it is not allowed to its end."""
    for marker in family(name).tokens:
        made = matcher(Bytes(), llguidance.LLMatcher.grammar_from_lark(text_without(marker)))
        assert made.consume_tokens(list(f"some text {marker[:-1]}".encode()))
        last = list(marker[-1].encode())
        assert made.validate_tokens(last) < len(last)
        assert 1 == made.validate_tokens(list(b"~"))
        assert made.is_accepting()
