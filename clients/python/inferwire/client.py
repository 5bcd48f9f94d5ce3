"""The sync door. `aio` is its twin; what both decide the same way is in request, channel, reading and errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from inferwire import request as requests
from inferwire.channel import DEFAULT_TIMEOUT_SECONDS, Endpoint
from inferwire.errors import InferwireError
from inferwire.gather import gather
from inferwire.reading import E, Reading, State
from inferwire.v1 import inference_pb2 as inference
from inferwire.v1 import models_pb2 as models
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire.v1.models_pb2_grpc import ModelServiceStub

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
E_co = TypeVar("E_co", covariant=True)


class Client:
    """A connection to a server. Threads may share it; it connects at the first call and again after a loss.

    Args:
        target: where the server is, such as "127.0.0.1:50051" or "dns:///inferwire.example:443".
        token: the key that every call carries.
        tls: credentials, or True for those of the system, or False for plain text. None: plain text to this machine,
            TLS to any other.
        default_timeout: seconds that a call may take when it does not say so itself. Loads and watches have no
            deadline of their own.
        balance: whether calls go to all addresses of the target in turn, without servers whose health service says
            that they are not ready. False: all calls go to the first address that answers.

    Every method raises InferwireError, and takes `timeout` in seconds: None means the default, math.inf no deadline.
    gRPC repeats a call of the inference service up to twice while nothing of its answer has come.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        tls: grpc.ChannelCredentials | bool | None = None,
        default_timeout: float = DEFAULT_TIMEOUT_SECONDS,
        balance: bool = False,
    ) -> None:
        self._endpoint = Endpoint.of(target, token, tls, default_timeout, balance=balance)
        options = self._endpoint.channel_options
        if self._endpoint.credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, self._endpoint.credentials, options)
        self._inference = InferenceServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for stubs of other services such as grpc.health.v1. It carries no token by itself."""
        return self._channel

    def close(self) -> None:
        """Closes the connection; calls that still run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client [{self._endpoint!r}]>"

    def complete(
        self,
        request: inference.CompleteRequest | None = None,
        /,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **shorthand: Unpack[requests.Shorthand],
    ) -> inference.CompleteResponse:
        """Returns the whole answer to a CompleteRequest, or to the one that the keywords say."""
        message = requests.completion(request, shorthand)
        return self._call(self._inference.Complete, message, timeout, request_id)

    def stream(
        self,
        request: inference.CompleteRequest | None = None,
        /,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **shorthand: Unpack[requests.Shorthand],
    ) -> CompletionStream:
        """Returns the answer as it is made. Use it in a `with`: to leave that early cancels the generation."""
        message = requests.completion(request, shorthand)
        call = self._inference.StreamComplete(
            message,
            timeout=self._endpoint.timeout(timeout),
            metadata=self._endpoint.call_metadata(request_id),
        )
        return CompletionStream(call, Reading("completion"))

    def embed(
        self,
        inputs: str | Sequence[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        pooling: inference.Pooling | None = None,
        timeout: float | None = None,
    ) -> inference.EmbedResponse:
        """Returns one vector per text, in order."""
        message = requests.embedding(inputs, model, dimensions, normalize, pooling)
        return self._call(self._inference.Embed, message, timeout)

    def count_tokens(
        self,
        request: inference.CompleteRequest | None = None,
        /,
        *,
        timeout: float | None = None,
        **shorthand: Unpack[requests.Shorthand],
    ) -> inference.CountTokensResponse:
        """Returns how many tokens the request would put before the model; nothing is generated."""
        message = requests.completion(request, shorthand)
        return self._call(self._inference.CountTokens, message, timeout)

    def tokenize(
        self,
        text: str,
        *,
        model: str | None = None,
        add_special: bool = False,
        parse_special: bool = False,
        timeout: float | None = None,
    ) -> inference.TokenizeResponse:
        """Returns the tokens of a text with the bytes of each."""
        message = inference.TokenizeRequest(
            model=model, text=text, add_special=add_special, parse_special=parse_special
        )
        return self._call(self._inference.Tokenize, message, timeout)

    def detokenize(
        self, token_ids: Sequence[int], *, model: str | None = None, timeout: float | None = None
    ) -> bytes:
        """Returns the bytes that the tokens stand for; they need not be valid UTF-8."""
        message = inference.DetokenizeRequest(model=model, token_ids=token_ids)
        return self._call(self._inference.Detokenize, message, timeout).data

    def list_models(self, *, timeout: float | None = None) -> inference.ListModelsResponse:
        """Returns every model in any state, and the default model's name."""
        return self._call(self._inference.ListModels, inference.ListModelsRequest(), timeout)

    def get_model(self, model: str, *, timeout: float | None = None) -> models.Model:
        """Returns one model."""
        message = inference.GetModelRequest(model=model)
        return self._call(self._inference.GetModel, message, timeout).model

    def watch_models(self, *, timeout: float = math.inf) -> Stream[inference.WatchModelsResponse]:
        """Returns the list of models now and again after every change; it ends only by failure or by the caller."""
        call = self._inference.WatchModels(
            inference.WatchModelsRequest(),
            timeout=self._endpoint.timeout(timeout),
            metadata=self._endpoint.metadata,
        )
        return Stream(call, Reading(None))

    def list_backends(self, *, timeout: float | None = None) -> Sequence[inference.Backend]:
        """Returns the backends with their capabilities, models and health, ordered by id."""
        return self._call(self._inference.ListBackends, inference.ListBackendsRequest(), timeout).backends

    def health(self, *, timeout: float | None = None) -> inference.HealthResponse:
        """Returns what the server is and how it is."""
        return self._call(self._inference.Health, inference.HealthRequest(), timeout)

    def load(
        self,
        model: str | models.LoadRequest,
        path: str | None = None,
        *,
        config: models.LoadConfig | None = None,
        keep_alive: float | None = None,
        pinned: bool = False,
        replace: bool = False,
        timeout: float = math.inf,
    ) -> models.LoadResponse:
        """Loads a model and returns when it is ready; a whole LoadRequest may stand in place of the name.

        `path` is relative to one of the server's model roots. To stop waiting does not stop the load: `unload` does.
        """
        message = requests.load(model, path, config, keep_alive, pinned, replace)
        return self._call(self._models.Load, message, timeout)

    def stream_load(
        self,
        model: str | models.LoadRequest,
        path: str | None = None,
        *,
        config: models.LoadConfig | None = None,
        keep_alive: float | None = None,
        pinned: bool = False,
        replace: bool = False,
        timeout: float = math.inf,
    ) -> Stream[models.StreamLoadResponse]:
        """Returns the way of a load: any number of `progress`, then exactly one `loaded`. As `load` otherwise."""
        message = requests.load(model, path, config, keep_alive, pinned, replace)
        call = self._models.StreamLoad(
            message, timeout=self._endpoint.timeout(timeout), metadata=self._endpoint.metadata
        )
        return Stream(call, Reading("loaded"))

    def unload(
        self, model: str, *, drain_timeout: float | None = None, timeout: float | None = None
    ) -> models.UnloadResponse:
        """Unloads a model; running requests may go on for `drain_timeout` seconds (None: the server's 30)."""
        return self._call(self._models.Unload, requests.unload(model, drain_timeout), timeout)

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Q, R],
        message: Q,
        timeout: float | None,
        request_id: str | None = None,
    ) -> R:
        try:
            return method(
                message,
                timeout=self._endpoint.timeout(timeout),
                metadata=self._endpoint.call_metadata(request_id),
            )
        except grpc.RpcError as error:
            raise InferwireError.of(error) from error


