"""What all providers over HTTP have in common: one way from a request to the answer's events, and one table of failures.

An adapter says how a request is written, how an answer is read and what a refusal means; it never touches a connection.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from typing import ClassVar

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.config import BackendSettings, ConfigError

from ._http import (
    MAX_ERROR_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    HttpAnswer,
    HttpClient,
    HttpRequest,
    HttpResponse,
    retry_after_seconds,
)
from .answer import UNREADABLE, AnswerParser, broken, unreadable
from .base import Call
from .provider import Provider

UNREACHABLE_STATUSES = frozenset({502, 503, 504, 529})


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What a provider says of a failure, in a status or in an event, once its own words are read.

    `code` is its word for it as it came: never shown unless `KNOWN_CODES` has it. `status` is that of HTTP or what the code
    stands for; 0 when neither says anything. `retry_after_seconds` is what the body asks for, where no header does.
    """

    status: int = 0
    code: str = ""
    is_context: bool = False
    is_filtered: bool = False
    prompt_tokens: int | None = None
    context_length: int | None = None
    retry_after_seconds: float | None = None


# The words that callers may see as ErrorInfo's `upstreamCode`; all else that a provider writes stays here.
KNOWN_CODES = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "invalid_argument",
        "invalid_base64",
        "invalid_image",
        "invalid_image_format",
        "invalid_image_url",
        "invalid_prompt",
        "invalid_request_error",
        "image_too_large",
        "image_content_policy_violation",
        "request_too_large",
        "string_above_max_length",
        "unsupported_parameter",
        "unsupported_value",
    }
)


class HttpProvider(Provider):
    """A provider over HTTP. `media_types` are those of its streamed answers."""

    default_base_url: str = ""
    media_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})

    def __init__(self, id: str, settings: BackendSettings) -> None:
        super().__init__(id, settings)
        base_url = settings.base_url or self.default_base_url
        if not base_url:
            raise ConfigError("base_url must be set")
        self._key = settings.read_key()
        self.base_url = base_url
        self.http = HttpClient(settings, base_url, self._authorization)

    # What an adapter fills in.

    @abc.abstractmethod
    def authorization(self, key: str) -> Mapping[str, str]:
        """Returns the headers that carry a key; asked only when there is one."""

    @abc.abstractmethod
    def completion(self, request: pb.CompleteRequest, model: str) -> tuple[HttpRequest, AnswerParser]:
        """Returns what is sent, and what reads the answer. Raises errors.ServingError for what cannot be said."""

    @abc.abstractmethod
    def refusal(self, status: int, body: bytes) -> Refusal:
        """Reads the body of a response that is no success. msgspec.MsgspecError when it is no such body."""

    @abc.abstractmethod
    def listing(self) -> HttpRequest:
        """Returns the cheapest question that only a working service with a good key answers."""

    def listed(self, body: bytes) -> list[str]:
        """Reads the names of models in the answer to `listing`, where it has any. UNREADABLE when it is no such answer."""
        return []

    def embedding(self, request: pb.EmbedRequest, model: str) -> HttpRequest:
        """Returns the request of vectors. Raises errors.UnsupportedByBackend."""
        raise errors.UnsupportedByBackend(
            "the backend gives no embeddings",
            metadata={"model": request.model, "backend": self.id},
            violations=[("model", "gives no embeddings")],
        )

    def embedded(self, request: pb.EmbedRequest, body: bytes) -> pb.EmbedResponse:
        """Reads the vectors. Raises msgspec.MsgspecError or errors.UpstreamProtocolError."""
        raise NotImplementedError

    # What it has from here.

    async def answer(
        self, request: pb.CompleteRequest, model: str, call: Call
    ) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """See `Provider.answer`."""
        message, parser = self.completion(request, model)
        async with self.http.stream(_traced(message, call)) as response:
            if response.status != 200:
                raise await self._failure(response)
            if response.media_type not in self.media_types:
                raise broken("a content type that no stream has")
            while parser.completion is None and (data := await response.read()) is not None:
                for event in parser.feed(data):
                    yield event
            if parser.completion is None:
                for event in parser.close():
                    yield event
            await response.drain()
        yield pb.StreamCompleteResponse(completion=parser.completion)

    async def embed(self, request: pb.EmbedRequest, model: str, call: Call) -> pb.EmbedResponse:
        """See `Provider.embed`."""
        response = await self._fetch(_traced(self.embedding(request, model), call))
        try:
            return self.embedded(request, response.body)
        except UNREADABLE as error:
            raise unreadable(error) from None

    async def check(self) -> None:
        """Asks for the list of models. A service that has none is there all the same."""
        try:
            answer = await self._fetch(self.listing())
        except (errors.UpstreamModelNotFound, errors.UpstreamRejected, errors.UpstreamRateLimited):
            return
        # A list that cannot be read is no reason to ask the service nothing.
        with contextlib.suppress(*UNREADABLE):
            self.offered = self.listed(answer.body)

    async def close(self) -> None:
        """Closes every connection."""
        await self.http.close()

    async def _fetch(self, request: HttpRequest) -> HttpAnswer:
        response = await self.http.fetch(request)
        if response.status >= 300:
            raise self.failure(response.status, response.headers, response.body)
        return response

    async def _failure(self, response: HttpResponse) -> errors.ServingError:
        """Reads a response that is no success, as far as it can be read."""
        try:
            body = await response.body(MAX_ERROR_BYTES)
        except errors.UpstreamError:
            body = b""
        return self.failure(response.status, response.headers, body)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> errors.ServingError:
        """Returns the failure that a response stands for."""
        try:
            refusal = self.refusal(status, body)
        except UNREADABLE:
            refusal = Refusal(status)
        told = failure(refusal, retry_after_seconds(headers))
        if isinstance(told, errors.UpstreamAuth) and self.settings.api_key_file:
            # The file may hold a newer key by now; the next request shows whether that one is good.
            with contextlib.suppress(ConfigError):
                self._key = self.settings.read_key()
        return told

    def _authorization(self) -> Mapping[str, str]:
        return self.authorization(self._key.reveal()) if self._key else {}


