"""R20: model files that were broken by chance harm nobody but who loads them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import pathlib
import random
import struct
import time
from collections.abc import Callable

import psutil
import pytest

from inferwire import AsyncClient, InferwireError, text_of
from inferwire.v1 import models_pb2
from tests.models import tiny
from tests.models.corrupt import Pieces, take_apart
from tests.serving import DEMO

from . import rig

NUM_FILES, NUM_AT_ONCE = 800, 3
GUARD_SECONDS = 30.0
CONFIG = models_pb2.LoadConfig(threads=1)
# What may be told of a file that was broken: what it is, that it does not fit, or what became of the request on it.
LOAD_REASONS = {
    "MODEL_FILE_INVALID",
    "TEMPLATE_INVALID",
    "INSUFFICIENT_MEMORY",
    "UNSUPPORTED_BY_BACKEND",
    "INVALID_REQUEST",
}
ANSWER_REASONS = {
    "ENGINE_CRASHED", "ENGINE_STALLED", "MODEL_LOADING", "MODEL_FAILED", "CONTEXT_LENGTH_EXCEEDED", "UNSUPPORTED_BY_BACKEND",
    "DEADLINE_EXCEEDED", "INVALID_REQUEST",
}  # fmt: skip
INTERESTING = (
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    255,
    256,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 33,
    1 << 60,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def broken(pieces: Pieces, draw: random.Random) -> tuple[str, bytes]:
    """Returns a file with one to three things wrong, and what they are."""
    names = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        how = draw.choice((_value, _value, _value, _length, _tensor, _tensor, _missing, _swapped, _noise))
        name, pieces = how(pieces, draw)
        names.append(f"{how.__name__[1:]} {name}")
    data = bytes(pieces)
    if draw.random() < 0.1:
        names.append("cut")
        data = data[: draw.randrange(len(data))]
    return ", ".join(names), data


def _changed(pieces: Pieces, key: str, change: Callable[[bytearray], None]) -> Pieces:
    """Returns the file with the bytes after an entry's key changed."""
    at = 8 + len(key.encode())
    rest = bytearray(pieces.entries[key][at:])
    change(rest)
    return dataclasses.replace(
        pieces, entries={**pieces.entries, key: pieces.entries[key][:at] + bytes(rest)}
    )


def _put(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    value = draw.choice(INTERESTING) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, "little")[: max(0, len(data) - at)]


def _value(pieces: Pieces, draw: random.Random) -> tuple[str, Pieces]:
    """Another number, in a value or an item of one."""
    key = draw.choice(list(pieces.entries))
    return key, _changed(
        pieces,
        key,
        lambda rest: _put(rest, draw.randrange(4, max(5, len(rest))), draw.choice((1, 4, 8)), draw),
    )


def _length(pieces: Pieces, draw: random.Random) -> tuple[str, Pieces]:
    """Another type, or another length of a text or an array."""
    key = draw.choice(list(pieces.entries))
    return key, _changed(
        pieces, key, lambda rest: _put(rest, draw.choice((0, 4, 8)), draw.choice((4, 8)), draw)
    )


def _tensor(pieces: Pieces, draw: random.Random) -> tuple[str, Pieces]:
    """Another number of dimensions, dimension, type or offset of a tensor."""
    name = draw.choice(list(pieces.tensors))
    at = 8 + len(name.encode())
    rest = bytearray(pieces.tensors[name][at:])
    _put(rest, draw.randrange(0, len(rest), 4), draw.choice((4, 8)), draw)
    return name, dataclasses.replace(
        pieces, tensors={**pieces.tensors, name: pieces.tensors[name][:at] + bytes(rest)}
    )


def _missing(pieces: Pieces, draw: random.Random) -> tuple[str, Pieces]:
    """Without an entry or a tensor."""
    if draw.random() < 0.5:
        key = draw.choice(list(pieces.entries))
        return key, pieces.without(key)
    name = draw.choice(list(pieces.tensors))
    kept = {key: piece for key, piece in pieces.tensors.items() if key != name}
    return name, dataclasses.replace(pieces, tensors=kept)


def _swapped(pieces: Pieces, draw: random.Random) -> tuple[str, Pieces]:
    """One entry's value under another's key."""
    one, other = draw.sample(list(pieces.entries), 2)
    value = pieces.entries[other][8 + len(other.encode()) :]
    return f"{one} {other}", pieces.with_entry(one, value)


def _noise(pieces: Pieces, draw: random.Random) -> tuple[str, Pieces]:
    """Weights that are no numbers."""
    data = bytearray(pieces.data)
    for _ in range(64):
        at = draw.randrange(0, len(data) - 4, 4)
        data[at : at + 4] = struct.pack("<f", draw.choice((float("nan"), float("inf"), -1e38, 1e38)))
    return "", dataclasses.replace(pieces, data=bytes(data))


