"""Answers of models as data, one file per family in models/chat_answers, and what the parser made of a text."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferwire_server.engine.chat.family import family
from inferwire_server.engine.chat.parser import (
    AnswerParser,
    CallArguments,
    CallBegin,
    CallEnd,
    Event,
    Reasoning,
    Text,
)

FOLDER = Path(__file__).parent / "models/chat_answers"
TOOLS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
        },
        "required": ["city"],
    },
    "search": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "limit": {"type": ["integer", "null"]},
            "filter": {"type": "object"},
            "score": {"type": "number"},
        },
    },
    "now": {"type": "object", "properties": {}},
}


@dataclass(frozen=True)
class Answer:
    """A text of a model and the parts of the message that it is."""

    family: str
    rule: str
    text: str
    parts: list[dict[str, Any]]
    prompt: str = ""

    def __str__(self) -> str:
        return f"{self.family}-{self.rule.replace(' ', '_')}"


FILES = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}
ANSWERS = [Answer(family=name, **answer) for name, file in FILES.items() for answer in file["answers"]]
# A few words of a chat template for each family, which tell whose it is.
CHAT_TEMPLATES = {name: file["chat_template"] for name, file in FILES.items()}


def parser_of(name: str, prompt: str = "", tools: Mapping[str, Any] | None = TOOLS) -> AnswerParser:
    return AnswerParser(family(name).response_template, prompt=prompt, tools=tools)


def events_of(parser: AnswerParser, pieces: Iterable[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def cut(text: str, places: Iterable[int]) -> list[str]:
    places = [0, *sorted(place for place in places if 0 < place < len(text)), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(places)]


def parts_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The message that the events are, checked to be in order: text and thoughts joined, a call in one piece."""
    parts: list[dict[str, Any]] = []
    num_calls = 0
    is_open = False
    for event in events:
        # A message of the contract can hold it.
        for value in dataclasses.astuple(event):
            str(value).encode()
        match event:
            case Text(text) | Reasoning(text):
                kind = "text" if isinstance(event, Text) else "reasoning"
                assert (True, False) == (bool(text), is_open), event
                if parts and kind in parts[-1]:
                    parts[-1][kind] += text
                else:
                    parts.append({kind: text})
            case CallBegin(index, name, id):
                assert (num_calls, False, True) == (index, is_open, bool(name)), event
                num_calls, is_open = num_calls + 1, True
                parts.append({"call": name} | ({"id": id} if id else {}) | {"arguments": ""})
            case CallArguments(index, text):
                assert (num_calls - 1, True, True) == (index, is_open, bool(text)), event
                parts[-1]["arguments"] += text
            case CallEnd(index, is_complete):
                assert (num_calls - 1, True) == (index, is_open), event
                is_open = False
                parts[-1]["is_complete"] = is_complete
    assert not is_open
    return parts


def write_call(
    name: str, tool: str, arguments: Mapping[str, Any], *, ascii_only: bool = False, indent: int | None = None
) -> str:
    """A call as a model of the family writes it."""
    syntax = family(name).calls
    assert syntax is not None
    match syntax.form:
        case "tags":
            written = "".join(_tag(syntax.argument, key, value) for key, value in arguments.items())
        case "bare":
            written = _bare(arguments, syntax.delimiter)
        case "python":
            written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        case _:
            written = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    return syntax.call.replace("{name}", tool).replace("{id}", "123456789").replace("{arguments}", written)


def _tag(form: str, key: str, value: Any) -> str:
    is_text = isinstance(value, str)
    written = value if is_text else json.dumps(value)
    return form.replace("{key}", key).replace("{is_text}", str(is_text).lower()).replace("{value}", written)


def _bare(value: Any, delimiter: str) -> str:
    if isinstance(value, str):
        return f"{delimiter}{value}{delimiter}"
    if isinstance(value, list):
        return f"[{','.join(_bare(item, delimiter) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_bare(item, delimiter)}' for key, item in value.items())}}}"
    return json.dumps(value)
