"""The numbers for Prometheus: what is counted for which end of a call, with which labels, and that a scrape disturbs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable

import grpc
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import metrics
from inferwire_server.config import BackendSettings, RouteSettings
from inferwire_server.distribution import Distribution
from inferwire_server.pace import Pace
from inferwire_server.scrape import MAX_REQUESTS, ScrapePort
from inferwire_server.server import AddressInUse, Server
from tests.engine_fakes import FakeClock
from tests.providers.asking import chat
from tests.providers.openai import OpenAIWire
from tests.providers.server import HELLO, Reply, Script, Text, provider
from tests.serving import bare_stub, demo, endless, failure, rest, running, until_state

ON = {"metrics_address": "127.0.0.1:0"}


def get(port: int, path: str = "/metrics", accept: str = "") -> tuple[int, str, str]:
    """Returns status, content type and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self._samples if sample.name == name]

    def __call__(self, name: str, **labels: str) -> float:
        """Returns the sum of the samples with these labels."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


async def scrape(server: Server) -> Scrape:
    status, _, text = await asyncio.to_thread(get, server.telemetry.metrics_port)
    assert 200 == status
    return Scrape(text)


async def until_told(server: Server, is_told) -> Scrape:
    """Scrapes until the numbers say so: a call is counted a moment after its caller knows that it has ended."""
    while not is_told(told := await scrape(server)):
        pass
    return told


def remote(url: str, **more) -> BackendSettings:
    return BackendSettings(type="openai", base_url=url, models=["m"], health_seconds=0, **more)


async def test_an_answer_is_counted():
    """Its call, tokens, finish and times, with the model's name."""
    async with running(models={"demo": demo()}, **ON) as (server, client):
        request = pb.CompleteRequest(prompt="Once upon a time")
        request.stopping.max_tokens, request.stopping.ignore_eos = 20, True
        answers = [await client.complete(request) for _ in range(2)]
        told = await until_told(server, lambda told: told("inferwire_calls_total") == 2)
    usages = [answer.completion.usage for answer in answers]
    assert 2 == told("inferwire_calls_total", method="Complete", code="OK", reason="", model="demo", route="")
    assert 2 == told("inferwire_completions_total", finish_reason="LENGTH", model="demo")
    assert sum(usage.prompt_tokens for usage in usages) == told("inferwire_prompt_tokens_total", model="demo")
    assert 40 == told("inferwire_completion_tokens_total", model="demo")
    assert 40 == told("inferwire_engine_completion_tokens_total", model="demo")
    for name in ("call", "queue", "prefill", "time_to_first_token"):
        assert 2 == told(f"inferwire_{name}_seconds_count", model="demo")
        assert 2 == told(f"inferwire_{name}_seconds_bucket", model="demo", le="+Inf")
    assert 0 < told("inferwire_inter_token_seconds_count", model="demo") <= 38
    assert told("inferwire_time_to_first_token_seconds_sum") < told("inferwire_call_seconds_sum")
    assert told("inferwire_engine_step_tokens_sum") >= 40
    assert 8 * 1024 == told("inferwire_kv_cells", model="demo")
    assert (1, 0) == (told("inferwire_ready"), told("inferwire_draining"))


async def test_a_cancelled_stream_is_counted_with_what_it_generated():
    """It has a first token and tokens, but neither a finish reason nor the code OK."""
    async with (
        running(models={"demo": demo()}, **ON) as (server, _),
        bare_stub(server) as stub,
    ):
        call = stub.StreamComplete(endless())
        for _ in range(6):
            await call.read()
        during = await scrape(server)
        call.cancel()
        told = await until_told(server, lambda told: told("inferwire_calls_total", code="CANCELLED"))
    assert 1 == during("inferwire_calls_in_flight", method="StreamComplete")
    assert 1 == during("inferwire_requests_running", model="demo")
    assert 0 < during("inferwire_kv_cells_used", model="demo")
    assert 1 == told("inferwire_calls_total", method="StreamComplete", reason="CANCELLED", model="demo")
    assert 0 == told("inferwire_completions_total")
    assert 5 <= told("inferwire_completion_tokens_total", model="demo")
    assert 1 == told("inferwire_time_to_first_token_seconds_count", model="demo")


