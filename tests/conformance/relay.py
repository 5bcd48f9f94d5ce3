"""A TCP relay in front of a real server that counts HTTP/2 frames: what went over the connection and nobody else tells.

It changes no byte. It reads the nine bytes before each frame, and nothing behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from inferwire_server.changes import Changes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, GOAWAY = 0x0, 0x7


class Relay:
    """A port of its own before a server's. Its counts are of all its connections together."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.changes = Changes()
        self.port = 0
        self.num_connections = 0
        #: Frames of messages from the server.
        self.num_data = 0
        self.num_goaways = 0

    def __repr__(self) -> str:
        return (
            f"<Relay [{self.port} to {self._to} | connections {self.num_connections} | data {self.num_data}"
            f" | GOAWAY {self.num_goaways}]>"
        )

    async def start(self) -> None:
        """Opens a port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the port and every connection."""
        assert self._server is not None, "started"
        self._server.close()
        for writer in self._connections.values():
            writer.close()
        if self._connections:
            await asyncio.wait(self._connections)

    async def until_data(self, count: int) -> None:
        """Returns when the server has sent so many frames of messages more."""
        wanted = self.num_data + count
        while self.num_data < wanted:
            await self.changes.after(self.changes.revision)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs it as one"
        self._connections[task] = writer
        self.num_connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._to)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, server_writer, _Frames(len(PREFACE)), of_server=False))
                both.create_task(self._pass(server_reader, writer, _Frames(0), of_server=True))
        except* OSError:
            pass  # One end is gone, as it may be.
        finally:
            del self._connections[task]
            writer.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        frames: _Frames,
        *,
        of_server: bool,
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                for kind in frames.of(data):
                    self._count(kind, of_server)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    def _count(self, kind: int, of_server: bool) -> None:
        self.num_data += of_server and kind == DATA
        self.num_goaways += kind == GOAWAY
        self.changes.bump()


class _Frames:
    """Finds the frames of one direction, however the bytes are cut."""

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._head = b""

    def of(self, data: bytes) -> Iterator[int]:
        """Yields the type of each frame whose head is complete now."""
        while data:
            if self._skip:
                taken = min(self._skip, len(data))
                self._skip -= taken
                data = data[taken:]
                continue
            wanted = 9 - len(self._head)
            self._head += data[:wanted]
            data = data[wanted:]
            if len(self._head) == 9:
                self._skip = int.from_bytes(self._head[:3], "big")
                yield self._head[3]
                self._head = b""
