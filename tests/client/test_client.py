"""The two doors of the Python client, against a real server: what both do alike is tested through both."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inferwire import AsyncClient, Client, InferwireError, system, text_of, user
from inferwire.aio import AsyncCompletionStream
from inferwire.channel import CHANNEL_OPTIONS, is_local
from inferwire.client import CompletionStream
from inferwire.v1 import inference_pb2 as inference
from inferwire.v1 import models_pb2 as models
from inferwire.v1.error_reason_pb2 import ErrorReason
from tests.client.scripted import (
    UNKNOWN_EVENT,
    Event,
    Hang,
    Refusal,
    ScriptedServer,
    answer,
    completion,
    reasoning,
    started,
    text,
)

QUEUE_FULL = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    'the queue of "demo" is full',
    "QUEUE_FULL",
    metadata={"model": "demo", "queueCapacity": "64"},
    retry_delay=0.05,
)

# Reads a whole stream through one of the doors.
Read = Callable[[ScriptedServer], Coroutine[Any, Any, list[Event]]]


async def read_sync(server: ScriptedServer) -> list[Event]:
    def read() -> list[Event]:
        with Client(server.address) as client, client.stream(prompt="Hi") as stream:
            return list(stream)

    return await asyncio.to_thread(read)


async def read_async(server: ScriptedServer) -> list[Event]:
    async with AsyncClient(server.address) as client, client.stream(prompt="Hi") as stream:
        return [event async for event in stream]


both_doors = pytest.mark.parametrize("read", [read_sync, read_async])


class TestStream:
    @both_doors
    async def test_gives_every_event_in_order(self, server: ScriptedServer, read: Read) -> None:
        """What the server writes is what the iterator gives."""
        server.streams = [answer("Hel", "lo")]
        assert answer("Hel", "lo") == await read(server)

    @both_doors
    async def test_skips_an_unknown_event(self, server: ScriptedServer, read: Read) -> None:
        """An arm that this version does not know is skipped, wherever it stands, also after the completion."""
        server.streams = [[UNKNOWN_EVENT, started(), UNKNOWN_EVENT, text("a"), completion(), UNKNOWN_EVENT]]
        assert answer("a") == await read(server)

    @both_doors
    async def test_ok_without_completion_is_truncated(self, server: ScriptedServer, read: Read) -> None:
        """OK without a completion is the local failure STREAM_TRUNCATED, never a short answer."""
        server.streams = [[started(), text("a")]]
        with pytest.raises(InferwireError) as caught:
            await read(server)
        assert grpc.StatusCode.ABORTED == caught.value.code
        assert ErrorReason.ERROR_REASON_STREAM_TRUNCATED == caught.value.known_reason

    @both_doors
    async def test_completion_before_a_failure_is_a_failure(self, server: ScriptedServer, read: Read) -> None:
        """A completion followed by a status that is not OK is a failure."""
        server.streams = [[*answer("a"), Refusal(grpc.StatusCode.INTERNAL, "oh", "INTERNAL")]]
        with pytest.raises(InferwireError) as caught:
            await read(server)
        assert "INTERNAL" == caught.value.reason

    @both_doors
    async def test_retries_before_the_first_event(self, server: ScriptedServer, read: Read) -> None:
        """UNAVAILABLE without any event is tried again, three times in all; the caller sees the answer alone."""
        loading = Refusal(grpc.StatusCode.UNAVAILABLE, "not yet", "MODEL_LOADING", retry_delay=0.01)
        server.streams = [[loading], [QUEUE_FULL], answer("a")]
        assert answer("a") == await read(server)
        assert 3 == len(server.requests)

    @both_doors
    async def test_does_not_retry_after_a_delta(self, server: ScriptedServer, read: Read) -> None:
        """After the first event no code makes the call start again: the text would come twice."""
        server.streams = [[started(), text("a"), Refusal(grpc.StatusCode.UNAVAILABLE, "gone")]]
        with pytest.raises(InferwireError) as caught:
            await read(server)
        assert grpc.StatusCode.UNAVAILABLE == caught.value.code
        assert 1 == len(server.requests)

    async def test_ends_where_retries_end(self, server: ScriptedServer) -> None:
        """The third refusal reaches the caller with all its details."""
        server.streams = [[QUEUE_FULL]]
        with pytest.raises(InferwireError) as caught:
            await read_async(server)
        assert 3 == len(server.requests)
        assert ("QUEUE_FULL", 0.05) == (caught.value.reason, caught.value.retry_delay)

    def test_tells_its_beginning_and_its_end(self, server: ScriptedServer) -> None:
        """`started` is there with the first event; `completion` only when all has been read; then it is over."""
        server.streams = [answer("a")]
        with Client(server.address) as client, client.stream(prompt="Hi") as stream:
            assert None is stream.started
            assert started() == next(stream)
            assert stream.started == started().started
            assert stream.completion is None
            assert "<CompletionStream [open]>" == repr(stream)
            assert 2 == len(list(stream))
            assert stream.completion == completion().completion
            assert [] == list(stream)
            assert "<CompletionStream [completed]>" == repr(stream)

    def test_text_is_only_the_text(self, server: ScriptedServer) -> None:
        """`text` leaves out thoughts and whatever else comes."""
        server.streams = [[started(), reasoning("hm"), text("a"), UNKNOWN_EVENT, text("b"), completion()]]
        with Client(server.address) as client:
            assert ["a", "b"] == list(client.stream(prompt="Hi").text())

    async def test_gather_is_the_unary_answer(self, server: ScriptedServer) -> None:
        """`gather` gives the stream as Complete would have."""
        server.streams = [answer("a", "b")]
        async with AsyncClient(server.address) as client:
            gathered = await client.stream(prompt="Hi").gather()
            with Client(server.address) as other:
                assert gathered == await asyncio.to_thread(other.stream(prompt="Hi").gather)
        assert "ab" == text_of(gathered.message)
        assert gathered.completion == completion().completion


class TestCancel:
    def test_leaving_the_with_cancels(self, server: ScriptedServer) -> None:
        """Who leaves a stream early ends the generation at the server."""
        hang = Hang()
        server.streams = [[started(), text("a"), hang]]
        with Client(server.address) as client:
            with client.stream(prompt="Hi") as stream:
                for event in stream:
                    if event.HasField("text"):
                        break
            assert hang.gone.wait(10)
            assert [] == list(stream)

    def test_dropping_the_stream_cancels(self, server: ScriptedServer) -> None:
        """A `for` over a stream without a `with` cancels when it is left: the stream is dropped."""
        hang = Hang()
        server.streams = [[started(), text("a"), hang]]
        with Client(server.address) as client:
            for _ in client.stream(prompt="Hi").text():
                break
            assert hang.gone.wait(10)

    def test_cancel_is_told_to_the_reader(self, server: ScriptedServer) -> None:
        """A cancelled stream ends with CANCELLED, so nobody takes it for a whole answer."""
        hang = Hang()
        server.streams = [[started(), hang]]
        with Client(server.address) as client, client.stream(prompt="Hi") as stream:
            next(stream)
            stream.cancel()
            with pytest.raises(InferwireError) as caught:
                next(stream)
            assert grpc.StatusCode.CANCELLED == caught.value.code
            assert hang.gone.wait(10)

    async def test_leaving_the_async_with_cancels(self, server: ScriptedServer) -> None:
        """Who leaves a stream early ends the generation at the server."""
        hang = Hang()
        server.streams = [[started(), text("a"), hang]]
        async with AsyncClient(server.address) as client:
            async with client.stream(prompt="Hi") as stream:
                async for event in stream:
                    if event.HasField("text"):
                        break
            assert await asyncio.to_thread(hang.gone.wait, 10)

    async def test_async_cancel_is_told_to_the_reader(self, server: ScriptedServer) -> None:
        """A cancelled call is InferwireError, not the CancelledError that would end the reader's own task."""
        hang = Hang()
        server.streams = [[started(), hang]]
        async with AsyncClient(server.address) as client, client.stream(prompt="Hi") as stream:
            await anext(stream)
            stream.cancel()
            with pytest.raises(InferwireError) as caught:
                await anext(stream)
            assert grpc.StatusCode.CANCELLED == caught.value.code
            assert await asyncio.to_thread(hang.gone.wait, 10)

    async def test_cancelling_the_task_cancels_the_call(self, server: ScriptedServer) -> None:
        """A reader's task that is cancelled stays cancelled, and the server learns of it."""
        hang = Hang()
        server.streams = [[started(), hang]]
        first = asyncio.Event()

        async def read(client: AsyncClient) -> None:
            async for _ in client.stream(prompt="Hi"):
                first.set()

        async with AsyncClient(server.address) as client:
            task = asyncio.create_task(read(client))
            await first.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(hang.gone.wait, 10)


