"""`inferwire top`: the server's models and what they do, as a table that lives.

What a model is comes from WatchModels, when it changes; rates and room from Health, which is asked at an interval.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Literal, Self

import click
import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from inferwire import Client, InferwireError
from inferwire.v1.inference_pb2 import HealthResponse, ModelHealth
from inferwire.v1.models_pb2 import Model
from inferwire_server.cli.connection import Connection, connects, unreachable
from inferwire_server.cli.models import STYLES, state
from inferwire_server.cli.terminal import Seconds, size, visible

CALL_SECONDS = 3.0
MIN_INTERVAL_SECONDS = 0.1
# Two looks that are so far apart give a rate for --once.
ONCE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Look:
    """What the server said at a time (`time.monotonic`)."""

    at: float
    health: HealthResponse
    models: Sequence[Model]


@dataclasses.dataclass(frozen=True)
class Row:
    """A model and how fast it is; None where that is not known yet."""

    model: Model
    health: ModelHealth
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None


def rows(now: Look, before: Look | None) -> list[Row]:
    """Returns the models in the server's order, with the rates since the look before."""
    healths = {each.name: each for each in now.health.models}
    earlier = {each.name: each for each in before.health.models} if before else {}
    seconds = now.at - before.at if before else 0.0

    def rate(value: int, past: int | None) -> float | None:
        # A total that has shrunk began anew, with its engine.
        return (value - past) / seconds if past is not None and seconds > 0 and value >= past else None

    def row(model: Model) -> Row:
        health, past = healths.get(model.name), earlier.get(model.name)
        if health is None:  # it came after Health was asked
            return Row(model, ModelHealth(), None, None)
        return Row(
            model,
            health,
            rate(health.prompt_tokens_total, past.prompt_tokens_total if past else None),
            rate(health.completion_tokens_total, past.completion_tokens_total if past else None),
        )

    return [row(model) for model in now.models]


def screen(now: Look, before: Look | None, address: str, width: int) -> Group:
    """Returns what is shown: a line about the server, and a line for each model with as many columns as there is room for."""
    return Group(_headline(now.health, address), Text(), _table(rows(now, before), width))


def _headline(health: HealthResponse, address: str) -> Text:
    word, style = (
        ("draining", "yellow")
        if health.draining
        else ("ready", "green")
        if health.ready
        else ("not ready", "red")
    )
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(word, f"bold {style}")
    line.append(visible(f"  inferwire {health.version} at {address}, up {_span(health.uptime.seconds)}"))
    return line


def _table(found: list[Row], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("MODEL", no_wrap=True, overflow="ellipsis")
    table.add_column("STATE", no_wrap=True, overflow="ellipsis")
    # From the most telling to the least: those that do not fit are left out.
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("STREAMS", _streams),
        ("QUEUE", _queue),
        ("TOK/S", lambda row: _rate(row.completion_tokens_per_second)),
        ("PROMPT/S", lambda row: _rate(row.prompt_tokens_per_second)),
        ("MEMORY", lambda row: size(row.model.memory_bytes)),
        ("RESTARTS", lambda row: str(row.model.restarts or "")),
        ("BACKEND", lambda row: ", ".join(row.model.candidates) or row.model.backend),
    ]
    left = width - _width(["MODEL", *(row.model.name for row in found)]) - _width(["STATE", "ready"])
    shown = []
    for heading, cell in columns:
        left -= _width([heading, *(cell(row) for row in found)])
        if left < 0:
            break
        shown.append((heading, cell))
        table.add_column(heading, justify="left" if heading == "BACKEND" else "right", no_wrap=True)
    for row in found:
        table.add_row(
            Text(visible(row.model.name), "bold"),
            Text(visible(state(row.model)), STYLES.get(row.model.state, "")),
            *(Text(visible(cell(row))) for _, cell in shown),
        )
    return table


def _width(cells: list[str]) -> int:
    return max(map(len, cells)) + 2


def _streams(row: Row) -> str:
    running = row.model.streams_in_flight - row.model.queue_length
    return f"{running}/{row.health.parallel_sequences}" if row.health.parallel_sequences else str(running)


