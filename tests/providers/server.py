"""Scripted providers: real HTTP servers on real sockets that say what a test wrote down, and fail as it says.

`Script` is what the model says, in no wire format; a `Wire` writes it in one; `ScriptedProvider` sends it, as a whole, byte by
byte, or with a `Fault`. That a wire is faithful is shown by the provider's own SDK (test_provider_sdks.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of the answer's text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Thought:
    """A piece of a thought; the signature, if any, is its end."""

    text: str
    signature: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """A tool call: all of its arguments, in the pieces in which they are sent."""

    id: str
    name: str
    arguments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Script:
    """What the model says. `finish`: stop, length, tool_calls, content_filter."""

    pieces: tuple[Text | Thought | Call, ...]
    finish: str = "stop"
    prompt_tokens: int = 11
    cached_tokens: int = 3
    completion_tokens: int = 7
    reasoning_tokens: int = 0

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Text))

    @property
    def thought(self) -> str:
        """All of the thoughts."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Thought))

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each call."""
        return [(call.name, "".join(call.arguments)) for call in self.pieces if isinstance(call, Call)]


HELLO = Script((Text("Hel"), Text("lo, "), Text("wörld "), Text("🙂")))
THOUGHTFUL = Script((Thought("Let me "), Thought("see."), Text("It is "), Text("42.")), reasoning_tokens=4)
CALLS = Script(
    (
        Text("I will look. "),
        Call("call_1", "weather", ('{"city":', ' "Köln"', "}")),
        Call("call_2", "time", ()),
    ),
    finish="tool_calls",
)
CUT = Script((Text("Once upon a"),), finish="length")
FILTERED = Script((), finish="content_filter", completion_tokens=0)


class Wire(Protocol):
    """A wire format, from the provider's side."""

    type: str
    media_type: str
    # What a server sends while it has nothing to say, and an event that says nothing.
    keep_alive: bytes
    empty: bytes

    def events(self, script: Script) -> list[bytes]:
        """Returns the events of an answer, each whole; the last one is the terminal event."""

    def error(self, status: int, code: str = "", message: str = "secret words of the provider") -> bytes:
        """Returns the body of a response that is no success."""

    def error_event(self, code: str = "") -> bytes:
        """Returns an event that tells a failure of the server in a stream that has begun."""

    def is_completion(self, request: Request) -> bool:
        """Whether a request asks for a streamed answer; anything else is asked of `other`."""

    def other(self, request: Request) -> bytes | None:
        """Returns the JSON that answers any other request, such as for the list of models; None is 404."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return msgspec.json.decode(self.body)


class Stall:
    """The server says nothing more, and keeps the connection."""


class Drop:
    """The server resets the connection."""


class Close:
    """The server closes the connection, in the middle of the body's own framing."""


@dataclasses.dataclass(frozen=True)
class Endless:
    """The same bytes for ever, with a pause between them."""

    data: bytes
    seconds: float = 0.0


Step = bytes | Stall | Drop | Close | Endless


@dataclasses.dataclass(frozen=True)
class Reply:
    """A response: its head, and what follows. `has_head` False: the steps alone are sent, without a status or a framing."""

    status: int = 200
    media_type: str = "application/json"
    steps: Sequence[Step] = ()
    headers: tuple[tuple[str, str], ...] = ()
    has_head: bool = True
    pause_seconds: float = 0.0


