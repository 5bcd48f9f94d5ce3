"""Our reading of response templates beside that of Hugging Face Transformers, on answers that both can read.

Its module is loaded without the rest of the package, which needs much that has nothing to do with parsing. What both read differs in
these, on purpose: Transformers raises on a call that cannot be read, drops text outside of all fields where no field is for it, keeps
only the last of several texts of a field that does not repeat, ends a call at its closing marker even within a string, and tells
arguments when a call has ended. So the answers here are whole, and every field repeats. It gets them in one piece: where a marker may
end in two ways (`</a>( </b>)?`), its outcome depends on the split.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferwire_server.engine.chat import family as families
from inferwire_server.engine.chat.parser import AnswerParser
from inferwire_server.engine.chat.response_template import ResponseTemplate

from .chat_answers import cut, events_of, parts_of, write_call

# Those whose files use nothing but the format itself.
FAMILIES = [
    "hermes", "qwen3-coder", "mistral-v3", "mistral-v11", "mistral-v13", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2", "gemma-4",
    "functiongemma", "gpt-oss", "granite-3", "glm-4.5", "kimi-k2",
]  # fmt: skip
TOOLS = {
    "search": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer"},
            "score": {"type": ["number", "null"]},
            "exact": {"type": "boolean"},
            "filter": {"type": "object"},
            "tags": {"anyOf": [{"type": "array"}, {"type": "null"}]},
        },
    },
    "now": {"type": "object", "properties": {}},
}
WORDS = st.text("abcxyz 0129.,:-_'?!äß月😀", max_size=12)
# Transformers strips a value's white space with its tag, and reads the texts of a delimiter before anything else.
VALUES = {
    "query": WORDS.map(str.strip),
    "limit": st.integers(-(10**20), 10**20),
    "score": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
    "exact": st.booleans(),
    "filter": st.dictionaries(
        st.sampled_from("abc"), st.none() | st.booleans() | st.integers() | WORDS, max_size=3
    ),
    "tags": st.lists(WORDS, max_size=3),
}


def load_oracle() -> Any:
    """Transformers' parser, with two of its neighbours replaced that it asks for a logger and for what is not used here."""
    found = importlib.util.find_spec("transformers")
    assert found is not None, "transformers is missing: it is among the requirements for development"
    root = Path((found.submodule_search_locations or [""])[0])
    package, utils = ModuleType("transformers"), ModuleType("transformers.utils")
    package.__path__, utils.__path__ = [str(root)], [str(root / "utils")]
    neighbours = {
        "logging": {"get_logger": logging.getLogger},
        "chat_template_utils": {"get_json_schema": None},
    }
    modules = {"transformers": package, "transformers.utils": utils}
    for name, attributes in neighbours.items():
        module = ModuleType(f"transformers.utils.{name}")
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        modules[module.__name__] = module
        setattr(utils, name, module)
    with patch.dict(sys.modules, modules):
        return importlib.import_module("transformers.utils.chat_parsing")


oracle = load_oracle()


def spec_of(name: str) -> dict[str, Any]:
    """A family's template, every field of which repeats, in Transformers' own keys."""
    name, _, variant = name.partition("+")
    file = Path(families.__file__).parent / f"families/{name}.json"
    template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["response_template"]
    template.pop("noise_pattern", None)
    for field in template["fields"].values():
        if field.get("content") in (None, "text"):
            field |= {"repeats": True, "join": ""}
        elif not field.get("transform_each"):
            field["repeats"] = True
    if variant == "json":
        arguments = template["fields"]["tool_calls"]["content_args"]
        arguments["value_parser"] = {"name": "json", "args": {"allow_non_json": True}}
    return template


@st.composite
def whole_answers(draw: st.DrawFn, name: str) -> str:
    """An answer as a model of the family writes it: perhaps a thought, perhaps text, perhaps calls."""
    family = families.family(name)
    text = draw(WORDS.map(str.strip))
    answer = ""
    if family.thought and draw(st.booleans()):
        answer += f"{family.thought.begin}{draw(WORDS)}{family.thought.end}"
    if name != "gpt-oss":
        answer += text
    elif text:
        answer += f"<|channel|>final<|message|>{text}<|end|>"
    count = draw(st.integers(0, 3 if family.calls and family.calls.separator is not None else 1))
    if count and family.calls:
        calls = [draw(calls_of(name)) for _ in range(count)]
        answer += family.calls.begin + (family.calls.separator or "").join(calls) + family.calls.end
    # Where nothing follows a thought, its message is the last.
    return answer.removesuffix("<|start|>assistant")


