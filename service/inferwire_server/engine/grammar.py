"""Structured answers: compiles a response format and says, token by token, what may come next.

llguidance does the work (https://github.com/guidance-ai/llguidance): a mask over the vocabulary per token, in a fraction of a
millisecond. Fails closed: what it cannot enforce is refused, what exceeds its limits ends the request, and nothing is ever
generated without the constraint that was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.gbnf_to_lark
import llguidance.llamacpp
import numpy as np
import numpy.typing as npt

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors

# A parser of a grammar recurses; this many levels are far beyond any real one and far from the end of a stack.
MAX_NESTING = 128
# Unbounded white space is where a weak model goes to stay.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"
# The first mask of a long repetition is computed by the engine's thread, while every other stream waits: with the library's
# own limit for 0.5 s on 2 cores, with this one for a third of that. An enumeration of 20,000 texts still fits.
LIMITS = llguidance.LLParserLimits(verbose_errors=False, initial_lexer_fuel=300_000)

_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_TRAILING_BACKSLASHES = re.compile(r"\\*\Z")
_LIMIT_WORDS = re.compile(r"fuel|limit|too (?:large|many|complex|deep|big)|exceed|budget", re.IGNORECASE)


class GrammarCompiler:
    """Compiles response formats for one vocabulary. Making it reads the whole vocabulary: about a second for 150,000."""

    def __init__(self, vocab: Any, *, end_tokens: list[int]) -> None:
        self._tokenizer = llguidance.llamacpp.lltokenizer_from_vocab(vocab, eos_token=end_tokens or None)
        self._executor = llguidance.LLExecutor()
        self._masks = np.empty((0, _num_mask_words(self._tokenizer.vocab_size)), dtype=np.int32)

    def is_special(self, token: int) -> bool:
        """Whether a grammar speaks of a token by its id: its text, spelled out, is something else."""
        return bool(self._tokenizer.is_special_token(token))

    def compute_masks(self, constraints: Sequence[object]) -> None:
        """Computes the masks of a whole batch at once, on several threads; `Constraint.mask` then returns them."""
        ours = [constraint for constraint in constraints if isinstance(constraint, Constraint)]
        if len(ours) < 2:
            return
        if len(ours) > len(self._masks):
            self._masks = np.empty((len(ours), self._masks.shape[1]), dtype=np.int32)
        matchers = [(constraint.matcher, row) for row, constraint in enumerate(ours)]
        self._executor.unsafe_compute_mask_ptr(
            matchers, self._masks.ctypes.data, self._masks.strides[0], len(self._masks)
        )
        for row, constraint in enumerate(ours):
            constraint.computed = self._masks[row]

    def compile(self, response_format: pb.ResponseFormat) -> Constraint:
        """Returns the constraint of a response format.

        Raises errors.GrammarInvalid for what cannot be read or enforced, GrammarTooComplex for what exceeds the limits.
        """
        field = f"response_format.{response_format.WhichOneof('format')}"
        try:
            grammar = _grammar(response_format)
        except RecursionError as error:
            raise _too_complex(field) from error
        except Exception as error:
            # A converter of untrusted text may fail in any way; whichever it is, there is no constraint.
            raise _invalid(field, str(error)) from error
        return self._constraint(grammar, field)

    def compile_lark(self, text: str, field: str) -> Constraint:
        """Returns the constraint of a grammar that we wrote for the request's `field`. Raises as `compile`."""
        try:
            _check_nesting(text)
            grammar = llguidance.LLMatcher.grammar_from_lark(text)
        except RecursionError as error:
            raise _too_complex(field) from error
        return self._constraint(grammar, field)

    def _constraint(self, grammar: str, field: str) -> Constraint:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            problem = matcher.get_error()
            raise _too_complex(field) if _LIMIT_WORDS.search(problem) else _invalid(field, problem)
        return Constraint(matcher, self._tokenizer.vocab_size, field)


