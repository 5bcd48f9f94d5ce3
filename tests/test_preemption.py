"""A pool of cells that is smaller than what its sequences may want: it delays, and never fails or changes an answer."""

from __future__ import annotations

import asyncio
import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.engine.cells import CellOperation, Cells, Copy, Sharing, Trim
from inferwire_server.engine.scheduler import Scheduler
from tests.engine_fakes import Bench, make_sequence, text_of

from .serving import demo, running
from .test_scheduler import take_step

CELLS_PER_SLOT = 100


class PoolMachine(RuleBasedStateMachine):
    """Any order of decisions, beside a pool that names every cell and shares by reference."""

    @initialize(num_slots=st.integers(1, 4), num_cells=st.integers(CELLS_PER_SLOT, 250))
    def begin(self, num_slots: int, num_cells: int) -> None:
        self.cells = Cells(num_slots=num_slots, cells_per_slot=CELLS_PER_SLOT, num_cells=num_cells)
        self.num_cells = num_cells
        self.content: dict[int, list[object]] = {slot: [] for slot in range(num_slots)}
        self.tokens: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}
        self.held: dict[int, list[int]] = {}

    def do(self, operations: list[CellOperation]) -> None:
        for operation in operations:
            match operation:
                case Trim(slot, length):
                    assert length < len(self.content[slot])
                    del self.content[slot][length:], self.tokens[slot][length:]
                case Copy(source, slot, length):
                    self.content[slot] = self.content[source][:length]
                    self.tokens[slot] = self.tokens[source][:length]

    @precondition(lambda self: len(self.held) < len(self.content))
    @rule(root=st.integers(0, 1), length=st.integers(1, 80), own=st.integers(1, 19))
    def acquire(self, root: int, length: int, own: int) -> None:
        prompt = [root] * length + [random.randrange(2, 1000) for _ in range(own)]
        slot, shared, operations = self.cells.acquire(prompt, "")
        assert slot not in self.held
        self.do(operations)
        assert self.tokens[slot] == prompt[:shared] == self.cells.tokens(slot)
        self.held[slot] = prompt

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 60))
    def fill(self, data: st.DataObject, count: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        begin = len(self.tokens[slot])
        tokens = self.held[slot][begin : begin + count]
        if not tokens or len(tokens) > (self.cells.num_available or 0):
            return
        self.do(self.cells.make_room(len(tokens)))
        self.cells.fill(slot, tokens)
        self.content[slot] += [object() for _ in tokens]
        self.tokens[slot] += tokens

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[slot]
        self.do(self.cells.release(slot, keep=keep))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        shared, operations = self.cells.share(slot, self.held[slot])
        self.do(operations)
        assert self.held[slot][:shared] == self.tokens[slot]

    @invariant()
    def cells_are_counted_once(self) -> None:
        if not hasattr(self, "cells"):
            return
        everything = {id(cell) for content in self.content.values() for cell in content}
        held = {id(cell) for slot in self.held for cell in self.content[slot]}
        assert len(everything) <= self.num_cells
        assert (len(held), len(everything) - len(held)) == (self.cells.num_used, self.cells.num_cached)
        assert self.num_cells - len(held) == self.cells.num_available
        for slot, tokens in self.tokens.items():
            assert tokens == self.cells.tokens(slot)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def pooled(num_slots: int, num_cells: int, *, cells_per_slot: int = 32, batch_size: int = 16) -> Scheduler:
    cells = Cells(
        num_slots=num_slots, cells_per_slot=cells_per_slot, num_cells=num_cells, sharing=Sharing.PREFIX
    )
    return Scheduler(cells=cells, batch_size=batch_size)


def test_the_newest_gives_way() -> None:
    """When the pool is full, who came last waits again, and goes on in front of whoever came later."""
    scheduler = pooled(3, 32)
    first, second = make_sequence(1, range(12), cache_key="a"), make_sequence(2, range(12), cache_key="b")
    scheduler.add(first)
    scheduler.add(second)
    while not (batch := take_step(scheduler)).preempted:
        pass
    assert [second] == batch.preempted
    scheduler.add(make_sequence(3, range(12), cache_key="c"))
    assert [2, 3] == [sequence.sequence_id for sequence in scheduler.queue()]
    while first.num_computed < 31:
        assert [first] == [chunk.sequence for chunk in take_step(scheduler).chunks]
    scheduler.remove(first)
    assert second is take_step(scheduler).admitted[0]
    assert 1 == second.num_preemptions


def test_the_oldest_is_never_preempted() -> None:
    """Whoever fits alone comes to its end, however many others want its cells."""
    scheduler = pooled(8, 64, batch_size=64)
    oldest = make_sequence(0, range(4), cache_key="0")
    scheduler.add(oldest)
    take_step(scheduler)
    for number in range(1, 8):
        scheduler.add(make_sequence(number, range(4), cache_key=str(number)))
    for _ in range(20):
        take_step(scheduler, 64)
        assert 0 == oldest.num_preemptions
    assert sum(sequence.num_preemptions for sequence in (*scheduler.running, *scheduler.waiting)) > 0


def test_a_long_prompt_is_not_let_in_to_be_put_out() -> None:
    """A prompt that does not fit beside those that run waits, and nobody overtakes it."""
    scheduler = pooled(3, 40)
    scheduler.add(make_sequence(1, range(20)))
    take_step(scheduler, 16)
    scheduler.add(make_sequence(2, [9] * 20))
    scheduler.add(make_sequence(3, [9]))
    assert [1] == [chunk.sequence.sequence_id for chunk in take_step(scheduler).chunks]
    assert [2, 3] == [sequence.sequence_id for sequence in scheduler.queue()]


def test_what_is_cached_makes_room() -> None:
    """Tokens of finished sequences are cut from their end, least recently used first, and only as many as needed."""
    cells = Cells(num_slots=3, cells_per_slot=200, num_cells=300)
    for number, tokens in enumerate(([1] * 150, [2] * 150)):
        slot, _, operations = cells.acquire(tokens, "")
        assert (number, []) == (slot, operations)
        cells.fill(slot, tokens)
        cells.release(slot)
    slot, _, _ = cells.acquire([3] * 10, "")
    assert [Trim(0, 150 - 64)] == cells.make_room(10)
    cells.fill(slot, [3] * 10)
    assert [Trim(0, 0), Trim(1, 150 - 64)] == cells.make_room(160)


def test_a_shared_prefix_takes_its_cells_once() -> None:
    """Eight prompts with one long beginning run together in a pool that could not hold two of them apart."""
    bench = Bench(num_slots=8, batch_size=64, sharing=Sharing.PREFIX, num_cells=80)
    prefix = [ord("x")] * 40
    sequences = [make_sequence(number, [*prefix, number + 2], max_tokens=3) for number in range(8)]
    bench.run(*sequences)
    assert 0 == sum(sequence.num_preemptions for sequence in sequences)
    assert 8 == max(len(batch.chunks) for batch in bench.runner.batches)
    bench.assert_nothing_held()


class TestFairness:
    def test_principals_take_turns(self) -> None:
        """Who asks for one answer waits for one of somebody's thirty, and not for all."""
        scheduler = pooled(1, 32)
        for number in range(30):
            scheduler.add(make_sequence(number, range(8), principal="many"))
        take_step(scheduler)
        scheduler.add(make_sequence(99, range(8), principal="one"))
        admitted = []
        for _ in range(2):
            scheduler.remove(scheduler.running[0])
            admitted += [sequence.sequence_id for sequence in take_step(scheduler).admitted]
        assert [1, 99] == admitted

    def test_having_been_away_earns_nothing(self) -> None:
        """A principal that comes back shares from now on, and does not shut out those who worked meanwhile."""
        scheduler = pooled(1, 32)
        number = 0
        served = {"busy": 0, "back": 0}

        def serve_one() -> None:
            batch = take_step(scheduler)
            served[batch.chunks[0].sequence.principal] += 1
            scheduler.remove(batch.chunks[0].sequence)

        for _ in range(20):
            scheduler.add(make_sequence(number := number + 1, range(8), principal="busy"))
            scheduler.add(make_sequence(number := number + 1, range(8), principal="busy"))
            serve_one()
        for _ in range(10):
            scheduler.add(make_sequence(number := number + 1, range(8), principal="back"))
        served = {"busy": 0, "back": 0}
        for _ in range(10):
            serve_one()
        assert {"busy": 5, "back": 5} == served

    def test_priority_is_within_a_principal(self) -> None:
        """A high priority overtakes one's own requests, and nobody else's."""
        scheduler = pooled(1, 32)
        scheduler.add(make_sequence(1, range(8), principal="one"))
        take_step(scheduler)
        scheduler.add(make_sequence(2, range(8), principal="two"))
        scheduler.add(make_sequence(3, range(8), principal="one"))
        scheduler.add(make_sequence(4, range(8), principal="one", priority=9))
        assert [2, 4, 3] == [sequence.sequence_id for sequence in scheduler.queue()]


@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 32), num_cells=st.integers(64, 160))
def test_a_pool_is_never_overdrawn(seed: int, num_cells: int) -> None:
    """Prompts that share beginnings with what is cached, held and just being computed, in a pool that is always full."""
    draw = random.Random(seed)
    roots = [[draw.randrange(2, 90) for _ in range(48)] for _ in range(2)]
    bench = Bench(num_slots=6, batch_size=24, sharing=Sharing.PREFIX, num_cells=num_cells)
    sequences = []
    for number in range(16):
        root = draw.choice(roots)
        prompt = [*root[: draw.randrange(1, 49)], draw.randrange(2, 90)]
        sequences.append(
            make_sequence(number, prompt, max_tokens=draw.randrange(1, 64 - len(prompt)), ignore_eos=True)
        )
        bench.at_report(draw.randrange(1, 60), functools.partial(bench.submit, sequences[-1]))
    bench.run(make_sequence(99, [0], max_tokens=63, ignore_eos=True))
    for sequence in sequences:
        usage = bench.events[sequence.sequence_id][-1].completion.usage
        assert sequence.max_tokens == usage.completion_tokens
    bench.assert_nothing_held()


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32))
def test_preemption_changes_no_answer(seed: int) -> None:
    """Many long answers in a pool for two of them: each is that of a run alone, and its usage too."""
    draw = random.Random(seed)
    bench = Bench(num_slots=6, batch_size=24, sharing=draw.choice(list(Sharing)), num_cells=64 + seed % 40)
    prompts = [[draw.randrange(2, 90) for _ in range(draw.randrange(1, 30))] for _ in range(6)]
    sequences = [make_sequence(number, prompt, ignore_eos=True) for number, prompt in enumerate(prompts)]
    bench.run(*sequences)
    for sequence in sequences:
        alone = Bench(num_slots=1)
        events = alone.run(make_sequence(sequence.sequence_id, sequence.prompt, ignore_eos=True))
        told = bench.events[sequence.sequence_id]
        assert text_of(events) == text_of(told)
        assert events[-1].completion.usage == told[-1].completion.usage
    assert any(sequence.num_preemptions for sequence in sequences)
    bench.assert_nothing_held()