class ScriptedProvider:
    """A server of one wire. `reply` is how the next requests for an answer are answered; `requests` is what came.

    `queue`, while it has replies, goes before `reply`.
    """

    def __init__(self, wire: Wire, script: Script = HELLO) -> None:
        self.wire = wire
        self.reply = self.good(script)
        self.queue: list[Reply] = []
        self.requests: list[Request] = []
        self.num_connections = 0
        self.max_connections = 0
        # After so many requests a connection is closed when the next one comes, unread, as servers do that bound them.
        self.max_requests: int | None = None
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def completions(self) -> list[Request]:
        """The requests for an answer."""
        return [request for request in self.requests if self.wire.is_completion(request)]

    def good(self, script: Script, *, seed: int | None = None, pause_seconds: float = 0.0) -> Reply:
        """Returns the faithful answer; with a seed it comes in random pieces, of single bytes up to several events."""
        data = b"".join(self.wire.events(script))
        steps = self.wire.events(script) if seed is None else pieces(data, random.Random(seed))
        return Reply(media_type=self.wire.media_type, steps=steps, pause_seconds=pause_seconds)

    def failed(self, status: int, code: str = "", **headers: str) -> Reply:
        """Returns a response that is no success."""
        told = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return Reply(status, steps=[self.wire.error(status, code)], headers=told)

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Opens a port, any that is free unless one is named."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Waits until something is so that requests and connections decide. The test's own timeout is the guard."""
        while not is_so():
            self._news.clear()
            await self._news.wait()

    async def stop(self) -> None:
        """Closes the port and every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a handler is a task"
        self._tasks.add(task)
        self.num_connections += 1
        self.max_connections = max(self.max_connections, self.num_connections)
        self._news.set()
        try:
            num_requests = 0
            while await self._serve(reader, writer):
                num_requests += 1
                if num_requests == self.max_requests:
                    await reader.read(1)
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self.num_connections -= 1
            self._news.set()
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request. Returns whether the connection can take another."""
        request = await _read(reader)
        if request is None:
            return False
        self.requests.append(request)
        self._news.set()
        if self.wire.is_completion(request):
            reply = self.queue.pop(0) if self.queue else self.reply
        else:
            body = self.wire.other(request)
            reply = Reply(404, steps=[self.wire.error(404)]) if body is None else Reply(steps=[body])
        gone = asyncio.ensure_future(reader.read(1))
        play = asyncio.ensure_future(_play(reply, writer))
        try:
            await asyncio.wait([gone, play], return_when=asyncio.FIRST_COMPLETED)
            if not play.done():
                return False  # the caller has left
            return play.result() and not gone.done()
        finally:
            for task in (gone, play):
                task.cancel()
            await asyncio.gather(gone, play, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _play(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    """Sends a response. Returns whether it is whole."""
    if reply.has_head:
        head = [
            f"HTTP/1.1 {reply.status} X",
            f"content-type: {reply.media_type}",
            "transfer-encoding: chunked",
        ]
        head += [f"{name}: {value}" for name, value in reply.headers]
        writer.write("\r\n".join([*head, "", ""]).encode())
    for step in reply.steps:
        match step:
            case bytes():
                writer.write(b"%x\r\n%s\r\n" % (len(step), step) if reply.has_head else step)
                await writer.drain()
            case Stall():
                await asyncio.Event().wait()
            case Drop():
                transport: Any = writer.transport
                transport.abort()
                return False
            case Close():
                return False
            case Endless(data, seconds):
                while True:
                    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                    await writer.drain()
                    await asyncio.sleep(seconds)
        if reply.pause_seconds:
            await asyncio.sleep(reply.pause_seconds)
    if not reply.has_head:
        return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def pieces(data: bytes, draw: random.Random) -> list[bytes]:
    """Cuts bytes at random places."""
    cut = []
    while data:
        size = draw.choice((1, 1, 2, 3, 7, 20, 100, 1000))
        cut.append(data[:size])
        data = data[size:]
    return cut


@contextlib.asynccontextmanager
async def provider(wire: Wire, script: Script = HELLO) -> AsyncIterator[ScriptedProvider]:
    """Yields a provider that answers with a script."""
    server = ScriptedProvider(wire, script)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


Make = Callable[[ScriptedProvider, random.Random], Reply]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A way to fail, and the reasons that may be told of it."""

    name: str
    make: Make
    reasons: frozenset[str]


def _cut(server: ScriptedProvider, draw: random.Random, step: Step) -> Reply:
    """A good answer up to a random byte before its terminal event, and then the step."""
    data = b"".join(server.wire.events(HELLO)[:-1])
    data = data[: draw.randrange(1, len(data))]
    return Reply(media_type=server.wire.media_type, steps=[*pieces(data, draw), step])


def _then(server: ScriptedProvider, draw: random.Random, *last: Step) -> Reply:
    """Whole events without the terminal one, and then the last."""
    events = server.wire.events(HELLO)[:-1]
    data = b"".join(events[: draw.randrange(0, len(events))])
    return Reply(media_type=server.wire.media_type, steps=[*pieces(data, draw), *last])


def _reasons(*names: str) -> frozenset[str]:
    return frozenset(names)


FAULTS = (
    Fault("closes before the head", lambda s, d: Reply(has_head=False), _reasons("UPSTREAM_UNAVAILABLE")),
    Fault(
        "resets before the head",
        lambda s, d: Reply(has_head=False, steps=[Drop()]),
        _reasons("UPSTREAM_UNAVAILABLE"),
    ),
    Fault(
        "stalls before the head",
        lambda s, d: Reply(has_head=False, steps=[Stall()]),
        _reasons("UPSTREAM_STALLED"),
    ),
    Fault(
        "sends garbage for a head",
        lambda s, d: Reply(has_head=False, steps=[b"\x00\x01 not HTTP at all\r\n\r\n"]),
        _reasons("UPSTREAM_PROTOCOL_ERROR"),
    ),
    Fault(
        "stalls after the head",
        lambda s, d: Reply(media_type=s.wire.media_type, steps=[Stall()]),
        _reasons("UPSTREAM_STALLED"),
    ),
    Fault("stalls in mid-event", lambda s, d: _cut(s, d, Stall()), _reasons("UPSTREAM_STALLED")),
    Fault("resets in mid-event", lambda s, d: _cut(s, d, Drop()), _reasons("UPSTREAM_TRUNCATED")),
    Fault("closes in mid-body", lambda s, d: _cut(s, d, Close()), _reasons("UPSTREAM_TRUNCATED")),
    Fault("ends without its terminal event", lambda s, d: _then(s, d), _reasons("UPSTREAM_TRUNCATED")),
    Fault("is overloaded", lambda s, d: s.failed(503), _reasons("UPSTREAM_UNAVAILABLE")),
    Fault(
        "limits the rate, with a time",
        lambda s, d: s.failed(429, retry_after="7"),
        _reasons("UPSTREAM_RATE_LIMITED"),
    ),
    Fault("limits the rate", lambda s, d: s.failed(429), _reasons("UPSTREAM_RATE_LIMITED")),
    Fault("fails", lambda s, d: s.failed(500), _reasons("UPSTREAM_PROTOCOL_ERROR")),
    Fault("refuses the key", lambda s, d: s.failed(401), _reasons("UPSTREAM_AUTH")),
    Fault(
        "redirects",
        lambda s, d: Reply(307, headers=(("location", "http://127.0.0.1:1/elsewhere"),)),
        _reasons("UPSTREAM_REDIRECT"),
    ),
    Fault(
        "sends another content type",
        lambda s, d: Reply(media_type="text/html", steps=[b"<html>maintenance</html>"]),
        _reasons("UPSTREAM_PROTOCOL_ERROR"),
    ),
    Fault(
        "sends an error event",
        lambda s, d: _then(s, d, s.wire.error_event()),
        _reasons("UPSTREAM_UNAVAILABLE", "UPSTREAM_PROTOCOL_ERROR"),
    ),
    Fault(
        "sends keep-alives for ever",
        lambda s, d: _then(s, d, Endless(s.wire.keep_alive, 0.05)),
        _reasons("UPSTREAM_STALLED"),
    ),
    Fault(
        "sends empty deltas for ever",
        lambda s, d: _then(s, d, Endless(s.wire.empty)),
        _reasons("UPSTREAM_STALLED"),
    ),
    Fault(
        "sends an event of 2 MB",
        lambda s, d: _then(s, d, Endless(b"data: " + b"x" * (2 << 20))),
        _reasons("UPSTREAM_PROTOCOL_ERROR"),
    ),
    Fault(
        "sends what is no JSON",
        lambda s, d: _then(s, d, b'data: {"choices": [tru\n\n\n'),
        _reasons("UPSTREAM_PROTOCOL_ERROR"),
    ),
    Fault(
        "compresses",
        lambda s, d: Reply(
            media_type=s.wire.media_type, headers=(("content-encoding", "gzip"),), steps=[b"\x1f\x8b"]
        ),
        _reasons("UPSTREAM_PROTOCOL_ERROR"),
    ),
)