class TestRequest:
    def test_shorthand(self, server: ScriptedServer) -> None:
        """Keywords become the fields of their names; what is not said stays unset."""
        with Client(server.address) as client:
            client.complete(chat=[system("Be brief."), user("Hi")], model="demo", max_tokens=8, stop="\n")
        expected = inference.CompleteRequest(
            model="demo",
            chat=inference.Chat(messages=[system("Be brief."), user("Hi")]),
            stopping=inference.Stopping(max_tokens=8, stop=["\n"]),
        )
        assert [("Complete", expected)] == server.requests

    def test_zero_is_said(self, server: ScriptedServer) -> None:
        """None leaves unset; 0 is sent as 0."""
        with Client(server.address) as client:
            client.complete(prompt="Hi", temperature=0, seed=0, max_tokens=0, top_k=None)
        [request] = server.requests_of("Complete")
        assert isinstance(request, inference.CompleteRequest)
        assert request.sampling.HasField("temperature")
        assert request.sampling.HasField("seed")
        assert request.stopping.HasField("max_tokens")
        assert not request.sampling.HasField("top_k")

    def test_nothing_said_is_nothing_sent(self, server: ScriptedServer) -> None:
        """A message without content is not sent as present."""
        with Client(server.address) as client:
            client.complete(prompt="Hi", temperature=None)
        assert [("Complete", inference.CompleteRequest(prompt="Hi"))] == server.requests

    def test_a_whole_request_goes_as_it_is(self, server: ScriptedServer) -> None:
        """The same CompleteRequest goes to every RPC that takes one."""
        request = inference.CompleteRequest(prompt="Hi", sampling=inference.Sampling(typical_p=0.5))
        server.streams = [answer("a")]
        with Client(server.address) as client:
            client.complete(request)
            client.count_tokens(request)
            client.stream(request).gather()
        assert [request] * 3 == [message for _, message in server.requests]

    @pytest.mark.parametrize(
        "keywords",
        [{"prompt": "a", "chat": [user("b")]}, {"prompt": "a", "tools": [inference.Tool(name="t")]}],
    )
    def test_what_excludes_each_other_is_not_sent(
        self, server: ScriptedServer, keywords: dict[str, Any]
    ) -> None:
        """The shorthand never drops a value silently."""
        with Client(server.address) as client, pytest.raises(TypeError):
            client.complete(**keywords)
        with Client(server.address) as client, pytest.raises(TypeError):
            client.complete(inference.CompleteRequest(prompt="a"), temperature=0)
        assert [] == server.requests

    def test_carries_token_request_id_and_deadline(self, server: ScriptedServer) -> None:
        """Every call carries the key; a call without a deadline of its own has the client's."""
        with Client(server.address, token="secret", default_timeout=50) as client:
            client.complete(prompt="Hi", request_id="mine")
            assert ("Bearer secret", "mine") == (
                server.metadata["authorization"],
                server.metadata["x-request-id"],
            )
            assert 20 < (server.deadline_seconds or 0) < 52  # The wire rounds a deadline up.
            client.complete(prompt="Hi", timeout=math.inf)
            assert server.deadline_seconds is None
            assert "secret" not in repr(client)

    def test_loads_and_watches_have_no_deadline(self, server: ScriptedServer) -> None:
        """They end when they end."""
        server.loads = [[models.StreamLoadResponse(loaded=models.LoadResponse())]]
        server.watches = [[inference.WatchModelsResponse(revision=1)]]
        with Client(server.address) as client:
            for call in (
                lambda: client.load("demo", "demo.gguf"),
                lambda: list(client.stream_load("demo")),
                lambda: list(client.watch_models()),
            ):
                call()
                assert server.deadline_seconds is None

    async def test_every_method_reaches_its_rpc(self, server: ScriptedServer) -> None:
        """Each RPC of the contract has one method, and it sends what its arguments say."""
        server.streams = [answer("a")]
        server.loads = [[models.StreamLoadResponse(loaded=models.LoadResponse())]]
        server.watches = [[inference.WatchModelsResponse(revision=1)]]
        server.answers["Detokenize"] = inference.DetokenizeResponse(data=b"\xff")
        config = models.LoadConfig(context_length=64)
        async with AsyncClient(server.address) as client:
            await client.complete(prompt="Hi")
            await client.stream(prompt="Hi").gather()
            await client.embed("one text", normalize=False, dimensions=3)
            await client.count_tokens(prompt="Hi")
            await client.tokenize("Hi", parse_special=True)
            assert b"\xff" == await client.detokenize([1, 2])
            await client.list_models()
            await client.get_model("demo")
            assert [1] == [snapshot.revision async for snapshot in client.watch_models()]
            await client.list_backends()
            await client.health()
            await client.load("demo", "demo.gguf", config=config, keep_alive=1.5, replace=True)
            assert [True] == [e.HasField("loaded") async for e in client.stream_load("demo")]
            await client.unload("demo", drain_timeout=0)
        sent = dict(server.requests)
        rpcs = {
            method.name
            for module, service in ((inference, "InferenceService"), (models, "ModelService"))
            for method in module.DESCRIPTOR.services_by_name[service].methods
        }
        assert rpcs == set(sent)
        assert sent["Embed"] == inference.EmbedRequest(inputs=["one text"], normalize=False, dimensions=3)
        load = sent["Load"]
        assert isinstance(load, models.LoadRequest)
        assert ("demo.gguf", 64, 1_500_000_000, True) == (
            load.source.local.path,
            load.config.context_length,
            load.keep_alive.ToNanoseconds(),
            load.replace,
        )
        unload = sent["Unload"]
        assert isinstance(unload, models.UnloadRequest)
        assert unload.HasField("drain_timeout")

    def test_load_is_not_repeated(self, server: ScriptedServer) -> None:
        """A load changes the server: to repeat it is the caller's decision."""
        server.answers["Load"] = Refusal(grpc.StatusCode.UNAVAILABLE, "", "MODEL_UNLOADING")
        with Client(server.address) as client, pytest.raises(InferwireError):
            client.load("demo")
        assert 1 == len(server.requests)

    def test_truncated_load(self, server: ScriptedServer) -> None:
        """The way of a load that ends without `loaded` is truncated as well."""
        server.loads = [[models.StreamLoadResponse(progress=models.LoadProgress(fraction=0.5))]]
        with Client(server.address) as client, pytest.raises(InferwireError, match="STREAM_TRUNCATED"):
            list(client.stream_load("demo"))


