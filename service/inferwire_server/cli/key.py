"""`inferwire key`: makes a key for a caller of a server, and the table that lets it in."""

from __future__ import annotations

import re

import click

from inferwire_server.cli.terminal import visible


@click.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["infer", "admin", "health"]),
    multiple=True,
    help="What the key allows. May be repeated.  [default: infer]",
)
@click.option(
    "--model", "models", metavar="PATTERN", multiple=True, help="A model that it may use, such as openai/*."
)
def key(name: str, scopes: tuple[str, ...], models: tuple[str, ...]) -> None:
    """Make a key for NAME.

    The key, on standard error, is for the caller; it is kept nowhere. The table, on standard output, is for the server's
    keys_file, which is read again within seconds:

    \b
    inferwire key alice >> keys.toml
    """
    # Imported late, so that --help answers at once.
    from inferwire_server.access import new_key

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise click.BadParameter(
            f"{visible(name)!r} has other characters than a-z A-Z 0-9 _ -", param_hint="NAME"
        )
    secret, digest = new_key()
    click.echo(f"The key, for the caller alone:\n\n{secret}\n\nFor the keys_file of the server:\n", err=True)
    lines = [f"[keys.{name}]", f'sha256 = "{digest}"', f"scopes = {_list(scopes or ('infer',))}"]
    if models:
        lines.append(f"models = {_list(models)}")
    click.echo("\n".join(lines) + "\n")


def _list(values: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"
