"""What the server tells Prometheus. Counts what calls were when they end; all else is read where it is kept, at the scrape.

The event loop counts into plain dictionaries; the scrape's thread copies them, one call of C each, and renders. So a scrape
never waits for the loop, nor the loop for a scrape. A label's values are bounded: no word of a caller becomes one. The only
importer of prometheus_client.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import __version__, logs
from inferwire_server.backends.base import Occupancy
from inferwire_server.backends.breaker import State
from inferwire_server.backends.local import LocalBackend
from inferwire_server.distribution import Distribution
from inferwire_server.pace import GAP_BOUNDS
from inferwire_server.registry import Entry, Registry
from inferwire_server.rpc import Context, Gate

# More models than this in one life of a process, loaded by name, are "other": labels are never forgotten.
MAX_MODELS = 500
LAG_INTERVAL_SECONDS = 0.1
# The loop was not seen for so long: the process does not serve, whatever else it does.
STUCK_SECONDS = 10.0

CALL_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_BOUNDS = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
LAG_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

_STATES = [name.removeprefix("MODEL_STATE_").lower() for name in models_pb2.ModelState.keys()[1:]]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Labels = tuple[str, ...]
_OF_MODEL = ("model", "route")


class Counter:
    """Something that only grows, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, value: float = 1) -> None:
        """Adds to it."""
        self._values[labels] = self._values.get(labels, 0) + value

    def family(self) -> Metric:
        """Returns it as Prometheus knows it."""
        return _counter(self._name, self._documentation, self._labels, dict(self._values))


class Histogram:
    """How often a value was how large, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._documentation, self._labels, self._bounds = name, documentation, labels, bounds
        self._values: dict[Labels, Distribution] = {}

    def at(self, labels: Labels) -> Distribution:
        """Returns the values with these labels, to be added to."""
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = Distribution(self._bounds)
        return found

    def family(self) -> Metric:
        """Returns it as Prometheus knows it."""
        return _histogram(self._name, self._documentation, self._labels, dict(self._values))


class LoopLag:
    """How late the event loop wakes who sleeps, which is how long everything else waits too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lag = Distribution(LAG_BOUNDS)
        self._clock = clock
        self._seen = clock()

    def __repr__(self) -> str:
        return f"<LoopLag [{self.lag!r} | seen {self.unseen_seconds:.1f} s ago]>"

    @property
    def unseen_seconds(self) -> float:
        """How long ago the loop was seen to move. From any thread."""
        return self._clock() - self._seen

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            due = self._clock() + LAG_INTERVAL_SECONDS
            await asyncio.sleep(LAG_INTERVAL_SECONDS)
            self._seen = self._clock()
            self.lag.add(max(0.0, self._seen - due))


