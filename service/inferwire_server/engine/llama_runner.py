"""llama.cpp behind the engine's `Runner`: the only place that calls `llama_decode`.

Low-level bindings of llama-cpp-python only. Everything but the vocabulary belongs to the engine thread.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from inferwire.v1 import models_pb2
from inferwire_server import errors

from .cells import CellOperation, Copy
from .llama_model import LlamaModel
from .runner import BatchRejected
from .sampler import LlamaSampler
from .scheduler import Chunk
from .sequence import SamplingParams

# A causal model computes logits of every token whose vector is wanted, a vocabulary wide, so only of so many at once.
EMBED_TOKENS = 64


class LlamaRunner:
    """A loaded model with its context. Arguments and errors are those of `LlamaModel`."""

    def __init__(
        self,
        path: str,
        asked: models_pb2.LoadConfig,
        *,
        adapters: Sequence[str] = (),
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        self.model = LlamaModel(path, asked, adapters=adapters, progress=progress)
        self.vocabulary = self.model.vocabulary
        self.config = self.model.config
        self._context = self.model.new_context()
        self._memory = llama_cpp.llama_get_memory(self._context)
        if self.model.is_causal and not self._memory:
            raise errors.ModelFileInvalid(
                "the model remembers nothing that it read, so it cannot complete text"
            )
        self._batch = _TokenBatch(self.config.batch_size, num_slots=self.config.parallel_sequences)

    def __repr__(self) -> str:
        return f"<LlamaRunner [{self.model!r} | {self.config.parallel_sequences} slots]>"

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Computes a batch; see `Runner.decode`."""
        rows = self._batch.fill(chunks)
        self._decode()
        return rows

    def embed(self, chunks: Sequence[Chunk]) -> list[npt.NDArray[np.float32]]:
        """Computes a batch of texts; see `Runner.embed`. A causal one in pieces; see `EMBED_TOKENS`."""
        vectors: list[tuple[Chunk, npt.NDArray[np.float32]]] = []
        llama_cpp.llama_set_embeddings(self._context, True)
        try:
            for piece in self._pieces(chunks):
                self._batch.fill(piece, wants_all=True)
                self._decode()
                pointer = llama_cpp.llama_get_embeddings(self._context)
                num_tokens = sum(len(chunk.tokens) for chunk in piece)
                values = np.ctypeslib.as_array(pointer, shape=(num_tokens, self.model.width)).copy()
                ends = itertools.accumulate(len(chunk.tokens) for chunk in piece)
                vectors += zip(piece, np.split(values, list(ends)[:-1]), strict=True)
        finally:
            llama_cpp.llama_set_embeddings(self._context, False)
        return [
            np.concatenate([rows for piece, rows in vectors if piece.slot == chunk.slot]) for chunk in chunks
        ]

    def _pieces(self, chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
        """Yields chunks as they are computed at once: with few tokens, cut where a causal model allows it."""
        most = EMBED_TOKENS if self.model.is_causal else self.config.micro_batch_size
        piece: list[Chunk] = []
        room = most
        for chunk in chunks:
            begin = 0
            while begin < len(chunk.tokens):
                tokens = chunk.tokens[begin : begin + room] if self.model.is_causal else chunk.tokens
                if len(tokens) > room:
                    yield piece
                    piece, room = [], most
                piece.append(dataclasses.replace(chunk, tokens=tokens, position=chunk.position + begin))
                begin += len(tokens)
                room -= len(tokens)
                if room <= 0:
                    yield piece
                    piece, room = [], most
        if piece:
            yield piece

    def _decode(self) -> None:
        code = llama_cpp.llama_decode(self._context, self._batch.handle)
        if code in (1, -1):
            # 1: no room in the cache; -1: malformed batch. In both cases the context is unchanged (include/llama.h).
            raise BatchRejected(f"llama_decode returned {code}")
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def new_sampler(self, sampling: SamplingParams, *, forbidden: Collection[int] = ()) -> LlamaSampler:
        """Returns a sampler that never draws the `forbidden` tokens."""
        return LlamaSampler(
            self.vocabulary.handle,
            sampling,
            num_vocab=self.vocabulary.num_tokens,
            context_length=self.config.context_length,
            forbidden=forbidden,
        )

    def sample(self, row: int, sampler: LlamaSampler, mask: npt.NDArray[np.int32] | None = None) -> int:
        """Draws a token from a row of the last batch, and tells the sampler; see `Runner.sample`."""
        logits = self._logits(row)
        if sampler.is_greedy:
            # The same token as the chain's, which would first copy the whole vocabulary.
            token = int(logits.argmax())
            if token in sampler.forbidden:
                logits = logits.copy()
                logits[sampler.forbidden] = -np.inf
                token = int(logits.argmax())
            if mask is None or mask[token // 32] >> token % 32 & 1:
                return token
        if mask is None:
            return int(llama_cpp.llama_sampler_sample(sampler.chain, self._context, row))
        allowed = np.flatnonzero(
            np.unpackbits(mask.view(np.uint8), bitorder="little", count=self.vocabulary.num_tokens).view(bool)
        )
        if not allowed.size:
            raise RuntimeError("a constraint allows no token at all")
        if sampler.is_greedy:
            scores = logits[allowed]
            scores[np.isin(allowed, sampler.forbidden)] = -np.inf
            return int(allowed[scores.argmax()])
        return sampler.draw(allowed, logits[allowed])

    def logprobs(self, row: int, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Returns ln softmax in float64; see `Runner.logprobs`."""
        logits = self._logits(row).astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        top: list[tuple[int, float]] = []
        if num_top:
            kth = min(num_top, logits.size) - 1
            best = np.argpartition(-logits, kth)[: kth + 1]
            best = best[np.argsort(-logits[best], kind="stable")]
            top = [(int(candidate), float(logits[candidate])) for candidate in best]
        return float(logits[token]), top

    def computes_numbers(self) -> bool:
        """Whether the last logits are finite. Broken weights, or an adapter's, make them NaN, and llama.cpp says nothing."""
        return bool(np.isfinite(self._logits(-1)).all())

    def _logits(self, row: int) -> npt.NDArray[np.float32]:
        """Returns a row's logits [vocabulary] as llama.cpp holds them: a view, not a copy."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary.num_tokens,))

    def arrange(self, operations: Iterable[CellOperation]) -> None:
        """Does operations on cells, in order; see `Runner.arrange`.

        A copy between two slots is a copy between two buffers, which llama.cpp does whole; the tail is cut afterwards.
        """
        if not self._memory:
            return  # nothing is held from one batch to the next
        for operation in operations:
            target, length = operation.target, operation.length
            if isinstance(operation, Copy):
                llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
                llama_cpp.llama_memory_seq_cp(self._memory, operation.source, target, -1, -1)
            llama_cpp.llama_memory_seq_rm(self._memory, target, length, -1)
            if llama_cpp.llama_memory_seq_pos_max(self._memory, target) != length - 1:
                raise RuntimeError(f"{operation} left other cells than it should")


class _TokenBatch:
    """A `llama_batch` (include/llama.h) over numpy arrays, so that filling it costs nothing per token."""

    def __init__(self, capacity: int, *, num_slots: int) -> None:
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._num_seq_ids = np.ones(capacity, dtype=np.int32)
        self._wants_logits = np.zeros(capacity, dtype=np.int8)
        # A sequence id per slot, and for each token a pointer to its own.
        self._slots = np.arange(num_slots, dtype=np.int32)
        self._slot_pointers = np.zeros(capacity, dtype=np.uintp)

        def pointer(array: npt.NDArray[Any], item: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(item))

        self.handle = llama_cpp.llama_batch(
            token=pointer(self._tokens, llama_cpp.llama_token),
            pos=pointer(self._positions, llama_cpp.llama_pos),
            n_seq_id=pointer(self._num_seq_ids, ctypes.c_int32),
            seq_id=pointer(self._slot_pointers, ctypes.POINTER(llama_cpp.llama_seq_id)),
            logits=pointer(self._wants_logits, ctypes.c_int8),
        )

    def fill(self, chunks: Iterable[Chunk], *, wants_all: bool = False) -> list[int]:
        """Replaces its content. Returns for each chunk the index of the token whose logits are wanted, or -1.

        `wants_all`: an output of every token is wanted.
        """
        begin = 0
        rows = []
        for chunk in chunks:
            end = begin + len(chunk.tokens)
            self._tokens[begin:end] = chunk.tokens
            self._positions[begin:end] = np.arange(chunk.position, chunk.position + len(chunk.tokens))
            self._slot_pointers[begin:end] = self._slots.ctypes.data + self._slots.itemsize * chunk.slot
            self._wants_logits[begin:end] = wants_all
            if chunk.wants_logits:
                self._wants_logits[end - 1] = True
            rows.append(end - 1 if chunk.wants_logits else -1)
            begin = end
        self.handle.n_tokens = begin
        return rows
