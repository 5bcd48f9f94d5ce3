"""The one exception of this package, and the only place that reads a gRPC status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from inferwire.v1.error_reason_pb2 import ErrorReason

DOMAIN = "inferwire.dev"


class Violation(NamedTuple):
    """A field of the request that the server refuses, and why."""

    field: str
    description: str


class InferwireError(Exception):
    """A call failed. `code` is for who retries, `reason` for who branches, `message` for people."""

    code: grpc.StatusCode
    #: The name of an ErrorReason without its prefix, such as "QUEUE_FULL", also one that this version does not know;
    #: empty when the failure is not the service's own: no server there, a proxy's answer, the transport.
    reason: str
    message: str
    #: What the reason documents, such as {"model": "demo", "queueCapacity": "64"}.
    metadata: dict[str, str]
    #: Seconds after which the server wants to be asked again; None: it does not say.
    retry_delay: float | None
    violations: tuple[Violation, ...]
    #: The name of the thing that was not found, such as a model's; empty when the server names none.
    resource: str

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        message: str = "",
        *,
        metadata: dict[str, str] | None = None,
        retry_delay: float | None = None,
        violations: tuple[Violation, ...] = (),
        resource: str = "",
    ) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.retry_delay = retry_delay
        self.violations = violations
        self.resource = resource

    def __str__(self) -> str:
        text = f"{self.reason or self.code.name}: {self.message}"
        for field, description in self.violations:
            text += f"; {field}: {description}"
        return text

    @property
    def known_reason(self) -> ErrorReason | None:
        """The reason as the contract's enum; None when there is none or this version does not know it."""
        value = ErrorReason.DESCRIPTOR.values_by_name.get(f"ERROR_REASON_{self.reason}")
        # An enum's values are plain integers at run time.
        return cast("ErrorReason", value.number) if value is not None and value.number else None

    @classmethod
    def of(cls, error: grpc.RpcError) -> InferwireError:
        """Returns the failure of a call. Details that are absent, foreign or garbage leave only code and message."""
        made = cls(error.code(), message=error.details() or "")
        # grpc and grpc.aio name the type of metadata differently; both iterate over pairs.
        trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
        for key, value in trailing:
            if key == "grpc-status-details-bin" and isinstance(value, bytes):
                made._read_details(value)
        return made

    def _read_details(self, data: bytes) -> None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        request, resource = error_details_pb2.BadRequest(), error_details_pb2.ResourceInfo()
        try:
            for detail in status_pb2.Status.FromString(data).details:
                # Unpack leaves a message of another type as it is.
                for message in (info, retry, request, resource):
                    detail.Unpack(message)
        except DecodeError:
            return
        if info.domain == DOMAIN:
            self.reason = info.reason
            self.metadata = dict(info.metadata)
        if retry.HasField("retry_delay"):
            self.retry_delay = retry.retry_delay.ToNanoseconds() / 1e9
        self.violations = tuple(Violation(v.field, v.description) for v in request.field_violations)
        self.resource = resource.resource_name


def stream_truncated() -> InferwireError:
    """Returns the failure of a stream that ended with OK but without its last event."""
    return InferwireError(
        grpc.StatusCode.ABORTED,
        "STREAM_TRUNCATED",
        "the stream ended without its last event; the answer may be cut short",
    )


def cancelled() -> InferwireError:
    """Returns the failure of a call that its own caller cancelled; as gRPC tells it, without a reason."""
    return InferwireError(grpc.StatusCode.CANCELLED, message="the caller cancelled the call")
