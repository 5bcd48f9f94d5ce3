"""Turns a failure into what travels: a gRPC code, google.rpc details, and the header that steers retries.

One table, proved total by a test: every leaf of `errors` has its pair of codes and its ErrorReason. Keeps the trailers
under 6 KiB, because clients refuse larger ones with an error that hides ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import grpc
from google.rpc import error_details_pb2, status_pb2

from inferwire_server import errors

DOMAIN = "inferwire.dev"

# Bytes of UTF-8. The message travels three times: percent-encoded as grpc-message, which may triple it, and in
# grpc-status-details-bin, which is base64. What is left is for the violations, as many as fit.
MAX_MESSAGE_BYTES = 480
MAX_METADATA_BYTES = 128
MAX_VIOLATION_BYTES = 128
MAX_VIOLATIONS = 8
MAX_DETAILS_BYTES = 3200
DEFAULT_RETRY_DELAY_SECONDS = 1.0

Code = grpc.StatusCode


@dataclasses.dataclass(frozen=True)
class Row:
    """The codes of a failure before and after the first delta was written, and whether a retry may help."""

    before: grpc.StatusCode
    after: grpc.StatusCode
    retry: bool


TABLE: dict[type[errors.ServingError], Row] = {
    errors.InvalidRequest: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.MalformedMessage: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.PromptTooLarge: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.RequestTooLarge: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.ContextLengthExceeded: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.TemplateRejected: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.GrammarInvalid: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.GrammarTooComplex: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.UnsupportedByBackend: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.ModelNotFound: Row(Code.NOT_FOUND, Code.NOT_FOUND, False),
    errors.BackendNotFound: Row(Code.NOT_FOUND, Code.NOT_FOUND, False),
    errors.ModelPathNotAllowed: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.ModelFileNotFound: Row(Code.NOT_FOUND, Code.NOT_FOUND, False),
    errors.TokenMissing: Row(Code.UNAUTHENTICATED, Code.UNAUTHENTICATED, False),
    errors.TokenInvalid: Row(Code.UNAUTHENTICATED, Code.UNAUTHENTICATED, False),
    errors.ScopeRequired: Row(Code.PERMISSION_DENIED, Code.PERMISSION_DENIED, False),
    errors.ModelNotLoaded: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.ModelLoading: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.ModelUnloading: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.ModelUnloaded: Row(Code.UNAVAILABLE, Code.ABORTED, False),
    errors.ModelFailed: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.ModelBusy: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.ModelConfigConflict: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.ModelFileInvalid: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.TemplateInvalid: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.InsufficientMemory: Row(Code.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED, False),
    errors.LoadStalled: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.LoadCancelled: Row(Code.ABORTED, Code.ABORTED, False),
    errors.EngineCrashed: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.EngineStalled: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.RequestQuarantined: Row(Code.INTERNAL, Code.INTERNAL, False),
    errors.QueueFull: Row(Code.RESOURCE_EXHAUSTED, Code.ABORTED, True),
    errors.RateLimited: Row(Code.RESOURCE_EXHAUSTED, Code.ABORTED, True),
    errors.DeadlineUnreachable: Row(Code.RESOURCE_EXHAUSTED, Code.ABORTED, True),
    errors.Draining: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.DrainTimeout: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.ClientTooSlow: Row(Code.ABORTED, Code.ABORTED, False),
    errors.Cancelled: Row(Code.CANCELLED, Code.CANCELLED, False),
    errors.DeadlineExceeded: Row(Code.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED, False),
    errors.UpstreamUnavailable: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.UpstreamRateLimited: Row(Code.RESOURCE_EXHAUSTED, Code.ABORTED, True),
    errors.UpstreamRejected: Row(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, False),
    errors.UpstreamAuth: Row(Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION, False),
    errors.UpstreamModelNotFound: Row(Code.NOT_FOUND, Code.NOT_FOUND, False),
    errors.UpstreamProtocolError: Row(Code.UNAVAILABLE, Code.ABORTED, False),
    errors.UpstreamStalled: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.UpstreamTruncated: Row(Code.UNAVAILABLE, Code.ABORTED, True),
    errors.UpstreamRedirect: Row(Code.INTERNAL, Code.INTERNAL, False),
    errors.Internal: Row(Code.INTERNAL, Code.INTERNAL, False),
    errors.StreamTruncated: Row(Code.ABORTED, Code.ABORTED, False),
}

_INVITES_RETRY = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED}


@dataclasses.dataclass(frozen=True)
class Status:
    """A failure, ready for `context.abort`."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def of(error: errors.ServingError, *, tokens_emitted: int | None = None, started: bool = False) -> Status:
    """Returns the status of `error`.

    `started` says that a message of the stream was already written; then `tokens_emitted`, if known, is told.
    """
    row = TABLE[type(error)]
    code = row.after if started else row.before
    metadata = {key: _cut(value, MAX_METADATA_BYTES) for key, value in error.metadata.items()}
    if tokens_emitted is not None and started:
        metadata["tokensEmitted"] = str(tokens_emitted)
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    packed = status_pb2.Status(code=code.value[0], message=message)
    packed.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )
    trailers: list[tuple[str, str | bytes]] = []
    if row.retry and not started:
        delay = (
            DEFAULT_RETRY_DELAY_SECONDS if error.retry_delay_seconds is None else error.retry_delay_seconds
        )
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(math.ceil(delay * 1e9))
        packed.details.add().Pack(retry)
        trailers.append(("grpc-retry-pushback-ms", str(math.ceil(delay * 1000))))
    elif code in _INVITES_RETRY:
        # The code alone would make a client's retry policy act, and it would be useless.
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    if isinstance(error, errors.ModelNotFound):
        resource = error_details_pb2.ResourceInfo(
            resource_type="inferwire.v1.Model",
            resource_name=metadata.get("model", ""),
            description="no such model",
        )
        packed.details.add().Pack(resource)
    if error.violations:
        packed.details.add().Pack(_bad_request(error.violations, MAX_DETAILS_BYTES - packed.ByteSize()))
    trailers.append(("grpc-status-details-bin", packed.SerializeToString()))
    return Status(code, message, tuple(trailers))


def _bad_request(violations: Sequence[tuple[str, str]], max_bytes: int) -> error_details_pb2.BadRequest:
    """Returns the first violations, as many as fit; the first in any case."""
    request = error_details_pb2.BadRequest()
    for field, description in violations[:MAX_VIOLATIONS]:
        request.field_violations.add(
            field=_cut(field, MAX_VIOLATION_BYTES), description=_cut(description, MAX_VIOLATION_BYTES)
        )
        if request.ByteSize() > max_bytes and len(request.field_violations) > 1:
            del request.field_violations[-1]
            break
    return request


def _cut(text: str, max_bytes: int) -> str:
    """Returns as many whole characters as fit into `max_bytes` of UTF-8."""
    return text.encode()[:max_bytes].decode(errors="ignore")
