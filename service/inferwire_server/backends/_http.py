"""HTTP to one origin: the only importer of httpx, so that a successor is one file away.

A request goes to the operator's base URL and nowhere else: no redirect is followed, no proxy is taken from the environment.
Nothing is decompressed, bodies are bounded, and every failure of the transport is one of our own errors. The time that a
request may take in all is its caller's affair; here are the times to connect and between two bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping

import httpcore
import httpx

from inferwire_server import __version__, errors
from inferwire_server.config import BackendSettings, ConfigError

from ._network import AsyncioBackend
from .patience import OutOfPatience, Patience

# As much as a message of ours may have: 2,048 vectors as JSON are more than half of it.
MAX_BODY_BYTES = 32 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_RETRY_AFTER_SECONDS = 60.0
POOL_SECONDS = 2.0
WRITE_SECONDS = 10.0
# How long the end of a body may take after the end of the answer that it holds; then its connection is given up.
DRAIN_SECONDS = 0.1
MAX_IDLE_CONNECTIONS = 100


@dataclasses.dataclass(frozen=True)
class HttpRequest:
    """A request beneath the base URL. `body` is JSON."""

    path: str
    body: bytes | None = None
    method: str = "POST"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HttpAnswer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return _media_type(self.headers)


class HttpResponse:
    """A response whose body is being read."""

    def __init__(self, response: httpx.Response, idle_seconds: float) -> None:
        self._chunks = response.aiter_raw()
        self._idle_seconds = idle_seconds
        self._patience = Patience()
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return _media_type(self.headers)

    async def read(self) -> bytes | None:
        """Returns the next bytes, None at the end. Raises errors.UpstreamStalled or errors.UpstreamTruncated."""
        try:
            return await self._patience.wait(anext(self._chunks, None), time.monotonic() + self._idle_seconds)
        except OutOfPatience:
            raise errors.UpstreamStalled("the provider sent nothing for too long") from None
        except httpx.HTTPError as error:
            # Whatever it was, the body has not ended as bodies end.
            raise errors.UpstreamTruncated(
                "the provider's stream ended before its answer did", detail=type(error).__name__
            ) from None

    def close(self) -> None:
        """Stops its timer; the connection is its client's."""
        self._patience.close()

    async def drain(self) -> None:
        """Reads to the end, if that is near, so that the connection can be used again."""
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self._chunks:
                    pass

    async def body(self, max_bytes: int) -> bytes:
        """Returns the whole body. Raises errors.UpstreamProtocolError when it is larger."""
        body = bytearray()
        while (chunk := await self.read()) is not None:
            body += chunk
            if len(body) > max_bytes:
                raise errors.UpstreamProtocolError(
                    "the provider's answer breaks its own format",
                    detail=f"a body of more than {max_bytes} bytes",
                )
        return bytes(body)


