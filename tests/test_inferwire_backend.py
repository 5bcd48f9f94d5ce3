"""Another server of ours as a backend: two real servers and the channel between them, and one that sends what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import pathlib
import re
import socket
from typing import Any

import grpc
import grpc._cython.cygrpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from inferwire import InferwireError
from inferwire.errors import Violation
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.error_reason_pb2 import ErrorReason
from inferwire_server import errors, status
from inferwire_server.backends import inferwire
from inferwire_server.backends._http import MAX_RETRY_AFTER_SECONDS
from inferwire_server.backends.fields import unsupported
from inferwire_server.backends.inferwire import Inferwire
from inferwire_server.config import BackendSettings, ConfigError, RouteSettings, Settings
from inferwire_server.server import Server
from tests.providers.asking import chat

from .certificates import self_signed
from .serving import bare_stub, demo, failure, running, until_idle
from .test_channel_arguments import CORE
from .test_drain import SLOW
from .test_drain import serving as process

MODEL = "far/scripted"
EVERY_KIND = {
    "events": [
        {"reasoning": "Let me "},
        {"reasoning": "see."},
        {"text": "It is "},
        {"text": "42"},
        {"text": " 🙂", "repeat": 3},
        {"delay_seconds": 0.01},
        {"tool_call": {"index": 0, "id": "a", "name": "f", "arguments": "{}"}},
        {"tool_call": {"index": 1, "id": "b", "name": "g"}},
        {"tool_call": {"index": 1, "arguments": '{"x": 1}'}},
    ]
}


def settings(port: int, **more) -> BackendSettings:
    """Returns a backend that is a server of ours at a port. Nobody asks how it is, and no breaker opens, unless told."""
    return BackendSettings(
        type="inferwire",
        **{
            "base_url": f"grpc://127.0.0.1:{port}",
            "allow_unlisted": True,
            "health_seconds": 0,
            "breaker_failures": 1000,
            **more,
        },
    )


@contextlib.asynccontextmanager
async def asking(port: int, **more):
    """Yields a server with one backend, named far, and a client of it."""
    async with running(backends={"far": settings(port, **more)}, scripted=False) as (near, client):
        yield near, client


@contextlib.asynccontextmanager
async def serving_at(port: int, **more):
    """Yields a server at a port that was chosen before."""
    server = Server(Settings(address=f"127.0.0.1:{port}", **more))
    await server.start()
    try:
        yield server
        await until_idle(server)
    finally:
        await server.stop(drain_seconds=0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def scripted(script: Any, **stopping) -> pb.CompleteRequest:
    text = script if isinstance(script, str) else json.dumps(script)
    return pb.CompleteRequest(
        prompt=text, sampling=pb.Sampling(seed=7), stopping=pb.Stopping(**stopping), model="scripted"
    )


class Garbage(grpc.GenericRpcHandler):
    """A server that answers with the bytes that a test wrote down, and keeps what it was asked."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.answers: dict[str, bytes] = {}
        self.status: tuple[grpc.StatusCode, bytes] | None = None
        self.stalls = False
        self.is_known = True
        self.request = b""
        self.metadata: dict[str, str] = {}
        self.seconds: float | None = None
        self.left = asyncio.Event()
        self.port = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = (details.method or "").rpartition("/")[2]
        if name == "StreamComplete" and self.is_known:
            return grpc.unary_stream_rpc_method_handler(self._stream)
        if name in self.answers:
            return grpc.unary_unary_rpc_method_handler(functools.partial(self._answer, name))
        return None

    async def _stream(self, data: bytes, context: Any):
        await self._keep(data, context)
        try:
            for event in self.events:
                yield event
            if self.stalls:
                await asyncio.Event().wait()
        finally:
            self.left.set()
        if self.status is not None:
            code, details = self.status
            await context.abort(code, "secret words", (("grpc-status-details-bin", details),))

    async def _answer(self, name: str, data: bytes, context: Any) -> bytes:
        await self._keep(data, context)
        return self.answers[name]

    async def _keep(self, data: bytes, context: Any) -> None:
        self.request = data
        self.metadata = dict(context.invocation_metadata())
        self.seconds = context.time_remaining()


@contextlib.asynccontextmanager
async def garbage(credentials: grpc.ServerCredentials | None = None):
    far = Garbage()
    server = grpc.aio.server(handlers=(far,))
    address = "127.0.0.1:0"
    far.port = (
        server.add_insecure_port(address)
        if credentials is None
        else server.add_secure_port(address, credentials)
    )
    await server.start()
    try:
        yield far
    finally:
        await server.stop(None)


