"""The gRPC ports: one server of the library per address, the services that it has, and who may call those.

Our own services are guarded in `rpc`; here stands the guard of those that the library brings, health and reflection.
"""

from __future__ import annotations

import inspect
import pathlib
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inferwire_server import channel_arguments, errors, rpc, status
from inferwire_server.access import Access
from inferwire_server.config import Address
from inferwire_server.health import SERVICE_NAME, Health, admit
from inferwire_server.tls import Certificates


class AddressInUse(Exception):
    """The address cannot be bound."""


class Port:
    """A server on one address. Add what it serves, then `start`."""

    def __init__(
        self,
        address: Address,
        access: Access,
        certificates: Certificates | None,
        *,
        options: channel_arguments.Options = (),
        title: str = "",
    ) -> None:
        """`options` are channel arguments beside those of every port, `title` a word for people, of a port beside the main one."""
        self.address = address
        self.title = title
        self._certificates = None if address.path else certificates
        self._names: list[str] = []
        self._is_bound = False
        self.server = grpc.aio.server(
            options=(*channel_arguments.OPTIONS, *options), interceptors=[_Guard(access)]
        )

    def __repr__(self) -> str:
        return (
            f"<Port {self.address} [{'TLS' if self._certificates else 'clear'} | {', '.join(self._names)}]>"
        )

    def add(self, service_name: str, methods: Iterable[rpc.Method]) -> None:
        """Serves a service of ours."""
        self.server.add_generic_rpc_handlers((rpc.handler(service_name, methods),))
        self._names.append(service_name)

    def add_health(self, health: Health) -> None:
        """Serves grpc.health.v1."""
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self.server)
        self._names.append(SERVICE_NAME)

    def add_reflection(self) -> None:
        """Serves reflection of what was added before."""
        reflection.enable_server_reflection([*self._names, reflection.SERVICE_NAME], self.server)

    async def start(self) -> None:
        """Listens. The address then has the port's true number. Raises AddressInUse."""
        if self.address.path:
            _check_socket(self.address.path)
        try:
            port = (
                self.server.add_secure_port(str(self.address), self._certificates.grpc_credentials())
                if self._certificates
                else self.server.add_insecure_port(str(self.address))
            )
        except RuntimeError as error:
            raise AddressInUse(f"cannot listen on {self.address}: is another server there?") from error
        self._is_bound = True
        if self.address.path:
            # Whoever may open it may ask: nobody but this user, until the operator says otherwise.
            _keep_private(self.address.path)
        else:
            self.address = Address(host=self.address.host, port=port)
        await self.server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Listens no more, sends GOAWAY, and ends after the grace what is left."""
        await self.server.stop(grace_seconds)
        if self.address.path and self._is_bound:
            _remove(self.address.path)


def _check_socket(path: str) -> None:
    """Raises AddressInUse for a path that somebody listens on, or that is no socket; the library would take it over."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise AddressInUse(f"cannot listen on unix:{path}: {error.strerror}") from error
    raise AddressInUse(f"cannot listen on unix:{path}: another server is there")


def _keep_private(path: str) -> None:
    pathlib.Path(path).chmod(0o600)


def _remove(path: str) -> None:
    pathlib.Path(path).unlink(missing_ok=True)


class _Guard(grpc.aio.ServerInterceptor):
    """Asks of every call of a library's service who makes it."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).removeprefix("/")
        # None: the library answers UNIMPLEMENTED.
        if handler is None or method.startswith(rpc.PACKAGE):
            return handler
        return _Guarded(handler, method, self._access)


class _Guarded(grpc.RpcMethodHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """A handler behind the guard."""

    def __init__(self, handler: grpc.RpcMethodHandler[Any, Any], method: str, access: Access) -> None:
        self.request_streaming = handler.request_streaming
        self.response_streaming = handler.response_streaming
        self.request_deserializer = handler.request_deserializer
        self.response_serializer = handler.response_serializer
        self.unary_unary = handler.unary_unary and self._guarded(handler.unary_unary, method, access)
        self.unary_stream = handler.unary_stream and self._guarded(handler.unary_stream, method, access)
        self.stream_unary = handler.stream_unary and self._guarded(handler.stream_unary, method, access)
        self.stream_stream = handler.stream_stream and self._guarded(handler.stream_stream, method, access)

    @staticmethod
    def _guarded(function: Callable[..., Any], method: str, access: Access) -> Callable[..., Any]:
        async def check(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                metadata = dict(context.invocation_metadata() or ())
                admit(access, method, metadata, rpc.certificate_names(context), lambda: request)
            except errors.ServingError as error:
                told = status.of(error)
                await context.abort(told.code, told.message, told.trailing_metadata)

        if inspect.isasyncgenfunction(function):

            async def responses(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
                await check(request, context)
                async for response in function(request, context):
                    yield response

            return responses

        async def answer(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await check(request, context)
            return await function(request, context)

        return answer
