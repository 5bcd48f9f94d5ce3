"""`inferwire unload`: a model out of the server's memory."""

from __future__ import annotations

import math

import click

from inferwire_server.cli.connection import Connection, connects
from inferwire_server.cli.terminal import Seconds, print_json


@click.command()
@click.argument("name")
@click.option(
    "--drain-timeout",
    type=Seconds(),
    help="How long running requests may go on, such as 1m; 0 ends them now. Default: 30 s.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the UnloadResponse as JSON.")
@connects
def unload(connection: Connection, name: str, drain_timeout: float | None, as_json: bool) -> None:
    """Take the model NAME out of the server's memory. New requests are refused at once.

    It also stops a load that is under way. To unload what is not loaded is fine.
    """
    with connection.client() as client:
        # It may take as long as the drain does, so it has no deadline of its own.
        response = client.unload(name, drain_timeout=drain_timeout, timeout=math.inf)
    if as_json:
        print_json(response)
    elif not response.was_loaded:
        click.echo(f"{name} was not loaded.")
    elif response.streams_ended:
        click.echo(f"{name} is unloaded; {response.streams_ended} running requests were ended.")
    else:
        click.echo(f"{name} is unloaded.")
