"""InferenceService: checks a request, leases its model, passes on what the backend says. Decides nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import __version__, channel_arguments, errors, validation, wire
from inferwire_server.access import Principal
from inferwire_server.backends.base import Backend, Call, Event, as_message
from inferwire_server.backends.provider import Provider
from inferwire_server.config import Settings
from inferwire_server.quota import Quotas
from inferwire_server.registry import Registry, no_such_model
from inferwire_server.rpc import Context, Gate

WATCH_INTERVAL_SECONDS = 0.05


class InferenceServicer:
    """Answers the RPCs of the service; bound to a transport by `rpc.bind`."""

    def __init__(
        self,
        *,
        registry: Registry,
        settings: Settings,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._quotas = Quotas(clock)
        self._settings = settings
        self._max_prompt_bytes = settings.engine.max_prompt_bytes
        self._gate = gate
        self._clock = clock
        self._begin = clock()
        self._started_at = Timestamp()
        self._started_at.GetCurrentTime()

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        """The same stream, read to its end."""
        answer = Gatherer()
        async with contextlib.aclosing(self.StreamComplete(request, context)) as events:
            async for event in events:
                answer.add(as_message(event))
        return answer.response()

    async def StreamComplete(self, request: pb.CompleteRequest, context: Context) -> AsyncGenerator[Event]:
        """Yields what the model's backend says."""
        validation.complete_request(request, max_prompt_bytes=self._max_prompt_bytes)
        with self._leased(request, context) as backend:
            call = context.call = self._call(context, self._time_limit(request))
            pace = context.pace
            with self._prompts_logged(request, context) as said:
                async with contextlib.aclosing(backend.stream(request, call)) as events:
                    async for event in events:
                        kind = event.WhichOneof("event")
                        if kind == "started":
                            # Of a route: who answers in the end.
                            started = as_message(event).started
                            context.model = started.model
                            context.note(backend=started.backend)
                        elif kind == "completion":
                            _note_completion(context, as_message(event).completion)
                        elif pace is not None and kind != "progress":
                            pace.delta()
                        if said is not None:
                            said.append(_words(as_message(event)))
                        yield event

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Asks the model's backend."""
        validation.embed_request(request, max_prompt_bytes=self._max_prompt_bytes)
        with self._leased(request, context) as backend:
            call = context.call = self._call(context, self._settings.max_completion_seconds)
            if self._settings.log_prompts:
                context.note(prompt="\n".join(request.inputs))
            response = await backend.embed(request, call)
            context.usage = response.usage
            context.note(prompt_tokens=response.usage.prompt_tokens)
            return response

    async def CountTokens(self, request: pb.CompleteRequest, context: Context) -> pb.CountTokensResponse:
        """Asks the model's backend."""
        validation.complete_request(request, max_prompt_bytes=self._max_prompt_bytes)
        with self._leased(request, context) as backend:
            call = self._call(context, self._settings.max_completion_seconds)
            return await backend.count_tokens(request, call)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Asks the model's backend."""
        validation.tokenize_request(request, max_prompt_bytes=self._max_prompt_bytes)
        with self._leased(request, context) as backend:
            call = self._call(context, self._settings.max_completion_seconds)
            return await backend.tokenize(request, call)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """Asks the model's backend."""
        validation.detokenize_request(request, max_prompt_bytes=self._max_prompt_bytes)
        with self._leased(request, context) as backend:
            call = self._call(context, self._settings.max_completion_seconds)
            return await backend.detokenize(request, call)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Asks the registry."""
        return pb.ListModelsResponse(
            models=self._models(context.principal),
            default_model=self._default_model(context.principal),
            revision=self._registry.changes.revision,
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Asks the registry."""
        validation.get_model_request(request)
        self._check_model(request.model, context.principal)
        return pb.GetModelResponse(model=self._registry.model(request.model))

    async def WatchModels(
        self, request: pb.WatchModelsRequest, context: Context
    ) -> AsyncGenerator[pb.WatchModelsResponse]:
        """Yields a snapshot after changes, until the server drains."""
        changes = self._registry.changes
        while not self._gate.draining:
            revision = changes.revision
            yield pb.WatchModelsResponse(revision=revision, models=self._models(context.principal))
            # Every request is a change; a watcher wants the news, not each of them.
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            await changes.after(revision)
        raise errors.Draining("the server is going away; watch another replica")

    async def ListBackends(
        self, request: pb.ListBackendsRequest, context: Context
    ) -> pb.ListBackendsResponse:
        """Joins what the backends of one id say."""
        by_id: dict[str, list[Backend | Provider]] = {id: [it] for id, it in self._registry.providers.items()}
        for backend in self._registry.backends():
            if not backend.candidates:
                by_id.setdefault(backend.id, []).append(backend)
        return pb.ListBackendsResponse(
            backends=[
                described
                for id in sorted(by_id)
                if (described := _describe(by_id[id], self._registry, context.principal)) is not None
            ]
        )

    async def Health(self, request: pb.HealthRequest, context: Context) -> pb.HealthResponse:
        """Answers from memory."""
        response = pb.HealthResponse(
            version=__version__,
            started_at=self._started_at,
            ready=self._registry.is_ready and not self._gate.draining,
            draining=self._gate.draining,
            models=[self._health(model) for model in self._models(context.principal)],
        )
        response.uptime.FromNanoseconds(int((self._clock() - self._begin) * 1e9))
        response.limits.max_message_bytes = channel_arguments.MAX_MESSAGE_BYTES
        response.limits.max_prompt_bytes = self._max_prompt_bytes
        response.limits.max_completion_time.FromNanoseconds(int(self._settings.max_completion_seconds * 1e9))
        return response

    @contextlib.contextmanager
    def _leased(
        self,
        request: pb.CompleteRequest | pb.EmbedRequest | pb.TokenizeRequest | pb.DetokenizeRequest,
        context: Context,
    ) -> Iterator[Backend]:
        """Holds the request's model, and writes the resolved name into the request. Counts what the caller uses."""
        context.model = request.model or self._registry.default_model
        context.operation = _operation(request)
        self._check_model(request.model, context.principal)
        with (
            self._quotas.entered(context.principal) as account,
            self._registry.lease(request.model) as backend,
        ):
            request.model = context.model
            context.route = request.model if backend.candidates else ""
            context.note(model=request.model, backend=backend.id)
            try:
                yield backend
            finally:
                account.spend(_tokens_used(context))

    def _check_model(self, name: str, principal: Principal) -> None:
        """Raises errors.ModelNotFound for a model that is not the caller's, as if there were none."""
        if not principal.may_use(name or self._registry.default_model):
            raise no_such_model(name)

    def _models(self, principal: Principal) -> list[models_pb2.Model]:
        return [model for model in self._registry.models() if principal.may_use(model.name)]

    def _default_model(self, principal: Principal) -> str:
        name = self._registry.default_model
        return name if principal.may_use(name) else ""

    @contextlib.contextmanager
    def _prompts_logged(self, request: pb.CompleteRequest, context: Context) -> Iterator[list[str] | None]:
        """Notes what a caller wrote, and at the end what is in the list. None unless the operator wants it in the log."""
        if not self._settings.log_prompts:
            yield None
            return
        context.note(prompt=_prompt_text(request))
        said: list[str] = []
        try:
            yield said
        finally:
            context.note(completion="".join(said))

    def _time_limit(self, request: pb.CompleteRequest) -> float:
        limit = self._settings.max_completion_seconds
        if request.stopping.HasField("time_limit"):
            limit = min(limit, request.stopping.time_limit.ToNanoseconds() / 1e9)
        return limit

    @staticmethod
    def _call(context: Context, limit: float) -> Call:
        return Call(
            request_id=context.request_id,
            principal=context.principal.name,
            time_limit=context.begin + limit,
            deadline=context.deadline,
            hops=context.hops,
            trace=context.trace,
        )

    def _health(self, model: models_pb2.Model) -> pb.ModelHealth:
        occupancy = self._registry.occupancy(model.name)
        return pb.ModelHealth(
            name=model.name,
            state=model.state,
            required=model.required,
            streams_in_flight=model.streams_in_flight,
            queue_length=occupancy.queue_length,
            parallel_sequences=occupancy.parallel_sequences,
            queue_capacity=occupancy.queue_capacity,
            prompt_tokens_total=occupancy.prompt_tokens_total,
            completion_tokens_total=occupancy.completion_tokens_total,
        )