def event(**kind) -> bytes:
    return pb.StreamCompleteResponse(**kind).SerializeToString()


STARTED = event(started=pb.Started(id="there", max_tokens=9))
TEXT = event(text=pb.TextDelta(text="Hello"))
COMPLETION = event(completion=pb.Completion(finish_reason=pb.FINISH_REASON_STOP))
ANSWER = [STARTED, TEXT, COMPLETION]


# What comes through.


def same(events: list[pb.StreamCompleteResponse]) -> list[pb.StreamCompleteResponse]:
    """Returns events without what each server says of itself."""
    for each in events:
        if each.HasField("started"):
            for name in ("id", "model", "backend", "model_instance_id"):
                each.started.ClearField(name)
        if each.HasField("completion"):
            each.completion.ClearField("timing")
    return events


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: None, id="plain"),
        pytest.param(lambda r: setattr(r.output, "progress", True), id="progress"),
        pytest.param(lambda r: setattr(r.output, "message", True), id="message"),
        pytest.param(lambda r: r.stopping.stop.append("2 "), id="stop text"),
        pytest.param(lambda r: setattr(r.stopping, "max_tokens", 4), id="length"),
        pytest.param(lambda r: setattr(r.stopping, "max_tokens", 0), id="empty"),
    ],
)
async def test_an_answer_is_the_one_that_the_other_server_gives(change):
    """Every kind of event arrives, equal and in order, as a stream and as one message."""
    request = scripted(EVERY_KIND)
    change(request)
    async with running() as (far, direct), asking(far.port) as (_, through):
        async with direct.stream(request) as stream:
            expected = same([event async for event in stream])
        whole = await direct.complete(request)
        request.model = MODEL
        async with through.stream(request) as stream:
            actual = [event async for event in stream]
        assert (MODEL, "far") == (actual[0].started.model, actual[0].started.backend)
        assert expected == same(actual)
        gathered = await through.complete(request)
        assert whole.message == gathered.message
        assert whole.completion.finish_reason == gathered.completion.finish_reason
        assert whole.completion.usage == gathered.completion.usage


async def test_a_delta_is_the_bytes_that_came():
    """Not parsed and not written anew: fields of a later contract pass, and events of a later kind are skipped."""
    later = TEXT + b"\xfa\x3e\x03abc"
    unknown = b"\x7a\x03abc"
    async with garbage() as far, asking(far.port) as (near, _):
        far.events = [STARTED, unknown, b"", later, TEXT, unknown, COMPLETION]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{near.port}") as channel:
            call = channel.unary_stream("/inferwire.v1.InferenceService/StreamComplete")(
                chat(model="far/m").SerializeToString()
            )
            events = [data async for data in call]
    assert [later, TEXT] == events[1:-1]
    assert 9 == pb.StreamCompleteResponse.FromString(events[0]).started.max_tokens


async def test_what_a_call_brings_reaches_the_other_server(tmp_path):
    """The caller's id, the operator's key and headers, how many servers it has passed, its deadline, what is left of its time
    limit, and the model's own name there; nothing else of the request is changed.
    """
    key = tmp_path / "key"
    key.write_text("sesame\n")
    async with (
        garbage() as far,
        asking(far.port, api_key_file=str(key), headers={"X-Team": "blue"}) as (near, _),
        bare_stub(near) as stub,
    ):
        far.events = ANSWER
        request = chat(model="far/some/model:1")
        request.stopping.time_limit.FromSeconds(50)
        metadata = (("x-request-id", "mine"), ("x-inferwire-hops", "3"))
        await stub.Complete(request, metadata=metadata, timeout=20)
        assert ("mine", "4", "Bearer sesame", "blue") == tuple(
            far.metadata[name] for name in ("x-request-id", "x-inferwire-hops", "authorization", "x-team")
        )
        assert 15 < far.seconds < 21
        asked = pb.CompleteRequest.FromString(far.request)
        assert "some/model:1" == asked.model
        assert 45 < asked.stopping.time_limit.ToTimedelta().total_seconds() < 50
        asked.model, asked.stopping.time_limit.seconds = request.model, 50
        asked.stopping.time_limit.nanos = 0
        assert request == asked

        # A call without a time limit has the server's own, 600 s, and ends soon after it in any case.
        await stub.Complete(chat(model="far/m"))
        asked = pb.CompleteRequest.FromString(far.request)
        assert 590 < asked.stopping.time_limit.ToTimedelta().total_seconds() < 600
        assert 600 < far.seconds < 610


