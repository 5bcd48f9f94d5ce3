"""Reads response templates: data that say how a model's answer is divided into text, thoughts and tool calls.

The format is version 1 of Hugging Face Transformers' `response_template` (chat_response_parsing in its documentation). Of its
fields those count that an answer of this contract can hold: `content`, `thinking` and `tool_calls`. This goes beyond it:
`content: "python"` for calls in Python's syntax, `is_strict` for calls without a marker of their own, in a `tag_pattern` the groups
`json` and `text`, which say that a value is JSON, or that it is text, and `noise_pattern` for markers that mean nothing where they
stand outside of all fields (where there is a field for all that is outside, its `close` says so).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .calls import CallShape, JsonShape, Source, TaggedShape
from .markers import Marker, Watch, find_last
from .values import JSON, PYTHON, Dialect


class Kind(Enum):
    """What a region of an answer is."""

    TEXT = "text"
    REASONING = "reasoning"
    CALLS = "calls"


@dataclass(frozen=True, eq=False)
class Field:
    """A kind of region: how it begins and ends, and what is in it."""

    name: str
    kind: Kind
    open: Marker | None = None
    close: Marker | None = None
    # White space at both ends of the text is not part of it.
    is_stripped: bool = True
    # Stands between the texts of two such regions.
    join: str = ""
    calls: CallShape | None = None


@dataclass(frozen=True)
class ResponseTemplate:
    """The fields of an answer. `outside` is the field of all that is in no other."""

    fields: tuple[Field, ...]
    outside: Field
    anchors: tuple[str, ...]
    anchor_pattern: Marker | None

    @classmethod
    def load(cls, spec: Mapping[str, Any]) -> ResponseTemplate:
        """Returns the template that a specification describes. ValueError says what cannot be understood of it."""
        _check_keys("the template", spec, _TEMPLATE_KEYS)
        if spec.get("version", 1) != 1:
            raise ValueError(f"version {spec['version']} of response templates is unknown")
        fields = [_field(name, data) for name, data in _mapping("fields", spec.get("fields")).items()]
        implicit = [field for field in fields if field.open is None]
        if len(implicit) > 1 or any(field.kind is not Kind.TEXT for field in implicit):
            raise ValueError("only one field may be without a marker that opens it, and only the content")
        anchors, pattern = _anchors(spec)
        return cls(
            fields=tuple(sorted((field for field in fields if field.open), key=lambda field: field.name)),
            outside=implicit[0]
            if implicit
            else Field("content", Kind.TEXT, close=_marker("the template", spec, "noise")),
            anchors=anchors,
            anchor_pattern=pattern,
        )

    def answer_start(self, prompt: str) -> int | None:
        """Returns where in a prompt the answer begins, None when no anchor is in it."""
        if self.anchor_pattern is not None:
            return find_last(self.anchor_pattern, prompt)
        ends = [at + len(anchor) for anchor in self.anchors if (at := prompt.rfind(anchor)) >= 0]
        return max(ends, default=None)


_KINDS = {
    "content": Kind.TEXT,
    "thinking": Kind.REASONING,
    "reasoning": Kind.REASONING,
    "reasoning_content": Kind.REASONING,
    "tool_calls": Kind.CALLS,
}
_TEMPLATE_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern", "noise_pattern"}
_FIELD_KEYS = {
    *(
        "open",
        "open_pattern",
        "close",
        "close_pattern",
        "content",
        "content_args",
        "transform",
        "transform_each",
    ),
    "is_strict",
    "join",
    # How often a field may come, and whether it must: this reader tells of what comes.
    "repeats",
    "optional",
}
_TEXT_PARSER = {"name": "text"}
_JSON_PARSER = {"name": "json", "args": {"allow_non_json": True}}
_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")
_VALUE_GROUP = re.compile(r"\(\?P?<value>(?:\.\*\?|\[\^<\]\*\??)\)")


def _field(name: str, data: Any) -> Field:
    scope = f"field {name!r}"
    data = _mapping(scope, data)
    _check_keys(scope, data, _FIELD_KEYS)
    kind = _KINDS.get(name)
    if kind is None:
        raise ValueError(f"{scope} is none that an answer can hold: {', '.join(_KINDS)}")
    opening = _marker(scope, data, "open")
    closing = _marker(scope, data, "close")
    arguments = _mapping(f"{scope}: content_args", data.get("content_args", {}))
    content = data.get("content", "text")
    if kind is Kind.CALLS:
        return Field(
            name, kind, opening, closing, calls=_calls(scope, data, content, arguments, opening, closing)
        )
    if content != "text" or "transform" in data:
        raise ValueError(f"{scope} is text as it stands, not {content!r} or transformed")
    _check_keys(f"{scope}: content_args", arguments, {"strip"})
    is_stripped, join = bool(arguments.get("strip", True)), str(data.get("join") or "")
    return Field(name, kind, opening, closing, is_stripped=is_stripped, join=join)


def _calls(
    scope: str,
    data: Mapping[str, Any],
    content: str,
    arguments: Mapping[str, Any],
    opening: Marker | None,
    closing: Marker | None,
) -> CallShape:
    if opening is None:
        raise ValueError(f"{scope} needs a marker that opens it")
    is_list = data.get("transform_each", False) or content == "python"
    if content == "python":
        _check_keys(f"{scope}: content_args", arguments, set())
        return JsonShape(Source(), dialect=PYTHON, is_list=True, is_strict=bool(data.get("is_strict", False)))
    sources = _sources(scope, data.get("transform"), opening, is_list=is_list)
    name, id = sources["name"], sources.get("id")
    if content == "json":
        _check_keys(f"{scope}: content_args", arguments, {"unquoted_keys", "string_delims"})
        delimiters = tuple((str(begin), str(end)) for begin, end in arguments.get("string_delims", []))
        dialect = Dialect(delimiters, has_bare_keys=bool(arguments.get("unquoted_keys", False)))
        return JsonShape(
            name=name,
            arguments=sources["arguments"].path,
            id=id,
            dialect=JSON if dialect == JSON else dialect,
            is_list=is_list,
            is_strict=bool(data.get("is_strict", False)),
        )
    if content == "xml-inline" and name.capture and not is_list:
        return _tagged(scope, arguments, closing, name, id)
    raise ValueError(f"{scope}: calls as {content!r} are not understood")


def _tagged(
    scope: str, arguments: Mapping[str, Any], closing: Marker | None, name: Source, id: Source | None
) -> TaggedShape:
    _check_keys(f"{scope}: content_args", arguments, {"tag_pattern", "value_parser"})
    pattern = arguments.get("tag_pattern")
    halves = _VALUE_GROUP.split(pattern) if isinstance(pattern, str) else []
    if len(halves) != 2 or not halves[1]:
        raise ValueError(f"{scope}: a tag_pattern has a (?P<value>.*?), and something behind it")
    tag = Marker.pattern(halves[0])
    if "key" not in tag.groups:
        raise ValueError(f"{scope}: a tag_pattern has a (?P<key>...) before its value")
    parser = arguments.get("value_parser", _TEXT_PARSER)
    if parser not in (_TEXT_PARSER, _JSON_PARSER):
        raise ValueError(f"{scope}: value_parser {parser!r} is not understood")
    return TaggedShape(
        name=name,
        id=id,
        between=Watch.of([tag, *([closing] if closing else [])]),
        behind_value=Watch.of([Marker.pattern(halves[1])]),
        is_json=parser == _JSON_PARSER,
    )


def _sources(scope: str, transform: Any, opening: Marker, *, is_list: bool) -> dict[str, Source]:
    """Returns where the name, the arguments and the id of a call come from."""
    call = _mapping(f"{scope}: transform", transform)
    function = call.get("function", call)
    parts = {"id": call["id"]} if "id" in call else {}
    if isinstance(function, str):
        whole = _source(scope, function, opening, is_list=is_list)
        return {
            "name": Source(path=(*whole.path, "name")),
            "arguments": Source(path=(*whole.path, "arguments")),
        } | {name: _source(scope, value, opening, is_list=is_list) for name, value in parts.items()}
    parts |= {
        name: value for name, value in _mapping(f"{scope}: transform", function).items() if name != "type"
    }
    if not {"name", "arguments"} <= set(parts) <= {"name", "arguments", "id"}:
        raise ValueError(f"{scope}: a call has a name, arguments, and perhaps an id")
    sources = {name: _source(scope, value, opening, is_list=is_list) for name, value in parts.items()}
    if sources["arguments"].capture:
        raise ValueError(f"{scope}: the arguments of a call are its content")
    return sources


def _source(scope: str, placeholder: Any, opening: Marker, *, is_list: bool) -> Source:
    match = _PLACEHOLDER.fullmatch(placeholder) if isinstance(placeholder, str) else None
    if match is None:
        raise ValueError(f"{scope}: {placeholder!r} is no placeholder such as {{content}}")
    root, *keys = match[1].split(".")
    if root == "content" and not is_list:
        return Source(path=tuple(keys))
    if root in opening.groups and not keys:
        return Source(capture=root)
    if is_list:
        return Source(path=(root, *keys))
    raise ValueError(f"{scope}: {placeholder!r} is not captured by the marker that opens it")


def _anchors(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], Marker | None]:
    if "start_anchor_pattern" in spec and "start_anchor" not in spec:
        return (), Marker.pattern(str(spec["start_anchor_pattern"]))
    return _literals("the template", "start_anchor", spec.get("start_anchor")), None


def _marker(scope: str, data: Mapping[str, Any], key: str) -> Marker | None:
    pattern = data.get(f"{key}_pattern")
    if key in data and pattern is not None:
        raise ValueError(f"{scope} has both {key} and {key}_pattern")
    if pattern is not None:
        return Marker.pattern(str(pattern))
    return Marker.literals(_literals(scope, key, data[key])) if key in data else None


def _literals(scope: str, key: str, value: Any) -> tuple[str, ...]:
    texts: Sequence[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{scope}: {key} is a text or a list of texts, none empty, not {json.dumps(value)}")
    return tuple(texts)


def _mapping(scope: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{scope} must be an object")  # noqa: TRY004  What is wrong is a value of the file.
    return value


def _check_keys(scope: str, data: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{scope} has unknown keys: {', '.join(unknown)}")