def _describe(
    backends: Sequence[Backend | Provider], registry: Registry, principal: Principal
) -> pb.Backend | None:
    """Returns the backends of one id as one, with the models that are the caller's; None where none is."""
    capabilities = models_pb2.Capabilities()
    for backend in backends:
        capabilities.MergeFrom(backend.capabilities)
    available = sorted({model for backend in backends for model in backend.available_models})
    id = backends[0].id
    models = [name for name in available if principal.may_use(name) or principal.may_use(f"{id}/{name}")]
    if not models and not principal.may_use("*"):
        return None
    described = pb.Backend(
        id=id,
        display_name=backends[0].display_name,
        capabilities=capabilities,
        default_model=_default_model(backends, models, registry),
        available_models=models,
        health=pb.BACKEND_HEALTH_SERVING,
    )
    problems = [backend.problem for backend in backends]
    if problems[0] is not None and None not in problems:
        described.health = pb.BACKEND_HEALTH_NOT_SERVING
        described.failure.reason = wire.reason_value(problems[0])
        described.failure.message = problems[0].message
    return described


def _default_model(backends: Sequence[Backend | Provider], models: Sequence[str], registry: Registry) -> str:
    for default in (backends[0].default_model, registry.default_model):
        if default in models:
            return default
    return next(iter(models), "")


