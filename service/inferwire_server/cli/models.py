"""`inferwire models`: which models there are and how they are."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from inferwire.v1.models_pb2 import Model, ModelState
from inferwire_server.cli.connection import Connection, connects
from inferwire_server.cli.terminal import ctrl_c_cancels, enum_word, print_json, size, visible

STYLES = {
    ModelState.MODEL_STATE_READY: "green",
    ModelState.MODEL_STATE_LOADING: "yellow",
    ModelState.MODEL_STATE_DRAINING: "yellow",
    ModelState.MODEL_STATE_FAILED: "red",
}


@click.command()
@click.option("--watch", is_flag=True, help="Go on and show every change, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one document per change.")
@connects
def models(connection: Connection, watch: bool, as_json: bool) -> None:
    """List the models that the server knows, with their state. The default model is marked with *."""
    console = Console()
    with connection.client() as client:
        if not watch:
            response = client.list_models()
            if as_json:
                print_json(response)
            else:
                console.print(table(response.models, response.default_model))
            return
        default = client.list_models().default_model
        with client.watch_models() as snapshots, ctrl_c_cancels(snapshots):
            if as_json:
                for snapshot in snapshots:
                    print_json(snapshot)
            elif console.is_terminal:
                with Live(console=console, auto_refresh=False) as live:
                    for snapshot in snapshots:
                        live.update(table(snapshot.models, default), refresh=True)
            else:
                for snapshot in snapshots:
                    console.print(table(snapshot.models, default))


def table(models: Iterable[Model], default_model: str) -> Table:
    """Returns the models as a table; a cell is empty where the server does not know."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("NAME", "STATE", "BACKEND", "QUANT"):
        shown.add_column(heading, no_wrap=heading == "NAME")
    for heading in ("CONTEXT", "SIZE", "STREAMS", "QUEUED"):
        shown.add_column(heading, justify="right")
    for model in models:
        mark = "*" if model.name == default_model else ""
        shown.add_row(
            *(
                Text(visible(cell), style=style)
                for cell, style in (
                    (model.name + mark, "bold"),
                    (state(model), STYLES.get(model.state, "")),
                    (", ".join(model.candidates) or model.backend, ""),
                    (model.quantization, ""),
                    (str(model.context_length or ""), ""),
                    (size(model.size_bytes), ""),
                    (str(model.streams_in_flight), ""),
                    (str(model.queue_length), ""),
                )
            )
        )
    return shown


def state(model: Model) -> str:
    """Returns a model's state in words: with the progress of its load, or with why it failed."""
    known = model.state in ModelState.values()
    word = enum_word(ModelState.Name(model.state), "MODEL_STATE_") if known else "unknown"
    if model.state == ModelState.MODEL_STATE_LOADING and model.HasField("load_progress"):
        return f"{word} {model.load_progress.fraction:.0%}"
    if model.HasField("failure"):
        return f"{word}: {model.failure.message}"
    return word
