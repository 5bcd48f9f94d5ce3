"""The web port: what it answers is what gRPC answers, over Connect with protobuf and with JSON and over gRPC-Web."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import logging
import os
import pathlib
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.errors import ConnectError
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from inferwire import InferwireError, user
from inferwire.gather import gather
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import rpc
from inferwire_server import web as web_port
from inferwire_server.channel_arguments import MAX_MESSAGE_BYTES
from inferwire_server.config import BackendSettings, Settings
from inferwire_server.ports import AddressInUse
from inferwire_server.server import Server

from . import certificates
from .serving import bare_stub, demo, endless, running, until_idle
from .test_access import KEYS, KEYS_FILE
from .test_drain import serving as serving_process
from .test_slow_readers import FLOOD
from .web_calls import INFERENCE, WAYS, WebCaller, calling, details, each_way, reason

WEB = {"web_address": "127.0.0.1:0"}
COMPLETE = "/inferwire.v1.InferenceService/Complete"
STREAM = "/inferwire.v1.InferenceService/StreamComplete"
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
MODELS = models_pb2.DESCRIPTOR.services_by_name["ModelService"]
EVERYTHING = json.dumps(
    {
        "events": [
            {"reasoning": "hm"},
            {"text": "a"},
            {"tool_call": {"index": 0, "id": "c", "name": "f"}},
            {"tool_call": {"index": 0, "arguments": '{"x":'}},
            {"text": "λόγος 🙂"},
            {"tool_call": {"index": 0, "arguments": "1}"}},
        ]
    }
)


def scripted(*events: dict[str, Any], **fields: Any) -> pb.CompleteRequest:
    """Returns a request that the scripted backend answers so."""
    return pb.CompleteRequest(model="scripted", prompt=json.dumps({"events": list(events)}), **fields)


SLOW = scripted({"text": "a"}, {"delay_seconds": 600}, {"text": "b"})


@contextlib.asynccontextmanager
async def posting(server: Server, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yields an HTTP client of the web port."""
    async with httpx.AsyncClient(base_url=server.web.url, trust_env=False, **options) as http:
        yield http


async def until_free(server: Server) -> None:
    """Waits until no call holds a model."""
    while server.registry.num_leases:
        await server.registry.changes.after(server.registry.changes.revision)


class TestAnswers:
    @each_way
    async def test_a_stream_obeys_the_law_and_gathers_to_the_unary_answer(self, way):
        """started, deltas, one completion; joined they are what Complete gives, and what gRPC gives."""
        async with running(**WEB) as (server, client), calling(server, way) as web:
            request = pb.CompleteRequest(model="scripted", prompt=EVERYTHING)
            request.sampling.seed = 1
            events = await web.events(request)
            kinds = [event.WhichOneof("event") for event in events]
            assert [
                "started",
                "reasoning",
                "text",
                "tool_call",
                "tool_call",
                "text",
                "tool_call",
                "completion",
            ] == kinds
            unary = await web.unary("Complete", request)
            assert gather(events).message == unary.message == (await client.complete(request)).message
            assert pb.FINISH_REASON_TOOL_CALLS == unary.completion.finish_reason

    @each_way
    async def test_a_local_model_answers(self, way):
        """An engine process, the demo model, a chat: the same words as over gRPC."""
        async with running(models={"demo": demo(deterministic=True)}, **WEB) as (server, client):
            request = pb.CompleteRequest(model="demo", chat=pb.Chat(messages=[user("Tell me a story.")]))
            request.stopping.max_tokens = 12
            request.sampling.temperature = 0
            request.output.logprobs = True
            async with calling(server, way) as web:
                unary = await web.unary("Complete", request)
                assert gather(await web.events(request)).message == unary.message
            expected = await client.complete(request)
            assert expected.message == unary.message
            assert pytest.approx([each.logprob for each in expected.logprobs], abs=1e-3) == [
                each.logprob for each in unary.logprobs
            ]

    async def test_an_event_passes_before_the_next_is_there(self):
        """A stream is a stream: its first events are read while the server still waits."""
        async with running(**WEB) as (server, _):
            for way in WAYS:
                async with calling(server, way) as web:
                    events = web.stream("StreamComplete", SLOW)
                    kinds = [(await anext(events)).WhichOneof("event") for _ in range(2)]
                    assert ["started", "text"] == kinds
                    assert 1 == server.registry.num_leases
                    await events.aclose()
                    await until_free(server)

    @each_way
    async def test_every_service_is_there(self, way):
        """Questions, ModelService and grpc.health.v1 answer as over gRPC; a Watch of models streams."""
        async with running(models={"demo": demo()}, scripted=True, **WEB) as (server, client):  # noqa: SIM117
            async with calling(server, way) as web:
                assert await client.list_models() == await web.unary("ListModels", pb.ListModelsRequest())
                split = await web.unary("Tokenize", pb.TokenizeRequest(model="demo", text="naïve 🙂"))
                assert await client.tokenize("naïve 🙂", model="demo") == split
                assert not (
                    await web.unary("Unload", models_pb2.UnloadRequest(model="nobody"), service=MODELS)
                ).was_loaded
                async with contextlib.aclosing(web.stream("WatchModels", pb.WatchModelsRequest())) as watch:
                    assert ["demo", "scripted"] == [model.name for model in (await anext(watch)).models]
                check = await web.unary("Check", health_pb2.HealthCheckRequest(), service=HEALTH)
                assert health_pb2.HealthCheckResponse.SERVING == check.status
                listed = await web.unary("List", health_pb2.HealthListRequest(), service=HEALTH)
                assert "model/demo" in listed.statuses
                asked = health_pb2.HealthCheckRequest(service="model/demo")
                async with contextlib.aclosing(web.stream("Watch", asked, service=HEALTH)) as watch:
                    assert health_pb2.HealthCheckResponse.SERVING == (await anext(watch)).status
                with pytest.raises(ConnectError) as caught:
                    await web.unary("Check", health_pb2.HealthCheckRequest(service="no"), service=HEALTH)
                assert Code.NOT_FOUND == caught.value.code

    @each_way
    async def test_what_another_server_of_ours_sent_passes_as_it_is(self, way):
        """Events that a remote backend of ours did not read arrive whole, as protobuf and as JSON."""
        async with running() as (origin, _):
            backend = BackendSettings(
                type="inferwire", base_url=f"grpc://127.0.0.1:{origin.port}", models=["scripted"]
            )
            async with running(backends={"far": backend}, scripted=False, **WEB) as (server, client):
                request = pb.CompleteRequest(model="far/scripted", prompt=EVERYTHING)
                async with calling(server, way) as web:
                    assert (
                        gather(await web.events(request)).message == (await client.complete(request)).message
                    )


