"""How soon a cancel frees what a request held: `python -m bench.cancel [--cancels 200]`.

A real server in this process, the demo model in its engine process, 8 streams decoding. A stream is cancelled by its client,
and the time runs until the engine reports one sequence less and the lease is gone.
Prints percentiles and writes bench/results/cancel.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import platform
import statistics
import time

import grpc

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire_server import logs
from inferwire_server.backends.base import Occupancy
from inferwire_server.config import ModelSettings, Settings
from inferwire_server.models import demo_model_path
from inferwire_server.server import Server

NUM_STREAMS = 8
RESULTS = pathlib.Path(__file__).parent / "results"


async def run(num_cancels: int) -> list[float]:
    """Returns the milliseconds from each cancel to the end of its lease and of its sequence."""
    config = {"context_length": 2048, "parallel_sequences": NUM_STREAMS, "threads": 1}
    models = {"demo": ModelSettings(path=str(demo_model_path()), config=config)}
    server = Server(Settings(address="127.0.0.1:0", models=models))
    await server.start()
    changes = server.registry.changes
    while server.registry.states()["demo"] != models_pb2.MODEL_STATE_READY:
        await changes.after(changes.revision)
    request = pb.CompleteRequest(prompt="Once upon a time")
    request.stopping.ignore_eos = True
    samples = []

    def occupancy() -> Occupancy:
        return server.registry.occupancy("demo")

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = InferenceServiceStub(channel)

        async def begun() -> grpc.aio.UnaryStreamCall[pb.CompleteRequest, pb.StreamCompleteResponse]:
            call = stub.StreamComplete(request)
            for _ in range(3):
                await call.read()
            return call

        for _ in range(num_cancels // NUM_STREAMS):
            calls = [await begun() for _ in range(NUM_STREAMS)]
            for left, call in reversed(list(enumerate(calls))):
                begin = time.perf_counter()
                call.cancel()
                while server.registry.num_leases > left or occupancy().sequences_running > left:
                    await changes.after(changes.revision, timeout_seconds=0.0005)
                samples.append((time.perf_counter() - begin) * 1000)
    await server.stop(drain_seconds=0)
    return samples


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description="How soon a cancel frees what a request held.")
    parser.add_argument("--cancels", type=int, default=200)
    logs.configure(format="text", level="warning")
    samples = sorted(asyncio.run(run(parser.parse_args().cancels)))
    cuts = statistics.quantiles(samples, n=100)
    result = {
        "cancels": len(samples),
        "milliseconds": {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(samples[-1], 2)},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cancel.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
