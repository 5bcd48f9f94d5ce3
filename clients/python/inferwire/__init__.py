"""Python client of inferwire, a gRPC service for LLM inference.

This package is lazy: a name is imported when it is first asked for. So a process that only wants the messages of
`inferwire.v1` imports no `grpc`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferwire.aio import AsyncClient, AsyncCompletionStream
    from inferwire.chat import assistant, system, text_of, tool_result, user
    from inferwire.client import Client, CompletionStream
    from inferwire.errors import InferwireError
    from inferwire.gather import Gatherer

__version__ = "0.1.0"

__all__ = [
    "Client",
    "AsyncClient",
    "CompletionStream",
    "AsyncCompletionStream",
    "InferwireError",
    "Gatherer",
    "system",
    "user",
    "assistant",
    "tool_result",
    "text_of",
]

_HOMES = {
    "Client": "inferwire.client",
    "AsyncClient": "inferwire.aio",
    "CompletionStream": "inferwire.client",
    "AsyncCompletionStream": "inferwire.aio",
    "InferwireError": "inferwire.errors",
    "Gatherer": "inferwire.gather",
    "system": "inferwire.chat",
    "user": "inferwire.chat",
    "assistant": "inferwire.chat",
    "tool_result": "inferwire.chat",
    "text_of": "inferwire.chat",
}


# Out of a type checker's sight, so that it still finds a name that does not exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
