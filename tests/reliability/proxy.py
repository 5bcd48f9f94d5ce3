"""A toxic TCP proxy: between a client and a gateway, it is late, silent, slow, or resets the connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Self


class Proxy:
    """Passes on bytes to a port of this machine, as its attributes say at the moment.

    `latency_seconds` holds each piece back; `bytes_per_second` slows what goes to the client down.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.latency_seconds = 0.0
        self._talks = asyncio.Event()
        self._talks.set()
        self.bytes_per_second: float | None = None
        #: Connections that are open now, and all there ever were.
        self.num_connections = 0
        self.num_accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def __repr__(self) -> str:
        mood = "silent" if self.is_silent else f"latency {self.latency_seconds} s"
        return f"<Proxy [{self.port} to {self._target} | {mood} | {self.num_connections} connections]>"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None, "left before it was entered"
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_silent(self) -> bool:
        """Whether it passes on nothing and closes nothing, as a cable that was cut."""
        return not self._talks.is_set()

    @is_silent.setter
    def is_silent(self, is_silent: bool) -> None:
        (self._talks.clear if is_silent else self._talks.set)()

    def reset(self) -> None:
        """Resets every connection, towards both sides."""
        for writer in self._writers:
            if writer.is_closing():
                continue
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection is a task"
        self._tasks.add(task)
        self.num_connections += 1
        self.num_accepted += 1
        writers = {writer}
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            writers.add(back)
            self._writers |= writers
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, back))
                group.create_task(self._pass(there, writer, is_slow=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers -= writers
            self._tasks.discard(task)
            self.num_connections -= 1
            for each in writers:
                each.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_slow: bool = False
    ) -> None:
        while data := await reader.read(1 << 14):
            await self._talks.wait()
            if self.latency_seconds:
                await asyncio.sleep(self.latency_seconds)
            if is_slow and self.bytes_per_second:
                await asyncio.sleep(len(data) / self.bytes_per_second)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
