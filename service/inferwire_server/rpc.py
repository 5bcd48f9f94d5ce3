"""Binds a servicer's methods to a transport: the one boundary between messages on the wire and the server's own terms.

Gives each call its id and deadline; turns every failure into a status by `status.of`, and an unexpected exception into
INTERNAL with an errorId that the log has too. Writes one log line per call. No exception text ever leaves through here.
gRPC is the transport below; requests are parsed here, so that a malformed message is told with details.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from inferwire.v1 import inference_pb2
from inferwire_server import errors, status
from inferwire_server.access import NOBODY, Access
from inferwire_server.backends.base import HOPS_KEY, Call, Encodable, Trace
from inferwire_server.changes import Changes
from inferwire_server.pace import Pace

log = structlog.get_logger()

# Of our services; all others are the libraries'.
PACKAGE = "inferwire.v1."
REQUEST_ID_KEY = "x-request-id"
ABORT_SECONDS = 5.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class PeerGone(Exception):
    """A message could not be written: the call is over, and nobody is left to be told."""


class Transport(Protocol):
    """One call as what carries it sees it. It runs in a task of its own, which is cancelled when the caller is gone."""

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the caller sent beside the request; keys in lower case."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""

    @property
    def certificate(self) -> Sequence[str]:
        """The names in the caller's certificate, which was verified: alternative names, then the common name."""

    async def write(self, message: Encodable) -> None:
        """Returns when the caller has room for more. Raises PeerGone."""

    async def abort(self, told: status.Status) -> None:
        """Ends the call with a failure. Raises PeerGone when it is over already, or an exception of the transport."""


class Context:
    """What a servicer may know of a call."""

    def __init__(self, transport: Transport, full_name: str) -> None:
        # "package.Service/Method"
        self.full_name = full_name
        self.begin = time.monotonic()
        remaining = transport.seconds_left
        self.deadline = None if remaining is None else self.begin + remaining
        self.request_id = _request_id(transport.metadata)
        self.hops = _hops(transport.metadata)
        self.principal = NOBODY
        self.call: Call | None = None
        self.end: errors.ServingError | None = None
        self.task = asyncio.current_task()
        self.writing_since: float | None = None
        self.fields: dict[str, str | int | float] = {}
        # What those who watch the call are told. The model is who answers; the route, who was asked for it.
        self.model = ""
        self.route = ""
        self.usage: inference_pb2.Usage | None = None
        self.completion: inference_pb2.Completion | None = None
        self.pace: Pace | None = None
        self.operation = ""
        self.trace: Trace | None = None

    @property
    def method(self) -> str:
        """The method's name within its service."""
        return self.full_name.rpartition("/")[2]

    def end_with(self, error: errors.ServingError) -> None:
        """Ends the call with `error`, whatever it waits for. The first end counts."""
        if self.end is None and self.task is not None:
            self.end = error
            self.task.cancel()

    def note(self, **fields: str | float) -> None:
        """Adds fields to the call's log line: ids, counts and durations, never what a caller wrote."""
        self.fields.update(fields)


class Observer(Protocol):
    """Is told of every call, in the event loop: it must not block."""

    def begin(self, context: Context, metadata: Mapping[str, str | bytes]) -> None:
        """A call begins."""

    def end(self, context: Context, code: str, reason: str) -> None:
        """A call has ended, with the name of the status that the caller is told or would have been."""


