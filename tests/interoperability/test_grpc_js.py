"""Node's own gRPC, @grpc/grpc-js, with messages that it reads from the contract's files while it runs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.serving import demo, running

from . import tools

pytestmark = [pytest.mark.usefixtures("installed"), pytest.mark.timeout(120, func_only=True)]

PARIS = "The capital of France is Paris."
QUESTION = {
    "model": "demo",
    "chat": {"messages": [{"role": "ROLE_USER", "parts": [{"text": "What is the capital of France?"}]}]},
    "sampling": {"temperature": 0},
}
OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, ABORTED = 0, 1, 3, 4, 10


@pytest.fixture(scope="module")
def installed() -> None:
    """Installs the packages, which may take longer than a test."""
    tools.npm()


class Node:
    """The program in node/, which makes one call after another."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(self, method: str, request: dict[str, Any], **how: int) -> dict[str, Any]:
        """Makes a call; returns its messages and its end."""
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        line = json.dumps({"method": method, "request": request, **how})
        self._process.stdin.write(line.encode() + b"\n")
        answer = await self._process.stdout.readline()
        assert answer, "the program ended"
        return json.loads(answer)


@contextlib.asynccontextmanager
async def node(port: int) -> AsyncIterator[Node]:
    """Yields a client in Node."""
    process = await asyncio.create_subprocess_exec(
        "node", tools.npm() / "calls.js", f"127.0.0.1:{port}", tools.ROOT / "proto",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Node(process)
    finally:
        assert process.stdin is not None, "a pipe"
        process.stdin.close()
        await process.wait()


def scripted(*events: dict[str, Any]) -> dict[str, Any]:
    return {"model": "scripted", "prompt": json.dumps({"events": events})}


async def test_completes_and_streams():
    """The demo model says the same in one message and in a stream; 64-bit counts and enums arrive as they are."""
    async with running(models={"demo": demo()}, scripted=True) as (server, _), node(server.port) as client:
        told = await client.call("Complete", QUESTION)
        assert OK == told["code"]
        [answer] = told["messages"]
        assert PARIS == answer["message"]["parts"][0]["text"]
        assert "FINISH_REASON_STOP" == answer["completion"]["finish_reason"]

        told = await client.call("StreamComplete", QUESTION)
        assert OK == told["code"]
        first, *deltas, last = told["messages"]
        assert ("started", "completion") == (first["event"], last["event"])
        assert PARIS == "".join(delta["text"]["text"] for delta in deltas)
        assert answer["completion"]["usage"] == last["completion"]["usage"]


async def test_a_cancel_frees_what_the_call_held():
    """The client's cancel ends the call at both ends."""
    async with running() as (server, _), node(server.port) as client:
        endless = scripted({"text": "a"}, {"delay_seconds": 600})
        told = await client.call("StreamComplete", endless, cancel_after=2)
        assert CANCELLED == told["code"]
        assert ["started", "text"] == [event["event"] for event in told["messages"]]
        # To leave `running` waits until no call holds a model.


async def test_a_deadline_ends_the_call():
    """DEADLINE_EXCEEDED, with what had come until then."""
    async with running() as (server, _), node(server.port) as client:
        endless = scripted({"text": "a"}, {"delay_seconds": 600})
        told = await client.call("StreamComplete", endless, deadline_ms=1000)
        assert DEADLINE_EXCEEDED == told["code"]
        assert ["started", "text"] == [event["event"] for event in told["messages"]]
        told = await client.call("Complete", endless, deadline_ms=200)
        assert (DEADLINE_EXCEEDED, []) == (told["code"], told["messages"])


@pytest.mark.parametrize("method", ["Complete", "StreamComplete"])
async def test_the_details_of_a_failure_are_in_the_trailer(method):
    """grpc-status-details-bin is a google.rpc.Status whose code and message are those of the call."""
    async with running() as (server, _), node(server.port) as client:
        told = await client.call(method, {"model": "scripted", "prompt": "x", "sampling": {"top_p": 2}})
        status = status_pb2.Status.FromString(base64.b64decode(told["details"]))
        assert (INVALID_ARGUMENT, []) == (told["code"], told["messages"])
        assert (told["code"], told["message"]) == (status.code, status.message)
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert any(detail.Unpack(info) for detail in status.details)
        assert any(detail.Unpack(request) for detail in status.details)
        assert ("INVALID_REQUEST", "inferwire.dev") == (info.reason, info.domain)
        assert ["sampling.top_p"] == [violation.field for violation in request.field_violations]


async def test_a_stream_that_breaks_tells_why():
    """What was streamed stands; the status and its details come after it."""
    async with running() as (server, _), node(server.port) as client:
        error = {"reason": "ENGINE_CRASHED", "message": "it fell"}
        told = await client.call("StreamComplete", scripted({"text": "a"}, {"error": error}))
        assert ["started", "text"] == [event["event"] for event in told["messages"]]
        assert (ABORTED, "it fell") == (told["code"], told["message"])
        info = error_details_pb2.ErrorInfo()
        status = status_pb2.Status.FromString(base64.b64decode(told["details"]))
        assert any(detail.Unpack(info) for detail in status.details)
        assert ("ENGINE_CRASHED", "1") == (info.reason, info.metadata["tokensEmitted"])
