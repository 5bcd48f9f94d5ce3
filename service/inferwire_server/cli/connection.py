"""How every command reaches the server, and how every command ends when that fails.

Owns the shared options, the exit codes and the text of errors. No traceback reaches a person from here.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec

import click

from inferwire import Client, InferwireError
from inferwire_server.cli.terminal import visible

DEFAULT_ADDRESS = "127.0.0.1:50051"

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

P = ParamSpec("P")

#: What a person may do about a failure. Reasons whose message says it all are not here.
HINTS = {
    "MODEL_NOT_FOUND": "`inferwire models` lists the names.",
    "MODEL_NOT_LOADED": "Load it first: inferwire load NAME PATH",
    "MODEL_LOADING": "It is on its way: `inferwire models --watch` shows when it is ready.",
    "MODEL_FAILED": "`inferwire models` says why; `inferwire load` tries again.",
    "MODEL_CONFIG_CONFLICT": "Unload it first, or load with --replace.",
    "MODEL_FILE_NOT_FOUND": "The path is relative to a model root of the server, not to this directory.",
    "MODEL_PATH_NOT_ALLOWED": "The path must lie beneath a model root of the server (inferwire serve --help).",
    "CONTEXT_LENGTH_EXCEEDED": "Send a shorter text, or load the model with a larger --context-length.",
    "INSUFFICIENT_MEMORY": "Unload another model, or load with a smaller --context-length or --parallel.",
    "TOKEN_MISSING": "Give the key with --token or INFERWIRE_TOKEN.",
    "TOKEN_INVALID": "Check the key in --token or INFERWIRE_TOKEN.",
    "SCOPE_REQUIRED": "Ask the server's operator for a key that may do this.",
    "STREAM_TRUNCATED": "The answer above may be cut short. Ask again.",
}


@dataclass(frozen=True)
class Connection:
    """What the shared options say."""

    address: str
    token: str | None
    tls: bool | None
    ca: Path | None
    certificate: Path | None
    key: Path | None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What calls carry that go past the client."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def client(self) -> Client:
        """Returns a new client; the caller closes it."""
        # What goes wrong is told once, by `describe`; the library's own log would stand beside it.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        if bool(self.certificate) != bool(self.key):
            raise click.UsageError("--cert and --key go together.")
        if self.ca is None and self.certificate is None:
            return Client(self.address, token=self.token, tls=self.tls)
        import grpc

        credentials = grpc.ssl_channel_credentials(*map(_content, (self.ca, self.key, self.certificate)))
        return Client(self.address, token=self.token, tls=credentials)


def connects(command: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Gives a command the shared options as its first argument, and ends it by the rules of this file."""

    @functools.wraps(command)
    def run(
        address: str,
        token: str | None,
        tls: bool | None,
        ca: Path | None,
        cert: Path | None,
        key: Path | None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        connection = Connection(address, token, tls, ca, cert, key)
        try:
            command(connection, *args, **kwargs)
        except InferwireError as error:
            fail(error, connection)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(EXIT_INTERRUPTED)

    options = (
        click.option(
            "--address",
            metavar="HOST:PORT",
            envvar="INFERWIRE_ADDRESS",
            default=DEFAULT_ADDRESS,
            show_default=True,
            show_envvar=True,
            help="Where the server is.",
        ),
        click.option(
            "--token",
            envvar="INFERWIRE_TOKEN",
            show_envvar=True,
            help="The key, where the server asks for one. Prefer the variable: a command line is no secret.",
        ),
        click.option(
            "--tls/--plaintext",
            default=None,
            help="Encrypt the connection or do not. By default only a server on this machine gets plain text.",
        ),
        click.option(
            "--ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A PEM file with the certificates to trust instead of the system's; implies --tls.",
        ),
        click.option(
            "--cert",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A PEM file with your own certificate, where the server asks for one; implies --tls.",
        ),
        click.option(
            "--key",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A PEM file with the certificate's key.",
        ),
    )
    wrapped: Callable[..., None] = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _content(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


def fail(error: InferwireError, connection: Connection) -> NoReturn:
    """Prints the failure and ends the process with its code."""
    click.echo(describe(error, connection), err=True)
    sys.exit(EXIT_UNREACHABLE if unreachable(error) else EXIT_REFUSED)


def unreachable(error: InferwireError) -> bool:
    """Returns whether no server of ours answered at all."""
    return error.code.name == "UNAVAILABLE" and not error.reason


def describe(error: InferwireError, connection: Connection) -> str:
    """Returns a failure as a few lines: what, where in the request, and what to do."""
    if unreachable(error):
        lines = [f"Error: no inferwire server answers at {connection.address}", f"  {error.message}"]
        hint = "Start one with `inferwire serve`, or name its place with --address."
        if "handshake" in error.message.lower():
            hint = "If the server has no TLS and the network may be trusted, use --plaintext."
        elif "socket closed" in error.message.lower():
            hint = "If the server speaks TLS, use --tls, with --ca where its authority is not the system's."
    else:
        lines = [f"Error: {error.reason or error.code.name}: {error.message}"]
        hint = HINTS.get(error.reason, "")
        if error.code.name == "UNIMPLEMENTED" and not error.reason:
            hint = "This port has other services. Administration and probes may have addresses of their own."
    lines += [f"  {field}: {description}" for field, description in error.violations]
    if error.retry_delay is not None:
        lines.append(f"  Try again in {error.retry_delay:g} s.")
    if "errorId" in error.metadata:
        lines.append(f"  The server's log says more under the id {error.metadata['errorId']}.")
    if hint:
        lines.append(f"  {hint}")
    return visible("\n".join(lines))
