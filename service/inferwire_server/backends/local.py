"""A local model: the gateway's side of one engine process.

Starts the process by exec, never by a bare fork beside gRPC's threads, and speaks frames over a socket pair. The process's
end, however it comes, is one typed failure for each of its streams and for nobody else's. Never imports `llama_cpp`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import structlog
from google.protobuf.message import Message

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors, wire
from inferwire_server.config import EngineSettings
from inferwire_server.distribution import Distribution
from inferwire_server.engine.v1 import engine_pb2
from inferwire_server.files import ModelFile

from .admission import Admission
from .base import Call, Occupancy
from .mailbox import Mailbox
from .quarantine import Quarantine, Visit

log = structlog.get_logger()

BACKEND_ID = "local"
# What an engine process may know of the gateway's environment: how to find its libraries, and nothing secret.
KEPT_ENVIRONMENT = (
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "LLAMA_CPP_LIB_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)  # fmt: skip
# How long a computing thread turns in circles at a barrier before it sleeps. By default for milliseconds, which is a
# disaster as soon as anybody else wants a core: the thread that it waits for does not get one. Measured on 2 cores beside a
# process that keeps one busy: a token of one stream takes 41 ms and not up to 2.7 s; on quiet cores nothing is lost.
SPIN_COUNT = "4000"
# Texts of one Embed that the engine has at a time.
EMBED_WINDOW = 8
NUM_LOG_LINES_KEPT = 20
WATCH_INTERVAL_SECONDS = 0.5

Progress = Callable[[models_pb2.LoadProgress], None]


class Steps:
    """How long the steps of an engine took, and how much each computed."""

    def __init__(self) -> None:
        self.seconds = Distribution(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
        )
        self.tokens = Distribution([2.0**power for power in range(12)])
        self.sequences = Distribution([2.0**power for power in range(7)])

    def add(self, report: engine_pb2.StepReport) -> None:
        """Counts a step that computed something."""
        if report.step_tokens:
            self.seconds.add(report.step_seconds)
            self.tokens.add(report.step_tokens)
            self.sequences.add(report.step_sequences)


class LocalBackend:
    """One model in one engine process.

    `load` starts it, `unload` ends it, and `on_exit` is called when it ends by itself after it was loaded, `on_change` when
    its queue is another. An object serves one process: to start a model again, make a new one.
    """

    id = BACKEND_ID
    display_name = "llama.cpp"
    candidates = ()
    # What is started; it gets the descriptor of its socket and our process id. Only tests set another.
    command: Sequence[str] = (sys.executable, "-m", "inferwire_server.engine")

    def __init__(
        self,
        *,
        model: str,
        file: ModelFile,
        config: models_pb2.LoadConfig,
        adapters: Sequence[ModelFile] = (),
        settings: EngineSettings,
        on_exit: Callable[[], None],
        quarantine: Quarantine | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.instance_id = secrets.token_hex(8)
        self._file = file
        self._config = config
        self._adapters = adapters
        self._settings = settings
        self._on_exit = on_exit
        self._on_change = on_change
        self._quarantine = quarantine or Quarantine(model)
        self._info: models_pb2.Model | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded: asyncio.Future[models_pb2.Model] | None = None
        self._progress: Progress = lambda progress: None
        self._ids = itertools.count(1)
        self._mailboxes: dict[int, Mailbox] = {}
        self._visits: dict[int, Visit] = {}
        # The engine says at the end of its load how many places there are.
        self._admission = self._new_admission(0)
        self._queries: dict[int, asyncio.Future[engine_pb2.AnswerReport]] = {}
        self._embeddings: dict[int, asyncio.Future[engine_pb2.Embedded]] = {}
        self._last_report = time.monotonic()
        self._last_step = engine_pb2.StepReport()
        self.steps = Steps()
        self._end: errors.ServingError | None = None
        self._is_unloading = False
        self._stderr: deque[str] = deque(maxlen=NUM_LOG_LINES_KEPT)

    def _new_admission(self, num_places: int) -> Admission:
        return Admission(
            model=self.model,
            num_places=num_places,
            queue_capacity=self._settings.queue_capacity,
            queue_prompt_tokens=self._settings.queue_prompt_tokens,
        )

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        state = "ended" if self._end else "loaded" if self._info else "not loaded"
        return f"<LocalBackend {self.model} [{state} | pid {pid} | streams {len(self._mailboxes)}]>"

    # Its life.

    async def load(self, on_progress: Progress) -> models_pb2.Model:
        """Starts the process and loads the model; returns what it is.

        Raises errors.ServingError when it cannot be loaded. Whoever cancels this ends the process.
        """
        self._progress = on_progress
        on_progress(models_pb2.LoadProgress(stage=models_pb2.LOAD_STAGE_STARTING))
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            path, adapter_paths = await self._start()
            self._send(
                engine_pb2.Command(
                    load=engine_pb2.LoadCommand(
                        path=path,
                        model=self.model,
                        instance_id=self.instance_id,
                        config=self._config,
                        max_decode_step_seconds=self._settings.max_decode_step_seconds,
                        max_prefill_step_seconds=self._settings.max_prefill_step_seconds,
                        max_gather_tokens=self._settings.max_gather_tokens,
                        max_prompt_bytes=self._settings.max_prompt_bytes,
                        adapter_paths=adapter_paths,
                    )
                )
            )
            self._info = await self._loaded
            self._admission = self._new_admission(self._info.config.parallel_sequences)
        except BaseException as error:
            await self.unload(errors.LoadCancelled("the load was stopped"))
            if isinstance(error, errors.ModelFileInvalid | errors.InsufficientMemory | errors.LoadStalled):
                # What the loader said last; known whole only now that the process has ended.
                error.detail = error.detail or "; ".join(self._stderr)
            raise
        return self._info

    async def unload(self, error: errors.ServingError | None = None) -> None:
        """Ends the process and, with `error`, the streams that are left. A second call waits for the same end."""
        self._is_unloading = True
        self._fail_all(
            error or errors.ModelUnloaded("the model was unloaded", metadata={"model": self.model})
        )
        self._kill()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._writer is not None:
            self._writer.close()

    @property
    def is_loaded(self) -> bool:
        """Whether it answers requests."""
        return self._info is not None and self._end is None

    @property
    def model_info(self) -> models_pb2.Model:
        """What the loaded model is. RuntimeError before it was loaded."""
        if self._info is None:
            raise RuntimeError(f"{self!r} is not loaded")
        return self._info

    @property
    def pid(self) -> int | None:
        """The engine process, once it was started."""
        return self._process.pid if self._process else None

    @property
    def last_step(self) -> engine_pb2.StepReport:
        """What the process told last."""
        return self._last_step

    # Questions.

    @property
    def capabilities(self) -> models_pb2.Capabilities:
        """What the model can do."""
        return self._info.capabilities if self._info else models_pb2.Capabilities()

    @property
    def default_model(self) -> str:
        """Its one model."""
        return self.model

    @property
    def available_models(self) -> list[str]:
        """Its one model, once loaded."""
        return [self.model] if self.is_loaded else []

    @property
    def occupancy(self) -> Occupancy:
        """How busy it is, as of the last step."""
        return Occupancy(
            streams_in_flight=len(self._mailboxes) + len(self._embeddings),
            sequences_running=self._last_step.running,
            queue_length=self._last_step.waiting,
            parallel_sequences=self._info.config.parallel_sequences if self._info else 0,
            queue_capacity=self._settings.queue_capacity,
            cells_used=self._last_step.cells_used,
            prompt_tokens_total=self._last_step.prompt_tokens_total,
            completion_tokens_total=self._last_step.completion_tokens_total,
        )

    @property
    def problem(self) -> errors.ServingError | None:
        """None while the process answers."""
        return None if self.is_loaded else errors.ModelNotLoaded("the model is not in memory; load it first")

    # Requests.

    async def stream(
        self, request: pb.CompleteRequest, call: Call
    ) -> AsyncGenerator[pb.StreamCompleteResponse]:
        """See `Backend.stream`."""
        self._check_alive()
        self._check_supported(request)
        prompt_bytes = request.ByteSize()
        self._admission.check(prompt_bytes, call.deadline_seconds)
        sequence_id = next(self._ids)
        self._admission.enter(sequence_id, prompt_bytes, time.monotonic())
        mailbox = self._mailboxes[sequence_id] = Mailbox()
        try:
            async with self._visit(request) as visit:
                self._visits[sequence_id] = visit
                submit = engine_pb2.SubmitCommand(
                    sequence_id=sequence_id,
                    request_id=call.request_id,
                    request=request,
                    principal=call.principal,
                    time_limit_seconds=call.time_limit_seconds,
                    deadline_seconds=call.deadline_seconds,
                )
                self._send(engine_pb2.Command(submit=submit))
                async for event in mailbox:
                    call.tokens_emitted = mailbox.num_tokens
                    yield event
        finally:
            del self._mailboxes[sequence_id]
            self._visits.pop(sequence_id, None)
            self._admission.leave(sequence_id, time.monotonic())
            if not mailbox.ended:
                self._send(engine_pb2.Command(cancel=engine_pb2.CancelCommand(sequence_id=sequence_id)))

    def _visit(self, request: Message) -> contextlib.AbstractAsyncContextManager[Visit]:
        return self._quarantine.visit(request, lambda: self._end is not None)

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """See `Backend.embed`. The engine gets a few texts at a time, so that many of them let others in between."""
        self._check_alive()
        self._admission.check(request.ByteSize(), call.deadline_seconds)
        window = asyncio.Semaphore(min(EMBED_WINDOW, self.model_info.config.parallel_sequences))
        try:
            async with self._visit(request), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._embed(request, index, window, call))
                    for index in range(len(request.inputs))
                ]
        except BaseExceptionGroup as failures:
            # One of them failed and the group cancelled the others.
            raise failures.exceptions[0] from None
        embedded = [task.result() for task in tasks]
        prompt_tokens = sum(each.prompt_tokens for each in embedded)
        return pb.EmbedResponse(
            model=self.model,
            embeddings=[pb.Embedding(values=each.values) for each in embedded],
            usage=pb.Usage(prompt_tokens=prompt_tokens),
        )

    async def _embed(
        self, request: pb.EmbedRequest, index: int, window: asyncio.Semaphore, call: Call
    ) -> engine_pb2.Embedded:
        async with window:
            self._check_alive()
            sequence_id = next(self._ids)
            answer: asyncio.Future[engine_pb2.Embedded] = asyncio.get_running_loop().create_future()
            self._embeddings[sequence_id] = answer
            command = engine_pb2.EmbedCommand(
                sequence_id=sequence_id,
                input=request.inputs[index],
                index=index,
                pooling=request.pooling,
                dimensions=request.dimensions if request.HasField("dimensions") else None,
                normalize=request.normalize if request.HasField("normalize") else True,
                deadline_seconds=call.deadline_seconds,
                principal=call.principal,
            )
            try:
                self._send(engine_pb2.Command(embed=command))
                return await answer
            finally:
                del self._embeddings[sequence_id]
                if answer.cancelled():
                    cancel = engine_pb2.CancelCommand(sequence_id=sequence_id)
                    self._send(engine_pb2.Command(cancel=cancel))

    async def count_tokens(self, request: pb.CompleteRequest, call: Call) -> pb.CountTokensResponse:
        """Counts the tokens of a request."""
        self._check_supported(request)
        return (await self._ask(request, engine_pb2.QueryCommand(count_tokens=request))).count_tokens

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """Splits a text."""
        return (await self._ask(request, engine_pb2.QueryCommand(tokenize=request))).tokenize

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """Joins tokens."""
        return (await self._ask(request, engine_pb2.QueryCommand(detokenize=request))).detokenize

    def _check_alive(self) -> None:
        if self._end is not None:
            raise self._failure()

    def _check_supported(self, request: pb.CompleteRequest) -> None:
        """Refuses what the engine cannot honour; nothing is dropped."""
        violations = []
        if not self.model_info.capabilities.prompt:
            violations.append(("model", "only embeds"))
        chat = request.chat
        if chat.tools and not self.model_info.capabilities.tools:
            violations.append(("chat.tools", "the model's template or family knows no tools"))
        asks_for_thought = chat.reasoning.enabled or chat.reasoning.budget_tokens or chat.reasoning.effort
        if asks_for_thought and not self.model_info.capabilities.reasoning:
            violations.append(("chat.reasoning", "the model does not think apart from its text"))
        for index, message in enumerate(chat.messages):
            for place, part in enumerate(message.parts):
                if part.HasField("image") or part.tool_result.images:
                    violations.append(
                        (f"chat.messages[{index}].parts[{place}].image", "local models read no images yet")
                    )
        if violations:
            raise errors.UnsupportedByBackend(
                "the model cannot honour a field of the request",
                metadata={"model": self.model, "backend": self.id},
                violations=violations,
            )

    async def _ask(self, request: Message, query: engine_pb2.QueryCommand) -> engine_pb2.AnswerReport:
        query.query_id = next(self._ids)
        async with self._visit(request):
            self._check_alive()
            answer: asyncio.Future[engine_pb2.AnswerReport] = asyncio.get_running_loop().create_future()
            self._queries[query.query_id] = answer
            try:
                self._send(engine_pb2.Command(query=query))
                report = await answer
            finally:
                del self._queries[query.query_id]
        if report.HasField("error"):
            raise wire.unpack_error(report.error)
        return report

    def _failure(self) -> errors.ServingError:
        """Returns the failure that ended the process, for one of those who waited for it."""
        assert self._end is not None, "asked for the end of a process that runs"
        return self._end.copy()

    # The process.

    async def _start(self) -> tuple[str, list[str]]:
        """Starts the process. Returns the paths of the model and of its adapters as the process opens them."""
        ours, theirs = socket.socketpair()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        with contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            opened = [stack.enter_context(file.opened()) for file in (self._file, *self._adapters)]
            (path, *adapter_paths), fds = zip(*opened, strict=True)
            environment = {key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ}
            # Without it ggml starts a debugger on its own process when it aborts.
            environment["GGML_NO_BACKTRACE"] = "1"
            environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(), *itertools.chain(*fds)),
                env=environment,
            )
        self._last_report = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._read(reader), name=f"engine {self.model}: read"),
            asyncio.create_task(self._read_stderr(), name=f"engine {self.model}: log"),
            asyncio.create_task(self._watch(), name=f"engine {self.model}: watch"),
        ]
        return path, adapter_paths

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            # Not Process.kill: it polls, and may take the exit code from under asyncio.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def _send(self, command: engine_pb2.Command) -> None:
        if self._writer is not None and self._end is None:
            self._writer.write(wire.frame(command))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = wire.FrameReader()
        try:
            while data := await reader.read(1 << 16):
                for payload in frames.feed(data):
                    self._take(engine_pb2.Report.FromString(payload))
        except OSError as error:
            log.info("engine_socket_failed", model=self.model, error=error.strerror)
        except Exception:
            # What it says cannot be understood, so nothing that it says can be trusted: it ends as if it had crashed.
            log.exception("engine_report_failed", model=self.model)
        self._fail_all(
            errors.EngineCrashed(
                "the engine process ended; it is being started again", metadata={"model": self.model}
            )
        )
        # Its socket is closed, so it is ending or of no use.
        assert self._writer is not None, "read before it was started"
        self._writer.close()
        self._kill()
        by_itself = self._info is not None and not self._is_unloading
        if by_itself:
            self._on_exit()
        assert self._process is not None, "read before it was started"
        code = await self._process.wait()
        if by_itself:
            log.error("engine_ended", model=self.model, exit_code=code, last_lines=list(self._stderr))

    async def _read_stderr(self) -> None:
        assert self._process is not None, "read before it was started"
        assert self._process.stderr is not None, "started without a pipe"
        stream = self._process.stderr
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                continue  # a line beyond the reader's limit was dropped
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            for file in (self._file, *self._adapters):
                # Where the operator keeps the file is nobody's business who reads the log.
                text = text.replace(str(file.path), file.name)
            self._stderr.append(text)
            log.debug("engine", model=self.model, line=text)

    async def _watch(self) -> None:
        """Ends a process that makes no progress with work in flight, or in its load."""
        assert self._process is not None, "watched before it was started"
        ended = asyncio.create_task(self._process.wait())
        while not (await asyncio.wait([ended], timeout=WATCH_INTERVAL_SECONDS))[0]:
            idle_seconds = time.monotonic() - self._last_report
            if not self._info and idle_seconds > self._settings.load_stall_seconds:
                self._stalled(errors.LoadStalled("the load made no progress", metadata={"model": self.model}))
            elif not self._mailboxes and not self._embeddings:
                self._last_report = time.monotonic()
            elif idle_seconds > self._settings.stall_seconds:
                self._stalled(
                    errors.EngineStalled("the engine made no progress", metadata={"model": self.model})
                )

    def _stalled(self, error: errors.ServingError) -> None:
        log.error("engine_stalled", model=self.model, last_lines=list(self._stderr))
        self._fail_all(error)
        self._kill()

    # What the process tells.

    def _take(self, report: engine_pb2.Report) -> None:
        self._last_report = time.monotonic()
        match report.WhichOneof("report"):
            case "step":
                before, self._last_step = self._last_step, report.step
                self.steps.add(report.step)
                for entry in report.step.sequences:
                    self._take_events(entry)
                if before.waiting != report.step.waiting:
                    self._on_change()
            case "refused":
                self._take_events(report.refused)
            case "answer":
                answer = self._queries.get(report.answer.query_id)
                if answer is not None and not answer.done():
                    answer.set_result(report.answer)
            case "load_progress":
                self._progress(report.load_progress)
            case "loaded" if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(report.loaded.model)
            case "load_failed" if self._loaded is not None and not self._loaded.done():
                self._loaded.set_exception(wire.unpack_error(report.load_failed))

    def _take_events(self, entry: engine_pb2.SequenceEvents) -> None:
        waiting = self._embeddings.get(entry.sequence_id)
        if waiting is not None and not waiting.done():
            if entry.HasField("error"):
                waiting.set_exception(wire.unpack_error(entry.error))
            elif entry.HasField("embedded"):
                waiting.set_result(entry.embedded)
        mailbox = self._mailboxes.get(entry.sequence_id)
        if mailbox is None:
            return  # cancelled meanwhile
        mailbox.num_tokens = entry.generated_tokens
        self._quarantine.reached(self._visits[entry.sequence_id], entry.generated_tokens)
        if entry.generated_tokens:
            self._admission.begin(entry.sequence_id)
        mailbox.put(entry.events)
        if entry.HasField("error"):
            mailbox.fail(wire.unpack_error(entry.error))

    def _fail_all(self, error: errors.ServingError) -> None:
        """Ends everything that waits for the process. The first reason counts."""
        if self._end is None:
            self._end = error
            if isinstance(error, errors.EngineCrashed | errors.EngineStalled):
                self._quarantine.crashed()
            self._quarantine.changes.bump()
        for mailbox in self._mailboxes.values():
            mailbox.fail(self._failure())
        futures: list[asyncio.Future[Any]] = [*self._queries.values(), *self._embeddings.values()]
        for future in futures:
            if not future.done():
                future.set_exception(self._failure())
        if self._loaded is not None and not self._loaded.done():
            if isinstance(self._end, errors.EngineCrashed):
                # A process that dies while it loads was killed by the file.
                self._loaded.set_exception(
                    errors.ModelFileInvalid(
                        "the file is not a model that this server can load",
                        metadata={"model": self.model},
                    )
                )
            else:
                self._loaded.set_exception(self._failure())
            self._loaded.exception()  # seen: a cancelled load does not ask for it