class HttpClient:
    """Requests to one origin, over connections that are kept. `authorize` gives the headers that carry the key."""

    def __init__(
        self, settings: BackendSettings, base_url: str, authorize: Callable[[], Mapping[str, str]]
    ) -> None:
        url = _checked(base_url)
        self._base_url = base_url.rstrip("/")
        self._query = dict(settings.query)
        self._authorize = authorize
        self._idle_seconds = settings.idle_seconds
        try:
            # One context for all connections: making it reads every certificate.
            verify = (
                ssl.create_default_context(cafile=settings.ca_file or None)
                if url.scheme == "https"
                else False
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca_file: {settings.ca_file} cannot be read") from error
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_IDLE_CONNECTIONS)
        self._client = httpx.AsyncClient(
            verify=verify,
            trust_env=False,
            follow_redirects=False,
            proxy=settings.proxy or None,
            transport=None if settings.proxy else _Transport(verify, limits),
            headers={
                "user-agent": f"inferwire/{__version__}",
                "accept-encoding": "identity",
                **settings.headers,
            },
            timeout=httpx.Timeout(
                None, connect=settings.connect_seconds, write=WRITE_SECONDS, pool=POOL_SECONDS
            ),
            limits=limits,
        )
        self.num_open = 0

    def __repr__(self) -> str:
        return f"<HttpClient {self._base_url} [{self.num_open} responses open]>"

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    @contextlib.asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        """Sends a request and yields the response as soon as its head is here.

        Leaving before the body's end closes the connection, which is how a provider learns of a cancel. Raises
        errors.UpstreamUnavailable, UpstreamStalled, UpstreamProtocolError or UpstreamRedirect.
        """
        response = await self._send(request)
        self.num_open += 1
        try:
            if 300 <= response.status_code < 400:
                raise errors.UpstreamRedirect(
                    "the provider answered with a redirect, which is never followed"
                )
            if response.headers.get("content-encoding", "identity") != "identity":
                raise errors.UpstreamProtocolError(
                    "the provider's answer breaks its own format", detail="compressed, which nobody asked for"
                )
            reading = HttpResponse(response, self._idle_seconds)
            try:
                yield reading
            finally:
                reading.close()
        finally:
            self.num_open -= 1
            await response.aclose()

    async def fetch(self, request: HttpRequest) -> HttpAnswer:
        """Sends a request and returns the whole response. Raises as `stream`."""
        async with self.stream(request) as response:
            body = await response.body(MAX_BODY_BYTES if response.status < 400 else MAX_ERROR_BYTES)
            return HttpAnswer(response.status, response.headers, body)

    async def _send(self, request: HttpRequest) -> httpx.Response:
        headers = {**request.headers, **self._authorize()}
        if request.body is not None:
            headers["content-type"] = "application/json"
        # `params` would replace the query that a path may have.
        url = httpx.URL(self._base_url + request.path).copy_merge_params(self._query)
        is_new = False
        patience = Patience()

        async def trace(event: str, info: object) -> None:
            nonlocal is_new
            is_new = is_new or "connect_tcp" in event

        while True:
            message = self._client.build_request(
                request.method, url, content=request.body, headers=headers, extensions={"trace": trace}
            )
            try:
                limit = time.monotonic() + self._idle_seconds
                return await patience.wait(self._client.send(message, stream=True), limit)
            except OutOfPatience:
                raise errors.UpstreamStalled("the provider sent nothing for too long") from None
            except httpx.RemoteProtocolError as error:
                if "disconnected" not in str(error):
                    raise errors.UpstreamProtocolError(
                        "the provider's answer breaks its own format", detail="what it sent is no HTTP"
                    ) from None
                failure: httpx.HTTPError = error
            except (httpx.ReadError, httpx.WriteError) as error:
                failure = error
            except httpx.HTTPError as error:
                raise _unreachable(error) from None
            finally:
                patience.close()
            if is_new:
                raise _unreachable(failure) from None
            # A connection that was kept, and that the server has closed while the request was on its way: nobody has read it.
            # There are only so many of them, and then there is a new one.


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own transport with sockets of ours; it has no argument for them, httpcore has."""

    def __init__(self, verify: ssl.SSLContext | bool, limits: httpx.Limits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify if isinstance(verify, ssl.SSLContext) else None,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=AsyncioBackend(),
        )


def retry_after_seconds(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Returns what Retry-After asks for (RFC 9110, section 10.2.3), at most a minute; None when it says nothing."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        # isdecimal takes digits of other scripts too, and so does float.
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return min(max(0.0, moment.timestamp() - now()), MAX_RETRY_AFTER_SECONDS)


def _unreachable(error: Exception) -> errors.UpstreamUnavailable:
    return errors.UpstreamUnavailable("the provider cannot be reached", detail=_words_of(error))


def _words_of(error: Exception) -> str:
    """Returns what the log keeps of a failure to connect. Others may quote a header, and with it the key."""
    return (
        f"{type(error).__name__}: {error}" if isinstance(error, httpx.ConnectError) else type(error).__name__
    )


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _checked(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError("base_url is no URL") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("base_url: must begin with http:// or https:// and name a host")
    if url.userinfo or url.fragment or url.query:
        raise ConfigError("base_url: a key, a query or a fragment does not belong there")
    return url
