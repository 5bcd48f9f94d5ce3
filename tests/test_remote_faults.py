"""Every way to fail, for every wire format, through a real server: nothing that broke ends OK, and nothing leaks.

That each fault ends with its own status is a row of the scorecard (reliability/test_remote.py).
"""

from __future__ import annotations

import asyncio
import ssl

import grpc
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.config import RouteSettings
from tests.certificates import self_signed
from tests.providers.asking import chat
from tests.providers.server import (
    HELLO,
    Reply,
    Script,
    ScriptedProvider,
    Stall,
    Text,
    provider,
)
from tests.providers.wires import MODEL, WIRES, settings
from tests.serving import bare_stub, failure, running


async def closed(server: ScriptedProvider) -> None:
    """Waits until every connection that carried a failure is closed; the test's timeout is the guard."""
    await server.until(lambda: not server.num_connections)


@pytest.mark.parametrize("type", WIRES)
async def test_the_rig_can_succeed(type):
    """Without a fault the same path ends OK: what is asserted of faults (reliability/test_remote.py) can fail."""
    async with (
        provider(WIRES[type]) as server,
        running(backends={"x": settings(server, type)}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        for seed in range(5):
            server.reply = server.good(HELLO, seed=seed)
            answer = await stub.Complete(chat(model=f"x/{MODEL}"))
            assert HELLO.text == "".join(part.text for part in answer.message.parts)


@pytest.mark.parametrize("type", WIRES)
async def test_a_body_that_was_read_leaves_its_connection_for_the_next_request(type):
    """Twenty answers, one connection."""
    async with (
        provider(WIRES[type]) as server,
        running(backends={"x": settings(server, type)}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        for _ in range(20):
            await stub.Complete(chat(model=f"x/{MODEL}"))
        assert 1 == server.max_connections


@pytest.mark.parametrize("num_kept", [1, 5])
async def test_a_connection_that_was_closed_meanwhile_is_no_failure(num_kept):
    """A server may close a connection that rests just when the next request is on its way; that request gets a new one."""
    async with (
        provider(WIRES["openai"]) as server,
        running(backends={"x": settings(server, "openai")}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        server.max_requests = 1
        for _ in range(3):
            answers = [stub.Complete(chat(model=f"x/{MODEL}")) for _ in range(num_kept)]
            for answer in answers:
                assert HELLO.text == (await answer).message.parts[0].text
        # A new connection that is closed is one: it is tried once.
        server.reply = Reply(has_head=False)
        before = len(server.requests)
        error = await failure(stub.Complete(chat(model=f"x/{MODEL}")))
        assert "UPSTREAM_UNAVAILABLE" == error.reason
        assert before + 1 == len(server.requests)


@pytest.mark.parametrize("type", WIRES)
async def test_a_cancel_closes_the_providers_connection(type):
    """In every phase: before the head, after it, and in the middle of the answer."""
    async with (
        provider(WIRES[type]) as server,
        running(
            backends={"x": settings(server, type, idle_seconds=60, progress_seconds=60)}, scripted=False
        ) as (
            gateway,
            _,
        ),
        bare_stub(gateway) as stub,
    ):
        first = server.wire.events(HELLO)[:4]
        for steps, has_head in (([Stall()], False), ([Stall()], True), ([*first, Stall()], True)):
            server.reply = Reply(media_type=server.wire.media_type, steps=steps, has_head=has_head)
            before = len(server.completions)
            call = stub.StreamComplete(chat(model=f"x/{MODEL}"))
            if len(steps) > 1:
                await call.read()
            await server.until(lambda: len(server.completions) > before)  # noqa: B023
            call.cancel()
            await closed(server)
        assert 0 == gateway.registry.providers["x"].http.num_open


async def test_the_time_limit_ends_an_answer_with_what_there_is():
    """Not an error: the partial text and TIME_LIMIT; the provider's connection is closed."""
    async with (
        provider(WIRES["openai"]) as server,
        running(backends={"x": settings(server, "openai", idle_seconds=60)}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        server.reply = Reply(
            media_type=server.wire.media_type, steps=[*server.wire.events(HELLO)[:3], Stall()]
        )
        request = chat(model=f"x/{MODEL}")
        request.stopping.time_limit.FromMilliseconds(300)
        answer = await stub.Complete(request)
        assert pb.FINISH_REASON_TIME_LIMIT == answer.completion.finish_reason
        assert HELLO.text.startswith(answer.message.parts[0].text)
        await closed(server)


async def test_a_deadline_ends_the_call():
    """DEADLINE_EXCEEDED at the caller, and the provider's connection closes."""
    async with (
        provider(WIRES["openai"]) as server,
        running(backends={"x": settings(server, "openai", idle_seconds=60)}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        server.reply = Reply(media_type=server.wire.media_type, steps=[Stall()])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Complete(chat(model=f"x/{MODEL}"), timeout=0.3)
        assert grpc.StatusCode.DEADLINE_EXCEEDED == raised.value.code()
        await closed(server)


async def test_the_breaker_spares_a_backend_that_fails_and_probes_it_on_time():
    """After five failures nothing reaches the provider; after its time one request does, and its answer opens the way."""
    async with (
        provider(WIRES["openai"]) as server,
        running(
            backends={"x": settings(server, "openai", breaker_failures=5, breaker_open_seconds=0.5)},
            scripted=False,
        ) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        server.reply = server.failed(503)
        for _ in range(7):
            await failure(stub.Complete(chat(model=f"x/{MODEL}")))
        error = await failure(stub.Complete(chat(model=f"x/{MODEL}")))
        assert ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE") == (error.code.name, error.reason)
        assert 5 == len(server.completions)
        assert 0 < (error.retry_delay or 0) <= 0.5
        model = (await stub.GetModel(pb.GetModelRequest(model=f"x/{MODEL}"))).model
        assert models_pb2.MODEL_STATE_FAILED == model.state
        server.reply = server.good(HELLO)
        while True:
            try:
                await stub.Complete(chat(model=f"x/{MODEL}"))
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
        # The probe, and nobody before it.
        assert 6 == len(server.completions)
        model = (await stub.GetModel(pb.GetModelRequest(model=f"x/{MODEL}"))).model
        assert models_pb2.MODEL_STATE_READY == model.state


async def test_a_host_that_is_not_there_at_the_start_is_said_and_found_again():
    """The server starts and is ready; the backend, its model and the route are NOT_SERVING and say why, until it comes up."""
    server = ScriptedProvider(WIRES["openai"])
    await server.start()
    await server.stop()
    backends = {"x": settings(server, "openai", health_seconds=0.2)}
    route = RouteSettings(candidates=[f"x/{MODEL}"])
    async with (
        running(backends=backends, routes={"r": route}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        changes = gateway.registry.changes
        while gateway.registry.providers["x"].problem is None:
            await changes.after(changes.revision)
        assert (await stub.Health(pb.HealthRequest())).ready
        (backend,) = (await stub.ListBackends(pb.ListBackendsRequest())).backends
        assert pb.BACKEND_HEALTH_NOT_SERVING == backend.health
        assert "UPSTREAM_UNAVAILABLE" in str(backend.failure)
        for name in (f"x/{MODEL}", "r"):
            model = (await stub.GetModel(pb.GetModelRequest(model=name))).model
            assert models_pb2.MODEL_STATE_FAILED == model.state
            assert "UPSTREAM_UNAVAILABLE" in str(model.failure)
        port, server = server.port, ScriptedProvider(WIRES["openai"])
        await server.start(port)
        try:
            while gateway.registry.problem("r") is not None:
                await changes.after(changes.revision)
            await stub.Complete(chat(model="r"))
        finally:
            await server.stop()


async def test_tls_trusts_the_given_certificates_and_no_others(tmp_path):
    """With the right file an answer comes, over and over on one connection; with another one, or the system's, none does."""
    (key, file), (_, other) = self_signed(tmp_path, "far"), self_signed(tmp_path, "other")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file, key)
    server = ScriptedProvider(WIRES["openai"])
    await server.start(tls=tls)
    url = f"https://127.0.0.1:{server.port}"
    try:
        backends = {
            name: settings(server, "openai", base_url=url, ca_file=ca_file)
            for name, ca_file in (("right", str(file)), ("wrong", str(other)), ("system", ""))
        }
        async with running(backends=backends, scripted=False) as (gateway, _), bare_stub(gateway) as stub:
            for _ in range(3):
                answer = await stub.Complete(chat(model=f"right/{MODEL}"))
                assert HELLO.text == answer.message.parts[0].text
            assert 1 == server.max_connections
            for name in ("wrong", "system"):
                error = await failure(stub.Complete(chat(model=f"{name}/{MODEL}")))
                assert "UPSTREAM_UNAVAILABLE" == error.reason
            assert 3 == len(server.requests)
    finally:
        await server.stop()


async def test_a_body_larger_than_what_is_held_arrives_whole():
    """The socket is not watched while too much waits, and is watched again: a megabyte of text in one go."""
    script = Script(tuple(Text(f"{number:06d}" * 100) for number in range(2000)))
    async with (
        provider(WIRES["openai"], script) as server,
        running(backends={"x": settings(server, "openai", idle_seconds=30)}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        answer = await stub.Complete(chat(model=f"x/{MODEL}"))
        assert script.text == answer.message.parts[0].text


@pytest.mark.parametrize("type", WIRES)
async def test_what_a_service_lists_is_told_where_any_model_may_be_asked_for(type):
    """ListBackends has the operator's models, and beside them the service's own only where callers may name those."""
    async with provider(WIRES[type]) as server:
        backends = {
            "open": settings(server, type, health_seconds=30, allow_unlisted=True),
            "shut": settings(server, type, health_seconds=30),
        }
        async with running(backends=backends, scripted=False) as (gateway, _), bare_stub(gateway) as stub:
            await server.until(lambda: len(server.requests) == 2)
            changes = gateway.registry.changes
            while not gateway.registry.providers["open"].offered:
                await changes.after(changes.revision, timeout_seconds=0.01)
            told = {each.id: each for each in (await stub.ListBackends(pb.ListBackendsRequest())).backends}
            assert [MODEL] == list(told["shut"].available_models)
            assert {MODEL} < set(told["open"].available_models)


async def test_a_required_route_keeps_the_server_from_being_ready():
    """Only where the operator says so: readiness depends on no remote backend by itself."""
    server = ScriptedProvider(WIRES["openai"])
    await server.start()
    await server.stop()
    backends = {"x": settings(server, "openai", health_seconds=0.2)}
    route = RouteSettings(candidates=[f"x/{MODEL}"], required=True)
    async with (
        running(backends=backends, routes={"r": route}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        changes = gateway.registry.changes
        while gateway.registry.is_ready:
            await changes.after(changes.revision)
        assert not (await stub.Health(pb.HealthRequest())).ready


async def test_unlisted_models_are_asked_for_where_the_operator_allows_it():
    """Else the name is unknown; either way the list of models holds what was listed."""
    async with provider(WIRES["openai"]) as server:
        backends = {
            "open": settings(server, "openai", allow_unlisted=True),
            "shut": settings(server, "openai"),
        }
        async with running(backends=backends, scripted=False) as (gateway, _), bare_stub(gateway) as stub:
            answer = await stub.Complete(chat(model="open/other/model:1"))
            assert "open/other/model:1" == answer.started.model
            assert "other/model:1" == server.completions[0].json["model"]
            error = await failure(stub.Complete(chat(model="shut/other")))
            assert "MODEL_NOT_FOUND" == error.reason
            models = (await stub.ListModels(pb.ListModelsRequest())).models
            assert [f"open/{MODEL}", f"shut/{MODEL}"] == [model.name for model in models]
            assert "shut" == models[1].source.remote.backend
