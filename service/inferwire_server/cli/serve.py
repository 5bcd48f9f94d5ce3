"""`inferwire serve`: runs the server."""

from __future__ import annotations

import asyncio
import os
import pathlib
import shutil
import signal
import sys
from typing import Any

import click

from inferwire_server import __version__


def _model(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    models = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator or not name or not path:
            raise click.BadParameter(f"{value!r} is not NAME=PATH")
        models[name] = {"path": path}
    return models or None


@click.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    envvar="INFERWIRE_CONFIG",
    help="Configuration file.  [default: inferwire.toml here, if there is one]",
)
@click.option("--address", metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:50051]")
@click.option(
    "--model",
    "models",
    metavar="NAME=PATH",
    multiple=True,
    callback=_model,
    help="Load the GGUF file at PATH and serve it as NAME. May be repeated. Without any: the demo model.",
)
@click.option(
    "--model-root",
    "model_roots",
    metavar="DIR",
    multiple=True,
    help="Let clients load files beneath DIR. May be repeated.",
)
@click.option("--default-model", metavar="NAME", help="The model for requests that name none.")
@click.option(
    "--scripted", is_flag=True, default=None, help="Serve the model 'scripted', which says what it is told."
)
@click.option(
    "--insecure", is_flag=True, default=None, help="Allow an address that other machines can reach."
)
@click.option("--tls-certificate", metavar="PEM", help="Speak TLS with this certificate.")
@click.option("--tls-key", metavar="PEM", help="The certificate's key.")
@click.option(
    "--tls-client-ca", metavar="PEM", help="Ask callers for a certificate that this authority signed (mTLS)."
)
@click.option(
    "--keys-file", metavar="TOML", help="Who may call what; see docs/security.md and `inferwire key`."
)
@click.option(
    "--admin-address",
    metavar="HOST:PORT",
    help="Where to listen for Load and Unload, instead of with the rest. Also unix:PATH.",
)
@click.option(
    "--web-address",
    metavar="HOST:PORT",
    help="Where to speak Connect, gRPC-Web and JSON, for browsers and curl; see docs/web.md.",
)
@click.option(
    "--probe-address",
    metavar="HOST:PORT",
    help="Where to tell health in the clear, for probes that know no TLS.",
)
@click.option(
    "--reflection/--no-reflection", default=None, help="Serve reflection.  [default: on loopback only]"
)
@click.option(
    "--metrics-address", metavar="HOST:PORT", help="Where to serve /metrics for Prometheus, and /healthz."
)
@click.option("--traces-endpoint", metavar="URL", help="Where to send traces: OTLP over gRPC.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How to log.  [default: text]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to log.  [default: info]",
)
def serve(config: pathlib.Path | None, model_roots: tuple[str, ...], **flags: Any) -> None:
    """Run the server until Ctrl-C.

    \b
    inferwire serve                                  serves the small demo model
    inferwire serve --model qwen=~/models/qwen.gguf  serves a file of yours
    inferwire serve --model-root ~/models            lets clients load files of a directory

    Flags outrank the environment (INFERWIRE_ADDRESS and so on), which outranks the configuration file. The first
    Ctrl-C lets running answers finish, the second ends at once.
    """
    # gRPC's core would print its own words about a port in use above ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported late, so that --help and a wrong flag answer at once.
    from inferwire_server import config as configuration
    from inferwire_server import logs
    from inferwire_server.ports import AddressInUse
    from inferwire_server.server import Server

    try:
        settings = configuration.load(config, flags={**flags, "model_roots": list(model_roots) or None})
    except configuration.ConfigError as error:
        raise _CannotServe(str(error)) from error
    logs.configure(format=settings.log_format, level=settings.log_level, log_prompts=settings.log_prompts)

    async def run() -> None:
        # Made inside the loop that it will live in, as grpc.aio asks.
        await Server(settings).run(_announce)
        # The process ends now. One more signal, from an impatient hand, must not make its exit code a lie.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    try:
        asyncio.run(run())
    except (AddressInUse, configuration.ConfigError) as error:
        raise _CannotServe(str(error)) from error


def _announce(server: Any) -> None:
    names = [model.name for model in server.registry.models()]
    address = str(server.address)
    click.echo(f"inferwire {__version__} listens on {address}")
    for what, other in server.other_addresses.items():
        click.echo(f"{what} at {other}")
    if server.web is not None:
        click.echo(f"Browsers and curl at {server.web.url}")
    click.echo(f"Models: {', '.join(names) or 'none; load one with: inferwire load NAME PATH'}")
    tls = " --tls" if server.settings.tls_certificate else ""
    click.echo(f"Talk to it from another terminal:  {_own_name()} chat{_address_flag(address)}{tls}")
    click.echo("Ctrl-C ends it.")
    sys.stdout.flush()


def _own_name() -> str:
    """Returns the command as the other terminal can type it: its name where the PATH has it, else its path from here."""
    if shutil.which("inferwire"):
        return "inferwire"
    path = pathlib.Path(sys.argv[0])
    return os.path.relpath(path) if path.name == "inferwire" else "inferwire"


def _address_flag(address: str) -> str:
    return "" if address == "127.0.0.1:50051" else f" --address {address}"


class _CannotServe(click.ClickException):
    exit_code = 2
