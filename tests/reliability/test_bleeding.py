"""R4: nothing of one request is in another's answer, whatever became of the one."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import grpc
import pytest

from inferwire.v1 import models_pb2
from inferwire_server.config import ModelSettings
from inferwire_server.server import Server
from tests.serving import bare_stub, demo, rest, running, until_state

from . import rig
from .test_crashes import FOR_EVER

NUM_ANSWERS, NUM_AT_ONCE = 500, 4
PROMPTS = (
    "Once upon a time",
    "The fox",
    "In the morning",
    "A little boat",
    "What is the capital of France?",
    "One two three",
)
# Requests that leave something behind in the engine, if anything does.
CANARIES = ("The password is swordfish. ", "My name is Ernestine and I live in Ulm. ", "0xDEADBEEF " * 8)
MAX_TOKENS = 16


class Bleeding:
    """Asks for answers that are known, between requests of others."""

    def __init__(self, server: Server, model: str, draw: random.Random, known: dict[str, str]) -> None:
        self._server = server
        self._model = model
        self._draw = draw
        self._known = known
        self.num_others = 0
        self.different: list[str] = []

    async def run(self, num: int, *, num_kills: int) -> None:
        """Asks so many times, with so many ends of the engine on the way."""
        kills = {num * (n + 1) // (num_kills + 1) for n in range(num_kills)}
        async with bare_stub(self._server) as stub:
            for number in range(0, num, NUM_AT_ONCE):
                others = [self._other(stub) for _ in range(NUM_AT_ONCE)]
                await asyncio.gather(*others, *(self._ask(stub) for _ in range(NUM_AT_ONCE)))
                if kills & set(range(number, number + NUM_AT_ONCE)):
                    await self._kill(stub)

    async def _ask(self, stub) -> None:
        prompt = self._draw.choice(PROMPTS)
        text = await answer(stub, prompt, self._model)
        if text != self._known[prompt]:
            self.different.append(f"{prompt!r}: {text!r}, not {self._known[prompt]!r}")

    async def _other(self, stub) -> None:
        """A request that begins like one of ours, or like none, and ends or is left at any moment."""
        prompt = (
            self._draw.choice(("", *PROMPTS)) + " " + self._draw.choice(CANARIES) * self._draw.randint(1, 8)
        )
        call = stub.StreamComplete(
            rig.request(prompt, self._model, max_tokens=self._draw.randint(1, 60), endless=True)
        )
        self.num_others += 1
        if self._draw.random() < 0.5:
            for _ in range(self._draw.randint(0, 5)):
                await call.read()
            call.cancel()
            return
        await rest(call)

    async def _kill(self, stub) -> None:
        # Never the same request twice: it would be taken for the cause.
        prompt = f"{CANARIES[0]}{self._draw.random()}"
        call = stub.StreamComplete(rig.request(prompt, self._model, endless=True))
        await call.read()
        with self._server.registry.lease(self._model) as backend:
            os.kill(backend.pid, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError):
            await rest(call)
        await rig.within(
            30, until_state(self._server, self._model, models_pb2.MODEL_STATE_READY), "a restart"
        )


async def answer(stub, prompt: str, model: str) -> str:
    """Returns the text that an answer begins with."""
    events = await rest(stub.StreamComplete(rig.request(prompt, model, max_tokens=MAX_TOKENS, endless=True)))
    return "".join(event.text.text for event in events)


async def known_answers(model: ModelSettings) -> dict[str, str]:
    """Returns what an engine says that has answered nobody before, one for each prompt."""
    known = {}
    for prompt in PROMPTS:
        async with running(models={"demo": model}) as (server, _), bare_stub(server) as stub:
            known[prompt] = await answer(stub, prompt, "demo")
    return known


@pytest.mark.nightly
@pytest.mark.timeout(600)
async def test_r4_no_answer_shows_anything_of_another_request(stub, card, draw):
    """Five hundred answers of a model that others use, leave and crash meanwhile, by as few sequences as make each be used again: each
    is the one that an engine gives that has never answered anybody. An engine that lets neighbours change each other is seen.
    """
    model = demo(parallel_sequences=2 * NUM_AT_ONCE)
    known = await known_answers(model)
    async with running(models={"demo": model}, engine=FOR_EVER) as (server, _):
        bleeding = Bleeding(server, "demo", draw, known)
        await bleeding.run(NUM_ANSWERS, num_kills=5)
    print(f"{bleeding.num_others} requests of others; different: {bleeding.different[:3]}")
    card.tell("R4", "bleed", len(bleeding.different), n=NUM_ANSWERS)
    assert [] == bleeding.different

    leaky = stub(slots=8, step_seconds=0.001, lets_neighbours_change=True)
    async with rig.stub_server(models={"stub": leaky}) as (server, _), bare_stub(server) as calls:
        alone = {prompt: await answer(calls, prompt, "stub") for prompt in PROMPTS}
        control = Bleeding(server, "stub", draw, alone)
        await control.run(40, num_kills=0)
        assert [] != control.different
