"""`inferwire complete`: one prompt in, one answer out. Made for pipes."""

from __future__ import annotations

import click

from inferwire import text_of, user
from inferwire.request import Shorthand
from inferwire.v1.inference_pb2 import Completion, FinishReason
from inferwire_server.cli.connection import Connection, connects
from inferwire_server.cli.terminal import ctrl_c_cancels, enum_word, given_or_piped, print_json, write

_WHOLE = {
    FinishReason.FINISH_REASON_STOP,
    FinishReason.FINISH_REASON_STOP_STRING,
    FinishReason.FINISH_REASON_TOOL_CALLS,
}


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", help="A name of `inferwire models`. Default: the server's default model.")
@click.option(
    "--chat", is_flag=True, help="Send the text as a person's turn through the model's chat template."
)
@click.option("--max-tokens", type=click.IntRange(min=0), help="End after this many tokens.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="0: always the likeliest token. More: more varied."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="The same seed draws the same tokens.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."
)
@click.option(
    "--stream/--no-stream", default=True, show_default=True, help="Show the answer while it is made."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole CompleteResponse as JSON.")
@connects
def complete(
    connection: Connection,
    prompt: str | None,
    model: str | None,
    chat: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    stream: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT and print the answer; without PROMPT, or with "-", the text is read from standard input.

    The text goes to the model as it is. To ask a question, add --chat, or use `inferwire chat`.
    """
    text = given_or_piped(prompt, "PROMPT")
    shorthand: Shorthand = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": stop,
    }
    if chat:
        shorthand["chat"] = [user(text)]
    else:
        shorthand["prompt"] = text
    with connection.client() as client:
        if as_json:
            print_json(client.complete(**shorthand))
            return
        if stream:
            with client.stream(**shorthand) as events, ctrl_c_cancels(events):
                for piece in events.text():
                    write(piece)
            completion = events.completion
        else:
            response = client.complete(**shorthand)
            write(text_of(response.message))
            completion = response.completion
    click.echo()
    if completion is not None and (note := cut_short(completion)):
        click.echo(note, err=True)


def cut_short(completion: Completion) -> str:
    """Returns a note on an answer that something other than the model ended; empty when it is whole."""
    reason = completion.finish_reason
    if reason in _WHOLE:
        return ""
    known = reason in FinishReason.values()
    word = enum_word(FinishReason.Name(reason), "FINISH_REASON_") if known else "other"
    return f"(ended: {completion.raw_finish_reason or word})"
