"""Who is measured: servers in processes of their own, all asked in the same way. Here is what they have in common, and our
own; the others are in `peers`.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import os
import re
import subprocess
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc
import psutil

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire.v1.models_pb2_grpc import ModelServiceStub
from tools import setup_env

from .build import WORK

if TYPE_CHECKING:
    from inferwire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from inferwire.v1.models_pb2_grpc import ModelServiceAsyncStub

START_SECONDS = 120.0
STOP_SECONDS = 10.0
NUM_LOG_LINES = 15
MODEL_NAME = "bench"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is equal for everybody. Logs and settings go to `folder`."""

    model: Path
    context_length: int
    slots: int
    threads: int
    folder: Path = WORK


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, greedily: a completion of a prompt (as text and as tokens), or the next message of a chat."""

    max_tokens: int
    prompt: str = ""
    token_ids: tuple[int, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    json_schema: str = ""


@dataclasses.dataclass
class Stream:
    """One answer as it came: `times` has the arrival of each token. Seconds of `time.perf_counter`."""

    begin: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    end: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""

    def arrived(self, text: str, num_tokens: int = 1) -> None:
        """Notes that text of so many tokens has just arrived."""
        self.times += [time.perf_counter()] * num_tokens
        self.text += text

    def take(self, event: pb.StreamCompleteResponse) -> bool:
        """Notes one event of our contract. Returns whether it was the last."""
        match event.WhichOneof("event"):
            case "text":
                self.arrived(event.text.text, len(event.text.token_ids))
            case "completion":
                self.end = time.perf_counter()
                self.prompt_tokens = event.completion.usage.prompt_tokens
                self.completion_tokens = event.completion.usage.completion_tokens
                return True
        return False


class Unavailable(Exception):
    """A contestant cannot be measured; the message says why, with the last lines of its log."""


class Contestant(abc.ABC):
    """A server process. It may be started again after it was stopped."""

    name: str

    def __init__(self, config: Config) -> None:
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{'up' if self._process else 'down'}]>"

    async def start(self) -> None:
        """Returns when requests are answered; raises Unavailable."""
        if self._process is not None:
            return
        with self._log.open("wb") as log:
            self._process = self._spawn(log)
        give_up = time.monotonic() + START_SECONDS
        while not await self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                await self.stop()
                raise Unavailable(f"{self.name} did not start.\n{self.log_tail()}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Ends the process and what it has started."""
        if self._process is None:
            return
        everyone = self.processes()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None

    async def ask(self, requests: list[Request]) -> list[Stream]:
        """Sends all requests at once. Returns the answers when all have ended, and raises Unavailable unless each free
        one has the tokens that were asked for.
        """
        streams = [Stream() for _ in requests]
        async with asyncio.TaskGroup() as group:
            for request, stream in zip(requests, streams, strict=True):
                group.create_task(self.stream(request, stream))
        for request, stream in zip(requests, streams, strict=True):
            if stream.completion_tokens != request.max_tokens and not request.json_schema:
                tokens = f"{request.max_tokens} tokens, {self.name} answered with {stream.completion_tokens}"
                raise Unavailable(f"asked for {tokens}")
        return streams

    @abc.abstractmethod
    async def stream(self, request: Request, stream: Stream) -> None:
        """Sends one request and fills in its answer as it comes. Cancelling ends the request at the server too."""

    def processes(self) -> list[psutil.Process]:
        """Returns the server's processes, the one that was started first; none while it is down."""
        if self._process is None:
            return []
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds, user and system, that the server has used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def pss_bytes(self) -> float:
        """Returns the memory that the server holds, its part of what it shares with others. Linux tells it alone."""
        if not hasattr(psutil.Process().memory_full_info(), "pss"):
            raise Unavailable("this system does not tell proportional set sizes")
        return float(sum(process.memory_full_info().pss for process in self.processes()))

    def log_tail(self) -> str:
        """Returns the last lines of the server's log."""
        lines = self._log.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:]
        return "\n".join(f"    {line}" for line in lines)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "INFERWIRE_LOG_LEVEL": "warning"}
        return subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=self.config.folder,
        )

    @property
    def _log(self) -> Path:
        return self.config.folder / f"{self.name.replace(' ', '-')}.log"

    @abc.abstractmethod
    def _command(self) -> list[str]: ...

    @abc.abstractmethod
    async def _is_ready(self) -> bool: ...


class Inferwire(Contestant):
    """Our own server, through gRPC. `loads` False: it starts without the model."""

    name = "inferwire"

    def __init__(self, config: Config, *, loads: bool = True) -> None:
        super().__init__(config)
        self._loads = loads
        self._channel: grpc.aio.Channel | None = None

    @property
    def load_config(self) -> models_pb2.LoadConfig:
        """How the model is loaded."""
        return models_pb2.LoadConfig(
            context_length=self.config.context_length,
            parallel_sequences=self.config.slots,
            threads=self.config.threads,
        )

    @property
    def stub(self) -> InferenceServiceAsyncStub:
        """The server's inference service."""
        assert self._channel is not None, "asked before it was started"
        return InferenceServiceStub(self._channel)

    @property
    def models(self) -> ModelServiceAsyncStub:
        """The server's model service."""
        assert self._channel is not None, "asked before it was started"
        return ModelServiceStub(self._channel)

    async def stop(self) -> None:
        """Closes the channel as well."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        await super().stop()

    async def stream(self, request: Request, stream: Stream) -> None:
        """Calls StreamComplete."""
        message = to_message(request)
        stream.begin = time.perf_counter()
        async for event in self.stub.StreamComplete(message):
            stream.take(event)

    def _command(self) -> list[str]:
        settings = self.config.folder / f"{self.name}.toml"
        settings.write_text(
            f'lame_duck_seconds = 0\ndrain_seconds = 0\n[models.{MODEL_NAME}]\npath = "{self.config.model}"\nload = {str(self._loads).lower()}\n'
            f"[models.{MODEL_NAME}.config]\ncontext_length = {self.config.context_length}\n"
            f"parallel_sequences = {self.config.slots}\nthreads = {self.config.threads}\n"
        )
        serve = ["-m", "inferwire_server.cli", "serve", "--config", str(settings), "--address", "127.0.0.1:0"]
        return [str(setup_env.PYTHON), *serve]

    async def _is_ready(self) -> bool:
        if self._channel is None:
            found = re.search(r"listens on (127\.0\.0\.1:\d+)", self._log.read_text(errors="replace"))
            if found is None:
                return False
            self._channel = grpc.aio.insecure_channel(found[1])
        if not self._loads:
            return True
        answer = await self.stub.GetModel(pb.GetModelRequest(model=MODEL_NAME), wait_for_ready=True)
        return bool(answer.model.state == models_pb2.MODEL_STATE_READY)


def to_message(request: Request) -> pb.CompleteRequest:
    """Returns a request as our contract's message."""
    message = pb.CompleteRequest(model=MODEL_NAME)
    if request.messages:
        for role, text in request.messages:
            message.chat.messages.add(role=pb.Role.Value(f"ROLE_{role.upper()}")).parts.add(text=text)
    else:
        message.prompt = request.prompt
    if request.json_schema:
        message.response_format.json_schema = request.json_schema
    message.sampling.temperature = 0
    message.stopping.max_tokens = request.max_tokens
    message.stopping.ignore_eos = not request.json_schema
    message.output.token_ids = True
    return message
