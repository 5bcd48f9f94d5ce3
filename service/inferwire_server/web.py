"""The web port: the same methods over Connect and gRPC-Web, for browsers, and as JSON for curl.

The only importer of connectrpc and uvicorn. HTTP/1.1 on a port of its own, in the process and loop of the gRPC port.
Decides nothing about a call: messages, deadlines and ends pass through here, and `rpc` does the rest. What it owns are
the manners of HTTP: which pages may call (CORS), how long a connection may stall, and that no exception's text leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import inspect
import json
import logging
import re
import socket
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import h11
import structlog
import uvicorn
from connectrpc.code import Code
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from protobuf.wkt import Any as LibraryAny
from protobuf.wkt import Struct
from uvicorn.protocols.http.h11_impl import H11Protocol

from inferwire_server import errors, rpc, status
from inferwire_server.backends.base import Encodable, EncodedEvent
from inferwire_server.channel_arguments import MAX_MESSAGE_BYTES
from inferwire_server.config import Address
from inferwire_server.health import Health, admit
from inferwire_server.ports import AddressInUse
from inferwire_server.tls import Certificates

log = structlog.get_logger()

# Longer than the idle limit of the usual proxies (60 s), or they would send on connections that end just now.
KEEP_ALIVE_SECONDS = 75
# For a whole request, body included, to arrive.
REQUEST_SECONDS = 60.0
# For what was answered to leave the process, once nothing runs any more.
FLUSH_SECONDS = 1
# A peer that vanished is found within 40 s, as on the gRPC port.
TCP_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2))
# Longer JSON is read and written in a thread: Python takes a second or more for a megabyte of small values.
MAX_INLINE_JSON_BYTES = 16 << 10
# For so long a browser need not ask again whether it may call. More than two hours counts as two in Chromium.
PREFLIGHT_SECONDS = 7200

# What Connect, gRPC-Web and our metadata need beside what every page may send and read.
REQUEST_HEADERS = (
    "authorization, baggage, connect-accept-encoding, connect-content-encoding, connect-protocol-version, "
    "connect-timeout-ms, content-encoding, content-type, grpc-accept-encoding, grpc-encoding, grpc-timeout, "
    "traceparent, tracestate, x-grpc-web, x-request-id, x-user-agent"
)
RESPONSE_HEADERS = (
    "connect-content-encoding, content-encoding, grpc-encoding, grpc-message, grpc-retry-pushback-ms, grpc-status, "
    "grpc-status-details-bin, trailer-grpc-retry-pushback-ms"
)

_Headers = list[tuple[bytes, bytes]]
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]
_Asgi = Callable[[Any, _Receive, _Send], Awaitable[None]]
_Result = TypeVar("_Result")

# The names in the certificate of who makes the request; the library hands on the headers alone.
_certificate: contextvars.ContextVar[Sequence[str]] = contextvars.ContextVar("certificate", default=())


class WebPort:
    """A server on one address. Add what it serves, then `start`."""

    def __init__(
        self,
        address: Address,
        gate: rpc.Gate,
        certificates: Certificates | None,
        *,
        origins: Sequence[str] = (),
        write_stall_seconds: float = 30.0,
    ) -> None:
        """`origins` are those whose pages may call; "*" is all of them."""
        self.address = address
        self._gate = gate
        self._certificates = certificates
        self._origins = tuple(origins)
        self._stall_seconds = write_stall_seconds + rpc.ABORT_SECONDS
        self._names: list[str] = []
        self._endpoints: dict[str, Any] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="json")
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<WebPort {self.url} [{', '.join(self._names)} | {len(self._calls)} calls]>"

    @property
    def url(self) -> str:
        """What callers put before a method's path."""
        return f"{'https' if self._certificates else 'http'}://{self.address}"

    def add(self, service_name: str, methods: Iterable[rpc.Method]) -> None:
        """Serves a service of ours."""
        self._names.append(service_name)
        for method in methods:
            info = MethodInfo(
                name=method.name,
                service_name=service_name,
                input=_Body,
                output=bytes,
                # No method of the contract says that it may be called by GET.
                idempotency_level=IdempotencyLevel.UNKNOWN,
                stream_type=StreamType.SERVER_STREAM if method.is_stream else StreamType.UNARY,
            )
            self._endpoints[f"/{method.full_name}"] = (
                Endpoint.server_stream(info, functools.partial(self._stream, method))
                if method.is_stream
                else Endpoint.unary(info, functools.partial(self._answer, method))
            )

    def add_health(self, health: Health) -> None:
        """Serves grpc.health.v1."""
        service = health_pb2.DESCRIPTOR.services_by_name["Health"]
        methods = [
            _HealthMethod(method, getattr(health.servicer, method.name), self._gate)
            for method in service.methods
        ]
        self.add(service.full_name, methods)

    async def start(self) -> None:
        """Listens. The address then has the port's true number. Raises AddressInUse."""
        listener = _listen(self.address)
        self.address = Address(host=self.address.host, port=listener.getsockname()[1])
        application = _Application(self._endpoints, [_Codec(), _JsonCodec(self._thread)])
        tls = self._certificates.ssl_context() if self._certificates else None
        config = _Config(
            _Door(application, self._gate, self._origins),
            http=_Connection,
            ws="none",
            lifespan="off",
            loop="none",
            # What it says below that is what clients do wrong, and a line for each would be theirs to make.
            log_level=logging.ERROR,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FLUSH_SECONDS,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        config.stall_seconds = self._stall_seconds
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve([listener]), name="web port")

    async def stop(self, grace_seconds: float) -> None:
        """Goes on for at most so long, or until it is told again with 0; then ends what is left.

        Who calls meanwhile is told by the gate to go elsewhere.
        """
        if self._server is None or self._serving is None:
            return
        await asyncio.wait([self._serving], timeout=grace_seconds)
        # Watches of health: what passes the gate is over.
        for call in self._calls:
            call.cancel()
        self._server.should_exit = True
        await asyncio.wait([self._serving])
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        self._serving.result()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, method: rpc.Method, body: _Body, context: RequestContext[Any, Any]) -> bytes:
        call = _Call(context, body.codec)
        method, read = body.read_by(method)

        async def answer() -> bytes:
            return await body.codec.write(await method.answer(call, read))

        async with self._running(answer()) as task:
            await asyncio.wait([task])
            return _outcome(task)

    async def _stream(
        self, method: rpc.Method, body: _Body, context: RequestContext[Any, Any]
    ) -> AsyncGenerator[bytes]:
        # nginx would hold back what it passes on until its buffer is full.
        context.response_headers["x-accel-buffering"] = "no"
        call = _Call(context, body.codec)
        method, read = body.read_by(method)
        async with self._running(method.stream(call, read)) as task:
            task.add_done_callback(call.wake)
            while (data := await call.next(task)) is not None:
                yield data
            _outcome(task)

    @contextlib.asynccontextmanager
    async def _running(self, method: Coroutine[Any, Any, _Result]) -> AsyncIterator[asyncio.Task[_Result]]:
        """Runs a call's method in a task, which is over when the block is."""
        task = asyncio.create_task(method)
        self._calls.add(task)
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._calls.discard(task)
            # Asked for, or the loop would complain of a failure that nobody waits for any more.
            _ = task.cancelled() or task.exception()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # As gRPC does it: on "::" for both families.
    both = address.host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (address.host, address.port), family=family, backlog=1024, dualstack_ipv6=both
        )
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: is another server there?") from error
    listener.setblocking(False)
    # Connections inherit these from the listener.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_KEEP_ALIVE:
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


