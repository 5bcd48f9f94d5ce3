"""What every test of the command line stands on: a scripted server, and a command that knows its address."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from inferwire_server.cli import main
from tests.client.scripted import ScriptedServer

Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def run(server: ScriptedServer) -> Run:
    """Runs a command against the server as a pipe would see it; an exception that escapes fails the test."""

    def run(*arguments: str, input: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
        environment = {"INFERWIRE_ADDRESS": server.address, **(env or {})}
        return CliRunner().invoke(main, list(arguments), input=input, env=environment, catch_exceptions=False)

    return run
