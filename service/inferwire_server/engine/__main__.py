"""An engine process: `python -m inferwire_server.engine FD PARENT_PID`, started by the gateway with one end of a socket pair.

Loads one model, then runs the engine on the main thread while the intake thread reads commands. Dies with the gateway:
by the parent-death signal where there is one, and in any case when the socket closes. Never imports `grpc`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pathlib
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors, wire

from .cells import Cells
from .chat.family import Family, detect, family
from .chat.model import ChatModel
from .chat.template import ChatTemplate
from .detokenizer import TextStream
from .embedding import PooledVector
from .engine import Engine
from .intake import EmbeddingModel, Intake
from .scheduler import Scheduler, StepBudget
from .sequence import SamplingParams, Sequence
from .v1 import engine_pb2

if TYPE_CHECKING:
    from .sampler import LlamaSampler

log = logging.getLogger(__name__)

WARM_UP_TOKENS = 64
PROGRESS_INTERVAL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


class EngineProcess:
    """The process: a socket, the intake thread, and the engine on the calling thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._loads: queue.SimpleQueue[engine_pb2.LoadCommand] = queue.SimpleQueue()
        self._intake: Intake | None = None
        self._engine: Engine[LlamaSampler] | None = None

    def run(self) -> int:
        """Serves until the gateway closes the socket. Returns the exit code."""
        threading.Thread(target=self._read, name="intake", daemon=True).start()
        command = self._loads.get()
        try:
            engine = self._load(command)
        except errors.ServingError as error:
            self._send(engine_pb2.Report(load_failed=wire.pack_error(error)))
            return 1
        engine.run()
        return 0

    def _load(self, command: engine_pb2.LoadCommand) -> Engine[LlamaSampler]:
        self._progress(models_pb2.LOAD_STAGE_READING, 0.0)
        # Imported late: the gateway sees the process start at once, and the import takes a while.
        from .grammar import GrammarCompiler
        from .llama_runner import LlamaRunner

        size = pathlib.Path(command.path).stat().st_size
        last_told = 0.0

        def on_progress(fraction: float) -> None:
            nonlocal last_told
            now = time.monotonic()
            if fraction >= 1 or now - last_told >= PROGRESS_INTERVAL_SECONDS:
                last_told = now
                self._progress(models_pb2.LOAD_STAGE_READING, fraction, size)

        runner = LlamaRunner(
            command.path, command.config, adapters=command.adapter_paths, progress=on_progress
        )
        config = runner.config
        model = runner.model
        source = config.chat_template if config.HasField("chat_template") else model.chat_template
        vocabulary = runner.vocabulary
        grammars = GrammarCompiler(vocabulary.handle, end_tokens=vocabulary.end_tokens())
        chat = None
        if source:
            bos, eos = vocabulary.special_text("bos"), vocabulary.special_text("eos")
            chat = ChatModel(
                model=command.model,
                template=ChatTemplate(source, bos=bos, eos=eos, max_bytes=command.max_prompt_bytes),
                family=_family(config, source),
                vocabulary=vocabulary,
                grammars=grammars,
            )
        self._intake = Intake(
            model=command.model,
            instance_id=command.instance_id,
            vocabulary=vocabulary,
            chat=chat,
            context_length=config.context_length,
            embedding=EmbeddingModel(
                pooling=model.pooling,
                width=model.width,
                max_tokens=model.max_embed_tokens,
                is_indivisible=not model.is_causal,
            ),
            compile_grammar=grammars.compile,
        )
        self._progress(models_pb2.LOAD_STAGE_WARMING_UP, 0.0)
        cells = Cells(
            num_slots=config.parallel_sequences,
            cells_per_slot=config.context_length,
            num_cells=model.num_pooled_cells,
            sharing=model.sharing,
        )
        scheduler = Scheduler(cells=cells, batch_size=config.batch_size)
        budget = StepBudget(
            batch_size=config.batch_size,
            max_decode_step_seconds=command.max_decode_step_seconds,
            max_prefill_step_seconds=command.max_prefill_step_seconds,
            max_gather_tokens=command.max_gather_tokens,
            fixed_tokens=config.batch_size if config.deterministic else None,
        )
        warm_up = Engine(runner=runner, scheduler=scheduler, budget=budget, emit=lambda report: None)
        warm_up.submit(
            _warm_up_sequence(min(WARM_UP_TOKENS, config.context_length - 1), embeds=not model.is_causal)
        )
        warm_up.run_until_idle()
        if model.is_causal and not runner.computes_numbers():
            raise errors.ModelFileInvalid("the model computes values that are no numbers")
        self._engine = Engine(
            runner=runner,
            scheduler=scheduler,
            budget=budget,
            emit=self._emit,
            compute_masks=grammars.compute_masks,
        )
        self._progress(models_pb2.LOAD_STAGE_WARMING_UP, 1.0)

        description = models_pb2.Model()
        description.CopyFrom(model.description)
        description.name = command.model
        description.instance_id = command.instance_id
        description.capabilities.prompt = model.is_causal
        if model.is_causal and chat is not None:
            chat.describe(description.capabilities)
        description.capabilities.logprobs = model.is_causal
        description.capabilities.structured_output = model.is_causal
        description.capabilities.embeddings = True
        description.capabilities.tokens = True
        self._send(engine_pb2.Report(loaded=engine_pb2.LoadedReport(model=description)))
        return self._engine

    # The intake thread.

    def _read(self) -> None:
        reader = wire.FrameReader()
        try:
            while data := self._connection.recv(1 << 16):
                for payload in reader.feed(data):
                    self._handle(engine_pb2.Command.FromString(payload))
        except OSError as error:
            log.info("the socket failed: %s", error)
        except Exception:
            log.exception("the intake failed")
            os._exit(70)
        # The gateway closed the socket or is gone: nothing here is of use to anybody, not even a running load.
        os._exit(0)

    def _handle(self, command: engine_pb2.Command) -> None:
        match command.WhichOneof("command"):
            case "load":
                self._loads.put(command.load)
            case "submit":
                self._begin(command.submit.sequence_id, lambda intake: intake.sequence(command.submit))
            case "embed":
                self._begin(command.embed.sequence_id, lambda intake: intake.embedding(command.embed))
            case "cancel" if self._engine is not None:
                self._engine.cancel(command.cancel.sequence_id)
            case "query":
                self._send(engine_pb2.Report(answer=self._answer(command.query)))

    def _begin(self, sequence_id: int, make: Callable[[Intake], Sequence]) -> None:
        assert self._intake is not None, "submitted before the model was loaded"
        assert self._engine is not None, "submitted before the model was loaded"
        try:
            self._engine.submit(make(self._intake))
        except Exception as error:  # noqa: BLE001  a defect at the door is this request's alone
            failure = wire.pack_error(_told(error))
            events = engine_pb2.SequenceEvents(sequence_id=sequence_id, error=failure)
            self._send(engine_pb2.Report(refused=events))

    def _answer(self, query: engine_pb2.QueryCommand) -> engine_pb2.AnswerReport:
        assert self._intake is not None, "asked before the model was loaded"
        answer = engine_pb2.AnswerReport(query_id=query.query_id)
        try:
            match query.WhichOneof("query"):
                case "count_tokens":
                    answer.count_tokens.CopyFrom(self._intake.count_tokens(query.count_tokens))
                case "tokenize":
                    answer.tokenize.CopyFrom(self._intake.tokenize(query.tokenize))
                case "detokenize":
                    answer.detokenize.CopyFrom(self._intake.detokenize(query.detokenize))
        except Exception as error:  # noqa: BLE001  as above
            answer.error.CopyFrom(wire.pack_error(_told(error)))
        return answer

    # Both threads.

    def _emit(self, report: engine_pb2.StepReport) -> None:
        self._send(engine_pb2.Report(step=report))

    def _progress(self, stage: models_pb2.LoadStage, fraction: float, size: int = 0) -> None:
        progress = models_pb2.LoadProgress(
            stage=stage, fraction=fraction, bytes_done=int(fraction * size), bytes_total=size
        )
        self._send(engine_pb2.Report(load_progress=progress))

    def _send(self, report: engine_pb2.Report) -> None:
        data = wire.frame(report)
        with self._send_lock:
            try:
                self._connection.sendall(data)
            except OSError:
                os._exit(0)


