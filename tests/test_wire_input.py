"""What comes over the wire and is wrong: each gets its documented code and reason, and nothing else is disturbed."""

from __future__ import annotations

import pathlib

import grpc
import pytest
from google.protobuf import json_format

from inferwire import InferwireError, system, user
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.config import EngineSettings

from .serving import bare_stub, demo, failure, running

STREAM = "/inferwire.v1.InferenceService/StreamComplete"
UNARY = "/inferwire.v1.InferenceService/Complete"


async def raw_failure(channel, method: str, data: bytes) -> InferwireError:
    """Sends bytes as they are and returns the failure."""
    if method == STREAM:
        return await failure(channel.unary_stream(method)(data))
    return await failure(channel.unary_unary(method)(data))


@pytest.mark.parametrize("method", [STREAM, UNARY, "/inferwire.v1.ModelService/Load"])
@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff", b"\x0a\x05abc", b"\x0a\x02\xc3\x28", b"\x00", b"\x12\xff\xff\xff\xff\x7f"],
    ids=["garbage", "truncated", "invalid UTF-8", "field zero", "absurd length"],
)
async def test_bytes_that_are_not_the_message(method, data):
    """INVALID_ARGUMENT MALFORMED_MESSAGE with details, not the library's UNKNOWN."""
    async with running() as (server, client):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            error = await raw_failure(channel, method, data)
        assert (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE") == (error.code, error.reason)
        assert error.metadata["message"].startswith("inferwire.v1.")
        assert (await client.health()).ready


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "input"),
        ('{"prompt": ""}', "prompt"),
        ('{"chat": {}}', "chat.messages"),
        (
            '{"chat": {"messages": [{"role": "ROLE_ASSISTANT", "parts": [{"text": "x"}]}]}}',
            "chat.messages[0].role",
        ),
        ('{"chat": {"messages": [{"role": "ROLE_USER"}]}}', "chat.messages[0].parts"),
        ('{"prompt": "x", "sampling": {"temperature": -1}}', "sampling.temperature"),
        ('{"prompt": "x", "sampling": {"topP": 1.5}}', "sampling.top_p"),
        ('{"prompt": "x", "sampling": {"minP": "NaN"}}', "sampling.min_p"),
        ('{"prompt": "x", "stopping": {"stop": [""]}}', "stopping.stop[0]"),
        ('{"prompt": "x", "model": "no such name!"}', "model"),
        ('{"prompt": "x", "sampling": {"logitBias": {"4000000": 1}}}', "sampling.logit_bias"),
        ('{"prompt": "x", "stopping": {"stopTokenIds": [4000000]}}', "stopping.stop_token_ids"),
    ],
)
async def test_a_wrong_field_is_named(text, field):
    """INVALID_ARGUMENT INVALID_REQUEST with the path of the field, from both doors."""
    async with running(models={"demo": demo()}) as (server, _), bare_stub(server) as stub:
        request = json_format.Parse(text, pb.CompleteRequest())
        for error in (await failure(stub.Complete(request)), await failure(stub.StreamComplete(request))):
            assert (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") == (error.code, error.reason)
            assert field in [violation.field for violation in error.violations]


async def test_a_role_out_of_order_is_named():
    """A SYSTEM message after a USER message has no place."""
    async with running() as (server, _), bare_stub(server) as stub:
        chat = pb.Chat(messages=[user("a"), system("b"), user("c")])
        error = await failure(stub.Complete(pb.CompleteRequest(chat=chat)))
        assert ["chat.messages[1].role"] == [violation.field for violation in error.violations]


async def test_texts_over_their_limit():
    """PROMPT_TOO_LARGE says the size and the limit; beyond the transport's limit the library answers alone."""
    async with (
        running(engine=EngineSettings(max_prompt_bytes=1000)) as (server, client),
        bare_stub(server) as stub,
    ):
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="x" * 1001)))
        assert (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LARGE") == (error.code, error.reason)
        assert ("1001", "1000") == (error.metadata["bytes"], error.metadata["maxBytes"])
        image = pb.CompleteRequest(chat=pb.Chat(messages=[user("look")]))
        image.chat.messages[0].parts.add().image.MergeFrom(
            pb.Image(data=bytes(17 << 20), media_type="image/png")
        )
        error = await failure(stub.Complete(image))
        assert (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE") == (error.code, error.reason)
        assert (
            "chat.messages[0].parts[0].image.data" in error.metadata["field"]
            or "parts[1]" in error.metadata["field"]
        )
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="x" * (33 << 20))))
        assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "") == (error.code, error.reason)
        assert (await client.health()).ready


async def test_an_unknown_model_is_not_found():
    """NOT_FOUND MODEL_NOT_FOUND with the resource's name, from every RPC that takes a model."""
    async with running() as (_, client):
        for call in (
            client.complete(prompt="x", model="nope"),
            client.tokenize("x", model="nope"),
            client.detokenize([1], model="nope"),
            client.embed(["x"], model="nope"),
            client.count_tokens(prompt="x", model="nope"),
            client.get_model("nope"),
        ):
            with pytest.raises(InferwireError) as caught:
                await call
            assert (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND") == (caught.value.code, caught.value.reason)
            assert "nope" == caught.value.resource


async def test_an_unknown_field_and_an_unknown_enum_value_are_survived():
    """A newer caller's field is skipped; a value that an enum does not have is refused by name."""
    async with running() as (server, _), bare_stub(server) as stub:
        request = pb.CompleteRequest.FromString(
            pb.CompleteRequest(prompt="a", model="scripted").SerializeToString() + b"\xfa\x7f\x01z"
        )
        assert (await stub.Complete(request)).HasField("completion")
        chat = pb.Chat(messages=[pb.Message(role=99, parts=[pb.Part(text="x")])])
        error = await failure(stub.Complete(pb.CompleteRequest(chat=chat)))
        assert "chat.messages[0].role" == error.violations[0].field


async def test_an_unexpected_exception_tells_nothing(monkeypatch):
    """INTERNAL with an errorId; no type, no text, no path."""
    async with running() as (server, _), bare_stub(server) as stub:

        def explode() -> None:
            raise RuntimeError(f"secret {pathlib.Path(__file__)}")

        with monkeypatch.context() as patch:
            patch.setattr(server.registry, "models", explode)
            error = await failure(stub.ListModels(pb.ListModelsRequest()))
        assert (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error") == (
            error.code,
            error.reason,
            error.message,
        )
        assert 16 == len(error.metadata["errorId"])
        assert "secret" not in str(error.metadata)
