"""A collector of traces: a real OTLP server that keeps what it is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans in the order in which they came."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.url = ""
        self._news = asyncio.Event()

    @property
    def spans(self) -> list[trace_pb2.Span]:
        """All spans."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resource(self) -> dict[str, Any]:
        """The attributes of who sent the first span."""
        return attributes(self.requests[0].resource_spans[0].resource)

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        self._news.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def until(self, is_so: Callable[[list[trace_pb2.Span]], Any]) -> Any:
        """Waits until the spans are so, and returns what `is_so` does."""
        while not (found := is_so(self.spans)):
            self._news.clear()
            await self._news.wait()
        return found

    async def named(self, name: str) -> trace_pb2.Span:
        """Waits for the first span of a name."""
        return (await self.until(lambda spans: [span for span in spans if span.name == name]))[0]


def attributes(of: Any) -> dict[str, Any]:
    """Returns the attributes of a span or a resource."""
    found = {}
    for each in of.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Yields a collector that listens."""
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
