"""Steps: schedule, compute, update, tell. One thread owns every sequence, the scheduler, the cells and the llama context.

Others only put a command into the inbox. A step is short, because its length bounds everything else: cancel, deadline,
the stall between a long prompt and running streams.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Generic

from google.protobuf.duration_pb2 import Duration

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors, wire

from .cells import Trim
from .runner import BatchRejected, Constraint, Runner, SamplerT
from .scheduler import Allowance, Batch, Chunk, Scheduler, StepBudget
from .sequence import Sequence
from .v1 import engine_pb2

log = logging.getLogger(__name__)

Command = Sequence | int | None
"""What the inbox holds: a sequence to begin, the id of one to cancel, or None to stop."""


@dataclasses.dataclass
class Totals:
    """What was done since the engine began."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    preemptions: int = 0


class Engine(Generic[SamplerT]):
    """The loop. `emit` is called with one report per step, also when it tells no more than that a step was taken."""

    def __init__(
        self,
        *,
        runner: Runner[SamplerT],
        scheduler: Scheduler,
        budget: StepBudget,
        emit: Callable[[engine_pb2.StepReport], None],
        compute_masks: Callable[[list[Constraint]], None] = lambda constraints: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compute_masks = compute_masks
        self._runner = runner
        self._scheduler = scheduler
        self._budget = budget
        self._emit = emit
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._taken: deque[Command] = deque()
        self._allowance = Allowance(0)
        self._sequences: dict[int, Sequence] = {}
        self._samplers: dict[int, SamplerT] = {}
        self._events: defaultdict[int, engine_pb2.SequenceEvents] = defaultdict(engine_pb2.SequenceEvents)
        self._totals = Totals()

    def __repr__(self) -> str:
        return f"<Engine [{self._scheduler!r} | {self._budget!r} | inbox {self._inbox.qsize()}]>"

    def submit(self, sequence: Sequence) -> None:
        """Begins a sequence. From any thread."""
        self._inbox.put(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Ends a sequence at the next step, without a word; unknown ids are ignored. From any thread."""
        self._inbox.put(sequence_id)

    def stop(self) -> None:
        """Ends `run` at the next step. From any thread."""
        self._inbox.put(None)

    def run(self) -> None:
        """Steps until `stop`. Sleeps while there is nothing to do. The calling thread is the engine thread."""
        while self._take_commands(wait=True):
            self.step()

    def run_until_idle(self) -> None:
        """Steps until no sequence is left; for a warm-up, and for tests. `stop` must not have been called."""
        while self._taken or not self._inbox.empty() or self._sequences:
            self._take_commands(wait=False)
            self.step()

    def step(self) -> None:
        """Takes one step and emits its report."""
        self._expire(self._clock())
        self._allowance = self._budget.allowance(self._scheduler.num_decoding)
        batch = self._scheduler.schedule(self._allowance)
        begin = self._clock()
        for sequence in batch.admitted:
            if sequence.admitted is not None:
                continue  # it goes on after a preemption
            sequence.admitted = begin
            if sequence.want_progress:
                self._start(sequence)
            if sequence.vector is None:
                self._samplers[sequence.sequence_id] = self._new_sampler(sequence)
        self._runner.arrange(batch.operations)
        num_prompt_tokens, num_decoding = batch.num_prompt_tokens, self._scheduler.num_decoding
        is_whole = self._compute(batch.chunks, self._complete) and self._compute(
            batch.embeddings, self._embed
        )
        seconds = self._clock() - begin
        if is_whole and batch.num_tokens:
            self._budget.observe(
                num_prompt_tokens=num_prompt_tokens, num_decoding=num_decoding, seconds=seconds
            )
        if is_whole:
            self._totals.prompt_tokens += num_prompt_tokens
        self._totals.preemptions += len(batch.preempted)
        self._tell_queue_positions()
        self._send(batch, seconds)

    # The inbox.

    def _take_commands(self, *, wait: bool) -> bool:
        """Takes what is in the inbox; while there is no work, waits for some if `wait`. False means stop."""
        while True:
            try:
                command = (
                    self._taken.popleft()
                    if self._taken
                    else self._inbox.get(block=wait and not self._sequences)
                )
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, Sequence):
                self._sequences[command.sequence_id] = command
                self._scheduler.add(command)
            elif command in self._sequences:
                self._drop(self._sequences[command])
                # Nobody may be left to step for, and still the gateway must see that the cells are free.
                self._send()

    def _coming(self) -> list[Sequence]:
        """Returns who came since the step began. They stay in line: the next step takes them."""
        while True:
            try:
                self._taken.append(self._inbox.get_nowait())
            except queue.Empty:
                return [command for command in self._taken if isinstance(command, Sequence)]

    def _expire(self, now: float) -> None:
        for sequence in list(self._sequences.values()):
            if sequence.deadline is not None and now >= sequence.deadline:
                self._fail(sequence, errors.DeadlineExceeded("the call's deadline passed"))
            elif now >= sequence.time_limit:
                self._finish(sequence, pb.Completion(finish_reason=pb.FINISH_REASON_TIME_LIMIT), now)

    # What a step computes.

    def _compute(self, chunks: list[Chunk], compute: Callable[[list[Chunk]], None]) -> bool:
        """Computes chunks, if there are any. Returns False when their sequences had to fail for it."""
        try:
            if chunks:
                compute(chunks)
        except BatchRejected as error:
            log.error("batch rejected: %s; %r", error, self)
            for chunk in chunks:
                failure = errors.Internal("the engine could not compute this request")
                self._fail(chunk.sequence, failure, keep_cells=False)
            return False
        return True

    def _complete(self, chunks: list[Chunk]) -> None:
        rows = self._runner.decode(chunks)
        counted = self._scheduler.defer(chunks, self._coming(), self._allowance)
        for chunk, deferred in zip(chunks, counted, strict=True):
            if deferred is not chunk:
                length = deferred.position + len(deferred.tokens)
                self._runner.arrange([Trim(chunk.slot, length)])
        rows = [row if chunk.wants_logits else -1 for chunk, row in zip(counted, rows, strict=True)]
        chunks = counted
        self._scheduler.computed(chunks)
        now = self._clock()
        self._compute_masks(
            [
                chunk.sequence.reader.constraint
                for chunk in chunks
                if chunk.wants_logits and chunk.sequence.reader.constraint is not None
            ]
        )
        for chunk, row in zip(chunks, rows, strict=True):
            self._advance(chunk.sequence, row, now)

    def _embed(self, chunks: list[Chunk]) -> None:
        vectors = self._runner.embed(chunks)
        self._scheduler.computed(chunks)
        for chunk, of_tokens in zip(chunks, vectors, strict=True):
            sequence = chunk.sequence
            assert sequence.vector is not None, "a completion among the embeddings"
            sequence.vector.add(of_tokens)
            if sequence.num_left == 0:
                embedded = self._report(sequence).embedded
                embedded.values.extend(sequence.vector.values().tolist())
                embedded.prompt_tokens = len(sequence.prompt)
                self._drop(sequence, keep_cells=False)

    # One sequence's share of a step.

    def _advance(self, sequence: Sequence, row: int, now: float) -> None:
        """Takes what the step computed for a sequence: prefill progress, or the next token."""
        if sequence.want_progress and sequence.prefilled is None:
            done = min(sequence.num_computed, len(sequence.prompt))
            progress = pb.PrefillProgress(processed_tokens=done, total_tokens=len(sequence.prompt))
            self._tell(sequence, pb.StreamCompleteResponse(progress=pb.Progress(prefill=progress)))
        if row < 0:
            return
        if sequence.prefilled is None:
            sequence.prefilled = now
            # Known only now: what another sequence computes meanwhile is shared too.
            self._totals.cached_prompt_tokens += sequence.num_cached
            if sequence.max_tokens == 0:
                self._finish(sequence, pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH), now)
                return
        sampler, constraint = self._samplers[sequence.sequence_id], sequence.reader.constraint
        try:
            token = self._runner.sample(row, sampler, constraint.mask() if constraint else None)
            if constraint is not None:
                constraint.accept(token)
            goes_on = self._take_token(sequence, row, token)
            if (
                not goes_on
                or sequence.want_logprobs
                or constraint is None
                or sequence.reader.constraint is not constraint
            ):
                return
            # What must come next is not drawn. Its log probabilities would not be known, so who asks for them draws.
            for token in constraint.forced():
                sampler.accept([token])
                constraint.accept(token)
                if not self._take_token(sequence, row, token) or sequence.reader.constraint is not constraint:
                    return
        except errors.GrammarTooComplex as error:
            self._fail(sequence, error)

    def _take_token(self, sequence: Sequence, row: int, token: int) -> bool:
        """Adds a token to the answer. Returns whether the answer goes on."""
        now = self._clock()
        if sequence.first_token is None:
            sequence.first_token = now
        sequence.last_token = now
        repeats = bool(sequence.generated) and sequence.generated[-1] == token
        sequence.num_repeats = sequence.num_repeats + 1 if repeats else 1
        sequence.generated.append(token)
        self._totals.completion_tokens += 1
        if sequence.want_token_ids:
            sequence.pending_token_ids.append(token)
        if sequence.want_logprobs:
            sequence.pending_logprobs.append(self._logprob(sequence, row, token))
        end = self._end_of(sequence, token)
        if end is not None:
            self._finish(sequence, end, self._clock())
        return end is None

    def _end_of(self, sequence: Sequence, token: int) -> pb.Completion | None:
        """Tells a token's text. Returns why the answer ends with this token, or None."""
        vocabulary = self._runner.vocabulary
        if token in sequence.stop_tokens:
            return pb.Completion(finish_reason=pb.FINISH_REASON_STOP, stop_token=token)
        if vocabulary.ends_generation(token):
            return pb.Completion(finish_reason=pb.FINISH_REASON_STOP, eos_token=token)
        reader = sequence.reader
        text = sequence.text.push(vocabulary.piece(token, special=token in reader.shown_tokens))
        self._tell_deltas(sequence, reader.read(token, text))
        if sequence.text.stop is not None:
            return pb.Completion(finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string=sequence.text.stop)
        if reader.is_over or (reader.constraint is not None and reader.constraint.is_complete):
            return pb.Completion(finish_reason=pb.FINISH_REASON_STOP)
        if sequence.repetition_limit and sequence.num_repeats >= sequence.repetition_limit:
            return pb.Completion(finish_reason=pb.FINISH_REASON_REPETITION)
        if len(sequence.generated) >= sequence.max_tokens:
            return pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH)
        return None

    def _finish(self, sequence: Sequence, completion: pb.Completion, now: float) -> None:
        was_stopped = sequence.text.stop is not None
        reader = sequence.reader
        self._tell_deltas(sequence, reader.finish("" if was_stopped else sequence.text.finish()))
        if not was_stopped:
            stop = sequence.text.stop
            if stop is not None:
                # The very last bytes completed a stop text.
                completion = pb.Completion(finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string=stop)
        completion.usage.reasoning_tokens = reader.num_thought_tokens
        if reader.has_called and completion.finish_reason == pb.FINISH_REASON_STOP:
            completion.finish_reason = pb.FINISH_REASON_TOOL_CALLS
        completion.usage.prompt_tokens = len(sequence.prompt)
        completion.usage.cached_prompt_tokens = sequence.num_cached
        completion.usage.completion_tokens = len(sequence.generated)
        completion.timing.CopyFrom(_timing(sequence, now))
        if sequence.want_message:
            completion.message.CopyFrom(sequence.answer.response().message)
        completion.token_ids.extend(sequence.pending_token_ids)
        completion.logprobs.extend(sequence.pending_logprobs)
        self._tell(sequence, pb.StreamCompleteResponse(completion=completion))
        self._drop(sequence)

    def _fail(self, sequence: Sequence, error: errors.ServingError, *, keep_cells: bool = True) -> None:
        self._report(sequence).error.CopyFrom(wire.pack_error(error))
        self._drop(sequence, keep_cells=keep_cells)

    def _drop(self, sequence: Sequence, *, keep_cells: bool = True) -> None:
        """Frees everything that a sequence holds. Its cells may stay as cache."""
        del self._sequences[sequence.sequence_id]
        self._runner.arrange(self._scheduler.remove(sequence, keep_cells=keep_cells))
        sampler = self._samplers.pop(sequence.sequence_id, None)
        if sampler is not None:
            sampler.close()

    def _new_sampler(self, sequence: Sequence) -> SamplerT:
        forbidden = {
            *sequence.forbidden,
            *(self._runner.vocabulary.end_tokens() if sequence.ignore_eos else ()),
        }
        sampler = self._runner.new_sampler(sequence.sampling, forbidden=forbidden)
        sampler.accept(sequence.prompt)
        return sampler

    # What is told.

    def _report(self, sequence: Sequence) -> engine_pb2.SequenceEvents:
        report = self._events[sequence.sequence_id]
        report.sequence_id = sequence.sequence_id
        report.generated_tokens = len(sequence.generated)
        return report

    def _start(self, sequence: Sequence) -> None:
        if not sequence.has_started:
            sequence.has_started = True
            self._report(sequence).events.add(started=sequence.started)

    def _tell(self, sequence: Sequence, event: pb.StreamCompleteResponse) -> None:
        self._start(sequence)
        self._report(sequence).events.append(event)

    def _tell_deltas(self, sequence: Sequence, events: Iterable[pb.StreamCompleteResponse]) -> None:
        """Tells deltas; the first gets the tokens that were drawn since the last."""
        for event in events:
            delta = getattr(event, event.WhichOneof("event"))
            delta.token_ids.extend(sequence.pending_token_ids)
            delta.logprobs.extend(sequence.pending_logprobs)
            sequence.pending_token_ids = []
            sequence.pending_logprobs = []
            if sequence.want_message:
                sequence.answer.add(event)
            self._tell(sequence, event)

    def _tell_queue_positions(self) -> None:
        for position, sequence in enumerate(self._scheduler.queue()):
            if sequence.want_progress and sequence.queue_position != position:
                sequence.queue_position = position
                progress = pb.Progress(queue=pb.QueueProgress(position=position))
                self._tell(sequence, pb.StreamCompleteResponse(progress=progress))

    def _logprob(self, sequence: Sequence, row: int, token: int) -> pb.TokenLogprob:
        piece = self._runner.vocabulary.piece
        logprob, top = self._runner.logprobs(row, token, sequence.num_top_logprobs)
        return pb.TokenLogprob(
            token_id=token,
            piece=piece(token, special=True),
            logprob=logprob,
            top=[
                pb.TopLogprob(token_id=candidate, piece=piece(candidate, special=True), logprob=value)
                for candidate, value in top
            ],
        )

    def _send(self, batch: Batch | None = None, seconds: float = 0.0) -> None:
        chunks = [*batch.chunks, *batch.embeddings] if batch else []
        cells, totals = self._scheduler.cells, self._totals
        report = engine_pb2.StepReport(
            sequences=self._events.values(),
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            cells_used=cells.num_used,
            cells_cached=cells.num_cached,
            cells_total=cells.num_cells,
            step_seconds=seconds if chunks else 0.0,
            step_tokens=sum(len(chunk.tokens) for chunk in chunks),
            step_sequences=len(chunks),
            prompt_tokens_total=totals.prompt_tokens,
            cached_prompt_tokens_total=totals.cached_prompt_tokens,
            completion_tokens_total=totals.completion_tokens,
            preemptions_total=totals.preemptions,
        )
        self._events.clear()
        self._emit(report)


def _timing(sequence: Sequence, now: float) -> pb.Timing:
    def duration(begin: float, end: float) -> Duration:
        message = Duration()
        message.FromNanoseconds(max(0, round((end - begin) * 1e9)))
        return message

    admitted = now if sequence.admitted is None else sequence.admitted
    timing = pb.Timing(queued=duration(sequence.arrived, admitted), total=duration(sequence.arrived, now))
    if sequence.admitted is not None:
        prefilled = now if sequence.prefilled is None else sequence.prefilled
        timing.prefill.CopyFrom(duration(admitted, prefilled))
    if sequence.first_token is not None and sequence.last_token is not None:
        timing.time_to_first_token.CopyFrom(duration(sequence.arrived, sequence.first_token))
        timing.decode.CopyFrom(duration(sequence.first_token, sequence.last_token))
    return timing
