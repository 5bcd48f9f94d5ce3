"""R1, R2, R3: a cancel frees what it held, changes no byte of anybody else's answer, and nothing is ever left held."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time

import grpc
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.config import EngineSettings
from inferwire_server.registry import Registry
from inferwire_server.server import Server
from tests.serving import bare_stub, demo, rest, running

from . import rig
from .proxy import Proxy
from .scorecard import quantile, spread

PHASES = ("queued", "prefill", "decode", "finishing")
# Ten times the promise.
GUARD_SECONDS = 2.5


async def cancel_latencies(
    server: Server, model: str, phase: str, num: int, draw: random.Random
) -> list[float]:
    """Returns, for each of some cancels in a phase, the milliseconds until what the request held is free."""
    samples = []
    held = server.registry.occupancy(model).parallel_sequences if phase == "queued" else 0
    async with bare_stub(server) as stub:
        holders = [stub.StreamComplete(rig.request(model=model, endless=True)) for _ in range(held)]
        for holder in holders:
            await holder.read()

        def is_free() -> bool:
            occupancy = server.registry.occupancy(model)
            return (
                server.registry.num_leases == held
                and occupancy.sequences_running == held
                and not occupancy.queue_length
                and (held > 0 or not occupancy.cells_used)
            )

        for _ in range(num):
            await rig.until(server, is_free, GUARD_SECONDS)
            call = await _begun(stub, model, phase, draw)
            begin = time.perf_counter()
            call.cancel()
            await rig.until(server, is_free, GUARD_SECONDS, f"freeing what a request held ({phase})")
            samples.append((time.perf_counter() - begin) * 1000)
        for holder in holders:
            holder.cancel()
    return samples


async def _begun(stub, model: str, phase: str, draw: random.Random):
    """Returns a call that is in the phase."""
    asked = rig.request(model=model, endless=True)
    asked.output.progress = phase in ("queued", "prefill")
    limit = draw.randint(1, 10)
    if phase == "prefill":
        asked.prompt = "Once upon a time there was a fox. " * draw.randint(60, 80)
    if phase == "finishing":
        asked.stopping.max_tokens = limit
    call = stub.StreamComplete(asked)
    num_texts = 0
    # Deltas that wait are merged, so an answer may end before so many texts.
    while num_texts < limit and (event := await call.read()) is not grpc.aio.EOF:
        kind = event.WhichOneof("event")
        num_texts += kind == "text"
        stage = event.progress.WhichOneof("stage")
        if (phase == "queued" and stage == "queue") or (phase == "prefill" and kind == "started"):
            break
    return call


async def test_r1_a_cancel_frees_what_the_request_held(stub, card, draw):
    """In every phase, of a stub engine and of a real one. An engine that does not hear it is seen."""
    num = 100
    model = stub(slots=2, step_seconds=0.005, prompt_token_seconds=0.00002)
    async with rig.stub_server(models={"stub": model}) as (server, _):
        samples = [
            sample for phase in PHASES for sample in await cancel_latencies(server, "stub", phase, num, draw)
        ]
    print(f"stub: {spread(samples)}")
    card.tell("R1", "stub", quantile(samples, 0.99), n=len(samples))

    engine = EngineSettings(max_decode_step_seconds=0.25, max_prefill_step_seconds=0.25)
    async with running(models={"demo": demo(parallel_sequences=2)}, engine=engine) as (server, _):
        for phase in ("decode", "prefill"):
            samples = await cancel_latencies(server, "demo", phase, num, draw)
            print(f"demo, {phase}: {spread(samples)}")
            card.tell("R1", phase, quantile(samples, 0.99), n=len(samples))

    deaf = stub("deaf", step_seconds=0.005, ignores_cancels=True)
    with pytest.raises(rig.Hung):
        async with rig.stub_server(models={"stub": deaf}) as (server, _):
            await cancel_latencies(server, "stub", "decode", 1, draw)


async def num_differing(server: Server, model: str, num_rounds: int, draw: random.Random) -> int:
    """Returns how many of four streams in each round differ from an undisturbed run because four others were cancelled."""

    async def answer(stub, index: int, cancel_after: int | None) -> str:
        prompt = f"Once upon a time {'very ' * index}long ago"
        call = stub.StreamComplete(rig.request(prompt, model, max_tokens=60, endless=model == "stub"))
        text = ""
        while (event := await call.read()) is not grpc.aio.EOF:
            text += event.text.text
            if cancel_after is not None and len(text) >= cancel_after:
                call.cancel()
                break
        return text

    differing = 0
    async with bare_stub(server) as stub:
        undisturbed = await asyncio.gather(*(answer(stub, index, None) for index in range(8)))
        for _ in range(num_rounds):
            cancelled = set(draw.sample(range(8), 4))
            texts = await asyncio.gather(
                *(answer(stub, i, draw.randint(1, 40) if i in cancelled else None) for i in range(8))
            )
            differing += sum(undisturbed[i] != texts[i] for i in set(range(8)) - cancelled)
    return differing


async def test_r2_a_cancel_changes_no_byte_of_the_streams_beside_it(stub, card, draw):
    """Half of the streams are cancelled; the others say what they say when nobody is. A model that does so is seen."""
    num_rounds = 50
    async with running(models={"demo": demo(parallel_sequences=8)}) as (server, _):
        differing = await num_differing(server, "demo", num_rounds, draw)
    card.tell("R2", "bytes", differing, n=num_rounds * 4)
    assert 0 == differing

    model = stub(slots=8, step_seconds=0.001, lets_neighbours_change=True)
    async with rig.stub_server(models={"stub": model}) as (server, _):
        assert await num_differing(server, "stub", 3, draw) > 0


class Storm:
    """Requests of every kind, right and wrong, that end in every way."""

    def __init__(self, server: Server, address: str, draw: random.Random) -> None:
        self._server = server
        self._address = address
        self._draw = draw
        self.num_ended: dict[str, int] = {}

    async def run(self, num: int, *, at_once: int = 16) -> None:
        """Sends so many requests."""
        slots = asyncio.Semaphore(at_once)
        kinds = itertools.islice(itertools.cycle(self.KINDS), num)
        async with Proxy(self._server.port) as proxy, bare_stub(self._server) as stub:

            async def one(kind: str) -> None:
                async with slots:
                    await getattr(self, kind)(stub, proxy)
                    self.num_ended[kind] = self.num_ended.get(kind, 0) + 1

            await asyncio.gather(*map(one, kinds))

    KINDS = (
        "whole", "stream", "cancelled", "late", "wrong", "unknown", "embedded", "embedding_cancelled", "queried",
        "reset",
    )  # fmt: skip

    async def whole(self, stub, proxy) -> None:
        await stub.Complete(rig.request(f"tell {self._draw.random()}", max_tokens=20))

    async def stream(self, stub, proxy) -> None:
        await rest(stub.StreamComplete(rig.request(f"tell {self._draw.random()}", max_tokens=20)))

    async def cancelled(self, stub, proxy) -> None:
        call = stub.StreamComplete(rig.request(endless=True))
        for _ in range(self._draw.randint(0, 5)):
            await call.read()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rest(call)

    async def late(self, stub, proxy) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await rest(
                stub.StreamComplete(rig.request(endless=True), timeout=self._draw.uniform(0.001, 0.05))
            )

    async def wrong(self, stub, proxy) -> None:
        bad = rig.request("x" * 5000)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.Complete(self._draw.choice([bad, pb.CompleteRequest(model="stub")]))

    async def unknown(self, stub, proxy) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.Complete(rig.request(model="nope"))

    async def embedded(self, stub, proxy) -> None:
        await stub.Embed(pb.EmbedRequest(model="stub", inputs=["a", "bc", "def"]))

    async def embedding_cancelled(self, stub, proxy) -> None:
        call = stub.Embed(pb.EmbedRequest(model="stub", inputs=["a" * 500] * 30))
        await asyncio.sleep(self._draw.uniform(0, 0.01))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    async def queried(self, stub, proxy) -> None:
        await stub.CountTokens(rig.request())
        await stub.Tokenize(pb.TokenizeRequest(model="stub", text="abc"))

    async def reset(self, stub, proxy) -> None:
        async with grpc.aio.insecure_channel(proxy.address, [("grpc.enable_retries", 0)]) as channel:
            from inferwire.v1.inference_pb2_grpc import InferenceServiceStub

            call = InferenceServiceStub(channel).StreamComplete(rig.request(endless=True))
            try:
                await call.read()
                proxy.reset()
                await rest(call)
            except grpc.aio.AioRpcError:
                pass


async def storm(server: Server, num: int, draw: random.Random) -> int:
    """Returns how many leases and cells are held after so many mixed requests, once they had time to be freed."""
    weather = Storm(server, f"127.0.0.1:{server.port}", draw)
    await weather.run(num)
    print(f"ended: {weather.num_ended}")

    def num_held() -> int:
        occupancy = server.registry.occupancy("stub")
        return (
            server.registry.num_leases
            + occupancy.cells_used
            + occupancy.streams_in_flight
            + occupancy.queue_length
            + server.gate.num_calls
        )

    with contextlib.suppress(rig.Hung):
        await rig.until(server, lambda: num_held() == 0, GUARD_SECONDS)
    return num_held()


async def test_r3_nothing_is_left_held(stub, card, draw, monkeypatch):
    """Leases created == released and no KV cell in use after mixed requests. A lease or a cell that is kept is seen."""
    num = 2000
    async with rig.stub_server(models={"stub": stub(slots=4, step_seconds=0.0005)}) as (server, _):
        held = await storm(server, num, draw)
    card.tell("R3", "leases", held, n=num)
    assert 0 == held

    with monkeypatch.context() as patch:
        lease = Registry.lease

        @contextlib.contextmanager
        def forgetful(self, name):
            with lease(self, name) as backend:
                yield backend
            self.leases_released -= self.leases_created % 10 == 0

        patch.setattr(Registry, "lease", forgetful)
        with pytest.raises(AssertionError):
            async with rig.stub_server(models={"stub": stub("leaky")}) as (server, _):
                assert 0 == await storm(server, 100, draw)
    with pytest.raises(AssertionError):
        async with rig.stub_server(models={"stub": stub("keeping", keeps_cells=True)}) as (server, _):
            assert 0 == await storm(server, 20, draw)
