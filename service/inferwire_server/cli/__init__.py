"""The command line: one file per command, imported only when its command runs, so that `--help` is quick."""

from __future__ import annotations

import importlib

import click

from inferwire_server import __version__

#: Each command with the line that `inferwire --help` shows: the help must not import what the commands need.
COMMANDS = {
    "serve": "Run the server.",
    "chat": "Talk with a model.",
    "complete": "Continue a text.",
    "models": "List the models.",
    "load": "Load a model into the server's memory.",
    "unload": "Take a model out of the server's memory.",
    "tokens": "Count and show the tokens of a text.",
    "health": "Say whether the server is ready.",
    "top": "Watch the models and what they do.",
    "key": "Make a key for a caller.",
}


class CommandTable(click.Group):
    """The group of all commands; a command is the object of its module that has the module's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Environment:
  INFERWIRE_ADDRESS  where the server is, such as 127.0.0.1:50051
  INFERWIRE_TOKEN    the key that calls carry, where the server asks for one
\b
Exit codes:
  0    done
  1    the server refused or failed
  2    the command line is wrong
  3    the server cannot be reached
  130  interrupted by Ctrl-C
""",
)
@click.version_option(__version__, prog_name="inferwire", message="%(prog)s %(version)s")
def main() -> None:
    """Serve language models over gRPC, and talk to them.

    \b
    Start a server in one terminal:   inferwire serve
    and talk to it in another:        inferwire chat
    """
