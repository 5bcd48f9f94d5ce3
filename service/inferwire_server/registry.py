"""The models: which there are, in which state, who holds them. Loads once however many ask, lends, drains, unloads.

Owns every entry and every task about one; nothing else changes a model's state. One event loop, and no await between a
decision and its effect on the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from inferwire.v1 import models_pb2
from inferwire_server import errors, files, wire
from inferwire_server.backends.base import Backend, Occupancy
from inferwire_server.backends.local import BACKEND_ID, LocalBackend, Progress
from inferwire_server.backends.provider import Provider, RemoteBackend
from inferwire_server.backends.quarantine import Quarantine
from inferwire_server.changes import Changes
from inferwire_server.config import EngineSettings

log = structlog.get_logger()

DEFAULT_DRAIN_SECONDS = 30.0
FIRST_RESTART_DELAY_SECONDS = 0.5
MAX_RESTART_DELAY_SECONDS = 30.0
RETRY_DELAY_SECONDS = 1.0

State = models_pb2.ModelState

_BUSY_STATES: dict[State, tuple[type[errors.ServingError], str]] = {
    models_pb2.MODEL_STATE_UNLOADED: (errors.ModelNotLoaded, "the model is not in memory; load it first"),
    models_pb2.MODEL_STATE_LOADING: (errors.ModelLoading, "the model is being loaded; retry soon"),
    models_pb2.MODEL_STATE_DRAINING: (errors.ModelUnloading, "the model is being unloaded"),
    models_pb2.MODEL_STATE_FAILED: (
        errors.ModelFailed,
        "the model failed; GetModel says why, Load tries again",
    ),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model is loaded from, and how. Two loads of one spec are the same load."""

    source: models_pb2.ModelSource
    file: files.ModelFile | None
    config: models_pb2.LoadConfig
    adapters: tuple[files.ModelFile, ...] = ()


@dataclasses.dataclass(eq=False)
class Instance:
    """A backend that answers for a model, and how many streams hold it."""

    backend: Backend
    num_leases: int = 0

    @property
    def local(self) -> LocalBackend | None:
        """The backend, if it is one with an engine process of ours."""
        return self.backend if isinstance(self.backend, LocalBackend) else None

    @property
    def remote(self) -> RemoteBackend | None:
        """The backend, if it is a model of a provider."""
        return self.backend if isinstance(self.backend, RemoteBackend) else None


@dataclasses.dataclass(eq=False)
class Entry:
    """A model by name. `declared` is what the configuration says, `spec` what is loaded or being loaded."""

    name: str
    state: State = models_pb2.MODEL_STATE_UNLOADED
    declared: Spec | None = None
    spec: Spec | None = None
    instance: Instance | None = None
    required: bool = False
    pinned: bool = False
    keep_alive_seconds: float | None = None
    load_task: asyncio.Task[None] | None = None
    unload_task: asyncio.Task[int] | None = None
    drain_until: float = 0.0
    progress: models_pb2.LoadProgress | None = None
    failure: models_pb2.Failure | None = None
    restarts: int = 0
    crashes: deque[float] = dataclasses.field(default_factory=deque)
    quarantine: Quarantine | None = None
    idle_timer: asyncio.TimerHandle | None = None
    loaded_at: Timestamp | None = None
    last_used_at: Timestamp | None = None

    def __repr__(self) -> str:
        leases = self.instance.num_leases if self.instance else 0
        return f"<Entry {self.name} [{State.Name(self.state)} | leases {leases} | restarts {self.restarts}]>"

    @property
    def problem(self) -> errors.ServingError | None:
        """Why it does not answer now; None when it does."""
        if self.state != models_pb2.MODEL_STATE_READY or self.instance is None:
            cls, message = _BUSY_STATES[self.state]
            return cls(message, metadata={"model": self.name}, retry_delay_seconds=RETRY_DELAY_SECONDS)
        # An engine that ends is told by its exit; what is elsewhere may be gone at any time, and may be asked all the same.
        return None if self.instance.local else self.instance.backend.problem

    @property
    def shown_state(self) -> State:
        """The state that callers see: FAILED also while what is elsewhere would not answer."""
        is_gone = self.state == models_pb2.MODEL_STATE_READY and self.problem is not None
        return models_pb2.MODEL_STATE_FAILED if is_gone else self.state


