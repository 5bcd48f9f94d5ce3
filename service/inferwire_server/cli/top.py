"""`inferwire top`: the server's models and what they do, as a table that lives."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType

import click
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
    models: dict[str, Model]


@dataclasses.dataclass(frozen=True)
class Row:
    """A model and how fast it is; None where that is not known yet."""

    model: Model
    health: ModelHealth
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None


def rows(now: Look, before: Look | None) -> list[Row]:
    """Returns the models in the server's order, with the rates since the look before."""
    earlier = {each.name: each for each in before.health.models} if before else {}
    seconds = now.at - before.at if before else 0.0

    def rate(value: int, past: int | None) -> float | None:
        # A total that has shrunk began anew, with its engine.
        return (value - past) / seconds if past is not None and seconds > 0 and value >= past else None

    found = []
    for health in now.health.models:
        past = earlier.get(health.name)
        found.append(
            Row(
                now.models.get(health.name, Model(name=health.name, state=health.state)),
                health,
                rate(health.prompt_tokens_total, past.prompt_tokens_total if past else None),
                rate(health.completion_tokens_total, past.completion_tokens_total if past else None),
            )
        )
    return found


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
        ("STREAMS", lambda row: _streams(row.health)),
        ("QUEUE", lambda row: _queue(row.health)),
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


def _streams(health: ModelHealth) -> str:
    running = health.streams_in_flight - health.queue_length
    return f"{running}/{health.parallel_sequences}" if health.parallel_sequences else str(running)


def _queue(health: ModelHealth) -> str:
    return f"{health.queue_length}/{health.queue_capacity}" if health.queue_capacity else ""


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
    for model, row in zip(found["models"], rows(now, before), strict=True):
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
    with connection.client() as client:
        before = look(client)
        while True:
            time.sleep(ONCE_SECONDS if once else max(interval, MIN_INTERVAL_SECONDS))
            now = look(client)
            if as_json:
                click.echo(json.dumps(document(now, before), ensure_ascii=False))
            else:
                console.print(screen(now, before, connection.address, console.width))
            if once or not as_json:
                return
            before = now


def look(client: Client) -> Look:
    """Asks the server."""
    health = client.health(timeout=CALL_SECONDS)
    models = {model.name: model for model in client.list_models(timeout=CALL_SECONDS).models}
    return Look(time.monotonic(), health, models)


def _live(connection: Connection, console: Console, interval: float) -> None:
    """Looks and shows until q or Ctrl-C. A server that is gone is said, and looked for again."""
    client: Client | None = None
    before: Look | None = None
    now: Look | None = None
    with _keys() as ends_within, Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            hint = Text("q ends it", "dim")
            try:
                client = client or connection.client()
                now, before = look(client), now
            except InferwireError as error:
                if not _may_come_back(error):
                    raise
                hint = Text(visible(f"no server answers at {connection.address}; looking again"), "red")
                before = None
                if client is not None:
                    # A new connection is tried at once; an old one waits longer from time to time.
                    client.close()
                    client = None
            shown = screen(now, before, connection.address, console.width) if now else Text()
            live.update(Group(shown, Text(), hint), refresh=True)
            if ends_within(interval):
                break
    if client is not None:
        client.close()


def _may_come_back(error: InferwireError) -> bool:
    return unreachable(error) or error.reason == "DRAINING" or error.code.name == "DEADLINE_EXCEEDED"


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yields what waits some seconds and says whether q or Ctrl-C was pressed meanwhile."""
    woken, wake = os.pipe()

    def press(number: int, frame: FrameType | None) -> None:
        os.write(wake, b"q")

    def ends_within(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([woken, *inputs], [], [], left)
            if any(b"q" in os.read(fd, 64).lower() for fd in ready):
                return True
        return False

    previous = signal.signal(signal.SIGINT, press)
    is_terminal = sys.stdin.isatty()
    inputs = [sys.stdin.fileno()] if is_terminal else []
    mode = termios.tcgetattr(sys.stdin) if is_terminal else None
    try:
        if mode is not None:
            tty.setcbreak(sys.stdin)
        yield ends_within
    finally:
        if mode is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, mode)
        signal.signal(signal.SIGINT, previous)
        os.close(woken)
        os.close(wake)
