"""Reads the answer to a raw prompt, as `chat.reader` reads that of a chat: all of it is text, and one form holds throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferwire.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from .runner import Constraint


class TextReader:
    """One answer. See `AnswerReader`, of which this is the case without a conversation."""

    shown_tokens: frozenset[int] = frozenset()
    is_over = False
    has_called = False
    num_thought_tokens = 0

    def __init__(self, constraint: Constraint | None = None) -> None:
        self.constraint = constraint

    def __repr__(self) -> str:
        return f"<TextReader [{'bound' if self.constraint else 'free'}]>"

    def read(self, token: int, text: str) -> list[pb.StreamCompleteResponse]:
        """Takes a token that was drawn, and the text that it set free. Returns what is told."""
        return [pb.StreamCompleteResponse(text=pb.TextDelta(text=text))] if text else []

    def finish(self, text: str) -> list[pb.StreamCompleteResponse]:
        """Takes the last text: the answer has ended."""
        return self.read(-1, text)