class TestFailures:
    @each_way
    @pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
    @pytest.mark.parametrize(
        "refused",
        [
            pb.CompleteRequest(model="nope", prompt="x"),
            pb.CompleteRequest(model="scripted"),
            scripted(
                {"error": {"reason": "QUEUE_FULL", "retry_delay_seconds": 2.5, "metadata": {"model": "é"}}}
            ),
            scripted({"error": {"reason": "INSUFFICIENT_MEMORY"}}),
            scripted({"text": "a"}, {"error": {"reason": "ENGINE_CRASHED", "message": "100 % so\nmit é 🙂"}}),
        ],
        ids=["model not found", "violations", "retry", "no retry", "in the middle"],
    )
    async def test_a_failure_is_told_as_over_grpc(self, way, name, refused):
        """Code, message, every detail byte for byte, and when to come back; before the first event and after it."""
        async with running(**WEB) as (server, _), bare_stub(server) as stub, calling(server, way) as web:
            call = getattr(stub, name)(refused)
            with pytest.raises(grpc.aio.AioRpcError) as expected:
                await (call if name == "Complete" else _read_all(call))
            trailers = dict(expected.value.trailing_metadata())
            with pytest.raises(ConnectError) as caught:
                await (web.unary(name, refused) if name == "Complete" else web.events(refused))
            told = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            code = caught.value.code.name.replace("CANCELED", "CANCELLED")
            assert expected.value.code().name == code
            assert (told.message, list(told.details)) == (
                caught.value.message,
                list(details(caught.value).details),
            )
            assert trailers.get("grpc-retry-pushback-ms") == web.pushback

    @each_way
    @pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
    async def test_a_defect_has_an_id_and_no_words(self, way, name, caplog, monkeypatch):
        """INTERNAL with the errorId that the log has; what was raised stays in the log."""
        async with running(**WEB) as (server, _), calling(server, way) as web:

            async def broken(*_):
                for nothing in ():
                    yield nothing
                raise ZeroDivisionError("/secret/path")

            backend = server.registry.backends()[0]
            monkeypatch.setattr(backend, "stream", broken)
            with pytest.raises(ConnectError) as caught:
                await (web.unary(name, SLOW) if name == "Complete" else web.events(SLOW))
            assert (Code.INTERNAL, "internal error", "INTERNAL") == (
                caught.value.code,
                caught.value.message,
                reason(caught.value),
            )
            assert "secret" not in str(details(caught.value))
            info = error_details_pb2.ErrorInfo()
            assert details(caught.value).details[0].Unpack(info)
            assert info.metadata["errorId"] in caplog.text

    @each_way
    @pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
    async def test_a_deadline_ends_the_call(self, way, name):
        """DEADLINE_EXCEEDED, whoever notices first, and nothing is held."""
        async with running(**WEB) as (server, _), calling(server, way) as web:
            with pytest.raises(ConnectError) as caught:
                await (
                    web.unary(name, SLOW, timeout_ms=200)
                    if name == "Complete"
                    else web.events(SLOW, timeout_ms=200)
                )
            assert Code.DEADLINE_EXCEEDED == caught.value.code
            await until_free(server)

    @pytest.mark.parametrize(
        ("path", "headers"),
        [
            (COMPLETE, {"content-type": "application/json", "connect-timeout-ms": "100"}),
            (STREAM, {"content-type": "application/connect+json", "connect-timeout-ms": "100"}),
            (STREAM, {"content-type": "application/grpc-web+json", "grpc-timeout": "100m"}),
        ],
    )
    async def test_a_deadline_is_the_servers_to_keep(self, path, headers, caplog):
        """A caller that only says it and waits is told, in its protocol, and the log says the same."""
        caplog.set_level(logging.INFO)
        async with running(**WEB) as (server, _), posting(server, timeout=60) as http:
            body = json_format.MessageToJson(SLOW).encode()
            body = body if path == COMPLETE else struct.pack(">BI", 0, len(body)) + body
            answer = await http.post(path, content=body, headers=headers)
            assert (b"deadline_exceeded" in answer.content) or (b"grpc-status: 4" in answer.content)
            await until_free(server)
        assert ["DEADLINE_EXCEEDED"] == [line["code"] for line in calls_in(caplog)]


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass


def calls_in(caplog) -> list[dict[str, Any]]:
    """Returns what the log has of each call."""
    told = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [entry for entry in told if entry["event"] == "rpc"]


class TestEnds:
    @each_way
    @pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
    async def test_a_caller_that_leaves_frees_what_it_held(self, way, name, caplog):
        """A closed connection cancels the call, also while an answer is computed of which nothing was sent."""
        caplog.set_level(logging.INFO)
        async with running(models={"demo": demo()}, **WEB) as (server, _), calling(server, way) as web:
            call = asyncio.ensure_future(
                web.unary(name, endless()) if name == "Complete" else web.events(endless())
            )
            while not server.registry.num_leases:
                await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.01)
            call.cancel()
            await asyncio.wait([call])
            await until_idle(server)
        assert [("CANCELLED", "CANCELLED")] == [(it["code"], it["reason"]) for it in calls_in(caplog)]

    async def test_a_caller_that_does_not_read_is_ended(self, caplog, monkeypatch):
        """After the limit what it held is free; a little later its connection is, too. Others do not notice."""
        monkeypatch.setattr(rpc, "ABORT_SECONDS", 0.5)
        caplog.set_level(logging.INFO)
        async with running(write_stall_seconds=0.5, **WEB) as (server, client):
            reader, writer = await begin(server, FLOOD)
            await reader.readuntil(b"\r\n\r\n")
            beside = await client.complete(scripted({"text": "y" * 100, "repeat": 2000}))
            assert 200_000 == len(beside.message.parts[0].text)
            await until_free(server)
            await until_nobody_is_connected(server)
            writer.close()
        assert ("ABORTED", "CLIENT_TOO_SLOW") in [(it["code"], it["reason"]) for it in calls_in(caplog)]

    async def test_a_caller_that_reads_again_finds_its_status(self):
        """Behind what was sent stands why it was ended."""
        async with running(write_stall_seconds=0.5, **WEB) as (server, _):
            reader, writer = await begin(server, FLOOD)
            await reader.readuntil(b"\r\n\r\n")
            await until_free(server)
            rest = await reader.read(-1)
            writer.close()
        assert b"CLIENT_TOO_SLOW" in rest[-2000:]
        assert b'"aborted"' in rest[-2000:]

    async def test_an_answer_that_nobody_reads_does_not_stay(self, caplog, monkeypatch):
        """What was answered whole holds no call any more, and its connection no longer than the limit."""
        monkeypatch.setattr(rpc, "ABORT_SECONDS", 0.0)
        caplog.set_level(logging.INFO)
        async with running(write_stall_seconds=0.3, **WEB) as (server, _):
            script = json.dumps({"events": [{"text": "x" * 1000, "repeat": 20_000}]})
            reader, writer = await begin(server, script, path=COMPLETE, content_type="application/json")
            await reader.readuntil(b"\r\n\r\n")
            await until_nobody_is_connected(server)
            writer.close()
        assert ["OK"] == [line["code"] for line in calls_in(caplog)]

    async def test_a_request_that_does_not_arrive_is_not_waited_for(self, monkeypatch):
        """Neither its headers nor its body may take for ever; a stream that runs longer than that is not touched."""
        monkeypatch.setattr(web_port, "REQUEST_SECONDS", 0.3)
        async with running(**WEB) as (server, _):
            for sent in (b"", b"POST ", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.web.address.port)
                writer.write(sent)
                with contextlib.suppress(ConnectionResetError):
                    assert b"HTTP/1.1 200" not in await reader.read(-1)
                writer.close()
            async with calling(server, "connect") as web:
                events = await web.events(scripted({"text": "a"}, {"delay_seconds": 0.7}, {"text": "b"}))
                assert "completion" == events[-1].WhichOneof("event")


async def until_nobody_is_connected(server: Server) -> None:
    """Waits until the web port has no connection. The test's timeout is the guard."""
    while server.web._server.server_state.connections:
        await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.01)


async def begin(
    server: Server,
    prompt: str,
    *,
    path: str = STREAM,
    content_type: str = "application/connect+json",
    version: str = "1.1",
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request by hand, and returns the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.web.address.port)
    body = json.dumps({"model": "scripted", "prompt": prompt}).encode()
    if path == STREAM:
        body = struct.pack(">BI", 0, len(body)) + body
    writer.write(
        f"POST {path} HTTP/{version}\r\nhost: a\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}"
        "\r\nconnection: close\r\n\r\n".encode()
        + body
    )
    return reader, writer


