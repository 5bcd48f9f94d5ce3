"""ModelService: checks a request and asks the registry. Decides nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from inferwire.v1 import models_pb2 as pb
from inferwire_server import errors, validation
from inferwire_server.registry import DEFAULT_DRAIN_SECONDS, Registry
from inferwire_server.rpc import Context


class ModelServicer:
    """Answers the RPCs of the service; bound to a transport by `rpc.bind`."""

    def __init__(self, *, registry: Registry) -> None:
        self._registry = registry

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        """Waits for the load's end."""
        validation.load_request(request)
        _check_model(request.model, context)
        return await self._registry.load(request)

    async def StreamLoad(
        self, request: pb.LoadRequest, context: Context
    ) -> AsyncGenerator[pb.StreamLoadResponse]:
        """Tells the load's progress, then its end."""
        validation.load_request(request)
        _check_model(request.model, context)
        entry, already_loaded = self._registry.begin_load(request)
        task, told, revision = entry.load_task, None, 0
        while task is not None and not task.done():
            if entry.progress is not None and entry.progress != told:
                told = entry.progress
                yield pb.StreamLoadResponse(progress=told)
            revision = await self._registry.changes.after(revision)
        await self._registry.loaded(task, request.model)
        model = self._registry.model(request.model)
        yield pb.StreamLoadResponse(loaded=pb.LoadResponse(model=model, already_loaded=already_loaded))

    async def Unload(self, request: pb.UnloadRequest, context: Context) -> pb.UnloadResponse:
        """Waits for the unload's end."""
        validation.unload_request(request)
        _check_model(request.model, context)
        has_timeout = request.HasField("drain_timeout")
        seconds = request.drain_timeout.ToNanoseconds() / 1e9 if has_timeout else DEFAULT_DRAIN_SECONDS
        return await self._registry.unload(request.model, seconds)


def _check_model(name: str, context: Context) -> None:
    """Notes the model, and raises errors.ScopeRequired when it is not the caller's to load or unload."""
    context.model = name
    context.note(model=name)
    if not context.principal.may_use(name):
        raise errors.ScopeRequired("the key does not allow this model", metadata={"scope": "admin"})