async def test_who_waits_is_told():
    """The number that an autoscaler reads: there for every model, also at 0."""
    async with (
        running(models={"demo": demo(parallel_sequences=1)}, scripted=True, **ON) as (server, _),
        bare_stub(server) as stub,
    ):
        calls = [stub.StreamComplete(endless()) for _ in range(3)]
        told = await until_told(server, lambda told: told("inferwire_requests_waiting", model="demo"))
        told = await until_told(server, lambda told: told("inferwire_requests_waiting", model="demo") == 2)
        for call in calls:
            call.cancel()
    assert [{"model": "demo"}, {"model": "scripted"}] == told.labels("inferwire_requests_waiting")
    assert 1 == told("inferwire_requests_running", model="demo")
    assert 1 == told("inferwire_parallel_sequences", model="demo")


async def test_no_word_of_a_caller_is_a_label():
    """A name that nobody listed is "unknown", or its backend's where callers may name any."""
    async with (
        provider(OpenAIWire()) as upstream,
        running(
            backends={"x": remote(upstream.url, allow_unlisted=True)},
            routes={"best": RouteSettings(candidates=["x/m"])},
            **ON,
        ) as (server, client),
        bare_stub(server) as stub,
    ):
        upstream.reply = upstream.good(HELLO)
        assert "MODEL_NOT_FOUND" == (await failure(stub.Complete(chat(model="canary-1")))).reason
        load = models_pb2.LoadRequest(model="canary-2")
        load.source.local.path = "canary-3"
        with pytest.raises(InferwireError, match="MODEL_PATH_NOT_ALLOWED"):
            await client.load(load)
        await stub.Complete(chat(model="x/canary-4"))
        await stub.Complete(chat(model="x/m"))
        await stub.Complete(chat(model="best"))
        told = await until_told(server, lambda told: told("inferwire_calls_total") == 5)
        _, _, text = await asyncio.to_thread(get, server.telemetry.metrics_port)
    assert "canary" not in text
    assert {("unknown", ""), ("x/*", ""), ("x/m", ""), ("x/m", "best")} == {
        (labels["model"], labels["route"]) for labels in told.labels("inferwire_calls_total")
    }
    assert 3 == told("inferwire_upstream_attempts_total", backend="x")


async def test_models_beyond_the_bound_share_a_label(monkeypatch):
    """Whoever may load models cannot fill the memory of who scrapes."""
    monkeypatch.setattr(metrics, "MAX_MODELS", 1)
    async with (
        running(scripted=True, models={"demo": demo()}, **ON) as (server, _),
        bare_stub(server) as stub,
    ):
        for model in ("scripted", "demo", "demo", "scripted"):
            await stub.Tokenize(pb.TokenizeRequest(model=model, text="a"))
        told = await until_told(server, lambda told: told("inferwire_calls_total") == 4)
    assert (2, 2) == (
        told("inferwire_calls_total", model="scripted"),
        told("inferwire_calls_total", model="other"),
    )


async def test_a_crashed_engine_is_told():
    """The restart, the state and the calls that it took along."""
    async with (
        running(models={"demo": demo()}, **ON) as (server, _),
        bare_stub(server) as stub,
    ):
        call = stub.StreamComplete(endless())
        await call.read()
        (backend,) = server.registry.backends()
        os.kill(backend.pid, signal.SIGKILL)
        assert "ENGINE_CRASHED" == (await failure(call)).reason
        during = await until_told(server, lambda told: told("inferwire_model_state", state="loading"))
        await until_state(server, "demo", models_pb2.MODEL_STATE_READY)
        told = await scrape(server)
    assert 0 == during("inferwire_ready")
    assert 1 == told("inferwire_engine_restarts_total", model="demo")
    assert 1 == told("inferwire_calls_total", reason="ENGINE_CRASHED", model="demo")
    assert 1 == told("inferwire_model_state", model="demo", state="ready")
    assert 1 == told("inferwire_model_state", model="demo")