@st.composite
def calls_of(draw: st.DrawFn, name: str) -> str:
    syntax = families.family(name).calls
    assert syntax is not None
    # What a tag says of its value's type, Transformers does not read: there only a schema says it.
    tool = draw(
        st.sampled_from(["search", "now"] if "is_text" in syntax.argument else ["search", "now", "unknown"])
    )
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True)) if tool != "now" else []
    arguments = {key: draw(VALUES[key]) for key in keys}
    return write_call(
        name, tool, arguments, ascii_only=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
    )


def ours(template: dict[str, Any], prompt: str, pieces: list[str]) -> dict[str, Any]:
    """What we read, as Transformers tells it."""
    parser = AnswerParser(ResponseTemplate.load(template), prompt=prompt, tools=TOOLS)
    parts = parts_of(events_of(parser, pieces))
    calls = [part for part in parts if "call" in part]
    assert all(call["is_complete"] for call in calls)
    return {
        "content": "".join(part.get("text", "") for part in parts).strip(),
        "thinking": "".join(part.get("reasoning", "") for part in parts).strip(),
        "tool_calls": [(call["call"], call.get("id"), json.loads(call["arguments"])) for call in calls],
    }


def theirs(template: dict[str, Any], prompt: str, text: str) -> dict[str, Any]:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in TOOLS.items()
    ]
    parser = oracle.ResponseParser(template, prefix=prompt, tools=tools)
    parser.feed(text)
    message, _ = parser.finalize()
    calls = message.get("tool_calls", [])
    calls = [call for item in calls for call in (item if isinstance(item, list) else [item])]
    return {
        "content": message.get("content", "").strip(),
        "thinking": message.get("thinking", "").strip(),
        "tool_calls": [(c["function"]["name"], c.get("id"), c["function"]["arguments"]) for c in calls],
    }


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3-coder+json"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_whole_answer_is_read_alike(name: str, data: st.DataObject) -> None:
    """In any pieces, with a prompt or without: the same text, the same thoughts, the same calls of the same types."""
    template = spec_of(name)
    text = data.draw(whole_answers(name.partition("+")[0]))
    anchor = template.get("start_anchor", "")
    prompt = f"a <think> <tool_call> {anchor if isinstance(anchor, str) else anchor[0]}" if anchor else ""
    places = data.draw(st.lists(st.integers(0, max(1, len(text))), max_size=8))
    expected = theirs(template, prompt, text)
    assert expected == ours(template, prompt, cut(text, places)) == ours(template, prompt, [text])


@settings(deadline=None, max_examples=200)
@given(
    pieces=st.lists(
        st.sampled_from(["<a>", "</a>", "<b", ">", "</b>", "<a", "x", " ", "\n", "</", "<", "b"]), max_size=20
    ),
    has_outside=st.booleans(),
    is_stripped=st.booleans(),
)
def test_any_text_is_divided_alike(pieces: list[str], has_outside: bool, is_stripped: bool) -> None:
    """Two kinds of regions in any disorder; where nothing is outside of them, Transformers drops what is, and so nothing is compared."""
    text_field = {"repeats": True, "join": "", "content_args": {"strip": is_stripped}}
    fields = {
        "thinking": {"open": ["<a>", "<b"], "close_pattern": "</a>|</b>"} | text_field,
        "content": text_field | ({} if has_outside else {"open_pattern": r"<b>\s*", "close": "</"}),
    }
    template = {"start_anchor": "^", "fields": fields}
    expected, found = theirs(template, "", "".join(pieces)), ours(template, "", pieces)
    assert squeezed(expected["thinking"]) == squeezed(found["thinking"])
    if has_outside:
        assert squeezed(expected["content"]) == squeezed(found["content"])


def squeezed(text: str) -> str:
    """White space between two regions is the marker's here; there each region's text is stripped by itself."""
    return "".join(text.split())