class TestError:
    def refused(self, server: ScriptedServer, refusal: Refusal) -> InferwireError:
        server.answers["ListModels"] = refusal
        with Client(server.address) as client, pytest.raises(InferwireError) as caught:
            client.list_models()
        return caught.value

    def test_says_all_that_the_server_said(self, server: ScriptedServer) -> None:
        """Code, reason, metadata, violations and the thing's name arrive as they were sent."""
        error = self.refused(
            server,
            Refusal(
                grpc.StatusCode.NOT_FOUND,
                "no such model",
                "MODEL_NOT_FOUND",
                metadata={"model": "nope"},
                violations=(("model", "is unknown"),),
                resource="nope",
            ),
        )
        assert grpc.StatusCode.NOT_FOUND == error.code
        assert "MODEL_NOT_FOUND" == error.reason
        assert ErrorReason.ERROR_REASON_MODEL_NOT_FOUND == error.known_reason
        assert "no such model" == error.message
        assert {"model": "nope"} == error.metadata
        assert (("model", "is unknown"),) == error.violations
        assert "nope" == error.resource
        assert error.retry_delay is None
        assert "MODEL_NOT_FOUND: no such model; model: is unknown" == str(error)

    def test_keeps_an_unknown_reason(self, server: ScriptedServer) -> None:
        """A reason of a newer server stays readable."""
        error = self.refused(server, Refusal(grpc.StatusCode.ABORTED, "", "SOLAR_FLARE"))
        assert ("SOLAR_FLARE", None) == (error.reason, error.known_reason)

    @pytest.mark.parametrize(
        "refusal",
        [
            Refusal(grpc.StatusCode.INTERNAL, "plain"),
            Refusal(grpc.StatusCode.INTERNAL, "plain", raw_details=b"\xff\xff\xff"),
            Refusal(grpc.StatusCode.INTERNAL, "plain", raw_details=b""),
            Refusal(grpc.StatusCode.INTERNAL, "plain", "PROXY_SAYS_NO", domain="proxy.example"),
        ],
        ids=["absent", "garbage", "empty", "foreign"],
    )
    def test_lives_without_details(self, server: ScriptedServer, refusal: Refusal) -> None:
        """Details that are absent, garbage or of another domain leave code and message, and no reason."""
        error = self.refused(server, refusal)
        assert (grpc.StatusCode.INTERNAL, "plain", "") == (error.code, error.message, error.reason)
        assert error.known_reason is None
        assert "INTERNAL: plain" == str(error)

    async def test_both_doors_tell_the_same(self, server: ScriptedServer) -> None:
        """An error does not depend on the door."""
        refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no", "INVALID_REQUEST", violations=(("a", "b"),))
        server.answers["ListModels"] = refusal
        async with AsyncClient(server.address) as client:
            with pytest.raises(InferwireError) as caught:
                await client.list_models()
        assert vars(self.refused(server, refusal)) == vars(caught.value)

    def test_no_server(self) -> None:
        """A server that is not there is UNAVAILABLE without a reason."""
        with Client("127.0.0.1:1") as client, pytest.raises(InferwireError) as caught:
            client.list_models()
        assert (grpc.StatusCode.UNAVAILABLE, "") == (caught.value.code, caught.value.reason)

    def test_deadline(self, server: ScriptedServer) -> None:
        """A call's own deadline is DEADLINE_EXCEEDED, and the server learns of it."""
        hang = Hang()
        server.streams = [[started(), hang]]
        with Client(server.address) as client, pytest.raises(InferwireError) as caught:
            client.stream(prompt="Hi", timeout=0.2).gather()
        assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code
        assert hang.gone.wait(10)


