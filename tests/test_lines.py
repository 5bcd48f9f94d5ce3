"""Lines and server-sent events from bytes: the same at any split, in any style of line end, and never more than a bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferwire_server import errors
from inferwire_server.backends.lines import EventReader, LineReader, ServerSentEvent


def split(data: bytes, places: list[int]) -> list[bytes]:
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(cuts)]


@given(
    lines=st.lists(st.binary(max_size=20).filter(lambda line: not set(line) & set(b"\r\n"))),
    ends=st.lists(st.sampled_from([b"\r\n", b"\n", b"\r"]), min_size=1),
    rest=st.binary(max_size=5).filter(lambda line: not set(line) & set(b"\r\n")),
    places=st.lists(st.integers(0, 1000)),
)
def test_any_split_gives_the_same_lines(lines, ends, rest, places):
    """CRLF, LF and CR end a line, also when they are mixed and cut in two; what has no end yet is no line."""
    data = b"".join(line + _end(lines, ends, index) for index, line in enumerate(lines)) + rest
    reader = LineReader()
    assert lines == [line for part in split(data, places) for line in reader.feed(part)]
    assert rest == reader.close()


def _end(lines: list[bytes], ends: list[bytes], index: int) -> bytes:
    end = ends[index % len(ends)]
    # A CR before an empty line that ends with LF would be one CRLF: such a text has other lines than were meant.
    follows = index + 1 < len(lines) and not lines[index + 1] and ends[(index + 1) % len(ends)] == b"\n"
    return b"\r\n" if end == b"\r" and follows else end


def test_a_line_beyond_the_bound_is_refused_before_it_is_held():
    """The bound holds for a line that comes whole, and for one that comes byte by byte."""
    with pytest.raises(errors.UpstreamProtocolError):
        LineReader(10).feed(b"x" * 11 + b"\n")
    reader = LineReader(10)
    assert [] == [line for _ in range(10) for line in reader.feed(b"x")]
    with pytest.raises(errors.UpstreamProtocolError):
        reader.feed(b"x")


STREAM = (
    b"\xef\xbb\xbf: a comment\n"
    b"data: first\n\n"
    b"event: ping\r\ndata:second\r\ndata:  line\r\n\r\n"
    b"id: 7\rretry: 10\rdata\r\r"
    b": keep-alive\n\n"
    b"event: nothing\n\n"
    b'unknown: field\ndata: {"a": 1}\n\n'
    b"data: unfinished\n"
)
EVENTS = [
    ServerSentEvent(b"first"),
    ServerSentEvent(b"second\n line", "ping"),
    ServerSentEvent(b'{"a": 1}'),
]


@given(places=st.lists(st.integers(0, 1000)))
def test_any_split_gives_the_same_events(places):
    """Byte order mark, comments, all three line ends, several data lines, unknown fields; an event without its blank line is none."""
    reader = EventReader()
    events = [event for part in split(STREAM, places) for event in reader.feed(part)]
    assert EVENTS == [event for event in events if event.data]
    assert [] == reader.close()


def test_data_without_a_colon_is_an_event_with_empty_data():
    """As the format says: the field's name alone means an empty value."""
    assert [ServerSentEvent(b"")] == EventReader().feed(b"data\n\n")


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_of_bare_json_is_told_apart(end):
    """Some servers end a broken stream with an error that is no event; it must not vanish as an unknown field."""
    reader = EventReader()
    events = reader.feed(b'data: a\n\n{"error": {"message": "boom"}}' + end) + reader.close()
    assert [
        ServerSentEvent(b"a"),
        ServerSentEvent(b'{"error": {"message": "boom"}}', is_stray=True),
    ] == events


def test_an_event_beyond_the_bound_is_refused():
    """Also when it grows line by line."""
    reader = EventReader(100)
    with pytest.raises(errors.UpstreamProtocolError):
        reader.feed(b"data: 1234567890\n" * 20)


def test_a_large_event_that_comes_byte_by_byte_costs_no_more_than_its_size():
    """Nothing held is read again for every piece: half a megabyte in pieces of one byte is done in a moment."""
    reader = EventReader()
    data = b"data: " + b"x" * 500_000 + b"\n\n"
    events = [event for index in range(len(data)) for event in reader.feed(data[index : index + 1])]
    assert [500_000] == [len(event.data) for event in events]
