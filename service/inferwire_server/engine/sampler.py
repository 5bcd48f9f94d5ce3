"""The sampler chain of one sequence, made of llama.cpp's own samplers (`llama_sampler_*`, include/llama.h).

The order is that of llama.cpp's tools: bias, penalties, DRY, then the filters from coarse to fine, temperature, draw.
A value that switches a sampler off leaves it out of the chain.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from .sequence import SamplingParams

# llama.cpp takes this seed for "draw one", so it is the one seed that cannot be passed on.
_RANDOM_SEED = 0xFFFFFFFF
# Below this a draw is the likeliest token anyway, and dividing by it overflows.
_LEAST_TEMPERATURE = 1e-4
# Far beyond every logit, and far enough from the end of float32 for what is done to logits later.
_MOST_BIAS = 1e20
_FORBIDDEN = float("-inf")
_MIROSTAT_M = 100
_MIN_KEEP = 1
# struct llama_token_data of include/llama.h
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class LlamaSampler:
    """A chain. Call `close` when the sequence ends; the C memory is not freed otherwise.

    `is_greedy`: it draws the likeliest token that is not `forbidden`, and remembers nothing.
    """

    def __init__(
        self,
        vocab: Any,
        sampling: SamplingParams,
        *,
        num_vocab: int,
        context_length: int,
        forbidden: Collection[int] = (),
    ) -> None:
        self._looks_back = sampling.looks_back
        self.is_greedy = (
            sampling.temperature < _LEAST_TEMPERATURE and not sampling.looks_back and not sampling.logit_bias
        )
        self.forbidden = sorted(forbidden)
        self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        try:
            self._build(vocab, sampling, num_vocab, context_length, forbidden)
        except BaseException:
            self.close()
            raise

    def accept(self, tokens: Iterable[int]) -> None:
        """Tells the chain the prompt; costs nothing when no sampler of it looks back."""
        if self._looks_back:
            for token in tokens:
                llama_cpp.llama_sampler_accept(self.chain, token)

    def draw(self, tokens: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> int:
        """Draws one of some tokens [n], given their logits [n], and remembers it."""
        candidates = np.zeros(len(tokens), dtype=_CANDIDATE)
        candidates["id"] = tokens
        candidates["logit"] = logits
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self.chain, token)
        return token

    def close(self) -> None:
        """Frees the chain; a second call does nothing."""
        if self.chain is not None:
            llama_cpp.llama_sampler_free(self.chain)
            self.chain = None

    def _build(
        self,
        vocab: Any,
        sampling: SamplingParams,
        num_vocab: int,
        context_length: int,
        forbidden: Collection[int],
    ) -> None:
        def window(tokens: int) -> int:
            return context_length if tokens < 0 else tokens

        s = sampling
        seed = s.seed if s.seed != _RANDOM_SEED else _RANDOM_SEED - 1
        bias = {**s.logit_bias, **dict.fromkeys(forbidden, _FORBIDDEN)}
        if bias:
            entries = (llama_cpp.llama_logit_bias * len(bias))()
            for entry, (token, value) in zip(entries, bias.items(), strict=True):
                entry.token = token
                entry.bias = value if value == _FORBIDDEN else max(-_MOST_BIAS, min(value, _MOST_BIAS))
            self._add(llama_cpp.llama_sampler_init_logit_bias(num_vocab, len(bias), entries))
        if (s.repetition_penalty, s.frequency_penalty, s.presence_penalty) != (1.0, 0.0, 0.0):
            self._add(
                llama_cpp.llama_sampler_init_penalties(
                    num_vocab,
                    window(s.penalty_window),
                    s.repetition_penalty,
                    s.frequency_penalty,
                    s.presence_penalty,
                )
            )
        if s.dry_multiplier > 0:
            breakers = [breaker.encode() for breaker in s.dry_sequence_breakers]
            self._add(
                llama_cpp.llama_sampler_init_dry(
                    vocab,
                    s.dry_multiplier,
                    s.dry_base,
                    s.dry_allowed_length,
                    window(s.dry_window),
                    (ctypes.c_char_p * len(breakers))(*breakers),
                    len(breakers),
                )
            )
        if s.temperature < _LEAST_TEMPERATURE:
            self._add(llama_cpp.llama_sampler_init_greedy())
            return
        if s.mirostat_version:
            self._add(llama_cpp.llama_sampler_init_temp(s.temperature))
            if s.mirostat_version == 1:
                mirostat = llama_cpp.llama_sampler_init_mirostat(
                    num_vocab, seed, s.mirostat_tau, s.mirostat_eta, _MIROSTAT_M
                )
            else:
                mirostat = llama_cpp.llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta)
            self._add(mirostat)
            return
        if s.top_n_sigma > 0:
            self._add(llama_cpp.llama_sampler_init_top_n_sigma(s.top_n_sigma))
        if s.top_k > 0:
            self._add(llama_cpp.llama_sampler_init_top_k(min(s.top_k, num_vocab)))
        if s.typical_p < 1:
            self._add(llama_cpp.llama_sampler_init_typical(s.typical_p, _MIN_KEEP))
        if s.top_p < 1:
            self._add(llama_cpp.llama_sampler_init_top_p(s.top_p, _MIN_KEEP))
        if s.min_p > 0:
            self._add(llama_cpp.llama_sampler_init_min_p(s.min_p, _MIN_KEEP))
        if s.xtc_probability > 0:
            self._add(llama_cpp.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, _MIN_KEEP, seed))
        self._add(llama_cpp.llama_sampler_init_temp(s.temperature))
        self._add(llama_cpp.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        # A NULL pointer from ctypes is not None, but it is false.
        if not sampler:
            raise RuntimeError("llama.cpp refused a sampler")
        llama_cpp.llama_sampler_chain_add(self.chain, sampler)
