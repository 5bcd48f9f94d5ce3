"""Reads one answer of a chat while it is generated: says what is told of it, and what may come next.

The parser divides the text. Around it stand the rules of the request: an answer's form begins behind the thought; a call that the
model has begun ends as its tool's schema says; a thought that has used up its budget is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from inferwire.v1 import inference_pb2 as pb

from ..runner import Constraint
from .parser import AnswerParser, CallArguments, CallBegin, CallEnd, Event, Reasoning, Text


class CallConstraint(Constraint, Protocol):
    """The form of a call, of which a part may stand there already."""

    def copy(self) -> CallConstraint:
        """Returns one that is where this one is."""

    def has_begun_with(self, tokens: Sequence[int]) -> bool:
        """Takes tokens that came before. False when they are not of this form."""


class AnswerReader:
    """One answer.

    `answer` is the form of what is neither thought nor call. `calls` are those of a call that the model may begin, of which the first counts that fits; a call begins with
    `call_token` where the vocabulary has one token for that, else where the parser sees it. `thought_token` opens a thought.
    `thought_end` is what closes a thought after `max_thought_tokens`.
    """

    def __init__(
        self,
        parser: AnswerParser,
        *,
        tokenize: Callable[[str], list[int]],
        new_call_id: Callable[[int], str],
        num_vocab: int,
        shown_tokens: Collection[int] = (),
        end_tokens: Collection[int] = (),
        answer: Constraint | None = None,
        calls: Sequence[CallConstraint] = (),
        call_token: int | None = None,
        is_strict: bool = False,
        is_parallel: bool = True,
        thought_token: int | None = None,
        thought_end: Sequence[int] = (),
        max_thought_tokens: int | None = None,
    ) -> None:
        self._parser = parser
        self._tokenize = tokenize
        self._new_call_id = new_call_id
        self._num_vocab = num_vocab
        self.shown_tokens = frozenset(shown_tokens)
        self._end_tokens = frozenset(end_tokens)
        self._answer = answer
        self._forms = list(calls)
        self._call_token = call_token
        self._is_strict = is_strict
        self._is_parallel = is_parallel
        self._thought_token = thought_token
        self._thought_end = list(thought_end)
        self._max_thought_tokens = max_thought_tokens
        self._call: CallConstraint | None = None
        # A call's form is tried once, where it begins.
        self._was_calling = False
        self._has_thought = parser.is_reasoning
        self._closing: _TokenList | None = None
        # Who owes an answer does not end in its thought.
        self._unended = _Unended(end_tokens, num_vocab)
        self._is_answering = False
        self._num_complete = 0
        self.num_thought_tokens = 0
        # Nothing may follow: the one call that was asked for is complete.
        self.is_over = False
        #: What holds for the next token.
        self.constraint: Constraint | None = None
        self._choose()

    def __repr__(self) -> str:
        return f"<AnswerReader [{self._parser!r} | thought {self.num_thought_tokens} | calls {self._num_complete}]>"

    @property
    def has_called(self) -> bool:
        """Whether there is a complete call."""
        return self._num_complete > 0

    def read(self, token: int, text: str) -> list[pb.StreamCompleteResponse]:
        """Takes a token that was drawn, and the text that it set free, which may be empty. Returns what is told."""
        was_reasoning = self._parser.is_reasoning
        events = self._parser.feed(text)
        told = self._told(events)
        self._is_answering |= self.constraint is self._answer
        self._is_answering |= isinstance(self.constraint, _Beginning) and self.constraint.is_answer
        if self._parser.is_reasoning:
            self._think()
        else:
            if was_reasoning and self._answer is not None:
                # What stands behind the marker in the same token belongs to the answer already.
                for unseen in self._tokenize(
                    "".join(event.text for event in events if isinstance(event, Text))
                ):
                    self._answer.accept(unseen)
                    self._is_answering = True
            if self._forms:
                self._follow_call(token, events)
        self.is_over = not self._is_parallel and self.has_called
        self._choose()
        return told

    def finish(self, text: str) -> list[pb.StreamCompleteResponse]:
        """Takes the last text, which was held back, and returns what is left: the answer has ended."""
        return self._told([*self._parser.feed(text), *self._parser.finish()])

    def _think(self) -> None:
        """Counts a token of thought; after the last that is allowed the thought is closed."""
        self._has_thought = True
        if self._closing is not None:
            return
        self.num_thought_tokens += 1
        if self._max_thought_tokens is not None and self.num_thought_tokens >= self._max_thought_tokens:
            self._closing = _TokenList(self._thought_end, self._num_vocab)

    def _follow_call(self, token: int, events: list[Event]) -> None:
        """Begins and ends the form of a call."""
        if self._call is not None:
            if not self._call.is_complete:
                return
            self._call = None
        # Without a marker only the name of a tool says that this is a call.
        is_named = not self._is_strict or any(isinstance(event, CallBegin) for event in events)
        begins = self._parser.is_calling and is_named and (self._is_strict or not self._was_calling)
        self._was_calling = self._parser.is_calling
        if token == self._call_token:
            self._begin_call([token])
        elif begins and self._call_token is None:
            self._begin_call(self._tokenize(self._parser.call_text))

    def _begin_call(self, tokens: Sequence[int]) -> None:
        for form in self._forms:
            call = form.copy()
            if call.has_begun_with(tokens):
                self._call = call
                return

    def _choose(self) -> None:
        """Chooses what holds for the next token."""
        if self._closing is not None and not self._closing.is_complete:
            self.constraint = self._closing
        elif self._parser.is_reasoning:
            self.constraint = self._unended if self._answer is not None else None
        elif self._call is not None:
            self.constraint = self._call
        elif self._answer is None or self._is_answering:
            self.constraint = self._answer
        else:
            others = [self._call_token] if self._forms and self._call_token is not None else []
            if self._thought_token is not None and not self._has_thought:
                others.append(self._thought_token)
            if self.has_called:
                others += self._end_tokens
            self.constraint = _Beginning(self._answer, others) if others else self._answer

    def _told(self, events: list[Event]) -> list[pb.StreamCompleteResponse]:
        told = []
        for event in events:
            match event:
                case Text(text):
                    told.append(pb.StreamCompleteResponse(text=pb.TextDelta(text=text)))
                case Reasoning(text):
                    told.append(pb.StreamCompleteResponse(reasoning=pb.ReasoningDelta(text=text)))
                case CallBegin(index, name, id):
                    delta = pb.ToolCallDelta(index=index, name=name, id=id or self._new_call_id(index))
                    told.append(pb.StreamCompleteResponse(tool_call=delta))
                case CallArguments(index, text):
                    delta = pb.ToolCallDelta(index=index, arguments=text)
                    told.append(pb.StreamCompleteResponse(tool_call=delta))
                case CallEnd(_, is_complete):
                    self._num_complete += is_complete
        return told


class _Beginning:
    """The form of an answer, at whose first token a few other tokens may stand that begin something else."""

    def __init__(self, answer: Constraint, others: Sequence[int]) -> None:
        self._answer = answer
        self._others = list(others)
        self.is_answer = False

    @property
    def is_complete(self) -> bool:
        return self._answer.is_complete

    def mask(self) -> npt.NDArray[np.int32]:
        mask = self._answer.mask().copy()
        words = mask.view(np.uint32)
        for token in self._others:
            words[token // 32] |= np.uint32(1 << token % 32)
        return mask

    def accept(self, token: int) -> None:
        if token not in self._others:
            self._answer.accept(token)
            self.is_answer = True

    def forced(self) -> list[int]:
        return self._answer.forced() if self.is_answer else []


class _Unended:
    """Any text, but not its end."""

    is_complete = False

    def __init__(self, end_tokens: Collection[int], num_vocab: int) -> None:
        self._end_tokens = end_tokens
        self._num_vocab = num_vocab

    def mask(self) -> npt.NDArray[np.int32]:
        mask = np.full(-(-self._num_vocab // 32), 0xFFFFFFFF, dtype=np.uint32)
        for token in self._end_tokens:
            mask[token // 32] &= ~np.uint32(1 << token % 32)
        return mask.view(np.int32)

    def accept(self, token: int) -> None:
        pass

    def forced(self) -> list[int]:
        return []


class _TokenList:
    """Tokens that must come, one after the other."""

    def __init__(self, tokens: Sequence[int], num_vocab: int) -> None:
        self._tokens = list(tokens)
        self._num_vocab = num_vocab

    @property
    def is_complete(self) -> bool:
        return not self._tokens

    def mask(self) -> npt.NDArray[np.int32]:
        token = self._tokens[0]
        mask = np.zeros(-(-self._num_vocab // 32), dtype=np.uint32)
        mask[token // 32] = 1 << token % 32
        return mask.view(np.int32)

    def accept(self, token: int) -> None:
        self._tokens.remove(token)

    def forced(self) -> list[int]:
        return list(self._tokens)