async def test_a_backend_that_fails_is_told():
    """Its failures by reason, and the breaker when it opens."""
    async with (
        provider(OpenAIWire()) as upstream,
        running(backends={"x": remote(upstream.url, breaker_failures=2)}, scripted=False, **ON) as (
            server,
            _,
        ),
        bare_stub(server) as stub,
    ):
        upstream.reply = Reply(status=503)
        before = await scrape(server)
        reasons = {(await failure(stub.Complete(chat(model="x/m")))).reason for _ in range(3)}
        told = await until_told(server, lambda told: told("inferwire_calls_total") == 3)
    assert {"UPSTREAM_UNAVAILABLE"} == reasons
    assert (1, 0) == (before("inferwire_backend_up"), told("inferwire_backend_up", backend="x"))
    assert 1 == before("inferwire_breaker_state", backend="x", state="closed")
    assert (0, 1) == (
        told("inferwire_breaker_state", backend="x", state="closed"),
        told("inferwire_breaker_state", backend="x", state="open"),
    )
    assert 2 == told("inferwire_upstream_failures_total", backend="x", reason="UPSTREAM_UNAVAILABLE")
    assert 2 == told("inferwire_upstream_attempts_total", backend="x")


@pytest.mark.parametrize("usage", [7, 2, 0])
async def test_the_tokens_of_a_backend_elsewhere(usage):
    """Deltas count while they come; what the provider says at the end is added, and never taken away again."""
    async with (
        provider(OpenAIWire()) as upstream,
        running(backends={"x": remote(upstream.url)}, scripted=False) as (server, client),
        bare_stub(server) as stub,
    ):
        script = Script((Text("a"), Text("b"), Text("c")), prompt_tokens=5, completion_tokens=usage)
        upstream.reply = upstream.good(script)
        await rest(stub.StreamComplete(chat(model="x/m")))
        (model,) = (await client.health()).models
    # Three of the five came from its cache.
    assert (2, max(3, usage)) == (model.prompt_tokens_total, model.completion_tokens_total)


async def test_a_scrape_is_answered_while_the_loop_is_busy():
    """The port's threads wait for nobody: they answer while the loop runs something for a long time."""
    async with running(**ON) as (server, _):
        answers = []
        port = server.telemetry.metrics_port

        def ask() -> None:
            answers.extend((get(port, "/healthz"), get(port)))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()  # in the loop: it does not move until the thread has its answers
        assert [200, 200] == [status for status, _, _ in answers]
        assert "ok\n" == answers[0][2]


class Stuck:
    problem = "the event loop has not moved for 11 s"

    def exposition(self, accept: str) -> tuple[bytes, str]:
        raise RuntimeError("canary")


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/healthz", 503, "the event loop has not moved for 11 s\n"),
        ("/metrics", 500, "see the server's log\n"),
        ("/", 404, "here are /metrics and /healthz\n"),
        ("/metrics/../../etc/passwd", 404, "here are /metrics and /healthz\n"),
    ],
)
def test_what_the_port_says_when_it_cannot_answer(path, status, body, capsys):
    """A stuck loop is 503, for the probe that restarts; a failure of ours says nothing of itself."""
    port = ScrapePort("127.0.0.1", 0, Stuck())
    try:
        assert (status, "text/plain; charset=utf-8", body) == get(port.port, path)
    finally:
        port.close()
    with pytest.raises(urllib.error.URLError):
        get(port.port)


def test_the_loop_is_stuck_when_it_was_not_seen():
    """The number behind the 503."""
    clock = FakeClock(100.0)
    lag = metrics.LoopLag(clock)
    clock.now += metrics.STUCK_SECONDS + 1
    assert (0, metrics.STUCK_SECONDS + 1) == (sum(lag.lag.counts), lag.unseen_seconds)


def test_slow_scrapers_do_not_pile_up():
    """So many requests at once; another one is closed unheard, and has its turn when a place is free."""
    port = ScrapePort("127.0.0.1", 0, Stuck())
    with contextlib.ExitStack() as stack:
        stack.callback(port.close)
        slow = [socket.create_connection(("127.0.0.1", port.port)) for _ in range(MAX_REQUESTS)]
        for connection in slow:
            stack.callback(connection.close)
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        with socket.create_connection(("127.0.0.1", port.port)) as late:
            late.settimeout(60)
            assert b"" == late.recv(1)
        slow[0].sendall(b"\r\n")
        assert slow[0].makefile("rb").readline().startswith(b"HTTP/1.0 503")
        while True:
            with contextlib.suppress(OSError):
                assert 503 == get(port.port, "/healthz")[0]
                break


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain", text_string_to_metric_families),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", parse_openmetrics),
    ],
    ids=["text", "openmetrics"],
)
async def test_both_formats_are_well_formed(accept, content_type, parse):
    """The parsers of the formats take every family, each with a help text and our prefix or the process's."""
    async with running(models={"demo": demo()}, **ON) as (server, client):
        await client.complete(prompt="Hi")
        _, type, text = await asyncio.to_thread(get, server.telemetry.metrics_port, "/metrics", accept)
    assert type.startswith(content_type)
    families = list(parse(text))
    assert len(families) > 30
    for family in families:
        assert family.name.startswith(("inferwire_", "process_"))
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")


