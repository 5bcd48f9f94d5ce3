"""Tokens' bytes become text that may be shown, whatever the split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferwire_server.engine.detokenizer import TextStream


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    """The pieces of `data` when it is cut at `places`."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def read(pieces: list[bytes], *stops: str, include_stop: bool = False) -> tuple[str, str | None]:
    """The whole text, and the stop that ended it."""
    stream = TextStream(stops, include_stop=include_stop)
    text = ""
    for piece in pieces:
        text += stream.push(piece)
        if stream.stop is not None:
            return text, stream.stop
    return text + stream.finish(), stream.stop


def expected(text: str, *stops: str, include_stop: bool = False) -> tuple[str, str | None]:
    """The rule, written plainly: the stop that is complete first ends the text, the longest of those."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text.endswith(stop, 0, end)]
        if ended:
            stop = max(ended, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


few_letters = st.text("ab€", max_size=12)
some_stops = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=5).map(tuple)
places = st.lists(st.integers(0, 60), max_size=12)


@pytest.mark.parametrize("char", ["a", "\0", "é", "ÿ", "€", "\uffff", "😀", "\U0010ffff"])
def test_a_character_comes_whole(char: str) -> None:
    """The bytes of a character are held back until the last of them, at every split."""
    data = char.encode()
    for size in range(len(data) + 1):
        stream = TextStream()
        first, second = stream.push(data[:size]), stream.push(data[size:])
        assert ("", char) == (first, second) if size < len(data) else (char, "") == (first, second)
        assert "" == stream.finish()


def test_every_character_survives_single_bytes() -> None:
    """No character is lost when each byte is a token of its own."""
    chars = [chr(code) for code in range(0, 0x110000, 97) if not 0xD800 <= code < 0xE000]
    stream = TextStream()
    pushed = [stream.push(bytes([byte])) for byte in "".join(chars).encode()]
    assert "".join(chars) == "".join(pushed) + stream.finish()


@given(st.binary(max_size=24), places)
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, places: list[int]) -> None:
    """A byte stream reads as its joined bytes would, U+FFFD for what can never become a character."""
    assert (data.decode(errors="replace"), None) == read(cuts(data, places))


@given(
    st.lists(
        st.sampled_from(
            [b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xe2", b"\x82", b"\xac", b"\xed\xa0", b"a", b"\xff"]
        )
    ),
)
def test_broken_characters_read_the_same_token_by_token(pieces: list[bytes]) -> None:
    """Halves of characters in any order are replaced exactly as in the joined bytes."""
    assert (b"".join(pieces).decode(errors="replace"), None) == read(pieces)


def test_half_a_character_at_the_end_is_replaced() -> None:
    """What is held back when the answer ends is told by `finish`, once."""
    stream = TextStream()
    assert "a" == stream.push(b"a\xe2\x82")
    assert "\ufffd" == stream.finish()


@given(few_letters, some_stops, places, st.booleans())
def test_the_split_does_not_matter(
    text: str, stops: tuple[str, ...], places: list[int], include: bool
) -> None:
    """Text and stop are the same however the bytes were split, for several stops that overlap."""
    assert expected(text, *stops, include_stop=include) == read(
        cuts(text.encode(), places), *stops, include_stop=include
    )


@given(few_letters, some_stops, places)
def test_what_is_shown_is_never_taken_back(text: str, stops: tuple[str, ...], places: list[int]) -> None:
    """At every moment what was shown is the beginning of the text, and never more than may be shown."""
    stream = TextStream(stops)
    shown = ""
    for piece in cuts(text.encode(), places):
        if stream.stop is not None:
            break
        shown += stream.push(piece)
        assert text.startswith(shown)
    if stream.stop is None:
        shown += stream.finish()
    assert expected(text, *stops)[0] == shown


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stop"),
    [
        ("one END two", ("END",), "one ", "END"),
        ("END", ("END",), "", "END"),
        ("one EN", ("END",), "one EN", None),
        ("one EN two", ("END",), "one EN two", None),
        ("aab", ("ab",), "a", "ab"),
        ("ENEND", ("END",), "EN", "END"),
        ("abcd", ("bc", "abcd"), "a", "bc"),
        ("abc", ("c", "bc", "abc"), "", "abc"),
        ("abab", ("abab", "ba"), "a", "ba"),
        ("é€😀!", ("€😀",), "é", "€😀"),
        ("one\n\ntwo", ("\n\n", "\n"), "one", "\n"),
    ],
)
def test_where_a_stop_ends_the_text(text: str, stops: tuple[str, ...], shown: str, stop: str | None) -> None:
    """The stop that is complete first wins, the longest of those; half a stop is text."""
    data = text.encode()
    assert (shown, stop) == read([data], *stops)
    assert (shown, stop) == read([bytes([byte]) for byte in data], *stops)
    assert (shown + (stop or ""), stop) == read([data], *stops, include_stop=True)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    """Text flows: as soon as a tail cannot become a stop it is shown."""
    stream = TextStream(["\n\nUser:"])
    assert ["a", "", "", "\n\nx", "b", ""] == [
        stream.push(data) for data in (b"a", b"\n", b"\n", b"x", b"b", b"\n")
    ]
    assert "\n" == stream.finish()


def test_the_last_bytes_may_complete_a_stop() -> None:
    """U+FFFD is text like any other, also when `finish` makes it."""
    stream = TextStream(["\ufffd"])
    assert "a" == stream.push(b"a\xe2")
    assert "" == stream.finish()
    assert "\ufffd" == stream.stop


def test_nothing_follows_a_stop() -> None:
    """Pushing after the stop is an error of the caller."""
    stream = TextStream(["b"])
    assert "a" == stream.push(b"abc")
    with pytest.raises(ValueError, match="already ended"):
        stream.push(b"d")


def test_the_state_is_shown() -> None:
    """The representation tells what is held, and the stop."""
    stream = TextStream(["bc"])
    stream.push(b"ab")
    assert "<TextStream [held 'b' | stop None]>" == repr(stream)
    stream.push(b"c")
    assert "<TextStream [held '' | stop 'bc']>" == repr(stream)
