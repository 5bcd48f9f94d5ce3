"""Cancelling: whatever a request was doing, what it held is free soon after, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import random

import grpc

from inferwire import user

from .serving import bare_stub, demo, endless, rest, running, until_idle

SEED = 20261120


async def test_two_hundred_cancels_at_random_moments_leave_nothing_behind():
    """Queued, in prefill, while decoding or finishing: leases created == released, and no KV cell in use."""
    draw = random.Random(SEED)
    print(f"seed {SEED}")
    async with (
        running(models={"demo": demo(parallel_sequences=4)}) as (server, client),
        bare_stub(server) as stub,
    ):
        reached = {"queued": 0, "prefill": 0, "decode": 0, "finishing": 0}
        slots = asyncio.Semaphore(12)

        async def cancel_one(phase: str) -> None:
            async with slots:
                request = endless(progress=True)
                request.prompt = "Once upon a time there was a fox. " * draw.randint(1, 60)
                if phase == "finishing":
                    request.stopping.max_tokens = draw.randint(1, 20)
                call = stub.StreamComplete(request)
                seen = 0
                limit = draw.randint(1, 40)
                while (event := await call.read()) is not grpc.aio.EOF:
                    kind = event.WhichOneof("event")
                    stage = event.progress.WhichOneof("stage")
                    seen += kind == "text"
                    if (
                        (phase == "queued" and stage in ("queue", "prefill"))
                        or (phase == "prefill" and stage == "prefill")
                        or (phase == "decode" and seen >= limit)
                        or (phase == "finishing" and kind == "completion")
                    ):
                        reached["queued" if stage == "queue" else phase] += 1
                        break
                call.cancel()
                # Cancelled, or it had ended before the cancel came.
                with contextlib.suppress(asyncio.CancelledError):
                    await rest(call)

        before = server.registry.leases_created
        phases = [draw.choice(list(reached)) for _ in range(200)]
        await asyncio.gather(*map(cancel_one, phases))
        await until_idle(server)
        print(f"cancelled: {reached}")
        assert 200 == server.registry.leases_created - before
        assert server.registry.leases_created == server.registry.leases_released
        assert 0 == server.registry.occupancy("demo").cells_used
        assert 0 == server.registry.occupancy("demo").streams_in_flight
        assert all(reached.values())
        response = await client.complete(chat=[user("What is the capital of France?")], temperature=0)
        assert "The capital of France is Paris." == response.message.parts[0].text


async def test_a_queued_request_that_is_cancelled_never_reaches_the_engine():
    """The answers before and after it are computed as if it had not been."""
    async with (
        running(models={"demo": demo(deterministic=True)}) as (server, client),
        bare_stub(server) as stub,
    ):
        first = stub.StreamComplete(endless())
        await first.read()
        queued = stub.StreamComplete(endless(progress=True))
        assert "started" == (await queued.read()).WhichOneof("event")
        queued.cancel()
        while server.registry.occupancy("demo").queue_length:
            await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.01)
        assert "completion" == (await rest(first))[-1].WhichOneof("event")
        after = await client.complete(prompt="Once", model="demo", max_tokens=1)
        assert 1 == after.completion.usage.completion_tokens


async def test_a_cancelled_answer_is_not_computed_to_its_end():
    """Soon after the cancel the cells are free; they are never filled to the end of the context."""
    async with running(models={"demo": demo(parallel_sequences=2)}) as (server, _), bare_stub(server) as stub:
        for _ in range(5):
            call = stub.StreamComplete(endless())
            await call.read()
            await call.read()
            call.cancel()
            most = 0
            while server.registry.num_leases or server.registry.occupancy("demo").cells_used:
                most = max(most, server.registry.occupancy("demo").cells_used)
                await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.001)
            assert most < 900, "the answer of 1024 cells went on"
