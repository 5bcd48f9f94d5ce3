"""The benchmark of the engine beside its peers: `make bench`. See bench/README.md for what is measured and how."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tools import setup_env

from . import build, figures, model, report
from .contestants import Config, Inferwire, Unavailable
from .peers import BatchedBench, LlamaServer, PackagedServer
from .turns import QUICK, Bench, Prompts, Scale
from .workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
CONTEXT_LENGTH = 2304
SLOTS = 32


def main() -> int:
    """Returns 1 when one of our own figures could not be measured."""
    arguments = _arguments()
    folder = build.WORK / "quick" if arguments.quick else RESULTS
    if arguments.plot:
        report.plot(folder)
        return 0
    # make passes SIGTERM on to us alone; it ends us like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _only_one_at_a_time():
            unbuilt = _prepare()
            path = arguments.model.resolve() if arguments.model else model.make()
            return asyncio.run(_run(arguments, folder, path, unbuilt))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nStopped.", file=sys.stderr)
        return 130
    except (Unavailable, setup_env.SetupError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measures the engine beside its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="smaller and fewer: minutes, into build/bench/quick"
    )
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="W1,W3", help="these workloads alone")
    parser.add_argument("--model", type=Path, metavar="PATH", help="another GGUF file")
    parser.add_argument("--rounds", type=int, help="how often everybody takes a turn")
    parser.add_argument("--threads", type=int, default=_num_cores(), help="threads of each server")
    parser.add_argument("--plot", action="store_true", help="only draw the plots of the results anew")
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    return arguments


async def _run(arguments: argparse.Namespace, folder: Path, path: Path, unbuilt: dict[str, str]) -> int:
    _stop_on_signals()
    scale = QUICK if arguments.quick else Scale()
    if arguments.rounds:
        scale = scale.with_rounds(arguments.rounds)
    logs = build.WORK / "logs"
    logs.mkdir(exist_ok=True)
    config = Config(path, CONTEXT_LENGTH, SLOTS, arguments.threads, logs)
    ours = Inferwire(config)
    bench = Bench(ours, LlamaServer(config), PackagedServer(config), Prompts(ours), scale)
    facts = {"machine": report.machine(), "model": path.name}
    rows: list[figures.Row] = []
    is_whole = True
    try:
        setup_env.step(f"Starting {ours.name}")
        await ours.start()
        await bench.prompts.load()
        for workload in arguments.only.split(","):
            begin = time.monotonic()
            title = (WORKLOADS[workload].__doc__ or "").partition(": ")[2]
            setup_env.step(f"{workload}: {title}")
            # Who failed at one thing may do another.
            bench.failures = dict(unbuilt)
            turns = await WORKLOADS[workload](bench)
            made = figures.rows(workload, turns, bench.failures)
            report.save(folder, workload, turns, made, facts)
            rows += made
            is_whole &= ours.name not in bench.failures
            setup_env.done(begin)
    finally:
        for contestant in (ours, bench.llama_server, bench.packaged):
            await contestant.stop()
    report.plot(folder)
    print(f"\n{facts['machine']}; {facts['model']}; {scale.rounds} rounds\n")
    report.print_table(rows)
    print(f"\nTurns, figures and plots: {folder.relative_to(setup_env.ROOT)}")
    return 0 if is_whole else 1


def _stop_on_signals() -> None:
    """Makes Ctrl-C and SIGTERM cancel the current task, once: whoever is impatient must not keep it from ending servers."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "called by a task"

    def stop() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _prepare() -> dict[str, str]:
    """Builds what is missing. Returns who cannot take part, and why."""
    build.fetch_source()
    try:
        build.build()
    except setup_env.SetupError as error:
        print(f"\n{error}\nGoing on without these two.", file=sys.stderr)
        return {peer.name: f"it was not built.\n{error}" for peer in (LlamaServer, BatchedBench)}
    return {}


@contextlib.contextmanager
def _only_one_at_a_time() -> Iterator[None]:
    with Path(__file__).open() as mutex:
        try:
            fcntl.flock(mutex, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another benchmark of this folder to end.", flush=True)
            fcntl.flock(mutex, fcntl.LOCK_EX)
        yield


def _num_cores() -> int:
    return len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
