"""R18: one model is loaded and unloaded by many at once while they ask it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import shutil

import psutil
import pytest

from inferwire import AsyncClient, InferwireError, text_of
from inferwire.v1 import models_pb2
from tests.serving import DEMO

from . import rig
from .test_memory import held_mib

NUM_WORKERS = 8
CONFIG = models_pb2.LoadConfig(context_length=256, parallel_sequences=4, threads=1, deterministic=True)
PROMPTS = ("Once upon a time", "The fox", "In the morning", "A little boat")
# What a caller may be told of a model that others load and unload. Everything else is wrong.
ALLOWED = {
    "MODEL_NOT_FOUND",
    "MODEL_NOT_LOADED",
    "MODEL_LOADING",
    "MODEL_UNLOADING",
    "MODEL_UNLOADED",
    "LOAD_CANCELLED",
}


class Churn:
    """Callers of one model, each of whom loads it, unloads it and asks it as chance has it."""

    def __init__(self, address: str, draw: random.Random, texts: dict[str, str]) -> None:
        self._address = address
        self._draw = draw
        self._texts = texts
        self.ended: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    async def run(self, num_rounds: int) -> None:
        """Lets every caller do so many things."""
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_WORKERS):
                group.create_task(self._caller(num_rounds))

    async def _caller(self, num_rounds: int) -> None:
        async with AsyncClient(self._address) as client:
            for _ in range(num_rounds):
                (do,) = self._draw.choices((self._ask, self._load, self._unload), (5, 4, 1))
                try:
                    # A hang is an end that is not allowed.
                    await rig.within(60, do(client), do.__name__)
                except InferwireError as error:
                    self.ended[error.reason] += 1
                    if error.reason not in ALLOWED:
                        self.wrong.append(f"{do.__name__}: {error}")
                except rig.Hung as hung:
                    self.wrong.append(str(hung))

    async def _ask(self, client: AsyncClient) -> None:
        prompt = self._draw.choice(PROMPTS)
        text = await answer(client, prompt)
        self.ended["answer"] += 1
        if text != self._texts[prompt]:
            self.wrong.append(f"{prompt!r} was answered {text!r}")

    async def _load(self, client: AsyncClient) -> None:
        loaded = await client.load("m", "m.gguf", config=CONFIG)
        self.ended["joined" if loaded.already_loaded else "load"] += 1

    async def _unload(self, client: AsyncClient) -> None:
        unloaded = await client.unload("m", drain_timeout=self._draw.choice([0, 0.05, 5]))
        self.ended["unload" if unloaded.was_loaded else "not loaded"] += 1


async def answer(client: AsyncClient, prompt: str) -> str:
    """Returns what the model says, a whole answer."""
    return text_of((await client.complete(rig.request(prompt, "m", max_tokens=24))).message)


class Copies(rig.Sampler):
    """Looks how many engine processes there are at once, while it is entered."""

    def __init__(self, gateway: rig.Process) -> None:
        super().__init__()
        self._gateway = gateway
        self.most = 0

    async def _sample(self) -> None:
        while True:
            engines = 0
            for child in self._gateway.children:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    engines += "inferwire_server.engine" in child.cmdline()
            self.most = max(self.most, engines)
            await asyncio.sleep(0.01)


@pytest.mark.nightly
@pytest.mark.timeout(600)
async def test_r18_a_model_that_is_loaded_and_unloaded_all_the_time(card, draw, tmp_path):
    """Eight callers do a hundred things each: every answer is the right one, every refusal is one of those that the contract names,
    there is one copy of the model at most, and the gateway does not grow. Another text and a second copy are seen.
    """
    num_rounds = 100
    for name in ("m", "other"):
        shutil.copy(DEMO, tmp_path / f"{name}.gguf")
    with rig.gateway(
        f"--model-root={tmp_path}", "--scripted", has_stub=False, log_level="warning"
    ) as gateway:
        async with AsyncClient(gateway.address) as client:
            await client.load("m", "m.gguf", config=CONFIG)
            texts = {prompt: await answer(client, prompt) for prompt in PROMPTS}
            await Churn(gateway.address, draw, texts).run(num_rounds // 10)
            before = held_mib(gateway.popen.pid)
            churn = Churn(gateway.address, draw, texts)
            async with Copies(gateway) as copies:
                await churn.run(num_rounds)
            growth = held_mib(gateway.popen.pid) - before
            print(f"ended: {dict(churn.ended)}; growth: {growth:.1f} MiB; wrong: {churn.wrong[:3]}")
            num = NUM_WORKERS * num_rounds
            card.tell("R18", "crashes", len(churn.wrong), n=num)
            card.tell("R18", "copies", copies.most, n=churn.ended["load"])
            card.tell("R18", "growth", max(0.0, growth), n=num)
            assert [] == churn.wrong
            assert 1 == copies.most
            assert churn.ended["load"] > num_rounds / 10
            assert growth < 40

            control = Churn(gateway.address, draw, dict.fromkeys(PROMPTS, "another text"))
            async with Copies(gateway) as copies:
                await client.load("m", "m.gguf", config=CONFIG)
                await client.load("other", "other.gguf", config=CONFIG)
                await control._ask(client)
            assert len(control.wrong) == 1
            assert copies.most == 2