async def test_vectors_and_tokens_come_from_there():
    """Embed and the questions about tokens are passed on as they are."""
    async with running(models={"demo": demo()}) as (far, direct), asking(far.port) as (_, through):
        texts = ["The name of the city is Paris.", "Hello!"]
        expected = await direct.embed(texts, normalize=False)
        actual = await through.embed(texts, model="far/demo", normalize=False)
        assert expected.embeddings == actual.embeddings
        assert expected.usage == actual.usage
        assert "far/demo" == actual.model

        split = await through.tokenize("Hello", model="far/demo")
        assert "far/demo" == split.model
        assert list((await direct.tokenize("Hello")).token_ids) == list(split.token_ids)
        assert b"Hello" == await through.detokenize(split.token_ids, model="far/demo")
        request = chat("Hello", "demo")
        counted = await direct.count_tokens(request)
        request.model = "far/demo"
        assert counted.tokens == (await through.count_tokens(request)).tokens


def fill(message: Message, arms: dict[str, str]) -> None:
    """Sets every field of a message, and of a oneof the arm that `arms` has chosen."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        is_choice = oneof is not None and len(oneof.fields) > 1
        if is_choice and arms.get(oneof.name, oneof.fields[0].name) != field.name:
            continue
        if field.name == "template_arguments":
            message.template_arguments["a"] = 1.0
        elif field.name == "logit_bias":
            message.logit_bias[1] = 1.0
        elif field.message_type is not None:
            value = getattr(message, field.name)
            fill(value.add() if field.is_repeated else value, arms)
            if not field.is_repeated:
                value.SetInParent()
        else:
            value = {FieldDescriptor.TYPE_STRING: "image/x", FieldDescriptor.TYPE_BYTES: b"x"}.get(
                field.type, 1
            )
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def arms(message: Descriptor, name: str) -> list[str]:
    return [field.name for field in message.oneofs_by_name[name].fields]


@pytest.mark.parametrize("format", arms(pb.ResponseFormat.DESCRIPTOR, "format"))
@pytest.mark.parametrize("part", arms(pb.Part.DESCRIPTOR, "part"))
@pytest.mark.parametrize("input", arms(pb.CompleteRequest.DESCRIPTOR, "input"))
def test_every_field_of_a_request_may_be_honoured_there(input, part, format):
    """The near server refuses nothing: the far one knows what its model can."""
    request = pb.CompleteRequest()
    fill(request, {"input": input, "part": part, "format": format})
    assert [] == unsupported(request, Inferwire.supported, Inferwire.image_types)
    # The oracle sees what is not listed: without a field, the field is refused.
    for gone in ("sampling.mirostat", f"response_format.{format}"):
        found = unsupported(request, Inferwire.supported - {gone}, Inferwire.image_types)
        assert [gone] == [path for path, _ in found]


# How it ends.


async def test_a_cancel_frees_what_the_other_server_held():
    """Whether its answer has begun or not."""
    async with running() as (far, _), asking(far.port) as (near, _), bare_stub(near) as stub:
        for script in ('{"events": [{"delay_seconds": 60}]}', SLOW % 60):
            request = scripted(script)
            request.model, request.output.progress = MODEL, True
            call = stub.StreamComplete(request)
            await call.read()
            assert 1 == far.registry.num_leases
            call.cancel()
            await until_idle(near)
            await until_idle(far)


async def test_the_time_limit_is_kept_there():
    """The answer ends OK with TIME_LIMIT and with all that only the other server knows: its counts, and the message."""
    async with running() as (far, _), asking(far.port) as (_, client):
        request = scripted(SLOW % 60)
        request.model, request.output.message = MODEL, True
        request.stopping.time_limit.FromMilliseconds(500)
        answer = await client.complete(request)
        assert pb.FINISH_REASON_TIME_LIMIT == answer.completion.finish_reason
        assert 1 == answer.completion.usage.completion_tokens
        assert ["a"] == [part.text for part in answer.completion.message.parts]


async def test_the_callers_deadline_ends_the_call_there_too():
    """DEADLINE_EXCEEDED, and nothing is held any more."""
    async with running() as (far, _), asking(far.port) as (near, _), bare_stub(near) as stub:
        request = scripted(SLOW % 60)
        request.model = MODEL
        error = await failure(stub.StreamComplete(request, timeout=0.3))
        assert grpc.StatusCode.DEADLINE_EXCEEDED == error.code
        await until_idle(far)


async def test_a_deadline_is_the_callers_only_where_the_call_has_one():
    """Beyond the time limit there is no deadline of the caller's: whoever says that it passed there is late itself."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        far.status = (grpc.StatusCode.DEADLINE_EXCEEDED, b"")
        expected = {20: grpc.StatusCode.DEADLINE_EXCEEDED, 1000: grpc.StatusCode.UNAVAILABLE}
        ask = functools.partial(stub.Complete, chat(model="far/m"))
        assert expected == {seconds: (await failure(ask(timeout=seconds))).code for seconds in expected}