def _outcome(task: asyncio.Task[_Result]) -> _Result:
    """Returns what a call's method returned. Raises ConnectError and nothing else."""
    if task.cancelled():
        raise ConnectError(Code.UNAVAILABLE, "the server is going away")
    failure = task.exception()
    if failure is None:
        return task.result()
    if isinstance(failure, ConnectError):
        raise failure
    # `rpc` turns every failure into a status: this is one of its own.
    log.error("web_error", exc_info=failure)
    raise ConnectError(Code.INTERNAL, "internal error")


class _Call:
    """A call as `rpc.Transport`: its method pushes messages, the library pulls them, and at most one waits."""

    def __init__(self, context: RequestContext[Any, Any], codec: _Codec) -> None:
        self._context = context
        self._codec = codec
        self._waiting: bytes | None = None
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self.metadata: Mapping[str, str | bytes] = dict(context.request_headers.items())
        self.certificate = _certificate.get()

    def __repr__(self) -> str:
        return (
            f"<_Call {self._context.method.name} [{'idle' if self._waiting is None else 'a message waits'}]>"
        )

    @property
    def seconds_left(self) -> float | None:
        milliseconds = self._context.timeout_ms
        return None if milliseconds is None else milliseconds / 1000

    async def write(self, message: Encodable) -> None:
        data = self._codec.serialize(message)
        while self._waiting is not None:
            self._went.clear()
            await self._went.wait()
        self._waiting = data
        self._came.set()

    async def next(self, task: asyncio.Task[None]) -> bytes | None:
        """Returns the next message; None when there is none and the task is done, which then calls `wake`."""
        while self._waiting is None and not task.done():
            self._came.clear()
            await self._came.wait()
        data, self._waiting = self._waiting, None
        self._went.set()
        return data

    def wake(self, task: asyncio.Task[None]) -> None:
        """Lets `next` look again."""
        self._came.set()

    async def abort(self, told: status.Status) -> None:
        details: list[ErrorDetail] = []
        for key, value in told.trailing_metadata:
            if isinstance(value, bytes):
                details = [_Detail(each) for each in status_pb2.Status.FromString(value).details]
            else:
                self._context.response_trailers[key] = value
        # Connect writes one code with one l less than gRPC does.
        name = told.code.name.replace("CANCELLED", "CANCELED")
        raise ConnectError(Code[name], told.message, details)


