"""What a family's call grammar lets through, the family's parser reads as calls whose arguments satisfy the tools' schemas."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import llguidance
import numpy as np
import pytest

from inferwire_server.engine.chat.call_grammar import call_grammar
from inferwire_server.engine.chat.family import family, names
from inferwire_server.engine.chat.parser import AnswerParser

from .chat_answers import events_of, parts_of

EOS = 256
MAX_BYTES = 1500
FAMILIES = [name for name in names() if family(name).calls]
each_family = pytest.mark.parametrize("name", FAMILIES)

NODE = {
    "type": "object",
    "properties": {"is_leaf": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}},
    "required": ["is_leaf"],
    "additionalProperties": False,
}
TOOLS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "metric": {"type": "boolean"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "search.all-2": {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what for", "maxLength": 20},
            "tags": {"type": "array", "items": {"enum": ["a", "b c"]}, "minItems": 1, "maxItems": 3},
            "limit": {"type": ["integer", "null"]},
            "filter": {
                "type": "object",
                "properties": {"x": {"type": "string", "maxLength": 9}, "y": {"type": "array", "items": {"type": "number"}}},
                "required": ["y"],
                "additionalProperties": False,
            },
            "mode": {"enum": ["fast", "slow", 3]},
            "code": {"type": "string", "pattern": "^[A-Z]{2}/\\d+$"},
            "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
            "either": {"type": ["string", "integer"], "maxLength": 5},
            "level": {"const": "high"},
            "color": {"anyOf": [{"enum": ["red", "null", "5"]}, {"type": "null"}]},
        },
        "required": ["tags", "mode"],
        "additionalProperties": False,
    },
    "now": {},
    "walk": {
        "type": "object",
        "$defs": {"node": NODE},
        "properties": {"root": {"$ref": "#/$defs/node"}, "extra": {"type": "object", "maxProperties": 1}},
        "required": ["root"],
        "additionalProperties": False,
    },
}  # fmt: skip


@dataclass
class Bytes:
    """A vocabulary of single bytes, the end, and some control tokens, as llguidance asks for it."""

    controls: Collection[str] = ()

    def __post_init__(self) -> None:
        self.eos_token_id, self.bos_token_id = EOS, None
        self.ids = {text: EOS + 1 + number for number, text in enumerate(sorted(self.controls))}
        self.tokens = (
            [bytes([byte]) for byte in range(256)] + [b"<end>"] + [text.encode() for text in self.ids]
        )
        self.special_token_ids = [EOS, *self.ids.values()]

    def __call__(self, data: bytes) -> list[int]:
        return list(data)

    def tokenizer(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(self))


def matcher(vocabulary: Bytes, grammar: str) -> llguidance.LLMatcher:
    made = llguidance.LLMatcher(vocabulary.tokenizer(), grammar, log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def walk(vocabulary: Bytes, lark: str, chance: random.Random, hint: str = "") -> str | None:
    """A text that the grammar lets through, drawn at random; None when it had no end for too long.

    The hint is a text that comes more often than by chance, where it may.
    """
    made = matcher(vocabulary, llguidance.LLMatcher.grammar_from_lark(lark))
    mask = np.zeros((len(vocabulary.tokens) + 31) // 32, dtype=np.int32)
    tokens: list[int] = []
    while len(tokens) < MAX_BYTES:
        made.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        assert not made.is_error(), made.get_error()
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(vocabulary.tokens)]
        allowed = np.nonzero(bits)[0].tolist()
        if hint and chance.random() < 0.1 and made.validate_tokens(list(hint.encode())) == len(hint.encode()):
            made.consume_tokens(list(hint.encode()))
            tokens += hint.encode()
            continue
        # What ends strings and brackets comes more often, or texts would have no end.
        ending = [token for token in allowed if token >= EOS or token in b"\"'}])<>/\n,"]
        token = chance.choice(ending if ending and chance.random() < 0.4 else allowed)
        if token == EOS:
            break
        assert made.consume_token(token)
        tokens.append(token)
        if made.is_stopped():
            break
    else:
        return None
    return b"".join(vocabulary.tokens[token] for token in tokens).decode()


def satisfies(arguments: str, schema: dict[str, Any]) -> bool:
    schema = schema or {"type": "object", "additionalProperties": False}
    made = matcher(Bytes(), llguidance.LLMatcher.grammar_from_json_schema(schema))
    # llguidance writes this character as an escape only.
    made.consume_tokens(list(arguments.replace("\x7f", "\\u007f").encode()))
    return not made.is_error() and made.is_accepting()


def read(name: str, text: str, prompt: str = "") -> list[dict[str, Any]]:
    parser = AnswerParser(family(name).response_template, prompt=prompt, tools=TOOLS)
    return parts_of(events_of(parser, text))


@each_family
@pytest.mark.parametrize("has_controls", [False, True], ids=["text", "special_tokens"])
def test_what_the_grammar_lets_through_is_a_call(name: str, has_controls: bool) -> None:
    """Random walks: nothing but whole calls of tools on offer, with arguments that their schemas allow."""
    chance = random.Random(f"{name} {has_controls}")
    vocabulary = Bytes(family(name).tokens if has_controls else ())
    lark = call_grammar(family(name), TOOLS, special_tokens=vocabulary.ids)
    called: Counter[str] = Counter()
    for _ in range(12):
        text = walk(vocabulary, lark, chance)
        for part in read(name, text) if text is not None else ():
            assert part.get("is_complete"), text
            assert satisfies(part["arguments"], TOOLS[part["call"]]), text
            called[part["call"]] += 1
    assert len(called) >= 3, called


@each_family
def test_one_tool_is_called_when_it_alone_is_passed(name: str) -> None:
    """And once, when several calls are not wanted."""
    chance = random.Random(name)
    tools = {"get_weather": TOOLS["get_weather"]}
    vocabulary = Bytes()
    lark = call_grammar(family(name), tools, is_parallel=False)
    texts = [text for text in (walk(vocabulary, lark, chance) for _ in range(8)) if text is not None]
    assert texts
    for text in texts:
        assert ["get_weather"] == [part["call"] for part in read(name, text)]


@each_family
def test_several_calls_where_the_family_can_write_them(name: str) -> None:
    """Some walks have more than one; without a separator none has."""
    chance = random.Random(name)
    lark = call_grammar(family(name), {"now": {}})
    counts = {len(read(name, walk(Bytes(), lark, chance) or "")) for _ in range(20)}
    syntax = family(name).calls
    assert syntax is not None
    assert (max(counts) > 1) == (syntax.separator is not None)
    assert min(counts) == 1


@pytest.mark.parametrize(
    ("name", "tools", "problem"),
    [
        ("plain", {"now": {}}, "no way to write calls"),
        ("reasoning", {"now": {}}, "no way to write calls"),
        ("hermes", {}, "needs a tool"),
        ("qwen3-coder", {"f": {"anyOf": [{"type": "object"}]}}, "anyOf cannot be enforced"),
        ("qwen3-coder", {"f": True}, "cannot be enforced"),
        ("qwen3-coder", {"f": {"properties": {"a": {"items": {}}}}}, "has no type"),
        (
            "qwen3-coder",
            {"f": {"properties": {"a": {"type": "integer", "enum": ["b"]}, "b": {"enum": []}}}},
            "'b'",
        ),
        ("qwen3-coder", {"f": {"properties": {"a>b": {}}}}, "name of a tag"),
        ("qwen3-coder", {"f": {"properties": {"a": {"type": "string", "pattern": "^a|b$"}}}}, "pattern"),
        ("pythonic", {"f": {"properties": {"a b": {}}}}, "in Python"),
        ("pythonic", {"f": {"minProperties": 1}}, "minProperties cannot be enforced"),
        ("gemma-4", {"f": {"type": "object", "properties": 7}}, "malformed"),
        ("gemma-4", {"f": {"$ref": "#/$defs/nowhere"}}, "not defined"),
    ],
)
def test_what_cannot_be_enforced_is_refused(name: str, tools: dict[str, Any], problem: str) -> None:
    """A grammar that asks for less than the schema would be taken for one that asks for it."""
    with pytest.raises(ValueError, match=problem):
        call_grammar(family(name), tools)


def test_special_tokens_are_written_as_such() -> None:
    """A model that was trained to write a control token does not spell it out, and could not."""
    lark = call_grammar(
        family("mistral-v13"), {"now": {}}, special_tokens={"[TOOL_CALLS]": 300, "[ARGS]": 301}
    )
    assert '<[300]> "now" <[301]> %json' in lark
    assert "TOOL_CALLS" not in lark


def test_arguments_are_json_of_bounded_white_space() -> None:
    """A weak model would stay in it."""
    lark = call_grammar(family("hermes"), {"now": {"type": "object"}})
    start = '<tool_call>\n{"name": "now", "arguments": {'
    made = matcher(Bytes(), llguidance.LLMatcher.grammar_from_lark(lark))
    assert len(start) + 20 == made.try_consume_tokens(list((start + " " * 30).encode()))
