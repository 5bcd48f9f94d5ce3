"""R41: a start that cannot be ends at once, with exit code 2 and words that say what to do."""

from __future__ import annotations

import asyncio
import pathlib
import socket
import sys
import time

import pytest

from tests.certificates import self_signed

from . import rig
from .stub_engine import ROOT

SERVE = (sys.executable, "-m", "inferwire_server.cli", "serve")


async def ended(*command: str, guard_seconds: float = 20, cwd: pathlib.Path = ROOT) -> tuple[int, str, float]:
    """Returns the exit code of a program, what it wrote to its standard error, and the seconds that it took."""
    begin = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, cwd=cwd
    )
    try:
        _, told = await rig.within(guard_seconds, process.communicate(), "the end of a start")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return process.returncode or 0, told.decode(), time.monotonic() - begin


def hopeless(folder: pathlib.Path, port: int) -> list[tuple[list[str], str]]:
    """Returns starts that cannot be, and a word that their failure must say."""
    key, certificate = self_signed(folder, "one")
    other_key, _ = self_signed(folder, "other")
    broken, config = folder / "broken.pem", folder / "inferwire.toml"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    config.write_text("adress = '127.0.0.1:50051'\n")
    tls = ["--tls-certificate", str(certificate), "--tls-key"]
    return [
        (["--address", f"127.0.0.1:{port}"], "another server"),
        (["--address", "nonsense"], "HOST:PORT"),
        (["--address", "0.0.0.0:50051"], "--insecure"),
        (["--model", "nonsense"], "NAME=PATH"),
        (["--model-root", "/nowhere/at/all"], "not a directory"),
        (["--config", "/nowhere/at/all.toml"], "No such file"),
        (["--config", str(config)], "address"),
        (["--log-format", "xml"], "xml"),
        ([*tls, str(other_key)], "key"),
        ([*tls, "/nowhere/at/all.pem"], "No such file"),
        ([*tls[:1], str(broken), "--tls-key", str(key)], "broken.pem"),
        (tls[:2], "go together"),
        (["--keys-file", "/nowhere/at/all.toml"], "No such file"),
        (["--keys-file", str(broken)], "broken.pem"),
    ]


async def test_r41_a_start_that_cannot_be_ends_at_once(card, tmp_path):
    """Nothing half-started: exit code 2, the words, no traceback. A start that goes on is seen."""
    _, _, imports_seconds = await ended(
        sys.executable, "-c", "import inferwire_server.cli, inferwire_server.server"
    )
    wrong, slowest = [], 0.0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = hopeless(tmp_path, taken.getsockname()[1])
        for arguments, words in cases:
            code, told, seconds = await ended(*SERVE, *arguments)
            slowest = max(slowest, seconds - imports_seconds)
            if code != 2 or words not in told or "Traceback" in told:
                wrong.append((arguments, code, told))
    card.tell("R41", "wrong", len(wrong), n=len(cases))
    card.tell("R41", "slow", slowest, n=len(cases))
    assert [] == wrong

    with pytest.raises(rig.Hung):
        await ended(*SERVE, "--scripted", "--address", "127.0.0.1:0", guard_seconds=3)


async def test_a_broken_configuration_file_names_the_key(tmp_path):
    """The file of the folder counts too; the wrong key is told, and the nearest that exists."""
    (tmp_path / "inferwire.toml").write_text("adress = '127.0.0.1:50051'\n")
    code, told, _ = await ended(*SERVE, cwd=tmp_path)
    assert 2 == code
    assert "adress" in told
    assert "address" in told