class Gate:
    """Which calls are let in, and which run. One per server. `observers` are told of all of them."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.observers: Sequence[Observer] = ()
        self.draining = False
        self.changes = Changes()
        self._running: set[Context] = set()

    def __repr__(self) -> str:
        return f"<Gate [{'draining' if self.draining else 'open'} | {len(self._running)} calls]>"

    @property
    def num_calls(self) -> int:
        """Calls that run now."""
        return len(self._running)

    @property
    def running(self) -> list[Context]:
        """The calls that run now. From any thread."""
        return list(self._running)

    def end_calls(self, error: errors.ServingError) -> None:
        """Ends every running call with `error`, whatever it waits for."""
        for context in self._running:
            context.end_with(error)

    async def end_slow_readers(self, write_stall_seconds: float) -> None:
        """Ends calls whose caller has not read for so long, until it is cancelled itself."""
        while True:
            await asyncio.sleep(min(1.0, write_stall_seconds / 4))
            limit = time.monotonic() - write_stall_seconds
            for context in self._running:
                if context.writing_since is not None and context.writing_since < limit:
                    context.end_with(errors.ClientTooSlow("the caller did not read for the server's limit"))

    @contextlib.contextmanager
    def entered(self, context: Context, transport: Transport) -> Iterator[None]:
        """Keeps a call for as long as it runs. Raises what `Access` does, and errors.Draining when no call is let in."""
        context.principal = self.access.identify(transport.metadata, transport.certificate)
        self.access.check(context.principal, context.full_name)
        if self.draining:
            raise errors.Draining(
                "the server is going away; retry on another replica",
                retry_delay_seconds=secrets.randbelow(100) / 1000,
            )
        self._running.add(context)
        try:
            yield
        finally:
            self._running.discard(context)
            self.changes.bump()


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a service, bound to the servicer's function of that name."""

    descriptor: MethodDescriptor
    function: Callable[[Any, Context], Any]
    gate: Gate

    @property
    def name(self) -> str:
        """Its name within the service."""
        return self.descriptor.name

    @property
    def full_name(self) -> str:
        """Its name as Access knows it: "package.Service/Method"."""
        return f"{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def is_stream(self) -> bool:
        """Whether it answers with `stream`, else with `answer`."""
        return self.descriptor.server_streaming

    def new_request(self) -> Message:
        """Returns an empty request."""
        return GetMessageClass(self.descriptor.input_type)()

    def parse(self, data: bytes) -> Message:
        """Returns the request. Raises errors.MalformedMessage."""
        request = self.new_request()
        try:
            request.ParseFromString(data)
        except DecodeError:
            raise errors.MalformedMessage(
                "the bytes are not the request's message, or a string in it is not UTF-8",
                metadata={"message": self.descriptor.input_type.full_name},
            ) from None
        return request

    async def answer(self, transport: Transport, read: Callable[[], Message]) -> Message:
        """Returns the response to what `read` returns, or ends the call by `transport.abort`."""
        context = Context(transport, self.full_name)
        async with _boundary(context, transport, self.gate.observers):
            with self.gate.entered(context, transport):
                response: Message = await self.function(read(), context)
                return response
        # The call is over: its deadline passed just when it was to be refused. The transport sends nothing more.
        raise asyncio.CancelledError

    async def stream(self, transport: Transport, read: Callable[[], Message]) -> None:
        """Writes the responses to what `read` returns, or ends the call by `transport.abort`."""
        context = Context(transport, self.full_name)
        async with _boundary(context, transport, self.gate.observers) as written:
            with self.gate.entered(context, transport):
                # Closed here and now, not when the garbage collector comes by: closing is what cancels the work.
                async with contextlib.aclosing(self.function(read(), context)) as responses:
                    async for response in responses:
                        written.started = True
                        context.writing_since = time.monotonic()
                        await transport.write(response)
                        context.writing_since = None


def bind(service: ServiceDescriptor, servicer: object, gate: Gate) -> list[Method]:
    """Returns the methods of a service, each bound to the servicer's function of its name."""
    return [Method(method, getattr(servicer, method.name), gate) for method in service.methods]


def handler(service_name: str, methods: Iterable[Method]) -> grpc.GenericRpcHandler:
    """Returns the methods of a service as gRPC wants them."""
    return grpc.method_handlers_generic_handler(
        service_name, {method.name: _grpc_handler(method) for method in methods}
    )


def _grpc_handler(method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    if method.is_stream:

        async def stream(data: bytes, context: grpc.aio.ServicerContext[bytes, Encodable]) -> None:
            await method.stream(_GrpcTransport(context), functools.partial(method.parse, data))

        return grpc.unary_stream_rpc_method_handler(stream, response_serializer=_serialize)

    async def answer(data: bytes, context: grpc.aio.ServicerContext[bytes, Encodable]) -> Message:
        return await method.answer(_GrpcTransport(context), functools.partial(method.parse, data))

    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=_serialize)