def no_such_model(name: str) -> errors.ModelNotFound:
    """Returns the failure of a name that no model has, as far as the caller may know."""
    shown = name if re.fullmatch(r"[A-Za-z0-9_.:/-]{1,128}", name) else ""
    return errors.ModelNotFound("no such model; ListModels names those there are", metadata={"model": shown})


class Registry:
    """All models of the server."""

    def __init__(
        self,
        *,
        engine: EngineSettings,
        roots: list[pathlib.Path],
        default_model: str = "",
        providers: Iterable[Provider] = (),
        new_backend: Callable[..., LocalBackend] = LocalBackend,
    ) -> None:
        self._engine = engine
        self._roots = roots
        self._default_model = default_model
        self._new_backend = new_backend
        self._entries: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.providers = {provider.id: provider for provider in providers}
        self.changes = Changes()
        self.leases_created = 0
        self.leases_released = 0

    def __repr__(self) -> str:
        states = ", ".join(map(repr, self._entries.values()))
        return f"<Registry [leases {self.leases_created} - {self.leases_released} | {states}]>"

    # What there is.

    def declare(
        self,
        name: str,
        *,
        path: pathlib.Path,
        config: models_pb2.LoadConfig,
        required: bool,
        pinned: bool = False,
        keep_alive_seconds: float | None = None,
    ) -> None:
        """Makes a model known that the operator named. It is UNLOADED until `load`."""
        # Callers see the file's name alone: the operator's directories are not theirs to know.
        source = models_pb2.ModelSource(local=models_pb2.LocalSource(path=path.name))
        adapters = [pathlib.Path(adapter.source.path) for adapter in config.lora_adapters]
        for adapter, its_path in zip(config.lora_adapters, adapters, strict=True):
            adapter.source.path = its_path.name
        spec = Spec(
            source,
            files.ModelFile(path.name, path.absolute()),
            config,
            tuple(files.ModelFile(each.name, each.absolute()) for each in adapters),
        )
        self._entries[name] = Entry(
            name, declared=spec, required=required, pinned=pinned, keep_alive_seconds=keep_alive_seconds
        )
        self.changes.bump()

    def add(self, name: str, backend: Backend, *, required: bool = False) -> None:
        """Makes a model known that a backend answers for without a load."""
        self._entries[name] = Entry(
            name, state=models_pb2.MODEL_STATE_READY, instance=Instance(backend), required=required
        )
        self.changes.bump()

    def add_providers(self) -> None:
        """Makes the models known that the operator has listed for each provider, as "<backend>/<model>"."""
        for provider in self.providers.values():
            provider.on_change = self.changes.bump
            for model in provider.models:
                self.add(f"{provider.id}/{model}", provider.backend(model))

    @property
    def default_model(self) -> str:
        """The model for requests that name none: the configured one, else the first known; empty when there is none."""
        return self._default_model or next(iter(self._entries), "")

    @property
    def is_ready(self) -> bool:
        """Whether every required model is READY."""
        return all(
            entry.shown_state == models_pb2.MODEL_STATE_READY
            for entry in self._entries.values()
            if entry.required
        )

    @property
    def num_leases(self) -> int:
        """Streams that hold a model now, those on instances that were replaced included."""
        return self.leases_created - self.leases_released

    def models(self) -> list[models_pb2.Model]:
        """Returns every model, ordered by name."""
        return [self._describe(self._entries[name]) for name in sorted(self._entries)]

    def states(self) -> dict[str, State]:
        """Returns every model's state: what is cheap to ask after every change."""
        return {name: entry.shown_state for name, entry in self._entries.items()}

    def model(self, name: str) -> models_pb2.Model:
        """Returns one model. Raises errors.ModelNotFound."""
        return self._describe(self._entry(name))

    def occupancy(self, name: str) -> Occupancy:
        """Returns how busy a model is. Raises errors.ModelNotFound."""
        instance = self._entry(name).instance
        return (
            instance.backend.occupancy if instance else Occupancy(queue_capacity=self._engine.queue_capacity)
        )

    def problem(self, name: str) -> errors.ServingError | None:
        """Returns why a model does not answer now; None when it does. Raises errors.ModelNotFound."""
        return self._entry(name).problem

    def knows(self, name: str) -> bool:
        """Whether a model of this name is listed: what callers make up is not."""
        return name in self._entries

    def entries(self) -> list[Entry]:
        """Returns every model as it is kept, to be looked at. From any thread."""
        return list(self._entries.values())

    def capabilities(self, name: str) -> models_pb2.Capabilities:
        """Returns what a model can do, nothing while it is not loaded. Raises errors.ModelNotFound."""
        instance = self._entry(name).instance
        return instance.backend.capabilities if instance else models_pb2.Capabilities()

    def backends(self) -> list[Backend]:
        """Returns the backends that answer for a model now."""
        return [entry.instance.backend for entry in self._entries.values() if entry.instance]

    # Lending.

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[Backend]:
        """Holds a model's backend: an unload waits for its end, up to the drain timeout.

        An empty name is the default model. Raises errors.ModelNotFound, ModelNotLoaded, ModelLoading, ModelUnloading or
        ModelFailed when the model does not answer.
        """
        entry = self._entry(name)
        instance = entry.instance
        if entry.state != models_pb2.MODEL_STATE_READY or instance is None:
            assert entry.problem is not None, "it is not ready"
            raise entry.problem
        instance.num_leases += 1
        self.leases_created += 1
        self._touch(entry)
        self.changes.bump()
        try:
            yield instance.backend
        finally:
            instance.num_leases -= 1
            self.leases_released += 1
            self._touch(entry)
            self.changes.bump()

    def _touch(self, entry: Entry) -> None:
        """Notes that a model was used, and starts its idle time anew."""
        entry.last_used_at = _now()
        if entry.idle_timer is not None:
            entry.idle_timer.cancel()
            entry.idle_timer = None
        idle = entry.instance is not None and entry.instance.num_leases == 0
        if entry.keep_alive_seconds is not None and idle and entry.state == models_pb2.MODEL_STATE_READY:
            entry.idle_timer = asyncio.get_running_loop().call_later(
                entry.keep_alive_seconds, self._begin_unload, entry, 0.0
            )

    # Loading.

    async def load(self, request: models_pb2.LoadRequest) -> models_pb2.LoadResponse:
        """Loads a model, or joins the load that runs, or returns the loaded model.

        Who cancels this only stops waiting. Raises what `ModelService.Load` documents.
        """
        entry, already_loaded = self.begin_load(request)
        await self.loaded(entry.load_task, entry.name)
        return models_pb2.LoadResponse(model=self._describe(entry), already_loaded=already_loaded)

    async def loaded(self, task: asyncio.Task[None] | None, name: str) -> None:
        """Waits for a load; raises its failure. None is a load that ended long ago."""
        if task is None:
            return
        await asyncio.wait([task])
        if task.cancelled():
            raise errors.LoadCancelled("the load was stopped", metadata={"model": name})
        failure = task.exception()
        if isinstance(failure, errors.ServingError):
            raise failure.copy()
        if failure is not None:
            raise failure

    def begin_load(self, request: models_pb2.LoadRequest) -> tuple[Entry, bool]:
        """Decides what a load request means and starts the load if one is needed. True: the model is READY already."""
        known = self._entries.get(request.model)
        spec = self._spec(request, known)
        if known is not None:
            same = known.spec == spec or not (request.HasField("source") or request.HasField("config"))
            match known.state:
                case models_pb2.MODEL_STATE_LOADING:
                    if not same:
                        raise errors.ModelBusy(
                            "another load of this name runs; wait for it, or unload first",
                            metadata={"model": known.name},
                        )
                    return known, False
                case models_pb2.MODEL_STATE_READY:
                    if known.load_task is not None and known.spec == spec:
                        return known, False  # the replacement that runs
                    if same and known.load_task is None:
                        self._keep(known, request)
                        return known, True
                    if not request.replace or known.load_task is not None:
                        raise errors.ModelConfigConflict(
                            "the name is loaded with another source or config; unload it first, or set replace",
                            metadata={"model": known.name},
                        )
                case models_pb2.MODEL_STATE_DRAINING:
                    raise errors.ModelUnloading(
                        "the model is being unloaded; retry when it is gone",
                        metadata={"model": known.name},
                        retry_delay_seconds=RETRY_DELAY_SECONDS,
                    )
        entry = known or Entry(request.model)
        self._entries[entry.name] = entry
        entry.crashes.clear()
        entry.quarantine = Quarantine(entry.name)
        entry.restarts = 0
        self._keep(entry, request)
        self._start_load(entry, spec)
        return entry, False

    @staticmethod
    def _keep(entry: Entry, request: models_pb2.LoadRequest) -> None:
        entry.pinned = entry.pinned or request.pinned
        if request.HasField("keep_alive"):
            entry.keep_alive_seconds = request.keep_alive.ToTimedelta().total_seconds()

    def _spec(self, request: models_pb2.LoadRequest, known: Entry | None) -> Spec:
        match request.source.WhichOneof("source"):
            case None:
                spec = (known.declared or known.spec) if known else None
                if spec is None:
                    raise errors.InvalidRequest(
                        "say where the model comes from", violations=[("source", "must be set for this name")]
                    )
                if request.HasField("config"):
                    spec = dataclasses.replace(
                        spec, config=request.config, adapters=self._adapters(request.config)
                    )
            case "local":
                file = files.resolve(request.source.local.path, self._roots)
                spec = Spec(request.source, file, request.config, self._adapters(request.config))
            case "remote":
                spec = self._remote_spec(request)
            case kind:
                raise errors.UnsupportedByBackend(
                    "this server does not fetch from a hub yet; put the file beneath a model root",
                    metadata={"model": request.model, "backend": BACKEND_ID},
                    violations=[(f"source.{kind}", "not served yet")],
                )
        unserved = [name for name in ("draft",) if _is_set(spec.config, name)]
        if unserved:
            raise errors.UnsupportedByBackend(
                "this server does not serve a setting of the config yet",
                metadata={"model": request.model, "backend": BACKEND_ID},
                violations=[(f"config.{name}", "not served yet") for name in unserved],
            )
        return spec

    def _remote_spec(self, request: models_pb2.LoadRequest) -> Spec:
        remote = request.source.remote
        provider = self.providers.get(remote.backend)
        if provider is None:
            raise errors.BackendNotFound(
                "the operator configured no such backend", metadata={"backend": remote.backend[:64]}
            )
        if not provider.allows(remote.model):
            raise errors.ModelNotFound(
                "the operator does not list this model of the backend", metadata={"model": remote.model[:128]}
            )
        if settings := request.config.ListFields():
            raise errors.UnsupportedByBackend(
                "how a model elsewhere is loaded is not ours to say",
                metadata={"model": request.model, "backend": remote.backend},
                violations=[(f"config.{field.name}", "is for local models") for field, _ in settings],
            )
        return Spec(request.source, None, request.config)

    def _adapters(self, config: models_pb2.LoadConfig) -> tuple[files.ModelFile, ...]:
        return tuple(
            files.resolve(
                adapter.source.path, self._roots, field=f"config.lora_adapters[{index}].source.path"
            )
            for index, adapter in enumerate(config.lora_adapters)
        )

    def _start_load(self, entry: Entry, spec: Spec, *, restart_delay_seconds: float | None = None) -> None:
        """Starts a load; with a delay it is one that nobody has asked for, after an engine ended by itself."""
        replaces = entry.state == models_pb2.MODEL_STATE_READY
        if not replaces:
            entry.state = models_pb2.MODEL_STATE_LOADING
        entry.failure = None
        previous = entry.spec
        entry.spec = spec
        entry.progress = models_pb2.LoadProgress(stage=models_pb2.LOAD_STAGE_STARTING)
        entry.load_task = self._spawn(self._load(entry, spec, restart_delay_seconds), f"load {entry.name}")

        def done(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if replaces and (task.cancelled() or error is not None):
                entry.spec = previous
            entry.load_task = None
            entry.progress = None
            if error is not None and restart_delay_seconds is not None and entry.unload_task is None:
                # Nobody waits for it who could try again. What was loaded once may be loaded yet: whatever ended the
                # engine may still be about, or others have the memory.
                self._start_again(entry, error)
            self.changes.bump()

        entry.load_task.add_done_callback(done)
        self.changes.bump()

    async def _load(self, entry: Entry, spec: Spec, restart_delay_seconds: float | None) -> None:
        await asyncio.sleep(restart_delay_seconds or 0.0)
        begin = time.monotonic()

        def on_progress(progress: models_pb2.LoadProgress) -> None:
            entry.progress = progress
            self.changes.bump()

        instance: Instance | None = None

        def on_exit() -> None:
            if entry.instance is instance:
                self._restart(entry)

        try:
            backend = await self._open(entry, spec, on_progress, on_exit)
        except errors.ServingError as error:
            error.metadata.setdefault("model", entry.name)
            if spec.file is None:
                error.metadata.setdefault("backend", spec.source.remote.backend)
            if restart_delay_seconds is not None:
                log.warning("model_restart_failed", model=entry.name, reason=error.reason)
                raise
            if entry.state == models_pb2.MODEL_STATE_LOADING:
                entry.state = models_pb2.MODEL_STATE_FAILED
                entry.failure = models_pb2.Failure(reason=wire.reason_value(error), message=error.message)
            log.warning("model_failed", model=entry.name, reason=error.reason)
            raise
        old, instance = entry.instance, Instance(backend)
        entry.instance = instance
        entry.state = models_pb2.MODEL_STATE_READY
        entry.loaded_at = _now()
        self._touch(entry)
        log.info(
            "model_ready",
            model=entry.name,
            backend=backend.id,
            seconds=round(time.monotonic() - begin, 2),
            pid=instance.local.pid if instance.local else None,
        )
        if old is not None:
            _ = self._spawn(
                self._retire(old, time.monotonic() + DEFAULT_DRAIN_SECONDS), f"retire {entry.name}"
            )

    async def _open(
        self, entry: Entry, spec: Spec, on_progress: Progress, on_exit: Callable[[], None]
    ) -> Backend:
        """Returns a backend that answers. Raises errors.ServingError."""
        if spec.file is None:
            remote = spec.source.remote
            provider = self.providers[remote.backend]
            await provider.load(remote.model, entry.keep_alive_seconds)
            return provider.backend(remote.model)
        backend = self._new_backend(
            model=entry.name,
            file=spec.file,
            config=spec.config,
            adapters=spec.adapters,
            settings=self._engine,
            on_exit=on_exit,
            quarantine=entry.quarantine,
            on_change=self.changes.bump,
        )
        await backend.load(on_progress)
        return backend

    def _restart(self, entry: Entry) -> None:
        """Starts a model's engine again after it ended by itself, unless it does so too often."""
        crashed, entry.instance = entry.instance, None
        if crashed is not None and crashed.local is not None:
            _ = self._spawn(crashed.local.unload(), f"reap {entry.name}")
        if entry.state != models_pb2.MODEL_STATE_READY:
            return
        if entry.load_task is not None:
            # What was to replace it is on its way, and takes its place.
            entry.state = models_pb2.MODEL_STATE_LOADING
            self.changes.bump()
            return
        self._start_again(entry, errors.EngineCrashed("the engine crashed too often"))

    def _start_again(self, entry: Entry, error: BaseException) -> None:
        """Counts an engine's end and starts the next, unless there were too many: then `error` is why the model has failed."""
        assert entry.spec is not None, "it was loaded"
        now = time.monotonic()
        entry.crashes.append(now)
        while entry.crashes[0] < now - self._engine.restart_window_seconds:
            entry.crashes.popleft()
        if len(entry.crashes) > self._engine.max_restarts:
            told = (
                error
                if isinstance(error, errors.ServingError)
                else errors.Internal("the engine did not start")
            )
            entry.state = models_pb2.MODEL_STATE_FAILED
            entry.failure = models_pb2.Failure(reason=wire.reason_value(told), message=told.message)
            log.error("model_failed", model=entry.name, reason=told.reason, crashes=len(entry.crashes))
            self.changes.bump()
            return
        delay = min(FIRST_RESTART_DELAY_SECONDS * 2 ** (len(entry.crashes) - 1), MAX_RESTART_DELAY_SECONDS)
        entry.restarts += 1
        entry.state = models_pb2.MODEL_STATE_LOADING
        log.warning("model_restarting", model=entry.name, delay_seconds=delay, restarts=entry.restarts)
        self._start_load(entry, entry.spec, restart_delay_seconds=delay)

    # Unloading.

    async def unload(
        self, name: str, drain_seconds: float = DEFAULT_DRAIN_SECONDS
    ) -> models_pb2.UnloadResponse:
        """Unloads a model; unknown and unloaded names are fine. Who cancels this only stops waiting."""
        entry = self._entries.get(name)
        if entry is None or entry.state == models_pb2.MODEL_STATE_UNLOADED:
            return models_pb2.UnloadResponse(was_loaded=False)
        if entry.instance is not None and entry.spec is None:
            raise errors.UnsupportedByBackend(
                "the model's backend does not unload",
                metadata={"model": name, "backend": entry.instance.backend.id},
                violations=[("model", "is not loaded by this server")],
            )
        self._begin_unload(entry, drain_seconds)
        assert entry.unload_task is not None, "begun just now"
        return models_pb2.UnloadResponse(
            was_loaded=True, streams_ended=await asyncio.shield(entry.unload_task)
        )

    def _begin_unload(self, entry: Entry, drain_seconds: float) -> None:
        """Starts an unload, or shortens the one that runs."""
        until = time.monotonic() + drain_seconds
        if entry.unload_task is not None:
            entry.drain_until = min(entry.drain_until, until)
            self.changes.bump()
            return
        entry.drain_until = until
        if entry.instance is not None:
            entry.state = models_pb2.MODEL_STATE_DRAINING
        entry.unload_task = self._spawn(self._unload(entry), f"unload {entry.name}")
        self.changes.bump()

    async def _unload(self, entry: Entry) -> int:
        if entry.load_task is not None:
            entry.load_task.cancel()
            await asyncio.wait([entry.load_task])
        num_ended = 0
        if entry.instance is not None:
            num_ended = await self._retire(entry.instance, None, entry)
        entry.instance = None
        entry.unload_task = None
        entry.loaded_at = None
        entry.failure = None
        entry.spec = None
        entry.restarts = 0
        entry.state = models_pb2.MODEL_STATE_UNLOADED
        if entry.declared is None:
            del self._entries[entry.name]
        log.info("model_unloaded", model=entry.name, streams_ended=num_ended)
        self.changes.bump()
        return num_ended

    async def _retire(self, instance: Instance, until: float | None, entry: Entry | None = None) -> int:
        """Lets an instance's streams finish until the time, ends those left and the process. Returns how many it ended."""
        while instance.num_leases:
            limit = entry.drain_until if entry is not None else until or 0.0
            left = limit - time.monotonic()
            if left <= 0:
                break
            await self.changes.after(self.changes.revision, timeout_seconds=left)
        num_ended = instance.num_leases
        if instance.local is not None:
            await instance.local.unload()
        elif instance.remote is not None:
            # Streams that are left end there or here, as their callers like: no memory of ours hangs on them.
            await self._unload_remote(instance.remote)
        return num_ended

    @staticmethod
    async def _unload_remote(backend: RemoteBackend) -> None:
        try:
            await backend.provider.unload(backend.model)
        except errors.ServingError as error:
            # Whoever cannot be reached cannot be told; for us the model is gone.
            log.warning("unload_failed", backend=backend.id, reason=error.reason, detail=error.detail)

    # The end.

    async def close(self) -> None:
        """Ends everything: loads, engine processes, tasks. No stream may hold a model any more."""
        for entry in self._entries.values():
            if entry.load_task is not None:
                entry.load_task.cancel()
            if entry.idle_timer is not None:
                entry.idle_timer.cancel()
        ended = errors.DrainTimeout("the server ended")
        local = [entry.instance.local for entry in self._entries.values() if entry.instance]
        await asyncio.gather(*(backend.unload(ended) for backend in local if backend))
        # What is left ends by itself, now that no process and no lease is: unloads, and processes that are reaped.
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and not isinstance(task.exception(), errors.ServingError | None):
                log.error("task_failed", task=task.get_name(), exc_info=task.exception())

        task.add_done_callback(done)
        return task

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name or self.default_model) or self._unlisted(name)
        if entry is None:
            raise no_such_model(name)
        return entry

    def _unlisted(self, name: str) -> Entry | None:
        """Returns a model that a provider may have and the operator did not list; made for the moment, for a call's sake."""
        id, _, model = name.partition("/")
        provider = self.providers.get(id)
        if provider is None or not model or not provider.allows(model):
            return None
        return Entry(name, state=models_pb2.MODEL_STATE_READY, instance=Instance(provider.backend(model)))

    def _describe(self, entry: Entry) -> models_pb2.Model:
        model = models_pb2.Model()
        backend = entry.instance.backend if entry.instance else None
        local = entry.instance.local if entry.instance else None
        remote = entry.instance.remote if entry.instance else None
        if local is not None:
            model.CopyFrom(local.model_info)
            model.memory_bytes = _resident_bytes(local.pid)
        elif backend is not None:
            model.capabilities.CopyFrom(backend.capabilities)
            model.candidates.extend(backend.candidates)
        model.name = entry.name
        model.state = entry.shown_state
        spec = entry.spec or entry.declared
        if spec is not None:
            model.source.CopyFrom(spec.source)
        elif remote is not None:
            model.source.remote.backend = remote.provider.id
            model.source.remote.model = remote.model
        model.backend = backend.id if backend else BACKEND_ID
        model.required = entry.required
        model.pinned = entry.pinned
        model.restarts = entry.restarts
        if entry.keep_alive_seconds is not None:
            model.keep_alive.FromNanoseconds(round(entry.keep_alive_seconds * 1e9))
        if entry.instance is not None:
            model.streams_in_flight = entry.instance.num_leases
            model.queue_length = entry.instance.backend.occupancy.queue_length
        for field, value in (("loaded_at", entry.loaded_at), ("last_used_at", entry.last_used_at)):
            if value is not None:
                getattr(model, field).CopyFrom(value)
        if entry.progress is not None:
            model.load_progress.CopyFrom(entry.progress)
        if entry.failure is not None:
            model.failure.CopyFrom(entry.failure)
        elif model.state == models_pb2.MODEL_STATE_FAILED and (problem := entry.problem) is not None:
            model.failure.reason = wire.reason_value(problem)
            model.failure.message = problem.message
        return model


def _is_set(config: models_pb2.LoadConfig, name: str) -> bool:
    field = config.DESCRIPTOR.fields_by_name[name]
    return len(getattr(config, name)) > 0 if field.is_repeated else config.HasField(name)


def _resident_bytes(pid: int | None) -> int:
    """Returns a process's resident memory, or 0 where the system does not tell (not Linux)."""
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