# What the other server's reasons mean here, where that is not the same.
ELSEWHERE = {
    "MALFORMED_MESSAGE": "UPSTREAM_PROTOCOL_ERROR",
    "MODEL_NOT_FOUND": "UPSTREAM_MODEL_NOT_FOUND",
    "BACKEND_NOT_FOUND": "UPSTREAM_PROTOCOL_ERROR",
    "MODEL_PATH_NOT_ALLOWED": "UPSTREAM_PROTOCOL_ERROR",
    "MODEL_FILE_NOT_FOUND": "UPSTREAM_PROTOCOL_ERROR",
    "TOKEN_MISSING": "UPSTREAM_AUTH",
    "TOKEN_INVALID": "UPSTREAM_AUTH",
    "SCOPE_REQUIRED": "UPSTREAM_AUTH",
    "MODEL_BUSY": "UPSTREAM_PROTOCOL_ERROR",
    "MODEL_CONFIG_CONFLICT": "UPSTREAM_PROTOCOL_ERROR",
    "MODEL_FILE_INVALID": "UPSTREAM_PROTOCOL_ERROR",
    "TEMPLATE_INVALID": "UPSTREAM_PROTOCOL_ERROR",
    "INSUFFICIENT_MEMORY": "UPSTREAM_PROTOCOL_ERROR",
    "LOAD_STALLED": "UPSTREAM_PROTOCOL_ERROR",
    "LOAD_CANCELLED": "UPSTREAM_PROTOCOL_ERROR",
    "RATE_LIMITED": "UPSTREAM_RATE_LIMITED",
    "DRAINING": "UPSTREAM_UNAVAILABLE",
    "DRAIN_TIMEOUT": "UPSTREAM_UNAVAILABLE",
    "CANCELLED": "UPSTREAM_UNAVAILABLE",
    # Nobody's deadline has passed: the call has none.
    "DEADLINE_EXCEEDED": "UPSTREAM_STALLED",
    "INTERNAL": "UPSTREAM_PROTOCOL_ERROR",
    "STREAM_TRUNCATED": "UPSTREAM_PROTOCOL_ERROR",
}
REASONS = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_every_reason_has_its_meaning(has_begun):
    """Before the first delta and after it: its reason here, with that reason's own code, and in none of the far words."""
    expected, actual = {}, {}
    async with running() as (far, _), asking(far.port) as (near, _), bare_stub(near) as stub:
        for reason in REASONS:
            error = {"reason": reason, "message": "secret words", "metadata": {"secret": "words"}}
            request = scripted({"events": [{"text": "a"}] * has_begun + [{"error": error}]})
            request.model = MODEL
            told = await failure(stub.StreamComplete(request))
            meaning = ELSEWHERE.get(reason, reason)
            row = status.TABLE[errors.BY_REASON[meaning]]
            expected[reason] = (meaning, row.after if has_begun else row.before, has_begun)
            actual[reason] = (told.reason, told.code, told.metadata.get("tokensEmitted") == "1")
            assert "secret" not in f"{told} {told.metadata} {told.violations}"
            assert told.message
            is_retried = row.retry and not has_begun
            assert is_retried == (told.retry_delay is not None)
    assert expected == actual


async def test_a_refusal_names_the_fields_and_what_the_caller_calls_the_model():
    """UNSUPPORTED_BY_BACKEND comes back as such, also for vectors."""
    async with running() as (far, _), asking(far.port) as (_, client):
        request = scripted(EVERY_KIND)
        request.model, request.output.logprobs = MODEL, True
        request.response_format.json_object.SetInParent()
        with pytest.raises(InferwireError) as caught:
            await client.complete(request)
        refused = caught.value
        assert (grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_BY_BACKEND") == (
            refused.code,
            refused.reason,
        )
        assert {"model": MODEL, "backend": "far"} == refused.metadata
        assert {
            ("response_format", "this backend cannot honour it"),
            ("output.logprobs", "this backend cannot honour it"),
        } == set(refused.violations)
        with pytest.raises(InferwireError) as caught:
            await client.embed("text", model=MODEL)
        assert "UNSUPPORTED_BY_BACKEND" == caught.value.reason


