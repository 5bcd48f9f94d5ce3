"""Reads the tool calls of one region of an answer, and says what of it was no call.

A call is told as soon as it is certain to be one: its name is known and its arguments have begun. From then on it is a call,
whatever follows; what was read before that can still become text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .markers import Search, Watch
from .values import JSON, Dialect, ValueReader, cast, quoted, resolved, types_of, whole, without_surrogates

# Names of the tools, each with the JSON Schema of its arguments.
Tools = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call begins. Its id is the model's own, None when the model gave none."""

    index: int
    name: str
    id: str | None


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments. All pieces of a complete call are one JSON object, those of another the beginning of one."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call ends. It is not complete when the answer broke off in its arguments, or went on there with something else."""

    index: int
    is_complete: bool


CallEvent = CallBegin | CallArguments | CallEnd


class CallWriter:
    """Numbers the calls of an answer and tells their events."""

    def __init__(self, tell: Callable[[CallEvent], None]) -> None:
        self._tell = tell
        self.num_calls = 0
        self.is_open = False

    def __repr__(self) -> str:
        return f"<CallWriter [calls {self.num_calls} | {'open' if self.is_open else 'closed'}]>"

    def begin(self, name: str, id: str | None) -> None:
        self.num_calls += 1
        self.is_open = True
        self._tell(CallBegin(self.num_calls - 1, name, id))

    def arguments(self, text: str) -> None:
        self._tell(CallArguments(self.num_calls - 1, text))

    def end(self, *, is_complete: bool) -> None:
        self.is_open = False
        self._tell(CallEnd(self.num_calls - 1, is_complete))


class CallReader(Protocol):
    """Reads one region. `is_done` behind the last call, `is_broken` before what is no part of a call."""

    @property
    def is_done(self) -> bool: ...

    @property
    def is_broken(self) -> bool: ...

    def read(self, text: str, at: int) -> int:
        """Reads on from text[at]. Returns where it stopped."""

    def finish(self) -> None:
        """The answer ends here; so does a call that was told."""

    def unsaid(self) -> str:
        """Returns what was read and is in no event."""

    def rest(self) -> str:
        """Returns what was looked at and belongs behind the region."""

    def forget(self) -> None:
        """Lets go of what is unsaid: it shall not become text."""


class CallShape(Protocol):
    """How calls are written within their region."""

    def reader(self, captures: Mapping[str, str], writer: CallWriter, tools: Tools) -> CallReader | None:
        """Returns a reader for a region; None when its opening marker names nothing that could be called."""


@dataclass(frozen=True)
class Source:
    """Where a part of a call stands: in a named group of the opening marker, or under these keys of the JSON value."""

    capture: str = ""
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class JsonShape:
    """Calls as JSON, or near it: one value, or a list of them. In Python's dialect, the name stands before the arguments."""

    name: Source
    arguments: tuple[str, ...] = ()
    id: Source | None = None
    dialect: Dialect = JSON
    is_list: bool = False
    # Only names of tools make a call, and no unknown keys: for formats that have no marker of their own.
    is_strict: bool = False

    def reader(self, captures: Mapping[str, str], writer: CallWriter, tools: Tools) -> CallReader | None:
        name = captures.get(self.name.capture)
        if self.name.capture and not self.accepts(name, tools):
            return None
        return _JsonReader(self, captures, writer, tools)

    def accepts(self, name: str | None, tools: Tools) -> bool:
        return bool(name) and (not self.is_strict or name in tools)

    def knows(self, key: str) -> bool:
        paths = (self.name.path, self.arguments, self.id.path if self.id else ())
        return not self.is_strict or key == "type" or any(path[:1] == (key,) for path in paths)


@dataclass(frozen=True)
class TaggedShape:
    """Calls whose arguments have a tag each: `between` finds a tag, which captures its key, or else the end of the call."""

    name: Source
    between: Watch
    behind_value: Watch
    id: Source | None = None
    # A value that reads as JSON is JSON, whatever its schema says.
    is_json: bool = False

    def reader(self, captures: Mapping[str, str], writer: CallWriter, tools: Tools) -> CallReader | None:
        return _TaggedReader(self, captures, writer, tools) if captures.get(self.name.capture) else None


@dataclass
class _Call:
    """What is known of the call that is being read."""

    name: str | None
    id: str | None
    waits_for_id: bool
    # The first character of the arguments, and their text as long as they cannot be told yet.
    form: str = ""
    waiting: list[str] = field(default_factory=list)
    is_told: bool = False
    is_over: bool = False


