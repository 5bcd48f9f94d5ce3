"""The engine's door: turns a request of the contract into a `Sequence` of plain values, or refuses it.

Runs in the intake thread, beside the engine thread: renders the template, tokenizes, fills in the defaults. The gateway
has checked everything that needs no model; what is checked here needs the vocabulary or the context.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors

from .chat.model import ChatModel
from .chat.reader import AnswerReader
from .detokenizer import TextStream
from .embedding import PooledVector
from .runner import Constraint, Vocabulary
from .sequence import SamplingParams, Sequence
from .text_reader import TextReader
from .v1 import engine_pb2


@dataclasses.dataclass(frozen=True)
class EmbeddingModel:
    """How a model embeds: its own pooling, the vectors' components, and whether a text is computed whole or in chunks."""

    pooling: pb.Pooling
    width: int
    max_tokens: int
    is_indivisible: bool


class Intake:
    """Makes sequences for one model."""

    def __init__(
        self,
        *,
        model: str,
        instance_id: str,
        vocabulary: Vocabulary,
        chat: ChatModel | None,
        context_length: int,
        embedding: EmbeddingModel | None = None,
        compile_grammar: Callable[[pb.ResponseFormat], Constraint] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._instance_id = instance_id
        self._vocabulary = vocabulary
        self._chat = chat
        self._context_length = context_length
        self._embedding = embedding
        self._compile_grammar = compile_grammar
        self._clock = clock

    def sequence(self, command: engine_pb2.SubmitCommand) -> Sequence:
        """Returns the sequence of a request. Raises errors.RequestError when the model cannot take it."""
        now = self._clock()
        request = command.request
        text = self._prompt(request)
        prompt = self._prompt_tokens(request, text)
        stopping = request.stopping
        room = self._context_length - len(prompt)
        wants_none = stopping.HasField("max_tokens") and stopping.max_tokens == 0
        if room < (0 if wants_none else 1):
            raise errors.ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens, the model's context {self._context_length}; shorten the prompt",
                metadata={
                    "model": self._model,
                    "promptTokens": str(len(prompt)),
                    "contextLength": str(self._context_length),
                },
            )
        max_tokens = min(stopping.max_tokens, room) if stopping.HasField("max_tokens") else room
        self._check_tokens(request)
        in_force = resolve_sampling(request.sampling)
        reader: AnswerReader | TextReader
        if self._chat is not None and request.HasField("chat"):
            reader, forbidden = self._chat.reader(request, text, seed=in_force.seed)
        else:
            reader, forbidden = TextReader(self._constraint(request)), ()
        started = pb.Started(
            id=command.request_id,
            model=self._model,
            backend="local",
            model_instance_id=self._instance_id,
            sampling=in_force,
            max_tokens=max_tokens,
        )
        return Sequence(
            sequence_id=command.sequence_id,
            prompt=prompt,
            sampling=sampling_params(in_force),
            max_tokens=max_tokens,
            started=started,
            text=TextStream(stopping.stop, include_stop=stopping.include_stop),
            arrived=now,
            time_limit=now + command.time_limit_seconds,
            deadline=now + command.deadline_seconds if command.HasField("deadline_seconds") else None,
            priority=request.scheduling.priority,
            principal=command.principal,
            cache_key=f"{command.principal}/{request.scheduling.cache_salt}",
            stop_tokens=frozenset(stopping.stop_token_ids),
            repetition_limit=stopping.repetition_limit,
            ignore_eos=stopping.ignore_eos,
            reader=reader,
            forbidden=forbidden,
            want_logprobs=request.output.logprobs,
            num_top_logprobs=request.output.top_logprobs,
            want_progress=request.output.progress,
            want_token_ids=request.output.token_ids,
            want_message=request.output.message,
        )

    def embedding(self, command: engine_pb2.EmbedCommand) -> Sequence:
        """Returns the sequence of a text whose vector is wanted. Raises errors.RequestError when the model cannot."""
        now = self._clock()
        model = self._embedding
        if model is None:
            raise errors.UnsupportedByBackend(
                "the model gives no embeddings",
                metadata={"model": self._model, "backend": "local"},
                violations=[("model", "gives no embeddings")],
            )
        if command.dimensions > model.width:
            raise errors.InvalidRequest(
                "the model's vectors have fewer dimensions",
                violations=[("dimensions", f"at most {model.width}")],
            )
        prompt = self._vocabulary.tokenize(command.input, add_special=True, parse_special=False)
        if not 0 < len(prompt) <= model.max_tokens:
            raise errors.ContextLengthExceeded(
                f"a text has {len(prompt)} tokens, the model takes 1 to {model.max_tokens}; shorten it",
                metadata={
                    "model": self._model,
                    "promptTokens": str(len(prompt)),
                    "contextLength": str(model.max_tokens),
                },
                violations=[(f"inputs[{command.index}]", f"1 to {model.max_tokens} tokens")],
            )
        return Sequence(
            sequence_id=command.sequence_id,
            prompt=prompt,
            sampling=SamplingParams(),
            max_tokens=0,
            started=pb.Started(),
            text=TextStream(),
            arrived=now,
            time_limit=math.inf,
            deadline=now + command.deadline_seconds if command.HasField("deadline_seconds") else None,
            principal=command.principal,
            # Every token's vector is wanted, so nothing can be shared.
            cache_key=f"embedding {command.sequence_id}",
            vector=PooledVector(
                command.pooling or model.pooling,
                num_tokens=len(prompt),
                dimensions=command.dimensions or None,
                normalize=command.normalize,
            ),
            is_indivisible=model.is_indivisible,
        )

    def prompt_tokens(self, request: pb.CompleteRequest) -> list[int]:
        """Returns the tokens that a request puts before the model."""
        return self._prompt_tokens(request, self._prompt(request))

    def _prompt(self, request: pb.CompleteRequest) -> str:
        """Returns the text that a request puts before the model."""
        if request.WhichOneof("input") == "prompt":
            return request.prompt
        if self._chat is None:
            raise errors.UnsupportedByBackend(
                "the model has no chat template; send a raw prompt, or load it with config.chat_template",
                metadata={"model": self._model, "backend": "local"},
                violations=[("chat", "the model has no chat template")],
            )
        return self._chat.prompt(request.chat)

    def _prompt_tokens(self, request: pb.CompleteRequest, text: str) -> list[int]:
        # A template writes the special tokens itself, BOS included.
        tokens = self._vocabulary.tokenize(text, add_special=request.HasField("prompt"), parse_special=True)
        if not tokens:
            raise errors.InvalidRequest(
                "the input has no tokens", violations=[(request.WhichOneof("input"), "must not be empty")]
            )
        return tokens

    def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Answers Tokenize."""
        tokens = self._vocabulary.tokenize(
            request.text, add_special=request.add_special, parse_special=request.parse_special
        )
        pieces = [self._vocabulary.piece(token, special=True) for token in tokens]
        return pb.TokenizeResponse(model=self._model, token_ids=tokens, pieces=pieces)

    def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Answers Detokenize."""
        self._check_ids("token_ids", request.token_ids)
        data = b"".join(self._vocabulary.piece(token, special=True) for token in request.token_ids)
        return pb.DetokenizeResponse(model=self._model, data=data)

    def count_tokens(self, request: pb.CompleteRequest) -> pb.CountTokensResponse:
        """Answers CountTokens."""
        return pb.CountTokensResponse(
            model=self._model, tokens=len(self.prompt_tokens(request)), context_length=self._context_length
        )

    def _constraint(self, request: pb.CompleteRequest) -> Constraint | None:
        """Returns the constraint that a request asks for; never None when it asks for one."""
        if not request.HasField("response_format"):
            return None
        if self._compile_grammar is None:
            raise errors.UnsupportedByBackend(
                "the model's answers cannot be constrained",
                metadata={"model": self._model, "backend": "local"},
                violations=[("response_format", "is not supported by this model")],
            )
        return self._compile_grammar(request.response_format)

    def _check_tokens(self, request: pb.CompleteRequest) -> None:
        self._check_ids("sampling.logit_bias", request.sampling.logit_bias)
        self._check_ids("stopping.stop_token_ids", request.stopping.stop_token_ids)

    def _check_ids(self, field: str, tokens: Any) -> None:
        size = self._vocabulary.num_tokens
        wrong = next((token for token in tokens if token >= size), None)
        if wrong is not None:
            raise errors.InvalidRequest(
                "a token id is outside the model's vocabulary",
                violations=[(field, f"{wrong} is not below {size}")],
            )


