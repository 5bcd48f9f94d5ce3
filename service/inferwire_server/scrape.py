"""The HTTP port for Prometheus and for probes: `/metrics` and `/healthz`, served by threads of their own.

Not in the event loop: a scrape of many series would hold every stream up, and who asks whether the loop is stuck must get
an answer when it is. Plain HTTP, a few requests at a time, and nothing of what callers wrote.
"""

from __future__ import annotations

import gzip
import socket
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog

log = structlog.get_logger()

# A scraper that reads slowly is not waited for longer, and so many at once are enough for everybody.
SOCKET_SECONDS = 10.0
MAX_REQUESTS = 8
POLL_SECONDS = 0.05
TEXT = "text/plain; charset=utf-8"


class Source(Protocol):
    """What is served. Asked from any thread."""

    @property
    def problem(self) -> str:
        """Why the process should be ended; empty when it is well."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the numbers in the format that an Accept header asks for, and the content type."""


class ScrapePort:
    """The port, from its making until `close`."""

    def __init__(self, host: str, port: int, source: Source) -> None:
        """Opens it. Raises OSError when it cannot be had."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        self._server = _Server(family, address, source)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="scrape", daemon=True
        )
        self._thread.start()

    def __repr__(self) -> str:
        return f"<ScrapePort [port {self.port}]>"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Closes it, within a moment; a response that is being written is left to its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, family: socket.AddressFamily, address: Any, source: Source) -> None:
        self.address_family = family
        self.source = source
        self._places = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: what can fail here is the connection, and whoever asked is gone."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SOCKET_SECONDS
    server_version = "inferwire"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            status, content_type, body = self._answer()
        except Exception:
            log.exception("scrape_failed")
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"see the server's log\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, str, bytes]:
        source = self.server.source
        match urlsplit(self.path).path:
            case "/metrics":
                body, content_type = source.exposition(self.headers.get("Accept", ""))
                return HTTPStatus.OK, content_type, body
            case "/healthz":
                problem = source.problem
                status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
                return status, TEXT, f"{problem or 'ok'}\n".encode()
            case _:
                return HTTPStatus.NOT_FOUND, TEXT, b"here are /metrics and /healthz\n"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a scrape is no news, and the path is a stranger's text."""
