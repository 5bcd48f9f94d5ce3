"""A real server on a real port that answers as a test's script says, and remembers what it was asked."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inferwire.v1 import inference_pb2 as inference
from inferwire.v1 import models_pb2 as models
from inferwire.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server
from inferwire.v1.models_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server

M = TypeVar("M", bound=Message)

Event = inference.StreamCompleteResponse
Context = grpc.ServicerContext

#: Field 127 is in no version of the contract: what an older client sees of a newer server's event.
UNKNOWN_EVENT = Event.FromString(b"\xfa\x07\x03new")


def started() -> Event:
    return Event(started=inference.Started(id="r1", model="demo"))


def text(piece: str) -> Event:
    return Event(text=inference.TextDelta(text=piece))


def reasoning(piece: str, signature: bytes = b"") -> Event:
    return Event(reasoning=inference.ReasoningDelta(text=piece, signature=signature))


def completion(reason: inference.FinishReason = inference.FinishReason.FINISH_REASON_STOP) -> Event:
    return Event(completion=inference.Completion(finish_reason=reason))


def answer(*pieces: str) -> list[Event]:
    """Returns a whole lawful stream."""
    return [started(), *map(text, pieces), completion()]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A failure as the contract tells it."""

    code: grpc.StatusCode
    message: str = ""
    reason: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    retry_delay: float | None = None
    violations: tuple[tuple[str, str], ...] = ()
    resource: str = ""
    domain: str = "inferwire.dev"
    raw_details: bytes | None = None

    def abort(self, context: Context) -> NoReturn:
        trailers: list[tuple[str, str | bytes]] = []
        if self.raw_details is not None:
            trailers.append(("grpc-status-details-bin", self.raw_details))
        elif self.reason:
            trailers.append(("grpc-status-details-bin", self._details().SerializeToString()))
        if self.retry_delay is not None:
            trailers.append(("grpc-retry-pushback-ms", str(round(self.retry_delay * 1000))))
        context.set_trailing_metadata(tuple(trailers))
        context.abort(self.code, self.message)
        raise AssertionError("abort raises")

    def _details(self) -> status_pb2.Status:
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata)
        details: list[Message] = [info]
        if self.retry_delay is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(round(self.retry_delay * 1e9))
            details.append(retry)
        if self.violations:
            request = error_details_pb2.BadRequest()
            for field, description in self.violations:
                request.field_violations.add(field=field, description=description)
            details.append(request)
        if self.resource:
            details.append(error_details_pb2.ResourceInfo(resource_name=self.resource))
        packed = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            slot = AnyMessage()
            slot.Pack(detail)
            packed.details.append(slot)
        return packed


class Hang:
    """A step of a script: nothing more comes until the caller is gone, which `gone` then tells."""

    def __init__(self) -> None:
        self.gone = threading.Event()

    def watch(self, context: Context) -> None:
        if not context.add_callback(self.gone.set):
            self.gone.set()


Step = Event | Refusal | Hang
Answer = Message | Refusal


class ScriptedServer(InferenceServiceServicer, ModelServiceServicer):
    """Answers one call after another from its scripts; the last script answers all further calls."""

    def __init__(self) -> None:
        self.streams: list[Sequence[Step]] = []
        self.loads: list[list[models.StreamLoadResponse | Refusal | Hang]] = []
        self.watches: list[list[inference.WatchModelsResponse | Refusal | Hang]] = []
        #: What a unary RPC answers, by its name.
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, Message]] = []
        self.metadata: dict[str, str | bytes] = {}
        self.deadline_seconds: float | None = None
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        add_InferenceServiceServicer_to_server(self, self._server)
        add_ModelServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def add(self, register: Callable[[grpc.Server], None]) -> None:
        """Registers one more service, before the server starts to serve."""
        register(self._server)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()

    def requests_of(self, method: str) -> list[Message]:
        return [request for name, request in self.requests if name == method]

    def StreamComplete(self, request: inference.CompleteRequest, context: Context) -> Iterator[Event]:
        self._note("StreamComplete", request, context)
        script = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        return _play(script, context)

    def StreamLoad(
        self, request: models.LoadRequest, context: Context
    ) -> Iterator[models.StreamLoadResponse]:
        self._note("StreamLoad", request, context)
        return _play(self.loads.pop(0), context)

    def WatchModels(
        self, request: inference.WatchModelsRequest, context: Context
    ) -> Iterator[inference.WatchModelsResponse]:
        self._note("WatchModels", request, context)
        return _play(self.watches.pop(0), context)

    def Complete(self, request: inference.CompleteRequest, context: Context) -> inference.CompleteResponse:
        return self._answer("Complete", inference.CompleteResponse, request, context)

    def Embed(self, request: inference.EmbedRequest, context: Context) -> inference.EmbedResponse:
        return self._answer("Embed", inference.EmbedResponse, request, context)

    def CountTokens(
        self, request: inference.CompleteRequest, context: Context
    ) -> inference.CountTokensResponse:
        return self._answer("CountTokens", inference.CountTokensResponse, request, context)

    def Tokenize(self, request: inference.TokenizeRequest, context: Context) -> inference.TokenizeResponse:
        return self._answer("Tokenize", inference.TokenizeResponse, request, context)

    def Detokenize(
        self, request: inference.DetokenizeRequest, context: Context
    ) -> inference.DetokenizeResponse:
        return self._answer("Detokenize", inference.DetokenizeResponse, request, context)

    def ListModels(
        self, request: inference.ListModelsRequest, context: Context
    ) -> inference.ListModelsResponse:
        return self._answer("ListModels", inference.ListModelsResponse, request, context)

    def GetModel(self, request: inference.GetModelRequest, context: Context) -> inference.GetModelResponse:
        return self._answer("GetModel", inference.GetModelResponse, request, context)

    def ListBackends(
        self, request: inference.ListBackendsRequest, context: Context
    ) -> inference.ListBackendsResponse:
        return self._answer("ListBackends", inference.ListBackendsResponse, request, context)

    def Health(self, request: inference.HealthRequest, context: Context) -> inference.HealthResponse:
        return self._answer("Health", inference.HealthResponse, request, context)

    def Load(self, request: models.LoadRequest, context: Context) -> models.LoadResponse:
        return self._answer("Load", models.LoadResponse, request, context)

    def Unload(self, request: models.UnloadRequest, context: Context) -> models.UnloadResponse:
        return self._answer("Unload", models.UnloadResponse, request, context)

    def _answer(self, method: str, kind: type[M], request: Message, context: Context) -> M:
        self._note(method, request, context)
        scripted = self.answers.get(method, kind())
        if isinstance(scripted, Refusal):
            scripted.abort(context)
        assert isinstance(scripted, kind)
        return scripted

    def _note(self, method: str, request: Message, context: Context) -> None:
        self.requests.append((method, request))
        self.metadata = dict(context.invocation_metadata())
        remaining = context.time_remaining()
        # gRPC tells "no deadline" as one of many years.
        self.deadline_seconds = None if remaining > 1e8 else remaining


def _play(script: Sequence[M | Refusal | Hang], context: Context) -> Iterator[M]:
    """Plays a script. The caller's end is watched from the beginning: it may come before a Hang is reached."""
    for step in script:
        if isinstance(step, Hang):
            step.watch(context)

    def play() -> Iterator[M]:
        for step in script:
            match step:
                case Refusal():
                    step.abort(context)
                case Hang():
                    step.gone.wait(30)
                case _:
                    yield step

    return play()