class Metrics(Collector):
    """The numbers of one server. An `rpc.Observer`, and what a scrape reads."""

    def __init__(self, registry: Registry, gate: Gate) -> None:
        self._registry = registry
        self._gate = gate
        self._models: set[str] = set()
        self.loop = LoopLag()
        self._calls = Counter(
            "inferwire_calls",
            "Calls that ended, by the status that they ended with.",
            ("method", "code", "reason", *_OF_MODEL),
        )
        self._finishes = Counter(
            "inferwire_completions",
            "Answers that came to their end, by why they ended.",
            ("finish_reason", *_OF_MODEL),
        )
        self._prompt_tokens = Counter(
            "inferwire_prompt_tokens",
            "Tokens of the prompts of calls that ended, those from a cache included.",
            _OF_MODEL,
        )
        self._cached_tokens = Counter(
            "inferwire_cached_prompt_tokens", "Of these, tokens that came from a cache.", _OF_MODEL
        )
        self._cache_hits = Counter(
            "inferwire_prompt_cache_hits",
            "Answers whose prompt came from a cache, in part at least.",
            _OF_MODEL,
        )
        self._completion_tokens = Counter(
            "inferwire_completion_tokens",
            "Tokens generated by calls that ended, cancelled and failed ones included.",
            _OF_MODEL,
        )
        self._reasoning_tokens = Counter(
            "inferwire_reasoning_tokens", "Of these, tokens of thoughts, as far as it was told.", _OF_MODEL
        )
        self._call_seconds = Histogram(
            "inferwire_call_seconds",
            "Seconds from a call's begin to its end.",
            ("method", *_OF_MODEL),
            CALL_BOUNDS,
        )
        self._queue_seconds = Histogram(
            "inferwire_queue_seconds",
            "Seconds that a request waited for a sequence slot; local models.",
            _OF_MODEL,
            WAIT_BOUNDS,
        )
        self._prefill_seconds = Histogram(
            "inferwire_prefill_seconds",
            "Seconds in which a prompt was read; local models.",
            _OF_MODEL,
            WAIT_BOUNDS,
        )
        self._first_token_seconds = Histogram(
            "inferwire_time_to_first_token_seconds",
            "Seconds from a call's begin to its first delta, also of calls that did not end well.",
            _OF_MODEL,
            WAIT_BOUNDS,
        )
        self._inter_token_seconds = Histogram(
            "inferwire_inter_token_seconds",
            "Seconds between two deltas of an answer: a token each, or more where they came together.",
            _OF_MODEL,
            GAP_BOUNDS,
        )
        self._pushed = (
            self._calls,
            self._finishes,
            self._prompt_tokens,
            self._cached_tokens,
            self._cache_hits,
            self._completion_tokens,
            self._reasoning_tokens,
            self._call_seconds,
            self._queue_seconds,
            self._prefill_seconds,
            self._first_token_seconds,
            self._inter_token_seconds,
        )
        # A registry of its own: what other code of the process registers globally is not ours to show.
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)
        ProcessCollector(registry=self._collectors)

    def __repr__(self) -> str:
        return f"<Metrics [{len(self._models)} models | {self.loop!r}]>"

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns all numbers in the format that a scraper accepts, and its content type. From any thread."""
        encode, content_type = choose_encoder(accept)
        return encode(self._collectors), content_type

    @property
    def problem(self) -> str:
        """Why the process should be ended: its event loop is stuck. Empty when it is not. From any thread."""
        unseen = self.loop.unseen_seconds
        return f"the event loop has not moved for {unseen:.0f} s" if unseen > STUCK_SECONDS else ""

    # The ends of calls. In the event loop.

    def begin(self, context: Context, metadata: Mapping[str, str | bytes]) -> None:
        """See `rpc.Observer`."""

    def end(self, context: Context, code: str, reason: str) -> None:
        """See `rpc.Observer`."""
        of_model = (self._label(context.model), self._label(context.route))
        self._calls.add((context.method, code, reason, *of_model))
        self._call_seconds.at((context.method, *of_model)).add(time.monotonic() - context.begin)
        completion, usage, pace = context.completion, context.usage, context.pace
        if usage is not None:
            self._prompt_tokens.add(of_model, usage.prompt_tokens)
            self._cached_tokens.add(of_model, usage.cached_prompt_tokens)
            self._cache_hits.add(of_model, usage.cached_prompt_tokens > 0)
        if completion is not None:
            self._finishes.add((_finish_reason(completion), *of_model))
            self._completion_tokens.add(of_model, completion.usage.completion_tokens)
            self._reasoning_tokens.add(of_model, completion.usage.reasoning_tokens)
            timing = completion.timing
            for name, histogram in (("queued", self._queue_seconds), ("prefill", self._prefill_seconds)):
                if timing.HasField(name):
                    histogram.at(of_model).add(getattr(timing, name).ToNanoseconds() / 1e9)
        elif context.call is not None:
            self._completion_tokens.add(of_model, context.call.tokens_emitted)
        if pace is not None and pace.first is not None:
            self._first_token_seconds.at(of_model).add(pace.first - context.begin)
            self._inter_token_seconds.at(of_model).merge(pace.gaps)

    def _label(self, name: str) -> str:
        """Returns a model's name as a label: one that the operator may have listed, and never one that a caller made up."""
        if not name or name in self._models:
            return name
        if self._registry.knows(name):
            if len(self._models) >= MAX_MODELS:
                return "other"
            self._models.add(name)
            return name
        provider = self._registry.providers.get(name.partition("/")[0])
        return f"{provider.id}/*" if provider and provider.settings.allow_unlisted else "unknown"

    # The scrape. In its own thread.

    def collect(self) -> Iterator[Metric]:
        """Yields every family. What others own is read as it is now."""
        for metric in self._pushed:
            yield metric.family()
        yield from self._of_the_server()
        entries = self._registry.entries()
        yield from self._of_models(entries)
        yield from self._of_engines(
            {
                entry.name: entry.instance.backend
                for entry in entries
                if entry.instance is not None and isinstance(entry.instance.backend, LocalBackend)
            }
        )
        yield from self._of_backends()

    def _of_the_server(self) -> Iterator[Metric]:
        registry, gate = self._registry, self._gate
        in_flight: dict[Labels, float] = {}
        for context in gate.running:
            in_flight[context.method,] = in_flight.get((context.method,), 0) + 1
        yield _gauge("inferwire_calls_in_flight", "Calls that run now.", ("method",), in_flight)
        is_ready = registry.is_ready and not gate.draining
        yield _gauge(
            "inferwire_ready", "1 when every required model is ready and nothing drains.", (), {(): is_ready}
        )
        yield _gauge("inferwire_draining", "1 when the server is about to end.", (), {(): gate.draining})
        yield _counter(
            "inferwire_leases_created", "Models that were lent to calls.", (), {(): registry.leases_created}
        )
        yield _counter(
            "inferwire_leases_released",
            "Models that calls gave back; the difference holds one now.",
            (),
            {(): registry.leases_released},
        )
        yield _histogram(
            "inferwire_event_loop_lag_seconds",
            "Seconds by which the event loop was late, ten times a second.",
            (),
            {(): self.loop.lag},
        )
        yield _gauge(
            "inferwire_event_loop_unseen_seconds",
            "Seconds since the event loop was last seen to move.",
            (),
            {(): self.loop.unseen_seconds},
        )
        yield _counter(
            "inferwire_log_lines_dropped",
            "Lines of the log that could not be written: the disk is full, or nobody reads.",
            (),
            {(): logs.num_dropped()},
        )
        versions = (__version__, platform.python_version(), _version("grpcio"), _version("llama-cpp-python"))
        yield _gauge(
            "inferwire_build_info",
            "1, with the versions of what serves.",
            ("version", "python", "grpcio", "llama_cpp_python"),
            {versions: 1},
        )

    def _of_models(self, entries: Sequence[Entry]) -> Iterator[Metric]:
        occupancies = {
            (entry.name,): entry.instance.backend.occupancy if entry.instance else Occupancy()
            for entry in entries
        }

        def of_each(value: Callable[[Occupancy], float]) -> dict[Labels, float]:
            return {labels: value(occupancy) for labels, occupancy in occupancies.items()}

        yield _gauge(
            "inferwire_requests_running",
            "Requests that a model answers now.",
            ("model",),
            of_each(lambda its: its.streams_in_flight - its.queue_length),
        )
        yield _gauge(
            "inferwire_requests_waiting",
            "Requests that wait for a sequence slot.",
            ("model",),
            of_each(lambda its: its.queue_length),
        )
        yield _gauge(
            "inferwire_parallel_sequences",
            "Requests that a model answers at once; 0 where nobody tells.",
            ("model",),
            of_each(lambda its: its.parallel_sequences),
        )
        yield _gauge(
            "inferwire_queue_capacity",
            "Requests that may wait; 0 where nobody tells.",
            ("model",),
            of_each(lambda its: its.queue_capacity),
        )
        yield _gauge(
            "inferwire_model_state",
            "1 for the state that a model is in.",
            ("model", "state"),
            {
                (entry.name, state): state == _word(models_pb2.ModelState.Name(entry.shown_state))
                for entry in entries
                for state in _STATES
            },
        )
        yield _gauge(
            "inferwire_model_required",
            "1 when readiness waits for the model.",
            ("model",),
            {(entry.name,): entry.required for entry in entries},
        )
        yield _counter(
            "inferwire_engine_restarts",
            "How often a model's engine was started again since it was loaded.",
            ("model",),
            {(entry.name,): entry.restarts for entry in entries},
        )

    def _of_engines(self, engines: Mapping[str, LocalBackend]) -> Iterator[Metric]:
        steps = {(name,): engine.last_step for name, engine in engines.items()}
        yield _gauge(
            "inferwire_kv_cells",
            "KV cells of a model's context.",
            ("model",),
            {labels: step.cells_total for labels, step in steps.items()},
        )
        yield _gauge(
            "inferwire_kv_cells_used",
            "KV cells that requests hold.",
            ("model",),
            {labels: step.cells_used for labels, step in steps.items()},
        )
        yield _gauge(
            "inferwire_kv_cells_cached",
            "KV cells that are kept as cache.",
            ("model",),
            {labels: step.cells_cached for labels, step in steps.items()},
        )
        yield _gauge(
            "inferwire_engine_sequences",
            "Sequences that have a slot.",
            ("model",),
            {labels: step.running for labels, step in steps.items()},
        )
        yield _counter(
            "inferwire_engine_prompt_tokens",
            "Prompt tokens that an engine has computed.",
            ("model",),
            {labels: step.prompt_tokens_total for labels, step in steps.items()},
        )
        yield _counter(
            "inferwire_engine_cached_prompt_tokens",
            "Prompt tokens that it found in its cache.",
            ("model",),
            {labels: step.cached_prompt_tokens_total for labels, step in steps.items()},
        )
        yield _counter(
            "inferwire_engine_completion_tokens",
            "Tokens that it has generated.",
            ("model",),
            {labels: step.completion_tokens_total for labels, step in steps.items()},
        )
        yield _counter(
            "inferwire_engine_preemptions",
            "Sequences that gave their cells back to others and are computed anew.",
            ("model",),
            {labels: step.preemptions_total for labels, step in steps.items()},
        )
        yield _histogram(
            "inferwire_engine_step_seconds",
            "Seconds that an engine's step took.",
            ("model",),
            {(name,): engine.steps.seconds for name, engine in engines.items()},
        )
        yield _histogram(
            "inferwire_engine_step_tokens",
            "Tokens that a step computed.",
            ("model",),
            {(name,): engine.steps.tokens for name, engine in engines.items()},
        )
        yield _histogram(
            "inferwire_engine_step_sequences",
            "Sequences whose tokens a step computed: the size of its batch.",
            ("model",),
            {(name,): engine.steps.sequences for name, engine in engines.items()},
        )
        processes = {name: _process(engine.pid) for name, engine in engines.items()}
        found = {name: process for name, process in processes.items() if process is not None}
        yield _counter(
            "inferwire_engine_cpu_seconds",
            "Seconds of processor that an engine process has used (Linux).",
            ("model",),
            {(name,): cpu_seconds for name, (cpu_seconds, _) in found.items()},
        )
        yield _gauge(
            "inferwire_engine_resident_memory_bytes",
            "Resident memory of an engine process (Linux).",
            ("model",),
            {(name,): resident_bytes for name, (_, resident_bytes) in found.items()},
        )

    def _of_backends(self) -> Iterator[Metric]:
        providers = list(self._registry.providers.values())
        yield _gauge(
            "inferwire_backend_up",
            "1 when a remote backend would answer.",
            ("backend",),
            {(provider.id,): provider.problem is None for provider in providers},
        )
        yield _gauge(
            "inferwire_breaker_state",
            "1 for the state that a remote backend's breaker is in.",
            ("backend", "state"),
            {
                (provider.id, state.value): provider.breaker.state is state
                for provider in providers
                for state in State
            },
        )
        yield _counter(
            "inferwire_upstream_attempts",
            "Requests sent to a remote backend, those of a route that went on included.",
            ("backend",),
            {(provider.id,): provider.num_attempts for provider in providers},
        )
        yield _counter(
            "inferwire_upstream_failures",
            "Of these, requests that failed there.",
            ("backend", "reason"),
            {
                (provider.id, reason): count
                for provider in providers
                for reason, count in dict(provider.failures).items()
            },
        )


