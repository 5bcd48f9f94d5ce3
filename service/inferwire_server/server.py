"""The life of the process: build, open the port, load, serve, drain, stop. Top to bottom.

The port opens before any model loads, so that probes are answered from the first moment. The first signal drains, the
second ends at once. Ends with exit code 0 after a drain, however it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

import structlog

from inferwire.v1 import inference_pb2, models_pb2
from inferwire_server import __version__, channel_arguments, errors, health, rpc
from inferwire_server.access import Access
from inferwire_server.backends import providers
from inferwire_server.backends.scripted import ScriptedBackend
from inferwire_server.config import DEMO_MODEL, Address, ConfigError, Settings
from inferwire_server.models import demo_model_path
from inferwire_server.models_servicer import ModelServicer
from inferwire_server.ports import AddressInUse, Port
from inferwire_server.registry import Registry
from inferwire_server.router import RouteBackend
from inferwire_server.servicer import InferenceServicer
from inferwire_server.telemetry import Telemetry
from inferwire_server.tls import Certificates

if TYPE_CHECKING:
    from inferwire_server import web

log = structlog.get_logger()

INFERENCE_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
MODEL_SERVICE = models_pb2.DESCRIPTOR.services_by_name["ModelService"]
# So small a model is as fast on one thread, and never waits for a second core that is busy.
DEMO_CONFIG = models_pb2.LoadConfig(context_length=1024, parallel_sequences=16, threads=1)
# After the drain's own limit: engine processes end, statuses are flushed.
STOP_GRACE_SECONDS = 2.0
FORCED_EXIT_CODE = 70
WATCHDOG_SECONDS = 5.0
SAME_SIGNAL_SECONDS = 0.5
# How soon new certificates and keys are in force.
REFRESH_SECONDS = 1.0


class Server:
    """One server. `start`, then `stop`; or `run` for a whole life with signals. Make it inside its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises config.ConfigError for certificates, keys, a web port or a backend that cannot be."""
        self.settings = settings
        self._certificates = Certificates.of(settings)
        self._access = Access.of(settings)
        self.gate = rpc.Gate(self._access)
        self._providers = providers.build(settings.backends)
        self.registry = Registry(
            engine=settings.engine,
            roots=[pathlib.Path(root).resolve() for root in settings.model_roots],
            default_model=settings.default_model,
            providers=self._providers.values(),
        )
        self.health = health.Health(self.registry)
        self.telemetry = Telemetry(settings, self.registry, self.gate)
        self.gate.observers = self.telemetry.observers
        self.web = self._new_web_port(settings.web) if settings.web else None
        self._ports = self._new_ports()
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = False

    def __repr__(self) -> str:
        return f"<Server [{', '.join(map(repr, self._ports))} | {self.gate!r} | {self.registry!r}]>"

    @property
    def address(self) -> Address:
        """Where the main port listens, its number known once it was started."""
        return self._ports[0].address

    @property
    def port(self) -> int:
        """The number of the main port."""
        return self.address.port

    @property
    def other_addresses(self) -> dict[str, Address]:
        """Where what has a place of its own listens, by a word for it."""
        addresses = {
            port.title: port.address for port in self._ports if isinstance(port, Port) and port.title
        }
        metrics = self.telemetry.metrics_address
        return {**addresses, **({"Metrics": metrics} if metrics else {})}

    def _new_web_port(self, address: Address) -> web.WebPort:
        # Imported here: its libraries are those of an extra.
        try:
            from inferwire_server import web
        except ImportError as error:
            raise ConfigError(
                f"web_address needs packages that are not installed ({error.name}): "
                "pip install 'inferwire-server[web]'"
            ) from error
        settings = self.settings
        return web.WebPort(
            address,
            self.gate,
            self._certificates,
            origins=settings.web_origins,
            write_stall_seconds=settings.write_stall_seconds,
        )

    def _new_ports(self) -> list[Port | web.WebPort]:
        """Returns the ports, the main one first."""
        settings = self.settings
        new_port = functools.partial(
            Port,
            access=self._access,
            options=channel_arguments.connection_age(
                settings.max_connection_age_seconds, settings.max_completion_seconds
            ),
        )
        inference = InferenceServicer(registry=self.registry, settings=settings, gate=self.gate)
        models = ModelServicer(registry=self.registry)
        main = new_port(settings.main, certificates=self._certificates)
        main.add(INFERENCE_SERVICE.full_name, rpc.bind(INFERENCE_SERVICE, inference, self.gate))
        admin = None
        if settings.admin:
            admin = new_port(settings.admin, certificates=self._certificates, title="Administration")
        (admin or main).add(MODEL_SERVICE.full_name, rpc.bind(MODEL_SERVICE, models, self.gate))
        ports: list[Port | web.WebPort] = [main, *([admin] if admin else [])]
        for port in (main, admin):
            if port is not None:
                port.add_health(self.health)
                if settings.has_reflection:
                    port.add_reflection()
        if settings.probe:
            # In the clear, for those who can ask in no other way: a kubelet.
            probe = new_port(settings.probe, certificates=None, title="Probes")
            probe.add_health(self.health)
            ports.append(probe)
        if self.web is not None:
            self.web.add(INFERENCE_SERVICE.full_name, rpc.bind(INFERENCE_SERVICE, inference, self.gate))
            if admin is None:
                self.web.add(MODEL_SERVICE.full_name, rpc.bind(MODEL_SERVICE, models, self.gate))
            self.web.add_health(self.health)
            ports.append(self.web)
        return ports

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
        self._declare_models()
        await self.health.update()
        try:
            for port in self._ports:
                await port.start()
            self.telemetry.start()
        except AddressInUse:
            for port in self._ports:
                await port.stop(0)
            raise
        if self._access.is_open and not all(port.address.is_local for port in self._ports):
            log.warning("no_keys", hint="everybody who reaches the port may call everything; see keys_file")
        self._tasks = [
            asyncio.create_task(self.health.run(), name="health"),
            asyncio.create_task(
                self.gate.end_slow_readers(self.settings.write_stall_seconds), name="slow readers"
            ),
            asyncio.create_task(self._refresh(), name="certificates and keys"),
            *(
                asyncio.create_task(provider.watch(), name=f"watch {provider.id}")
                for provider in self._providers.values()
            ),
        ]
        if self.settings.log_prompts:
            log.warning("prompts_are_logged")
        for name in self._to_load:
            self.registry.begin_load(models_pb2.LoadRequest(model=name))

    async def _refresh(self) -> None:
        """Follows the files of certificates and keys until it is cancelled. A few calls of stat, no thread needed."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._access.refresh()
            if self._certificates is not None:
                self._certificates.refresh()

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
        stopped = [asyncio.create_task(port.stop(drain_seconds + STOP_GRACE_SECONDS)) for port in self._ports]
        await self._until(lambda: self._hurry or not self.gate.num_calls, drain_seconds)
        if self.gate.num_calls:
            log.warning("drain_timeout", calls=self.gate.num_calls)
            self.gate.end_calls(errors.DrainTimeout("the server ended before the answer did"))
        await self.health.servicer.enter_graceful_shutdown()
        await self._until(lambda: not self.gate.num_calls, STOP_GRACE_SECONDS)
        for port in self._ports:
            await port.stop(0)
        await asyncio.wait(stopped)
        await self.registry.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for provider in self._providers.values():
            await provider.close()
        await self.telemetry.close()
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