async def test_what_stands_behind_the_other_server_does_not_close_the_way_to_it():
    """However often its own provider fails, the server is well: no breaker opens, and nothing is NOT_SERVING."""
    async with (
        running() as (far, _),
        asking(far.port, breaker_failures=2) as (near, _),
        bare_stub(near) as stub,
    ):
        provider = near.registry.providers["far"]
        for reason in ("UPSTREAM_UNAVAILABLE", "UPSTREAM_PROTOCOL_ERROR", "UPSTREAM_AUTH") * 2:
            request = scripted({"events": [{"error": {"reason": reason}}]})
            request.model = MODEL
            assert reason == (await failure(stub.StreamComplete(request))).reason
            assert provider.problem is None
        # Of its own failures that is not true.
        for _ in range(2):
            request = scripted({"events": [{"error": {"reason": "INTERNAL"}}]})
            request.model = MODEL
            assert "UPSTREAM_PROTOCOL_ERROR" == (await failure(stub.StreamComplete(request))).reason
        assert "UPSTREAM_UNAVAILABLE" == provider.problem.reason


def test_what_is_kept_of_a_failure(tmp_path):
    """Counts, known codes, paths of the request and a delay of a minute at most. Nothing that anybody may have written."""
    request = pb.CompleteRequest(model="far/m")
    violations = [
        ("stopping.stop[17]", "at most 16"),
        ("chat.messages[2].parts[0].image.data", "900 exceeds 800"),
        ("chat.template_arguments.secret.word", "the secret is 42"),
        ("secret", "words"),
        ("sampling.top_k secret", "words"),
    ]
    told = InferwireError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
        "secret words",
        metadata={
            "model": "m",
            "backend": "local",
            "field": "chat.tools",
            "size": "4096",
            "maxSize": "12a",
            "upstreamCode": "secret",
            "errorId": "secret",
            "secret": "words",
        },
        retry_delay=1e9,
        violations=tuple(Violation(*each) for each in violations),
    )
    found = inferwire.failure(told, request, "far")
    assert errors.RequestTooLarge is type(found)
    assert {"model": "far/m", "backend": "far", "field": "chat.tools", "size": "4096"} == found.metadata
    assert (
        ("stopping.stop[17]", "at most 16"),
        ("chat.messages[2].parts[0].image.data", "900 exceeds 800"),
        ("chat.template_arguments", "this backend refuses it"),
        ("sampling", "this backend refuses it"),
    ) == found.violations
    assert MAX_RETRY_AFTER_SECONDS == found.retry_delay_seconds
    assert "" == found.detail

    filtered = InferwireError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "UPSTREAM_REJECTED",
        "secret words",
        metadata={"backend": "openai", "upstreamCode": "content_filter"},
        retry_delay=-1.0,
    )
    found = inferwire.failure(filtered, request, "far")
    assert {"upstreamCode": "content_filter"} == found.metadata
    assert 0.0 == found.retry_delay_seconds


def test_the_details_of_the_contracts_examples_are_known():
    """Each key that an example of the contract shows is kept, said anew, or another server's own affair."""
    proto = pathlib.Path(__file__).parent.parent / "proto/inferwire/v1/error_reason.proto"
    examples = [json.loads(text) for text in re.findall(r"// Example: (.*)", proto.read_text())]
    assert len(REASONS) == len(examples)
    known = inferwire._COUNTS | {"model", "backend", "field", "upstreamCode", "tokensEmitted"}
    own = {"message", "scope", "quota", "errorId"}
    assert set() == {key for example in examples for key in example["metadata"]} - known - own


def details(reason: str, domain: str = "inferwire.dev", **metadata: str) -> bytes:
    packed = status_pb2.Status(code=14, message="secret words")
    packed.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    return packed.SerializeToString()


