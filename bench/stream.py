"""What a streamed event costs: the scripted backend through a real channel, beside a bare grpc.aio stream.

    python -m bench.stream [--events 1000000] [--rounds 5]

Both servers are processes of their own and send the same bytes to the same client, taking turns within one run. Prints
medians and writes bench/results/stream.json. CPU is the server process's own, user and system.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import psutil

from inferwire.v1 import inference_pb2 as pb

METHOD = "/inferwire.v1.InferenceService/StreamComplete"
EVENT = pb.StreamCompleteResponse(text=pb.TextDelta(text=" token"))
OURS, BARE = "scripted", "bare grpc.aio"
RESULTS = pathlib.Path(__file__).parent / "results"


async def serve_bare() -> None:
    """A server with nothing but grpc.aio: as many equal events as the request asks for, serialized one by one."""

    async def stream(
        request: bytes, context: grpc.aio.ServicerContext[bytes, pb.StreamCompleteResponse]
    ) -> AsyncIterator[pb.StreamCompleteResponse]:
        for _ in range(int(request)):
            yield EVENT

    handler: grpc.RpcMethodHandler[bytes, pb.StreamCompleteResponse] = grpc.unary_stream_rpc_method_handler(
        stream, response_serializer=pb.StreamCompleteResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inferwire.v1.InferenceService", {"StreamComplete": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listens on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[psutil.Process, str]]:
    """Yields a server process and its address."""
    environment = {**os.environ, "INFERWIRE_LOG_LEVEL": "warning"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None, "asked for a pipe"
    try:
        found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
        if found is None:
            raise RuntimeError(f"{command} did not start")
        yield psutil.Process(process.pid), found[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def measure(server: psutil.Process, address: str, request: bytes) -> dict[str, float]:
    """Reads one stream to its end. Returns events per second, and the server's CPU microseconds per event."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
        cpu, begin, count = sum(server.cpu_times()[:2]), time.perf_counter(), 0
        async for _ in call(request):
            count += 1
        seconds = time.perf_counter() - begin
        cpu = sum(server.cpu_times()[:2]) - cpu
    return {"events_per_second": count / seconds, "cpu_us_per_event": cpu / count * 1e6}


async def samples(num_events: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measures both servers in turn. Returns what each round gave."""
    per_round = num_events // rounds
    script = json.dumps({"events": [{"text": EVENT.text.text, "repeat": per_round}]})
    requests = {
        OURS: pb.CompleteRequest(model="scripted", prompt=script).SerializeToString(),
        BARE: str(per_round).encode(),
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in requests}
    with (
        running("inferwire_server.cli", "serve", "--scripted", "--address", "127.0.0.1:0") as ours,
        running("bench.stream", "--bare") as bare,
    ):
        servers = {OURS: ours, BARE: bare}
        for name, (process, address) in servers.items():  # warm up
            await measure(process, address, requests[name])
        for _ in range(rounds):
            for name, (process, address) in servers.items():
                taken[name].append(await measure(process, address, requests[name]))
    return taken


async def run(num_events: int, rounds: int) -> dict[str, object]:
    """Measures both servers, and returns medians and their ratios."""
    taken = await samples(num_events, rounds)
    medians = {
        name: {key: round(statistics.median(sample[key] for sample in rounds_), 1) for key in rounds_[0]}
        for name, rounds_ in taken.items()
    }
    ours, bare = medians[OURS], medians[BARE]
    return {
        "events_each": num_events // rounds * rounds,
        "rounds": rounds,
        "medians": medians,
        "ratios": {key: round(ours[key] / bare[key], 2) for key in ("events_per_second", "cpu_us_per_event")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def main() -> None:
    """Runs the benchmark, or the bare server for it."""
    parser = argparse.ArgumentParser(description="What a streamed event costs.")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        asyncio.run(serve_bare())
        return
    result = asyncio.run(run(arguments.events, arguments.rounds))
    medians = result["medians"]
    assert isinstance(medians, dict), "made above"
    print(f"{'server':<16}{'events/s':>12}{'CPU us/event':>16}")
    for name, values in medians.items():
        print(f"{name:<16}{values['events_per_second']:>12.0f}{values['cpu_us_per_event']:>16.1f}")
    print(f"ratios: {result['ratios']}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stream.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
