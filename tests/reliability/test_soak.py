"""R42: minutes of everything at once, drawn by chance, and every call has its end in time."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import time
import urllib.request

import grpc
import psutil
import pytest

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire.v1.models_pb2_grpc import ModelServiceStub
from tests.providers.asking import chat
from tests.providers.server import FAULTS, HELLO, ScriptedProvider, provider
from tests.providers.wires import MODEL, WIRES

from . import rig
from .proxy import Proxy
from .test_memory import held_mib

SECONDS, WARM_UP_SECONDS = 600.0, 60.0
NUM_CALLERS = 12
# How much later than its deadline a call may end.
GRACE_SECONDS = 1.0
SETTINGS = {
    "log_format": "json",
    "lame_duck_seconds": "0",
    "engine_stall_seconds": "2",
    "engine_queue_capacity": "8",
    "engine_max_restarts": "100000",
    "engine_restart_window_seconds": "0.01",
}
# What may happen to a call of this mix, by whose fault it was. Anything else is wrong.
ENDS = {
    "caller": {
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "INVALID_REQUEST",
        "MODEL_NOT_FOUND",
        "CONTEXT_LENGTH_EXCEEDED",
    },
    "load": {"QUEUE_FULL", "DEADLINE_UNREACHABLE"},
    # A Load whose engine is killed fails; the model is FAILED until the next.
    "models": {
        "MODEL_FAILED",
        "MODEL_NOT_LOADED",
        "MODEL_LOADING",
        "MODEL_UNLOADING",
        "MODEL_UNLOADED",
        "LOAD_CANCELLED",
    },
    "engine": {"ENGINE_CRASHED", "ENGINE_STALLED", "REQUEST_QUARANTINED"},
    "provider": {reason for fault in FAULTS for reason in fault.reasons} | {"UPSTREAM_UNAVAILABLE"},
    # No word of ours: the connection broke, or gRPC itself ended the call.
    "network": {""},
}


class Soak:
    """Callers and faults for some seconds, and what came of them."""

    def __init__(self, gateway: rig.Process, remote: ScriptedProvider, seed: str) -> None:
        self._gateway = gateway
        self._remote = remote
        self._seed = seed
        self._proxy = Proxy(int(gateway.address.rpartition(":")[2]))
        self._until = 0.0
        self._num_runs = 0
        #: Seconds that each call had, by its id.
        self.deadlines: dict[str, float] = {}
        self.ended: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.late: list[str] = []

    async def run(self, seconds: float) -> None:
        """Lets them all loose."""
        self._num_runs += 1
        seed = f"{self._seed} {self._num_runs}"
        self._until = time.monotonic() + seconds
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with (
            self._proxy,
            grpc.aio.insecure_channel(self._gateway.address, options) as channel,
            grpc.aio.insecure_channel(self._proxy.address, options) as toxic,
            asyncio.TaskGroup() as group,
        ):
            for number in range(NUM_CALLERS):
                # Each has chances of its own: who comes first changes nothing for the others.
                draw = random.Random(f"{seed} caller {number}")
                stub = InferenceServiceStub(toxic if number % 3 == 0 else channel)
                group.create_task(self._call_all_the_time(f"{self._num_runs}-{number}", stub, draw))
            for name in ("engine", "models", "network"):
                draw = random.Random(f"{seed} {name}")
                group.create_task(getattr(self, f"_trouble_{name}")(ModelServiceStub(channel), draw))

    # Callers.

    async def _call_all_the_time(self, name: str, stub, draw: random.Random) -> None:
        number = 0
        while time.monotonic() < self._until:
            number += 1
            await self._call(f"{name}-{number}", stub, draw)
            await asyncio.sleep(draw.uniform(0, 0.05))

    async def _call(self, id: str, stub, draw: random.Random) -> None:
        seconds = draw.choice((0.05, 0.3, 1.0, 3.0))
        self.deadlines[id] = seconds
        request = self._request(id, draw)
        method = stub.StreamComplete if draw.random() < 0.7 else stub.Complete
        begin = time.monotonic()
        call = method(request, timeout=seconds, metadata=(("x-request-id", id),))
        num_read = draw.choice((0, 1, 5)) if draw.random() < 0.2 else None
        told = "OK"
        try:
            await rig.within(seconds + 10 * GRACE_SECONDS, _read(call, num_read), id)
        except grpc.aio.AioRpcError as raised:
            error = InferwireError.of(raised)
            told = error.reason or f"({error.code.name})"
        except asyncio.CancelledError:
            told = "left"
        except rig.Hung:
            told = "HUNG"
        if time.monotonic() - begin > seconds + GRACE_SECONDS or told == "HUNG":
            self.late.append(f"{id}: {told} after {time.monotonic() - begin:.1f} s of {seconds} s")
        self.ended[told] += 1

    def _request(self, id: str, draw: random.Random) -> pb.CompleteRequest:
        kind = draw.random()
        if kind < 0.2:
            # The next request there is answered so, whosever it is.
            wrong = draw.random() < 0.5
            self._remote.reply = (
                draw.choice(FAULTS).make(self._remote, draw) if wrong else self._remote.good(HELLO)
            )
            return chat(f"Say hello to {id}", f"x/{MODEL}")
        if kind < 0.25:
            return draw.choice((pb.CompleteRequest(), rig.request(model="nobody"), rig.request("x" * 9000)))
        fault = f" !{draw.choice(('crash', 'abort', 'exit', 'hang', 'garbage'))}@3" if kind > 0.995 else ""
        return rig.request(
            f"Once {id} {'upon ' * draw.choice((1, 1, 300))}{fault}",
            draw.choice(("stub", "stub", "other")),
            max_tokens=draw.choice((1, 20, 200)),
            endless=True,
        )

    # Faults.

    async def _trouble(self, draw: random.Random, most_seconds: float) -> bool:
        """Waits for the next fault; False when the time is over."""
        await asyncio.sleep(min(draw.uniform(0.1, most_seconds), max(0.0, self._until - time.monotonic())))
        return time.monotonic() < self._until

    async def _trouble_engine(self, models, draw: random.Random) -> None:
        while await self._trouble(draw, 4):
            engines = self._gateway.children
            how = draw.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP))
            if engines:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    os.kill(draw.choice(engines).pid, how)
                    self.faults[f"engine {how.name}"] += 1

    async def _trouble_models(self, models, draw: random.Random) -> None:
        while await self._trouble(draw, 3):
            with contextlib.suppress(grpc.aio.AioRpcError):
                if draw.random() < 0.5:
                    unload = models_pb2.UnloadRequest(model="other")
                    unload.drain_timeout.FromMilliseconds(draw.choice((0, 200)))
                    await models.Unload(unload, timeout=30)
                    self.faults["unload"] += 1
                await models.Load(models_pb2.LoadRequest(model="other"), timeout=30)

    async def _trouble_network(self, models, draw: random.Random) -> None:
        while await self._trouble(draw, 2):
            how = draw.choice(("reset", "silent", "late", "slow"))
            self.faults[f"network {how}"] += 1
            self._proxy.is_silent = how == "silent"
            self._proxy.latency_seconds = 0.05 if how == "late" else 0.0
            self._proxy.bytes_per_second = 2000 if how == "slow" else None
            if how == "reset":
                self._proxy.reset()
        self._proxy.is_silent = False
        self._proxy.latency_seconds, self._proxy.bytes_per_second = 0.0, None


async def _read(call, num: int | None) -> None:
    """Reads a call to its end, or leaves it after so many events."""
    if not hasattr(call, "read"):
        await call
        return
    while num is None or num > 0:
        if await call.read() is grpc.aio.EOF:
            return
        num = None if num is None else num - 1
    call.cancel()


class Told:
    """What the gateway's log says of the calls."""

    def __init__(self, log: pathlib.Path, deadlines: dict[str, float]) -> None:
        self.late: list[str] = []
        self.wrong: list[str] = []
        self.num = 0
        allowed = set().union(*ENDS.values())
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] != "rpc" or entry.get("id") not in deadlines:
                continue
            self.num += 1
            if entry["seconds"] > deadlines[entry["id"]] + GRACE_SECONDS:
                self.late.append(line)
            if entry["reason"] not in allowed:
                self.wrong.append(line)


