"""The chat template, rendered as Transformers renders it.

The one source of the format: the training text, the GGUF file and the check all take the template from here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.corpus import Message, Tool

TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")


class ChatRenderer:
    """Renders conversations by one template. Stateless after construction."""

    def __init__(self, template: str = TEMPLATE) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        # Jinja's own filter escapes characters for HTML and sorts the keys; models are trained without
        # either.
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise_exception
        self._template = environment.from_string(template)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        enable_thinking: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the prompt text; raises `jinja2.TemplateError` when the roles are out of order."""
        return self._template.render(
            messages=list(messages),
            tools=list(tools),
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
