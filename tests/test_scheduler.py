"""Who computes what in a step, who waits, and how long a step may be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferwire_server.engine.cells import Cells, Sharing, Trim
from inferwire_server.engine.scheduler import MIN_CHUNK_TOKENS, Allowance, Batch, Scheduler, StepBudget
from inferwire_server.engine.sequence import Phase, Sequence
from tests.engine_fakes import Bench, make_sequence, text_of

CELLS_PER_SLOT = 32


def make_scheduler(*, num_slots: int = 2, batch_size: int = 16) -> Scheduler:
    cells = Cells(num_slots=num_slots, cells_per_slot=CELLS_PER_SLOT, sharing=Sharing.NONE)
    return Scheduler(cells=cells, batch_size=batch_size)


def take_step(scheduler: Scheduler, budget: int = 16) -> Batch:
    """A step whose decoding sequences all get one more token."""
    batch = scheduler.schedule(Allowance(budget))
    scheduler.computed(batch.chunks)
    for chunk in batch.chunks:
        if chunk.wants_logits:
            chunk.sequence.generated.append(0)
    return batch


def shape(batch: Batch) -> list[tuple[int, int, int, bool]]:
    """(sequence, position, tokens, wants logits) of each chunk."""
    return [
        (chunk.sequence.sequence_id, chunk.position, len(chunk.tokens), chunk.wants_logits)
        for chunk in batch.chunks
    ]


class TestCells:
    def test_a_slot_comes_back_empty(self) -> None:
        """Releasing gives a slot back with all its cells."""
        cells = Cells(num_slots=1, cells_per_slot=4, sharing=Sharing.NONE)
        slot, shared, operations = cells.acquire([1, 2, 3], "")
        assert (0, []) == (shared, operations)
        cells.fill(slot, [1, 2, 3])
        assert "<Cells [slots 1 held, 0 free | own cells 3 held, 0 cached of 4]>" == repr(cells)
        assert [Trim(slot, 0)] == cells.release(slot)
        assert (1, 0, 0) == (cells.num_free_slots, cells.num_used, cells.num_cached)

    def test_slots_are_different(self) -> None:
        """No two holders share a slot, and there are no more than there are."""
        cells = Cells(num_slots=3, cells_per_slot=4)
        assert {0, 1, 2} == {cells.acquire([1], "")[0] for _ in range(3)}
        with pytest.raises(IndexError):
            cells.acquire([1], "")

    def test_a_slot_cannot_overflow(self) -> None:
        """A slot has room for one context, and says so before anything is counted."""
        cells = Cells(num_slots=1, cells_per_slot=4)
        slot, _, _ = cells.acquire([1, 2, 3, 4], "")
        cells.fill(slot, [1, 2, 3, 4])
        with pytest.raises(ValueError, match="has 4 cells, not 5"):
            cells.fill(slot, [5])
        assert 4 == cells.num_used


class TestSchedule:
    def test_decode_comes_first(self) -> None:
        """A running stream gets its token in every step, also when a long prompt could fill the budget."""
        scheduler = make_scheduler()
        scheduler.add(make_sequence(1, [0] * 3))
        take_step(scheduler)
        scheduler.add(make_sequence(2, [0] * 30))
        assert [(1, 3, 1, True), (2, 0, 7, False)] == shape(take_step(scheduler, 8))
        assert [(1, 4, 1, True), (2, 7, 7, False)] == shape(take_step(scheduler, 8))

    def test_a_prompt_is_cut_into_chunks(self) -> None:
        """Chunks fill the budget and follow one another; only the last one wants logits."""
        scheduler = make_scheduler()
        scheduler.add(make_sequence(1, range(20)))
        batches = [take_step(scheduler, 8) for _ in range(3)]
        assert [[(1, 0, 8, False)], [(1, 8, 8, False)], [(1, 16, 4, True)]] == [
            shape(batch) for batch in batches
        ]
        assert list(range(20)) == [token for batch in batches for token in batch.chunks[0].tokens]

    def test_the_budget_is_shared_in_order(self) -> None:
        """What the oldest prompt leaves of the budget goes to the next, unless it is too little to be worth a chunk."""
        scheduler = make_scheduler(num_slots=3, batch_size=32)
        scheduler.add(make_sequence(1, [0] * 5))
        scheduler.add(make_sequence(2, [0] * 30))
        scheduler.add(make_sequence(3, [0] * 2))
        assert [(1, 0, 5, True), (2, 0, MIN_CHUNK_TOKENS, False)] == shape(
            take_step(scheduler, 5 + MIN_CHUNK_TOKENS)
        )
        assert [(1, 5, 1, True), (2, 16, 14, True), (3, 0, 2, True)] == shape(take_step(scheduler, 32))
        scheduler = make_scheduler(batch_size=32)
        scheduler.add(make_sequence(1, [0] * 5))
        scheduler.add(make_sequence(2, [0] * 30))
        assert [(1, 0, 5, True)] == shape(take_step(scheduler, 4 + MIN_CHUNK_TOKENS))

    @pytest.mark.parametrize("budget", [0, 1, 2])
    def test_a_small_budget_starves_no_prompt(self, budget: int) -> None:
        """A prompt moves by a token at least, however little the decoding streams leave."""
        scheduler = make_scheduler()
        scheduler.add(make_sequence(1, [0]))
        take_step(scheduler)
        scheduler.add(make_sequence(2, [0] * 2))
        assert [(1, 1, 1, True), (2, 0, 1, False)] == shape(take_step(scheduler, budget))

    def test_the_batch_size_is_never_exceeded(self) -> None:
        """A budget beyond the batch size is cut."""
        scheduler = make_scheduler(batch_size=4)
        scheduler.add(make_sequence(1, [0] * 30))
        assert 4 == scheduler.schedule(Allowance(1000)).num_tokens

    def test_who_has_no_slot_waits(self) -> None:
        """No more sequences run than there are slots; a freed slot goes to the next at once."""
        scheduler = make_scheduler(num_slots=2)
        sequences = [make_sequence(number) for number in range(3)]
        for sequence in sequences:
            scheduler.add(sequence)
        assert sequences[:2] == take_step(scheduler).admitted
        assert sequences[2:] == scheduler.waiting
        assert (
            "<Scheduler [waiting 1 | running 2 | <Cells [slots 2 held, 0 free | own cells 2 held, 0 cached of 64]>]>"
            == repr(scheduler)
        )
        slot = sequences[0].slot
        assert [Trim(slot or 0, 0)] == scheduler.remove(sequences[0])
        assert [sequences[2]] == scheduler.schedule(Allowance(8)).admitted
        assert slot == sequences[2].slot

    @given(st.lists(st.integers(-2, 2), max_size=12))
    def test_the_queue_is_by_priority_then_by_arrival(self, priorities: list[int]) -> None:
        """Higher goes first; among equals who came first."""
        scheduler = make_scheduler()
        for number, priority in enumerate(priorities):
            scheduler.add(make_sequence(number, priority=priority))
        order = sorted(range(len(priorities)), key=lambda number: -priorities[number])
        assert order == [sequence.sequence_id for sequence in scheduler.queue()]

    @pytest.mark.parametrize("steps", [0, 1, 2, 3])
    def test_remove_frees_in_every_phase(self, steps: int) -> None:
        """Waiting, between two chunks, after the prompt, while decoding: nothing stays behind."""
        scheduler = make_scheduler()
        sequence = make_sequence(1, [0] * 16)
        scheduler.add(sequence)
        for _ in range(steps):
            take_step(scheduler, 8)
        expected = [Phase.WAITING, Phase.PREFILL, Phase.DECODE, Phase.DECODE][steps]
        assert expected is sequence.phase
        assert ([] if steps == 0 else [Trim(0, 0)]) == scheduler.remove(sequence)
        assert (2, 0) == (scheduler.cells.num_free_slots, scheduler.cells.num_used)
        assert [] == scheduler.waiting + scheduler.running
        assert [] == scheduler.schedule(Allowance(8)).chunks

    def test_prompt_tokens_are_counted_apart(self) -> None:
        """The budget learns from prompt tokens; those of decoding streams are not among them."""
        scheduler = make_scheduler()
        scheduler.add(make_sequence(1, [0]))
        take_step(scheduler)
        scheduler.add(make_sequence(2, [0] * 5))
        batch = scheduler.schedule(Allowance(16))
        assert (6, 5, 1) == (batch.num_tokens, batch.num_prompt_tokens, scheduler.num_decoding)


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps and removals."""

    @initialize(num_slots=st.integers(1, 4), spare=st.integers(0, 8))
    def begin(self, num_slots: int, spare: int) -> None:
        self.batch_size = num_slots + spare
        self.num_slots = num_slots
        self.scheduler = make_scheduler(num_slots=num_slots, batch_size=self.batch_size)
        self.alive: dict[int, Sequence] = {}
        self.next_id = 0

    @rule(length=st.integers(1, CELLS_PER_SLOT), priority=st.integers(-1, 1))
    def add(self, length: int, priority: int) -> None:
        sequence = make_sequence(self.next_id, range(length), priority=priority)
        self.alive[self.next_id] = sequence
        self.next_id += 1
        self.scheduler.add(sequence)

    @rule(budget=st.integers(0, 24))
    def step(self, budget: int) -> None:
        before = {number: sequence.num_computed for number, sequence in self.alive.items()}
        decoding = [sequence for sequence in self.scheduler.running if sequence.phase is Phase.DECODE]
        queue = self.scheduler.queue()
        batch = self.scheduler.schedule(Allowance(budget))
        assert queue == batch.admitted + self.scheduler.queue()
        chunked = [chunk.sequence for chunk in batch.chunks]
        assert set(decoding) <= set(chunked)
        assert chunked == sorted(chunked, key=lambda sequence: sequence.slot or 0), "in the order of slots"
        assert batch.num_tokens <= min(max(budget, len(decoding) + 1), self.batch_size)
        assert bool(self.alive) == bool(batch.chunks)
        for chunk in batch.chunks:
            sequence = chunk.sequence
            assert (chunk.slot, chunk.position) == (sequence.slot, before[sequence.sequence_id])
            assert chunk.tokens
        prompts = [sequence for sequence in chunked if sequence.phase is Phase.PREFILL]
        unread = [sequence for sequence in self.scheduler.running if sequence.phase is Phase.PREFILL]
        unread.sort(key=lambda sequence: (-sequence.priority, sequence.sequence_id))
        assert set(unread[: len(prompts)]) == set(prompts), "prompts are read in the order of the queue"
        self.scheduler.computed(batch.chunks)
        for chunk in batch.chunks:
            sequence = chunk.sequence
            assert before[sequence.sequence_id] + len(chunk.tokens) == sequence.num_computed
            assert chunk.wants_logits == (sequence.phase is Phase.DECODE)
            if chunk.wants_logits:
                sequence.generated.append(0)
                # As in the engine: a sequence ends when its context is full.
                if sequence.num_computed >= CELLS_PER_SLOT:
                    self._remove(sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self._remove(self.alive[data.draw(st.sampled_from(sorted(self.alive)))])

    def _remove(self, sequence: Sequence) -> None:
        freed = [] if not sequence.num_computed else [Trim(sequence.slot or 0, 0)]
        assert freed == self.scheduler.remove(sequence)
        del self.alive[sequence.sequence_id]

    @invariant()
    def everyone_is_somewhere(self) -> None:
        queued = self.scheduler.waiting + self.scheduler.running
        assert sorted(self.alive) == sorted(sequence.sequence_id for sequence in queued)

    @invariant()
    def slots_and_cells_add_up(self) -> None:
        slots = [sequence.slot for sequence in self.scheduler.running]
        assert len(slots) == len(set(slots)) <= self.num_slots
        assert self.num_slots - len(slots) == self.scheduler.cells.num_free_slots
        assert (
            sum(sequence.num_computed for sequence in self.scheduler.running) == self.scheduler.cells.num_used
        )

    def teardown(self) -> None:
        """Every sequence that is left comes to the end of its prompt and decodes: nobody starves."""
        for _ in range(200 * len(getattr(self, "alive", ()))):
            if not self.alive:
                return
            self.step(1)
            for sequence in list(self.alive.values()):
                if len(sequence.generated) >= 2:
                    self._remove(sequence)
        assert {} == getattr(self, "alive", {})


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def make_budget(*, fixed_tokens: int | None = None) -> StepBudget:
    return StepBudget(
        batch_size=512, max_decode_step_seconds=0.25, max_prefill_step_seconds=1.0, fixed_tokens=fixed_tokens
    )


class Machine:
    """A computer whose step takes a + b * tokens."""

    def __init__(self, budget: StepBudget, *, step_seconds: float, token_seconds: float) -> None:
        self.budget = budget
        self.step_seconds = step_seconds
        self.token_seconds = token_seconds

    def step(self, num_decoding: int, num_prompt: int = 1 << 20) -> float:
        """A step with as many prompt tokens as there are and the budget allows. Returns its time."""
        tokens = self.budget.tokens(num_decoding)
        prompt = min(num_prompt, tokens - num_decoding)
        seconds = self.step_seconds + self.token_seconds * (num_decoding + prompt)
        self.budget.observe(num_prompt_tokens=prompt, num_decoding=num_decoding, seconds=seconds)
        return seconds


machines = st.fixed_dictionaries(
    {"step_seconds": st.floats(1e-4, 0.05), "token_seconds": st.floats(1e-6, 0.015)},
)


class TestStepBudget:
    @given(machines, st.lists(st.tuples(st.integers(0, 8), st.integers(0, 600)), max_size=60))
    def test_a_step_stays_within_its_time(
        self, speeds: dict[str, float], steps: list[tuple[int, int]]
    ) -> None:
        """From the first step on: 250 ms while a stream decodes, 1 s while none does, on machines slow and fast.

        What a step costs beside its tokens is known only after a step without prompts; until then it may come on top.
        """
        machine = Machine(make_budget(), **speeds)
        for num_decoding, num_prompt in steps:
            if num_decoding + num_prompt == 0:
                continue
            limit = 0.25 if num_decoding else 1.0
            least = machine.step_seconds + machine.token_seconds * (
                num_decoding + StepBudget.MIN_PROMPT_TOKENS
            )
            assert machine.step(num_decoding, num_prompt) <= max(limit + machine.step_seconds, least) + 1e-9

    def test_the_time_is_used(self) -> None:
        """A long prompt settles at the whole step, alone and beside running streams."""
        machine = Machine(make_budget(), step_seconds=0.01, token_seconds=0.004)
        alone = [machine.step(0) for _ in range(30)]
        assert 0.9 <= alone[-1] <= 1.0
        for _ in range(10):
            machine.step(4, 0)
        beside = [machine.step(4) for _ in range(30)]
        assert 0.22 <= beside[-1] <= 0.25

    def test_a_fast_machine_is_bounded_by_the_batch(self) -> None:
        """The batch size is the end, however fast the machine."""
        budget = make_budget()
        machine = Machine(budget, step_seconds=1e-4, token_seconds=1e-6)
        for _ in range(5):
            machine.step(3)
        assert 512 == budget.tokens(3)

    def test_short_prompts_do_not_spoil_what_is_known(self) -> None:
        """The time of a few tokens says little: after any number of them a long prompt is still cut in time."""
        budget = make_budget()
        machine = Machine(budget, step_seconds=0.001, token_seconds=0.004)
        for _ in range(30):
            machine.step(0)
        for _ in range(10):
            # Lucky steps: two tokens of prompt beside a stream, and no slower than the stream alone.
            budget.observe(num_prompt_tokens=0, num_decoding=1, seconds=0.005)
            budget.observe(num_prompt_tokens=2, num_decoding=1, seconds=0.005)
        assert machine.step(1) <= 0.3

    def test_a_step_that_was_too_short_is_no_habit(self) -> None:
        """Many decoded, which took long; now few do, and a long prompt beside them leaves no step without it."""
        machine = Machine(make_budget(), step_seconds=0.02, token_seconds=0.005)
        for _ in range(10):
            machine.step(0)
            machine.step(16, 0)
        # Decoding costs more than reading, as it does on processors.
        machine.budget.observe(num_prompt_tokens=0, num_decoding=16, seconds=0.2)
        beside = [machine.step(3) for _ in range(20)]
        assert 0.22 <= beside[-1] <= 0.25

    def test_a_cold_start_is_forgotten(self) -> None:
        """The first step reads the weights from the disk; the second says what a token costs."""
        machine = Machine(make_budget(), step_seconds=0.5, token_seconds=0.004)
        machine.step(0)
        machine.step_seconds = 0.001
        machine.step(0)
        assert machine.step(0) >= 0.9

    def test_a_machine_that_became_slower_is_noticed(self) -> None:
        """Within a few steps the budget is that of the new speed."""
        machine = Machine(make_budget(), step_seconds=0.001, token_seconds=0.002)
        for _ in range(30):
            machine.step(0)
        machine.token_seconds = 0.008
        steps = [machine.step(0) for _ in range(8)]
        assert steps[-1] <= 1.1

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 500), st.floats(0, 10)), max_size=20))
    def test_a_fixed_budget_never_changes(self, steps: list[tuple[int, int, float]]) -> None:
        """The same request is always cut in the same places, whatever the steps took."""
        budget = make_budget(fixed_tokens=64)
        for num_decoding, num_prompt, seconds in steps:
            budget.observe(num_prompt_tokens=num_prompt, num_decoding=num_decoding, seconds=seconds)
            assert 64 == budget.tokens(num_decoding)

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 500), st.floats(0, 100)), max_size=30))
    def test_a_prompt_always_moves(self, steps: list[tuple[int, int, float]]) -> None:
        """However slow the steps were, the next has room for a few prompt tokens, and never more than the batch."""
        budget = make_budget()
        for num_decoding, num_prompt, seconds in steps:
            budget.observe(num_prompt_tokens=num_prompt, num_decoding=num_decoding, seconds=seconds)
            least = num_decoding + StepBudget.MIN_PROMPT_TOKENS
            assert least <= budget.tokens(num_decoding) <= 512

    def test_the_state_is_shown(self) -> None:
        """The representation tells both speeds."""
        budget = make_budget()
        budget.observe(num_prompt_tokens=0, num_decoding=1, seconds=0.002)
        budget.observe(num_prompt_tokens=10, num_decoding=0, seconds=0.005)
        budget.observe(num_prompt_tokens=2, num_decoding=4, seconds=0.005)
        assert "<StepBudget [decode steps {1: 2.0, 4: 4.0} ms | prompt token 0.50 ms]>" == repr(budget)


