"""Spans as a collector gets them: whose child each is, what it says, and that what did not end well is not OK."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys

import grpc
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.config import BackendSettings, ConfigError, RouteSettings, Settings
from inferwire_server.server import Server
from tests.collector import attributes, collecting
from tests.providers.asking import chat
from tests.providers.openai import OpenAIWire
from tests.providers.server import HELLO, Reply, Script, Text, provider
from tests.serving import bare_stub, demo, endless, failure, rest, running

SERVICE = "inferwire.v1.InferenceService"
ERROR = 2
SERVER, CLIENT = 2, 3
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Sends spans at once, and not after five seconds."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


def remote(url: str, **more) -> BackendSettings:
    return BackendSettings(base_url=url, **{"type": "openai", "models": ["m"], "health_seconds": 0, **more})


async def test_an_answer_of_a_local_model():
    """The caller's trace goes on; usage, model and times are the conventions'; the parts are its children, in order."""
    async with (
        collecting() as collector,
        running(models={"demo": demo()}, traces_endpoint=collector.url) as (server, _),
        bare_stub(server) as stub,
    ):
        request = endless()
        request.stopping.max_tokens = 20
        events = await rest(stub.StreamComplete(request, metadata=(TRACEPARENT, ("tracestate", "a=b"))))
        span = await collector.named(f"{SERVICE}/StreamComplete")
        parts = await collector.until(
            lambda spans: len(spans) == 4 and [each for each in spans if each.parent_span_id == span.span_id]
        )
    usage = events[-1].completion.usage
    assert (TRACE, PARENT) == (span.trace_id.hex(), span.parent_span_id.hex())
    assert (SERVER, 0) == (span.kind, span.status.code)
    told = attributes(span)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 60
    assert told == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/StreamComplete",
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "inferwire.request.id": events[0].started.id,
        "inferwire.backend": "local",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "inferwire",
        "gen_ai.request.model": "demo",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "demo",
        "gen_ai.response.id": events[0].started.id,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_prompt_tokens,
        "gen_ai.usage.reasoning.output_tokens": 0,
    }
    assert ["queue", "prefill", "decode"] == [part.name for part in parts]
    times = [(part.start_time_unix_nano, part.end_time_unix_nano) for part in parts]
    assert times == sorted(times)
    assert all(begin <= end for begin, end in times)
    assert {span.trace_id} == {part.trace_id for part in parts}
    resource = collector.resource
    assert ("inferwire", "0.1.0") == (resource["service.name"], resource["service.version"])


@pytest.mark.parametrize("end", ["cancelled", "deadline"])
async def test_what_did_not_end_well_is_not_ok(end):
    """A stream that its caller left, and one whose deadline passed; what was generated is told."""
    async with (
        collecting() as collector,
        running(models={"demo": demo()}, traces_endpoint=collector.url) as (server, _),
        bare_stub(server) as stub,
    ):
        if end == "cancelled":
            call = stub.StreamComplete(endless())
            for _ in range(4):
                await call.read()
            call.cancel()
            reason = "CANCELLED"
        else:
            # Only the time that is over matters, not how much of the answer came.
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Complete(endless(), timeout=0.1)
            reason = "DEADLINE_EXCEEDED"
        span = await collector.named(f"{SERVICE}/{'StreamComplete' if end == 'cancelled' else 'Complete'}")
    told = attributes(span)
    assert (ERROR, reason, reason) == (span.status.code, span.status.message, told["error.type"])
    assert reason == told["rpc.response.status_code"]
    assert "gen_ai.response.finish_reasons" not in told
    if end == "cancelled":
        assert told["gen_ai.usage.output_tokens"] >= 3


async def test_a_refusal_has_its_reason_and_no_word_of_the_caller():
    """The name of a model that nobody knows is not told."""
    async with (
        collecting() as collector,
        running(scripted=True, traces_endpoint=collector.url) as (server, _),
        bare_stub(server) as stub,
    ):
        await failure(stub.Complete(chat(model="canary")))
        span = await collector.named(f"{SERVICE}/Complete")
    assert (ERROR, "MODEL_NOT_FOUND") == (span.status.code, span.status.message)
    assert "canary" not in str(collector.spans)


async def test_a_route_shows_each_attempt():
    """One client span for each provider that was asked, the failed one not OK; each gets the trace in its header."""
    async with (
        collecting() as collector,
        provider(OpenAIWire()) as bad,
        provider(OpenAIWire()) as good,
        running(
            backends={"bad": remote(bad.url), "good": remote(good.url)},
            routes={"best": RouteSettings(candidates=["bad/m", "good/m"])},
            scripted=False,
            traces_endpoint=collector.url,
        ) as (server, _),
        bare_stub(server) as stub,
    ):
        bad.reply, good.reply = Reply(status=503), good.good(HELLO)
        await stub.Complete(chat(model="best"), metadata=(TRACEPARENT, ("tracestate", "secret=1")))
        span = await collector.named(f"{SERVICE}/Complete")
        attempts = await collector.until(
            lambda spans: len(found := [each for each in spans if each.kind == CLIENT]) == 2 and found
        )
        sent = {each: upstream.completions[0].headers for each, upstream in (("bad", bad), ("good", good))}
    assert ("best", "good/m") == tuple(
        attributes(span)[f"gen_ai.{each}.model"] for each in ("request", "response")
    )
    assert [("chat m", ERROR, "UPSTREAM_UNAVAILABLE"), ("chat m", 0, "")] == [
        (each.name, each.status.code, each.status.message) for each in attempts
    ]
    for each, upstream in zip(attempts, (bad, good), strict=True):
        assert span.span_id == each.parent_span_id
        told = attributes(each)
        assert ("127.0.0.1", upstream.port) == (told["server.address"], told["server.port"])
        assert ("openai", "m") == (told["gen_ai.provider.name"], told["gen_ai.request.model"])
        assert f"00-{TRACE}-{each.span_id.hex()}-01" == sent[told["inferwire.backend"]]["traceparent"]
        assert "tracestate" not in sent[told["inferwire.backend"]]


async def test_a_server_behind_the_server_goes_on_with_the_trace():
    """One trace from the caller through both: the far server's span is the child of our attempt."""
    async with (
        collecting() as collector,
        running(scripted=True, traces_endpoint=collector.url) as (far, _),
        running(
            backends={"far": remote(f"grpc://127.0.0.1:{far.port}", type="inferwire", models=["scripted"])},
            scripted=False,
            traces_endpoint=collector.url,
        ) as (near, _),
        bare_stub(near) as stub,
    ):
        request = pb.CompleteRequest(model="far/scripted", prompt='{"events": [{"text": "a"}]}')
        await rest(stub.StreamComplete(request, metadata=(TRACEPARENT,)))
        spans = await collector.until(
            lambda spans: (
                len(found := [each for each in spans if each.kind in (SERVER, CLIENT)]) == 3 and found
            )
        )
    by_parent = {each.parent_span_id.hex(): each for each in spans}
    ours = by_parent[PARENT]
    attempt = by_parent[ours.span_id.hex()]
    theirs = by_parent[attempt.span_id.hex()]
    assert (SERVER, CLIENT, SERVER) == (ours.kind, attempt.kind, theirs.kind)
    assert "scripted" == attributes(theirs)["gen_ai.response.model"]
    assert {TRACE} == {each.trace_id.hex() for each in spans}