class TestRequests:
    @pytest.mark.parametrize(
        ("content_type", "data", "violations"),
        [
            ("application/proto", b"\xff\xff\xff", []),
            ("application/proto", b"\x12\x02\xc3\x28", []),
            ("application/grpc-web+proto", b"\x12\x05abc", []),
            ("application/json", b"", []),
            ("application/json", b"{", []),
            ("application/json", b"\xff", []),
            ("application/json", b"null", []),
            ("application/json", b"[" * 200_000, []),
            ("application/json", b'{"prompt": "a", "prompt": "b"}', []),
            ("application/json", b'{"stopping": {"maxTokens": ' + b"9" * 5000 + b"}}", []),
            ("application/json; charset=utf-8", b'{"promt": "x"}', ["promt"]),
            ("application/json", b'{"sampling": {"temp": 1}}', ["sampling.temp"]),
            ("application/json", b'{"sampling": {"temperature": "x"}}', ["sampling.temperature"]),
            ("application/json", b'{"stopping": {"timeLimit": "1"}}', ["stopping.timeLimit"]),
            ("application/json", b'{"prompt": 3}', []),
            (
                "application/json",
                b'{"chat": {"messages": [{"role": "ROLE_USER"}, {"role": "nope"}]}}',
                ["chat.messages[1].role"],
            ),
            ("application/grpc-web+json", b'{"promt": "x"}', ["promt"]),
        ],
        ids=lambda value: repr(value)[:24],
    )
    async def test_a_body_that_is_not_the_message(self, content_type, data, violations):
        """INVALID_ARGUMENT MALFORMED_MESSAGE with details; the caller's own field is named, no parser's words are told."""
        async with running(**WEB) as (server, client), posting(server) as http:
            if "grpc-web" in content_type:
                data = struct.pack(">BI", 0, len(data)) + data
            answer = await http.post(COMPLETE, content=data, headers={"content-type": content_type})
            if "grpc-web" in content_type:
                trailers = dict(
                    line.split(": ") for line in answer.content[5:].decode().split("\r\n") if line
                )
                assert "3" == trailers["grpc-status"]
                packed = base64.b64decode(trailers["grpc-status-details-bin"] + "===")
                told = status_pb2.Status.FromString(packed)
                info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
                assert told.details[0].Unpack(info)
                assert "MALFORMED_MESSAGE" == info.reason
                assert bool(violations) == any(each.Unpack(fields) for each in told.details)
                assert violations == [each.field for each in fields.field_violations]
            else:
                told = answer.json()
                assert (400, "invalid_argument") == (answer.status_code, told["code"])
                assert "MALFORMED_MESSAGE" == told["details"][0]["debug"]["reason"]
                assert violations == [
                    each["field"]
                    for detail in told["details"][1:]
                    for each in detail["debug"]["fieldViolations"]
                ]
                assert "Error" not in told["message"]
                assert "has no field named" not in answer.text
            assert (await client.health()).ready

    async def test_no_bytes_disturb_the_server(self):
        """Whatever comes is refused in the protocol that it pretends to be, never by INTERNAL or UNKNOWN."""
        draw = random.Random(20261121)
        whole = json.dumps(
            {"model": "nope", "chat": {"messages": [{"role": "ROLE_USER", "parts": [{"text": "x"}]}]}}
        )
        async with running(**WEB) as (server, client), posting(server) as http:
            for content_type in ("application/json", "application/proto", "application/connect+json"):
                for _ in range(40):
                    data = bytearray(whole.encode())
                    for _ in range(draw.randint(1, 4)):
                        data[draw.randrange(len(data))] = draw.randrange(256)
                    cut = bytes(data[: draw.randint(0, len(data))])
                    answer = await http.post(COMPLETE, content=cut, headers={"content-type": content_type})
                    assert answer.status_code in (400, 404, 415), answer.text
                    assert answer.json()["code"] in ("invalid_argument", "not_found")
            assert (await client.health()).ready

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"", Code.UNIMPLEMENTED),
            (b"\x00\x00", Code.INVALID_ARGUMENT),
            (b"\x00\x00\x00\x00\x09{}", Code.INVALID_ARGUMENT),
            (b"\x40\x00\x00\x00\x02{}", Code.INVALID_ARGUMENT),
            (b"\x01\x00\x00\x00\x02{}", Code.INTERNAL),
            (b"\x00\xff\xff\xff\xff{}", Code.RESOURCE_EXHAUSTED),
            (2 * (b"\x00\x00\x00\x00\x0e" + b'{"prompt":"x"}'), Code.UNIMPLEMENTED),
        ],
        ids=["none", "cut", "short", "flags", "compressed", "absurd", "two"],
    )
    async def test_a_frame_that_is_none(self, data, code):
        """The library refuses what is not one message in its frame."""
        async with running(**WEB) as (server, _), posting(server) as http:
            answer = await http.post(
                STREAM, content=data, headers={"content-type": "application/connect+json"}
            )
            assert 200 == answer.status_code
            assert code.value == json.loads(answer.content[5:])["error"]["code"]

    @pytest.mark.parametrize(
        ("method", "path", "content_type", "status"),
        [
            ("POST", "/", "application/json", 404),
            ("POST", "/inferwire.v1.InferenceService/Nope", "application/json", 404),
            ("POST", "/inferwire.v1.InferenceService/../InferenceService/Complete", "application/json", 404),
            (
                "POST",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "application/json",
                404,
            ),
            ("GET", COMPLETE, "application/json", 405),
            ("GET", COMPLETE + "?encoding=json&message=%7B%7D", "", 405),
            ("PUT", COMPLETE, "application/json", 405),
            ("DELETE", STREAM, "application/connect+json", 405),
            ("OPTIONS", COMPLETE, "application/json", 405),
            ("POST", COMPLETE, "", 415),
            ("POST", COMPLETE, "text/plain", 415),
            ("POST", COMPLETE, "application/x-www-form-urlencoded", 415),
            ("POST", COMPLETE, "application/connect+json", 415),
            ("POST", COMPLETE, "application/grpc-web-text", 415),
            ("POST", COMPLETE, "application/grpc", 415),
            ("POST", COMPLETE, "application/grpc+proto", 415),
            ("POST", STREAM, "application/json", 415),
        ],
    )
    async def test_what_is_no_call_is_refused_in_words(self, method, path, content_type, status):
        """The status of HTTP that says so, and a sentence for who sits at a terminal."""
        async with running(**WEB) as (server, _), posting(server) as http:
            headers = {"content-type": content_type} if content_type else {}
            answer = await http.request(method, path, content=b"{}", headers=headers)
            assert status == answer.status_code
            assert {"code", "message"} == set(answer.json())
            assert answer.json()["message"]

    async def test_headers_that_are_not_text_are_refused(self, caplog):
        """The library would stumble over them."""
        async with running(**WEB) as (server, _), posting(server) as http:
            answer = await http.post(COMPLETE, content=b"{}", headers=[(b"x-request-id", b"\xff\xfe")])
            assert (400, "invalid_argument") == (answer.status_code, answer.json()["code"])
            for timeout in ("x", "-1", "99999999999"):
                answer = await http.post(
                    COMPLETE,
                    json={},
                    headers={"connect-timeout-ms": timeout, "content-type": "application/json"},
                )
                assert (400, "invalid_argument") == (answer.status_code, answer.json()["code"])
        assert "Traceback" not in caplog.text

    @each_way
    async def test_messages_have_the_sizes_of_grpc(self, way):
        """Several megabytes pass both ways; beyond 32 MiB stands the library's bare RESOURCE_EXHAUSTED."""
        async with running(**WEB) as (server, _), calling(server, way) as web:
            text = "ab é " * 500_000
            script = json.dumps({"events": [{"text": text}]}, ensure_ascii=False)
            asked = pb.CompleteRequest(model="scripted", prompt=script)
            assert text == (await web.unary("Complete", asked)).message.parts[0].text
            assert text == (await web.events(asked))[1].text.text
            for name in ("Complete", "StreamComplete"):
                asked = pb.CompleteRequest(prompt="a" * (MAX_MESSAGE_BYTES + 1))
                with pytest.raises(ConnectError) as caught:
                    await (web.unary(name, asked) if name == "Complete" else web.events(asked))
                assert Code.RESOURCE_EXHAUSTED == caught.value.code

    async def test_an_answer_beyond_the_limit_is_not_sent(self):
        """RESOURCE_EXHAUSTED, as over gRPC."""
        async with running(**WEB) as (server, _), calling(server, "connect", send_compression=None) as web:
            asked = scripted({"text": "x" * 1000, "repeat": 34_000})
            with pytest.raises(ConnectError) as caught:
                await web.unary("Complete", asked)
            assert Code.RESOURCE_EXHAUSTED == caught.value.code

    async def test_a_compressed_request_is_read_and_cannot_burst(self):
        """gzip is understood; what it would unfold beyond the limit, or what is no gzip, is refused."""
        async with running(**WEB) as (server, _), posting(server) as http:
            headers = {
                "content-type": "application/json",
                "content-encoding": "gzip",
                "accept-encoding": "gzip",
            }
            body = json.dumps({"model": "scripted", "prompt": EVERYTHING}).encode()
            answer = await http.post(COMPLETE, content=gzip.compress(body), headers=headers)
            assert 200 == answer.status_code
            # An event is smaller than what gzip would put around it.
            assert "identity" == answer.headers["content-encoding"]
            bomb = gzip.compress(b" " * (MAX_MESSAGE_BYTES * 8))
            answer = await http.post(COMPLETE, content=bomb, headers=headers)
            assert "resource_exhausted" == answer.json()["code"]
            for broken in (b"no gzip", gzip.compress(body)[:-9]):
                answer = await http.post(COMPLETE, content=broken, headers=headers)
                assert {
                    "code": "invalid_argument",
                    "message": "the body is not what gzip compressed",
                } == answer.json()

    @pytest.mark.parametrize(
        ("name", "function"), [("Complete", "parse"), ("Complete", "serialize"), ("StreamComplete", "parse")]
    )
    async def test_long_json_keeps_nobody_waiting(self, name, function, monkeypatch):
        """What takes long to read or to write is read and written in a thread: others are answered meanwhile."""
        begun, others_were_answered = threading.Event(), threading.Event()
        original = getattr(web_port._JsonCodec, function)

        def when_others_were_answered(*arguments):
            begun.set()
            assert others_were_answered.wait(10), "nobody was answered meanwhile"
            return original(*arguments)

        monkeypatch.setattr(web_port._JsonCodec, function, when_others_were_answered)
        asked = scripted(*({"text": "x" * 100} for _ in range(1000)))
        async with running(**WEB) as (server, client), calling(server, "connect-json") as web:
            slow = asyncio.ensure_future(web.unary(name, asked) if name == "Complete" else web.events(asked))
            while not (begun.is_set() or slow.done()):
                await client.health()
            await client.health()
            others_were_answered.set()
            answer = await slow
            message = answer.message if name == "Complete" else gather(answer).message
            assert 100_000 == len(message.parts[0].text)

    async def test_a_proxy_that_speaks_http_1_0(self):
        """nginx does so unless it is told otherwise: the answer ends with the connection."""
        async with running(**WEB) as (server, _):
            reader, writer = await begin(server, EVERYTHING, version="1.0")
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            writer.close()
        assert b"transfer-encoding" not in head.lower()
        assert b"x-accel-buffering: no" in head.lower()
        assert b'"completion"' in body
        assert b"\x02\x00\x00\x00\x02{}" == body[-7:]


