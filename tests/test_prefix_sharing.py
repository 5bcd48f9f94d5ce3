"""A prompt's beginning that somebody has computed is not computed again, and nobody can tell but by the time it takes."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferwire.v1 import inference_pb2 as pb
from inferwire_server.engine.cells import MIN_SHARED_TOKENS, Cells, Copy, Sharing, Trim, common_prefix
from tests.engine_fakes import Bench, make_sequence, text_of

from .serving import demo, running

PREFIX = list(range(2, 34))


def computed_tokens(bench: Bench) -> int:
    return sum(batch.num_tokens for batch in bench.runner.batches)


def usage(bench: Bench, sequence_id: int) -> pb.Usage:
    return bench.events[sequence_id][-1].completion.usage


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_what_it_says(one: list[int], other: list[int]) -> None:
    """The same as counting one by one."""
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert expected == common_prefix(one, other)


class TestCells:
    """Where a prompt's beginning comes from."""

    @staticmethod
    def filled(*contents: Sequence[int], num_slots: int = 3) -> Cells:
        """Cells whose first slots are cache of the key "a", the oldest first."""
        cells = Cells(num_slots=num_slots, cells_per_slot=100)
        slots = [cells.acquire(tokens, "a")[0] for tokens in contents]
        for slot, tokens in zip(slots, contents, strict=True):
            cells.fill(slot, tokens)
        for slot in slots:
            assert [] == cells.release(slot)
        return cells

    def test_a_conversation_goes_on_where_it_stands(self) -> None:
        """The next turn takes the slot of the turn before; a short tail that differs is cut."""
        cells = self.filled(PREFIX)
        assert (0, 32, []) == cells.acquire([*PREFIX, 7, 8], "a")
        cells.release(0)
        assert (0, 30, [Trim(0, 30)]) == cells.acquire([*PREFIX[:30], 99, 99], "a")

    def test_a_long_tail_is_not_given_up(self) -> None:
        """Who shares only the beginning of a long conversation copies it, and leaves the conversation as it was."""
        cells = self.filled([*PREFIX, *range(50, 90)])
        assert (1, 32, [Copy(0, 1, 32)]) == cells.acquire([*PREFIX, 7], "a")
        assert 72 == cells.num_cached

    def test_another_key_shares_nothing(self) -> None:
        """Not a token of one principal or salt is seen by another; a slot that is taken over is emptied first."""
        cells = self.filled(PREFIX, num_slots=1)
        assert (0, 0, [Trim(0, 0)]) == cells.acquire([*PREFIX, 7], "b")

    def test_the_last_token_is_always_computed(self) -> None:
        """Its logits are what the answer begins with."""
        cells = self.filled(PREFIX)
        assert (0, 31, [Trim(0, 31)]) == cells.acquire(PREFIX, "a")

    def test_a_little_is_not_worth_a_copy(self) -> None:
        """Below the least number of tokens nothing is shared."""
        cells = self.filled(PREFIX)
        _, shared, _ = cells.acquire([*PREFIX[: MIN_SHARED_TOKENS - 1], 99, 99], "a")
        assert 0 == shared

    def test_the_least_recently_used_cache_goes_first(self) -> None:
        """A newcomer empties the slot that nobody asked for the longest."""
        cells = self.filled([1] * 20, [2] * 20, [3] * 20)
        slot, _, _ = cells.acquire([1] * 21, "a")
        cells.release(slot)
        assert (1, 0, [Trim(1, 0)]) == cells.acquire([9] * 20, "a")

    def test_what_cannot_be_trusted_is_not_kept(self) -> None:
        """After a failed batch a slot is emptied."""
        cells = Cells(num_slots=1, cells_per_slot=100)
        slot, _, _ = cells.acquire(PREFIX, "a")
        cells.fill(slot, PREFIX)
        assert [Trim(0, 0)] == cells.release(slot, keep=False)
        assert 0 == cells.num_cached


def test_two_in_flight_compute_their_prefix_once() -> None:
    """The second waits for the first's prefill of the shared part, also when it is cut into chunks."""
    bench = Bench(num_slots=4, batch_size=8, sharing=Sharing.PREFIX)
    sequences = [make_sequence(number, [*PREFIX, 100 + number], max_tokens=1) for number in range(4)]
    bench.run(*sequences)
    assert len(PREFIX) + 4 == computed_tokens(bench)
    assert [0, 32, 32, 32] == [usage(bench, number).cached_prompt_tokens for number in range(4)]
    bench.assert_nothing_held()


def test_a_cancelled_leader_leaves_its_followers_what_it_computed() -> None:
    """Who waited for a prefix goes on from what is there, and gets its own right answer."""
    alone = Bench(sharing=Sharing.NONE)
    expected = text_of(alone.run(make_sequence(1, [*PREFIX, 101])))
    bench = Bench(batch_size=8, sharing=Sharing.PREFIX)
    bench.at_report(2, lambda: bench.engine.cancel(0))
    bench.submit(make_sequence(0, [*PREFIX, 100]))
    assert expected == text_of(bench.run(make_sequence(1, [*PREFIX, 101])))
    assert usage(bench, 1).cached_prompt_tokens >= MIN_SHARED_TOKENS


def test_a_rejected_batch_is_not_kept_as_cache() -> None:
    """What llama.cpp refused cannot be trusted by the next request."""
    bench = Bench(sharing=Sharing.PREFIX)
    bench.runner.rejects = lambda batch: True
    bench.run(make_sequence(1, PREFIX))
    bench.runner.rejects = lambda batch: False
    bench.run(make_sequence(2, PREFIX))
    assert 0 == usage(bench, 2).cached_prompt_tokens


