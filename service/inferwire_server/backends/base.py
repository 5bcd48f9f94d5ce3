"""What a backend is: one primitive, `stream`, and the answers to a few questions."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, get_args

from google.protobuf.message import DecodeError

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A request that is sent to a model elsewhere. `operation` is a word of OpenTelemetry's conventions, such as "chat"."""

    backend: str
    type: str
    base_url: str
    model: str
    operation: str


class Trace(Protocol):
    """The trace of a call, where there is one."""

    def attempted(self, attempt: Attempt) -> AbstractContextManager[Mapping[str, str]]:
        """Keeps an attempt for as long as it lasts; yields the headers by which the other side goes on with the trace."""


@dataclasses.dataclass
class Call:
    """What a request brings beside its message. Times are seconds of `time.monotonic`.

    The backend keeps `tokens_emitted` true while it streams; a failure tells it. `hops` is how many servers of ours the
    request has passed already. `headers` are sent on by who asks another service: those of the trace, while an attempt lasts.
    """

    request_id: str
    principal: str
    time_limit: float
    deadline: float | None = None
    tokens_emitted: int = 0
    hops: int = 0
    trace: Trace | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def attempt(self, attempt: Attempt) -> Iterator[None]:
        """Traces an attempt, where the call is traced."""
        if self.trace is None:
            yield
            return
        with self.trace.attempted(attempt) as self.headers:
            yield

    @property
    def time_limit_seconds(self) -> float:
        """Seconds until the answer ends with TIME_LIMIT."""
        return max(0.0, self.time_limit - time.monotonic())

    @property
    def deadline_seconds(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """How busy a backend is, and what it has done since it was made: tokens read, those from a cache left out, and written."""

    streams_in_flight: int = 0
    sequences_running: int = 0
    queue_length: int = 0
    parallel_sequences: int = 0
    queue_capacity: int = 0
    cells_used: int = 0
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0


# Metadata that counts the servers of ours that a request has passed.
HOPS_KEY = "x-inferwire-hops"

Kind = Literal["started", "text", "reasoning", "tool_call", "progress", "completion"]

# The tag of each arm on the wire: (field number << 3) | 2.
_KINDS: dict[int, Kind] = {
    (pb.StreamCompleteResponse.DESCRIPTOR.fields_by_name[kind].number << 3) | 2: kind
    for kind in get_args(Kind)
}


class EncodedEvent:
    """An event as another server of ours sent it: passed on without being read."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<EncodedEvent {self.WhichOneof('event')} [{len(self.data)} bytes]>"

    def WhichOneof(self, oneof: Literal["event"]) -> Kind | None:
        """Returns the event's kind, as a message does; None for a kind that this server does not know."""
        return _KINDS.get(self.data[0]) if self.data else None

    def SerializeToString(self) -> bytes:
        """Returns the bytes as they came."""
        return self.data

    def message(self) -> pb.StreamCompleteResponse:
        """Returns the event as a message. errors.UpstreamProtocolError when it is none."""
        try:
            return pb.StreamCompleteResponse.FromString(self.data)
        except DecodeError:
            raise errors.UpstreamProtocolError(
                "the provider's answer breaks its own format", detail="an event that cannot be read"
            ) from None


Event = pb.StreamCompleteResponse | EncodedEvent


class Encodable(Protocol):
    """A message, or what is passed on as one."""

    def SerializeToString(self) -> bytes:
        """Returns its bytes."""


def as_message(event: Event) -> pb.StreamCompleteResponse:
    """Returns an event as a message."""
    return event.message() if isinstance(event, EncodedEvent) else event


class Backend(Protocol):
    """Answers requests for one or more models.

    `stream` is the one primitive: `started`, then any number of deltas, then exactly one `completion`, then the
    iterator ends; or it raises one errors.ServingError. Closing the iterator cancels the work and frees what it held.
    """

    @property
    def id(self) -> str:
        """The id that `started.backend` tells."""

    @property
    def display_name(self) -> str:
        """A name for people."""

    @property
    def capabilities(self) -> models_pb2.Capabilities:
        """What it can do."""

    @property
    def default_model(self) -> str:
        """Its model for requests that name none; empty when there is none."""

    @property
    def available_models(self) -> list[str]:
        """The models it can answer for now."""

    @property
    def candidates(self) -> Sequence[str]:
        """The models that it passes requests on to, in their order; none, but for a route."""

    @property
    def occupancy(self) -> Occupancy:
        """How busy it is."""

    @property
    def problem(self) -> errors.ServingError | None:
        """Why it would not answer now, from memory; None when it would. Asks nobody."""

    def stream(self, request: pb.CompleteRequest, call: Call) -> AsyncGenerator[Event]:
        """Answers a validated request whose model is resolved."""

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Answers a validated request. Cancelling it frees what it held. Raises one errors.ServingError."""

    async def count_tokens(self, request: pb.CompleteRequest, call: Call) -> pb.CountTokensResponse:
        """Counts the tokens of a request."""

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """Splits a text."""

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """Joins tokens."""