def _queue(row: Row) -> str:
    return f"{row.model.queue_length}/{row.health.queue_capacity}" if row.health.queue_capacity else ""


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _span(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def document(now: Look, before: Look | None) -> dict[str, object]:
    """Returns the same for programs, with the contract's names."""
    found = MessageToDict(
        now.health, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    shown = {row.model.name: row for row in rows(now, before)}
    # Of a model that was unloaded since Health was asked there is nothing to tell.
    found["models"] = [model for model in found["models"] if model["name"] in shown]
    for model in found["models"]:
        row = shown[model["name"]]
        model["prompt_tokens_per_second"] = row.prompt_tokens_per_second
        model["completion_tokens_per_second"] = row.completion_tokens_per_second
        model["memory_bytes"] = row.model.memory_bytes
    return found


@click.command()
@click.option("--once", is_flag=True, help="Look for a second, print once and end.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; without --once a document per line and look."
)
@click.option(
    "--interval", type=Seconds(), default=1.0, show_default="1s", help="How long between two looks."
)
@connects
def top(connection: Connection, once: bool, as_json: bool, interval: float) -> None:
    """Show the models and what they do: streams, queue, tokens per second.

    Ends by q or Ctrl-C. Without a terminal it prints once.
    """
    console = Console()
    if console.is_terminal and not once and not as_json:
        _live(connection, console, max(interval, MIN_INTERVAL_SECONDS))
        return
    with connection.client() as client, Watch(client) as watch:
        before = look(client, watch)
        while True:
            time.sleep(ONCE_SECONDS if once else max(interval, MIN_INTERVAL_SECONDS))
            now = look(client, watch)
            if as_json:
                click.echo(json.dumps(document(now, before), ensure_ascii=False))
            else:
                console.print(screen(now, before, connection.address, console.width))
            if once or not as_json:
                return
            before = now


class Watch:
    """The server's models as WatchModels tells them: now, and after every change. A thread reads it."""

    def __init__(self, client: Client, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called in the thread after every change, and at the end."""
        self._stream = client.watch_models()
        self._changed = changed
        self._models: Sequence[Model] = ()
        self._error: InferwireError | None = None
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._read, name="watch models", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Watch [{len(self._models)} models | {self._error or 'open'}]>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def models(self) -> Sequence[Model]:
        """Returns the models as they are now. Raises the InferwireError that ended the watch."""
        if not self._has_begun.wait(CALL_SECONDS):
            raise InferwireError(
                grpc.StatusCode.DEADLINE_EXCEEDED, message="the server tells nothing of its models"
            )
        if self._error is not None:
            raise self._error
        return self._models

    def close(self) -> None:
        """Ends it."""
        self._stream.cancel()
        self._thread.join()

    def _read(self) -> None:
        try:
            for snapshot in self._stream:
                self._models = snapshot.models
                self._has_begun.set()
                self._changed()
        except InferwireError as error:
            self._error = error
        self._has_begun.set()
        self._changed()


def look(client: Client, watch: Watch) -> Look:
    """Asks the server."""
    health = client.health(timeout=CALL_SECONDS)
    return Look(time.monotonic(), health, watch.models())


def _live(connection: Connection, console: Console, interval: float) -> None:
    """Looks and shows until q or Ctrl-C. A server that is gone is said, and looked for again."""
    before: Look | None = None
    now: Look | None = None
    with (
        _keys() as keys,
        Live(console=console, auto_refresh=False, screen=True) as live,
        contextlib.ExitStack() as connected,
    ):
        client: Client | None = None
        watch: Watch | None = None
        while True:
            hint = Text("q ends it", "dim")
            try:
                if client is None or watch is None:
                    client = connected.enter_context(connection.client())
                    watch = connected.enter_context(Watch(client, keys.wake))
                now, before = look(client, watch), now
            except InferwireError as error:
                if not _may_come_back(error):
                    raise
                gone = "the server drains at" if error.reason == "DRAINING" else "no server answers at"
                hint = Text(visible(f"{gone} {connection.address}; looking again"), "red")
                before = None
                # A new connection is tried at once; an old one waits longer from time to time.
                connected.close()
                client = watch = None
            until = time.monotonic() + interval
            while True:
                shown = screen(now, before, connection.address, console.width) if now else Text()
                live.update(Group(shown, Text(), hint), refresh=True)
                match keys.wait(until - time.monotonic()):
                    case "end":
                        return
                    case "time":
                        break
                if now is not None and watch is not None:
                    with contextlib.suppress(InferwireError):  # the next look tells it
                        now = dataclasses.replace(now, models=watch.models())


def _may_come_back(error: InferwireError) -> bool:
    return unreachable(error) or error.reason == "DRAINING" or error.code.name == "DEADLINE_EXCEEDED"


class _Keys:
    """What ends the wait for the next look: a key, Ctrl-C, news of the server, or time."""

    def __init__(self, inputs: Sequence[int]) -> None:
        self._inputs = inputs
        self._woken, self._wake = os.pipe()

    def press(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: as if q was pressed."""
        os.write(self._wake, b"q")

    def wake(self) -> None:
        """Ends the wait. From any thread."""
        os.write(self._wake, b" ")

    def wait(self, seconds: float) -> Literal["end", "news", "time"]:
        """Waits so many seconds at most."""
        until = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select(
                [self._woken, *self._inputs], [], [], max(0.0, until - time.monotonic())
            )
            if not ready:
                return "time"
            read = {fd: os.read(fd, 64) for fd in ready}
            if any(b"q" in data.lower() for data in read.values()):
                return "end"
            if self._woken in read:
                return "news"

    def close(self) -> None:
        """Gives the pipe back, when nobody will wake any more."""
        os.close(self._woken)
        os.close(self._wake)


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Reads keys one by one meanwhile, and Ctrl-C as one of them."""
    is_terminal = sys.stdin.isatty()
    keys = _Keys([sys.stdin.fileno()] if is_terminal else [])
    previous = signal.signal(signal.SIGINT, keys.press)
    mode = termios.tcgetattr(sys.stdin) if is_terminal else None
    try:
        if mode is not None:
            tty.setcbreak(sys.stdin)
        yield keys
    finally:
        if mode is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, mode)
        signal.signal(signal.SIGINT, previous)
        keys.close()
