"""Servers as processes of their own, and the states of one that a probe must tell apart.

A state is held still, by a stopped process or a long lame duck, so that a test may look at it for as long as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from inferwire import AsyncClient
from tests.serving import DEMO

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
# Says "a", and then nothing for longer than any test takes.
SILENT = '{"events": [{"text": "a"}, {"delay_seconds": 600}]}'


class ServerProcess:
    """`inferwire serve`, with the scripted model beside whatever the arguments say."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.address = f"127.0.0.1:{port}"

    def __repr__(self) -> str:
        return f"<ServerProcess [{self.address} | pid {self.process.pid} | exit {self.process.returncode}]>"

    async def until(self, service: str, status: HealthCheckResponse.ServingStatus) -> None:
        """Waits until the server's own health service says so."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
            while (await watch.read()).status != status:
                pass
            watch.cancel()

    async def engine(self, *, after: int = 0) -> int:
        """Returns the process of its engine; `after` one that ended, the process of the next."""
        while True:
            for child in psutil.Process(self.process.pid).children():
                # Between its fork and its exec a child shares the parent's memory, and must not be stopped.
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if child.pid != after and "inferwire_server.engine" in child.cmdline():
                        return child.pid
            # No event tells of a process of another process.
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(*arguments: str, port: int = 0, **settings: float) -> AsyncIterator[ServerProcess]:
    """Yields a server whose port is open."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERWIRE_")}
    environment |= {f"INFERWIRE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferwire_server.cli", "serve", "--scripted", "--log-level", "warning",
        "--address", f"127.0.0.1:{port}", *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None, "a pipe"
        line = (await process.stdout.readline()).decode()
        found = re.search(r"listens on 127\.0\.0\.1:(\d+)", line)
        assert found, line
        yield ServerProcess(process, int(found[1]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stops a process as a debugger would: it is there, and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def ready(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The demo model is READY."""
    async with serving("--model", f"demo={DEMO}") as server:
        await server.until("", SERVING)
        yield server


@contextlib.asynccontextmanager
async def loading(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The demo model is LOADING: its engine is held in its first moments."""
    async with serving("--model", f"demo={DEMO}") as server:
        with stopped(await server.engine()):
            yield server


@contextlib.asynccontextmanager
async def failed(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The demo model is FAILED: its file is none."""
    file = folder / "broken.gguf"
    file.write_bytes(b"not a model")
    async with serving("--model", f"demo={file}") as server, AsyncClient(server.address) as client:
        async for snapshot in client.watch_models():
            if any(model.HasField("failure") for model in snapshot.models):
                break
        yield server


@contextlib.asynccontextmanager
async def engine_killed(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The engine was killed, and the next one is held in its first moments."""
    async with ready(folder) as server:
        first = await server.engine()
        os.kill(first, signal.SIGKILL)
        with stopped(await server.engine(after=first)):
            yield server


@contextlib.asynccontextmanager
async def draining(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """SIGTERM came, and the lame duck lasts: calls are still answered."""
    async with serving("--model", f"demo={DEMO}", lame_duck_seconds=600) as server:
        await server.until("", SERVING)
        server.process.terminate()
        await server.until("", NOT_SERVING)
        yield server


@contextlib.asynccontextmanager
async def closed(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The lame duck is over: nobody is let in any more, and a last stream runs."""
    async with (
        serving("--model", f"demo={DEMO}", lame_duck_seconds=0, drain_seconds=600) as server,
        AsyncClient(server.address) as client,
        client.stream(prompt=SILENT, model="scripted") as stream,
    ):
        await server.until("", SERVING)
        async for event in stream:
            if event.HasField("text"):
                break
        server.process.terminate()
        with contextlib.suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.close()
        yield server


@contextlib.asynccontextmanager
async def frozen(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The server's process is stopped: the system takes connections for it, and nobody answers."""
    async with ready(folder) as server:
        with stopped(server.process.pid):
            yield server


@contextlib.asynccontextmanager
async def gone(folder: pathlib.Path) -> AsyncIterator[ServerProcess]:
    """The process has ended."""
    async with ready(folder) as server:
        server.process.kill()
        await server.process.wait()
        yield server