@pytest.mark.parametrize(
    ("events", "status", "reason"),
    [
        ([], None, "UPSTREAM_TRUNCATED"),
        ([STARTED], None, "UPSTREAM_TRUNCATED"),
        ([STARTED, TEXT], None, "UPSTREAM_TRUNCATED"),
        ([b"\x0a\x05abc"], None, "UPSTREAM_PROTOCOL_ERROR"),
        ([STARTED, TEXT, b"\x32\x05abc"], None, "UPSTREAM_PROTOCOL_ERROR"),
        ([*ANSWER, TEXT], None, "UPSTREAM_PROTOCOL_ERROR"),
        ([*ANSWER, COMPLETION], None, "UPSTREAM_PROTOCOL_ERROR"),
        (ANSWER, (grpc.StatusCode.UNAVAILABLE, b""), "UPSTREAM_UNAVAILABLE"),
        ([], (grpc.StatusCode.UNAVAILABLE, b""), "UPSTREAM_UNAVAILABLE"),
        ([], (grpc.StatusCode.UNAVAILABLE, b"\xff\xff"), "UPSTREAM_UNAVAILABLE"),
        ([], (grpc.StatusCode.UNAVAILABLE, details("QUEUE_FULL", "elsewhere")), "UPSTREAM_UNAVAILABLE"),
        ([], (grpc.StatusCode.UNAVAILABLE, details("QUEUE_FULL")), "QUEUE_FULL"),
        ([], (grpc.StatusCode.UNAVAILABLE, details("OF_A_LATER_CONTRACT")), "UPSTREAM_PROTOCOL_ERROR"),
        ([], (grpc.StatusCode.RESOURCE_EXHAUSTED, b""), "UPSTREAM_RATE_LIMITED"),
        ([], (grpc.StatusCode.UNAUTHENTICATED, b""), "UPSTREAM_AUTH"),
        ([], (grpc.StatusCode.PERMISSION_DENIED, b""), "UPSTREAM_AUTH"),
        ([], (grpc.StatusCode.CANCELLED, b""), "UPSTREAM_UNAVAILABLE"),
        ([], (grpc.StatusCode.UNKNOWN, b""), "UPSTREAM_PROTOCOL_ERROR"),
        ([], (grpc.StatusCode.INTERNAL, b""), "UPSTREAM_PROTOCOL_ERROR"),
    ],
)
async def test_garbage_is_told_as_a_failure(events, status, reason):
    """Whatever comes, the end is a status with a reason, and OK only for a whole answer."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        far.events, far.status = events, status
        call = stub.StreamComplete(chat(model="far/m"))
        if TEXT in events:
            assert "started" == (await call.read()).WhichOneof("event")
            assert "Hello" == (await call.read()).text.text
        # The very next thing is the status: no completion, and before the first delta nothing at all.
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert reason == InferwireError.of(raised.value).reason
        assert "secret" not in f"{raised.value.details()} {raised.value.trailing_metadata()}"


async def test_the_other_server_knows_how_many_tokens_were_sent():
    """A delta may hold several tokens; the count of who drew them is the one that is told."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        told = details("ENGINE_CRASHED", tokensEmitted="17", model="m")
        far.events, far.status = [STARTED, TEXT], (grpc.StatusCode.ABORTED, told)
        error = await failure(stub.StreamComplete(chat(model="far/m")))
        assert {"model": "far/m", "tokensEmitted": "17"} == error.metadata


async def test_what_is_no_server_of_ours_is_told():
    """A method that is not there, and an answer to a question that is none."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        far.is_known = False
        assert "UPSTREAM_PROTOCOL_ERROR" == (await failure(stub.Complete(chat(model="far/m")))).reason
        far.answers["Embed"] = b"\x0a\x05abc"
        ask = pb.EmbedRequest(model="far/m", inputs=["a", "b"])
        assert "UPSTREAM_PROTOCOL_ERROR" == (await failure(stub.Embed(ask))).reason
        far.answers["Embed"] = pb.EmbedResponse(embeddings=[pb.Embedding(values=[1])]).SerializeToString()
        assert "UPSTREAM_PROTOCOL_ERROR" == (await failure(stub.Embed(ask))).reason
        far.answers["Check"] = b"\x0a\x05abc"
        with pytest.raises(errors.UpstreamProtocolError):
            await near.registry.providers["far"].check()


async def test_a_delta_that_cannot_be_read_is_told_where_it_is_read():
    """A stream passes it on; a unary answer cannot be gathered."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        far.events = [STARTED, b"\x12\x05abc", COMPLETION]
        assert "UPSTREAM_PROTOCOL_ERROR" == (await failure(stub.Complete(chat(model="far/m")))).reason


