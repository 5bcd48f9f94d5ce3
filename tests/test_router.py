"""Routes: who is asked next, when, and what the caller is told."""

from __future__ import annotations

import collections
import contextlib
import random

import grpc
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.config import BackendSettings, Candidate, RouteSettings
from inferwire_server.router import Attempts, Budget, cause_of
from tests.providers.openai import MODEL, OpenAIWire
from tests.providers.server import CALLS, FILTERED, HELLO, Reply, ScriptedProvider, Stall, provider
from tests.serving import bare_stub, failure, rest, running

DOWN = errors.UpstreamUnavailable("down")


def attempts(
    *order: str, budget: float = 10.0, draw: float = 1.0, **settings: object
) -> tuple[Attempts, RouteSettings]:
    route = RouteSettings(candidates=list(order), **settings)
    return Attempts(route, order, Budget(budget), lambda: draw), route


# Decisions.


def test_candidates_are_asked_in_turn_without_a_pause():
    """The next one is asked at once, and those again whose failure may pass after a pause that doubles."""
    it, _ = attempts("a", "b", retries=2)
    asked = []
    pauses = []
    pause: float | None = 0.0
    while pause is not None:
        asked.append(it.next())
        pause = it.failed(asked[-1], DOWN, 60)
        pauses.append(pause)
    assert ["a", "b", "a", "b", "a", "b"] == asked
    assert [0, 0.2, 0, 0.4, 0, None] == pauses


def test_only_those_are_asked_again_whose_failure_may_pass():
    """A refused key, or a missing model, is the same a moment later."""
    it, _ = attempts("a", "b", "c", retries=1)
    assert "a" == it.next()
    assert 0 == it.failed("a", errors.UpstreamAuth("key"), 60)
    assert "b" == it.next()
    assert 0 == it.failed("b", DOWN, 60)
    assert "c" == it.next()
    assert it.failed("c", errors.UpstreamModelNotFound("no"), 60)
    assert "b" == it.next()
    assert it.failed("b", DOWN, 60) is None


@pytest.mark.parametrize(
    "error", [errors.InvalidRequest("x"), errors.UpstreamRejected("x"), errors.Internal("x")]
)
def test_what_every_candidate_would_refuse_stands(error):
    """A wrong request is not sent to everybody."""
    it, _ = attempts("a", "b")
    it.next()
    assert it.failed("a", error, 60) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DOWN, "unreachable"),
        (errors.EngineCrashed("x"), "unreachable"),
        (errors.UpstreamRateLimited("x"), "rate_limited"),
        (errors.QueueFull("x"), "rate_limited"),
        (errors.ContextLengthExceeded("x"), "context_too_long"),
        (errors.UpstreamRejected("x", metadata={"upstreamCode": "content_filter"}), "content_filter"),
        (errors.UnsupportedByBackend("x"), "unsupported"),
    ],
)
def test_each_cause_can_be_switched(error, cause):
    """A route falls back on the causes that it names, and on no other."""
    assert cause == cause_of(error)
    it, _ = attempts("a", "b", fallback_on=(cause,))
    it.next()
    assert 0 == it.failed("a", error, 60)
    it, _ = attempts("a", "b", fallback_on=())
    it.next()
    assert it.failed("a", error, 60) is None


def test_the_pause_is_at_least_what_was_asked_for():
    """Retry-After outranks our own pause; one that is too long ends it, as does a deadline before its end."""
    limited = errors.UpstreamRateLimited("x", retry_delay_seconds=3)
    it, _ = attempts("a")
    it.next()
    assert 3 == it.failed("a", limited, 60)
    it, _ = attempts("a")
    it.next()
    assert it.failed("a", limited, 2.9) is None
    it, _ = attempts("a", max_backoff_seconds=2)
    it.next()
    assert it.failed("a", limited, 60) is None


def test_the_budget_bounds_retries_when_everything_fails():
    """Of 1,000 requests of a route whose only candidate is down, a handful is asked again; answers refill it slowly."""
    budget = Budget(10)
    num_asked = 0
    for _ in range(1000):
        it = Attempts(RouteSettings(candidates=["a"], retries=3), ["a"], budget, lambda: 1.0)
        pause: float | None = 0.0
        while pause is not None:
            num_asked += 1
            pause = it.failed(it.next(), DOWN, 60)
    assert 1005 == num_asked
    for _ in range(5):
        budget.succeeded()
    assert budget.take()
    assert not budget.take()


