"""Divides the text of a model into what it says, what it thinks and which tools it calls, while the text is written.

Pure: no thread, no clock, no llama. The outcome does not depend on how the text was split, but for where one delta ends and the
next begins. Nothing is lost: what cannot be read as a call is text, in its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .calls import CallArguments, CallBegin, CallEnd, CallEvent, CallReader, CallWriter
from .markers import MAX_MARKER, Found, Marker, Search, Watch, find_last
from .response_template import Field, Kind, ResponseTemplate

__all__ = ["AnswerParser", "Event", "Text", "Reasoning", "CallBegin", "CallArguments", "CallEnd"]


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer's text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the model's thoughts; never empty."""

    text: str


Event = Text | Reasoning | CallEvent


class AnswerParser:
    """Reads one answer.

    `prompt` is what the model continues: its template may have opened a thought already, or begun a call, which then belongs to
    this answer. `tools` are the names of the tools on offer with the JSON Schemas of their arguments; None: nothing may be called,
    so what looks like a call is text.

    White space next to a marker belongs to the marker. Besides, only what may yet become a marker is held back.
    """

    def __init__(
        self, template: ResponseTemplate, *, prompt: str = "", tools: Mapping[str, Any] | None = None
    ) -> None:
        self._template = template
        self._tools = tools or {}
        self._fields = [
            field for field in template.fields if tools is not None or field.kind is not Kind.CALLS
        ]
        self._watches: dict[tuple[Field, Marker | None], Watch] = {}
        self._events: list[Event] = []
        self._writer = CallWriter(self._events.append)
        # Where the text is: in a field, or with a reader of calls. `_called` are the calls whose closing marker may still come.
        self._field = template.outside
        self._reader: CallReader | None = None
        self._called: Field | None = None
        # The region's text so far, its marker included.
        self._call_text: list[str] = []
        # What becomes text when the reader finds no call: its marker, with the white space before it.
        self._opening = ""
        self._num_called = 0
        # White space of the text, or of a marker that follows.
        self._space: list[str] = []
        # Explicit fields that have had text, and what stands between that and more of it.
        self._told: set[Field] = set()
        self._joint = ""
        # Since the last marker there was nothing but white space.
        self._is_fresh = False
        self._has_text = False
        self._search = self._new_search()
        if prompt:
            self._continue(prompt)

    def __repr__(self) -> str:
        where = self._reader or f"{self._field.name} {self._search}"
        return f"<AnswerParser [{where} | calls {self._writer.num_calls}]>"

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is part of a thought."""
        return self._reader is None and self._field.kind is Kind.REASONING

    @property
    def is_calling(self) -> bool:
        """Whether what comes next belongs to a call, or to what may become one."""
        return self._reader is not None

    @property
    def call_text(self) -> str:
        """What was written since the marker that began the calls where the text is, that marker included."""
        return "".join(self._call_text)

    def feed(self, text: str) -> list[Event]:
        """Returns what more of the text makes certain."""
        self._read(text)
        return self._take()

    def finish(self) -> list[Event]:
        """Returns what is left: the text has ended, by itself or cut short."""
        while self._finish():
            pass
        if not self._is_fresh:
            self._tell("".join(self._space))
        self._space.clear()
        return self._take()

    def _continue(self, prompt: str) -> None:
        """Reads what the prompt has written of the answer already."""
        start = self._template.answer_start(prompt)
        if start is not None:
            self._read(prompt[start:])
        else:
            # Whose turn it is cannot be seen; only a region that is opened at the very end is sure to be the answer's.
            tail = prompt[-MAX_MARKER:]
            for field in self._fields:
                end = find_last(field.open, tail) if field.open and field.calls is None else None
                if end is not None and not tail[end:].strip():
                    self._enter(field)
        written = self._take()
        self._space.clear()
        self._writer.num_calls = self._num_called = 0
        if self._reader is None:
            self._search = self._new_search()
            return
        self._opening = ""
        self._reader.forget()
        if self._writer.is_open:
            self._writer.num_calls = 1
            for event in written:
                if isinstance(event, CallBegin):
                    self._events.clear()
                if isinstance(event, CallEvent):
                    self._events.append(replace(event, index=0))

    def _read(self, text: str) -> None:
        # What was looked at beyond a marker is read again, before the rest.
        unread = [(text, 0)]
        while unread:
            text, at = unread.pop()
            if at == len(text):
                continue
            rest = ""
            if self._reader is not None:
                begin, at = at, self._reader.read(text, at)
                self._call_text.append(text[begin:at])
                if self._reader.is_broken or self._reader.is_done:
                    rest = self._leave(self._reader)
            else:
                at = self._search.push(text, at)
                rest = self._advance()
            unread.append((text, at))
            unread.append((rest, 0))

    def _finish(self) -> bool:
        """Ends the region where the text is. Returns whether there may be more to end."""
        if self._reader is not None:
            self._reader.finish()
            self._read(self._leave(self._reader))
            return True
        self._search.finish()
        found = self._search.found
        self._read(self._advance())
        return found is not None and bool(found.text or found.rest)

    def _advance(self) -> str:
        """Takes what the search has decided. Returns what is to be read before the rest."""
        search = self._search
        self._say(search.take())
        if self._called and not self._is_fresh:
            # What closes a call stands right behind it; after other text it is text, too.
            self._called = None
            self._search = self._new_search()
            return search.abandon()
        found = search.found
        if found is None:
            return ""
        if self._field is not self._template.outside:
            self._enter(self._template.outside)
        elif found.index < len(self._fields):
            self._open(self._fields[found.index], found)
        elif self._called and found.index == len(self._fields):
            self._called = None
            self._enter(self._template.outside)
        else:
            # A marker that means nothing here: the text around it goes on.
            self._search = self._new_search()
        return found.rest

    def _enter(self, field: Field) -> None:
        self._space.clear()
        self._is_fresh = True
        self._field = field
        self._joint = field.join if field in self._told else ""
        self._search = self._new_search()

    def _open(self, field: Field, found: Found) -> None:
        self._called = None
        if field.calls is None:
            self._enter(field)
            return
        self._opening = "".join(self._space) + found.text
        self._call_text = [found.text]
        self._space.clear()
        self._reader = field.calls.reader(found.captures, self._writer, self._tools)
        if self._reader is None:
            self._spill(self._opening)
        else:
            self._called = field if field.close else None
            self._num_called = self._writer.num_calls

    def _leave(self, reader: CallReader) -> str:
        """Leaves a region of calls. Returns what follows it."""
        self._reader = None
        if self._writer.is_open:
            self._writer.end(is_complete=False)
        has_called = self._writer.num_calls > self._num_called
        unsaid = "" if reader.is_done and has_called else reader.unsaid()
        if not has_called:
            self._called = None
            unsaid = self._opening + unsaid
        if unsaid.strip():
            self._spill(unsaid)
        else:
            self._enter(self._template.outside)
        return reader.rest()

    def _spill(self, text: str) -> None:
        """Tells as text what is no call."""
        self._is_fresh = False
        self._say(text)
        self._search = self._new_search()

    def _new_search(self) -> Search:
        """Returns a search for what can change the region from here on."""
        is_outside = self._field is self._template.outside
        called = self._called.close if self._called else None
        markers = [field.open for field in self._fields] + [called] if is_outside else []
        watch = self._watches.get((self._field, called))
        if watch is None:
            watch = Watch.of([marker for marker in [*markers, self._field.close] if marker])
            self._watches[self._field, called] = watch
        return Search(watch, at_start=is_outside and not self._has_text)

    def _say(self, text: str) -> None:
        """Tells text of the field, but for white space that may belong to a marker."""
        if not self._field.is_stripped:
            self._is_fresh = self._is_fresh and not text.strip()
            self._tell(text)
            return
        body = text.lstrip() if self._is_fresh else text
        said = body.rstrip()
        if said:
            self._is_fresh = False
            self._tell("".join(self._space) + said)
            self._space.clear()
        if len(body) > len(said) and not self._is_fresh:
            self._space.append(body[len(said) :])

    def _tell(self, text: str) -> None:
        if not text:
            return
        text, self._joint = self._joint + text, ""
        if self._field is not self._template.outside:
            self._told.add(self._field)
        if self._field.kind is Kind.REASONING:
            self._events.append(Reasoning(text))
        else:
            self._has_text = True
            self._events.append(Text(text))

    def _take(self) -> list[Event]:
        """Returns the events that were not taken yet, those that follow one another as one."""
        taken: list[Event] = []
        for _, run in itertools.groupby(self._events, key=type):
            events = list(run)
            first = events[0]
            if isinstance(first, CallBegin | CallEnd):
                taken += events
            else:
                # Arguments in a row belong to one call: between two calls stand an end and a beginning.
                texts = [event.text for event in events if not isinstance(event, CallBegin | CallEnd)]
                taken.append(replace(first, text="".join(texts)))
        self._events.clear()
        return taken