def _traced(request: HttpRequest, call: Call) -> HttpRequest:
    """Returns a request that carries the trace on. Of `tracestate` others than we make use, and it is the caller's."""
    parent = call.headers.get("traceparent")
    return (
        dataclasses.replace(request, headers={**request.headers, "traceparent": parent})
        if parent
        else request
    )


def failure(refusal: Refusal, retry_after_seconds: float | None = None) -> errors.ServingError:
    """Returns the failure for what a provider says: the one table of upstream failures.

    The words are ours; the provider's own code is told if it is one of `KNOWN_CODES`.
    """
    if retry_after_seconds is None and refusal.retry_after_seconds is not None:
        retry_after_seconds = min(refusal.retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
    status, code = refusal.status, refusal.code.lower()
    detail = f"status {status}" + (f", code {code}" if code in KNOWN_CODES else "")
    metadata = {"upstreamCode": code} if code in KNOWN_CODES else {}
    if refusal.is_context:
        counts = {"promptTokens": refusal.prompt_tokens, "contextLength": refusal.context_length}
        return errors.ContextLengthExceeded(
            "the prompt has more tokens than the provider's model takes",
            metadata={key: str(count) for key, count in counts.items() if count is not None},
            detail=detail,
        )
    if refusal.is_filtered:
        return errors.UpstreamRejected(
            "the provider's filter refuses the request",
            metadata={"upstreamCode": "content_filter"},
            detail=detail,
        )
    if status == 429:
        return errors.UpstreamRateLimited(
            "the provider limits the operator's key", retry_delay_seconds=retry_after_seconds, detail=detail
        )
    if status in (401, 402, 403):
        # 402 too: what is not paid is the operator's affair.
        return errors.UpstreamAuth(
            "the provider refuses the operator's key; the caller's is not in question", detail=detail
        )
    if status == 404:
        return errors.UpstreamModelNotFound("the provider has no such model", detail=detail)
    if status in UNREACHABLE_STATUSES or status == 408:
        return errors.UpstreamUnavailable(
            "the provider is overloaded or cannot be reached",
            retry_delay_seconds=retry_after_seconds,
            detail=detail,
        )
    if 400 <= status < 500:
        return errors.UpstreamRejected("the provider refuses the request", metadata=metadata, detail=detail)
    return errors.UpstreamProtocolError("the provider failed", detail=detail)