@pytest.mark.parametrize(
    ("sampler", "metadata", "num_spans"),
    [
        ("always_off", (TRACEPARENT,), 0),
        ("parentbased_always_off", (), 0),
        ("parentbased_always_off", (TRACEPARENT,), 1),
        ("parentbased_always_on", (("traceparent", f"00-{TRACE}-{PARENT}-00"),), 0),
        ("always_on", (("traceparent", "no traceparent"),), 1),
    ],
)
async def test_the_standard_variables_sample(sampler, metadata, num_spans, monkeypatch):
    """Also by what the caller has decided; a traceparent that is none begins a trace."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    async with collecting() as collector:
        async with (
            running(scripted=True, traces_endpoint=collector.url) as (server, _),
            bare_stub(server) as stub,
        ):
            await stub.Health(pb.HealthRequest(), metadata=metadata)
        # The server's end has sent all that there was.
        assert num_spans == len(collector.spans)
        assert not num_spans or "mine" == collector.resource["service.name"]


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_prompts_are_told_only_on_request(log_prompts):
    """As in the log."""
    async with (
        collecting() as collector,
        provider(OpenAIWire(), Script((Text("the answer"),))) as upstream,
        running(
            backends={"x": remote(upstream.url)},
            scripted=False,
            traces_endpoint=collector.url,
            log_prompts=log_prompts,
        ) as (server, _),
        bare_stub(server) as stub,
    ):
        await stub.Complete(chat("the question", model="x/m"))
        span = await collector.named(f"{SERVICE}/Complete")
        await collector.until(lambda spans: [each for each in spans if each.kind == CLIENT])
    told = attributes(span)
    assert log_prompts == ("the question" in str(collector.spans))
    assert log_prompts == ("the answer" in str(collector.spans))
    if log_prompts:
        (message,) = json.loads(told["gen_ai.output.messages"])
        assert {"role": "assistant", "parts": [{"type": "text", "content": "the answer"}]} == message


async def test_a_collector_that_is_not_there_holds_nothing_up():
    """Calls are answered, and the end of the server waits no longer than its bound."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with asyncio.timeout(60):
            async with running(
                scripted=True, traces_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}"
            ) as (server, client):
                assert server.telemetry.observers
                await client.health()


async def test_the_log_line_has_the_trace(capsys):
    """From a line to its trace, and back."""
    from inferwire_server import logs

    logs.configure(format="json", level="info")
    try:
        async with (
            collecting() as collector,
            running(scripted=True, traces_endpoint=collector.url) as (server, _),
            bare_stub(server) as stub,
        ):
            await stub.Health(pb.HealthRequest(), metadata=(TRACEPARENT,))
            await collector.named(f"{SERVICE}/Health")
    finally:
        logs.configure(format="text", level="warning")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [TRACE] == [line["trace_id"] for line in lines if line["event"] == "rpc"]


async def test_without_its_libraries_it_is_refused(monkeypatch):
    """Before anything listens, with the words that help."""
    for name in [*sys.modules]:
        if name.startswith(("opentelemetry.", "inferwire_server.traces")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"inferwire-server\[otel\]"):
        Server(Settings(traces_endpoint="http://127.0.0.1:4317", address="127.0.0.1:0"))
    with contextlib.suppress(KeyError):
        del sys.modules["inferwire_server.traces"]
