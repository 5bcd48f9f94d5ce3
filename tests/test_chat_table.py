"""Families by cases: every format of the field reads the same answers, each in its own syntax, at any split, whole and cut short."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from inferwire_server.engine.chat.family import family, names

from .chat_answers import cut, events_of, parser_of, parts_of, write_call

Part = dict[str, Any]
CALLING = [name for name in names() if family(name).calls]
THINKING = [name for name in names() if family(name).thought]

TEXTS = {
    "text": "The answer is 4.",
    "text with brackets": 'A list [1, 2] and an object {"a": "b"} in it.',
    "text with less-than signs": "1 < 2, a <b> tag, and <tools> of trade",
    "text of several lines": "One\n\n  two\n\tthree",
    "text of other scripts": "naïve 月 😀 Ω",
    "a single character": "a",
}
CALLS: dict[str, list[tuple[str, Mapping[str, Any]]]] = {
    "a call": [("get_weather", {"city": "Paris"})],
    "no arguments": [("now", {})],
    "several types": [("get_weather", {"city": "Rome", "days": 3, "metric": True})],
    "a negative number and a fraction": [("search", {"query": "x", "score": -2.5})],
    "a list": [("search", {"tags": ["a", "b c", "d"]})],
    "a nested object": [("search", {"filter": {"x": {"y": [1, {"z": "w"}]}, "empty": {}, "none": []}})],
    "braces and brackets in a string": [("search", {"query": "a {b} [c] (d), e: f; g = h"})],
    "quotes in a string": [("search", {"query": "say \"hi\" and 'ho'"})],
    "a newline and a backslash in a string": [("search", {"query": "C:\\temp\nnext"})],
    "other scripts in a string": [("search", {"query": "naïve 月 😀 Ω"})],
    "an empty string": [("search", {"query": ""})],
    "a number that is a text": [("search", {"query": "42"})],
    "two calls": [("get_weather", {"city": "Paris"}), ("now", {})],
    "the same call twice": [("get_weather", {"city": "Bern"}), ("get_weather", {"city": "Bern"})],
}


def write_text(name: str, text: str) -> str:
    return f"<|channel|>final<|message|>{text}<|end|>" if name == "gpt-oss" else text


def write_calls(name: str, calls: list[tuple[str, Mapping[str, Any]]]) -> str:
    syntax = family(name).calls
    assert syntax is not None
    written = (syntax.separator or "").join(write_call(name, tool, arguments) for tool, arguments in calls)
    return syntax.begin + written + syntax.end


def is_strict(name: str) -> bool:
    """Whether only an answer that is nothing but calls has calls."""
    return name in ("llama3-json", "pythonic")


def can_write(name: str, calls: list[tuple[str, Mapping[str, Any]]]) -> bool:
    syntax = family(name).calls
    assert syntax is not None
    return len(calls) == 1 or syntax.separator is not None


def cases() -> Iterator[tuple[str, str, str, list[Part]]]:
    """(family, case, text, parts)"""
    for name in names():
        for case, text in TEXTS.items():
            yield name, case, write_text(name, text), [{"text": text}]
        if name in CALLING:
            for case, calls in CALLS.items():
                if can_write(name, calls):
                    expected = [{"call": tool, "arguments": arguments} for tool, arguments in calls]
                    yield name, case, write_calls(name, calls), expected
                    if not is_strict(name):
                        said = write_text(name, "Let me look.")
                        yield (
                            name,
                            f"text and {case}",
                            f"{said}\n{write_calls(name, calls)}",
                            [{"text": "Let me look."}, *expected],
                        )
        if name in THINKING:
            thought = family(name).thought
            assert thought is not None
            thinks = f"{thought.begin}2 and 2 {{make}} 4.\nYes.{thought.end}"
            told = {"reasoning": "2 and 2 {make} 4.\nYes."}
            for case, text in TEXTS.items():
                written = write_text(name, text)
                yield (
                    name,
                    f"thought and {case}",
                    thinks.removesuffix("<|start|>assistant") + written,
                    [told, {"text": text}],
                )
            if name in CALLING:
                call = CALLS["a call"]
                expected = [{"call": tool, "arguments": arguments} for tool, arguments in call]
                yield name, "thought and a call", thinks + write_calls(name, call), [told, *expected]


ALL = [pytest.param(*case, id=f"{case[0]}: {case[1]}") for case in cases()]


def read(name: str, pieces: list[str]) -> list[Part]:
    """What the family's parser makes of the pieces, as far as this table says it."""
    parts = parts_of(events_of(parser_of(name), pieces))
    for part in parts:
        part.pop("id", None)
        if "call" in part:
            assert part.pop("is_complete"), part
            part["arguments"] = json.loads(part["arguments"])
    return parts


def test_every_family_has_its_cases() -> None:
    """A dozen at least, but for those that know nothing beside text."""
    for name, group in itertools.groupby(cases(), key=lambda case: case[0]):
        assert len(list(group)) >= (12 if name != "plain" else len(TEXTS)), name


@pytest.mark.parametrize(("name", "case", "text", "parts"), ALL)
def test_it_is_read_at_any_split(name: str, case: str, text: str, parts: list[Part]) -> None:
    """Whole, cut in two at every place, and character by character."""
    assert parts == read(name, [text])
    assert parts == read(name, list(text))
    for place in range(1, len(text)):
        assert parts == read(name, cut(text, [place])), (text[:place], text[place:])


@pytest.mark.parametrize(("name", "case", "text", "parts"), ALL)
def test_it_is_read_as_far_as_it_came(name: str, case: str, text: str, parts: list[Part]) -> None:
    """An answer that was cut anywhere is the beginning of the whole one: no part too many, none changed, none taken back."""
    whole = parts_of(events_of(parser_of(name), [text]))
    for place in range(len(text)):
        cut_short = parts_of(events_of(parser_of(name), [text[:place]]))
        told = [part for part in cut_short if "text" not in part]
        expected = [part for part in whole if "text" not in part]
        # What may yet become a marker, or a call, is text when nothing follows; thoughts and calls are never more than they were.
        assert len(told) <= len(expected)
        for part, final in zip(told, expected, strict=False):
            if "call" in part:
                assert part["call"] == final["call"]
                assert final["arguments"].startswith(part["arguments"].rstrip()), (part, final)
