"""`inferwire tokens`: a text as the model sees it."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from inferwire.v1.inference_pb2 import TokenizeResponse
from inferwire_server.cli.connection import Connection, connects
from inferwire_server.cli.terminal import given_or_piped, print_json

_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")


@click.command()
@click.argument("text", required=False)
@click.option("--model", help="A name of `inferwire models`. Default: the server's default model.")
@click.option("--special", is_flag=True, help='Read special tokens such as "<|im_end|>" as what they mean.')
@click.option("--ids", is_flag=True, help="Show each token on its own line, with its id.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the TokenizeResponse as JSON; pieces are base64."
)
@connects
def tokens(
    connection: Connection, text: str | None, model: str | None, special: bool, ids: bool, as_json: bool
) -> None:
    """Count the tokens of TEXT and show where it is cut; without TEXT, or with "-", it is read from standard input."""
    text = given_or_piped(text, "TEXT")
    with connection.client() as client:
        response = client.tokenize(text, model=model, parse_special=special)
    if as_json:
        print_json(response)
        return
    count = len(response.token_ids)
    click.echo(f"{count} token{'' if count == 1 else 's'}")
    if ids:
        for token_id, piece in zip(response.token_ids, response.pieces, strict=True):
            click.echo(f"{token_id:>8}  {show(piece)}")
    elif count:
        Console(soft_wrap=True).print(pieces(response))


def pieces(response: TokenizeResponse) -> Text:
    """Returns the text with its cuts: in alternating colours, and with bars so that no terminal is needed to see."""
    line = Text()
    for index, piece in enumerate(response.pieces):
        if index:
            line.append("|", style="dim")
        line.append(show(piece), style=_COLOURS[index % len(_COLOURS)])
    return line


def show(piece: bytes) -> str:
    """Returns a token's bytes so that all of them can be seen; what is not UTF-8 or not printable is escaped."""
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