def held(metrics_port: int) -> dict[str, float]:
    """Returns what a scrape says that calls hold."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as response:
        text = response.read().decode()

    def total(name: str) -> float:
        return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))

    return {
        "leases": total("inferwire_leases_created_total") - total("inferwire_leases_released_total"),
        # The scrape is no call.
        "calls": total("inferwire_calls_in_flight"),
        "cells": total("inferwire_kv_cells_used"),
    }


@contextlib.asynccontextmanager
async def soaking(folder: pathlib.Path, models: dict[str, str], seed: str, **settings: str):
    """Yields a soak of a gateway with two models and a provider, its log, and its metrics' port."""
    folder.mkdir()
    log, metrics_port = folder / "log", rig.free_port()
    async with provider(WIRES["openai"]) as remote:
        config = folder / "inferwire.toml"
        config.write_text(
            f'[backends.x]\ntype = "openai"\nbase_url = "{remote.url}"\nmodels = ["{MODEL}"]\n'
            "idle_seconds = 0.4\nprogress_seconds = 1\nbreaker_failures = 20\nbreaker_open_seconds = 1\n"
        )
        flags = [f"--model={name}={path}" for name, path in models.items()]
        with (
            log.open("w") as stderr,
            rig.gateway(
                f"--config={config}",
                *flags,
                stderr=stderr,
                metrics_address=f"127.0.0.1:{metrics_port}",
                **{**SETTINGS, **settings},
            ) as gateway,
        ):
            await rig.until_ready(gateway.address)
            yield gateway, Soak(gateway, remote, seed), log, metrics_port