class TestLog:
    @each_way
    async def test_each_call_is_one_line_with_the_callers_id(self, way, caplog):
        """As over gRPC: method, id, code, what the model did; and not a word of what was written."""
        caplog.set_level(logging.DEBUG)
        async with running(**WEB) as (server, _), calling(server, way) as web:
            asked = pb.CompleteRequest(model="scripted", prompt="canary")
            await web.unary("Complete", asked, headers={"x-request-id": "mine-1"})
            events = [
                event
                async for event in web.stream("StreamComplete", asked, headers={"x-request-id": "mine-2"})
            ]
            assert "mine-2" == events[0].started.id
            with pytest.raises(ConnectError):
                await web.unary("Complete", pb.CompleteRequest(model="nope", prompt="canary"))
        lines = calls_in(caplog)
        assert [("Complete", "mine-1", "OK"), ("StreamComplete", "mine-2", "OK")] == [
            (line["method"], line["id"], line["code"]) for line in lines[:2]
        ]
        assert ("NOT_FOUND", "MODEL_NOT_FOUND", 3) == (lines[2]["code"], lines[2]["reason"], len(lines))
        assert "canary" not in caplog.text


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


class TestPages:
    """CORS: whose pages may call."""

    @pytest.mark.parametrize(
        ("origins", "origin", "allowed"),
        [
            ([], "https://a.example", None),
            (["https://a.example"], "https://a.example", "https://a.example"),
            (["https://a.example", "http://b:1"], "http://b:1", "http://b:1"),
            (["https://a.example"], "https://a.example.evil", None),
            (["https://a.example"], "http://a.example", None),
            (["https://a.example"], "https://a.example:8443", None),
            (["https://a.example"], "null", None),
            (["*"], "https://anybody", "*"),
            (["null"], "null", "null"),
        ],
    )
    async def test_only_pages_of_the_origins_named_may_call(self, origins, origin, allowed):
        """Others get neither a preflight nor an answer, and nothing is computed for them."""
        async with running(**WEB, web_origins=origins) as (server, _), posting(server) as http:
            before = server.gate.changes.revision
            preflight = await http.options(COMPLETE, headers={"origin": origin, **PREFLIGHT})
            answer = await http.post(COMPLETE, json={"prompt": "x"}, headers={"origin": origin})
            told = "access-control-allow-origin"
            assert (allowed, allowed) == (preflight.headers.get(told), answer.headers.get(told))
            assert ((204, 200) if allowed else (403, 403)) == (preflight.status_code, answer.status_code)
            assert bool(allowed) == (server.gate.changes.revision > before)
            varies = bool(origins) and origins != ["*"]
            for each in (preflight, answer):
                assert varies == ("Origin" in each.headers.get_list("vary", split_commas=True))
                assert "access-control-allow-credentials" not in each.headers
            # Who is no page sends no origin.
            assert 200 == (await http.post(COMPLETE, json={"prompt": "x"})).status_code

    async def test_what_a_page_may_send_and_read(self):
        """The headers of both protocols and of our metadata, and no method but POST."""
        origin = {"origin": "https://a.example"}
        async with running(**WEB, web_origins=["https://a.example"]) as (server, _), posting(server) as http:
            preflight = await http.options(COMPLETE, headers={**origin, **PREFLIGHT})
            allowed = preflight.headers["access-control-allow-headers"].split(", ")
            assert {
                "authorization",
                "content-type",
                "connect-protocol-version",
                "connect-timeout-ms",
                "grpc-timeout",
                "x-grpc-web",
                "x-user-agent",
                "x-request-id",
                "traceparent",
            } <= set(allowed)
            assert "POST" == preflight.headers["access-control-allow-methods"]
            assert int(preflight.headers["access-control-max-age"]) > 0
            refused = await http.post(COMPLETE, json={"prompt": "x", "model": "nope"}, headers=origin)
            exposed = refused.headers["access-control-expose-headers"].split(", ")
            assert {"grpc-status", "grpc-message", "grpc-status-details-bin"} <= set(exposed)
            assert {"grpc-retry-pushback-ms", "trailer-grpc-retry-pushback-ms"} <= set(exposed)
            # A page may read why its call failed, whatever refused it.
            for answer in (
                await http.post("/nope", headers=origin),
                await http.post(COMPLETE, content=b"", headers=origin),
                await http.post(
                    COMPLETE, content=b"{", headers={**origin, "content-type": "application/json"}
                ),
            ):
                assert "https://a.example" == answer.headers["access-control-allow-origin"]