# Through a real server.


def settings(server: ScriptedProvider, **more: object) -> BackendSettings:
    return BackendSettings(
        type="openai", base_url=server.url, models=[MODEL], health_seconds=0, idle_seconds=2, **more
    )


@contextlib.asynccontextmanager
async def two(route: RouteSettings | None = None, **more):
    """Yields two providers, and a server whose route "r" asks the first and then the second."""
    route = route or RouteSettings(candidates=[f"a/{MODEL}", f"b/{MODEL}"], backoff_seconds=0.01)
    async with provider(OpenAIWire()) as a, provider(OpenAIWire(), CALLS) as b:
        backends = {"a": settings(a, **more), "b": settings(b, **more)}
        async with (
            running(backends=backends, routes={"r": route}, scripted=False) as (server, _),
            bare_stub(server) as stub,
        ):
            yield a, b, server, stub


def ask(model: str = "r", **fields) -> pb.CompleteRequest:
    request = pb.CompleteRequest(model=model, **fields)
    request.chat.messages.add(role=pb.ROLE_USER).parts.add(text="Hello?")
    return request


async def test_the_first_candidate_answers():
    """And nobody else is asked; `started` tells who it was."""
    async with two() as (a, b, _, stub):
        answer = await stub.Complete(ask())
        assert HELLO.text == "".join(part.text for part in answer.message.parts)
        assert ("a", f"a/{MODEL}") == (answer.started.backend, answer.started.model)
        assert (1, 0) == (len(a.requests), len(b.requests))


@pytest.mark.parametrize("status", [429, 500, 503, 401])
async def test_a_failure_before_the_first_delta_passes_the_request_on(status):
    """The caller gets the second candidate's answer and never hears of the first."""
    async with two() as (a, b, _, stub):
        a.reply = a.failed(status)
        answer = await stub.Complete(ask())
        assert "b" == answer.started.backend
        assert (1, 1) == (len(a.completions), len(b.completions))


async def test_nothing_is_asked_again_after_the_first_delta():
    """What was said cannot be unsaid: the stream fails with ABORTED, and the second candidate is not asked."""
    async with two() as (a, b, _server, stub):
        a.reply = Reply(media_type=a.wire.media_type, steps=a.wire.events(HELLO)[:3])
        error = await failure(stub.StreamComplete(ask()))
        assert ("ABORTED", "UPSTREAM_TRUNCATED") == (error.code.name, error.reason)
        assert [] == b.requests


async def test_a_wrong_request_goes_nowhere_else():
    """The provider's refusal of the request is the answer."""
    async with two() as (a, b, _server, stub):
        a.reply = a.failed(400)
        error = await failure(stub.Complete(ask()))
        assert ("INVALID_ARGUMENT", "UPSTREAM_REJECTED") == (error.code.name, error.reason)
        assert [] == b.requests


async def test_a_candidate_that_cannot_is_passed_over():
    """What one backend does not support another may: no call is made to the first."""
    async with provider(OpenAIWire()) as a, provider(OpenAIWire()) as b:
        backends = {
            "a": settings(a),
            "b": BackendSettings(type="vllm", base_url=b.url, models=[MODEL], health_seconds=0),
        }
        route = RouteSettings(candidates=[f"a/{MODEL}", f"b/{MODEL}"])
        async with (
            running(backends=backends, routes={"r": route}, scripted=False) as (server, _),
            bare_stub(server) as stub,
        ):
            request = ask()
            request.sampling.top_k = 5
            assert "b" == (await stub.Complete(request)).started.backend
            assert ([], 5) == (a.requests, b.completions[0].json["top_k"])


@pytest.mark.parametrize("falls_back", [True, False])
async def test_an_answer_that_is_filtered_whole_is_for_another_candidate(falls_back):
    """Where the route says so; else, and when there is nobody else, it is the answer."""
    causes = ("unreachable", "content_filter") if falls_back else ("unreachable",)
    route = RouteSettings(candidates=[f"a/{MODEL}", f"b/{MODEL}"], fallback_on=causes)
    async with two(route) as (a, b, _, stub):
        a.reply = a.good(FILTERED)
        answer = await stub.Complete(ask())
        assert ("b" if falls_back else "a") == answer.started.backend
        b.reply = b.good(FILTERED)
        answer = await stub.Complete(ask())
        assert pb.FINISH_REASON_CONTENT_FILTER == answer.completion.finish_reason


