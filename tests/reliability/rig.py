"""What the rows run on: servers with stub engines in this process, or as a process of their own, and what is asked of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import IO, Any, Self, TypeVar

import msgspec
import psutil

from inferwire import AsyncClient
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.backends.local import LocalBackend
from inferwire_server.config import ModelSettings
from inferwire_server.server import Server
from tests import serving

from . import stub_engine

T = TypeVar("T")


class Hung(AssertionError):
    """Something did not happen within its guard."""


async def within(seconds: float, awaitable: Awaitable[T], what: str = "it") -> T:
    """Returns what is awaited. Raises Hung when it takes longer: a guard against a hang, not a measurement."""
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise Hung(f"{what} did not happen within {seconds} s") from None


def stub_model(
    folder: pathlib.Path,
    name: str = "stub",
    *,
    slots: int = 4,
    keep_alive_seconds: float | None = None,
    **plan: Any,
) -> ModelSettings:
    """Returns the settings of a model for a stub engine; `plan` has the fields of `stub_engine.Plan`."""
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(stub_engine.Plan(slots=slots, **plan)))
    return ModelSettings(
        path=str(path), config={"parallel_sequences": slots}, keep_alive_seconds=keep_alive_seconds
    )


@contextlib.contextmanager
def stub_engines() -> Iterator[None]:
    """Local models of this process have stub engines meanwhile."""
    real = LocalBackend.command
    LocalBackend.command = stub_engine.COMMAND
    try:
        yield
    finally:
        LocalBackend.command = real


@contextlib.asynccontextmanager
async def stub_server(**settings: Any) -> AsyncIterator[tuple[Server, AsyncClient]]:
    """As `serving.running`, with stub engines."""
    with stub_engines():
        async with serving.running(**settings) as running:
            yield running


async def until(server: Server, is_so: Callable[[], bool], seconds: float, what: str = "it") -> None:
    """Waits until something is so. Raises Hung when that takes longer."""
    changes = server.registry.changes

    async def poll() -> None:
        while not is_so():
            # Steps are no changes of the registry.
            await changes.after(changes.revision, timeout_seconds=0.001)

    await within(seconds, poll(), what)


class Process:
    """A gateway as a process of its own, with stub engines unless it is told to have real ones: `inferwire serve ARGUMENTS`.

    Further arguments are settings. What begins with `rig_` is for `gateway.py`.
    """

    def __init__(
        self, *arguments: str, has_stub: bool = True, stderr: IO[str] | None = None, **settings: str
    ) -> None:
        module = "tests.reliability.gateway" if has_stub else "inferwire_server.cli"
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--address", "127.0.0.1:0", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr or self._stderr,
            text=True,
            env={**os.environ, **{_variable(name): value for name, value in settings.items()}},
            cwd=stub_engine.ROOT,
        )
        assert self.popen.stdout is not None, "started with a pipe"
        line = self.popen.stdout.readline()
        found = re.search(r"listens on (127\.0\.0\.1:\d+)", line)
        if found is None:
            log = self.log
            self.close()
            raise AssertionError(f"it did not start: {line}{log}")
        self.address = found[1]

    def __repr__(self) -> str:
        return f"<Process [pid {self.popen.pid} | {self.address} | exit code {self.popen.returncode}]>"

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode(errors="replace")

    @property
    def children(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.popen.pid).children(recursive=True)

    async def exit_code(self, guard_seconds: float) -> int:
        """Returns its exit code when it has ended."""
        return await within(guard_seconds, asyncio.to_thread(self.popen.wait), "the end of the gateway")

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None, "started with a pipe"
        self.popen.stdout.close()
        self._stderr.close()


def _variable(name: str) -> str:
    return name.upper() if name.startswith("rig_") else f"INFERWIRE_{name.upper()}"


@contextlib.contextmanager
def gateway(*arguments: str, **settings: Any) -> Iterator[Process]:
    """Yields a gateway as a process of its own."""
    process = Process(*arguments, **settings)
    try:
        yield process
    finally:
        process.close()


async def until_ready(address: str, key: str | None = None) -> None:
    """Waits until every required model of a server is READY."""
    async with AsyncClient(address, token=key) as client:
        await within(60, _until_ready(client), "readiness")


async def _until_ready(client: AsyncClient) -> None:
    async for _ in client.watch_models():
        if (await client.health()).ready:
            return


def request(
    prompt: str = "Once upon a time",
    model: str = "stub",
    *,
    max_tokens: int | None = None,
    endless: bool = False,
) -> pb.CompleteRequest:
    """Returns a request that draws no chance: greedy, and of a length that is known when it is endless."""
    made = pb.CompleteRequest(prompt=prompt, model=model)
    made.sampling.temperature = 0
    if max_tokens is not None:
        made.stopping.max_tokens = max_tokens
    made.stopping.ignore_eos = endless
    return made


def free_port() -> int:
    """Returns a port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as it:
        return int(it.getsockname()[1])


class Sampler:
    """Samples something all the time, as `_sample` says, while it is entered."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None, "left before it was entered"
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _sample(self) -> None:
        raise NotImplementedError


class Lag(Sampler):
    """How late the event loop of this process calls who asked for it, in milliseconds, while it is entered."""

    INTERVAL_SECONDS = 0.005

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: list[float] = []

    async def _sample(self) -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(self.INTERVAL_SECONDS)
            self.milliseconds.append((time.perf_counter() - begin - self.INTERVAL_SECONDS) * 1000)