class _GrpcTransport:
    """A call of grpc.aio."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, Encodable]) -> None:
        self._context = context
        self.metadata: Mapping[str, str | bytes] = dict(context.invocation_metadata() or ())

    @property
    def certificate(self) -> Sequence[str]:
        return certificate_names(self._context)

    @property
    def seconds_left(self) -> float | None:
        # The types say float, but a call without a deadline has None.
        return self._context.time_remaining()

    async def write(self, message: Encodable) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.InternalError as error:
            raise PeerGone from error

    async def abort(self, told: status.Status) -> None:
        try:
            await self._context.abort(told.code, told.message, told.trailing_metadata)
        except grpc.aio.InternalError as error:
            raise PeerGone from error


def certificate_names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """Returns the names in the certificate that the caller showed and the library verified; none without one."""
    told = context.auth_context()
    values = [*told.get("x509_subject_alternative_name", ()), *told.get("x509_common_name", ())]
    return [value.decode("utf-8", "replace") for value in values]


class _Written:
    started = False


@contextlib.asynccontextmanager
async def _boundary(
    context: Context, transport: Transport, observers: Sequence[Observer]
) -> AsyncIterator[_Written]:
    """Ends the call with the right status for whatever happens inside."""
    written = _Written()
    if observers:
        context.pace = Pace()
    for observer in observers:
        observer.begin(context, transport.metadata)
    code = grpc.StatusCode.OK
    reason = ""
    try:
        try:
            yield written
        except errors.ServingError as error:
            failure = error
        except asyncio.CancelledError:
            if context.end is None or context.task is None:
                # The caller is gone, or its deadline has passed; the library knows.
                code, reason = _cancelled(context)
                raise
            # The server ended the call. Left alone, such a call would never get a status.
            context.task.uncancel()
            failure = context.end
        except PeerGone:
            code, reason = _cancelled(context)
            return
        except Exception:
            error_id = secrets.token_hex(8)
            log.exception("internal_error", error_id=error_id, method=context.method, id=context.request_id)
            failure = errors.Internal("internal error", metadata={"errorId": error_id})
        else:
            return
        if failure.detail:
            failure.metadata.setdefault("errorId", secrets.token_hex(8))
            log.warning(
                "error_detail",
                error_id=failure.metadata["errorId"],
                reason=failure.reason,
                detail=failure.detail,
            )
        tokens_emitted = context.call.tokens_emitted if context.call else None
        told = status.of(failure, started=written.started, tokens_emitted=tokens_emitted)
        code, reason = told.code, failure.reason
        # Behind messages that a caller does not read, the status may wait for ever; all that the call held is free.
        # And where its deadline has passed just now, nobody is left to be told.
        with contextlib.suppress(PeerGone):
            async with asyncio.timeout(ABORT_SECONDS):
                await transport.abort(told)
    finally:
        log.info(
            "rpc",
            method=context.method,
            id=context.request_id,
            code=code.name,
            reason=reason,
            principal=context.principal.name,
            seconds=round(time.monotonic() - context.begin, 4),
            **context.fields,
        )
        for observer in observers:
            observer.end(context, code.name, reason)


def _cancelled(context: Context) -> tuple[grpc.StatusCode, str]:
    if context.deadline is not None and time.monotonic() >= context.deadline:
        return grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded.reason
    return grpc.StatusCode.CANCELLED, errors.Cancelled.reason


def _serialize(response: Encodable) -> bytes:
    return response.SerializeToString()


def _request_id(metadata: Mapping[str, str | bytes]) -> str:
    value = metadata.get(REQUEST_ID_KEY)
    return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else secrets.token_hex(12)


def _hops(metadata: Mapping[str, str | bytes]) -> int:
    value = metadata.get(HOPS_KEY)
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value) else 0
