"""Traces by OpenTelemetry: a server span for each call, children for where its time went, a client span for each remote attempt.

Names are those of the semantic conventions for RPC and for generative AI. A span never holds what a caller wrote or a model
said, unless `log_prompts` is set. Sampling and the resource follow the standard OTEL_ variables, which the SDK reads. The only
importer of opentelemetry, and imported only where there is an endpoint: it is an extra.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from opentelemetry.context import Context as Parent
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import __version__, errors
from inferwire_server.backends.base import Attempt
from inferwire_server.config import Address
from inferwire_server.rpc import Context

# How long the end of the server waits for the spans that are left.
FLUSH_SECONDS = 3.0
EXPORT_SECONDS = 5.0
# Names of providers that the conventions spell otherwise than our backends' types.
_PROVIDERS = {"gemini": "gcp.gemini"}

_Attributes = dict[str, AttributeValue]


class Traces:
    """Spans of one server's calls. An `rpc.Observer`."""

    def __init__(self, endpoint: str, address: Address) -> None:
        self._address = address
        self._propagator = TraceContextTextMapPropagator()
        own = Resource.create({"service.name": "inferwire", "service.version": __version__})
        self._provider = TracerProvider(
            # What the operator's environment says outranks our own names.
            resource=own.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http:"), timeout=EXPORT_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("inferwire", __version__)

    def __repr__(self) -> str:
        return f"<Traces [{self._provider.sampler.get_description()}]>"

    def begin(self, context: Context, metadata: Mapping[str, str | bytes]) -> None:
        """See `rpc.Observer`. The caller's trace goes on, if it sent one."""
        carrier = {key: value for key, value in metadata.items() if isinstance(value, str)}
        span = self._tracer.start_span(
            context.full_name,
            self._propagator.extract(carrier, Parent()),
            SpanKind.SERVER,
            {
                "rpc.system.name": "grpc",
                "rpc.method": context.full_name,
                "server.address": self._address.path or self._address.host,
                "inferwire.request.id": context.request_id,
                **({"server.port": self._address.port} if self._address.port else {}),
            },
        )
        context.trace = _CallTrace(self, span)
        context.note(trace_id=format_trace_id(span.get_span_context().trace_id))

    def end(self, context: Context, code: str, reason: str) -> None:
        """See `rpc.Observer`."""
        trace = context.trace
        if not isinstance(trace, _CallTrace):
            return
        span = trace.span
        if span.is_recording():
            span.set_attributes({"rpc.response.status_code": code, **self._attributes(context)})
            self._add_parts(context, set_span_in_context(span, Parent()))
        if code != "OK":
            _fail(span, reason)
        span.end()

    def _attributes(self, context: Context) -> _Attributes:
        """Returns what the conventions for generative AI say of a call, as far as it came."""
        if not context.operation or "backend" not in context.fields:
            return {}
        found: _Attributes = {
            "gen_ai.operation.name": context.operation,
            "gen_ai.provider.name": "inferwire",
            "gen_ai.request.model": context.route or context.model,
            "gen_ai.response.model": context.model,
            "gen_ai.response.id": context.request_id,
            "gen_ai.request.stream": context.method.startswith("Stream"),
            "inferwire.backend": context.fields["backend"],
        }
        if context.usage is not None:
            found["gen_ai.usage.input_tokens"] = context.usage.prompt_tokens
            found["gen_ai.usage.cache_read.input_tokens"] = context.usage.cached_prompt_tokens
        if context.completion is not None:
            found["gen_ai.usage.output_tokens"] = context.completion.usage.completion_tokens
            found["gen_ai.usage.reasoning.output_tokens"] = context.completion.usage.reasoning_tokens
            found["gen_ai.response.finish_reasons"] = [str(context.fields["finish_reason"]).lower()]
        elif context.call is not None:
            found["gen_ai.usage.output_tokens"] = context.call.tokens_emitted
        if context.pace is not None and context.pace.first is not None:
            found["gen_ai.response.time_to_first_chunk"] = context.pace.first - context.begin
        # There only where the operator wants them told.
        for name, role, field in (("input", "user", "prompt"), ("output", "assistant", "completion")):
            if field in context.fields:
                part = {"type": "text", "content": context.fields[field]}
                found[f"gen_ai.{name}.messages"] = json.dumps([{"role": role, "parts": [part]}])
        return found

    def _add_parts(self, context: Context, parent: Parent) -> None:
        """Adds the spans of waiting, reading and answering: of local models as their engine says, else of the answer alone."""
        pace = context.pace
        if pace is None or pace.first is None:
            return
        timing = context.completion.timing if context.completion is not None else pb.Timing()
        if timing.HasField("queued") and timing.HasField("time_to_first_token"):
            # The engine tells durations; when they began follows from the first token, which both saw.
            arrived = pace.first - _seconds(timing.time_to_first_token.ToNanoseconds())
            admitted = arrived + _seconds(timing.queued.ToNanoseconds())
            self._add_part("queue", parent, arrived, admitted)
            self._add_part("prefill", parent, admitted, admitted + _seconds(timing.prefill.ToNanoseconds()))
            self._add_part("decode", parent, pace.first, pace.first + _seconds(timing.decode.ToNanoseconds()))
        else:
            self._add_part("decode", parent, pace.first, pace.last)

    def _add_part(self, name: str, parent: Parent, begin: float, end: float) -> None:
        span = self._tracer.start_span(name, parent, SpanKind.INTERNAL, start_time=_wall(begin))
        span.end(_wall(max(begin, end)))

    @contextlib.contextmanager
    def attempted(self, parent: Span, attempt: Attempt) -> Iterator[Mapping[str, str]]:
        """Keeps the span of an attempt, and yields the headers by which the other side may go on with the trace."""
        url = urlsplit(attempt.base_url)
        attributes: _Attributes = {
            "gen_ai.operation.name": attempt.operation,
            "gen_ai.provider.name": _PROVIDERS.get(attempt.type, attempt.type),
            "gen_ai.request.model": attempt.model,
            "inferwire.backend": attempt.backend,
        }
        if url.hostname:
            attributes["server.address"] = url.hostname
            if port := url.port or {"https": 443, "http": 80}.get(url.scheme):
                attributes["server.port"] = port
        span = self._tracer.start_span(
            f"{attempt.operation} {attempt.model}",
            set_span_in_context(parent, Parent()),
            SpanKind.CLIENT,
            attributes,
        )
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(span, Parent()))
        try:
            yield headers
        except errors.ServingError as error:
            _fail(span, error.reason)
            raise
        except BaseException:
            # The caller left, or was content with what it had.
            _fail(span, errors.Cancelled.reason)
            raise
        finally:
            span.end()

    async def close(self) -> None:
        """Sends what is left, within a bound; a collector that does not answer is not waited for."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait any more, and has ended
                loop.call_soon_threadsafe(done.set)

        # Not of the loop's pool, whose end would wait for it.
        threading.Thread(target=shut_down, name="flush traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            # Ends what the thread waits for.
            self._exporter.shutdown()


class _CallTrace:
    """The trace of one call; see `base.Trace`."""

    def __init__(self, traces: Traces, span: Span) -> None:
        self._traces = traces
        self.span = span

    def __repr__(self) -> str:
        return f"<_CallTrace {format_trace_id(self.span.get_span_context().trace_id)}>"

    def attempted(self, attempt: Attempt) -> contextlib.AbstractContextManager[Mapping[str, str]]:
        return self._traces.attempted(self.span, attempt)


def _fail(span: Span, reason: str) -> None:
    """Marks a span: whatever did not end well is not OK, a stream that was left and a deadline that passed included."""
    span.set_attribute("error.type", reason)
    span.set_status(StatusCode.ERROR, reason)


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9


def _wall(moment: float) -> int:
    """Returns a time of `time.monotonic` in nanoseconds since 1970."""
    return time.time_ns() - round((time.monotonic() - moment) * 1e9)
