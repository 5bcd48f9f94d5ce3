"""Bytes into lines and server-sent events, at any split. Sans-IO, and bounded: what is held never exceeds one event.

Source of the event stream format: WHATWG HTML, "Server-sent events", section 9.2.6 (parsing an event stream).
"""

from __future__ import annotations

import dataclasses

from inferwire_server import errors

MAX_EVENT_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class LineReader:
    """Cuts a byte stream into lines that end with CRLF, LF or CR. Raises errors.UpstreamProtocolError for a longer one."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._skips_lf = False

    def __repr__(self) -> str:
        return f"<LineReader [{len(self._held)} bytes held]>"

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the lines that `data` completes, without their ends."""
        if self._skips_lf and data:
            # The CR that ended the last line was the first half of a CRLF.
            self._skips_lf = False
            data = data.removeprefix(b"\n")
        if b"\n" not in data and b"\r" not in data:
            self._hold(data)
            return []
        lines = data.splitlines()
        rest = b"" if data[-1] in b"\r\n" else lines.pop()
        self._skips_lf = data.endswith(b"\r")
        if self._held:
            self._hold(lines[0])
            lines[0] = bytes(self._held)
            self._held.clear()
        for line in lines:
            self._check(len(line))
        self._hold(rest)
        return lines

    def close(self) -> bytes:
        """Returns the line that has no end, at the end of the stream."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _hold(self, data: bytes) -> None:
        self._held += data
        self._check(len(self._held))

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise errors.UpstreamProtocolError(
                "the provider's answer breaks its own format",
                detail=f"a line of more than {self._max_bytes} bytes",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """An event. `is_stray`: no event but a line of bare JSON, as some servers end a broken stream with."""

    data: bytes
    name: str = ""
    is_stray: bool = False


class EventReader:
    """Cuts a byte stream into server-sent events. Ids and retry times are of no use here and are skipped."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lines = LineReader(max_bytes)
        self._data: list[bytes] = []
        self._num_bytes = 0
        self._name = ""
        self._is_first = True

    def __repr__(self) -> str:
        return f"<EventReader [{self._num_bytes} bytes of an event | {self._lines!r}]>"

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Returns the events that `data` completes. Raises errors.UpstreamProtocolError for one that is too large."""
        events: list[ServerSentEvent] = []
        for line in self._lines.feed(data):
            self._take(line, events)
        return events

    def close(self) -> list[ServerSentEvent]:
        """Returns what a stream without its last line end still tells: bare JSON. An unfinished event is none."""
        events: list[ServerSentEvent] = []
        if rest := self._lines.close():
            self._take(rest, events)
        return [event for event in events if event.is_stray]

    def _take(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(ServerSentEvent(data, self._name))
            self._data, self._num_bytes, self._name = [], 0, ""
            return
        if line[0] == 0x3A:  # a comment
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value[1:] if value[:1] == b" " else value
            self._num_bytes += len(value) + 1
            if self._num_bytes > self._max_bytes:
                raise errors.UpstreamProtocolError(
                    "the provider's answer breaks its own format",
                    detail=f"an event of more than {self._max_bytes} bytes",
                )
            self._data.append(value)
        elif field == b"event":
            self._name = value.removeprefix(b" ").decode(errors="replace")
        elif line[0] == 0x7B:  # {
            events.append(ServerSentEvent(line, is_stray=True))
