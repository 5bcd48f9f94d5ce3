"""`inferwire top`: what is shown at which width, and its life in a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator

import pytest
from rich.console import Console

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.cli.top import Look, rows, screen
from tests.serving import bare_stub, demo, endless, running

COMMAND = (sys.executable, "-m", "inferwire_server.cli", "top")


def looked(at: float, **tokens: int) -> Look:
    """Returns a look at a server whose models have generated so many tokens."""
    health = pb.HealthResponse(version="1.2.3", ready=True)
    health.uptime.FromSeconds(3700)
    models = []
    for name, count in tokens.items():
        health.models.add(
            name=name,
            state=models_pb2.MODEL_STATE_READY,
            parallel_sequences=4,
            queue_capacity=64,
            completion_tokens_total=count,
            prompt_tokens_total=10 * count,
        )
        models.append(
            models_pb2.Model(
                name=name,
                state=models_pb2.MODEL_STATE_READY,
                backend="local",
                streams_in_flight=5,
                queue_length=1,
                memory_bytes=1 << 30,
                restarts=2,
            )
        )
    return Look(at, health, models)


def shown(now: Look, before: Look | None, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(screen(now, before, "127.0.0.1:50051", width))
    return captured.get().splitlines()


def test_a_rate_is_between_two_looks():
    """None where there was no look before, where the model is new, and where its total began anew."""
    before, now = looked(10.0, a=100, b=100), looked(12.0, a=150, b=40, c=70)
    assert [(250.0, 25.0), (None, None), (None, None)] == [
        (row.prompt_tokens_per_second, row.completion_tokens_per_second) for row in rows(now, before)
    ]
    assert [None, None, None] == [row.completion_tokens_per_second for row in rows(now, None)]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_it_fits(width):
    """A narrow terminal shows fewer columns, the most telling first, and never a broken line."""
    lines = shown(looked(12.0, **{"demo": 150, "a-model-with-a-name": 3}), looked(10.0, demo=100), width)
    assert 5 == len(lines)
    assert all(len(line) <= width for line in lines)
    headings = lines[2].split()
    everything = ["MODEL", "STATE", "STREAMS", "QUEUE", "TOK/S", "PROMPT/S", "MEMORY", "RESTARTS", "BACKEND"]
    assert headings == everything[: len(headings)]
    assert (width >= 120) == (headings == everything)
    assert ("25" in lines[3].split()) == ("TOK/S" in headings)


def test_a_control_character_of_a_server_does_not_reach_the_terminal():
    """Names and versions are a stranger's text."""
    now = looked(12.0, **{"demo\x1b[2J": 1})
    now.health.version = "1\x1b]0;owned\x07"
    assert not any("\x1b" in line or "\x07" in line for line in shown(now, None, 120))


async def run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.mark.parametrize("arguments", [(), ("--once",)], ids=["piped", "once"])
async def test_without_a_terminal_it_prints_once(arguments):
    """As --once does: for a script, for a look in passing."""
    async with running(models={"demo": demo()}) as (server, _):
        code, output, errors = await run("--address", f"127.0.0.1:{server.port}", *arguments)
    assert (0, "") == (code, errors)
    assert output.startswith("ready  inferwire ")
    assert ["demo", "ready", "0/8", "0/64", "0.0", "0.0"] == output.splitlines()[3].split()[:6]


async def test_once_as_json_has_rates():
    """With a stream that runs, tokens per second are above 0; the totals are the contract's."""
    async with running(models={"demo": demo()}) as (server, _), bare_stub(server) as stub:
        call = stub.StreamComplete(endless())
        await call.read()
        code, output, errors = await run("--address", f"127.0.0.1:{server.port}", "--once", "--json")
        call.cancel()
    assert (0, "") == (code, errors)
    (model,) = json.loads(output)["models"]
    assert ("demo", "MODEL_STATE_READY") == (model["name"], model["state"])
    assert model["completion_tokens_per_second"] is not None
    assert int(model["completion_tokens_total"]) > 0
    assert model["memory_bytes"] > 0


async def test_no_server_is_3():
    """As with every command, where nobody can wait for one to come back."""
    code, _, errors = await run("--address", "127.0.0.1:1", "--once")
    assert 3 == code
    assert "no inferwire server answers" in errors


class Terminal:
    """A terminal with the command in it."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self.process = process
        self._fd = fd
        self._text = ""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # the command has closed its side
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._text += data.decode(errors="replace")
        self._news.set()

    async def until(self, words: str) -> None:
        """Waits until the words are shown, and forgets what was shown up to then."""
        while words not in self._text:
            self._news.clear()
            await self._news.wait()
        self._text = self._text.partition(words)[2]

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)


@contextlib.asynccontextmanager
async def terminal(port: int, interval: str = "100ms") -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    before = termios.tcgetattr(theirs)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--interval", interval, "--address", f"127.0.0.1:{port}",
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    try:
        yield Terminal(process, ours)
        assert 0 == await process.wait()
        assert before == termios.tcgetattr(theirs), "the terminal is as it was"
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("keys", [b"q", b"Q", b"\x03"], ids=["q", "Q", "ctrl-c"])
async def test_a_key_ends_it(keys):
    """With exit code 0, and the terminal as it was."""
    async with running(scripted=True) as (server, _), terminal(server.port) as shown:
        await shown.until("scripted")
        await shown.until("q ends it")
        shown.press(keys)
        await shown.process.wait()


async def test_it_outlives_the_server():
    """A server that is gone is told, and one that comes back is shown again."""
    async with contextlib.AsyncExitStack() as first:
        server, _ = await first.enter_async_context(running(scripted=True))
        port = server.port
        async with terminal(port) as shown:
            await shown.until("scripted")
            await first.aclose()
            await shown.until("looking again")
            async with running(scripted=True, address=f"127.0.0.1:{port}"):
                await shown.until("q ends it")
                shown.press(b"q")
                await shown.process.wait()


async def test_a_change_is_shown_when_it_happens():
    """And not when it is time to look again: the next look is an hour away."""
    async with (
        running(models={"demo": demo()}) as (server, client),
        terminal(server.port, interval="1h") as shown,
    ):
        await shown.until("0/8")
        async with client.stream(endless()) as stream:
            await anext(stream)
            await shown.until("1/8")
        await shown.until("0/8")
        await client.unload("demo")
        await shown.until("unloaded")
        shown.press(b"q")
        await shown.process.wait()