def _gauge(name: str, documentation: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for each, value in values.items():
        family.add_metric(each, float(value))
    return family


def _counter(name: str, documentation: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for each, value in values.items():
        family.add_metric(each, float(value))
    return family


def _histogram(
    name: str, documentation: str, labels: Sequence[str], values: Mapping[Labels, Distribution]
) -> Metric:
    family = HistogramMetricFamily(name, documentation, labels=labels)
    for each, distribution in values.items():
        buckets = [
            ("+Inf" if math.isinf(bound) else repr(bound), count)
            for bound, count in distribution.cumulative()
        ]
        family.add_metric(each, buckets, distribution.sum)
    return family


def _finish_reason(completion: pb.Completion) -> str:
    """Returns why an answer ended; "OTHER" for what this server does not know."""
    known = completion.finish_reason in pb.FinishReason.values()
    return pb.FinishReason.Name(completion.finish_reason).removeprefix("FINISH_REASON_") if known else "OTHER"


def _word(state: str) -> str:
    return state.removeprefix("MODEL_STATE_").lower()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _process(pid: int | None) -> tuple[float, int] | None:
    """Returns a process's processor time and resident bytes, or None where the system does not tell (not Linux)."""
    try:
        # Behind the name, which may hold spaces, come the fields from the third on (proc_pid_stat(5)).
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND, int(fields[21]) * _PAGE_BYTES
