"""Calls over the web port, by the client of connectrpc: Connect with protobuf, Connect with JSON, gRPC-Web."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pytest
from connectrpc.client import ConnectClient, ResponseMetadata
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.server import Server

INFERENCE = pb.DESCRIPTOR.services_by_name["InferenceService"]
WAYS = {
    "connect": (ProtocolType.CONNECT, google_protobuf_binary_codec()),
    "connect-json": (ProtocolType.CONNECT, google_protobuf_json_codec()),
    "grpc-web": (ProtocolType.GRPC_WEB, google_protobuf_binary_codec()),
    "grpc-web-json": (ProtocolType.GRPC_WEB, google_protobuf_json_codec()),
}
each_way = pytest.mark.parametrize("way", WAYS)


class WebCaller:
    """Calls methods by name. Failures are connectrpc's own; `pushback` is what the last one told."""

    def __init__(self, client: ConnectClient) -> None:
        self._client = client
        self.pushback: str | None = None

    async def unary(
        self, name: str, request: Message, *, service: ServiceDescriptor = INFERENCE, **options: Any
    ) -> Any:
        """Returns the response."""
        with self._noting():
            method = _method(service, name)
            return await self._client.execute_unary(request=request, method=method, **options)

    async def stream(
        self, name: str, request: Message, *, service: ServiceDescriptor = INFERENCE, **options: Any
    ) -> AsyncGenerator[Any]:
        """Yields the responses. Closing it cancels the call."""
        with self._noting():
            method = _method(service, name)
            responses: Any = self._client.execute_server_stream(request=request, method=method, **options)
            async with contextlib.aclosing(responses):
                async for response in responses:
                    yield response

    async def events(self, request: Message, **options: Any) -> list[pb.StreamCompleteResponse]:
        """Returns the whole of a StreamComplete."""
        return [event async for event in self.stream("StreamComplete", request, **options)]

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        self.pushback = None
        with ResponseMetadata() as told:
            try:
                yield
            except ConnectError:
                self.pushback = told.trailers.get("grpc-retry-pushback-ms") or told.headers.get(
                    "grpc-retry-pushback-ms"
                )
                raise


def _method(service: ServiceDescriptor, name: str) -> MethodInfo[Any, Any]:
    method = service.methods_by_name[name]
    return MethodInfo(
        name=name,
        service_name=service.full_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )


@contextlib.asynccontextmanager
async def calling(server: Server, way: str, **options: Any) -> AsyncIterator[WebCaller]:
    """Yields a caller of the server's web port."""
    protocol, codec = WAYS[way]
    async with ConnectClient(server.web.url, protocol=protocol, codec=codec, **options) as client:
        yield WebCaller(client)


def details(error: ConnectError) -> status_pb2.Status:
    """Returns what a failure carries, as the status that gRPC would carry."""
    told = status_pb2.Status(message=error.message)
    for detail in error.details:
        told.details.add(type_url=f"type.googleapis.com/{detail.type_name}", value=detail.message_bytes)
    return told


def reason(error: ConnectError) -> str:
    """Returns the reason of a failure; empty when it has none."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for each in details(error).details if each.Unpack(info)), "")
