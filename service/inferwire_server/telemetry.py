"""What watches the server, as its settings say: metrics with their port, traces. One object for the server to hold.

Without such settings nothing is made, and a call costs what it cost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inferwire_server.config import Address, ConfigError, Settings
from inferwire_server.metrics import Metrics
from inferwire_server.ports import AddressInUse
from inferwire_server.registry import Registry
from inferwire_server.rpc import Gate, Observer
from inferwire_server.scrape import ScrapePort

if TYPE_CHECKING:
    from inferwire_server.traces import Traces


class Telemetry:
    """Made with the server; `start` and `close` in its event loop."""

    def __init__(self, settings: Settings, registry: Registry, gate: Gate) -> None:
        self.metrics_address: Address | None = settings.metrics
        self._metrics = Metrics(registry, gate) if settings.metrics else None
        self._port: ScrapePort | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._traces = _traces(settings)
        self.observers: tuple[Observer, ...] = tuple(
            each for each in (self._metrics, self._traces) if each is not None
        )

    def __repr__(self) -> str:
        return f"<Telemetry [{self._port!r} | {self._metrics!r} | {self._traces!r}]>"

    @property
    def metrics_port(self) -> int:
        """Where `/metrics` is; 0 when it is nowhere."""
        return self._port.port if self._port else 0

    def start(self) -> None:
        """Opens the port of the metrics; the address then has its true number. Raises ports.AddressInUse."""
        address = self.metrics_address
        if self._metrics is None or address is None:
            return
        try:
            self._port = ScrapePort(address.host, address.port, self._metrics)
        except OSError as error:
            raise AddressInUse(f"cannot listen on {address}: {error.strerror}") from error
        self.metrics_address = Address(host=address.host, port=self._port.port)
        self._tasks = [asyncio.create_task(self._metrics.loop.run(), name="loop lag")]

    async def close(self) -> None:
        """Closes everything."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._port is not None:
            await asyncio.to_thread(self._port.close)
        if self._traces is not None:
            await self._traces.close()


def _traces(settings: Settings) -> Traces | None:
    """Returns what traces, if the settings say where to. Raises ConfigError when its libraries are not there."""
    if not settings.traces_endpoint:
        return None
    try:
        # Imported late: an extra, and half a second.
        from inferwire_server.traces import Traces
    except ImportError as error:
        raise ConfigError(
            f"traces_endpoint needs a library that is not installed ({error.name}): pip install 'inferwire-server[otel]'"
        ) from error
    return Traces(settings.traces_endpoint, settings.main)