async def test_who_asks_for_progress_is_told_at_once_that_the_request_has_its_place():
    """`started` does not wait for the first event behind it; and progress is no token."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        request = chat(model="far/m")
        request.output.progress = True
        far.events, far.stalls = [STARTED], True
        call = stub.StreamComplete(request)
        assert 9 == (await call.read()).started.max_tokens
        call.cancel()
        await far.left.wait()
        far.stalls = False
        progress = event(progress=pb.Progress(queue=pb.QueueProgress(position=1)))
        far.events = [STARTED, progress, TEXT]
        far.status = (grpc.StatusCode.UNAVAILABLE, b"")
        error = await failure(stub.StreamComplete(request))
        assert "1" == error.metadata["tokensEmitted"]


@pytest.mark.parametrize("message", [False, True])
async def test_a_server_that_does_not_keep_the_time_limit_is_ended(message):
    """With what there is; but an answer whose message only that server could make has failed."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        far.events, far.stalls = [STARTED, TEXT], True
        request = chat(model="far/m")
        request.output.message = message
        request.stopping.time_limit.FromMilliseconds(100)
        call = stub.Complete(request)
        if message:
            assert "UPSTREAM_STALLED" == (await failure(call)).reason
        else:
            answer = await call
            assert pb.FINISH_REASON_TIME_LIMIT == answer.completion.finish_reason
            assert "Hello" == answer.message.parts[0].text
        await far.left.wait()


async def test_silence_ends_after_the_progress_limit():
    """The other server's call is cancelled then."""
    async with garbage() as far, asking(far.port, progress_seconds=0.2) as (near, _), bare_stub(near) as stub:
        far.events, far.stalls = [STARTED, TEXT], True
        assert "UPSTREAM_STALLED" == (await failure(stub.StreamComplete(chat(model="far/m")))).reason
        await far.left.wait()


async def test_a_server_that_is_killed_in_mid_stream():
    """ABORTED with what was sent until then; the backend is NOT_SERVING at once."""
    with process("--scripted") as far:
        port = int(far.address.rpartition(":")[2])
        async with asking(port) as (near, _), bare_stub(near) as stub:
            request = scripted(SLOW % 60)
            request.model = MODEL
            call = stub.StreamComplete(request)
            assert "started" == (await call.read()).WhichOneof("event")
            assert "a" == (await call.read()).text.text
            far.popen.kill()
            error = await failure(call)
            assert (grpc.StatusCode.ABORTED, "UPSTREAM_UNAVAILABLE") == (error.code, error.reason)
            assert ("far", "1") == (error.metadata["backend"], error.metadata["tokensEmitted"])
            assert "UPSTREAM_UNAVAILABLE" == near.registry.problem(MODEL).reason


# Whether it is there.