class TestChannel:
    @pytest.mark.parametrize(
        ("target", "local"),
        [
            ("127.0.0.1:50051", True),
            ("localhost:50051", True),
            ("localhost", True),
            ("[::1]:50051", True),
            ("::1", True),
            ("dns:///localhost:50051", True),
            ("dns:localhost:50051", True),
            ("ipv4:127.0.0.1:50051", True),
            ("ipv4:127.0.0.1:50051,127.0.0.1:50052", True),
            ("ipv4:127.0.0.1:50051,10.0.0.1:50051", False),
            ("unix:/run/inferwire.sock", True),
            ("10.0.0.1:50051", False),
            ("inferwire.example:443", False),
            ("localhost.example:443", False),
            ("dns:///inferwire.example:443", False),
            ("dns://127.0.0.1/inferwire.example:443", False),
            ("[2001:db8::1]:443", False),
        ],
    )
    def test_plain_text_stays_on_this_machine(self, target: str, local: bool) -> None:
        """Without a word about TLS, only a target on this very machine is called in plain text."""
        assert local == is_local(target)
        with Client(target) as client:
            way = "plain text" if local else "TLS"
            assert f"<Client [{target} | {way} | no token]>" == repr(client)

    def test_plain_text_can_be_said(self) -> None:
        """`tls=False` is for a network that is trusted or secured otherwise."""
        with Client("10.0.0.1:50051", tls=False, token="t") as client:
            assert "<Client [10.0.0.1:50051 | plain text | token]>" == repr(client)

    @pytest.mark.parametrize("door", ["sync", "async"])
    async def test_balanced_calls_leave_out_who_is_not_ready(self, door: str) -> None:
        """All addresses are asked in turn, but no server whose readiness is NOT_SERVING."""
        servers = [ScriptedServer() for _ in range(3)]
        for server, status in zip(servers, ("SERVING", "SERVING", "NOT_SERVING"), strict=True):
            says = health.HealthServicer()
            says.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
            server.add(functools.partial(health_pb2_grpc.add_HealthServicer_to_server, says))
        first, second, out = servers
        target = f"ipv4:{','.join(server.address for server in servers)}"

        def is_enough() -> bool:
            return min(len(first.requests), len(second.requests)) >= 3

        with first, second, out:
            if door == "sync":
                with Client(target, balance=True) as client:
                    while not is_enough():
                        client.list_models()
            else:
                async with AsyncClient(target, balance=True) as async_client:
                    while not is_enough():
                        await async_client.list_models()
            assert [] == out.requests

    def test_grpc_knows_the_options(self) -> None:
        """gRPC ignores an option that it does not know, so a misspelt one would silently do nothing."""
        path = importlib.import_module("grpc._cython.cygrpc").__file__
        assert path is not None
        library = Path(path).read_bytes()
        assert [] == [name for name, _ in CHANNEL_OPTIONS if name.encode() not in library]


def test_the_doors_have_the_same_names() -> None:
    """Both doors have the same methods with the same parameters."""

    def shape(cls: type) -> dict[str, list[str]]:
        members = inspect.getmembers(cls, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in members if name[0] != "_"}

    assert shape(Client) == shape(AsyncClient)
    assert shape(CompletionStream) == shape(AsyncCompletionStream)


@pytest.mark.parametrize(
    "statement",
    [
        "import inferwire",
        "from inferwire.v1 import inference_pb2, models_pb2, error_reason_pb2",
        "from inferwire import user, text_of, Gatherer",
        "import inferwire.gather, inferwire.request",
    ],
)
def test_messages_do_not_import_grpc(statement: str) -> None:
    """A process that only wants messages gets no grpc."""
    code = f"import sys; {statement}; sys.exit('grpc' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_every_export_is_there() -> None:
    """What `__all__` promises can be imported, and nothing else is invented."""
    import inferwire

    for name in inferwire.__all__:
        assert getattr(inferwire, name).__name__ == name
    assert set(inferwire.__all__) <= set(dir(inferwire))
    with pytest.raises(AttributeError):
        _ = inferwire.nothing
