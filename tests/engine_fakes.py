"""A model that is arithmetic, a clock that moves when told, and an engine on both, with every event it ever sent."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.engine import sequence as engine_sequence
from inferwire_server.engine.cells import CellOperation, Cells, Copy, Sharing, Trim
from inferwire_server.engine.detokenizer import TextStream
from inferwire_server.engine.engine import Engine
from inferwire_server.engine.runner import BatchRejected
from inferwire_server.engine.scheduler import Batch, Chunk, Scheduler, StepBudget
from inferwire_server.engine.sequence import SamplingParams
from inferwire_server.engine.v1 import engine_pb2

EOS = 256
NUM_TOKENS = 257
CONTEXT_LENGTH = 64


class FakeClock:
    """Seconds that pass only when a test or a fake machine says so."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeVocabulary:
    """One token per byte, and an end token without text. BOS is the byte 1, "<eos>" is how the end token is written."""

    num_tokens = NUM_TOKENS

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        begin = [1] if add_special else []
        if not parse_special:
            return begin + list(text.encode())
        parts = [list(part.encode()) for part in text.split("<eos>")]
        return begin + list(itertools.chain(parts[0], *([EOS, *part] for part in parts[1:])))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token == EOS:
            return b"<eos>" if special else b""
        return bytes([token])

    def ends_generation(self, token: int) -> bool:
        return token == EOS

    def end_tokens(self) -> list[int]:
        return [EOS]


class FakeSampler:
    """Remembers what it was told, and counts itself among the open ones."""

    def __init__(self, open_samplers: set[FakeSampler], forbidden: Iterable[int]) -> None:
        self._open = open_samplers
        self.forbidden = set(forbidden)
        self.accepted: list[int] = []
        self._open.add(self)

    def accept(self, tokens: Iterable[int]) -> None:
        self.accepted += tokens

    def close(self) -> None:
        self._open.remove(self)


def arithmetic(context: Sequence[int]) -> int:
    """A token that depends on everything before it: a letter, or seldom the end."""
    value = 7
    for token in context:
        value = (value * 31 + token + 1) % 65521
    return EOS if value % 13 == 0 else ord("a") + value % 26


def saying(*answers: bytes | Sequence[int]) -> Callable[[Sequence[int]], int]:
    """The prompt [n] is answered with the n-th answer, and then with the end token."""

    def next_token(context: Sequence[int]) -> int:
        answer = answers[context[0]]
        place = len(context) - 1
        return answer[place] if place < len(answer) else EOS

    return next_token


