"""`inferwire chat`: a conversation in the terminal. Its state is the list of messages, nothing more."""

from __future__ import annotations

import sys

import click

from inferwire import Client, Gatherer, InferwireError, system, user
from inferwire.request import Shorthand
from inferwire.v1.inference_pb2 import Message
from inferwire_server.cli.complete import cut_short
from inferwire_server.cli.connection import Connection, connects, describe, fail
from inferwire_server.cli.terminal import ctrl_c_cancels, write

COMMANDS = """\
/clear  forget the conversation
/quit   leave; so do Ctrl-D and Ctrl-C at the prompt
/help   show this
Ctrl-C while the model answers ends the answer and keeps the conversation."""


@click.command()
@click.option("--model", help="A name of `inferwire models`. Default: the server's default model.")
@click.option(
    "--system", "instructions", metavar="TEXT", help="Instructions that stand before the conversation."
)
@click.option("--max-tokens", type=click.IntRange(min=0), help="End each answer after this many tokens.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="0: always the likeliest token. More: more varied."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="The same seed draws the same tokens.")
@connects
def chat(
    connection: Connection,
    model: str | None,
    instructions: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    """Talk with a model. Type a line, read the answer; /help shows what else can be typed.

    Lines may also come from a pipe; then each line is one turn, and the first failure ends the command.
    """
    settings: Shorthand = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    opening = [] if instructions is None else [system(instructions)]
    messages = list(opening)
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
        click.echo(
            f"Chat with {model or 'the default model'} at {connection.address}. /help shows the commands."
        )
    with connection.client() as client:
        while (line := read_line(interactive)) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/help":
                    click.echo(COMMANDS)
                case "/clear":
                    messages = list(opening)
                    click.echo("The conversation is forgotten.")
                case command if command.startswith("/"):
                    click.echo(f"There is no {command.split()[0]}; /help shows what there is.", err=True)
                case text:
                    try:
                        messages += take_turn(client, messages, text, settings)
                    except InferwireError as error:
                        click.echo()
                        if not interactive:
                            fail(error, connection)
                        click.echo(describe(error, connection), err=True)


def read_line(interactive: bool) -> str | None:
    """Returns the next line; None when the person leaves or the input ends."""
    if not interactive:
        return sys.stdin.buffer.readline().decode("utf-8", "replace") or None
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None


def take_turn(client: Client, messages: list[Message], text: str, settings: Shorthand) -> list[Message]:
    """Shows the answer to `text` and returns the turns that it adds to the conversation.

    An answer that Ctrl-C ended stays in the conversation as far as it came; a turn without any answer leaves nothing.

    Raises:
        InferwireError: the turn failed; the conversation is as it was before.
    """
    question = user(text)
    shorthand = settings.copy()
    shorthand["chat"] = [*messages, question]
    gatherer = Gatherer()
    interrupted = False
    try:
        with client.stream(**shorthand) as events, ctrl_c_cancels(events):
            for event in events:
                gatherer.add(event)
                if event.HasField("text"):
                    write(event.text.text)
                elif event.HasField("reasoning"):
                    write(event.reasoning.text, dim=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        interrupted = True
    response = gatherer.response()
    click.echo()
    if interrupted:
        click.echo("(cancelled)", err=True)
    elif note := cut_short(response.completion):
        click.echo(note, err=True)
    return [question, response.message] if response.message.parts else []


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - `input` uses it once it is imported.
    except ImportError:
        pass
