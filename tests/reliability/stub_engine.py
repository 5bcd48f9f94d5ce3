"""An engine process without llama.cpp: the real intake, scheduler, cells and steps, over a model that is arithmetic.

Started by the gateway as the real one is, it speaks the same frames. Its model file is a `Plan`; a prompt may carry one fault
(`!crash@5`: when it has five tokens) or end with the very bytes to answer (`say:e282ac;`). Some fields of a plan break the engine on
purpose: with them a test shows that what it looks for would be seen.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import wire
from inferwire_server.engine import __main__ as engine_main
from inferwire_server.engine.cells import Cells, Sharing
from inferwire_server.engine.detokenizer import TextStream
from inferwire_server.engine.engine import Engine
from inferwire_server.engine.intake import EmbeddingModel, Intake
from inferwire_server.engine.scheduler import Chunk, Scheduler, StepBudget
from inferwire_server.engine.sequence import Sequence as EngineSequence
from inferwire_server.engine.v1 import engine_pb2
from tests.engine_fakes import EOS, FakeClock, FakeRunner, FakeSampler, arithmetic

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.reliability import stub_engine; stub_engine.main()",
)
BATCH_SIZE = 512
LEAK_BYTES = 64 << 10
# Written to the standard error for a request whose deadline had passed when it got its place.
LATE = "LATE"
LATE_SECONDS = 0.005
FAULT = re.compile(rb"!(crash|abort|exit|hang|garbage)@(\d+)")
SAY = re.compile(rb"say:([0-9a-f]*);")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file of a stub model says. The last ones are the ways to break the engine."""

    step_seconds: float = 0.0
    prompt_token_seconds: float = 0.0
    load_seconds: float = 0.0
    slots: int = 4
    context_length: int = 4096
    leaks: bool = False
    ignores_cancels: bool = False
    ignores_deadlines: bool = False
    keeps_cells: bool = False
    lets_neighbours_change: bool = False
    decodes_tokens_alone: bool = False
    ignores_formats: bool = False
    leaves_a_child: bool = False


class StubProcess(engine_main.EngineProcess):
    """The real process but for its model."""

    def _load(self, command: engine_pb2.LoadCommand) -> Engine[FakeSampler]:  # type: ignore[override]
        plan = self._plan = msgspec.json.decode(pathlib.Path(command.path).read_bytes(), type=Plan)
        time.sleep(plan.load_seconds)
        if plan.leaves_a_child and os.fork() == 0:
            _hang()
        config = command.config
        slots = config.parallel_sequences or plan.slots
        length = config.context_length or plan.context_length
        runner = StubRunner(plan, self._garbage)
        self._intake = StubIntake(
            plan=plan,
            model=command.model,
            instance_id=command.instance_id,
            vocabulary=runner.vocabulary,
            chat=None,
            context_length=length,
            embedding=EmbeddingModel(pb.POOLING_MEAN, width=2, max_tokens=length, is_indivisible=False),
            compile_grammar=(lambda form: None) if plan.ignores_formats else None,
        )
        self._engine = StubEngine(  # type: ignore[assignment]
            plan,
            runner=runner,
            scheduler=Scheduler(
                cells=Cells(num_slots=slots, cells_per_slot=length, sharing=Sharing.NONE),
                batch_size=BATCH_SIZE,
            ),
            budget=StepBudget(
                batch_size=BATCH_SIZE,
                max_decode_step_seconds=command.max_decode_step_seconds,
                max_prefill_step_seconds=command.max_prefill_step_seconds,
                fixed_tokens=BATCH_SIZE,
            ),
            emit=self._emit,
        )
        loaded = engine_pb2.LoadedReport()
        loaded.model.name = command.model
        loaded.model.instance_id = command.instance_id
        loaded.model.context_length = length
        loaded.model.config.context_length = length
        loaded.model.config.parallel_sequences = slots
        for capability in ("prompt", "embeddings", "tokens", "structured_output"):
            setattr(loaded.model.capabilities, capability, True)
        self._send(engine_pb2.Report(loaded=loaded))
        return self._engine  # type: ignore[return-value]

    def _emit(self, report: engine_pb2.StepReport) -> None:
        report.cells_used += self._plan.keeps_cells
        super()._emit(report)

    def _garbage(self) -> None:
        """Sends a frame that is no report."""
        data = b"\xff" * 40
        with self._send_lock:
            self._connection.sendall(wire.HEADER.pack(len(data)) + data)


