"""What a streamed event costs each client: one stream of the scripted backend, gathered by the client's own means.

    python -m bench.clients [LANGUAGE...]

The clients are the programs of tests/conformance, built by `make conformance`; they take turns within one run, one connection each,
against one server process. Prints medians and writes bench/results/clients.json.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pathlib
import platform
import statistics
import sys
import time

from inferwire.v1 import inference_pb2 as pb
from tests.conformance.runner import Program
from tools.clients import CLIENTS

from .stream import running

RESULTS = pathlib.Path(__file__).parent / "results"
NUM_EVENTS = 50_000
ROUNDS = 5


async def run(languages: list[str]) -> dict[str, float]:
    """Returns events per second of each language's client."""
    taken: dict[str, list[float]] = {language: [] for language in languages}
    with running("inferwire_server.cli", "serve", "--scripted", "--address", "127.0.0.1:0") as (_, address):
        programs = {language: Program.of(language) for language in languages}
        for language, program in programs.items():
            await program.start()
            await _seconds(program, address, language, 1000)
        for _ in range(ROUNDS):
            for language, program in programs.items():
                taken[language].append(NUM_EVENTS / await _seconds(program, address, language, NUM_EVENTS))
        for program in programs.values():
            await program.stop()
    return {language: round(statistics.median(rates)) for language, rates in taken.items()}


async def _seconds(program: Program, address: str, id: str, num_events: int) -> float:
    script = json.dumps({"events": [{"text": " token", "repeat": num_events}]})
    request = pb.CompleteRequest(model="scripted", prompt=script).SerializeToString()
    call = {"method": "GatherStream", "request": base64.b64encode(request).decode(), "timeout_ms": 120_000}
    begin = time.perf_counter()
    told = await program.ask({"id": id, "connect": {"target": address, "tls": False}, "call": call})
    seconds = time.perf_counter() - begin
    answer = pb.CompleteResponse.FromString(base64.b64decode(told["messages"][0]))
    if answer.completion.usage.completion_tokens != num_events:
        raise RuntimeError(f"{id} did not get the whole stream")
    return seconds


def main() -> None:
    """Runs the benchmark."""
    languages = sys.argv[1:] or [language for language, client in CLIENTS.items() if client.is_built]
    rates = asyncio.run(run(languages))
    for language, rate in rates.items():
        print(f"{language:<14}{rate:>10} events/s")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result = {"events": NUM_EVENTS, "rounds": ROUNDS, "events_per_second": rates, "machine": machine}
    (RESULTS / "clients.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