class _JsonReader:
    def __init__(
        self, shape: JsonShape, captures: Mapping[str, str], writer: CallWriter, tools: Tools
    ) -> None:
        self._shape = shape
        self._writer = writer
        self._tools = tools
        id = shape.id or Source()
        self._captured = _Call(captures.get(shape.name.capture), captures.get(id.capture), bool(id.path))
        self._call: _Call | None = None
        self._depth = 1 if shape.is_list else 0
        self._text: list[str] = []
        begins = "[" if shape.is_list else "{" if shape.arguments else '{"'
        self._values = ValueReader(shape.dialect, self._take, self._ended, begins=begins)

    def __repr__(self) -> str:
        return f"<JsonReader [{self._call} | {self._values}]>"

    @property
    def is_done(self) -> bool:
        return self._values.is_done

    @property
    def is_broken(self) -> bool:
        return self._values.is_broken

    def read(self, text: str, at: int) -> int:
        return self._values.read(text, at)

    def finish(self) -> None:
        if self._call is not None:
            # The id did not come any more.
            self._call.waits_for_id = False
            self._tell(self._call)
        if self._writer.is_open:
            self._writer.end(is_complete=False)
            self.forget()

    def unsaid(self) -> str:
        return "".join(self._values.unsaid)

    def rest(self) -> str:
        return ""

    def forget(self) -> None:
        self._values.unsaid.clear()

    def _take(self, piece: str) -> None:
        """Takes a piece of JSON text; where it stands says what it is of the call."""
        if len(self._values.path) < self._depth or (self._call is None and not piece.strip()):
            return
        path = tuple(self._values.path[self._depth :])
        call = self._call or self._begin_call(piece)
        if self._values.is_broken:
            return
        if path[: len(self._shape.arguments)] == self._shape.arguments:
            self._take_argument(call, piece)
        elif path and path in (self._shape.name.path, (self._shape.id or Source()).path):
            self._text.append(piece)
        elif not path and piece[0] == '"' and not self._shape.knows(json.loads(piece)):
            self._values.is_broken = True

    def _begin_call(self, piece: str) -> _Call:
        self._call = call = replace(self._captured, waiting=[])
        if self._shape.dialect.is_python:
            call.name, self._values.called = self._values.called, ""
            self._values.is_broken = not self._shape.accepts(call.name, self._tools)
        if piece != "{" and (piece != '"' or self._shape.arguments):
            self._values.is_broken = True
        return call

    def _take_argument(self, call: _Call, piece: str) -> None:
        call.form = call.form or piece[0]
        if call.is_over:
            self._values.is_broken = True
        elif call.is_told:
            self._writer.arguments(piece)
            self.forget()
        else:
            call.waiting.append(piece)
            self._tell(call)

    def _ended(self) -> None:
        """A value of the call has ended."""
        call, path = self._call, tuple(self._values.path[self._depth :])
        if call is None or len(self._values.path) < self._depth or self._values.is_broken:
            return
        if path == self._shape.arguments:
            self._end_arguments(call)
        elif path and path == self._shape.name.path:
            call.name = self._ended_text() if self._text[0][0] == '"' else None
            self._values.is_broken = not self._shape.accepts(call.name, self._tools)
        elif path and self._shape.id and path == self._shape.id.path:
            call.id = self._ended_text()
            call.waits_for_id = False
        self._tell(call)
        if not path:
            self._end_call(call)

    def _ended_text(self) -> str | None:
        """Returns the text, or the number, that has ended; None for another value."""
        text, self._text = "".join(self._text), []
        if text[0] != '"':
            return text if text[0] in "-0123456789" else None
        text = json.loads(text)
        return None if without_surrogates(text) != text else text

    def _end_arguments(self, call: _Call) -> None:
        call.is_over = True
        if call.is_told:
            self._writer.end(is_complete=True)
            return
        if call.form == '"':
            # JSON within a string.
            text = without_surrogates(json.loads("".join(call.waiting))).strip() or "{}"
            call.waiting = [whole(text) or ""]
        elif call.waiting == ["null"]:
            call.waiting = ["{}"]
        call.form = call.waiting[0][:1]
        self._values.is_broken = call.form != "{"

    def _end_call(self, call: _Call) -> None:
        self._call = None
        if not call.is_told:
            call.waits_for_id = False
            if not call.form:
                # A call without arguments may leave them out.
                call.form, call.waiting, call.is_over = "{", ["{}"], True
            self._tell(call)
        self._values.is_broken = self._values.is_broken or not call.is_told
        if call.is_told:
            self.forget()

    def _tell(self, call: _Call) -> None:
        if call.is_told or call.form != "{" or not call.name or call.waits_for_id or self._values.is_broken:
            return
        call.is_told = True
        self._writer.begin(call.name, call.id or None)
        self._writer.arguments("".join(call.waiting))
        self.forget()
        if call.is_over:
            self._writer.end(is_complete=True)