class Constraint:
    """What one answer may be, from its first token on."""

    def __init__(self, matcher: llguidance.LLMatcher, num_vocab: int, field: str) -> None:
        self.matcher = matcher
        #: The mask of the next token, if it is known already.
        self.computed: npt.NDArray[np.int32] | None = None
        self._mask = np.empty(_num_mask_words(num_vocab), dtype=np.int32)
        self._field = field

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more."""
        return bool(self.matcher.is_stopped())

    def mask(self) -> npt.NDArray[np.int32]:
        """Returns the tokens that may come next, a bit each, the lowest first. Valid until the next batch.

        Raises errors.GrammarTooComplex when they cannot be told within the limits.
        """
        mask = self.computed
        if mask is None:
            mask = self._mask
            self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        return mask

    def copy(self) -> Constraint:
        """Returns one that is where this one is, and goes its own way."""
        return Constraint(self.matcher.deep_copy(), 32 * len(self._mask), self._field)

    def has_begun_with(self, tokens: Sequence[int]) -> bool:
        """Takes tokens that came before it was asked. False when they are not what it would have allowed."""
        self.computed = None
        return bool(self.matcher.try_consume_tokens(list(tokens)) == len(tokens))

    def accept(self, token: int) -> None:
        """Takes the token that came."""
        self.computed = None
        self.matcher.consume_token(token)
        self._check()

    def forced(self) -> list[int]:
        """Returns the tokens that must come next, because the format leaves no choice; may be none."""
        tokens = self.matcher.compute_ff_tokens()
        self._check()
        return list(tokens)

    def _check(self) -> None:
        if self.matcher.is_error():
            # Its words may quote the caller's grammar.
            limit = _LIMIT_WORDS.search(self.matcher.get_error())
            raise _too_complex(self._field, limit[0] if limit else "")


def _num_mask_words(num_vocab: int) -> int:
    return (num_vocab + 31) // 32


def _grammar(response_format: pb.ResponseFormat) -> str:
    """Returns a response format as llguidance's grammar. ValueError or RecursionError when it cannot be read."""
    match response_format.WhichOneof("format"):
        case "json_object":
            return _json_grammar('{"type": "object"}')
        case "json_schema":
            return _json_grammar(response_format.json_schema)
        case "regex":
            _check_nesting(response_format.regex)
            if len(_TRAILING_BACKSLASHES.findall(response_format.regex)[0]) % 2:
                # The library would drop it and enforce another expression.
                raise ValueError("the expression ends with a backslash that escapes nothing")
            return llguidance.LLMatcher.grammar_from_regex(response_format.regex)
        case "choice":
            choices = " | ".join(json.dumps(choice) for choice in response_format.choice.choices)
            return llguidance.LLMatcher.grammar_from_lark(f"start: {choices}")
        case "grammar":
            text = response_format.grammar.text
            _check_nesting(text)
            if response_format.grammar.syntax == pb.GRAMMAR_SYNTAX_GBNF:
                text = llguidance.gbnf_to_lark.gbnf_to_lark(text)
            return llguidance.LLMatcher.grammar_from_lark(text)
        case _:
            raise ValueError("no format is set")


def _json_grammar(schema: str) -> str:
    _check_nesting(schema)
    return llguidance.LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_pattern": WHITE_SPACE}
    )


def _check_nesting(text: str) -> None:
    """Raises RecursionError for text whose brackets nest too deeply, whatever they mean."""
    depth = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            if depth > MAX_NESTING:
                raise RecursionError("brackets nest too deeply")
        elif character in _CLOSING:
            depth = max(0, depth - 1)


def _invalid(field: str, problem: str) -> errors.GrammarInvalid:
    # The compiler's words are about the caller's own text, and nothing else tells what to mend.
    return errors.GrammarInvalid(
        "the response format cannot be enforced",
        violations=[(field, problem.splitlines()[0] if problem else "is invalid")],
    )


def _too_complex(field: str, detail: str = "") -> errors.GrammarTooComplex:
    return errors.GrammarTooComplex(
        "the response format exceeds the limits on size or depth",
        violations=[(field, "is too complex")],
        detail=detail,
    )
