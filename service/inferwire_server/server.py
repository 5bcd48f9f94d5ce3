"""The life of the process: build, open the port, load, serve, drain, stop. Top to bottom.

The port opens before any model loads, so that probes are answered from the first moment. The first signal drains, the
second ends at once. Ends with exit code 0 after a drain, however it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inferwire.v1 import inference_pb2, models_pb2
from inferwire_server import __version__, channel_arguments, errors, health, rpc
from inferwire_server.backends import providers
from inferwire_server.backends.scripted import ScriptedBackend
from inferwire_server.config import DEMO_MODEL, Settings
from inferwire_server.models import demo_model_path
from inferwire_server.models_servicer import ModelServicer
from inferwire_server.registry import Registry
from inferwire_server.router import RouteBackend
from inferwire_server.servicer import InferenceServicer

log = structlog.get_logger()

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
)
# So small a model is as fast on one thread, and never waits for a second core that is busy.
DEMO_CONFIG = models_pb2.LoadConfig(context_length=1024, parallel_sequences=16, threads=1)
# After the drain's own limit: engine processes end, statuses are flushed.
STOP_GRACE_SECONDS = 2.0
FORCED_EXIT_CODE = 70
WATCHDOG_SECONDS = 5.0
SAME_SIGNAL_SECONDS = 0.5


class AddressInUse(Exception):
    """The address cannot be bound."""


class Server:
    """One server. `start`, then `stop`; or `run` for a whole life with signals. Make it inside its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises config.ConfigError for a backend that cannot be."""
        self.settings = settings
        self.gate = rpc.Gate()
        self._providers = providers.build(settings.backends)
        self.registry = Registry(
            engine=settings.engine,
            roots=[pathlib.Path(root).resolve() for root in settings.model_roots],
            default_model=settings.default_model,
            providers=self._providers.values(),
        )
        self.health = health.Health(self.registry)
        self._server = grpc.aio.server(options=channel_arguments.OPTIONS)
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = False
        self.port = 0

    def __repr__(self) -> str:
        return f"<Server [port {self.port} | {self.gate!r} | {self.registry!r}]>"

    async def run(self, on_start: Callable[[Server], None] = lambda server: None) -> None:
        """Serves until a signal. `on_start` is called when the port is open. Raises AddressInUse."""
        with _Signals() as signals:
            await self.start()
            on_start(self)
            first = await signals.next()
            # A person at a terminal does not want to wait for balancers to notice.
            lame_duck = 0.0 if first == signal.SIGINT else self.settings.lame_duck_seconds
            hurry = asyncio.create_task(self._hurry_after(signals), name="second signal")
            await self.stop(lame_duck_seconds=lame_duck)
            hurry.cancel()
            await asyncio.wait([hurry])

    async def _hurry_after(self, signals: _Signals) -> None:
        begin = time.monotonic()
        await signals.next()
        # A signal to a process group may come twice: from the sender, and passed on by a parent.
        while time.monotonic() - begin < SAME_SIGNAL_SECONDS:
            await signals.next()
        log.warning("stopping_now")
        self._hurry = True
        self.gate.changes.bump()

    async def start(self) -> None:
        """Opens the port and begins to load the operator's models. Raises AddressInUse."""
        settings = self.settings
        for service, servicer in zip(
            SERVICES,
            (
                InferenceServicer(registry=self.registry, settings=settings, gate=self.gate),
                ModelServicer(registry=self.registry),
            ),
            strict=True,
        ):
            methods = rpc.bind(service, servicer, self.gate)
            self._server.add_generic_rpc_handlers((rpc.handler(service, methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._server)
        if settings.has_reflection:
            names = [service.full_name for service in SERVICES]
            reflection.enable_server_reflection(
                [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
            )
        self._declare_models()
        await self.health.update()
        try:
            self.port = self._server.add_insecure_port(settings.address)
        except RuntimeError as error:
            raise AddressInUse(f"cannot listen on {settings.address}: is another server there?") from error
        await self._server.start()
        self._tasks = [
            asyncio.create_task(self.health.run(), name="health"),
            asyncio.create_task(
                self.gate.end_slow_readers(settings.write_stall_seconds), name="slow readers"
            ),
            *(
                asyncio.create_task(provider.watch(), name=f"watch {provider.id}")
                for provider in self._providers.values()
            ),
        ]
        for name in self._to_load:
            self.registry.begin_load(models_pb2.LoadRequest(model=name))

    def _declare_models(self) -> None:
        settings = self.settings
        self._to_load = [name for name, model in settings.models.items() if model.load]
        for name, model in settings.models.items():
            self.registry.declare(
                name,
                path=pathlib.Path(model.path),
                config=model.load_config(),
                required=model.required and model.load,
                pinned=model.pinned,
                keep_alive_seconds=model.keep_alive_seconds,
            )
        if settings.scripted:
            self.registry.add("scripted", ScriptedBackend())
        self.registry.add_providers()
        for name, route in settings.routes.items():
            self.registry.add(name, RouteBackend(name, route, self.registry), required=route.required)
        if settings.serves_demo:
            self.registry.declare(DEMO_MODEL, path=demo_model_path(), config=DEMO_CONFIG, required=True)
            self._to_load = [DEMO_MODEL]

    async def stop(self, *, lame_duck_seconds: float = 0.0, drain_seconds: float | None = None) -> None:
        """Drains and ends: NOT_SERVING, lame duck, no new calls, running ones finish or are ended, engines end."""
        drain_seconds = self.settings.drain_seconds if drain_seconds is None else drain_seconds
        with _watchdog(lame_duck_seconds + drain_seconds + STOP_GRACE_SECONDS + WATCHDOG_SECONDS):
            await self._stop(lame_duck_seconds, drain_seconds)

    async def _stop(self, lame_duck_seconds: float, drain_seconds: float) -> None:
        log.info("draining", lame_duck_seconds=lame_duck_seconds, drain_seconds=drain_seconds)
        await self.health.drain()
        # Balancers need time to notice; until then calls are still answered.
        await self._until(lambda: self._hurry, lame_duck_seconds)
        self.gate.draining = True
        self.registry.changes.bump()
        # Sends GOAWAY at once, so that clients go elsewhere; ends what is left at the very end.
        stopped = asyncio.create_task(self._server.stop(drain_seconds + STOP_GRACE_SECONDS))
        await self._until(lambda: self._hurry or not self.gate.num_calls, drain_seconds)
        if self.gate.num_calls:
            log.warning("drain_timeout", calls=self.gate.num_calls)
            self.gate.end_calls(errors.DrainTimeout("the server ended before the answer did"))
        await self.health.servicer.enter_graceful_shutdown()
        await self._until(lambda: not self.gate.num_calls, STOP_GRACE_SECONDS)
        await self._server.stop(0)
        await stopped
        await self.registry.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for provider in self._providers.values():
            await provider.close()
        log.info("stopped", version=__version__)

    async def _until(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Waits until something is done, which the gate's changes tell, or the time is over."""
        changes = self.gate.changes
        limit = time.monotonic() + seconds
        while not is_done() and (left := limit - time.monotonic()) > 0:
            await changes.after(changes.revision, timeout_seconds=left)


class _Signals:
    """SIGINT and SIGTERM as something to wait for."""

    def __init__(self) -> None:
        self._received: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._received.put_nowait, number)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    async def next(self) -> signal.Signals:
        return await self._received.get()


@contextlib.contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    """Ends the process for good if the drain hangs: an orchestrator must not wait for its own kill."""

    def exit_now() -> None:
        os.write(2, b"the drain did not end; exiting\n")
        os._exit(FORCED_EXIT_CODE)

    timer = threading.Timer(seconds, exit_now)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
