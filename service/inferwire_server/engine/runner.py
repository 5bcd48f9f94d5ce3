"""What the engine asks of the thing that computes. `llama_runner` answers it with llama.cpp, tests with arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .cells import CellOperation
from .scheduler import Chunk
from .sequence import SamplingParams


class Vocabulary(Protocol):
    """Tokens as text and back. Safe to ask from any thread."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Returns the tokens of a text."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Returns a token's bytes; those of a control token only when `special`."""

    def ends_generation(self, token: int) -> bool:
        """Whether the model says with this token that its answer ends."""

    def end_tokens(self) -> list[int]:
        """Returns every token that ends a generation."""


class Sampler(Protocol):
    """The draw of one sequence: a chain with its own random state and memory."""

    def accept(self, tokens: Iterable[int]) -> None:
        """Tells it tokens that it did not draw (the prompt)."""

    def close(self) -> None:
        """Frees it. It must not be used again."""


class Constraint(Protocol):
    """What an answer may be. Raises errors.GrammarTooComplex when it cannot say so within its limits."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more."""

    def mask(self) -> npt.NDArray[np.int32]:
        """Returns the tokens that may come next, a bit each, the lowest first. Valid until the next batch."""

    def accept(self, token: int) -> None:
        """Takes the token that came."""

    def forced(self) -> list[int]:
        """Returns the tokens that must come next, because there is no choice; may be none."""


SamplerT = TypeVar("SamplerT", bound=Sampler)


class Runner(Protocol[SamplerT]):
    """Computes batches. Only the engine thread may call it."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Computes a batch. Returns, per chunk, the row of its logits, or -1 for a chunk that wants none.

        Raises BatchRejected when this batch alone is at fault; any other exception means that the process must end.
        """

    def embed(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Computes a batch. Returns, per chunk, the vectors [tokens, width] of its tokens. Rows are valid no longer.

        Raises as `decode`.
        """

    def new_sampler(self, sampling: SamplingParams, *, forbidden: Collection[int] = ()) -> SamplerT:
        """Returns a sampler that never draws the `forbidden` tokens."""

    def sample(self, row: int, sampler: SamplerT, mask: npt.NDArray[np.int32] | None = None) -> int:
        """Draws a token from a row of the last batch, and only one that the mask allows."""

    def logprobs(self, row: int, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Returns ln p of a token in a row of the last batch, and the `num_top` likeliest tokens, best first."""

    def arrange(self, operations: Iterable[CellOperation]) -> None:
        """Does operations on cells, in order, and makes sure of what they leave."""


class BatchRejected(Exception):
    """The batch could not be computed; the context is as it was before."""