class _Detail(ErrorDetail):
    """A detail that an answer in JSON shows in plain words, too."""

    def __init__(self, detail: any_pb2.Any) -> None:
        super().__init__(LibraryAny(type_url=detail.type_url, value=detail.value))
        words = json_format.MessageToDict(detail)
        del words["@type"]
        self._words = Struct.from_json(json.dumps(words))

    def value(self, desc_or_registry: object = None) -> Any:
        """Returns the words. The library asks for a message of its own, to show it as JSON."""
        return self._words


class _HealthMethod(rpc.Method):
    """A method of the library's servicer. It does not pass the gate, so that it answers while the server drains."""

    async def answer(self, transport: rpc.Transport, read: Callable[[], Message]) -> Message:
        response: Message = await self._ask(transport, read)
        return response

    async def stream(self, transport: rpc.Transport, read: Callable[[], Message]) -> None:
        await self._ask(transport, read)

    async def _ask(self, transport: rpc.Transport, read: Callable[[], Message]) -> Any:
        try:
            request = admit(self.gate.access, self.full_name, transport.metadata, transport.certificate, read)
            return await self.function(request, _HealthContext(transport))  # type: ignore[arg-type]
        except errors.ServingError as error:
            await transport.abort(status.of(error))


class _HealthContext:
    """What the health servicer uses of gRPC's context."""

    def __init__(self, transport: rpc.Transport) -> None:
        self._transport = transport
        self.write = transport.write

    async def abort(self, code: status.Code, details: str = "") -> None:
        await self._transport.abort(status.Status(code, details, ()))


class _Codec:
    """Messages as protobuf. What the library sees are bytes: they are read and written on our side of the boundary."""

    def name(self) -> str:
        return "proto"

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> _Body:
        return _Body(bytes(data), self)

    def encode(self, message: bytes) -> bytes:
        if len(message) > MAX_MESSAGE_BYTES:
            raise ConnectError(
                Code.RESOURCE_EXHAUSTED, f"the answer is larger than {MAX_MESSAGE_BYTES} bytes"
            )
        return message

    def is_slow(self, num_bytes: int) -> bool:
        """Whether the loop should not wait while so much is read or written."""
        return False

    def parse(self, method: rpc.Method, data: bytes) -> Message:
        """Returns the request. Raises errors.MalformedMessage."""
        return method.parse(data)

    async def parse_slowly(self, method: rpc.Method, data: bytes) -> Message:
        """Returns the request when the loop has done other things meanwhile. Raises errors.MalformedMessage."""
        return self.parse(method, data)

    def serialize(self, message: Encodable) -> bytes:
        """Returns the bytes of a response."""
        return message.SerializeToString()

    async def write(self, response: Message) -> bytes:
        """Returns the bytes of a response that may be large."""
        return self.serialize(response)


# What is told of a request in JSON that cannot be read: the caller's own field, and never the parser's words.
_UNKNOWN_FIELD = re.compile(r'has no field named "([^"]{0,128})" at "\w+\.?([^"]{0,512})"')
_WRONG_VALUE = re.compile(r"at \w+\.((?:\w|[.\[\]])*?\w\]?)\.*$")
_SYNTAX = re.compile(r"line (\d+) column (\d+)")


