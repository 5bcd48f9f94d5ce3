"""`inferwire chat`: a conversation in the terminal. Its state is the list of messages, nothing more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from inferwire import Client, Gatherer, InferwireError, system, tool_result, user
from inferwire.request import Shorthand
from inferwire.v1.inference_pb2 import Message, Tool
from inferwire_server.cli.complete import cut_short
from inferwire_server.cli.connection import Connection, connects, describe, fail
from inferwire_server.cli.terminal import ctrl_c_cancels, write

COMMANDS = """\
/tools FILE   let the model call the tools of a JSON list of {name, description, parameters}
/tools        take them away
/think on     let it think before it answers; thoughts are dimmed
/think off    forbid it
/think        leave it to the model
/clear        forget the conversation
/quit         leave; so do Ctrl-D and Ctrl-C at the prompt
/help         show this
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
                case command if command.split()[0] == "/tools":
                    use_tools(settings, command.removeprefix("/tools").strip())
                case "/think" | "/think on" | "/think off" as command:
                    settings["reasoning"] = {"on": True, "off": False}.get(command[6:].strip())
                case command if command.split()[0] == "/think":
                    click.echo("Say /think on, /think off, or /think alone.", err=True)
                case command if command.startswith("/"):
                    click.echo(f"There is no {command.split()[0]}; /help shows what there is.", err=True)
                case text:
                    turn: list[Message] = [user(text)]
                    try:
                        while turn:
                            added = take_turn(client, messages, turn, settings)
                            messages += added
                            turn = read_results(added[-1], interactive) if added else []
                    except InferwireError as error:
                        click.echo()
                        if not interactive:
                            fail(error, connection)
                        click.echo(describe(error, connection), err=True)


def use_tools(settings: Shorthand, path: str) -> None:
    """Takes the tools of a file into the settings, or says what is wrong with it."""
    if not path:
        settings["tools"] = None
        click.echo("There are no tools.")
        return
    try:
        entries = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not entries:
            raise ValueError("a JSON list is expected")
        tools = [as_tool(entry) for entry in entries]
    except OSError as error:
        click.echo(f"{path} cannot be read: {error.strerror}", err=True)
        return
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        click.echo(f"{path} is no list of tools: {error}", err=True)
        return
    settings["tools"] = tools
    click.echo(f"Tools: {', '.join(tool.name for tool in tools)}. You will be asked for what they answer.")


def as_tool(entry: Any) -> Tool:
    """Returns a tool as the contract has it, from {name, description, parameters} or from the shape of OpenAI's interface."""
    function = entry.get("function", entry)
    parameters = function.get("parameters")
    return Tool(
        name=function["name"],
        description=function.get("description", ""),
        parameters="" if parameters is None else json.dumps(parameters, ensure_ascii=False),
    )


def read_results(answer: Message, interactive: bool) -> list[Message]:
    """Asks for what the called tools answer. Returns it as the next turn; none when nothing was called."""
    results = []
    for part in answer.parts:
        if part.HasField("tool_call"):
            line = read_line(interactive, f"{part.tool_call.name} answers> ")
            results.append(
                tool_result(part.tool_call.id, "no answer", is_error=True)
                if line is None
                else tool_result(part.tool_call.id, line.strip())
            )
    return results


def read_line(interactive: bool, prompt: str = "> ") -> str | None:
    """Returns the next line; None when the person leaves or the input ends."""
    if not interactive:
        return sys.stdin.buffer.readline().decode("utf-8", "replace") or None
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None


def take_turn(
    client: Client, messages: list[Message], turn: list[Message], settings: Shorthand
) -> list[Message]:
    """Shows the answer to `turn` and returns the turns that it adds to the conversation.

    An answer that Ctrl-C ended stays in the conversation as far as it came; a turn without any answer leaves nothing.

    Raises:
        InferwireError: the turn failed; the conversation is as it was before.
    """
    shorthand = settings.copy()
    shorthand["chat"] = [*messages, *turn]
    gatherer = Gatherer()
    shown = ""
    interrupted = False
    try:
        with client.stream(**shorthand) as events, ctrl_c_cancels(events):
            for event in events:
                gatherer.add(event)
                kind = event.WhichOneof("event") or ""
                if kind not in ("text", "reasoning", "tool_call"):
                    continue
                if shown and (kind != shown or event.tool_call.name):
                    click.echo()
                shown = kind
                match kind:
                    case "text":
                        write(event.text.text)
                    case "reasoning":
                        write(event.reasoning.text, dim=True)
                    case "tool_call":
                        write(
                            f"{event.tool_call.name} " * bool(event.tool_call.name)
                            + event.tool_call.arguments
                        )
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
    return [*turn, response.message] if response.message.parts else []


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - `input` uses it once it is imported.
    except ImportError:
        pass
