"""Renders a conversation with a model's Jinja chat template.

A template comes from the model's file, so it is untrusted code; `sandbox` bounds what it may spend. The environment offers
what templates of the field use, as Hugging Face Transformers' `apply_chat_template` does: trimmed blocks, loop controls,
`tojson` without HTML escapes, `raise_exception`, `strftime_now`, and the `generation` tag.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from inferwire_server import errors

from .sandbox import Allowance, Environment, Refused, RefusedByTemplate, fixed_clock

MAX_RENDER_SECONDS = 0.75
# New values of one rendering, bytes: so many times the largest prompt, for what a template builds on its way there.
MAX_PROMPTS = 16
MIN_ALLOWANCE_BYTES = 1 << 20


class ChatTemplate:
    """A compiled template. Raises errors.TemplateInvalid when it cannot be compiled or fails on a plain conversation."""

    def __init__(self, source: str, *, bos: str, eos: str, max_bytes: int) -> None:
        self._source = source
        self._specials = {"bos_token": bos, "eos_token": eos}
        self._max_bytes = max_bytes
        self._environment = Environment(self._allowance())
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:
            # Untrusted code fails in many ways: Jinja's errors, Python's for what Jinja made of it, or nesting too deep.
            raise errors.TemplateInvalid(
                "the chat template cannot be compiled", detail=repr(error)
            ) from error
        try:
            self.render([{"role": "user", "content": "Hello"}])
        except errors.TemplateRejected as error:
            raise errors.TemplateInvalid(
                "the chat template fails on a plain conversation", detail=error.detail
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns the prompt of a conversation, up to where the assistant's answer begins.

        `arguments` are the caller's own variables; they never replace the standard ones. Raises
        errors.TemplateRejected when the template refuses the conversation, fails or exceeds a bound.
        """
        now = (arguments or {}).get("now")
        variables = {
            **(arguments or {}),
            **({} if now is None else {"strftime_now": fixed_clock(now)}),
            **self._specials,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": True,
        }
        self._environment.allowance = self._allowance()
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                size += len(piece.encode())
                if size > self._max_bytes:
                    raise Refused("the rendered conversation exceeds the server's limit")
                pieces.append(piece)
        except RefusedByTemplate as error:
            raise errors.TemplateRejected(
                "the model's chat template refuses this conversation", detail=self._own_words(str(error))
            ) from error
        except Refused as error:
            raise errors.TemplateRejected(
                "the model's chat template refuses this conversation", detail=str(error)
            ) from error
        except Exception as error:
            # Whatever untrusted code can raise is the conversation's or the template's fault, not the engine's.
            raise errors.TemplateRejected(
                "the model's chat template fails on this conversation", detail=type(error).__name__
            ) from error
        return "".join(pieces)

    def _own_words(self, text: str) -> str:
        """Returns how a text begins, as far as it stands in the template: behind that a conversation may be quoted."""
        length = bisect.bisect_left(
            range(len(text)), True, key=lambda end: text[: end + 1] not in self._source
        )
        return text[:length]

    def knows(self, variable: str) -> bool:
        """Whether the template speaks of a variable."""
        return variable in self._source

    def _allowance(self) -> Allowance:
        max_bytes = MIN_ALLOWANCE_BYTES + MAX_PROMPTS * self._max_bytes
        return Allowance(max_bytes=max_bytes, max_seconds=MAX_RENDER_SECONDS)