async def test_a_retry_waits_for_what_the_provider_asks():
    """One candidate: it is asked again after Retry-After, and then it answers."""
    route = RouteSettings(candidates=[f"a/{MODEL}"], backoff_seconds=0.01)
    async with two(route) as (a, _, _, stub):
        a.queue = [a.failed(429, retry_after="1")]
        answer = await stub.Complete(ask())
        assert 2 == len(a.completions)
        assert answer.completion.timing.total.ToTimedelta().total_seconds() >= 0


async def test_a_rate_limit_is_told_with_its_time():
    """When nobody answers, the caller is told when to come back, and requests until then do not reach the provider."""
    async with two() as (a, b, _server, stub):
        a.reply, b.reply = a.failed(429, retry_after="30"), b.failed(429, retry_after="40")
        for _ in range(3):
            error = await failure(stub.Complete(ask()))
            assert ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED") == (error.code.name, error.reason)
            assert 20 < (error.retry_delay or 0) <= 40
        assert (1, 1) == (len(a.completions), len(b.completions))


async def test_cancelling_ends_the_candidate_that_answers():
    """The provider sees its connection close."""
    async with two() as (a, _, _, stub):
        a.reply = Reply(media_type=a.wire.media_type, steps=[*a.wire.events(HELLO)[:3], Stall()])
        call = stub.StreamComplete(ask())
        await call.read()
        call.cancel()
        await a.until(lambda: not a.num_connections)


async def test_weights_share_the_requests():
    """Three to one, in about so many of 400 draws; a candidate that is drawn second is still there as the fallback."""
    draw = random.Random(7)
    counts: collections.Counter[str] = collections.Counter()
    route = RouteSettings(candidates=[Candidate(f"a/{MODEL}", 3.0), Candidate(f"b/{MODEL}", 1.0)])
    async with two(route) as (_, _, server, _):
        backend = server.registry._entries["r"].instance.backend
        backend._draw = draw.random
        for _ in range(400):
            order = backend._order()
            assert {f"a/{MODEL}", f"b/{MODEL}"} == set(order)
            counts[order[0][0]] += 1
    assert 270 <= counts["a"] <= 330


async def test_routes_are_seen():
    """ListModels names a route's candidates, Health its state; both say why it would not answer when all are down."""
    async with two() as (a, b, _server, stub):
        models = {model.name: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}
        assert [f"a/{MODEL}", f"b/{MODEL}"] == list(models["r"].candidates)
        assert ("route", models_pb2.MODEL_STATE_READY) == (models["r"].backend, models["r"].state)
        assert ["a", "b"] == [
            each.id for each in (await stub.ListBackends(pb.ListBackendsRequest())).backends
        ]
        for each in (a, b):
            await each.stop()
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Complete(ask(f"{'a' if each is a else 'b'}/{MODEL}"))
        models = {model.name: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}
        assert models_pb2.MODEL_STATE_FAILED == models["r"].state
        assert "UPSTREAM_UNAVAILABLE" in str(models["r"].failure)
        health = {model.name: model.state for model in (await stub.Health(pb.HealthRequest())).models}
        assert models_pb2.MODEL_STATE_FAILED == health["r"]


async def test_progress_commits_to_the_candidate():
    """Who asks for progress has `started` at once, and gives up the fallback with it."""
    async with two() as (a, b, _server, stub):
        a.reply = a.failed(503)
        request = ask()
        request.output.progress = True
        call = stub.StreamComplete(request)
        assert "started" == (await call.read()).WhichOneof("event")
        assert "UPSTREAM_UNAVAILABLE" == (await failure(call)).reason
        assert [] == b.requests


async def test_a_local_model_and_a_remote_one_share_a_route():
    """The scripted model fails before it begins; the provider answers."""
    async with provider(OpenAIWire()) as a:
        route = RouteSettings(candidates=["scripted", f"a/{MODEL}"])
        async with (
            running(backends={"a": settings(a)}, routes={"r": route}) as (server, _),
            bare_stub(server) as stub,
        ):
            script = '{"events": [{"error": {"reason": "ENGINE_CRASHED"}}]}'
            request = pb.CompleteRequest(model="r")
            request.chat.messages.add(role=pb.ROLE_USER).parts.add(text=script)
            events = await rest(stub.StreamComplete(request))
            assert "a" == events[0].started.backend
            assert HELLO.text == "".join(event.text.text for event in events)
