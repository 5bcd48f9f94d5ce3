"""The formats of the field, a file each in `families/`: how a model's answers are read, and how its calls are written.

A family is named by the operator or found in a model's chat template. A file has these keys:

    about              which models write so, and what is odd about it
    template           what tells its chat templates: all fragments of one `has` are in the source, none of its `lacks`
    is_fallback        it is found only where no other family is
    tokens             its markers that may be control tokens of a vocabulary
    response_template  how answers are read (response_template.py)
    thought            what is written around a thought: `begin`, `end`
    calls              how calls are written (CallSyntax)
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .response_template import ResponseTemplate

_FORMS = ("json", "tags", "python", "bare")


@dataclass(frozen=True)
class Thought:
    """What a model writes around a thought."""

    begin: str
    end: str


@dataclass(frozen=True)
class CallSyntax:
    """How a model writes its calls: `begin`, the calls with `separator` between them, `end`.

    `call` has the places {name}, {arguments} and {id}. Without a separator an answer holds one call.
    """

    call: str
    begin: str = ""
    separator: str | None = None
    end: str = ""
    # How the arguments are written: as JSON, as tags, as those of a call in Python, or as an object with bare keys.
    form: str = "json"
    # One of the tags, with the places {key}, {value} and {is_text}.
    argument: str = ""
    # What stands around strings, where keys are bare.
    delimiter: str = ""
    # What cannot be in a bare text.
    excludes: tuple[str, ...] = ()
    # A regular expression of what may be an id.
    id: str = ""


@dataclass(frozen=True)
class Family:
    """One format. `tokens` are its markers: where one is a control token, its text must be shown to the parser."""

    name: str
    response_template: ResponseTemplate
    tokens: frozenset[str]
    calls: CallSyntax | None
    thought: Thought | None
    # Any of these tells a chat template: all the fragments of the first list are in it, and none of the second.
    fragments: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    is_fallback: bool
    # Calls have no marker of their own: only the name of a tool makes one.
    is_strict: bool

    @property
    def call_marker(self) -> str | None:
        """What opens a call, or the first of several, and nothing else; None where nothing does."""
        begin = (self.calls.begin or self.calls.call).lstrip() if self.calls is not None else ""
        marker = max((text for text in self.tokens if begin.startswith(text)), key=len, default=None)
        is_shared = marker and self.thought is not None and self.thought.begin.lstrip().startswith(marker)
        return None if is_shared else marker

    def fits(self, template: str) -> bool:
        """Whether a chat template's source is of this family."""
        return any(
            all(fragment in template for fragment in has)
            and not any(fragment in template for fragment in lacks)
            for has, lacks in self.fragments
        )


def family(name: str) -> Family:
    """Returns a family by its name. ValueError when there is none of that name."""
    if name not in names():
        raise ValueError(f"there is no family {name!r}; there are {', '.join(names())}")
    return _load(name)


@functools.cache
def names() -> tuple[str, ...]:
    """Returns the names of all families."""
    files = (file.name for file in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in files if name.endswith(".json")))


def detect(template: str) -> str:
    """Returns the name of the family whose answers a chat template leads to: "plain" when it says nothing of its own."""
    found = [name for name in names() if _load(name).fits(template)]
    return min(found, key=lambda name: (_load(name).is_fallback, name == "plain", name))


def _folder() -> importlib.resources.abc.Traversable:
    return importlib.resources.files(__package__) / "families"


@functools.cache
def _load(name: str) -> Family:
    data: Mapping[str, Any] = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    calls = None
    if "calls" in data:
        calls = CallSyntax(**data["calls"] | {"excludes": tuple(data["calls"].get("excludes", ()))})
    if calls and calls.form not in _FORMS:
        raise ValueError(f"family {name!r} writes arguments as {calls.form!r}, not as {', '.join(_FORMS)}")
    return Family(
        name=name,
        response_template=ResponseTemplate.load(data["response_template"]),
        tokens=frozenset(data["tokens"]),
        calls=calls,
        thought=Thought(**data["thought"]) if "thought" in data else None,
        fragments=tuple((tuple(rule["has"]), tuple(rule.get("lacks", ()))) for rule in data["template"]),
        is_fallback=data.get("is_fallback", False),
        is_strict=data["response_template"]["fields"].get("tool_calls", {}).get("is_strict", False),
    )