@pytest.mark.nightly
@pytest.mark.timeout(SECONDS + 300)
async def test_r42_every_call_ends_in_time_whatever_goes_wrong(stub, card, draw, tmp_path):
    """Ten minutes: engines are killed and stopped, requests crash and hang them, models come and go, a provider fails in all its ways,
    the network is reset, silent, late and slow, callers leave. Every call ends by its deadline, by a reason that is one of these
    faults', for the caller and in the server's own log; afterwards nothing is held, and the gateway has not grown. A gateway whose
    loop is held up is seen.
    """
    models = {name: stub(name, step_seconds=0.002, slots=4).path for name in ("stub", "other")}
    seed = str(draw.random())
    async with soaking(tmp_path / "soak", models, seed) as (gateway, soak, log, metrics_port):
        await soak.run(WARM_UP_SECONDS)
        before = held_mib(gateway.popen.pid)
        await soak.run(SECONDS - WARM_UP_SECONDS)
        growth = held_mib(gateway.popen.pid) - before

        async def nothing_held() -> None:
            # No event tells of another process.
            while any((await asyncio.to_thread(held, metrics_port)).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

        await rig.within(30, nothing_held(), "freeing what calls held")
        gateway.popen.terminate()
        assert 0 == await gateway.exit_code(60)
        told = Told(log, soak.deadlines)
    print(
        f"ended: {dict(soak.ended)}; faults: {dict(soak.faults)}; in the log: {told.num}; growth: {growth:.1f} MiB"
    )
    num = sum(soak.ended.values())
    card.tell("R42", "hung", len(soak.late) + len(told.late), n=num)
    card.tell("R42", "wrong", len(told.wrong), n=told.num)
    card.tell("R42", "growth", max(0.0, growth), n=num)
    assert [] == soak.late + told.late
    assert [] == told.wrong[:5]
    assert growth < 20

    blocked = {"rig_lag_file": str(tmp_path / "lag"), "rig_blocks_loop_seconds": "3"}
    async with soaking(tmp_path / "control", models, seed, **blocked) as (_, soak, log, _):
        await soak.run(8)
        assert [] != Told(log, soak.deadlines).late