class TestLife:
    async def test_a_draining_server_refuses_what_is_new(self):
        """UNAVAILABLE DRAINING with a delay, and the connection ends; what runs finishes; health still answers."""
        async with running(**WEB) as (server, _), calling(server, "connect") as web, posting(server) as http:
            held = web.stream("StreamComplete", scripted({"text": "a"}, {"delay_seconds": 1}, {"text": "b"}))
            assert "started" == (await anext(held)).WhichOneof("event")
            server.gate.draining = True
            late = await http.post(COMPLETE, json={"prompt": "late"})
            assert (503, "unavailable") == (late.status_code, late.json()["code"])
            assert "DRAINING" == late.json()["details"][0]["debug"]["reason"]
            assert int(late.headers["trailer-grpc-retry-pushback-ms"]) <= 100
            assert "close" == late.headers["connection"]
            alive = await http.post("/grpc.health.v1.Health/Check", json={"service": "liveness"})
            assert {"status": "SERVING"} == alive.json()
            assert ["text", "text", "completion"] == [event.WhichOneof("event") async for event in held]

    async def test_sigterm_lets_a_stream_finish(self):
        """A process whose web port answers a stream ends after it, with exit code 0; others are refused meanwhile."""
        environment = {"INFERWIRE_LAME_DUCK_SECONDS": "0", "INFERWIRE_DRAIN_SECONDS": "60"}
        with serving_process("--scripted", "--web-address", "127.0.0.1:0", **environment) as process:
            found = re.search(r"(http://127\.0\.0\.1:\d+)", process.popen.stdout.readline())
            assert found
            async with (
                ConnectClient(found[1], codec=google_protobuf_binary_codec()) as client,
                httpx.AsyncClient(base_url=found[1], trust_env=False) as http,
            ):
                web = WebCaller(client)
                script = scripted({"text": "a"}, {"delay_seconds": 3}, {"text": "b"})
                stream = web.stream("StreamComplete", script)
                assert "started" == (await anext(stream)).WhichOneof("event")
                process.popen.send_signal(signal.SIGTERM)
                while (late := await http.post(COMPLETE, json={"prompt": "late"})).status_code == 200:
                    pass
                assert "DRAINING" == late.json()["details"][0]["debug"]["reason"]
                assert ["text", "text", "completion"] == [event.WhichOneof("event") async for event in stream]
            assert 0 == await process.wait()

    async def test_streams_that_outlast_the_drain_end_with_their_status(self, caplog):
        """ABORTED DRAIN_TIMEOUT; a Watch of health, which never ends itself, is UNAVAILABLE; nothing is left."""
        async with running(**WEB) as (server, _), calling(server, "grpc-web") as web:
            held = web.stream("StreamComplete", SLOW)
            watch = web.stream("Watch", health_pb2.HealthCheckRequest(), service=HEALTH)
            assert ["started", "text"] == [(await anext(held)).WhichOneof("event") for _ in range(2)]
            await anext(watch)
            stopping = asyncio.ensure_future(server.stop(drain_seconds=0.2))
            with pytest.raises(ConnectError) as caught:
                await anext(held)
            assert (Code.ABORTED, "DRAIN_TIMEOUT") == (caught.value.code, reason(caught.value))
            with pytest.raises(ConnectError) as caught:
                async for _ in watch:
                    pass
            assert Code.UNAVAILABLE == caught.value.code
            await stopping
            with pytest.raises(OSError, match=r"refused"):
                socket.create_connection(("127.0.0.1", server.web.address.port))
        assert "Traceback" not in caplog.text

    async def test_an_address_in_use_is_told(self):
        """As for the main port."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = Server(
                Settings(
                    address="127.0.0.1:0", scripted=True, web_address=f"127.0.0.1:{taken.getsockname()[1]}"
                )
            )
            with pytest.raises(AddressInUse, match=r"cannot listen on 127\.0\.0\.1"):
                await server.start()

    def test_a_missing_extra_is_a_line(self, tmp_path):
        """Exit code 2, and what to install."""
        (tmp_path / "connectrpc").mkdir()
        (tmp_path / "connectrpc" / "__init__.py").write_text("raise ModuleNotFoundError(name='connectrpc')")
        arguments = ["serve", "--scripted", "--address", "127.0.0.1:0", "--web-address", "127.0.0.1:0"]
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        ended = subprocess.run(
            [sys.executable, "-m", "inferwire_server.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert 2 == ended.returncode
        assert "pip install 'inferwire-server[web]'" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.fixture
def keys_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "keys.toml"
    file.write_text(KEYS_FILE)
    return file


class TestAccess:
    @pytest.mark.parametrize("way", ["connect-json", "grpc-web"])
    @pytest.mark.parametrize("key", [None, *KEYS])
    async def test_a_key_opens_what_it_opens_over_grpc(self, way, key, keys_file):
        """Every RPC of every service, with every kind of key: the same code and reason on both ports."""
        asked = [
            (INFERENCE, "Complete", pb.CompleteRequest(model="scripted", prompt="x")),
            (INFERENCE, "StreamComplete", pb.CompleteRequest(model="scripted", prompt="x")),
            (INFERENCE, "ListModels", pb.ListModelsRequest()),
            (MODELS, "Unload", models_pb2.UnloadRequest(model="nobody")),
            (HEALTH, "Check", health_pb2.HealthCheckRequest()),
            (HEALTH, "Check", health_pb2.HealthCheckRequest(service="model/scripted")),
            (HEALTH, "List", health_pb2.HealthListRequest()),
        ]
        headers = {} if key is None else {"authorization": f"Bearer {KEYS[key]}"}
        server = Server(
            Settings(
                address="127.0.0.1:0", scripted=True, keys_file=str(keys_file), web_address="127.0.0.1:0"
            )
        )
        await server.start()
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_retries", 0)]) as channel,
            calling(server, way) as web,
        ):
            for service, name, request in asked:
                expected = await _outcome_over_grpc(channel, service, name, request, tuple(headers.items()))
                try:
                    if service.methods_by_name[name].server_streaming:
                        await web.events(request, headers=headers)
                    else:
                        await web.unary(name, request, service=service, headers=headers)
                    told = ("OK", "")
                except ConnectError as error:
                    told = (error.code.name, reason(error))
                assert expected == told, f"{service.name}/{name}"
        await server.stop(drain_seconds=0)

    async def test_models_are_loaded_on_the_admin_port_alone(self):
        """With an address of its own ModelService is on no other port."""
        async with running(admin_address="127.0.0.1:0", **WEB) as (server, _), posting(server) as http:
            answer = await http.post("/inferwire.v1.ModelService/Unload", json={"model": "x"})
            assert 404 == answer.status_code
            assert 200 == (await http.post(COMPLETE, json={"prompt": "x"})).status_code

    async def test_with_tls_nothing_is_in_the_clear(self, tmp_path):
        """The port shows the server's certificate, and asks for the caller's where the main port does."""
        key, certificate, authority = certificates.issued(tmp_path, "server")
        callers_key, callers, callers_authority = certificates.issued(tmp_path, "caller")
        tls = {"tls_certificate": str(certificate), "tls_key": str(key)}
        for mutual in (False, True):
            more = {"tls_client_ca": str(callers_authority)} if mutual else {}
            settings = Settings(address="127.0.0.1:0", scripted=True, **WEB, **tls, **more)
            server = Server(settings)
            await server.start()
            assert server.web.url.startswith("https://127.0.0.1:")
            answers = []
            for chain in (None, (callers, callers_key)):
                trust = ssl.create_default_context(cafile=authority)
                if chain:
                    trust.load_cert_chain(*chain)
                async with httpx.AsyncClient(base_url=server.web.url, verify=trust, trust_env=False) as http:
                    try:
                        answers.append((await http.post(COMPLETE, json={"prompt": "x"})).status_code)
                    except httpx.TransportError:
                        answers.append(None)
            async with httpx.AsyncClient(
                base_url=server.web.url.replace("https", "http"), trust_env=False
            ) as http:
                with pytest.raises(httpx.TransportError):
                    await http.post(COMPLETE, json={"prompt": "x"})
            await server.stop(drain_seconds=0)
            assert [None if mutual else 200, 200] == answers

    async def test_a_callers_certificate_is_its_key(self, tmp_path, caplog):
        """The names in it are looked up as over gRPC: this one may complete, and not unload."""
        key, certificate, authority = certificates.issued(tmp_path, "server")
        callers_key, callers, callers_authority = certificates.issued(tmp_path, "caller")
        (tmp_path / "keys.toml").write_text('[certificates.worker]\nnames = ["caller"]\nscopes = ["infer"]\n')
        server = Server(
            Settings(
                address="127.0.0.1:0",
                scripted=True,
                tls_certificate=str(certificate),
                tls_key=str(key),
                tls_client_ca=str(callers_authority),
                keys_file=str(tmp_path / "keys.toml"),
                **WEB,
            )
        )
        await server.start()
        caplog.set_level(logging.INFO)
        trust = ssl.create_default_context(cafile=authority)
        trust.load_cert_chain(callers, callers_key)
        async with httpx.AsyncClient(base_url=server.web.url, verify=trust, trust_env=False) as http:
            assert 200 == (await http.post(COMPLETE, json={"prompt": "x"})).status_code
            refused = await http.post("/inferwire.v1.ModelService/Unload", json={"model": "x"})
        await server.stop(drain_seconds=0)
        assert "SCOPE_REQUIRED" == refused.json()["details"][0]["debug"]["reason"]
        assert ["worker", "worker"] == [line["principal"] for line in calls_in(caplog)]


async def _outcome_over_grpc(channel, service, name, request, metadata) -> tuple[str, str]:
    path = f"/{service.full_name}/{name}"
    is_stream = service.methods_by_name[name].server_streaming
    call = (channel.unary_stream if is_stream else channel.unary_unary)(
        path, request_serializer=lambda message: message.SerializeToString()
    )(request, metadata=metadata)
    try:
        await (_read_all(call) if is_stream else call)
    except grpc.aio.AioRpcError as error:
        return error.code().name, InferwireError.of(error).reason
    return "OK", ""


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_bufs_curl(protocol):
    """A tool of another maker streams by the contract's own files."""
    buf = pathlib.Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is of the development requirements")
    async with running(**WEB) as (server, _):
        ran = await asyncio.create_subprocess_exec(
            *(str(buf), "curl", "--protocol", protocol, "--schema", "proto", "-d"),
            json.dumps({"prompt": "one two", "model": "scripted"}),
            f"{server.web.url}{STREAM}",
            cwd=pathlib.Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told, complaint = await ran.communicate()
        assert (0, b"") == (ran.returncode, complaint)
        decoder, events = json.JSONDecoder(), []
        text = told.decode().lstrip()
        while text:
            event, end = decoder.raw_decode(text)
            events.append(event)
            text = text[end:].lstrip()
        assert "started" in events[0]
        assert "completion" in events[-1]
