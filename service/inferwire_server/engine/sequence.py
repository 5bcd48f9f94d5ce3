"""A request inside the engine: plain values, made once at the door, and the state that steps change.

Pure: no thread, no clock, no llama. Times are seconds of the engine's monotonic clock.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb

from .detokenizer import TextStream
from .text_reader import TextReader

if TYPE_CHECKING:
    from .chat.reader import AnswerReader
    from .embedding import PooledVector


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """The sampling in force. Units and ranges are those of the contract's Sampling; every value is filled in."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 64
    mirostat_version: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int = 0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)

    @property
    def looks_back(self) -> bool:
        """Whether the draw depends on tokens before it, so that the prompt must be told to the sampler."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (
            1.0,
            0.0,
            0.0,
        )
        return (penalties and self.penalty_window != 0) or (self.dry_multiplier > 0 and self.dry_window != 0)


class Phase(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclasses.dataclass(eq=False)
class Sequence:
    """One completion, or with `vector` one embedding. The scheduler owns `phase`, `slot` and what it counts; the engine owns the rest."""

    sequence_id: int
    prompt: list[int]
    sampling: SamplingParams
    max_tokens: int
    started: pb.Started
    text: TextStream
    arrived: float
    time_limit: float
    deadline: float | None = None
    priority: int = 0
    principal: str = ""
    cache_key: str = ""
    stop_tokens: frozenset[int] = frozenset()
    repetition_limit: int = 0
    ignore_eos: bool = False
    reader: AnswerReader | TextReader = dataclasses.field(default_factory=TextReader)
    forbidden: tuple[int, ...] = ()
    want_logprobs: bool = False
    num_top_logprobs: int = 0
    want_progress: bool = False
    want_token_ids: bool = False
    want_message: bool = False
    vector: PooledVector | None = None
    is_indivisible: bool = False

    phase: Phase = Phase.WAITING
    number: int = 0
    slot: int | None = None
    num_acquired: int = 0
    num_computed: int = 0
    num_cached: int = 0
    num_preemptions: int = 0

    generated: list[int] = dataclasses.field(default_factory=list)
    answer: Gatherer = dataclasses.field(default_factory=Gatherer)
    pending_token_ids: list[int] = dataclasses.field(default_factory=list)
    pending_logprobs: list[pb.TokenLogprob] = dataclasses.field(default_factory=list)
    has_started: bool = False
    queue_position: int | None = None
    num_repeats: int = 0
    admitted: float | None = None
    prefilled: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.sequence_id} [{self.phase.value} | slot {self.slot} | "
            f"prompt {min(self.num_computed, len(self.prompt))}/{len(self.prompt)} | "
            f"generated {len(self.generated)}/{self.max_tokens}]>"
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt) + len(self.generated)

    @property
    def num_left(self) -> int:
        """Tokens that no cell holds yet. One while it decodes: the token that was drawn last."""
        return self.num_tokens - self.num_computed

    def next_tokens(self, most: int) -> list[int]:
        """Returns the first tokens that no cell holds yet, `most` at most."""
        begin = self.num_computed
        if begin < len(self.prompt):
            tokens = self.prompt[begin : begin + most]
            return tokens + self.generated[: most - len(tokens)]
        begin -= len(self.prompt)
        return self.generated[begin : begin + most]