async def test_a_full_cache_only_delays() -> None:
    """Eight long answers of the demo model in a cache for two: all come to their end, greedy ones as in a run alone."""

    def request(number: int) -> pb.CompleteRequest:
        request = pb.CompleteRequest(prompt=f"The number is {number}. " * (number + 1))
        request.sampling.temperature = 0
        request.stopping.max_tokens = 120
        request.stopping.ignore_eos = True
        return request

    config = {"context_length": 256, "parallel_sequences": 8, "cache_tokens": 512}
    async with running(models={"demo": demo(**config)}) as (server, client):
        answers = await asyncio.gather(*(client.complete(request(number)) for number in range(8)))
        alone = [await client.complete(request(number)) for number in range(8)]
        for together, single in zip(answers, alone, strict=True):
            assert 120 == together.completion.usage.completion_tokens
            assert together.message.parts[0].text[:40] == single.message.parts[0].text[:40]
        model = server.registry.model("demo")
        assert 512 == model.config.cache_tokens


async def test_who_cannot_fit_alone_is_refused() -> None:
    """A prompt beyond the context is refused at the door, however empty the cache is."""
    async with running(models={"demo": demo(context_length=256, cache_tokens=300)}) as (_, client):
        with pytest.raises(InferwireError) as caught:
            await client.complete(pb.CompleteRequest(prompt="word " * 1000))
        assert "CONTEXT_LENGTH_EXCEEDED" == caught.value.reason