class FakeRunner:
    """Keeps each slot's tokens as llama.cpp would, and refuses positions that do not follow."""

    def __init__(
        self,
        clock: FakeClock,
        next_token: Callable[[Sequence[int]], int] = arithmetic,
        *,
        step_seconds: float = 0.0,
        token_seconds: float = 0.0,
    ) -> None:
        self.vocabulary = FakeVocabulary()
        self.next_token = next_token
        self.slots: defaultdict[int, list[int]] = defaultdict(list)
        self.samplers: set[FakeSampler] = set()
        self.rejects: Callable[[Batch], bool] = lambda batch: False
        self.batches: list[Batch] = []
        self._clock = clock
        self._step_seconds = step_seconds
        self._token_seconds = token_seconds
        self._rows: list[list[int]] = []

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        self._take(chunks)
        self._rows = []
        rows = []
        for chunk in chunks:
            cells = self.slots[chunk.slot]
            assert chunk.position == len(cells), "positions of a slot follow one another"
            cells += chunk.tokens
            rows.append(len(self._rows) if chunk.wants_logits else -1)
            if chunk.wants_logits:
                self._rows.append(list(cells))
        return rows

    def embed(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        self._take(chunks)
        vectors = []
        for chunk in chunks:
            cells = self.slots[chunk.slot]
            assert chunk.position == len(cells), "positions of a slot follow one another"
            cells += chunk.tokens
            vectors.append(np.array([[token, 1.0] for token in chunk.tokens], dtype=np.float32))
        return vectors

    def _take(self, chunks: Sequence[Chunk]) -> None:
        batch = Batch(list(chunks))
        if self.rejects(batch):
            raise BatchRejected("not this one")
        self.batches.append(batch)
        self._clock.now += self._step_seconds + self._token_seconds * batch.num_tokens

    def new_sampler(self, sampling: SamplingParams, *, forbidden: Collection[int] = ()) -> FakeSampler:
        return FakeSampler(self.samplers, forbidden)

    def sample(self, row: int, sampler: FakeSampler, mask: npt.NDArray[np.int32] | None = None) -> int:
        assert sampler in self.samplers, "a closed sampler draws nothing"
        assert row >= 0, "a chunk without logits has nothing to draw from"
        token = self.next_token(self._rows[row])
        return ord("!") if token in sampler.forbidden else token

    def logprobs(self, row: int, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
        return -float(token), [(rank, float(-rank)) for rank in range(num_top)]

    def arrange(self, operations: Iterable[CellOperation]) -> None:
        for operation in operations:
            match operation:
                case Trim(slot, length):
                    assert length <= len(self.slots[slot]), "what is not there cannot be kept"
                    self.slots[slot] = self.slots[slot][:length]
                case Copy(source, slot, length):
                    assert length <= len(self.slots[source]), "what is not there cannot be copied"
                    self.slots[slot] = self.slots[source][:length]


def make_sequence(
    sequence_id: int = 1,
    prompt: Sequence[int] = (0,),
    *,
    arrived: float = 0.0,
    stops: Sequence[str] = (),
    include_stop: bool = False,
    **fields: Any,
) -> engine_sequence.Sequence:
    """A sequence with nothing special about it but what is said."""
    values: dict[str, Any] = {"max_tokens": CONTEXT_LENGTH - len(prompt), "time_limit": float("inf")} | fields
    return engine_sequence.Sequence(
        sequence_id=sequence_id,
        prompt=list(prompt),
        sampling=SamplingParams(),
        started=pb.Started(id=str(sequence_id)),
        text=TextStream(stops, include_stop=include_stop),
        arrived=arrived,
        **values,
    )


class Bench:
    """An engine over the fakes. `events` and `errors` are by sequence, in the order in which they were sent."""

    def __init__(
        self,
        next_token: Callable[[Sequence[int]], int] = arithmetic,
        *,
        num_slots: int = 2,
        batch_size: int = 16,
        sharing: Sharing = Sharing.NONE,
        num_cells: int | None = None,
        step_seconds: float = 0.0,
        token_seconds: float = 0.0,
    ) -> None:
        self.clock = FakeClock()
        self.runner = FakeRunner(
            self.clock, next_token, step_seconds=step_seconds, token_seconds=token_seconds
        )
        self.scheduler = Scheduler(
            cells=Cells(
                num_slots=num_slots, cells_per_slot=CONTEXT_LENGTH, num_cells=num_cells, sharing=sharing
            ),
            batch_size=batch_size,
        )
        self.reports: list[engine_pb2.StepReport] = []
        self._actions: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)
        self.engine = Engine(
            runner=self.runner,
            scheduler=self.scheduler,
            budget=StepBudget(
                batch_size=batch_size,
                max_decode_step_seconds=0.25,
                max_prefill_step_seconds=1.0,
                fixed_tokens=batch_size,
            ),
            emit=self._take,
            clock=self.clock,
        )

    @property
    def events(self) -> dict[int, list[pb.StreamCompleteResponse]]:
        told: defaultdict[int, list[pb.StreamCompleteResponse]] = defaultdict(list)
        for report in self.reports:
            for entry in report.sequences:
                told[entry.sequence_id] += entry.events
        return told

    @property
    def errors(self) -> dict[int, engine_pb2.EngineError]:
        return {
            entry.sequence_id: entry.error
            for report in self.reports
            for entry in report.sequences
            if entry.HasField("error")
        }

    def submit(self, *sequences: engine_sequence.Sequence) -> None:
        for sequence in sequences:
            self.engine.submit(sequence)

    def at_report(self, number: int, action: Callable[[], None]) -> None:
        """Does something right after the `number`th report from now, the first being 1, was sent."""
        self._actions[len(self.reports) + number].append(action)

    def _take(self, report: engine_pb2.StepReport) -> None:
        self.reports.append(report)
        for action in self._actions.pop(len(self.reports), ()):
            action()

    def run(self, *sequences: engine_sequence.Sequence) -> list[pb.StreamCompleteResponse]:
        """Runs everything to its end. Returns the events of the first of `sequences`."""
        self.submit(*sequences)
        self.engine.run_until_idle()
        return self.events[sequences[0].sequence_id] if sequences else []

    def assert_nothing_held(self) -> None:
        assert 0 == self.scheduler.cells.num_used
        assert [] == self.scheduler.waiting + self.scheduler.running
        assert set() == self.runner.samplers
        for slot, tokens in self.runner.slots.items():
            assert self.scheduler.cells.tokens(slot) == tokens, (
                "the cells are what the scheduler thinks they are"
            )


def text_of(events: Iterable[pb.StreamCompleteResponse]) -> str:
    """The deltas' concatenation."""
    return "".join(event.text.text for event in events if event.WhichOneof("event") == "text")


def kinds_of(events: Iterable[pb.StreamCompleteResponse]) -> list[str]:
    """The arms of the events."""
    return [event.WhichOneof("event") or "" for event in events]
