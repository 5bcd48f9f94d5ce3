"""Another server of ours, over gRPC: deltas pass through as the bytes they came in.

That server decides what a model can honour and ends its answers itself. Its failures keep their reasons where they say
something of the request or the model, and are always told in words of ours. Source of the format: the contract in proto/.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import ssl
import urllib.parse
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Final, TypeVar, cast

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from inferwire.channel import CHANNEL_OPTIONS
from inferwire.errors import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings, ConfigError

from ._http import MAX_RETRY_AFTER_SECONDS
from .answer import broken
from .base import HOPS_KEY, Call, EncodedEvent, Event
from .breaker import Permit
from .http_provider import KNOWN_CODES
from .provider import CHECK_SECONDS, Provider

# A request passes so many servers at most: those that ask each other in a circle would never end.
MAX_HOPS = 8
# What a call may take beyond its time limit: by then the other server has ended it, or never will.
LATE_SECONDS = 5.0
MAX_TIME_LIMIT_SECONDS = 86400.0
MAX_RECONNECT_SECONDS = 5.0

_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['InferenceService'].full_name}"
_HEALTH = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}"
_REQUEST_ID_KEY = "x-request-id"
_EVERYTHING: Final = models_pb2.Capabilities(
    **{field.name: True for field in models_pb2.Capabilities.DESCRIPTOR.fields}
)
_SCHEMES = {"grpc": False, "grpcs": True}

_Request = TypeVar("_Request", pb.CompleteRequest, pb.EmbedRequest, pb.TokenizeRequest, pb.DetokenizeRequest)
_Response = TypeVar("_Response", bound=Message)


class _EveryType(frozenset[str]):
    """The image types of a provider that decides itself which ones it takes."""

    def __contains__(self, type: object) -> bool:
        return True


def _descriptor(message: Message | type[Message]) -> Descriptor:
    # The stubs name two classes, of which the second is the first one's implementation.
    return cast(Descriptor, message.DESCRIPTOR)


def field_paths(message: Descriptor, prefix: str = "") -> Iterator[str]:
    """Yields the path of every field of a message of the contract, those of its messages included."""
    for field in message.fields:
        yield prefix + field.name
        inner = field.message_type
        if inner is not None and not field.is_repeated and inner.file.name == message.file.name:
            yield from field_paths(inner, f"{prefix}{field.name}.")


class Inferwire(Provider):
    """See the module. `base_url` is grpc://HOST:PORT, in the clear, or grpcs://HOST:PORT.

    A long prompt is silent, so `idle_seconds` does not count here: that the connection lives is found out by its pings, and
    that an answer makes no progress by `progress_seconds`.
    """

    display_name = "inferwire"
    supported = frozenset(field_paths(_descriptor(pb.CompleteRequest))) | {"chat.images", "chat.tool_images"}
    image_types = _EveryType()

    def __init__(self, id: str, settings: BackendSettings) -> None:
        super().__init__(id, settings)
        # Until the server has told, everything may be possible: it refuses what is not.
        self.capabilities = _EVERYTHING
        self._metadata = _metadata(settings)
        self._channel = _channel(settings)
        # Without a deserializer: an event is the bytes that came.
        self._stream_complete: grpc.aio.UnaryStreamMultiCallable[pb.CompleteRequest, bytes] = (
            self._channel.unary_stream(f"{_SERVICE}/StreamComplete", request_serializer=_serialize)
        )

    async def answer(self, request: pb.CompleteRequest, model: str, call: Call) -> AsyncGenerator[Event]:
        """See `Provider.answer`. The completion is told when the status is OK, and not before."""
        _check_hops(call)
        asked = _renamed(request, model)
        limit = min(max(0.001, call.time_limit_seconds), MAX_TIME_LIMIT_SECONDS)
        asked.stopping.time_limit.FromNanoseconds(round(limit * 1e9))
        completion: pb.StreamCompleteResponse | None = None
        stream = self._stream_complete(asked, timeout=_timeout(call), metadata=self._call_metadata(call))
        try:
            with self._told_by(request, call):
                async for data in stream:
                    event = EncodedEvent(data)
                    match event.WhichOneof("event"):
                        case None:
                            continue  # of a later contract: skipped, as every client does
                        case _ if completion is not None:
                            raise broken("an event after the completion")
                        case "completion":
                            completion = _parsed(pb.StreamCompleteResponse, data)
                        case "started":
                            yield _parsed(pb.StreamCompleteResponse, data)
                        case _:
                            yield event
            if completion is None:
                raise errors.UpstreamTruncated("the provider's stream ended before its answer did")
            yield completion
        finally:
            stream.cancel()

    async def embed(self, request: pb.EmbedRequest, model: str, call: Call) -> pb.EmbedResponse:
        """See `Provider.embed`."""
        response = await self._pass_on("Embed", request, model, pb.EmbedResponse, call)
        if len(response.embeddings) != len(request.inputs):
            raise broken("not one vector for each text")
        return response

    async def count_tokens(
        self, request: pb.CompleteRequest, model: str, call: Call
    ) -> pb.CountTokensResponse:
        """Counts the tokens of a request, there."""
        return await self._pass_on("CountTokens", request, model, pb.CountTokensResponse, call)

    async def tokenize(self, request: pb.TokenizeRequest, model: str, call: Call) -> pb.TokenizeResponse:
        """Splits a text, there."""
        return await self._pass_on("Tokenize", request, model, pb.TokenizeResponse, call)

    async def detokenize(
        self, request: pb.DetokenizeRequest, model: str, call: Call
    ) -> pb.DetokenizeResponse:
        """Joins tokens, there."""
        return await self._pass_on("Detokenize", request, model, pb.DetokenizeResponse, call)

    async def check(self) -> None:
        """Asks whether the server is ready, and what its models can do."""
        try:
            health = await self._ask(
                f"{_HEALTH}/Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
            )
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                raise errors.UpstreamUnavailable("the provider says that it is not ready")
            listed = await self._ask(f"{_SERVICE}/ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)
        except _Behind as behind:
            raise behind.failure from None
        self._learn(listed)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Permit]:
        """See `Provider.attempt`. A failure of what stands behind the server is an answer of a server that is well."""
        failure: errors.ServingError | None = None
        with super().attempt() as permit:
            try:
                yield permit
            except _Behind as behind:
                failure = behind.failure
        if failure is not None:
            raise failure

    async def _pass_on(
        self, name: str, request: _Request, model: str, kind: type[_Response], call: Call
    ) -> _Response:
        """Sends a caller's request, and returns the one message that answers it. Raises as `_told_by`."""
        _check_hops(call)
        asked = _renamed(request, model)
        with self._told_by(request, call):
            data = await self._unary(f"{_SERVICE}/{name}")(
                asked, timeout=_timeout(call), metadata=self._call_metadata(call)
            )
        return _parsed(kind, data)

    async def _ask(self, method: str, question: Message, kind: type[_Response]) -> _Response:
        """Asks for ourselves. Raises as `_told_by`."""
        with self._told_by(question):
            data = await self._unary(method)(question, timeout=CHECK_SECONDS, metadata=self._metadata)
        return _parsed(kind, data)

    def _unary(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[Message, bytes]:
        return self._channel.unary_unary(method, request_serializer=_serialize)

    @contextlib.contextmanager
    def _told_by(self, request: Message, call: Call | None = None) -> Iterator[None]:
        """Turns a status into the failure that it means here. Raises errors.ServingError, or _Behind."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            told = InferwireError.of(error)
        else:
            return
        if call is not None and re.fullmatch(r"[0-9]{1,9}", told.metadata.get("tokensEmitted", "")):
            call.tokens_emitted = int(told.metadata["tokensEmitted"])
        if told.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise _late(call)
        found = failure(told, request, self.id)
        raise _Behind(found) if told.reason in _BEHIND else found

    def _call_metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        own = ((_REQUEST_ID_KEY, call.request_id), (HOPS_KEY, str(call.hops + 1)))
        return (*self._metadata, *own, *call.headers.items())

    def _learn(self, listed: pb.ListModelsResponse) -> None:
        """Keeps what the models that callers may ask for can do. Of one that is not loaded nobody knows."""
        capabilities = models_pb2.Capabilities()
        for model in listed.models:
            if self.allows(model.name):
                capabilities.MergeFrom(model.capabilities if model.HasField("capabilities") else _EVERYTHING)
        if capabilities != self.capabilities and capabilities.ByteSize():
            self.capabilities = capabilities
            self.on_change()


class _Behind(Exception):
    """A failure that says nothing of the server that told it, but of what stands behind it."""

    def __init__(self, failure: errors.ServingError) -> None:
        super().__init__(failure.reason)
        self.failure = failure


# The reasons that stay what they are, in our words: they say the same of the request or of the model here as there.
_SAME: Mapping[type[errors.ServingError], str] = {
    errors.InvalidRequest: "the provider refuses a field of the request",
    errors.PromptTooLarge: "the text exceeds the provider's limit",
    errors.RequestTooLarge: "a part of the request exceeds the provider's limit",
    errors.ContextLengthExceeded: "the prompt has more tokens than the provider's model takes",
    errors.TemplateRejected: "the model's chat template refuses this conversation",
    errors.GrammarInvalid: "the response format cannot be read, or holds something that cannot be enforced",
    errors.GrammarTooComplex: "the response format exceeds the limits on size or depth",
    errors.UnsupportedByBackend: "the backend cannot honour a field of the request",
    errors.ModelNotLoaded: "the model is not in the provider's memory; its operator must load it",
    errors.ModelLoading: "the model is being loaded; retry soon",
    errors.ModelUnloading: "the model is being unloaded",
    errors.ModelUnloaded: "the model was unloaded",
    errors.ModelFailed: "the model failed; the provider's operator must look",
    errors.EngineCrashed: "the engine process ended; it is being started again",
    errors.EngineStalled: "the engine made no progress; it is being started again",
    errors.RequestQuarantined: "this very request crashed the engine more than once; do not send it again",
    errors.QueueFull: "the model's queue is full; retry later, or on another replica",
    errors.DeadlineUnreachable: "the queue is longer than the call's deadline",
    errors.ClientTooSlow: "the caller did not read for the server's limit",
    errors.UpstreamUnavailable: "a provider behind the provider cannot be reached",
    errors.UpstreamRateLimited: "a provider behind the provider limits the operator's key",
    errors.UpstreamRejected: "a provider behind the provider refuses the request",
    errors.UpstreamAuth: "a provider behind the provider refuses the operator's key; the caller's is not in question",
    errors.UpstreamModelNotFound: "a provider behind the provider has no such model",
    errors.UpstreamProtocolError: "the answer of a provider behind the provider breaks its own format",
    errors.UpstreamStalled: "a provider behind the provider sent nothing for too long",
    errors.UpstreamTruncated: "the stream of a provider behind the provider ended before its answer did",
    errors.UpstreamRedirect: "a provider behind the provider answered with a redirect, which is never followed",
}
_BEHIND = frozenset(cls.reason for cls in _SAME if issubclass(cls, errors.UpstreamError))

_Meaning = tuple[type[errors.ServingError], str]
_UNREACHABLE: _Meaning = (errors.UpstreamUnavailable, "the provider cannot be reached")
_LIMITED: _Meaning = (errors.UpstreamRateLimited, "the provider limits the operator's key")
_KEY_REFUSED: _Meaning = (
    errors.UpstreamAuth,
    "the provider refuses the operator's key; the caller's is not in question",
)
_LEAVING: _Meaning = (errors.UpstreamUnavailable, "the provider is going away")
_FAILED: _Meaning = (errors.UpstreamProtocolError, "the provider failed")
# The reasons that speak of us, whom the other server takes for the caller, or of that server. All others are _FAILED.
_OTHER: Mapping[type[errors.ServingError], _Meaning] = {
    errors.ModelNotFound: (errors.UpstreamModelNotFound, "the provider has no such model"),
    errors.TokenMissing: _KEY_REFUSED,
    errors.TokenInvalid: _KEY_REFUSED,
    errors.ScopeRequired: _KEY_REFUSED,
    errors.RateLimited: _LIMITED,
    errors.Draining: _LEAVING,
    errors.DrainTimeout: _LEAVING,
    errors.Cancelled: _LEAVING,
}
# Statuses without a reason of ours: from the transport, or from what stands between the servers.
_BARE: Mapping[grpc.StatusCode, _Meaning] = {
    grpc.StatusCode.UNAVAILABLE: _UNREACHABLE,
    grpc.StatusCode.CANCELLED: _LEAVING,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _LIMITED,
    grpc.StatusCode.UNAUTHENTICATED: _KEY_REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: _KEY_REFUSED,
}

# ErrorInfo's counts, which say the same here as there.
_COUNTS = frozenset(
    {"bytes", "maxBytes", "size", "maxSize", "promptTokens", "contextLength", "queueCapacity"}
)
_COUNT = re.compile(r"[0-9]{1,19}")
# What a violation may say in the other server's own words: a bound, and no word of anybody's.
_BOUND = re.compile(
    r"(must be )?(at (least|most) [0-9]{1,9}( bytes| entries)?|[0-9]{1,9} exceeds [0-9]{1,9}|[0-9]{1,9} to [0-9]{1,9} tokens)"
)
_STEP = re.compile(r"([a-z_]+)(\[[0-9]{1,10}\])?")


def failure(told: InferwireError, request: Message, id: str) -> errors.ServingError:
    """Returns what a failure of another server means here. Its words stay in the log.

    Kept of the details are counts, the codes that callers may see, the paths of fields that `request` has and the delay, a
    minute at most; names of models and backends are those that the caller knows.
    """
    far = errors.BY_REASON.get(told.reason)
    if not told.reason:
        cls, message = _BARE.get(told.code, _FAILED)
    elif far is None:
        cls, message = _FAILED
    elif far in _SAME:
        cls, message = far, _SAME[far]
    else:
        cls, message = _OTHER.get(far, _FAILED)
    delay = told.retry_delay
    return cls(
        message,
        metadata=_kept_metadata(told, request, id) if cls is far else {},
        violations=_kept_violations(told, request, cls) if cls is far else (),
        retry_delay_seconds=None if delay is None else min(max(0.0, delay), MAX_RETRY_AFTER_SECONDS),
        detail=_detail(told) if issubclass(cls, errors.UpstreamError) else "",
    )


def _kept_metadata(told: InferwireError, request: Message, id: str) -> dict[str, str]:
    kept = {key: value for key, value in told.metadata.items() if key in _COUNTS and _COUNT.fullmatch(value)}
    if path := known_path(told.metadata.get("field", ""), request):
        kept["field"] = path
    if told.metadata.get("upstreamCode") in KNOWN_CODES:
        kept["upstreamCode"] = told.metadata["upstreamCode"]
    if told.reason not in _BEHIND:
        # Of a provider's failure `RemoteBackend` tells whose it is.
        named = {"model": getattr(request, "model", ""), "backend": id}
        kept.update({key: name for key, name in named.items() if key in told.metadata})
    return kept


def _kept_violations(
    told: InferwireError, request: Message, cls: type[errors.ServingError]
) -> list[tuple[str, str]]:
    plain = (
        "this backend cannot honour it" if cls is errors.UnsupportedByBackend else "this backend refuses it"
    )
    return [
        (path, description if _BOUND.fullmatch(description) else plain)
        for field, description in told.violations
        if (path := known_path(field, request))
    ]


def known_path(path: str, request: Message) -> str:
    """Returns as much of a path as names fields of the request; empty when not even its first step does."""
    steps: list[str] = []
    inner: Descriptor | None = _descriptor(request)
    for step in path.split("."):
        match = _STEP.fullmatch(step)
        if match is None or inner is None:
            break
        name = match[1]
        field = inner.fields_by_name.get(name)
        if field is None and name not in inner.oneofs_by_name:
            break
        steps.append(step)
        inner = field.message_type if field is not None else None
    return ".".join(steps)


def _detail(told: InferwireError) -> str:
    """Returns what the log keeps: by its errorId the operator finds the other server's own line."""
    words = [told.code.name, told.reason[:64], told.metadata.get("errorId", "")[:64]]
    return f"{' '.join(filter(None, words))!r}: {told.message[:200]!r}"


def _late(call: Call | None) -> errors.ServingError:
    """Returns the failure of a call whose time is over: the caller's deadline, or else our own patience."""
    if call is not None and call.deadline is not None and call.deadline <= call.time_limit + LATE_SECONDS:
        return errors.DeadlineExceeded("the call's deadline passed")
    return errors.UpstreamStalled("the provider sent nothing for too long")


def _timeout(call: Call) -> float:
    limit = call.time_limit_seconds + LATE_SECONDS
    deadline = call.deadline_seconds
    return limit if deadline is None else min(limit, deadline)


def _check_hops(call: Call) -> None:
    """Raises _Behind: however often, this says nothing of the health of the next server."""
    if call.hops >= MAX_HOPS:
        raise _Behind(
            errors.UpstreamUnavailable(
                "the servers ask each other in a circle; their operators must look at the routes and backends",
                detail=f"{call.hops} servers have passed the request on",
            )
        )


def _renamed(request: _Request, model: str) -> _Request:
    """Returns the request with the name that its model has there."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.model = model
    return asked


def _parsed(kind: type[_Response], data: bytes) -> _Response:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise broken("a message that cannot be read") from None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _metadata(settings: BackendSettings) -> tuple[tuple[str, str], ...]:
    """Returns what every call carries: the operator's headers and the key. Raises ConfigError."""
    metadata = []
    for name, value in settings.headers.items():
        key = name.lower()
        if not re.fullmatch(r"[a-z0-9_.-]+", key) or key.startswith("grpc-") or key.endswith("-bin"):
            raise ConfigError(f"headers.{name}: is no key of gRPC metadata")
        if not (value.isascii() and value.isprintable()):
            raise ConfigError(f"headers.{name}: must be printable ASCII")
        metadata.append((key, value))
    if key := settings.read_key().reveal():
        metadata.append(("authorization", f"Bearer {key}"))
    return tuple(metadata)


def _channel(settings: BackendSettings) -> grpc.aio.Channel:
    """Returns the one connection, which is made at the first call. Raises ConfigError."""
    if not settings.base_url:
        raise ConfigError("base_url must be set")
    try:
        url = urllib.parse.urlsplit(settings.base_url)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ConfigError("base_url is no URL") from error
    is_secure = _SCHEMES.get(url.scheme)
    if is_secure is None or not host or port is None:
        raise ConfigError("base_url: must be grpc://HOST:PORT or grpcs://HOST:PORT")
    if url.username is not None or url.query or url.fragment or url.path not in ("", "/"):
        raise ConfigError("base_url: a key, a path, a query or a fragment does not belong there")
    for name in ("proxy", "query"):
        if getattr(settings, name):
            raise ConfigError(f"{name}: has no meaning over gRPC")
    target = f"dns:///[{host}]:{port}" if ":" in host else f"dns:///{host}:{port}"
    if not is_secure:
        if settings.ca_file:
            raise ConfigError("ca_file: needs a base_url that begins with grpcs://")
        return grpc.aio.insecure_channel(target, channel_options(settings))
    return grpc.aio.secure_channel(target, _credentials(settings.ca_file), channel_options(settings))


def channel_options(settings: BackendSettings) -> tuple[tuple[str, int | str], ...]:
    """Returns the options of our own clients, but for the retries: whether to ask again is for a route or the caller."""
    return (
        *((key, value) for key, value in CHANNEL_OPTIONS if key != "grpc.service_config"),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        # The least time that an attempt to connect has; and how soon the next one is made when nobody is there.
        ("grpc.min_reconnect_backoff_ms", round(settings.connect_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(MAX_RECONNECT_SECONDS * 1000)),
    )


def _credentials(ca_file: str) -> grpc.ChannelCredentials:
    """Returns the trust in a file's certificates, or in those that gRPC brings. Raises ConfigError."""
    if not ca_file:
        return grpc.ssl_channel_credentials()
    try:
        # gRPC would find out at the first call, and not say it.
        ssl.create_default_context(cafile=ca_file)
        return grpc.ssl_channel_credentials(pathlib.Path(ca_file).read_bytes())
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file: {ca_file} cannot be read") from error