async def test_a_server_that_is_not_there_yet_is_said_and_found():
    """The near server starts; the model is FAILED and says why, and READY when the other one has come up."""
    port = free_port()
    async with (
        asking(port, models=["scripted"], health_seconds=0.1) as (near, client),
        bare_stub(near) as stub,
        grpc.aio.insecure_channel(f"127.0.0.1:{near.port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=f"model/{MODEL}")
        )
        while (await watch.read()).status != HealthCheckResponse.NOT_SERVING:
            pass
        model = await client.get_model(MODEL)
        assert models_pb2.MODEL_STATE_FAILED == model.state
        assert errors.UpstreamUnavailable.reason in ErrorReason.Name(model.failure.reason)
        assert "the provider cannot be reached" == model.failure.message
        request = scripted("a b c")
        request.model = MODEL
        error = await failure(stub.Complete(request))
        assert (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE") == (error.code, error.reason)
        async with serving_at(port, scripted=True):
            while (await watch.read()).status != HealthCheckResponse.SERVING:
                pass
            assert models_pb2.MODEL_STATE_READY == (await client.get_model(MODEL)).state
            await stub.Complete(request)
        watch.cancel()


async def test_a_check_asks_whether_it_is_ready_and_what_it_can_do():
    """NOT_SERVING there is a problem here; the capabilities are those of the models that may be asked for."""
    async with running() as (far, _), asking(far.port) as (near, client):
        provider = near.registry.providers["far"]
        assert provider.capabilities.embeddings, "everything, until it has told"
        await provider.check()
        scripted_ones = far.registry.capabilities("scripted")
        assert scripted_ones == provider.capabilities
        assert scripted_ones == (await client.list_backends())[0].capabilities
        await far.health.drain()
        with pytest.raises(errors.UpstreamUnavailable):
            await provider.check()


async def test_two_servers_that_ask_each_other_in_a_circle_stop():
    """Each passes the request on a few times; then it ends, and nothing is held. The breaker has no part in it."""
    first, second = free_port(), free_port()
    ring = {"ring": RouteSettings(candidates=["far/ring"], retries=0)}
    async with (
        serving_at(first, backends={"far": settings(second, breaker_failures=1)}, routes=ring) as one,
        serving_at(second, backends={"far": settings(first, breaker_failures=1)}, routes=ring) as other,
        bare_stub(one) as stub,
    ):
        for ask in (stub.StreamComplete, stub.CountTokens):
            error = await failure(ask(chat(model="ring")))
            assert (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE") == (error.code, error.reason)
        await until_idle(one)
        await until_idle(other)
        # The first server, then eight more; each leases the route and what stands behind it. Twice.
        visits = inferwire.MAX_HOPS + 1
        assert 2 * 2 * visits == one.registry.leases_created + other.registry.leases_created


async def test_the_last_server_of_a_circle_says_what_it_is():
    """The operator reads it in the log and in a failure that stands alone."""
    async with garbage() as far, asking(far.port) as (near, _), bare_stub(near) as stub:
        far.events = ANSWER
        await stub.Complete(chat(model="far/m"), metadata=(("x-inferwire-hops", "7"),))
        error = await failure(stub.Complete(chat(model="far/m"), metadata=(("x-inferwire-hops", "8"),)))
        assert "UPSTREAM_UNAVAILABLE" == error.reason
        assert "in a circle" in error.message


# The way there.


async def test_tls_trusts_the_given_certificates_and_no_others(tmp_path):
    """With the right file an answer comes; with another one, or those that gRPC brings, none does."""
    (key, file), (_, other) = self_signed(tmp_path, "far"), self_signed(tmp_path, "other")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), file.read_bytes())])
    async with garbage(credentials) as far:
        far.events = ANSWER
        url = f"grpcs://127.0.0.1:{far.port}"
        async with asking(0, base_url=url, ca_file=str(file)) as (_, client):
            assert "Hello" == (await client.complete(chat(model="far/m"))).message.parts[0].text
        for ca_file in (str(other), ""):
            async with asking(0, base_url=url, ca_file=ca_file) as (near, _), bare_stub(near) as stub:
                assert "UPSTREAM_UNAVAILABLE" == (await failure(stub.Complete(chat(model="far/m")))).reason


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"base_url": ""}, "base_url"),
        ({"base_url": "http://127.0.0.1:1"}, "grpc://HOST:PORT"),
        ({"base_url": "127.0.0.1:1"}, "grpc://HOST:PORT"),
        ({"base_url": "grpc://far"}, "grpc://HOST:PORT"),
        ({"base_url": "grpc://far:99999"}, "base_url"),
        ({"base_url": "grpc://key@far:1"}, "does not belong"),
        ({"base_url": "grpc://far:1/v1"}, "does not belong"),
        ({"ca_file": "/nowhere.pem"}, "ca_file"),
        ({"base_url": "grpcs://far:1", "ca_file": "/nowhere.pem"}, "ca_file"),
        ({"base_url": "grpcs://far:1", "ca_file": __file__}, "ca_file"),
        ({"proxy": "http://127.0.0.1:1"}, "proxy"),
        ({"query": {"a": "b"}}, "query"),
        ({"headers": {"a b": "c"}}, "headers.a b"),
        ({"headers": {"a": "c\n"}}, "headers.a"),
        ({"headers": {"grpc-a": "c"}}, "headers.grpc-a"),
        ({"options": {"a": 1}}, "options.a"),
    ],
)
async def test_a_configuration_that_cannot_be_is_refused(changed, words):
    """At the start, with the key that is wrong."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        Inferwire("far", settings(1, **changed))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "far.example"])
async def test_a_host_may_be_a_name_or_an_address(host):
    """Also one of version 6."""
    provider = Inferwire("far", settings(1, base_url=f"grpc://{host}:50051"))
    assert "<Inferwire far" in repr(provider)
    await provider.close()


def test_the_core_knows_the_channels_options():
    """gRPC's core ignores keys that it does not know."""
    for key, _ in inferwire.channel_options(settings(1)):
        assert re.search(rb"(?<![a-z_.])" + re.escape(key.encode()) + rb"\0", CORE), key
