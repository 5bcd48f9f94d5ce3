"""A server that says exactly what a case wrote down, lawful or not: for what no server of ours would do.

An attempt is `{"messages": [...], "status": "OK", ...}`; each call of a method takes the next one, the last one again and again.
What came is remembered: how often, and with which metadata.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2

REPLIES: Mapping[str, type[Message]] = {
    "Complete": pb.CompleteResponse,
    "StreamComplete": pb.StreamCompleteResponse,
    "ListModels": pb.ListModelsResponse,
    "Embed": pb.EmbedResponse,
    "Load": models_pb2.LoadResponse,
    "StreamLoad": models_pb2.StreamLoadResponse,
}


@dataclasses.dataclass(repr=False)
class Asked:
    """What came to one method."""

    num_calls: int = 0
    metadata: list[dict[str, str]] = dataclasses.field(default_factory=list)
    requests: list[bytes] = dataclasses.field(default_factory=list)
    #: Those that calls came over.
    connections: set[int] = dataclasses.field(default_factory=set)
    num_pings: int = 0
    #: Those that came while nothing was sent: not to measure the connection but to keep it.
    num_silent_pings: int = 0
    num_cancelled: int = 0

    def __repr__(self) -> str:
        return (
            f"<Asked [calls {self.num_calls} | cancelled {self.num_cancelled} | connections {len(self.connections)}"
            f" | pings {self.num_pings}, in silence {self.num_silent_pings}]>"
        )


class Peer:
    """A bare gRPC server. `play` sets what is said next; `asked` is what came since."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._credentials = credentials
        self._attempts: list[Mapping[str, Any]] = []
        self.asked = Asked()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.port = 0

    def play(self, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Forgets what came, and says this from now on."""
        self._attempts = list(attempts)
        self.asked = Asked()

    async def start(self) -> None:
        """Opens a port."""
        self._server.add_generic_rpc_handlers((_Any(self),))
        address = "127.0.0.1:0"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Closes it."""
        await self._server.stop(0)

    async def answer(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        """Plays the next attempt."""
        asked = self.asked
        asked.num_calls += 1
        asked.requests.append(request)
        asked.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        attempt = self._attempts[min(asked.num_calls, len(self._attempts)) - 1]
        try:
            for message in attempt.get("messages", ()):
                await context.write(encoded(method, message))
            if attempt.get("hangs"):
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            asked.num_cancelled += 1
            raise
        code = grpc.StatusCode[attempt.get("status", "OK")]
        if code != grpc.StatusCode.OK:
            await context.abort(code, attempt.get("message", "the peer says so"), _trailers(code, attempt))


class _Any(grpc.GenericRpcHandler):
    """Every method is a stream of bytes: a unary call reads one message of it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method.rpartition("/")[2]

        async def call(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await self._peer.answer(method, request, context)

        return grpc.unary_stream_rpc_method_handler(call)


def encoded(method: str, message: object) -> bytes:
    """Returns a message's bytes; `{"base64": ...}` is bytes already."""
    if isinstance(message, dict) and set(message) == {"base64"}:
        return base64.b64decode(message["base64"])
    return json_format.ParseDict(message, REPLIES[method]()).SerializeToString()


def _trailers(code: grpc.StatusCode, attempt: Mapping[str, Any]) -> tuple[tuple[str, str | bytes], ...]:
    trailers: list[tuple[str, str | bytes]] = []
    if "pushback_ms" in attempt:
        trailers.append(("grpc-retry-pushback-ms", str(attempt["pushback_ms"])))
    if "details" in attempt:
        trailers.append(("grpc-status-details-bin", base64.b64decode(attempt["details"])))
    elif "reason" in attempt:
        packed = status_pb2.Status(code=code.value[0], message="the peer says so")
        packed.details.add().Pack(
            error_details_pb2.ErrorInfo(
                reason=attempt["reason"],
                domain=attempt.get("domain", "inferwire.dev"),
                metadata=attempt.get("metadata", {}),
            )
        )
        trailers.append(("grpc-status-details-bin", packed.SerializeToString()))
    return tuple(trailers)
