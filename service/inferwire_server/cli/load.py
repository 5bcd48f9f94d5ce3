"""`inferwire load`: a model into the server's memory, with its progress."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from inferwire.errors import stream_truncated
from inferwire.v1.models_pb2 import (
    LoadConfig,
    LoadProgress,
    LoadRequest,
    LoadResponse,
    LoadStage,
    RemoteSource,
)
from inferwire_server.cli.connection import Connection, connects
from inferwire_server.cli.terminal import Seconds, ctrl_c_cancels, enum_word, print_json, size, visible


@click.command()
@click.argument("name")
@click.argument("path", required=False)
@click.option("--backend", metavar="ID", help="PATH is a model's name at this remote backend of the server.")
@click.option("--context-length", type=int, help="Tokens that one request may have, prompt and answer.")
@click.option("--parallel", type=int, help="How many requests run at once. Each costs memory.")
@click.option("--gpu-layers", type=int, help="Layers on the GPU; -1: all.")
@click.option("--threads", type=int, help="CPU threads that generate.")
@click.option("--keep-alive", type=Seconds(), help="Unload after this long without a request, such as 10m.")
@click.option("--replace", is_flag=True, help="If NAME is loaded otherwise, load anew and take over.")
@click.option("--json", "as_json", is_flag=True, help="Print the LoadResponse as JSON.")
@connects
def load(
    connection: Connection,
    name: str,
    path: str | None,
    backend: str | None,
    context_length: int | None,
    parallel: int | None,
    gpu_layers: int | None,
    threads: int | None,
    keep_alive: float | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Load the GGUF file PATH and call it NAME.

    \b
    inferwire load qwen qwen2.5-0.5b.gguf
    inferwire load qwen qwen2.5:0.5b --backend ollama

    PATH is a path on the server, beneath one of its model roots. Without PATH the server's configuration says what
    NAME is. To load what is loaded already is fine and changes nothing. Ctrl-C stops the watching, not the load.
    """
    if backend is not None and path is None:
        raise click.UsageError("--backend needs PATH, the model's name there.")
    config = LoadConfig(
        context_length=context_length, parallel_sequences=parallel, gpu_layers=gpu_layers, threads=threads
    )
    request = LoadRequest(model=name, config=config if config.ByteSize() else None, replace=replace)
    if backend is not None:
        request.source.remote.CopyFrom(RemoteSource(backend=backend, model=path))
    elif path is not None:
        request.source.local.path = path
    if keep_alive is not None:
        request.keep_alive.FromNanoseconds(round(keep_alive * 1e9))
    loaded: LoadResponse | None = None
    with connection.client() as client, _bar() as bar:
        task = bar.add_task("asking", total=1.0)
        events = client.stream_load(request)
        try:
            with events, ctrl_c_cancels(events):
                for event in events:
                    if event.HasField("progress"):
                        stage, fraction = describe(event.progress), event.progress.fraction
                        bar.update(task, description=stage, completed=fraction)
                    else:
                        loaded = event.loaded
        except KeyboardInterrupt:
            click.echo(f"The server goes on loading; `inferwire unload {name}` stops it.", err=True)
            raise
    if loaded is None:
        raise stream_truncated()
    if as_json:
        print_json(loaded)
        return
    facts = ", ".join(fact for fact in (loaded.model.quantization, size(loaded.model.size_bytes)) if fact)
    state = "was loaded already" if loaded.already_loaded else "is loaded"
    click.echo(visible(f"{loaded.model.name or name} {state}{f' ({facts})' if facts else ''}."))


def describe(progress: LoadProgress) -> str:
    """Returns the stage of a load in a word; one that this version does not know is "loading"."""
    if progress.stage in LoadStage.values() and progress.stage:
        return enum_word(LoadStage.Name(progress.stage), "LOAD_STAGE_")
    return "loading"


def _bar() -> Progress:
    """Returns the bar. It is drawn on stderr, and only where a person looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
