"""What a backend is: one primitive, `stream`, and the answers to a few questions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import Protocol

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2


@dataclasses.dataclass
class Call:
    """What a request brings beside its message. Times are seconds of `time.monotonic`.

    The backend keeps `tokens_emitted` true while it streams; a failure tells it.
    """

    request_id: str
    principal: str
    time_limit: float
    deadline: float | None = None
    tokens_emitted: int = 0

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
    """How busy a backend is."""

    streams_in_flight: int = 0
    sequences_running: int = 0
    queue_length: int = 0
    parallel_sequences: int = 0
    queue_capacity: int = 0
    cells_used: int = 0


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
    def occupancy(self) -> Occupancy:
        """How busy it is."""

    def is_healthy(self) -> bool:
        """Whether it would answer now, from memory: asks nobody."""

    def stream(self, request: pb.CompleteRequest, call: Call) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """Answers a validated request whose model is resolved."""

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Answers a validated request. Cancelling it frees what it held. Raises one errors.ServingError."""

    async def count_tokens(self, request: pb.CompleteRequest) -> pb.CountTokensResponse:
        """Counts the tokens of a request."""

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Splits a text."""

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Joins tokens."""