def _family(config: models_pb2.LoadConfig, template: str) -> Family:
    """Returns the family that was asked for, or the one that the template tells; the config says it."""
    if not config.HasField("chat_family"):
        config.chat_family = detect(template)
    try:
        return family(config.chat_family)
    except ValueError as error:
        raise errors.InvalidRequest(
            "the chat family is not known", violations=[("config.chat_family", str(error))]
        ) from error


def _told(error: Exception) -> errors.ServingError:
    """Returns what is told of a failed request. A defect at the door is that request's alone."""
    if isinstance(error, errors.ServingError):
        return error
    log.error("the intake failed", exc_info=error)
    return errors.Internal("internal error", detail=type(error).__name__)


def _warm_up_sequence(num_tokens: int, *, embeds: bool) -> Sequence:
    return Sequence(
        sequence_id=0,
        prompt=[0] * num_tokens,
        sampling=SamplingParams(temperature=0),
        max_tokens=1,
        started=pb.Started(),
        text=TextStream(),
        arrived=0.0,
        time_limit=float("inf"),
        vector=PooledVector(pb.POOLING_MEAN, num_tokens=num_tokens) if embeds else None,
    )


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends (Linux); elsewhere the socket's end does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the signal was armed.
        os._exit(0)


def main(process: type[EngineProcess] = EngineProcess) -> None:
    """Runs the process. Tests run one of their own."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    # A terminal's Ctrl-C and a service manager's SIGTERM go to the whole group; the gateway decides when an engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    handler = logging.StreamHandler()
    handler.setFormatter(_Wordless("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.excepthook = lambda type, error, trace: log.critical("the engine failed", exc_info=error)
    sys.exit(process(socket.socket(fileno=fd)).run())


class _Wordless(logging.Formatter):
    """Tells where an exception came from, and not what it says: that may quote a prompt, and goes into the server's log."""

    def formatException(self, ei: Any) -> str:
        kind, _, trace = ei
        return f"{''.join(traceback.format_tb(trace))}{kind.__qualname__}"


if __name__ == "__main__":
    main()
