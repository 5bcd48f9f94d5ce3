"""Sockets for the HTTP client, straight on asyncio.

httpcore's own go through anyio, which stops and starts to watch a socket around every read and makes a cancel scope for it: a
fifth of what a gateway with a thousand streams does. Here a read takes what has come, and a socket is watched until too much
waits.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

MAX_HELD_BYTES = 256 << 10


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens connections; see `httpcore.AsyncNetworkBackend`."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Returns a connection. Raises httpcore.ConnectError or ConnectTimeout."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, protocol = await loop.create_connection(
                    _Connection, host, port, local_addr=(local_address, 0) if local_address else None
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        for option in socket_options or ():
            protocol.transport.get_extra_info("socket").setsockopt(*option)
        return _Stream(protocol)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


class _Connection(asyncio.Protocol):
    """What has come and was not read yet, and whether more may be sent."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held = bytearray()
        self._waiting: asyncio.Future[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._error: Exception | None = None
        self._is_paused = False
        self.has_ended = False

    def __repr__(self) -> str:
        return f"<_Connection [{len(self._held)} bytes | {'ended' if self.has_ended else 'open'}]>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "of a stream socket"
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.has_ended = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.has_ended = True
        self._error = error
        self._may_write.set()
        self._wake()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def read(self, max_bytes: int) -> bytes:
        """Returns what has come, empty at the end. Raises OSError."""
        while not self._held and not self.has_ended:
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if not self._held and self._error is not None:
            raise self._error
        data = bytes(self._held[:max_bytes])
        del self._held[:max_bytes]
        if self._is_paused and len(self._held) <= MAX_HELD_BYTES // 2 and not self.has_ended:
            self._is_paused = False
            self.transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Returns when the kernel has most of it. Raises OSError."""
        if self._error is not None:
            raise self._error
        self.transport.write(data)
        await self._may_write.wait()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection as httpcore sees it."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            if timeout is None:
                return await self._connection.read(max_bytes)
            async with asyncio.timeout(timeout):
                return await self._connection.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._connection.write(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        # What is not sent yet is of no use any more, and who waits for it is gone.
        self._connection.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        connection = self._connection
        try:
            async with asyncio.timeout(timeout):
                transport = await loop.start_tls(
                    connection.transport, connection, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except (OSError, ssl.SSLError) as error:
            raise httpcore.ConnectError(str(error)) from error
        if transport is None:
            raise httpcore.ConnectError("the connection was closed")
        connection.transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":
                # Asked of a connection that rests: there must be nothing to read, not even its end.
                return self._connection.has_ended or bool(self._connection._held)
            case "ssl_object":
                return self._connection.transport.get_extra_info("ssl_object")
            case "client_addr":
                return self._connection.transport.get_extra_info("sockname")
            case "server_addr":
                return self._connection.transport.get_extra_info("peername")
            case "socket":
                return self._connection.transport.get_extra_info("socket")
        return None