def resolve_sampling(asked: pb.Sampling) -> pb.Sampling:
    """Returns the sampling in force: what was asked, defaults filled in, a seed drawn when none was given."""
    default = SamplingParams()
    sampling = pb.Sampling()
    sampling.CopyFrom(asked)
    for name in (
        "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma",
        "repetition_penalty", "frequency_penalty", "presence_penalty", "penalty_window",
    ):  # fmt: skip
        if not sampling.HasField(name):
            setattr(sampling, name, getattr(default, name))
    if not sampling.HasField("seed"):
        sampling.seed = secrets.randbits(32)
    if sampling.HasField("xtc") and not sampling.xtc.HasField("threshold"):
        sampling.xtc.threshold = default.xtc_threshold
    if sampling.HasField("dry"):
        dry = sampling.dry
        for name in ("base", "allowed_length", "window"):
            if not dry.HasField(name):
                setattr(dry, name, getattr(default, f"dry_{name}"))
        if not dry.sequence_breakers:
            dry.sequence_breakers.extend(default.dry_sequence_breakers)
    if sampling.HasField("mirostat"):
        for name in ("tau", "eta"):
            if not sampling.mirostat.HasField(name):
                setattr(sampling.mirostat, name, getattr(default, f"mirostat_{name}"))
    return sampling


def sampling_params(sampling: pb.Sampling) -> SamplingParams:
    """Returns a resolved Sampling as plain values."""
    xtc, dry, mirostat = sampling.xtc, sampling.dry, sampling.mirostat
    default = SamplingParams()
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        top_n_sigma=sampling.top_n_sigma,
        xtc_probability=xtc.probability,
        xtc_threshold=xtc.threshold if sampling.HasField("xtc") else default.xtc_threshold,
        dry_multiplier=dry.multiplier,
        dry_base=dry.base if sampling.HasField("dry") else default.dry_base,
        dry_allowed_length=dry.allowed_length if sampling.HasField("dry") else default.dry_allowed_length,
        dry_window=dry.window if sampling.HasField("dry") else default.dry_window,
        dry_sequence_breakers=tuple(dry.sequence_breakers) or default.dry_sequence_breakers,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        penalty_window=sampling.penalty_window,
        mirostat_version=mirostat.version,
        mirostat_tau=mirostat.tau if sampling.HasField("mirostat") else default.mirostat_tau,
        mirostat_eta=mirostat.eta if sampling.HasField("mirostat") else default.mirostat_eta,
        seed=sampling.seed,
        logit_bias=dict(sampling.logit_bias),
    )