@settings(max_examples=150)
@given(
    seed=st.integers(0, 1 << 32),
    num_slots=st.integers(1, 4),
    batch_size=st.integers(4, 24),
    sharing=st.sampled_from(Sharing),
    num_cells=st.none() | st.integers(64, 160),
)
def test_sharing_changes_no_answer(
    seed: int, num_slots: int, batch_size: int, sharing: Sharing, num_cells: int | None
) -> None:
    """Random prompts that share beginnings, keys, cancels, orders and a pool that is too small: as in a run alone.

    The fake model's next token depends on every token before it, so a cell that is not what it should be shows.
    """
    draw = random.Random(seed)
    roots = [[draw.randrange(2, 90) for _ in range(40)] for _ in range(2)]

    def prompt() -> list[int]:
        root = draw.choice(roots)
        return [*root[: draw.randrange(1, 41)], *(draw.randrange(2, 90) for _ in range(draw.randrange(1, 6)))]

    sequences = [
        make_sequence(number, prompt(), max_tokens=draw.randrange(1, 18), cache_key=draw.choice("ab"))
        for number in range(draw.randrange(1, 12))
    ]
    bench = Bench(num_slots=num_slots, batch_size=batch_size, sharing=sharing, num_cells=num_cells)
    cancelled = {sequence.sequence_id for sequence in sequences if draw.random() < 0.2}
    for sequence_id in cancelled:
        bench.at_report(draw.randrange(1, 20), functools.partial(bench.engine.cancel, sequence_id))
    for sequence in sequences:
        bench.submit(sequence)
        if draw.random() < 0.3:
            bench.engine.run_until_idle()
    bench.engine.run_until_idle()
    for sequence in sequences:
        events = bench.events.get(sequence.sequence_id, [])
        alone = Bench(num_slots=1, sharing=Sharing.NONE)
        expected = text_of(
            alone.run(make_sequence(sequence.sequence_id, sequence.prompt, max_tokens=sequence.max_tokens))
        )
        if sequence.sequence_id in cancelled:
            assert expected.startswith(text_of(events))
        else:
            assert expected == text_of(events)
            assert events[-1].completion.usage.cached_prompt_tokens < len(sequence.prompt)
    bench.assert_nothing_held()


@pytest.mark.parametrize("deterministic", [False, True])
async def test_the_demo_model_says_the_same_with_a_shared_beginning(deterministic: bool) -> None:
    """Sixteen chats with one system prompt, cold and at once: right answers, and the prefix computed once."""
    words = " ".join(f"Rule {number}: be kind." for number in range(30))
    async with running(models={"demo": demo(parallel_sequences=4, deterministic=deterministic)}) as (
        _,
        client,
    ):

        async def ask(number: int) -> pb.CompleteResponse:
            request = pb.CompleteRequest(prompt=f"{words} {number}")
            request.sampling.temperature = 0
            request.stopping.max_tokens = 8
            request.stopping.ignore_eos = True
            return await client.complete(request)

        answers = await asyncio.gather(*map(ask, range(8)))
        cached = [answer.completion.usage.cached_prompt_tokens for answer in answers]
        again = await ask(0)
        assert answers[0].message == again.message
        if deterministic:
            assert [0] * 8 == cached
        else:
            assert 7 == sum(count > 100 for count in cached)
            salted = pb.CompleteRequest(prompt=f"{words} 0")
            salted.scheduling.cache_salt = "mine"
            salted.stopping.max_tokens = 1
            assert 0 == (await client.complete(salted)).completion.usage.cached_prompt_tokens


class TestNeighbours:
    """Slots that are held stand in a row, because llama.cpp computes every group of neighbours apart."""

    @staticmethod
    def groups(held: set[int]) -> int:
        return sum(slot - 1 not in held for slot in held)

    @settings(max_examples=100)
    @given(seed=st.integers(0, 1 << 32))
    def test_a_burst_is_one_group_whatever_was_before(self, seed: int) -> None:
        """Any number of new sequences that come when nobody runs; what is cached lies anywhere."""
        draw = random.Random(seed)
        cells = Cells(num_slots=16, cells_per_slot=200)
        for _ in range(6):
            held = {}
            for _ in range(draw.randrange(1, 17)):
                prompt = [draw.randrange(3)] * draw.randrange(1, 190)
                slot, _, _ = cells.acquire(prompt, str(draw.random()))
                cells.fill(slot, prompt)
                held[slot] = prompt
            assert self.groups(set(held)) <= 2
            for slot in draw.sample(sorted(held), len(held)):
                cells.release(slot)

    def test_a_good_place_costs_no_good_cache(self) -> None:
        """What lies there is moved to the slot that was used least recently, before it is overwritten."""
        cells = Cells(num_slots=3, cells_per_slot=200)
        for token in (1, 2, 3):
            slot, _, _ = cells.acquire([token] * 100, "")
            cells.fill(slot, [token] * 100)
        cells.release(0)
        cells.release(1)
        # Slot 1 is next to slot 2, which runs; slot 0 was used before it.
        assert (1, 0, [Copy(1, 0, 100), Trim(1, 0)]) == cells.acquire([9] * 100, "")
        assert [2] * 100 == cells.tokens(0)

    def test_conversations_stay_where_they_are(self) -> None:
        """Whoever speaks first: nothing is copied, and all of them are one group again."""
        cells = Cells(num_slots=6, cells_per_slot=200)
        slots = [cells.acquire([token] * 100, "")[0] for token in range(4)]
        for slot in slots:
            cells.fill(slot, [slot] * 100)
        for slot in (2, 3, 1, 0):
            cells.release(slot)
        for token in (3, 0, 2, 1):
            assert (token, 100, []) == cells.acquire([token] * 101, "")