class _TaggedReader:
    """Between two values it looks for a tag or the end of the call, in a value for what stands behind it."""

    def __init__(
        self, shape: TaggedShape, captures: Mapping[str, str], writer: CallWriter, tools: Tools
    ) -> None:
        self._shape = shape
        self._writer = writer
        self._name = captures[shape.name.capture]
        self._id = captures.get((shape.id or Source()).capture)
        self._schema = tools.get(self._name)
        # The argument that is being read: its schema, the types that this allows, and how its value is taken.
        self._property: Any = None
        self._types: list[str] = []
        self._form = ""
        self._value: list[str] = []
        self._read: list[str] = []
        self._rest = ""
        self._is_told = False
        self._search = Search(shape.between, skips_space=True)
        self.is_done = False
        self.is_broken = False

    def __repr__(self) -> str:
        return f"<TaggedReader [{self._name} | {self._form or 'between values'} | {self._search}]>"

    def read(self, text: str, at: int) -> int:
        while at < len(text) and not self.is_done and not self.is_broken:
            begin, at = at, self._search.push(text, at)
            self._advance(text[begin:at])
        return at

    def finish(self) -> None:
        while not self.is_done and not self.is_broken:
            # What stands behind a value, or behind the call, may be the end of the answer.
            self._search.finish()
            if self._search.found is None:
                break
            self._advance("")
        if not self.is_done and not self._form and len(self._shape.between.markers) == 1:
            self._end_call()
        if self._value and self._form != "json" and set(self._types) <= {"string", "null"}:
            # It would have been a string, most likely.
            self._writer.arguments(quoted("".join(self._value))[:-1])
        if self._writer.is_open:
            self._writer.end(is_complete=False)
            self.forget()

    def unsaid(self) -> str:
        return "".join(self._read)

    def rest(self) -> str:
        return self._rest

    def forget(self) -> None:
        self._read.clear()

    def _advance(self, read: str) -> None:
        found = self._search.found
        if self._form:
            self._take(self._search.take())
            if found is None:
                return
            self._end_value()
        else:
            self._read.append(read)
            if self._search.is_stray:
                self._break()
                return
            if found is not None and found.index == 0:
                self._begin_value(found.captures)
            elif found is not None:
                self._end_call()
        if found is None:
            return
        if self.is_done:
            self._rest = found.rest
            return
        # What was looked at beyond the marker is read again, now that it is clear what it is.
        self._search = (
            Search(self._shape.behind_value) if self._form else Search(self._shape.between, skips_space=True)
        )
        at = self.read(found.rest, 0)
        self._rest += found.rest[at:]

    def _break(self) -> None:
        self.is_broken = True
        self._rest = self._search.abandon().lstrip()
        read = "".join(self._read)
        self._read = [read[: len(read) - len(self._rest)]]

    def _begin_call(self) -> None:
        self._is_told = True
        self._writer.begin(self._name, self._id)

    def _begin_value(self, captures: Mapping[str, str]) -> None:
        if self._is_told:
            self._writer.arguments(", ")
        else:
            self._begin_call()
            self._writer.arguments("{")
        self.forget()
        key = captures["key"]
        schema = resolved(self._schema, self._schema)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        self._property = properties.get(key) if isinstance(properties, Mapping) else None
        self._types = types_of(self._property, self._schema)
        if self._shape.is_json or ("json" in captures and self._types != ["string"]):
            self._form = "json"
        elif self._types == ["string"] or ("text" in captures and not self._types):
            self._form = "text"
        else:
            self._form = "typed"
        self._writer.arguments(f"{quoted(key)}: " + ('"' if self._form == "text" else ""))

    def _take(self, text: str) -> None:
        if self._form != "text":
            self._value.append(text)
        elif text:
            self._writer.arguments(quoted(text)[1:-1])

    def _end_value(self) -> None:
        text = "".join(self._value)
        self._value.clear()
        value = whole(text) if self._form == "json" else None
        if self._form == "text":
            self._writer.arguments('"')
        elif value is None:
            self._writer.arguments(cast(text, self._property, self._schema))
        else:
            # What reads as a string may still be of another type.
            self._writer.arguments(
                cast(json.loads(value), self._property, self._schema) if value[0] == '"' else value
            )
        self._form = ""

    def _end_call(self) -> None:
        if not self._is_told:
            self._begin_call()
            self._writer.arguments("{")
        self._writer.arguments("}")
        self._writer.end(is_complete=True)
        self.is_done = True
