"""What a gateway costs per stream: a thousand streams of one scripted provider, through this server and through LiteLLM's proxy.

    python -m bench.gateway [--streams 1000] [--events 200] [--rounds 3]

The provider speaks OpenAI's format and sends every stream an event per tick, faster than either gateway can pass on. It, each
gateway and the client are processes of their own that share the machine; the client does as little as it can, over gRPC as over
HTTP, and the gateways take turns within one run. Every stream must arrive whole. Prints medians and writes bench/results/gateway.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator

import psutil

from inferwire.v1 import inference_pb2 as pb
from tools import setup_env

METHOD = "/inferwire.v1.InferenceService/StreamComplete"
RESULTS = pathlib.Path(__file__).parent / "results"
LITELLM = setup_env.ROOT / ".venv-litellm" / "bin" / "litellm"
OURS, PEER = "inferwire", "litellm"
MODEL = "gpt-scripted"
TOKEN = "token"
KEY = "sk-benchmark"
NUM_CONNECTIONS = 8
SAMPLE_SECONDS = 1.0
START_SECONDS = 120.0

_CHUNK = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"gpt-scripted",'
    '"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}\n\n'
)
# No two in a row are equal: LiteLLM takes a hundred equal ones for a model that is caught in a loop.
_DELTAS = [(_CHUNK % (json.dumps({"content": f"{TOKEN}{digit} "}), "null")).encode() for digit in range(10)]
_FIRST = (_CHUNK % (json.dumps({"role": "assistant", "content": ""}), "null")).encode()
_LAST = (_CHUNK % ("{}", '"stop"')).encode() + b"data: [DONE]\n\n"


class _Connection(asyncio.Protocol):
    """A connection of the provider: a stream is answered with so many events, one per tick."""

    def __init__(self, streaming: set[_Connection], num_events: int) -> None:
        self._streaming = streaming
        self._num_events = num_events
        self._left = 0
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "of a stream socket"
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._streaming.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if len(body) < length:
            return
        self._buffer = body[length:]
        assert self._transport is not None, "connected"
        if b"/chat/completions" not in head:
            body = b'{"object":"list","data":[]}'
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            + _part(_FIRST)
        )
        self._left = self._num_events
        self._streaming.add(self)

    def tick(self) -> None:
        """Sends the next event."""
        assert self._transport is not None, "connected"
        if self._left:
            self._left -= 1
            self._transport.write(_part(_DELTAS[self._left % len(_DELTAS)]))
        else:
            self._transport.write(_part(_LAST) + b"0\r\n\r\n")
            self._streaming.discard(self)


def _part(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve_provider(num_events: int, tick_seconds: float) -> None:
    """The scripted provider."""
    streaming: set[_Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(streaming, num_events), "127.0.0.1", 0, backlog=4096
    )
    print(f"listens on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    while True:
        await asyncio.sleep(tick_seconds)
        for connection in list(streaming):
            connection.tick()


@dataclasses.dataclass
class Stream:
    """One stream as it arrived; seconds since the beginning of all."""

    first: float = 0.0
    end: float = 0.0
    text: int = 0


_FRAME = struct.Struct(">BHBBI")
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_MAX_WINDOW = (1 << 31) - 1


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


async def ask_ours(address: str, streams: list[Stream], begin: float) -> None:
    """Asks for all streams at once, over several connections: one holds 256 at most.

    HTTP/2 by hand (RFC 9113), for the machine's cores are the gateway's to use: a client library would take as many.
    """
    request = pb.CompleteRequest(model=f"p/{MODEL}")
    request.chat.messages.add(role=pb.ROLE_USER).parts.add(text="Hello?")
    data = request.SerializeToString()
    message = b"\0" + len(data).to_bytes(4, "big") + data
    headers = b"".join(
        # A literal without indexing (RFC 7541, section 6.2.2).
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", METHOD.encode()), (b":authority", address.encode()),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )
    )  # fmt: skip
    host, _, port = address.rpartition(":")

    async def one(mine: list[Stream]) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        windows = struct.pack(">HI", 4, _MAX_WINDOW)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, windows))
        writer.write(_frame(_WINDOW_UPDATE, 0, 0, (_MAX_WINDOW - 65535).to_bytes(4, "big")))
        for index, _ in enumerate(mine):
            number = 2 * index + 1
            writer.write(_frame(_HEADERS, _END_HEADERS, number, headers))
            writer.write(_frame(_DATA, _END_STREAM, number, message))
        left = len(mine)
        while left:
            high, low, kind, flags, number = _FRAME.unpack(await reader.readexactly(_FRAME.size))
            payload = await reader.readexactly(high << 16 | low)
            if kind == _SETTINGS and not flags & _ACK:
                writer.write(_frame(_SETTINGS, _ACK, 0))
            elif kind == _PING and not flags & _ACK:
                writer.write(_frame(_PING, _ACK, 0, payload))
            elif kind == _GOAWAY:
                raise RuntimeError("the server closes the connection")
            elif number and kind in (_DATA, _HEADERS):
                stream = mine[number // 2]
                if kind == _DATA:
                    stream.first = stream.first or time.perf_counter() - begin
                    stream.text += payload.count(TOKEN.encode())
                if flags & _END_STREAM:
                    stream.end = time.perf_counter() - begin
                    left -= 1
        writer.close()

    share = -(-len(streams) // NUM_CONNECTIONS)
    await asyncio.gather(*(one(streams[first : first + share]) for first in range(0, len(streams), share)))


async def ask_peer(address: str, streams: list[Stream], begin: float) -> None:
    """The same over HTTP, a connection each, read with as little work as possible."""
    body = json.dumps(
        {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode()
    host, _, port = address.rpartition(":")

    async def one(stream: Stream) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        rest = b""
        while data := await reader.read(65536):
            stream.first = stream.first or time.perf_counter() - begin
            data = rest + data
            stream.text += data.count(TOKEN.encode())
            rest = data[-len(TOKEN) + 1 :]
        stream.end = time.perf_counter() - begin
        writer.close()

    await asyncio.gather(*(one(stream) for stream in streams))


Ask = Callable[[str, list[Stream], float], Awaitable[None]]


async def measure(
    name: str, gateway: psutil.Process, address: str, num_streams: int, num_events: int
) -> dict[str, float]:
    """Runs all streams through a gateway at once. RuntimeError when one does not arrive whole."""
    streams = [Stream() for _ in range(num_streams)]
    ask: Ask = ask_ours if name == OURS else ask_peer
    idle = _memory(gateway)
    peak = idle
    cpu, begin = _cpu(gateway), time.perf_counter()
    asking = asyncio.ensure_future(ask(address, streams, begin))
    while not asking.done():
        peak = max(peak, await asyncio.to_thread(_memory, gateway))
        await asyncio.wait([asking], timeout=SAMPLE_SECONDS)
    await asking
    seconds, cpu = time.perf_counter() - begin, _cpu(gateway) - cpu
    broken = [stream.text for stream in streams if stream.text != num_events]
    if broken:
        raise RuntimeError(
            f"{name}: {len(broken)} of {num_streams} streams did not arrive whole: {sorted(set(broken))[:5]}"
        )
    total = num_streams * num_events
    firsts = sorted(stream.first for stream in streams)
    return {
        "seconds": seconds,
        "events_per_second": total / seconds,
        "cpu_us_per_event": cpu / total * 1e6,
        "cpu_ms_per_stream": cpu / num_streams * 1e3,
        "idle_mb": idle / 1e6,
        "peak_mb": peak / 1e6,
        "kb_per_stream": (peak - idle) / num_streams / 1e3,
        "first_event_p50_s": firsts[len(firsts) // 2],
        "first_event_p99_s": firsts[int(len(firsts) * 0.99)],
        "last_end_to_median_end": max(stream.end for stream in streams)
        / statistics.median(stream.end for stream in streams),
    }


def _everyone(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    return float(sum(sum(each.cpu_times()[:2]) for each in _everyone(process)))


def _memory(process: psutil.Process) -> float:
    return float(sum(each.memory_full_info().pss for each in _everyone(process)))


@contextlib.contextmanager
def running(
    command: list[str], address: str, log: pathlib.Path, **environment: str
) -> Iterator[psutil.Process]:
    """Yields a server process once its port takes connections."""
    host, _, port = address.rpartition(":")
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        give_up = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def _provider(num_events: int, tick_seconds: float) -> Iterator[str]:
    """Yields the address of a provider process."""
    options = ["--events", str(num_events), "--tick", str(tick_seconds)]
    command = [sys.executable, "-m", "bench.gateway", "--provider", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "asked for a pipe"
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


@contextlib.contextmanager
def _gateways(provider: str, folder: pathlib.Path) -> Iterator[dict[str, tuple[psutil.Process, str]]]:
    ours, peer = _free_address(), _free_address()
    config = folder / "inferwire.toml"
    config.write_text(
        f'[backends.p]\ntype = "openai-compatible"\nbase_url = "http://{provider}/v1"\nmodels = ["{MODEL}"]\n'
        "idle_seconds = 600\nprogress_seconds = 600\n"
    )
    serve = [
        sys.executable,
        "-m",
        "inferwire_server.cli",
        "serve",
        "--config",
        str(config),
        "--address",
        ours,
    ]
    other = folder / "litellm.yaml"
    other.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://{provider}/v1\n      api_key: none\n      timeout: 600\n"
        f"general_settings:\n  master_key: {KEY}\n"
    )
    host, _, port = peer.rpartition(":")
    proxy = [str(LITELLM), "--config", str(other), "--host", host, "--port", port, "--num_workers", "1"]
    with contextlib.ExitStack() as stack:
        started = {
            OURS: (
                stack.enter_context(
                    running(serve, ours, folder / "inferwire.log", INFERWIRE_LOG_LEVEL="warning")
                ),
                ours,
            )
        }
        # The proxy's documented settings for production: errors only, no telemetry, nothing fetched from the internet.
        quiet = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        started[PEER] = (stack.enter_context(running(proxy, peer, folder / "litellm.log", **quiet)), peer)
        yield started


async def run(num_streams: int, num_events: int, rounds: int, tick_seconds: float) -> dict[str, object]:
    """Measures both gateways in turn, and returns medians and their ratios."""
    taken: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
    with (
        tempfile.TemporaryDirectory() as name,
        _provider(num_events, tick_seconds) as address,
        _gateways(address, pathlib.Path(name)) as gateways,
    ):
        for one, (process, where) in gateways.items():  # warm up
            await measure(one, process, where, 20, num_events)
        for round_ in range(rounds):
            for one, (process, where) in gateways.items():
                sample = await measure(one, process, where, num_streams, num_events)
                taken[one].append(sample)
                print(
                    f"    round {round_ + 1}  {one:<10} {sample['seconds']:7.2f} s"
                    f" {sample['events_per_second']:9.0f} events/s {sample['peak_mb']:8.1f} MB",
                    flush=True,
                )
    medians = {
        one: {key: round(statistics.median(sample[key] for sample in samples), 2) for key in samples[0]}
        for one, samples in taken.items()
    }
    ours, peer = medians[OURS], medians[PEER]
    return {
        "streams": num_streams,
        "events_each": num_events,
        "rounds": rounds,
        "medians": medians,
        "ratios": {
            "events_per_second": round(ours["events_per_second"] / peer["events_per_second"], 2),
            "peak_memory": round(ours["peak_mb"] / peer["peak_mb"], 3),
            "cpu_per_event": round(ours["cpu_us_per_event"] / peer["cpu_us_per_event"], 3),
        },
        "targets": {"events_per_second": ">= 5", "peak_memory": "<= 0.2"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def main() -> None:
    """Runs the benchmark, or the provider for it."""
    parser = argparse.ArgumentParser(description="What a gateway costs per stream.")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tick", type=float, default=0.05, help="seconds between two events of a stream")
    parser.add_argument("--provider", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.provider:
        asyncio.run(serve_provider(arguments.events, arguments.tick))
        return
    result = asyncio.run(run(arguments.streams, arguments.events, arguments.rounds, arguments.tick))
    medians = result["medians"]
    assert isinstance(medians, dict), "made above"
    print(f"\n{'':<26}" + "".join(f"{name:>14}" for name in medians))
    for key in medians[OURS]:
        print(f"{key:<26}" + "".join(f"{values[key]:>14.2f}" for values in medians.values()))
    print(f"ratios: {result['ratios']}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
