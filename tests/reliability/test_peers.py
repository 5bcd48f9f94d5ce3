"""R14, R15, R39: callers that do not read, and callers that are gone without a word, cost little and not for long; who is there and
waits is not taken for one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire_server import ports
from inferwire_server.server import Server
from tests import serving
from tests.serving import rest
from tests.test_slow_readers import FLOOD, emitted_tokens

from . import rig
from .proxy import Proxy
from .test_memory import held_mib

NUM_STALLED, NUM_HEALTHY = 32, 8
WRITE_STALL_SECONDS = 5.0
KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS = 3.0, 2.0


async def tokens_per_second(stub, seconds: float) -> float:
    """Returns what some callers that do read get together."""
    num, end = 0, time.monotonic() + seconds

    async def one() -> None:
        nonlocal num
        call = stub.StreamComplete(rig.request(endless=True))
        while time.monotonic() < end and (event := await call.read()) is not grpc.aio.EOF:
            num += len(event.text.text)
        call.cancel()

    await asyncio.gather(*(one() for _ in range(NUM_HEALTHY)))
    return num / seconds


@contextlib.asynccontextmanager
async def stalled(address: str) -> AsyncIterator[None]:
    """Callers of an endless answer, each over a connection of its own, who have read its beginning and read no more."""
    asked = pb.CompleteRequest(model="scripted", prompt=FLOOD)
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for _ in range(NUM_STALLED):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
            calls.append(InferenceServiceStub(channel).StreamComplete(asked))
        await asyncio.gather(*(call.read() for call in calls))
        yield
        for call in calls:
            call.cancel()


async def seconds_until_ended(write_stall_seconds: float, guard_seconds: float) -> float:
    """Returns how long after the last write the last of those who do not read is ended."""
    async with (
        serving.running(write_stall_seconds=write_stall_seconds) as (server, _),
        stalled(f"127.0.0.1:{server.port}"),
    ):
        changes, emitted, begin = server.registry.changes, -1, time.monotonic()
        while emitted != emitted_tokens(server):
            emitted, begin = emitted_tokens(server), time.monotonic()
            await changes.after(changes.revision, timeout_seconds=0.2)
        await rig.until(server, lambda: not server.registry.num_leases, guard_seconds, "their end")
        return time.monotonic() - begin


@pytest.mark.nightly
async def test_r14_callers_that_do_not_read_hurt_nobody(stub, card):
    """Thirty-two of them are ended after the limit, the gateway does not grow, and eight others get what they got before. Without
    the limit they stay.
    """
    flags = (f"--model=stub={stub(slots=NUM_HEALTHY, step_seconds=0.02).path}", "--scripted")
    with rig.gateway(*flags, log_level="warning") as gateway:
        await rig.until_ready(gateway.address)
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            calls = InferenceServiceStub(channel)
            before = await tokens_per_second(calls, 3)
            held = held_mib(gateway.popen.pid)
            async with stalled(gateway.address):
                share = await tokens_per_second(calls, 3) / before
                growth = held_mib(gateway.popen.pid) - held
    card.tell("R14", "memory", max(0.0, growth), n=NUM_STALLED)
    card.tell("R14", "others", 100 * share, n=NUM_HEALTHY)

    seconds = await seconds_until_ended(WRITE_STALL_SECONDS, 60)
    card.tell("R14", "freed", abs(seconds - WRITE_STALL_SECONDS), n=NUM_STALLED)
    with pytest.raises(rig.Hung):
        await seconds_until_ended(600.0, 2 * WRITE_STALL_SECONDS)


async def seconds_until_free(server: Server, num: int, guard_seconds: float) -> float:
    """Returns how long slots are held for callers whose network is cut."""
    async with Proxy(server.port) as proxy, grpc.aio.insecure_channel(proxy.address) as channel:
        stub = InferenceServiceStub(channel)
        calls = [stub.StreamComplete(rig.request(endless=True)) for _ in range(num)]
        for call in calls:
            await call.read()
        reading = [asyncio.ensure_future(rest(call)) for call in calls]
        proxy.is_silent = True
        begin = time.monotonic()
        try:
            await rig.until(
                server, lambda: not server.registry.num_leases, guard_seconds, "freeing the slots"
            )
            return time.monotonic() - begin
        finally:
            for each in (*calls, *reading):
                each.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


@pytest.mark.nightly
async def test_r15_a_peer_that_is_gone_is_noticed(stub, card, monkeypatch):
    """Twenty streams over a connection on which nothing comes any more are ended by the keepalive. Without it they go on."""
    num = 20
    model = stub(slots=num, step_seconds=0.02)
    for is_on in (True, False):
        options = dict(ports.channel_arguments.OPTIONS)
        options["grpc.keepalive_time_ms"] = int(KEEPALIVE_SECONDS * 1000) if is_on else 3_600_000
        for key in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):
            options[key] = int(KEEPALIVE_TIMEOUT_SECONDS * 1000) if is_on else 3_600_000
        monkeypatch.setattr(ports.channel_arguments, "OPTIONS", tuple(options.items()))
        async with rig.stub_server(models={"stub": model}) as (server, _):
            if is_on:
                seconds = await seconds_until_free(server, num, 60)
                beyond = seconds - KEEPALIVE_SECONDS - KEEPALIVE_TIMEOUT_SECONDS
                card.tell("R15", "free", max(0.0, beyond), n=num)
            else:
                with pytest.raises(rig.Hung):
                    await seconds_until_free(server, num, 3 * KEEPALIVE_SECONDS)


async def goaways(server: Server, num: int, silent_seconds: float, ping_seconds: float) -> int:
    """Returns how many of some clients that wait and ping are sent away: a call of theirs fails, or they connect again."""
    silent = json.dumps({"events": [{"delay_seconds": silent_seconds}, {"text": "a"}]})
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", int(ping_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
    ]

    async def one() -> bool:
        request = pb.CompleteRequest(model="scripted", prompt=silent)
        async with (
            Proxy(server.port) as proxy,
            grpc.aio.insecure_channel(proxy.address, options) as channel,
        ):
            stub = InferenceServiceStub(channel)
            told = await asyncio.gather(
                stub.Complete(request), rest(stub.StreamComplete(request)), return_exceptions=True
            )
            return proxy.num_accepted > 1 or any(isinstance(each, grpc.aio.AioRpcError) for each in told)

    return sum(await asyncio.gather(*(one() for _ in range(num))))


@pytest.mark.nightly
async def test_r39_a_client_that_pings_through_a_long_silence_is_not_sent_away(card, monkeypatch):
    """Five clients, each with a unary call and a stream, ping every ten seconds for 45 seconds in which nothing comes. A server with
    gRPC's own limits sends them away.
    """
    num, silent_seconds, ping_seconds = 5, 45.0, 10.0
    async with contextlib.AsyncExitStack() as stack:
        server, _ = await stack.enter_async_context(serving.running(scripted=True))
        options = dict(ports.channel_arguments.OPTIONS)
        del options["grpc.http2.min_ping_interval_without_data_ms"]
        options["grpc.http2.max_ping_strikes"] = 1
        monkeypatch.setattr(ports.channel_arguments, "OPTIONS", tuple(options.items()))
        strict, _ = await stack.enter_async_context(serving.running(scripted=True))
        found, control = await asyncio.gather(
            goaways(server, num, silent_seconds, ping_seconds),
            goaways(strict, num, silent_seconds, ping_seconds),
        )
    card.tell("R39", "goaway", found, n=num)
    assert 0 == found
    assert control > 0
