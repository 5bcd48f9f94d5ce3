"""Decides which tokens of which sequences go into the next step, and how long a step may be.

Pure: no thread, no clock, no llama. Decode comes first, so that a running stream gets a token in every step; what is left
of the step's budget goes to prompts, cut into chunks. A prompt whose beginning an older one is just computing waits for
that part and shares it.

When several prompts come at once and nobody decodes yet, who is read first waits for the others, within bounds: a step of
sixteen sequences costs little more than one of four, so those who decode together are all done sooner.

Admission is optimistic: a sequence is let in when its prompt fits, not its whole answer. When the pool of cells is full, the
newest sequence is preempted: it gives its cells back, waits at its old place in the queue, and is computed anew. So a full
cache delays and never fails; whoever fits alone is finished in the end, because the oldest is never preempted.

Principals take turns by what they were served (the virtual token counter of Sheng et al., "Fairness in Serving Large Language
Models", 2024); within a principal a higher priority goes first, then who came first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable

from .cells import MIN_SHARED_TOKENS, CellOperation, Cells, Sharing, common_prefix
from .sequence import Phase, Sequence

# A second prompt gets a chunk in a step only if it has this many tokens: fewer cost nearly as much.
MIN_CHUNK_TOKENS = 16
# Of all the tokens that others may read meanwhile, this part may be one prompt's, on average.
GATHER_PART = 16


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence at consecutive positions; the last one's logits are wanted if `wants_logits`."""

    sequence: Sequence
    slot: int
    tokens: list[int]
    position: int
    wants_logits: bool


@dataclasses.dataclass(frozen=True)
class Allowance:
    """How much a step may compute, in tokens: `budget` in all.

    Those who could decode may wait for others as long as these have `gather_each` tokens to read on average, and not after
    `gather_all` were read meanwhile.
    """

    budget: int
    gather_each: int = 0
    gather_all: int = 0


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step computes, after the `operations` on cells.

    `chunks` are of completions, `embeddings` of texts whose vectors are wanted. `admitted` got their slot in this decision,
    some of them not for the first time; `preempted` lost theirs.
    """

    chunks: list[Chunk]
    embeddings: list[Chunk] = dataclasses.field(default_factory=list)
    admitted: list[Sequence] = dataclasses.field(default_factory=list)
    preempted: list[Sequence] = dataclasses.field(default_factory=list)
    operations: list[CellOperation] = dataclasses.field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(len(chunk.tokens) for chunk in (*self.chunks, *self.embeddings))

    @property
    def num_prompt_tokens(self) -> int:
        """Of these, tokens that are not a decoding sequence's next one."""
        chunks = (*self.chunks, *self.embeddings)
        return sum(len(chunk.tokens) for chunk in chunks if chunk.sequence.phase is Phase.PREFILL)