class _JsonCodec(_Codec):
    """Messages as JSON. In Python that is slow, so what is long goes through a thread."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    def name(self) -> str:
        return "json"

    def is_slow(self, num_bytes: int) -> bool:
        return num_bytes > MAX_INLINE_JSON_BYTES

    def parse(self, method: rpc.Method, data: bytes) -> Message:
        request = method.new_request()
        try:
            json_format.Parse(data, request)
        except (json_format.ParseError, ValueError, RecursionError) as error:
            raise _malformed_json(request.DESCRIPTOR.full_name, str(error)) from None
        return request

    async def parse_slowly(self, method: rpc.Method, data: bytes) -> Message:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.parse, method, data)

    def serialize(self, message: Encodable) -> bytes:
        if isinstance(message, EncodedEvent):
            message = message.message()
        if not isinstance(message, Message):
            raise TypeError(f"{type(message).__name__} is no message")
        return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode()

    async def write(self, response: Message) -> bytes:
        if not self.is_slow(response.ByteSize()):
            return self.serialize(response)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.serialize, response)


def _malformed_json(message_name: str, words: str) -> errors.MalformedMessage:
    metadata = {"message": message_name}
    if found := _UNKNOWN_FIELD.search(words):
        field, what = ".".join(filter(None, (found[2], found[1]))), "no such field"
    elif found := _WRONG_VALUE.search(words):
        field, what = found[1], "not a value of this field"
    else:
        place = f" (line {found[1]}, column {found[2]})" if (found := _SYNTAX.search(words)) else ""
        return errors.MalformedMessage(
            f"the body is not the JSON of {message_name}{place}", metadata=metadata
        )
    return errors.MalformedMessage(
        f"the body is not the JSON of {message_name}: {field}: {what}",
        metadata=metadata,
        violations=[(field, what)],
    )


@dataclasses.dataclass(frozen=True)
class _Body:
    """A request that is yet to be read: first the caller is let in."""

    data: bytes = dataclasses.field(repr=False)
    codec: _Codec

    def read_by(self, method: rpc.Method) -> tuple[rpc.Method, Callable[[], Any]]:
        """Returns the method and what gives it its request; where that is slow, the method reads it first."""
        if not self.codec.is_slow(len(self.data)):
            return method, functools.partial(self.codec.parse, method, self.data)

        async def answer(body: _Body, context: rpc.Context) -> Any:
            return await method.function(await body.codec.parse_slowly(method, body.data), context)

        async def stream(body: _Body, context: rpc.Context) -> AsyncGenerator[Encodable]:
            request = await body.codec.parse_slowly(method, body.data)
            async with contextlib.aclosing(method.function(request, context)) as responses:
                async for response in responses:
                    yield response

        function = stream if inspect.isasyncgenfunction(method.function) else answer
        return dataclasses.replace(method, function=function), lambda: self


class _Gzip(GzipCompression):
    """For requests: clients may compress them. Answers go as they are, for an event is smaller than gzip's own frame."""

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        """Returns the bytes, at most so many. Raises ConnectError."""
        try:
            return super().decompress(data, read_max_bytes)
        except (EOFError, OSError, zlib.error):
            raise ConnectError(Code.INVALID_ARGUMENT, "the body is not what gzip compressed") from None


class _Application(ConnectASGIApplication[Mapping[str, Any]]):
    """The library's application over all services at once."""

    def __init__(self, endpoints: Mapping[str, Any], codecs: Sequence[_Codec]) -> None:
        super().__init__(
            service=endpoints,
            endpoints=lambda service: service,
            read_max_bytes=MAX_MESSAGE_BYTES,
            compressions=[_Gzip()],
            codecs=codecs,
        )

    @property
    def path(self) -> str:
        return "/"


# The library's answers that have no words.
_WORDS = {
    404: ("unimplemented", "no such method: POST to /inferwire.v1.InferenceService/ and its name"),
    405: ("unimplemented", "call methods by POST"),
    415: ("invalid_argument", "send content-type application/json, or one of Connect's or gRPC-Web's"),
}
# What a caller says of the answer it would take: none is compressed.
_NOT_PASSED_ON = {b"accept-encoding", b"connect-accept-encoding", b"grpc-accept-encoding"}