def _note_completion(context: Context, completion: pb.Completion) -> None:
    context.completion, context.usage = completion, completion.usage
    context.note(
        finish_reason=pb.FinishReason.Name(completion.finish_reason).removeprefix("FINISH_REASON_"),
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
    )


def _tokens_used(context: Context) -> int:
    """Returns the tokens of a prompt and its answer; of one that did not come to its end, what was sent of it."""
    if context.usage is not None:
        return context.usage.prompt_tokens + context.usage.completion_tokens
    return context.call.tokens_emitted if context.call else 0


def _operation(request: Message) -> str:
    """Returns OpenTelemetry's word for what is asked; empty where it has none."""
    if isinstance(request, pb.CompleteRequest):
        return "chat" if request.HasField("chat") else "text_completion"
    return "embeddings" if isinstance(request, pb.EmbedRequest) else ""


def _prompt_text(request: pb.CompleteRequest) -> str:
    """Returns what a caller wrote, as text; of images only that they are there."""
    if request.WhichOneof("input") == "prompt":
        return request.prompt
    chat = pb.Chat()
    chat.CopyFrom(request.chat)
    for message in chat.messages:
        for part in message.parts:
            if part.HasField("image"):
                part.image.ClearField("data")
            for image in part.tool_result.images if part.HasField("tool_result") else ():
                image.ClearField("data")
    return json_format.MessageToJson(chat, indent=None, ensure_ascii=False, preserving_proto_field_name=True)


def _words(event: pb.StreamCompleteResponse) -> str:
    """Returns what a model said in an event."""
    match event.WhichOneof("event"):
        case "text":
            return event.text.text
        case "reasoning":
            return event.reasoning.text
        case "tool_call":
            return event.tool_call.name + event.tool_call.arguments
        case _:
            return ""