class Generous(StepBudget):
    """Lets everybody wait for short prompts."""

    def __init__(self) -> None:
        super().__init__(batch_size=16, max_decode_step_seconds=1, max_prefill_step_seconds=1)

    def allowance(self, num_decoding: int) -> Allowance:
        return Allowance(16, gather_each=20, gather_all=400)


class TestGathering:
    """Who is read first waits for others, so that they decode together."""

    ALLOWANCE = Allowance(8, gather_each=20, gather_all=40)

    def steps(self, scheduler: Scheduler, allowance: Allowance = ALLOWANCE) -> list[list[tuple[int, bool]]]:
        """(tokens, wants logits) of each chunk of each step, until somebody decodes."""
        steps = []
        while not scheduler.num_decoding:
            batch = scheduler.schedule(allowance)
            scheduler.computed(batch.chunks)
            steps.append([(len(chunk.tokens), chunk.wants_logits) for chunk in batch.chunks])
        return steps

    def test_prompts_that_come_together_begin_together(self) -> None:
        """All but their last tokens are read first; these make one step."""
        scheduler = make_scheduler(num_slots=6)
        for number in range(6):
            scheduler.add(make_sequence(number, [0] * 9))
        assert [*([[(8, False)]] * 6), [(1, True)] * 6] == self.steps(scheduler)

    def test_who_is_alone_waits_for_nobody(self) -> None:
        """A single prompt is read whole."""
        scheduler = make_scheduler()
        scheduler.add(make_sequence(1, [0] * 10))
        assert [[(8, False)], [(2, True)]] == self.steps(scheduler)

    def test_nobody_waits_for_long_prompts(self) -> None:
        """A short one begins as soon as it is read."""
        scheduler = make_scheduler(num_slots=6)
        scheduler.add(make_sequence(1, [0] * 6))
        for number in range(2, 7):
            scheduler.add(make_sequence(number, [0] * 31, max_tokens=1))
        assert [(6, True)] == self.steps(scheduler, Allowance(8, gather_each=12, gather_all=40))[0]

    def test_nobody_waits_for_ever(self) -> None:
        """Not when others keep coming: after so many tokens those who are read begin."""
        scheduler = make_scheduler(num_slots=30, batch_size=32)
        for number in range(30):
            scheduler.add(make_sequence(number, [0] * 9))
        steps = self.steps(scheduler)
        assert 5 <= len(steps) <= 7
        assert [(1, True)] * (len(steps) - 1) == steps[-1][: len(steps) - 1]

    def test_a_second_gathering_is_as_long_as_the_first(self) -> None:
        """What was waited once does not count the next time."""
        scheduler = make_scheduler(num_slots=6)
        for _ in range(3):
            for number in range(6):
                scheduler.add(make_sequence(number, [0] * 7))
            assert [(1, True)] * 6 == self.steps(scheduler)[-1]
            for sequence in list(scheduler.running):
                scheduler.remove(sequence)

    def test_a_gathering_that_one_began_alone_is_as_long(self) -> None:
        """Who was read before the others came waits for all of them, whatever was waited before."""
        scheduler = make_scheduler(num_slots=6)
        for _ in range(3):
            for number in range(6):
                scheduler.add(make_sequence(number, [0] * (7 if number else 1)))
            assert [(1, True)] * 6 == self.steps(scheduler)[-1]
            take_step(scheduler)
            for sequence in list(scheduler.running):
                scheduler.remove(sequence)

    def test_who_decodes_does_not_wait(self) -> None:
        """Nobody is held back for newcomers once it decodes."""
        scheduler = make_scheduler(num_slots=3)
        scheduler.add(make_sequence(1, [0]))
        take_step(scheduler)
        scheduler.add(make_sequence(2, [0] * 6))
        scheduler.add(make_sequence(3, [0] * 6))
        batch = scheduler.schedule(self.ALLOWANCE)
        assert [(1, 1, True), (6, 0, True)] == [
            (len(chunk.tokens), chunk.position, chunk.wants_logits) for chunk in batch.chunks
        ]

    def test_who_is_read_waits_for_those_who_came_meanwhile(self) -> None:
        """A burst does not arrive at once: the first is read alone, and still begins with the others."""
        bench = Bench(num_slots=8, batch_size=16, sharing=Sharing.PREFIX)
        bench.engine._budget = Generous()
        others = [make_sequence(number, [number] * 9, max_tokens=4) for number in range(1, 8)]
        first = make_sequence(0, [0] * 9, max_tokens=4)

        def others_come(batch: Batch) -> bool:
            bench.submit(*others)
            others.clear()
            return False

        bench.runner.rejects = others_come
        bench.run(first)
        assert 9 == bench.runner.batches[0].num_tokens
        begins = [
            [chunk.sequence for chunk in batch.chunks if chunk.wants_logits]
            for batch in bench.runner.batches[1:]
        ]
        assert 8 == len(next(filter(None, begins)))
        for number in range(8):
            alone = Bench(num_slots=1).run(make_sequence(number, [number] * 9, max_tokens=4))
            assert text_of(alone) == text_of(bench.events[number])
        bench.assert_nothing_held()
