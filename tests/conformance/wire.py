"""A bare HTTP/2 server that says frames as a case wrote them down: what happens to a stream below gRPC.

An attempt is a list of steps; each new stream takes the next one, the last one again and again. A step is one of

    {"message": {...}}           a message, as in peer.py; the headers go before the first
    {"status": "OK"}             the trailers, which end the stream
    {"goaway": "with this"}      GOAWAY; the stream that is being answered is the last that is answered
    {"goaway": "without this"}   GOAWAY; it is not answered any more, nor was anything of it done
    {"reset": "INTERNAL_ERROR"}  RST_STREAM with that code
    {"read": true}               waits until the other end has read what was sent so far
    {"close": true}              the connection is closed, without a word
    {"silent_seconds": 45}       nothing is sent for so long

It sends no ping of its own but for `read`, so that a client which keeps a silent connection must do that itself.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes
from hyperframe.frame import Frame, GoAwayFrame

from .peer import Asked, encoded

Step = Mapping[str, Any]


class WirePeer:
    """A port whose every connection plays the same case. `play` sets what is said next; `asked` is what came since."""

    def __init__(self) -> None:
        self._attempts: list[Sequence[Step]] = []
        self.asked = Asked()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._num_connections = 0
        self.port = 0

    def __repr__(self) -> str:
        return f"<WirePeer [port {self.port} | connections {len(self._connections)} | {self.asked}]>"

    def play(self, attempts: Sequence[Sequence[Step]]) -> None:
        """Forgets what came, and says this from now on."""
        self._attempts = list(attempts)
        self.asked = Asked()

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

    def next_attempt(self, metadata: dict[str, str], connection: int) -> Sequence[Step]:
        """Returns what the stream that just came is answered with."""
        self.asked.num_calls += 1
        self.asked.connections.add(connection)
        self.asked.metadata.append(metadata)
        return self._attempts[min(self.asked.num_calls, len(self._attempts)) - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs it as one"
        self._connections[task] = writer
        self._num_connections += 1
        try:
            await _Connection(self, reader, writer, self._num_connections).run()
        except OSError:
            pass  # The other end is gone, as it may be.
        finally:
            del self._connections[task]
            writer.close()


class _Wire(h2.connection.H2Connection):
    """For h2 a GOAWAY of the other end is the end of everything. It may come while streams run, and these go on."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        return [], []


class _Connection:
    """One connection: a reader, and a task for each stream that is being answered."""

    def __init__(
        self, peer: WirePeer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self._peer = peer
        self._number = number
        self._reader = reader
        self._writer = writer
        self._wire = _Wire(h2.config.H2Configuration(client_side=False))
        self._called: dict[int, dict[str, str]] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._pings = itertools.count()
        self._awaited: dict[bytes, asyncio.Future[None]] = {}

    async def run(self) -> None:
        self._wire.initiate_connection()
        await self._send()
        try:
            while data := await self._reader.read(1 << 16):
                for event in self._wire.receive_data(data):
                    self._take(event)
                await self._send()
        finally:
            for task in self._answers:
                task.cancel()
            await asyncio.gather(*self._answers, return_exceptions=True)

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=int(stream), headers=headers):
                self._called[stream] = {_text(name): _text(value) for name, value in headers or ()}
            case h2.events.DataReceived(stream_id=int(stream), flow_controlled_length=int(length)):
                self._wire.acknowledge_received_data(length, stream)
            case h2.events.StreamEnded(stream_id=int(stream)):
                metadata = self._called.pop(stream)
                answer = self._answer(
                    stream, metadata[":path"], self._peer.next_attempt(metadata, self._number)
                )
                task = asyncio.create_task(answer, name=f"answer {stream}")
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
            case h2.events.PingReceived():
                self._peer.asked.num_pings += 1
            case h2.events.PingAckReceived(ping_data=bytes(data)):
                self._awaited.pop(data).set_result(None)

    async def _answer(self, stream: int, path: str, steps: Sequence[Step]) -> None:
        method = path.rpartition("/")[2]
        has_begun = False
        for step in steps:
            match step:
                case {"message": message}:
                    if not has_begun:
                        self._wire.send_headers(
                            stream, [(":status", "200"), ("content-type", "application/grpc+proto")]
                        )
                        has_begun = True
                    data = encoded(method, message)
                    self._wire.send_data(stream, struct.pack(">BI", 0, len(data)) + data)
                case {"status": code}:
                    number = str(grpc.StatusCode[code].value[0])
                    self._wire.send_headers(stream, [("grpc-status", number)], end_stream=True)
                case {"goaway": which}:
                    # By hand: for h2 a connection that has said it is over, and this stream must go on.
                    last = stream if which == "with this" else max(stream - 2, 0)
                    await self._send()
                    self._writer.write(GoAwayFrame(0, last_stream_id=last).serialize())
                case {"reset": code}:
                    self._wire.reset_stream(stream, ErrorCodes[code])
                case {"read": True}:
                    await self._until_read()
                case {"silent_seconds": seconds}:
                    begin = self._peer.asked.num_pings
                    await asyncio.sleep(seconds)
                    self._peer.asked.num_silent_pings += self._peer.asked.num_pings - begin
                case {"close": True}:
                    await self._send()
                    self._writer.close()
                    return
                case _:
                    raise ValueError(f"no such step: {step}")
            await self._send()

    async def _until_read(self) -> None:
        """Sends a ping and waits for its answer: frames are read in order."""
        number = next(self._pings).to_bytes(8, "big")
        self._awaited[number] = asyncio.get_running_loop().create_future()
        self._wire.ping(number)
        await self._send()
        await self._awaited[number]

    async def _send(self) -> None:
        self._writer.write(self._wire.data_to_send())
        await self._writer.drain()


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
