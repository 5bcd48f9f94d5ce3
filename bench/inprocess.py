"""The engine without the service around it: its loop in the client's own process, or in an engine process of the client's.

What lies between the two is the price of isolation; what lies between the second and the whole service is that of gRPC. The
only file here that knows the inside of the engine. It runs in a process of its own, as the client:

    python -m bench.inprocess within|apart MODEL CONTEXT_LENGTH SLOTS THREADS

reads a line of requests, and writes a line of streams when all have ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import structlog

from inferwire_server.backends import local
from inferwire_server.backends.base import Call
from inferwire_server.config import EngineSettings
from inferwire_server.engine.__main__ import EngineProcess
from inferwire_server.engine.v1 import engine_pb2
from inferwire_server.files import ModelFile
from tools import setup_env

from .contestants import Config, Contestant, Inferwire, Request, Stream, Unavailable, to_message

_APART = "apart"

_T = TypeVar("_T")


class InProcess(Contestant):
    """The client process, asked through its pipes; the engine's loop is a thread of it."""

    name = "in process"
    where = "within"

    async def ask(self, requests: list[Request]) -> list[Stream]:
        """Has the client ask, which measures as well. Its clock is not ours, but runs at the same speed."""
        assert self._process is not None, "asked before it was started"
        assert self._process.stdin is not None, "asked for a pipe"
        assert self._process.stdout is not None, "asked for a pipe"
        self._process.stdin.write(
            json.dumps([dataclasses.asdict(request) for request in requests]).encode() + b"\n"
        )
        self._process.stdin.flush()
        line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            raise Unavailable(f"{self.name} ended.\n{self.log_tail()}")
        return [Stream(**stream) for stream in json.loads(line)]

    async def stream(self, request: Request, stream: Stream) -> None:
        """It answers all at once."""
        raise NotImplementedError

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        environment = {"GOMP_SPINCOUNT": local.SPIN_COUNT, **os.environ}
        return subprocess.Popen(
            self._command(), stdin=pipe, stdout=pipe, stderr=log, env=environment, cwd=setup_env.ROOT
        )

    def _command(self) -> list[str]:
        config = self.config
        shape = [str(number) for number in (config.context_length, config.slots, config.threads)]
        return [sys.executable, "-m", "bench.inprocess", self.where, str(config.model), *shape]

    async def _is_ready(self) -> bool:
        # Its first line says that the model is loaded.
        assert self._process is not None, "asked before it was started"
        assert self._process.stdout is not None, "asked for a pipe"
        return bool(await asyncio.to_thread(self._process.stdout.readline))


class EngineAlone(InProcess):
    """The same with an engine process, which the client speaks to as the gateway does."""

    name = "engine alone"
    where = _APART


class _Engine(EngineProcess):
    """The engine with its intake, as its process makes them, but without the process: reports stay here."""

    def __init__(self, config: Config) -> None:
        super().__init__(socket.socketpair()[0])
        settings = EngineSettings()
        command = engine_pb2.LoadCommand(
            path=str(config.model), model="bench", config=Inferwire(config).load_config
        )
        for field in engine_pb2.LoadCommand.DESCRIPTOR.fields:
            if hasattr(settings, field.name):
                setattr(command, field.name, getattr(settings, field.name))
        self._streams: dict[int, Stream] = {}
        self._ids = itertools.count(1)
        self._left = threading.Semaphore(0)
        is_loaded = threading.Event()

        def serve() -> None:
            # One thread computes from the first step on: libgomp keeps a team for every thread that ever began a computation,
            # and with more of them than cores each waits asleep at every barrier, which takes half of the speed.
            self._engine = self._load(command)
            is_loaded.set()
            self._engine.run()

        threading.Thread(target=serve, daemon=True).start()
        is_loaded.wait()

    def ask(self, requests: list[Request]) -> list[Stream]:
        """Submits all requests and returns their streams when all have ended."""
        streams = []
        for request in requests:
            number = next(self._ids)
            stream = Stream(begin=time.perf_counter())
            streams.append(stream)
            self._streams[number] = stream
            submit = engine_pb2.SubmitCommand(
                sequence_id=number,
                request=to_message(request),
                request_id=str(number),
                time_limit_seconds=600,
            )
            self._handle(engine_pb2.Command(submit=submit))
        for _ in requests:
            self._left.acquire()
        return streams

    def _emit(self, report: engine_pb2.StepReport) -> None:
        for sequence in report.sequences:
            if sequence.HasField("error"):
                _give_up(sequence)
            stream = self._streams[sequence.sequence_id]
            for event in sequence.events:
                if stream.take(event):
                    self._left.release()

    def _send(self, report: engine_pb2.Report) -> None:
        if report.HasField("refused"):
            _give_up(report.refused)


def _give_up(events: engine_pb2.SequenceEvents) -> NoReturn:
    sys.stderr.write(f"{events}\n")
    sys.stderr.flush()
    os._exit(1)


class _Apart:
    """The gateway's own side of an engine process, without the gateway."""

    def __init__(self, config: Config) -> None:
        # The loop goes on between two questions, as a gateway's does: a stall watchdog lives in it.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._ids = itertools.count(1)
        self._backend = self._run(self._load(config))

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _load(self, config: Config) -> local.LocalBackend:
        backend = local.LocalBackend(
            model="bench",
            file=ModelFile(config.model.name, config.model),
            config=Inferwire(config).load_config,
            settings=EngineSettings(),
            on_exit=lambda: os._exit(1),
        )
        await backend.load(lambda progress: None)
        return backend

    def ask(self, requests: list[Request]) -> list[Stream]:
        """Submits all requests and returns their streams when all have ended."""
        return self._run(self._ask(requests))

    async def _ask(self, requests: list[Request]) -> list[Stream]:
        return await asyncio.gather(*map(self._stream, requests))

    async def _stream(self, request: Request) -> Stream:
        stream = Stream(begin=time.perf_counter())
        call = Call(str(next(self._ids)), "", time.monotonic() + 600)
        async for event in self._backend.stream(to_message(request), call):
            stream.take(event)
        return stream


def main() -> None:
    """Serves the pipes until they are closed."""
    where, path, *shape = sys.argv[1:]
    context_length, slots, threads = map(int, shape)
    # Standard output is for answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    config = Config(Path(path), context_length, slots, threads)
    engine: _Engine | _Apart = _Apart(config) if where == _APART else _Engine(config)
    print("ready", flush=True)
    for line in sys.stdin:
        requests = [Request(**request) for request in json.loads(line)]
        print(json.dumps([dataclasses.asdict(stream) for stream in engine.ask(requests)]), flush=True)


if __name__ == "__main__":
    main()
