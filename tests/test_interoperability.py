"""Clients that nobody here wrote: `buf curl` by reflection, and Python by reflection with no generated code."""

from __future__ import annotations

import asyncio
import base64
import json
import pathlib
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from .serving import demo, running

BUF = pathlib.Path(sys.executable).with_name("buf")


async def buf_curl(port: int, method: str, request: dict, *flags: str) -> tuple[int, list[dict], str]:
    """Calls a method; returns the exit code, the messages, and what stands on standard error."""
    process = await asyncio.create_subprocess_exec(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, "-d", json.dumps(request),
        f"http://127.0.0.1:{port}/{method}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    decoder, text, messages = json.JSONDecoder(), output.decode().strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].strip()
    return process.returncode or 0, messages, errors.decode()


async def test_buf_curl_completes_streams_and_reads_errors():
    """By reflection alone: a unary answer, a stream, a failure with its details, health."""
    async with running(models={"demo": demo()}) as (server, _):
        question = {
            "chat": {
                "messages": [{"role": "ROLE_USER", "parts": [{"text": "What is the capital of France?"}]}]
            },
            "sampling": {"temperature": 0},
        }
        code, messages, _ = await buf_curl(server.port, "inferwire.v1.InferenceService/Complete", question)
        assert 0 == code
        assert "The capital of France is Paris." == messages[0]["message"]["parts"][0]["text"]

        code, messages, _ = await buf_curl(
            server.port, "inferwire.v1.InferenceService/StreamComplete", question
        )
        assert 0 == code
        assert "started" in messages[0]
        assert "completion" in messages[-1]
        assert "The capital of France is Paris." == "".join(m["text"]["text"] for m in messages[1:-1])

        wrong = {"prompt": "x", "sampling": {"topP": 2}}
        code, messages, errors = await buf_curl(server.port, "inferwire.v1.InferenceService/Complete", wrong)
        assert code != 0
        assert [] == messages
        told = json.loads(errors)
        details = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in told["details"]}
        assert "invalid_argument" == told["code"]
        info = error_details_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
        assert ("INVALID_REQUEST", "inferwire.dev") == (info.reason, info.domain)
        assert "sampling.top_p" in told["message"]

        health = {"service": "model/demo"}
        code, messages, _ = await buf_curl(server.port, "grpc.health.v1.Health/Check", health)
        assert (0, [{"status": "SERVING"}]) == (code, messages)


async def test_python_by_reflection_needs_no_generated_code():
    """A client that knows nothing but the name of the service."""
    async with running() as (server, _):

        def call() -> list[dict]:
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
                service = pool.FindServiceByName("inferwire.v1.InferenceService")
                method = service.FindMethodByName("StreamComplete")
                request = message_factory.GetMessageClass(method.input_type)()
                json_format.ParseDict(
                    {"prompt": '{"events": [{"text": "hi"}]}'}, request, descriptor_pool=pool
                )
                stream = channel.unary_stream(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
                )
                return [json_format.MessageToDict(event) for event in stream(request)]

        events = await asyncio.to_thread(call)
        assert ["started", "text", "completion"] == [next(iter(event)) for event in events]


async def test_reflection_is_off_when_it_is_set_off():
    """Beyond loopback reflection is off unless the operator says otherwise; the setting is obeyed here too."""
    async with running(reflection=False) as (server, _):
        code, _, errors = await buf_curl(server.port, "inferwire.v1.InferenceService/Health", {})
        assert code != 0
        assert "failed to find service" in errors
