"""Which KV slot holds which tokens, who holds the slot, and from where a prompt's beginning can be had without computing it.

Pure. A slot is one llama sequence id. In one layout each slot has a buffer for a whole context, so that a sequence which
has a slot never runs out of cells, and a copy between slots copies memory. In the other all slots share one pool of cells,
smaller than what they could hold together: a copy costs nothing, and room is made by cutting what is only cached.

A slot whose sequence has finished keeps its tokens as cache until room is needed, least recently used first; what a running
sequence has computed is shared as well. Tokens are shared only within one `cache_key`. Decisions are answered with
operations for the runner, to be done in order before the next batch is computed.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Iterable
from collections.abc import Sequence as Tokens

# Below this it is cheaper to compute tokens than to copy a slot's buffer.
MIN_SHARED_TOKENS = 16
# A cached tail that is this short is given up rather than copied around: the end of a chat's last answer.
MAX_LOST_TOKENS = 32
# What is cached is moved out of the way when it is worth a copy of a slot's buffer.
MIN_MOVED_TOKENS = 64
# A cache is cut by at least so many cells, so that a full pool is not cut anew in every step.
MIN_CUT_CELLS = 64


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


class Sharing(enum.Enum):
    """What may be done with tokens that were computed before."""

    NONE = "none"
    """Nothing: a released slot is empty."""
    WHOLE = "whole"
    """A slot may go on where it ended, and no earlier: its memory is a state that cannot be cut."""
    PREFIX = "prefix"
    """Any beginning, by any number of sequences at once."""


@dataclasses.dataclass(eq=False)
class Slot:
    """One slot. `tokens` are what its cells hold, in order; `cells` names these, shared ones alike, in a pool only."""

    index: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    cells: list[int] = dataclasses.field(default_factory=list)
    cache_key: str = ""
    is_held: bool = False
    last_used: int = 0


class Cells:
    """The KV slots of a context. With `num_cells` they share a pool of that size, which holds at least one whole slot."""

    def __init__(
        self,
        *,
        num_slots: int,
        cells_per_slot: int,
        num_cells: int | None = None,
        sharing: Sharing = Sharing.PREFIX,
    ) -> None:
        if num_cells is not None and num_cells < cells_per_slot:
            raise ValueError(f"{num_cells} cells cannot hold a slot of {cells_per_slot}")
        self.sharing = sharing
        self._cells_per_slot = cells_per_slot
        self._pool = num_cells
        self._slots = [Slot(index) for index in range(num_slots)]
        self._clock = itertools.count(1)
        self._cell_ids = itertools.count()
        # Cells of the pool: by how many slots each is used, and by how many slots that a sequence holds.
        self._users: dict[int, int] = {}
        self._held_users: dict[int, int] = {}

    def __repr__(self) -> str:
        held = sum(slot.is_held for slot in self._slots)
        layout = "own" if self._pool is None else "pooled"
        return (
            f"<Cells [slots {held} held, {self.num_free_slots} free | "
            f"{layout} cells {self.num_used} held, {self.num_cached} cached of {self.num_cells}]>"
        )

    @property
    def num_cells(self) -> int:
        """All cells there are."""
        return len(self._slots) * self._cells_per_slot if self._pool is None else self._pool

    @property
    def num_free_slots(self) -> int:
        """Slots that no sequence holds; their cells may be cached tokens."""
        return sum(not slot.is_held for slot in self._slots)

    @property
    def num_used(self) -> int:
        """Cells that a sequence holds."""
        if self._pool is not None:
            return len(self._held_users)
        return sum(len(slot.tokens) for slot in self._slots if slot.is_held)

    @property
    def num_cached(self) -> int:
        """Cells that no sequence holds."""
        if self._pool is not None:
            return len(self._users) - len(self._held_users)
        return sum(len(slot.tokens) for slot in self._slots if not slot.is_held)

    @property
    def num_available(self) -> int | None:
        """Cells that sequences could still take, cached ones included. None: each slot has its own, always enough."""
        return None if self._pool is None else self._pool - len(self._held_users)

    def tokens(self, slot: int) -> list[int]:
        """Returns what a slot's cells hold."""
        return list(self._slots[slot].tokens)

    def make_room(self, num_cells: int) -> list[CellOperation]:
        """Frees cells of the pool until so many are free, by cutting caches. Ask `num_available` first."""
        operations: list[CellOperation] = []
        if self._pool is None:
            return operations
        for slot in sorted(self._slots, key=lambda slot: slot.last_used):
            missing = num_cells - (self._pool - len(self._users))
            if missing <= 0:
                break
            if slot.is_held or not slot.tokens:
                continue
            length = len(slot.tokens)
            while length > 0 and missing > 0:
                # Cells that another slot uses too are not freed by cutting this one.
                length = max(0, length - max(missing, MIN_CUT_CELLS))
                if self.sharing is not Sharing.PREFIX:
                    length = 0
                self._cut(slot, length)
                missing = num_cells - (self._pool - len(self._users))
            operations.append(Trim(slot.index, length))
        return operations

    def find(self, prompt: Tokens[int], cache_key: str) -> tuple[int, int]:
        """Returns how many of a prompt's tokens `acquire` would find, and how many of their cells nobody holds yet."""
        source, length = self._best(self._slots, prompt, cache_key)
        if source is None:
            return 0, 0
        return length, self._num_unheld(source.cells[:length])

    def acquire(self, prompt: Tokens[int], cache_key: str) -> tuple[int, int, list[CellOperation]]:
        """Takes a free slot for a prompt. Returns it, how many of the prompt's tokens it holds, and what to do first.

        The last token of a prompt is never shared, because its logits are wanted. Ask `num_free_slots` first; IndexError
        when there is none.
        """
        free = sorted((slot for slot in self._slots if not slot.is_held), key=self._place)
        target = free[0]
        operations: list[CellOperation] = []
        source, length = self._best(self._slots, prompt, cache_key)
        if source is not None and not source.is_held and self._may_go_on(source, length):
            target = source
            if len(target.tokens) > length:
                operations.append(Trim(target.index, length))
                self._cut(target, length)
        else:
            operations += self._keep_elsewhere(target, [slot for slot in free if slot is not source])
            if source is target:
                # It was moved, or there is nowhere else: it goes on here.
                operations.append(Trim(target.index, length))
                self._cut(target, length)
            elif source is not None:
                operations.append(Copy(source.index, target.index, length))
                self._copy(source, target, length)
            elif target.tokens:
                operations.append(Trim(target.index, 0))
                self._cut(target, 0)
        self._touch(target)
        self._hold(target)
        target.cache_key = cache_key
        return target.index, len(target.tokens), operations

    def share(
        self, slot: int, prompt: Tokens[int], *, room: float = math.inf
    ) -> tuple[int, list[CellOperation]]:
        """Looks again for tokens that a held slot could have from another one by now. Returns as `acquire` does.

        `room`: so many cells of the pool may turn from cached ones to held ones by this.
        """
        target = self._slots[slot]
        others = [other for other in self._slots if other is not target]
        source, shared = self._best(others, prompt, target.cache_key)
        if (
            source is None
            or self.sharing is not Sharing.PREFIX
            or shared < len(target.tokens) + MIN_SHARED_TOKENS
            or self._num_unheld(source.cells[:shared]) > room
        ):
            return len(target.tokens), []
        self._copy(source, target, shared)
        self._touch(source)
        return shared, [Copy(source.index, slot, shared)]

    def fill(self, slot: int, tokens: Tokens[int]) -> None:
        """Counts computed tokens into a held slot. ValueError beyond its size, or the pool's."""
        held = self._slots[slot]
        if len(held.tokens) + len(tokens) > self._cells_per_slot:
            raise ValueError(
                f"slot {slot} has {self._cells_per_slot} cells, not {len(held.tokens) + len(tokens)}"
            )
        if self._pool is not None and len(self._users) + len(tokens) > self._pool:
            raise ValueError(f"the pool has {self._pool} cells, not {len(self._users) + len(tokens)}")
        held.tokens.extend(tokens)
        if self._pool is not None:
            cells = list(itertools.islice(self._cell_ids, len(tokens)))
            held.cells += cells
            _count(self._users, cells)
            _count(self._held_users, cells)

    def release(self, slot: int, *, keep: bool = True) -> list[CellOperation]:
        """Gives a slot back. Its tokens stay as cache, unless `keep` says that they cannot be trusted."""
        released = self._slots[slot]
        released.is_held = False
        _discount(self._held_users, released.cells)
        self._touch(released)
        if (keep and self.sharing is not Sharing.NONE) or not released.tokens:
            return []
        self._cut(released, 0)
        return [Trim(slot, 0)]

    def _best(self, slots: list[Slot], prompt: Tokens[int], cache_key: str) -> tuple[Slot | None, int]:
        """Returns the slot that holds the longest beginning of a prompt, and how much; None when sharing does not pay."""
        if self.sharing is Sharing.NONE:
            return None, 0
        most = len(prompt) - 1
        best: Slot | None = None
        length = MIN_SHARED_TOKENS - 1
        for slot in slots:
            if slot.cache_key != cache_key or min(len(slot.tokens), most) <= length:
                continue
            shared = min(common_prefix(slot.tokens, prompt), most)
            if self.sharing is Sharing.WHOLE and (slot.is_held or shared < len(slot.tokens)):
                continue
            if shared > length:
                best, length = slot, shared
        return best, length if best else 0

    def _may_go_on(self, source: Slot, length: int) -> bool:
        """Whether a cached slot is gone on with where it is, instead of being kept and copied."""
        # Users who chat at the same time were admitted next to each other, and stand so again when each stays in place.
        return self.sharing is Sharing.WHOLE or len(source.tokens) - length <= MAX_LOST_TOKENS

    def _place(self, slot: Slot) -> tuple[int, bool, int, int]:
        """Orders free slots: near those that are held, then empty ones, then the least recently used."""
        near = 0 if self._pool is not None else self._num_groups_more(slot)
        return near, bool(slot.tokens), slot.last_used if slot.tokens else 0, slot.index

    def _num_groups_more(self, slot: Slot) -> int:
        """Returns how many groups of neighbouring held slots there would be more, if this one were held too.

        llama.cpp computes neighbouring slots together and every group apart (`split_equal` in src/llama-batch.cpp), so that
        eight slots with gaps between them take nearly twice as long as eight in a row.
        """
        neighbours = (slot.index - 1, slot.index + 1)
        return 1 - sum(0 <= index < len(self._slots) and self._slots[index].is_held for index in neighbours)

    def _keep_elsewhere(self, target: Slot, free: list[Slot]) -> list[CellOperation]:
        """Moves what a slot has cached to one that was used less recently, so that a good place costs no good cache."""
        if (
            self._pool is not None
            or self.sharing is not Sharing.PREFIX
            or len(target.tokens) < MIN_MOVED_TOKENS
        ):
            return []
        oldest = min(free, key=lambda slot: (bool(slot.tokens), slot.last_used), default=target)
        if oldest is target or (oldest.tokens and oldest.last_used > target.last_used):
            return []
        length = len(target.tokens)
        self._copy(target, oldest, length)
        oldest.cache_key, oldest.last_used = target.cache_key, target.last_used
        return [Copy(target.index, oldest.index, length)]

    def _num_unheld(self, cells: list[int]) -> int:
        return sum(cell not in self._held_users for cell in cells)

    def _hold(self, slot: Slot) -> None:
        slot.is_held = True
        _count(self._held_users, slot.cells)

    def _cut(self, slot: Slot, length: int) -> None:
        dropped = slot.cells[length:]
        del slot.tokens[length:], slot.cells[length:]
        _discount(self._users, dropped)
        if slot.is_held:
            _discount(self._held_users, dropped)

    def _copy(self, source: Slot, target: Slot, length: int) -> None:
        self._cut(target, 0)
        target.tokens = source.tokens[:length]
        target.cells = source.cells[:length]
        _count(self._users, target.cells)
        if target.is_held:
            _count(self._held_users, target.cells)

    def _touch(self, slot: Slot) -> None:
        slot.last_used = next(self._clock)


def _count(users: dict[int, int], cells: Iterable[int]) -> None:
    for cell in cells:
        users[cell] = users.get(cell, 0) + 1


def _discount(users: dict[int, int], cells: Iterable[int]) -> None:
    for cell in cells:
        if users[cell] == 1:
            del users[cell]
        else:
            users[cell] -= 1


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
