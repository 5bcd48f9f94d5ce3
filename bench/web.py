"""What a streamed event costs over the web port, beside gRPC: one server, one backend, the same events by every way.

    python -m bench.web [--events 200000] [--rounds 5]

The scripted backend says as many equal events as it can, to one reader, the ways taking turns. CPU is the server
process's own, user and system. Prints medians and writes bench/results/web.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import socket
import statistics
import struct
import time

import psutil
from google.protobuf import json_format

from bench.stream import EVENT, METHOD, measure, running
from inferwire.v1 import inference_pb2 as pb

RESULTS = pathlib.Path(__file__).parent / "results"
GRPC = "gRPC"
WAYS = {
    "Connect, protobuf": "application/connect+proto",
    "gRPC-Web, protobuf": "application/grpc-web+proto",
    "Connect, JSON": "application/connect+json",
}


async def measure_web(
    server: psutil.Process, port: int, content_type: str, request: pb.CompleteRequest
) -> dict[str, float]:
    """Reads one stream to its end. Returns events per second, and the server's CPU microseconds per event."""
    is_json = content_type.endswith("json")
    body = json_format.MessageToJson(request).encode() if is_json else request.SerializeToString()
    body = struct.pack(">BI", 0, len(body)) + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    cpu, begin = sum(server.cpu_times()[:2]), time.perf_counter()
    head = (
        f"POST {METHOD} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    seconds = time.perf_counter() - begin
    cpu = sum(server.cpu_times()[:2]) - cpu
    writer.close()
    count = num_frames(answer) - 1
    return {"events_per_second": count / seconds, "cpu_us_per_event": cpu / count * 1e6}


def num_frames(answer: bytes) -> int:
    """Returns how many frames a chunked answer has. Raises ValueError unless the last one says that it went well."""
    at, frames = answer.index(b"\r\n\r\n") + 4, bytearray()
    while size := int(answer[at : (end := answer.index(b"\r\n", at))], 16):
        frames += answer[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    at, count, last = 0, 0, b""
    while at < len(frames):
        (length,) = struct.unpack_from(">I", frames, at + 1)
        last, at, count = bytes(frames[at + 5 : at + 5 + length]), at + 5 + length, count + 1
    if last != b"{}" and b"grpc-status: 0" not in last:
        raise ValueError(f"the stream failed: {last!r}")
    return count


async def run(num_events: int, rounds: int) -> dict[str, object]:
    """Measures every way in turn, and returns medians and their ratios to gRPC."""
    per_round = num_events // rounds
    script = json.dumps({"events": [{"text": EVENT.text.text, "repeat": per_round}]})
    request = pb.CompleteRequest(model="scripted", prompt=script)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ("inferwire_server.cli", "serve", "--scripted", "--address", "127.0.0.1:0")
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in (GRPC, *WAYS)}
    with running(*command, "--web-address", f"127.0.0.1:{port}") as (process, address):
        for number in range(rounds + 1):
            for name, samples in taken.items():
                sample = (
                    await measure(process, address, request.SerializeToString())
                    if name == GRPC
                    else await measure_web(process, port, WAYS[name], request)
                )
                if number:  # the first round warms up
                    samples.append(sample)
    medians = {
        name: {key: round(statistics.median(sample[key] for sample in samples), 1) for key in samples[0]}
        for name, samples in taken.items()
    }
    return {
        "events_each": per_round * rounds,
        "rounds": rounds,
        "medians": medians,
        "cpu_to_grpc": {
            name: round(medians[name]["cpu_us_per_event"] / medians[GRPC]["cpu_us_per_event"], 2)
            for name in WAYS
        },
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description="What a streamed event costs over the web port.")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    result = asyncio.run(run(arguments.events, arguments.rounds))
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "web.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
