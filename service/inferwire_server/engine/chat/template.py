"""Renders a conversation with a model's Jinja chat template, in a sandbox with bounds.

A template comes from the model's file, so it is untrusted code: no attribute that leads out of the sandbox, no unbounded
string or range, a bound on the output and on the time between two pieces of it. The environment offers what templates of
the field use, as Hugging Face Transformers' `apply_chat_template` does: trimmed blocks, loop controls, `tojson` without HTML
escapes, `raise_exception`, `strftime_now`, and the `generation` tag.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from inferwire_server import errors

MAX_RENDER_SECONDS = 1.0
MAX_REPEATED_CHARS = 1 << 20


class _Refused(Exception):
    """The template called raise_exception: its own words about the conversation."""


class ChatTemplate:
    """A compiled template. Raises errors.TemplateInvalid when it cannot be compiled or fails on a plain conversation."""

    def __init__(self, source: str, *, bos: str, eos: str, max_bytes: int) -> None:
        self._specials = {"bos_token": bos, "eos_token": eos}
        self._max_bytes = max_bytes
        try:
            self._template = _Environment().from_string(source)
            self.render([{"role": "user", "content": "Hello"}])
        except errors.TemplateRejected as error:
            raise errors.TemplateInvalid(
                "the chat template fails on a plain conversation", detail=error.detail
            ) from error
        except (jinja2.TemplateError, RecursionError, MemoryError, ValueError) as error:
            raise errors.TemplateInvalid("the chat template cannot be compiled", detail=repr(error)) from error

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
        variables = {
            **(arguments or {}),
            **self._specials,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": True,
        }
        pieces: list[str] = []
        size = 0
        limit = time.monotonic() + MAX_RENDER_SECONDS
        try:
            for piece in self._template.generate(variables):
                size += len(piece.encode("utf-8", "surrogatepass"))
                if size > self._max_bytes:
                    raise _Refused("the rendered conversation exceeds the server's limit")
                if time.monotonic() > limit:
                    raise _Refused("rendering took too long")
                pieces.append(piece)
            text = "".join(pieces)
            text.encode()
        except _Refused as error:
            raise errors.TemplateRejected(
                "the model's chat template refuses this conversation", detail=str(error)
            ) from error
        except Exception as error:
            # Whatever untrusted code can raise is the conversation's or the template's fault, not the engine's.
            raise errors.TemplateRejected(
                "the model's chat template fails on this conversation", detail=repr(error)
            ) from error
        return text


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %}, which marks what the model writes; it changes nothing when rendering."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            undefined=jinja2.ChainableUndefined,
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if not all(isinstance(value, int | float) and abs(value) <= 1024 for value in (left, right)):
                raise _Refused("a power beyond the limit")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                sized = isinstance(value, str | bytes | list | tuple)
                if sized and isinstance(times, int) and len(value) * times > MAX_REPEATED_CHARS:
                    raise _Refused("a repetition beyond the limit")
        elif isinstance(left, str | bytes):
            raise _Refused("string formatting by % is not offered")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(int(indent), 16))


def _raise_exception(message: str) -> None:
    raise _Refused(str(message)[:1000])


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(str(format)[:256])
