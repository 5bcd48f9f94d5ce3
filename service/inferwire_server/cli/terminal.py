"""What passes between a person's terminal and the contract: durations, sizes, text, JSON, and Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from inferwire import InferwireError
from inferwire.client import Stream
from inferwire.reading import E

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Seconds(click.ParamType[float]):
    """A span of time such as 90, 90s, 10m or 1h."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", value.strip())
        if match is None:
            self.fail(f"{value!r} is not a span of time such as 90s, 10m or 1h.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def given_or_piped(text: str | None, name: str) -> str:
    """Returns a text from the command line, or all of standard input where that is None or "-".

    Raises:
        click.UsageError: a terminal is standard input, so nobody pipes anything; or the text is not UTF-8.
    """
    if text is None and sys.stdin.isatty():
        raise click.UsageError(f"Give a {name}, or pipe a text in.")
    try:
        if text is None or text == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        text.encode("utf-8")
    except UnicodeError:
        raise click.UsageError("The text is not UTF-8.") from None
    return text


@contextmanager
def ctrl_c_cancels(stream: Stream[E]) -> Iterator[None]:
    """Makes Ctrl-C cancel `stream`, and raises KeyboardInterrupt when the stream has ended by it.

    Left to itself, the exception may strike while grpc holds a lock that cancelling the call would wait for.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        stream.cancel()

    previous = signal.signal(signal.SIGINT, press)
    try:
        yield
    except InferwireError:
        if not pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def visible(text: str) -> str:
    """Returns text without control characters but tab and newline: a model's words must not steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def write(text: str, *, dim: bool = False) -> None:
    """Writes a piece of an answer to stdout at once; exactly as it is when nobody looks at it."""
    if sys.stdout.isatty():
        text = click.style(visible(text), dim=True) if dim else visible(text)
    click.echo(text, nl=False)


def print_json(message: Message) -> None:
    """Prints a message as one JSON document, with the field names of the contract; a zero that is unset is shown."""
    document = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def size(num_bytes: int) -> str:
    """Returns a number of bytes for people, such as "1.5 GiB"; nothing for 0, which means "not known"."""
    if not num_bytes:
        return ""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def enum_word(name: str, prefix: str) -> str:
    """Returns an enum value's name as a word, such as "ready" for MODEL_STATE_READY."""
    return name.removeprefix(prefix).lower().replace("_", " ")
