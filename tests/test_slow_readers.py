"""A caller that stops reading costs little and not for long, and nobody else notices."""

from __future__ import annotations

import json

import grpc

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.server import Server

from .serving import bare_stub, failure, rest, running

FLOOD = json.dumps({"events": [{"text": "x" * 1000, "repeat": 1_000_000}]})


def emitted_tokens(server: Server) -> int:
    """Returns how many tokens all running calls have emitted."""
    return sum(context.call.tokens_emitted for context in server.gate._running if context.call)


async def test_a_caller_that_does_not_read_is_ended():
    """After the limit what it held is free; when it reads again it finds its status behind what was sent."""
    async with running(write_stall_seconds=0.5) as (server, client), bare_stub(server) as stub:
        stopped = stub.StreamComplete(pb.CompleteRequest(model="scripted", prompt=FLOOD))
        await stopped.read()
        held = server.registry.num_leases
        assert 1 == held
        # Another caller, meanwhile: all of its events.
        script = json.dumps({"events": [{"text": "y" * 100, "repeat": 2000}]})
        beside = await client.complete(prompt=script, model="scripted")
        assert 200_000 == len(beside.message.parts[0].text)
        while server.registry.num_leases:
            await server.registry.changes.after(server.registry.changes.revision)
        error = await failure(stopped)
        assert (grpc.StatusCode.ABORTED, "CLIENT_TOO_SLOW") == (error.code, error.reason)
        assert 0 < int(error.metadata["tokensEmitted"]) < 1_000_000


async def test_a_caller_that_leaves_while_a_message_waits_is_no_defect(caplog):
    """The write that cannot end is a cancel like any other, not an internal error."""
    async with running() as (server, _), bare_stub(server) as stub:
        call = stub.StreamComplete(pb.CompleteRequest(model="scripted", prompt=FLOOD))
        await call.read()
        emitted = -1
        while emitted != (emitted := emitted_tokens(server)):
            await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.2)
        call.cancel()
        while server.registry.num_leases:
            await server.registry.changes.after(server.registry.changes.revision)
        whole = await rest(stub.StreamComplete(pb.CompleteRequest(model="scripted", prompt="still here")))
        assert "completion" == whole[-1].WhichOneof("event")
    assert not any("internal_error" in record.getMessage() for record in caplog.records)