class StubIntake(Intake):
    """The real intake, and a way to break it."""

    def __init__(self, plan: Plan, **parts: object) -> None:
        super().__init__(**parts)
        self._plan = plan

    def sequence(self, command: engine_pb2.SubmitCommand) -> EngineSequence:
        sequence = super().sequence(command)
        if self._plan.decodes_tokens_alone:
            sequence.text = _TokensAlone()
        return sequence


class _TokensAlone(TextStream):
    def push(self, data: bytes) -> str:
        return data.decode(errors="ignore")


class StubEngine(Engine[FakeSampler]):
    """The real engine, and the ways to break it."""

    def __init__(self, plan: Plan, **parts: object) -> None:
        super().__init__(**parts)
        self._plan = plan

    def cancel(self, sequence_id: int) -> None:
        if not self._plan.ignores_cancels:
            super().cancel(sequence_id)

    def _expire(self, now: float) -> None:
        if not self._plan.ignores_deadlines:
            super()._expire(now)


class StubRunner(FakeRunner):
    """Takes the time that its plan says, and fails as its prompts say."""

    def __init__(self, plan: Plan, garbage: Callable[[], None]) -> None:
        super().__init__(FakeClock(), self._next_token)
        self._plan = plan
        self._send_garbage = garbage
        self._drawn: Counter[int] = Counter()
        self._leaked: list[bytes] = []
        self._beside = 0

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        rows = super().decode(chunks)
        self._beside = len(chunks)
        del self.batches[:]
        num_prompt_tokens = sum(len(chunk.tokens) for chunk in chunks if len(chunk.tokens) > 1)
        time.sleep(self._plan.step_seconds + self._plan.prompt_token_seconds * num_prompt_tokens)
        if self._plan.leaks:
            self._leaked.append(os.urandom(LEAK_BYTES))
        for chunk in chunks:
            self._drawn[chunk.slot] = (
                0 if chunk.position == 0 else self._drawn[chunk.slot] + chunk.wants_logits
            )
            self._tell_if_late(chunk)
            fault = FAULT.search(_begin(self.slots[chunk.slot]))
            if fault is not None and chunk.wants_logits and self._drawn[chunk.slot] >= int(fault[2]):
                self._fail(fault[1].decode())
        return rows

    @staticmethod
    def _tell_if_late(chunk: Chunk) -> None:
        """Says so when a request is computed whose deadline had passed when it got its place."""
        sequence = chunk.sequence
        if chunk.position or sequence.deadline is None or sequence.admitted is None:
            return
        if sequence.admitted > sequence.deadline + LATE_SECONDS:
            print(LATE, file=sys.stderr, flush=True)

    def _fail(self, fault: str) -> None:
        match fault:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "abort":
                os.abort()
            case "exit":
                os._exit(3)
            case "hang":
                _hang()
            case "garbage":
                self._send_garbage()

    def _next_token(self, context: Sequence[int]) -> int:
        told = SAY.search(_begin(context))
        if told is not None:
            said = len(context) - told.end()
            answer = bytes.fromhex(told[1].decode())
            return answer[said] if said < len(answer) else EOS
        if self._plan.lets_neighbours_change and self._beside > 4:
            return ord("A") + self._beside % 26
        return arithmetic(context[-64:])


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _begin(tokens: Sequence[int]) -> bytes:
    """Returns the text of the first tokens: what a prompt says about itself stands there."""
    return bytes(token for token in tokens[:1024] if token < EOS)


def main() -> None:
    """Runs the process."""
    engine_main.main(StubProcess)