class Fuzz:
    """Loads broken files in a gateway that also answers for a sound model, and keeps what came of them."""

    def __init__(self, gateway: rig.Process, root: pathlib.Path) -> None:
        self._gateway = gateway
        self._root = root
        self.ended: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.load_seconds: list[float] = []
        self.most_mib = 0.0

    async def run(self, files: list[tuple[str, bytes]]) -> None:
        """Loads them all, a few at once; what loads is asked, too."""
        waiting = collections.deque(enumerate(files))
        async with AsyncClient(self._gateway.address) as client:
            looking = asyncio.create_task(self._look())
            witness = asyncio.create_task(self._witness(client))

            async def one_after_another() -> None:
                while waiting:
                    number, (name, data) = waiting.popleft()
                    await self._load(client, f"m{number}", name, data)

            await asyncio.gather(*(one_after_another() for _ in range(NUM_AT_ONCE)))
            for task in (looking, witness):
                task.cancel()
            await asyncio.wait([looking, witness])

    async def _load(self, client: AsyncClient, model: str, name: str, data: bytes) -> None:
        path = self._root / f"{model}.gguf"
        path.write_bytes(data)
        begin = time.monotonic()
        told, allowed = "loaded", LOAD_REASONS
        try:
            await client.load(model, path.name, config=CONFIG, timeout=GUARD_SECONDS)
            self.load_seconds.append(time.monotonic() - begin)
            allowed, told = ANSWER_REASONS, "answered"
            await client.complete(rig.request("Once", model, max_tokens=4), timeout=GUARD_SECONDS)
        except InferwireError as error:
            told = error.reason or error.code.name
            if allowed is LOAD_REASONS:
                self.load_seconds.append(time.monotonic() - begin)
            if told not in allowed:
                self.wrong.append(f"{name}: {error}")
        self.ended[told] += 1
        await client.unload(model, drain_timeout=0, timeout=GUARD_SECONDS)
        path.unlink()

    async def _witness(self, client: AsyncClient) -> None:
        """Asks the sound model all the time."""
        expected = None
        while True:
            try:
                response = await client.complete(
                    rig.request("Once", "demo", max_tokens=8), timeout=GUARD_SECONDS
                )
            except InferwireError as error:
                self.wrong.append(f"the witness: {error}")
            else:
                expected = expected or text_of(response.message)
                if expected != text_of(response.message):
                    self.wrong.append(f"the witness: {text_of(response.message)!r}, not {expected!r}")
            await asyncio.sleep(0.2)

    async def _look(self) -> None:
        while True:
            for child in self._gateway.children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.most_mib = max(self.most_mib, child.memory_info().rss / (1 << 20))
            await asyncio.sleep(0.05)


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_r20_a_broken_model_file_harms_nobody_else(card, draw, tmp_path):
    """Hundreds of files, each a good one with a few things wrong: every Load is answered in time and by a reason that is the file's,
    what loads is asked and may fail by its own engine alone, and a sound model beside them answers as ever. A witness that is not
    answered is seen.
    """
    pieces = take_apart(tiny.write_tiny_model(tmp_path / "tiny.gguf").read_bytes())
    files = [broken(pieces, draw) for _ in range(NUM_FILES)]
    flags = (f"--model=demo={DEMO}", f"--model-root={tmp_path}")
    with rig.gateway(*flags, has_stub=False, log_level="error") as gateway:
        await rig.until_ready(gateway.address)
        fuzz = Fuzz(gateway, tmp_path)
        await rig.within(800, fuzz.run(files), "the files")
        print(
            f"ended: {dict(fuzz.ended)}; slowest load: {max(fuzz.load_seconds):.1f} s; wrong: {fuzz.wrong[:5]}"
        )
        assert gateway.popen.poll() is None
        assert 1 == len(gateway.children), "only the sound model is left"
        card.tell("R20", "died", len(fuzz.wrong), n=NUM_FILES)
        card.tell("R20", "slow", max(fuzz.load_seconds), n=len(fuzz.load_seconds))
        card.tell("R20", "memory", fuzz.most_mib, n=NUM_FILES)
        assert [] == fuzz.wrong
        assert fuzz.ended["MODEL_FILE_INVALID"] > NUM_FILES / 4
        assert fuzz.ended["answered"] > 0

        control = Fuzz(gateway, tmp_path)
        async with AsyncClient(gateway.address) as client:
            await client.unload("demo")
        await rig.within(60, control.run(files[:3]), "the files")
        assert any("witness" in each for each in control.wrong)
