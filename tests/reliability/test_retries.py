"""R40: clients that try again do not multiply the work of a server that has too much of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable

import psutil
import pytest

from inferwire import AsyncClient, InferwireError

from . import rig

NUM_CLIENTS = 5
NUM_SLOTS, STEP_SECONDS, MAX_TOKENS = 4, 0.01, 20
# Answers that the stub engine can give in a second at best.
CAPACITY = NUM_SLOTS / (STEP_SECONDS * MAX_TOKENS)


class Overload:
    """Three times the load that a gateway can do, by clients of ours, some of whose streams an engine's end breaks off."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        #: What the server logged of each call, by the call's id, in order.
        self.attempts: dict[str, list[str]] = {}
        #: Streams that had begun for the caller before they failed.
        self.broken: set[str] = set()
        self.ended: collections.Counter[str] = collections.Counter()

    @property
    def executed(self) -> dict[str, int]:
        """How often each call got past the queue's limit."""
        return {id: sum(reason != "QUEUE_FULL" for reason in told) for id, told in self.attempts.items()}

    async def run(self, model: str, seconds: float, *, again: int = 1, num_kills: int = 2) -> None:
        """`again`: how often a caller asks, beside what the client does by itself."""
        num = round(3 * CAPACITY * seconds)
        with rig.gateway(
            f"--model=stub={model}", engine_queue_capacity="8", lame_duck_seconds="0", log_format="json"
        ) as gateway:
            await rig.until_ready(gateway.address)
            async with contextlib.AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(AsyncClient(gateway.address)) for _ in range(NUM_CLIENTS)
                ]
                begins = sorted(self._draw.uniform(0, seconds) for _ in range(num))
                kills = [self._kill(gateway, seconds * (n + 1) / (num_kills + 1)) for n in range(num_kills)]
                calls = [
                    self._call(clients[number % NUM_CLIENTS], f"call-{number}", number, begin, again)
                    for number, begin in enumerate(begins)
                ]
                await rig.within(seconds + 60, asyncio.gather(*calls, *kills), "the end of the calls")
            gateway.popen.send_signal(signal.SIGINT)
            await gateway.exit_code(30)
            for line in gateway.log.splitlines():
                told = json.loads(line)
                if str(told.get("id", "")).startswith("call-"):
                    self.attempts.setdefault(told["id"], []).append(told["reason"])
        assert len(self.attempts) == num, "the log is not whole"

    async def _call(self, client: AsyncClient, id: str, number: int, begin: float, again: int) -> None:
        await asyncio.sleep(begin)
        # No prompt is there twice: it would be taken for the cause of the kills.
        request = rig.request(f"Once {number}", max_tokens=MAX_TOKENS, endless=True)
        ask: Callable[..., Awaitable[None]] = self._streamed if number % 2 else self._complete
        told = ""
        while told != "OK" and again > 0:
            again -= 1
            try:
                await ask(client, request, id)
                told = "OK"
            except InferwireError as error:
                told = error.reason or error.code.name
        self.ended[told] += 1

    async def _complete(self, client: AsyncClient, request, id: str) -> None:
        await client.complete(request, request_id=id)

    async def _streamed(self, client: AsyncClient, request, id: str) -> None:
        has_begun = False
        try:
            async with client.stream(request, request_id=id) as stream:
                async for _ in stream:
                    has_begun = True
        except InferwireError:
            if has_begun:
                self.broken.add(id)
            raise

    async def _kill(self, gateway: rig.Process, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        for child in gateway.children:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)


@pytest.mark.nightly
async def test_r40_who_tries_again_does_not_multiply_the_load(stub, card, draw):
    """Clients as they are ask for three times of what the server can do, and its engine is killed twice meanwhile. The server
    sees hardly more calls than were made, and no stream is computed again that had begun for its caller. Callers who simply ask
    again are seen.
    """
    model = stub(slots=NUM_SLOTS, step_seconds=STEP_SECONDS).path
    load = Overload(draw)
    await load.run(model, 10)
    num_attempts = sum(map(len, load.attempts.values()))
    print(f"ended: {dict(load.ended)}; attempts: {num_attempts}; broken: {len(load.broken)}")
    card.tell("R40", "amplified", num_attempts / len(load.attempts), n=len(load.attempts))
    twice = [id for id in load.broken if load.executed[id] > 1]
    card.tell("R40", "committed", len(twice), n=len(load.broken))
    assert load.broken, "a kill broke no stream off"
    assert [] == twice
    assert num_attempts <= 1.1 * len(load.attempts)

    naive = Overload(draw)
    await naive.run(model, 3, again=3, num_kills=0)
    assert sum(map(len, naive.attempts.values())) > 1.5 * len(naive.attempts)