async def test_off_is_off():
    """Without the setting nothing watches a call, and no thread is there."""
    async with running() as (server, client):
        await client.complete(prompt="Hi")
        assert ((), 0) == (server.gate.observers, server.telemetry.metrics_port)
        assert "scrape" not in {thread.name for thread in threading.enumerate()}


async def test_the_port_is_open_while_the_server_drains_and_closed_with_it():
    """Who watches a drain needs the numbers to its end."""
    async with running(scripted=True, **ON) as (server, _), bare_stub(server) as stub:
        script = '{"events": [{"text": "a"}, {"delay_seconds": 600}]}'
        call = stub.StreamComplete(pb.CompleteRequest(model="scripted", prompt=script))
        await call.read()
        stopping = asyncio.create_task(server.stop(drain_seconds=60))
        told = await until_told(server, lambda told: told("inferwire_draining"))
        assert (0, 1) == (told("inferwire_ready"), told("inferwire_calls_in_flight"))
        call.cancel()
        await stopping
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(get, server.telemetry.metrics_port)


async def test_a_port_that_is_taken_is_told():
    """As for the main port."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AddressInUse, match="in use"):
        async with running(metrics_address=f"127.0.0.1:{taken.getsockname()[1]}"):
            pass


def cumulative_of(histogram: prometheus_client.Histogram) -> tuple[list[float], float]:
    samples = [sample for family in histogram.collect() for sample in family.samples]
    buckets = [sample.value for sample in samples if sample.name.endswith("_bucket")]
    return buckets, next(sample.value for sample in samples if sample.name.endswith("_sum"))


@given(st.lists(st.floats(0, 3) | st.sampled_from([0.5, 1.0, 2.0])), st.lists(st.floats(0, 3)))
def test_a_distribution_counts_as_prometheus_does(values: Iterable[float], more: Iterable[float]):
    """A value on a bound belongs below it; merging is adding."""
    bounds = (0.5, 1.0, 2.0)
    oracle = prometheus_client.Histogram("x", "x", buckets=bounds, registry=None)
    distribution, other = Distribution(bounds), Distribution(bounds)
    for value in values:
        oracle.observe(value)
        distribution.add(value)
    for value in more:
        oracle.observe(value)
        other.add(value)
    distribution.merge(other)
    buckets, total = cumulative_of(oracle)
    assert buckets == [count for _, count in distribution.cumulative()]
    assert total == pytest.approx(distribution.sum)


def test_a_pace_is_the_gaps_between_deltas():
    """One fewer than deltas; the first is the time to the first token."""
    clock = FakeClock(10.0)
    pace = Pace(clock)
    for seconds in (0.0, 0.25, 3.0):
        clock.now += seconds
        pace.delta()
    assert (10.0, 13.25, 2, 3.25) == (pace.first, pace.last, sum(pace.gaps.counts), pace.gaps.sum)


async def test_a_failed_request_is_counted_by_its_reason():
    """Malformed bytes too, which no servicer saw."""
    async with running(**ON) as (server, client):
        with pytest.raises(InferwireError):
            await client.complete(pb.CompleteRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await client.channel.unary_unary("/inferwire.v1.InferenceService/Tokenize")(b"\xff\xff")
        told = await until_told(server, lambda told: told("inferwire_calls_total") == 2)
    assert 1 == told("inferwire_calls_total", method="Complete", code="INVALID_ARGUMENT", model="")
    assert 1 == told("inferwire_calls_total", method="Tokenize", reason="MALFORMED_MESSAGE")
