"""Which KV slot holds which tokens, who holds the slot, and from where a prompt's beginning can be had without computing it.

Pure. A slot is one llama sequence id with a buffer for a whole context, so a sequence that has a slot never runs out of cells.
A slot whose sequence has finished keeps its tokens as cache until another sequence needs it, least recently used first; what a
running sequence has computed is shared as well. Tokens are shared only within one `cache_key`.

Decisions are answered with operations for the runner, to be done in order before the next batch is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence as Tokens

# Below this it is cheaper to compute tokens than to copy a slot's buffer.
MIN_SHARED_TOKENS = 16
# A cached tail that is this short is given up rather than copied around: the end of a chat's last answer.
MAX_LOST_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Trim:
    """Keep the first `length` tokens of the slot `target`."""

    target: int
    length: int


@dataclasses.dataclass(frozen=True)
class Copy:
    """Make the slot `target` hold the first `length` tokens of `source`, and nothing else."""

    source: int
    target: int
    length: int


CellOperation = Trim | Copy


@dataclasses.dataclass(eq=False)
class Slot:
    """One slot. `tokens` are what its cells hold, in order."""

    index: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    cache_key: str = ""
    is_held: bool = False
    last_used: int = 0


class Cells:
    """The KV slots of a context. Without `shares` a released slot is empty and nothing is ever shared."""

    def __init__(self, *, num_slots: int, cells_per_slot: int, shares: bool = True) -> None:
        self._cells_per_slot = cells_per_slot
        self.shares = shares
        self._slots = [Slot(index) for index in range(num_slots)]
        self._clock = itertools.count(1)

    def __repr__(self) -> str:
        held = sum(slot.is_held for slot in self._slots)
        total = len(self._slots) * self._cells_per_slot
        return (
            f"<Cells [slots {held} held, {self.num_free_slots} free | "
            f"cells {self.num_used} held, {self.num_cached} cached of {total}]>"
        )

    @property
    def num_free_slots(self) -> int:
        """Slots that no sequence holds; their cells may be cached tokens."""
        return sum(not slot.is_held for slot in self._slots)

    @property
    def num_used(self) -> int:
        """Cells of slots that a sequence holds."""
        return sum(len(slot.tokens) for slot in self._slots if slot.is_held)

    @property
    def num_cached(self) -> int:
        """Cells of slots that no sequence holds."""
        return sum(len(slot.tokens) for slot in self._slots if not slot.is_held)

    def tokens(self, slot: int) -> list[int]:
        """Returns what a slot's cells hold."""
        return list(self._slots[slot].tokens)

    def acquire(self, prompt: Tokens[int], cache_key: str) -> tuple[int, int, list[CellOperation]]:
        """Takes a free slot for a prompt. Returns it, how many of the prompt's tokens it holds, and what to do first.

        The last token of a prompt is never shared, because its logits are wanted. Ask `num_free_slots` first; IndexError
        when there is none.
        """
        free = sorted((slot for slot in self._slots if not slot.is_held), key=lambda slot: slot.last_used)
        target, length = free[0], 0
        operations: list[CellOperation] = []
        source, shared = self._best(self._slots, prompt, cache_key)
        if source is None:
            if target.tokens:
                operations.append(Trim(target.index, 0))
        else:
            length = shared
            in_place = not source.is_held and len(source.tokens) - shared <= MAX_LOST_TOKENS
            if in_place or target is source:
                target = source
                if len(source.tokens) > shared:
                    operations.append(Trim(source.index, shared))
            else:
                operations.append(Copy(source.index, target.index, shared))
        self._touch(target)
        target.is_held = True
        target.cache_key = cache_key
        target.tokens = list(prompt[:length])
        return target.index, length, operations

    def share(self, slot: int, prompt: Tokens[int]) -> tuple[int, list[CellOperation]]:
        """Looks again for tokens that a held slot could have from another one by now. Returns as `acquire` does."""
        target = self._slots[slot]
        others = [other for other in self._slots if other is not target]
        source, shared = self._best(others, prompt, target.cache_key)
        if source is None or shared < len(target.tokens) + MIN_SHARED_TOKENS:
            return len(target.tokens), []
        target.tokens = list(prompt[:shared])
        self._touch(source)
        return shared, [Copy(source.index, slot, shared)]

    def fill(self, slot: int, tokens: Tokens[int]) -> None:
        """Counts computed tokens into a slot. ValueError beyond its size."""
        held = self._slots[slot]
        if len(held.tokens) + len(tokens) > self._cells_per_slot:
            raise ValueError(
                f"slot {slot} has {self._cells_per_slot} cells, not {len(held.tokens) + len(tokens)}"
            )
        held.tokens.extend(tokens)

    def release(self, slot: int, *, keep: bool = True) -> list[CellOperation]:
        """Gives a slot back. Its tokens stay as cache, unless `keep` says that they cannot be trusted."""
        released = self._slots[slot]
        released.is_held = False
        self._touch(released)
        if (keep and self.shares) or not released.tokens:
            return []
        released.tokens = []
        return [Trim(slot, 0)]

    def _best(self, slots: list[Slot], prompt: Tokens[int], cache_key: str) -> tuple[Slot | None, int]:
        """Returns the slot that holds the longest beginning of a prompt, and how much; None when sharing does not pay."""
        if not self.shares:
            return None, 0
        most = len(prompt) - 1
        best: Slot | None = None
        length = MIN_SHARED_TOKENS - 1
        for slot in slots:
            if slot.cache_key == cache_key and min(len(slot.tokens), most) > length:
                shared = min(common_prefix(slot.tokens, prompt), most)
                if shared > length:
                    best, length = slot, shared
        return best, length if best else 0

    def _touch(self, slot: Slot) -> None:
        slot.last_used = next(self._clock)


def common_prefix(one: Tokens[int], other: Tokens[int]) -> int:
    """Returns how many tokens two sequences begin with alike. Halves, so that the comparing is done in C."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