class Scheduler:
    """Two lists: who waits for a slot, and who runs, in the order of admission."""

    def __init__(self, *, cells: Cells, batch_size: int) -> None:
        self.cells = cells
        self._batch_size = batch_size
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._numbers = itertools.count(1)
        self._served: dict[str, float] = {}
        self._num_gathered = 0

    def __repr__(self) -> str:
        return f"<Scheduler [waiting {len(self.waiting)} | running {len(self.running)} | {self.cells!r}]>"

    @property
    def num_decoding(self) -> int:
        """Sequences that get a token in every step."""
        return sum(sequence.phase is Phase.DECODE for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        sequence.number = next(self._numbers)
        active = {other.principal for other in (*self.waiting, *self.running)}
        if not active:
            self._served.clear()
        elif sequence.principal not in active:
            # Having been away earns nothing: else the newcomer would shut out everybody else until it had caught up.
            least = min(self._served.get(principal, 0.0) for principal in active)
            self._served[sequence.principal] = max(self._served.get(sequence.principal, 0.0), least)
        self.waiting.append(sequence)

    def queue(self) -> list[Sequence]:
        """Returns who waits, in the order in which they would be admitted now."""
        return self._in_turn(self.waiting)

    def schedule(self, allowance: Allowance) -> Batch:
        """Returns the next step: every decoding sequence, and prompt chunks as far as the allowance goes."""
        operations: list[CellOperation] = []
        preempted = self._preempt(operations)
        admitted = [] if preempted else self._admit(operations)
        chunks = self._chunks(allowance, operations)
        while not chunks and self.running:
            # Nobody decodes, and the pool is full of half-read prompts.
            preempted.append(self._preempt_newest(operations))
            chunks = self._chunks(allowance, operations)
        return Batch(
            chunks=[chunk for chunk in chunks if chunk.sequence.vector is None],
            embeddings=[chunk for chunk in chunks if chunk.sequence.vector is not None],
            admitted=[sequence for sequence in admitted if sequence.slot is not None],
            preempted=preempted,
            operations=operations,
        )

    def computed(self, chunks: Iterable[Chunk]) -> None:
        """Counts tokens as computed; a sequence that is read whole turns to decoding."""
        for chunk in chunks:
            sequence = chunk.sequence
            self.cells.fill(chunk.slot, chunk.tokens)
            sequence.num_computed += len(chunk.tokens)
            self._served[sequence.principal] = self._served.get(sequence.principal, 0.0) + len(chunk.tokens)
            if sequence.num_left == 0:
                sequence.phase = Phase.DECODE

    def defer(self, chunks: list[Chunk], coming: list[Sequence], allowance: Allowance) -> list[Chunk]:
        """Decides, after `chunks` were computed, whether those who are read by them should wait for who came meanwhile.

        Returns the chunks as they are to be counted: who is to wait has not read its last token, and its logits are not used.
        """
        num_left = sum(len(sequence.prompt) for sequence in coming)
        if (
            not coming
            or self.num_decoding
            or num_left > allowance.gather_each * len(coming)
            or not self.cells.num_free_slots
            or self.cells.sharing is not Sharing.PREFIX
        ):
            return chunks
        return [
            dataclasses.replace(chunk, tokens=chunk.tokens[:-1], wants_logits=False)
            if chunk.wants_logits and len(chunk.tokens) > 1
            else chunk
            for chunk in chunks
        ]

    def remove(self, sequence: Sequence, *, keep_cells: bool = True) -> list[CellOperation]:
        """Takes a sequence out, whatever it was doing. Returns what is to be done to the cells that it held."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return []
        self.running.remove(sequence)
        slot, sequence.slot = sequence.slot, None
        return self.cells.release(slot, keep=keep_cells)

    def _in_turn(self, sequences: Collection[Sequence]) -> list[Sequence]:
        """Sorts by what the principal was served, then by who of them came first; within one by priority and age."""
        oldest: dict[str, int] = {}
        for sequence in sequences:
            oldest[sequence.principal] = min(oldest.get(sequence.principal, sequence.number), sequence.number)
        return sorted(
            sequences,
            key=lambda sequence: (
                self._served.get(sequence.principal, 0.0),
                oldest[sequence.principal],
                -sequence.priority,
                sequence.number,
            ),
        )

    # Who runs.

    def _preempt(self, operations: list[CellOperation]) -> list[Sequence]:
        """Takes sequences out, newest first, until those that decode have room for their next tokens."""
        preempted = []
        while len(self.running) > 1 and self._num_room < self._num_decode_tokens:
            preempted.append(self._preempt_newest(operations))
        return preempted

    def _preempt_newest(self, operations: list[CellOperation]) -> Sequence:
        sequence = self.running[-1]
        operations += self.remove(sequence)
        sequence.phase = Phase.WAITING
        sequence.num_computed = sequence.num_acquired = 0
        sequence.num_preemptions += 1
        self.waiting.append(sequence)
        return sequence

    def _admit(self, operations: list[CellOperation]) -> list[Sequence]:
        """Gives slots to those whose turn it is, as long as what they have to read fits beside all others."""
        admitted: list[Sequence] = []
        while self.waiting and self.cells.num_free_slots:
            sequence = self.queue()[0]
            if self.running and self._num_missing(sequence) > 0:
                break  # nobody overtakes, or long prompts would wait for ever
            self.waiting.remove(sequence)
            tokens = sequence.prompt + sequence.generated
            sequence.slot, shared, needed = self.cells.acquire(tokens, sequence.cache_key)
            sequence.num_computed = sequence.num_acquired = shared
            if not sequence.num_preemptions:
                sequence.num_cached = shared
            sequence.phase = Phase.PREFILL
            self.running.append(sequence)
            admitted.append(sequence)
            operations += needed
        return admitted

    def _num_missing(self, sequence: Sequence) -> float:
        """Returns how many cells there are too few to admit a sequence without preempting somebody soon."""
        room = self._num_room
        if math.isinf(room):
            return 0
        tokens = sequence.prompt + sequence.generated
        found, unheld = self.cells.find(tokens, sequence.cache_key)
        needed = unheld + len(tokens) - found
        if self.cells.sharing is Sharing.PREFIX:
            for other in self.running:
                if other.cache_key == sequence.cache_key:
                    coming = common_prefix(other.prompt, tokens)
                    needed = min(needed, max(unheld, len(tokens) - coming))
        promised = sum(other.num_left for other in self.running)
        # A step more for everybody, so that who is let in is not put out at once.
        return promised + needed + len(self.running) + 1 - room

    @property
    def _num_room(self) -> float:
        available = self.cells.num_available
        return math.inf if available is None else available

    @property
    def _num_decode_tokens(self) -> int:
        return sum(sequence.num_left for sequence in self.running if sequence.phase is Phase.DECODE)

    # What is computed.

    def _chunks(self, allowance: Allowance, operations: list[CellOperation]) -> list[Chunk]:
        """Returns the next tokens of whoever decodes, then chunks of prompts; and makes room for them."""
        chunks: list[Chunk] = []
        most = min(self._batch_size, self._num_room)
        decoding = [sequence for sequence in self.running if sequence.phase is Phase.DECODE]
        for place, sequence in enumerate(decoding):
            # Forced tokens make it several; every other stream keeps its place in the step.
            room = min(int(most) - (len(decoding) - 1 - place), sequence.num_left)
            chunks.append(self._chunk(sequence, room))
            most -= room
        most = min(most, max(1, allowance.budget - sum(len(chunk.tokens) for chunk in chunks)))
        prefilling = [sequence for sequence in self.running if sequence.phase is Phase.PREFILL]
        if decoding:
            self._num_gathered = 0
        gathers = not decoding and self._gathers(prefilling, allowance)
        for sequence in self._in_turn(prefilling):
            if gathers and sequence.vector is None and sequence.num_left == 1:
                continue
            is_first = len(chunks) == len(decoding)
            if most < (1 if is_first else min(MIN_CHUNK_TOKENS, sequence.num_left)):
                break
            if sequence.is_indivisible and most < sequence.num_left:
                if not is_first:
                    continue
                most = sequence.num_left
            if sequence.num_computed == sequence.num_acquired:
                if self._is_computed_by_older(sequence):
                    continue
                planned = sum(len(chunk.tokens) for chunk in chunks)
                self._share(sequence, operations, room=self._num_room - planned)
                most = min(most, self._num_room - planned)
                if most < 1:
                    break
            # Who waits for others is read but for its last token, whose logits begin the answer.
            keeps_last = gathers and sequence.vector is None and sequence.num_left > 1
            chunk = self._chunk(sequence, min(int(most), sequence.num_left - keeps_last))
            chunks.append(chunk)
            most -= len(chunk.tokens)
        operations += self.cells.make_room(sum(len(chunk.tokens) for chunk in chunks))
        # llama.cpp computes neighbouring slots together, if they come in order.
        return sorted(chunks, key=lambda chunk: chunk.slot)

    def _gathers(self, prefilling: list[Sequence], allowance: Allowance) -> bool:
        """Whether those who are read wait, because others will be read soon too."""
        completions = [sequence for sequence in prefilling if sequence.vector is None]
        unread = [
            sequence
            for sequence in completions
            if sequence.num_left > 1
            and not (sequence.num_computed == sequence.num_acquired and self._is_computed_by_older(sequence))
        ]
        if len(completions) < 2 or not unread:
            return False
        left = sum(sequence.num_left for sequence in unread)
        waits = any(sequence.num_left == 1 for sequence in completions)
        self._num_gathered = self._num_gathered + min(left, allowance.budget) if waits else 0
        return left <= allowance.gather_each * len(unread) and self._num_gathered <= allowance.gather_all

    def _chunk(self, sequence: Sequence, most: int) -> Chunk:
        assert sequence.slot is not None, "runs without a slot"
        tokens = sequence.next_tokens(most)
        begin = sequence.num_computed
        return Chunk(
            sequence, sequence.slot, tokens, begin, wants_logits=begin + len(tokens) == sequence.num_tokens
        )

    def _share(self, sequence: Sequence, operations: list[CellOperation], *, room: float) -> None:
        """Takes over what another sequence has computed since this one got its slot."""
        assert sequence.slot is not None, "runs without a slot"
        tokens = sequence.prompt + sequence.generated
        shared, needed = self.cells.share(sequence.slot, tokens, room=room)
        sequence.num_computed = sequence.num_acquired = shared
        if not sequence.num_preemptions:
            sequence.num_cached = shared
        operations += needed

    def _is_computed_by_older(self, sequence: Sequence) -> bool:
        """Whether an older sequence is computing tokens that this one could share, so that waiting is cheaper."""
        if self.cells.sharing is not Sharing.PREFIX:
            return False
        most = sequence.num_tokens - 1
        for other in self.running:
            if other is sequence:
                return False
            if other.phase is Phase.PREFILL and other.cache_key == sequence.cache_key:
                shared = min(common_prefix(other.prompt, sequence.prompt), most)
                if shared > max(other.num_computed, sequence.num_computed + MIN_SHARED_TOKENS - 1):
                    return True
        return False


class StepBudget:
    """How many tokens a step may have, so that it stays within its time, from the speed of the steps before.

    A step is modelled as a time that depends on how many sequences decode, and a time per prompt token on top of it. The
    latter is learnt from prompts that are read alone, and is never more than a step took for each of its prompt tokens. Beside
    decoding sequences a prompt token costs more, since chunks are short, and ever more as contexts grow: that goes into the
    former, which foretells a step well that differs little from the last one of so many sequences. With `fixed_tokens` the
    answer never changes, so that the same request is always cut in the same places.
    """

    MIN_PROMPT_TOKENS = 8
    WEIGHT = 0.3
    # The time of a few tokens says less than that of many.
    FULL_WEIGHT_TOKENS = 64

    def __init__(
        self,
        *,
        batch_size: int,
        max_decode_step_seconds: float,
        max_prefill_step_seconds: float,
        max_gather_tokens: int = 0,
        fixed_tokens: int | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._max_decode_step_seconds = max_decode_step_seconds
        self._max_prefill_step_seconds = max_prefill_step_seconds
        self._max_gather_tokens = max_gather_tokens
        self._fixed_tokens = fixed_tokens
        # By the number of sequences that decode: prompt tokens beside them, and seconds.
        self._decode_steps: dict[int, tuple[float, float]] = {}
        self._prompt_token_seconds = math.inf

    def __repr__(self) -> str:
        steps = ", ".join(
            f"{number}: {self._decode_step_seconds(number) * 1e3:.1f}"
            for number in sorted(self._decode_steps)
        )
        return f"<StepBudget [decode steps {{{steps}}} ms | prompt token {self._prompt_token_seconds * 1e3:.2f} ms]>"

    def allowance(self, num_decoding: int) -> Allowance:
        """Returns what the next step may compute."""
        return Allowance(
            self.tokens(num_decoding),
            gather_each=self._max_gather_tokens // GATHER_PART,
            gather_all=self._max_gather_tokens,
        )

    def tokens(self, num_decoding: int) -> int:
        """Returns the most tokens of the next step, decoding ones included."""
        if self._fixed_tokens is not None:
            return self._fixed_tokens
        prompt_tokens = self.MIN_PROMPT_TOKENS
        if not math.isinf(self._prompt_token_seconds):
            left = self._max_prefill_step_seconds
            if num_decoding:
                left = self._max_decode_step_seconds - self._decode_step_seconds(num_decoding)
            prompt_tokens = max(prompt_tokens, int(left / self._prompt_token_seconds))
        return min(self._batch_size, num_decoding + prompt_tokens)

    def observe(self, *, num_prompt_tokens: int, num_decoding: int, seconds: float) -> None:
        """Learns from a step that took `seconds`."""
        if num_prompt_tokens:
            self._observe_prompt(num_prompt_tokens, num_decoding, seconds)
        if num_decoding:
            prompt_tokens, known = self._decode_steps.get(num_decoding, (num_prompt_tokens, seconds))
            self._decode_steps[num_decoding] = (
                self._blend(prompt_tokens, num_prompt_tokens, self.WEIGHT),
                self._blend(known, seconds, self.WEIGHT),
            )

    def _observe_prompt(self, num_prompt_tokens: int, num_decoding: int, seconds: float) -> None:
        known, seen = self._prompt_token_seconds, max(seconds / num_prompt_tokens, 1e-7)
        if math.isinf(known) or (seen < known and num_prompt_tokens >= self.MIN_PROMPT_TOKENS):
            self._prompt_token_seconds = seen
        elif not num_decoding:
            weight = self.WEIGHT * min(1.0, num_prompt_tokens / self.FULL_WEIGHT_TOKENS)
            self._prompt_token_seconds = self._blend(known, seen, weight)

    def _decode_step_seconds(self, num_decoding: int) -> float:
        """Returns what a step of so many sequences takes beside its prompt tokens; rather too much where it is not known."""
        enough = [number for number in self._decode_steps if number >= num_decoding]
        nearest = min(enough) if enough else max(self._decode_steps, default=0)
        prompt_tokens, seconds = self._decode_steps.get(nearest, (0.0, 0.0))
        if math.isinf(self._prompt_token_seconds):
            return seconds
        return seconds + (max(0, num_decoding - nearest) - prompt_tokens) * self._prompt_token_seconds

    @staticmethod
    def _blend(old: float, new: float, weight: float) -> float:
        return old + weight * (new - old)
