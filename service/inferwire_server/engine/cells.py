"""Which sequence holds which KV slot, and how many cells are in use.

Pure. A slot is one llama sequence id with a buffer for a whole context, so a sequence that has a slot can never run out of
cells, and one that has none waits.
"""

from __future__ import annotations


class Cells:
    """The KV slots of a context."""

    def __init__(self, *, num_slots: int, cells_per_slot: int) -> None:
        self._cells_per_slot = cells_per_slot
        self._free = list(range(num_slots - 1, -1, -1))
        self._used: dict[int, int] = {}

    def __repr__(self) -> str:
        total = (len(self._free) + len(self._used)) * self._cells_per_slot
        return (
            f"<Cells [slots {len(self._used)} used, {len(self._free)} free | cells {self.num_used}/{total}]>"
        )

    @property
    def num_free_slots(self) -> int:
        """Slots that no sequence holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Cells that hold a token."""
        return sum(self._used.values())

    def acquire(self) -> int:
        """Takes a free slot. Ask `num_free_slots` first; IndexError when there is none."""
        slot = self._free.pop()
        self._used[slot] = 0
        return slot

    def fill(self, slot: int, num_tokens: int) -> None:
        """Counts `num_tokens` more cells of a slot as used. ValueError beyond its size."""
        filled = self._used[slot] + num_tokens
        if filled > self._cells_per_slot:
            raise ValueError(f"slot {slot} has {self._cells_per_slot} cells, not {filled}")
        self._used[slot] = filled

    def release(self, slot: int) -> None:
        """Gives a slot back, with all its cells."""
        del self._used[slot]
        self._free.append(slot)