class _Door:
    """What stands before the library's application: which pages may call, and what the library would stumble over."""

    def __init__(self, application: _Asgi, gate: rpc.Gate, origins: Sequence[str]) -> None:
        self._application = application
        self._gate = gate
        self._origins = frozenset(origin.encode() for origin in origins)
        self._vary: _Headers = [(b"vary", b"Origin")] if self._origins - {b"*"} else []

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        _certificate.set(scope["state"]["certificate"])
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        added = [*self._vary, *self._allowed(origin)]
        if self._gate.draining:
            added.append((b"connection", b"close"))
        content_type = headers.get(b"content-type", b"")
        if origin is not None and not self._is_allowed(origin):
            # Not only kept from reading the answer: what a page of anybody's sends is not computed.
            await _refuse(
                send, 403, added, "permission_denied", "pages of this origin may not call this server"
            )
        elif scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _respond(send, 204, [*added, *_PREFLIGHT], b"")
        elif not all(value.isascii() for _, value in scope["headers"]):
            await _refuse(send, 400, added, "invalid_argument", "a header is not ASCII")
        elif content_type.startswith(b"application/grpc") and not content_type.startswith(
            b"application/grpc-web"
        ):
            await _refuse(
                send, 415, added, "unimplemented", "gRPC itself is spoken on the server's main port"
            )
        else:
            passed_on = [header for header in scope["headers"] if header[0] not in _NOT_PASSED_ON]
            await self._application({**scope, "headers": passed_on}, receive, _Sender(send, added))

    def _is_allowed(self, origin: bytes) -> bool:
        return origin in self._origins or b"*" in self._origins

    def _allowed(self, origin: bytes | None) -> _Headers:
        """Returns the headers by which a page of this origin may read the answer."""
        if origin is None or not self._is_allowed(origin):
            return []
        return [
            (b"access-control-allow-origin", b"*" if b"*" in self._origins else origin),
            (b"access-control-expose-headers", RESPONSE_HEADERS.encode()),
        ]


_PREFLIGHT: _Headers = [
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", REQUEST_HEADERS.encode()),
    (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
]


class _Sender:
    """Passes an answer on with headers of ours, and with words where it has none."""

    def __init__(self, send: _Send, headers: _Headers) -> None:
        self._send = send
        self._headers = headers
        self._wordless: tuple[int, _Headers] | None = None

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], *self._headers]
            if message["status"] in _WORDS and not any(name == b"content-type" for name, _ in headers):
                self._wordless = message["status"], headers
                return
            message = {**message, "headers": headers}
        elif self._wordless is not None:
            http_status, headers = self._wordless
            await _refuse(self._send, http_status, headers, *_WORDS[http_status])
            return
        await self._send(message)


async def _refuse(send: _Send, http_status: int, headers: _Headers, code: str, message: str) -> None:
    """Answers as Connect tells a failure."""
    body = json.dumps({"code": code, "message": message}).encode()
    await _respond(send, http_status, [*headers, (b"content-type", b"application/json")], body)


async def _respond(send: _Send, http_status: int, headers: _Headers, body: bytes) -> None:
    if http_status != 204:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Config(uvicorn.Config):
    stall_seconds: float


class _Uvicorn(uvicorn.Server):
    """A server in a process that is not its own: signals are not for it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server`."""
        yield


class _Connection(H11Protocol):
    """A connection of uvicorn's that does not wait for ever: neither for a request to arrive nor for a reader to read."""

    def __init__(self, config: _Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._stall_seconds = config.stall_seconds
        self._limits: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.app_state = {"certificate": _names(transport)}
        self._limit_receiving()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._limit_receiving()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        # A call that waits for this is ended before; this is for what was answered whole.
        self._limit("writing", self._stall_seconds)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        self._unlimit("writing")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._unlimit("receiving")
        self._unlimit("writing")
        super().connection_lost(exc)

    def _limit_receiving(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
            self._limit("receiving", REQUEST_SECONDS)
        else:
            self._unlimit("receiving")

    def _limit(self, what: str, seconds: float) -> None:
        if what not in self._limits:
            self._limits[what] = self.loop.call_later(seconds, self.transport.abort)

    def _unlimit(self, what: str) -> None:
        timer = self._limits.pop(what, None)
        if timer is not None:
            timer.cancel()


def _names(transport: asyncio.Transport) -> Sequence[str]:
    """Returns the names in the peer's verified certificate: alternative names, then the common name."""
    connection = transport.get_extra_info("ssl_object")
    told: Any = connection.getpeercert() if connection is not None else None
    if not told:
        return ()
    subject = [pair for part in told.get("subject", ()) for pair in part]
    return (
        *(value for _, value in told.get("subjectAltName", ())),
        *(value for key, value in subject if key == "commonName"),
    )