class Stream(Iterator[E], Generic[E]):
    """The messages of one call, once and in order. To leave its `with` early, `cancel` it or drop it ends the call."""

    def __init__(self, call: _EventCall[E], reading: Reading[E]) -> None:
        self._call = call
        self._reading = reading

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        if self._reading.state is not State.OPEN:
            raise StopIteration
        try:
            for event in self._call:
                if self._reading.passes(event):
                    return event
        except grpc.RpcError as error:
            failure = InferwireError.of(error)
            self._reading.stop(State.FAILED)
            raise failure from error
        last = self._reading.end()
        if last is None:
            raise StopIteration
        return last

    def cancel(self) -> None:
        """Ends the call; who waits for the next event gets InferwireError CANCELLED. After the end it does nothing."""
        self._call.cancel()

    def close(self) -> None:
        """Cancels the call if it still runs, and ends the iteration."""
        self._reading.stop(State.CANCELLED)
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._reading.state.value}]>"


class CompletionStream(Stream[inference.StreamCompleteResponse]):
    """The events of one answer: `started`, deltas, and `completion` last. Unknown events are skipped.

    The completion comes only when the status is OK, so it proves that the answer is whole.
    """

    @property
    def started(self) -> inference.Started | None:
        """The beginning of the answer; None until it has been read."""
        first = self._reading.first
        return first.started if first is not None and first.HasField("started") else None

    @property
    def completion(self) -> inference.Completion | None:
        """The end of the answer; None until all of it has been read."""
        last = self._reading.last
        return None if last is None else last.completion

    def text(self) -> Iterator[str]:
        """Yields the answer's text as it comes, and nothing else of it."""
        for event in self:
            if event.HasField("text"):
                yield event.text.text

    def gather(self) -> inference.CompleteResponse:
        """Reads to the end and returns the answer that `complete` would have given; instead of iterating, not after."""
        with self:
            return gather(self)


class _EventCall(Protocol[E_co]):
    """A running call, as grpc gives it; grpc itself names no public class with both."""

    def __iter__(self) -> Iterator[E_co]: ...
    def cancel(self) -> bool: ...
