"""R25, R26: a provider that fails is never taken for one that answered, holds nothing, and is left alone when it keeps failing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors, status
from inferwire_server.backends import answer
from inferwire_server.server import Server
from tests.providers.asking import chat
from tests.providers.server import FAULTS, HELLO, Endless, Fault, Reply, ScriptedProvider, Stall, provider
from tests.providers.wires import MODEL, WIRES, settings
from tests.serving import bare_stub, failure, running

from . import rig

# After these a response was whole, so its connection may be kept for the next request.
WHOLE = {
    "ends without its terminal event", "is overloaded", "limits the rate, with a time", "limits the rate", "fails",
    "refuses the key", "redirects", "sends another content type", "sends an error event", "sends what is no JSON",
    "compresses",
}  # fmt: skip
IDLE_SECONDS = 1.0


@contextlib.asynccontextmanager
async def gateway(type: str, **more) -> AsyncIterator[tuple[ScriptedProvider, Server, object]]:
    """Yields a provider of a wire, a gateway to it and a stub of that."""
    async with (
        provider(WIRES[type]) as server,
        running(backends={"x": settings(server, type, **more)}, scripted=False) as (gateway, _),
        bare_stub(gateway) as stub,
    ):
        yield server, gateway, stub


async def problem_of(
    fault: Fault, server: ScriptedProvider, gateway: Server, stub, draw: random.Random
) -> str:
    """Returns what is wrong about how a fault is told; empty when nothing is."""
    reply = fault.make(server, draw)
    server.reply = Reply(**{**vars(reply), "pause_seconds": 0.001})
    call = stub.StreamComplete(chat(model=f"x/{MODEL}"))
    events = []
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
        return "it ended OK"
    except grpc.aio.AioRpcError as raised:
        error = InferwireError.of(raised)
        trailers = raised.trailing_metadata()
    if error.reason not in fault.reasons:
        return f"{error.reason} is none of {set(fault.reasons)}"
    row = status.TABLE[errors.BY_REASON[error.reason]]
    if error.code != (row.after if events else row.before):
        return f"{error.code} after {len(events)} events"
    if any(event.HasField("completion") for event in events) or error.metadata["backend"] != "x":
        return f"{events[-1]} {error.metadata}"
    told = f"{error} {error.metadata} {trailers}"
    if any(word in told for word in ("secret", "words", "127.0.0.1", "httpx", "Errno")):
        return f"it tells {told}"
    if error.reason == "UPSTREAM_RATE_LIMITED":
        if "with a time" in fault.name and not 6 < (error.retry_delay or 0) <= 7:
            return f"to be retried after {error.retry_delay}"
        gateway.registry._entries[f"x/{MODEL}"].instance.backend._limited_until = 0.0
    await server.until(lambda: server.num_connections <= (fault.name in WHOLE))
    return f"{gateway.registry.providers['x'].http.num_open} responses are open" * bool(
        gateway.registry.providers["x"].http.num_open
    )


async def problems(type: str, draw: random.Random, num_rounds: int) -> list[str]:
    """Returns what is wrong about how the faults of a wire are told."""
    found = []
    # So much patience that a busy machine is not taken for a stall.
    async with gateway(type, idle_seconds=1.5, progress_seconds=2.5) as (server, it, stub):
        for _ in range(num_rounds):
            for fault in FAULTS:
                problem = await rig.within(20, problem_of(fault, server, it, stub, draw), fault.name)
                if problem:
                    found.append(f"{type} {fault.name}: {problem}")
    return found


async def test_r25_what_breaks_is_told(card, draw, is_nightly, monkeypatch):
    """Every fault of every wire, cut at random bytes: its own reason, the pair of codes for before and after the first delta, none
    of the provider's words, no completion, and no response left open. A parser that takes the end of the body for the end of the
    answer is seen.
    """
    num_rounds = 5 if is_nightly else 1
    found = [
        problem
        for each in await asyncio.gather(*(problems(type, draw, num_rounds) for type in WIRES))
        for problem in each
    ]
    card.tell("R25", "false", len(found), n=num_rounds * len(FAULTS) * len(WIRES))
    assert [] == found

    def gullible(self):
        self.completion = self.completion or pb.Completion(finish_reason=pb.FINISH_REASON_STOP)
        return self.deltas.take()

    monkeypatch.setattr(answer.AnswerParser, "close", gullible)
    seen = await problems("gemini", draw, 1)
    assert any("it ended OK" in problem for problem in seen), seen


STALLS: dict[str, Callable[[ScriptedProvider], Reply]] = {
    "before the head": lambda server: Reply(has_head=False, steps=[Stall()]),
    "after the head": lambda server: Reply(media_type=server.wire.media_type, steps=[Stall()]),
    "in the middle of an event": lambda server: Reply(
        media_type=server.wire.media_type,
        steps=[*server.wire.events(HELLO)[:2], server.wire.events(HELLO)[2][:5], Stall()],
    ),
    "with keep-alives alone": lambda server: Reply(
        media_type=server.wire.media_type, steps=[Endless(server.wire.keep_alive, 0.05)]
    ),
}


async def stalls(type: str, *, idle_seconds: float, guard_seconds: float = 15) -> tuple[list[float], int]:
    """Returns the seconds until the status of each stall, and how many connections are open in the end."""
    samples = []
    async with gateway(type, idle_seconds=idle_seconds, progress_seconds=idle_seconds) as (server, it, stub):
        for name, make in STALLS.items():
            server.reply = make(server)
            begin = time.monotonic()
            error = await rig.within(
                guard_seconds, failure(stub.StreamComplete(chat(model=f"x/{MODEL}"))), name
            )
            samples.append(time.monotonic() - begin)
            assert "UPSTREAM_STALLED" == error.reason, (type, name)
        with contextlib.suppress(rig.Hung):
            await rig.within(5, server.until(lambda: not server.num_connections))
        return samples, server.num_connections + it.registry.providers["x"].http.num_open


async def test_r26_a_provider_that_stalls_is_given_up(card):
    """Silent or chatting about nothing, it is given up after the idle limit, and its connection is closed. Without the limit the
    wait is seen.
    """
    per_wire = await asyncio.gather(*(stalls(type, idle_seconds=IDLE_SECONDS) for type in WIRES))
    samples = [sample for samples, _ in per_wire for sample in samples]
    num_open = sum(num for _, num in per_wire)
    card.tell("R26", "late", max(samples) - IDLE_SECONDS, n=len(samples))
    card.tell("R26", "open", num_open, n=len(samples))
    assert 0 == num_open
    assert min(samples) >= 0.9 * IDLE_SECONDS

    with pytest.raises(rig.Hung):
        await stalls("openai", idle_seconds=60, guard_seconds=2 * IDLE_SECONDS)


async def test_r26_a_provider_that_keeps_failing_is_left_alone(card):
    """After five failures nothing reaches it; after its time one request does. Without a breaker every request does."""
    open_seconds = 1.0
    for _ in range(3):
        async with gateway("openai", breaker_failures=5, breaker_open_seconds=open_seconds) as (
            server,
            _,
            stub,
        ):
            server.reply = server.failed(503)
            for _ in range(12):
                await failure(stub.Complete(chat(model=f"x/{MODEL}")))
            opened = time.monotonic()
            card.tell("R26", "breaker", len(server.completions), n=1)
            assert 5 == len(server.completions)
            server.reply = server.good(HELLO)
            while len(server.completions) == 5:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Complete(chat(model=f"x/{MODEL}"))
            card.tell("R26", "probe", abs(time.monotonic() - opened - open_seconds), n=1)

    async with gateway("openai", breaker_failures=1000) as (server, _, stub):
        server.reply = server.failed(503)
        for _ in range(12):
            await failure(stub.Complete(chat(model=f"x/{MODEL}")))
        assert len(server.completions) > 5
