"""Decides which tokens of which sequences go into the next step, and how long a step may be.

Pure: no thread, no clock, no llama. Decode comes first, so that a running stream gets a token in every step; what is left
of the step's budget goes to prompts, oldest first, cut into chunks. A prompt whose beginning an older one is just computing
waits for that part and shares it.
"""

from __future__ import annotations

import dataclasses
import math

from .cells import MIN_SHARED_TOKENS, CellOperation, Cells, common_prefix
from .sequence import Phase, Sequence


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence at consecutive positions; the last one's logits are wanted if `wants_logits`."""

    sequence: Sequence
    slot: int
    tokens: list[int]
    position: int
    wants_logits: bool


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step computes, after the `operations` on cells. `admitted` got their slot in this decision."""

    chunks: list[Chunk]
    admitted: list[Sequence]
    operations: list[CellOperation] = dataclasses.field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """Of these, prompt tokens."""
        return sum(len(chunk.tokens) for chunk in self.chunks if chunk.sequence.phase is Phase.PREFILL)


class Scheduler:
    """Two queues: who waits for a slot, and who runs."""

    def __init__(self, *, cells: Cells, batch_size: int) -> None:
        self.cells = cells
        self._batch_size = batch_size
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def __repr__(self) -> str:
        return f"<Scheduler [waiting {len(self.waiting)} | running {len(self.running)} | {self.cells!r}]>"

    @property
    def num_decoding(self) -> int:
        """Sequences that get a token in every step."""
        return sum(sequence.phase is Phase.DECODE for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind those of the same or a higher priority."""
        place = len(self.waiting)
        while place > 0 and self.waiting[place - 1].priority < sequence.priority:
            place -= 1
        self.waiting.insert(place, sequence)

    def schedule(self, budget: int) -> Batch:
        """Returns the next step: every decoding sequence, and prompt chunks up to `budget` tokens in all."""
        admitted = []
        operations = []
        while self.waiting and self.cells.num_free_slots:
            sequence = self.waiting.pop(0)
            sequence.slot, sequence.num_cached, needed = self.cells.acquire(
                sequence.prompt, sequence.cache_key
            )
            sequence.num_computed = sequence.num_cached
            sequence.phase = Phase.PREFILL
            self.running.append(sequence)
            admitted.append(sequence)
            operations += needed

        chunks = []
        for sequence in self.running:
            if sequence.phase is Phase.DECODE and sequence.slot is not None:
                token = sequence.generated[-1]
                chunks.append(
                    Chunk(sequence, sequence.slot, [token], sequence.num_computed, wants_logits=True)
                )
        left = min(max(budget, len(chunks) + 1), self._batch_size) - len(chunks)
        for place, sequence in enumerate(self.running):
            if sequence.phase is Phase.PREFILL and sequence.slot is not None and left > 0:
                if sequence.num_computed == sequence.num_cached:
                    if self._is_computed_by(self.running[:place], sequence):
                        continue
                    sequence.num_cached, needed = self.cells.share(sequence.slot, sequence.prompt)
                    sequence.num_computed = sequence.num_cached
                    operations += needed
                begin = sequence.num_computed
                tokens = sequence.prompt[begin : begin + left]
                last = begin + len(tokens) == len(sequence.prompt)
                chunks.append(Chunk(sequence, sequence.slot, tokens, begin, wants_logits=last))
                left -= len(tokens)
        return Batch(chunks, admitted, operations)

    def _is_computed_by(self, older: list[Sequence], sequence: Sequence) -> bool:
        """Whether an older sequence is computing tokens that this one could share, so that waiting is cheaper."""
        most = len(sequence.prompt) - 1
        for other in older:
            if other.phase is Phase.PREFILL and other.cache_key == sequence.cache_key and self.cells.shares:
                shared = min(common_prefix(other.prompt, sequence.prompt), most)
                if shared > max(other.num_computed, sequence.num_computed + MIN_SHARED_TOKENS - 1):
                    return True
        return False

    def computed(self, batch: Batch) -> None:
        """Counts a batch's tokens as computed; a prompt that is read whole turns to decoding."""
        for chunk in batch.chunks:
            self.cells.fill(chunk.slot, chunk.tokens)
            chunk.sequence.num_computed += len(chunk.tokens)
            if chunk.sequence.phase is Phase.PREFILL and chunk.sequence.num_prompt_left == 0:
                chunk.sequence.phase = Phase.DECODE

    def remove(self, sequence: Sequence, *, keep_cells: bool = True) -> list[CellOperation]:
        """Takes a sequence out, whatever it was doing. Returns what is to be done to the cells that it held."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return []
        self.running.remove(sequence)
        slot, sequence.slot = sequence.slot, None
        return self.cells.release(slot, keep=keep_cells)


class StepBudget:
    """How many tokens a step may have, so that it stays within its time, from the speed of the steps before.

    A step is modelled as the time of a pure decode step plus a time per prompt token; both are moving averages.
    A step's time is shared among all its tokens, so the second is never below what a token costs; and a few tokens say
    less about it than many. With `fixed_tokens` the answer never changes, so that the same request is always cut in
    the same places.
    """

    MIN_PROMPT_TOKENS = 8
    WEIGHT = 0.3
    FULL_WEIGHT_TOKENS = 64

    def __init__(
        self,
        *,
        batch_size: int,
        max_decode_step_seconds: float,
        max_prefill_step_seconds: float,
        fixed_tokens: int | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._max_decode_step_seconds = max_decode_step_seconds
        self._max_prefill_step_seconds = max_prefill_step_seconds
        self._fixed_tokens = fixed_tokens
        self._decode_seconds = 0.0
        self._prompt_token_seconds = math.inf

    def __repr__(self) -> str:
        return (
            f"<StepBudget [decode step {self._decode_seconds * 1e3:.1f} ms | "
            f"prompt token {self._prompt_token_seconds * 1e3:.2f} ms]>"
        )

    def tokens(self, num_decoding: int) -> int:
        """Returns the most tokens of the next step, decoding ones included."""
        if self._fixed_tokens is not None:
            return self._fixed_tokens
        prompt_tokens = self.MIN_PROMPT_TOKENS
        if not math.isinf(self._prompt_token_seconds):
            left = self._max_prefill_step_seconds
            if num_decoding:
                decode_seconds = max(self._decode_seconds, num_decoding * self._prompt_token_seconds)
                left = self._max_decode_step_seconds - decode_seconds
            prompt_tokens = max(prompt_tokens, int(left / self._prompt_token_seconds))
        return min(self._batch_size, num_decoding + prompt_tokens)

    def observe(self, *, num_prompt_tokens: int, num_decoding: int, seconds: float) -> None:
        """Learns from a step that took `seconds`."""
        if num_prompt_tokens == 0:
            self._decode_seconds = self._blend(self._decode_seconds or seconds, seconds, self.WEIGHT)
            return
        token_seconds = max(seconds / (num_prompt_tokens + num_decoding), 1e-7)
        if math.isinf(self._prompt_token_seconds):
            self._prompt_token_seconds = token_seconds
        else:
            weight = self.WEIGHT * min(1.0, num_prompt_tokens / self.FULL_WEIGHT_TOKENS)
            self._prompt_token_seconds = self._blend(self._prompt_token_seconds, token_seconds, weight)

    @staticmethod
    def _blend(old: float, new: float, weight: float) -> float:
        return old + weight * (new - old)
