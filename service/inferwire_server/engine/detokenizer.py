"""Turns the bytes of tokens into text that may be shown: whole characters, and nothing that may yet be a stop text.

Pure: no thread, no clock, no llama. What comes out does not depend on how the bytes were split, but for where one
piece ends and the next begins.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes bytes, gives text: UTF-8 held back until a character is whole, stop texts found across any split.

    `stop` is the stop text that was found, else None. After it was found the stream is over: pushing more is an
    error of the caller.
    """

    def __init__(self, stops: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self.stop: str | None = None

    def __repr__(self) -> str:
        return f"<TextStream [held {self._held!r} | stop {self.stop!r}]>"

    def push(self, data: bytes) -> str:
        """Returns the text that `data` sets free; may be empty."""
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """Returns what was held back: the answer ended without a stop text. Half a character becomes U+FFFD."""
        text = self._advance(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _advance(self, text: str) -> str:
        if self.stop is not None:
            raise ValueError("the text already ended at a stop")
        text = self._held + text
        found = self._first_stop(text)
        if found is not None:
            start, end, self.stop = found
            self._held = ""
            return text[: end if self._include_stop else start]
        keep = self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> tuple[int, int, str] | None:
        # The stop that is complete first wins, the longest of those: the same answer whatever the split was.
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        end, start, stop = min(found)
        return start, end, stop

    def _possible_stop(self, text: str) -> int:
        """Returns the length of the longest tail of `text` that may become a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
