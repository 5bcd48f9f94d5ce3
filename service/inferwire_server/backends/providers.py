"""Which kinds of provider there are: our own by name, and those that installed packages bring.

A package names its kinds in its metadata, under the entry point group `inferwire.backends`: `shout = "my_package:Shout"`, a
subclass of `provider.Provider`. It is imported when a configuration asks for it, and not before.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping

from inferwire_server.config import BackendSettings, ConfigError, unknown_value

from .provider import Provider

ENTRY_POINT_GROUP = "inferwire.backends"
_OPENAI = "inferwire_server.backends.openai:OpenAI"
BUILT_IN: Mapping[str, str] = {
    "openai": _OPENAI,
    "azure": _OPENAI,
    "vllm": _OPENAI,
    "sglang": _OPENAI,
    "llama-server": _OPENAI,
    "lm-studio": _OPENAI,
    "groq": _OPENAI,
    "mistral": _OPENAI,
    "deepseek": _OPENAI,
    "openrouter": _OPENAI,
    "openai-compatible": _OPENAI,
    "anthropic": "inferwire_server.backends.anthropic:Anthropic",
    "gemini": "inferwire_server.backends.gemini:Gemini",
    "ollama": "inferwire_server.backends.ollama:Ollama",
    "command": "inferwire_server.backends.command:Command",
    "inferwire": "inferwire_server.backends.inferwire:Inferwire",
}


def build(settings: Mapping[str, BackendSettings]) -> dict[str, Provider]:
    """Returns a provider for each configured backend. ConfigError says which one cannot be, and why."""
    providers: dict[str, Provider] = {}
    for id, backend in settings.items():
        kind = _kind(id, backend.type)
        try:
            providers[id] = kind(id, backend)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith("backends.") else f"backends.{id}: {text}") from error
    return providers


def _kind(id: str, kind_name: str) -> type[Provider]:
    installed = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if kind_name in BUILT_IN:
        module, _, name = BUILT_IN[kind_name].partition(":")
        kind = getattr(importlib.import_module(module), name)
    elif kind_name in installed:
        try:
            kind = installed[kind_name].load()
        except Exception as error:
            # Somebody else's code: whatever it does, the operator gets one line.
            why = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"backends.{id}.type: {kind_name!r} is installed but cannot be imported: {why}"
            ) from error
    else:
        raise unknown_value(f"backends.{id}.type", kind_name, [*BUILT_IN, *installed])
    if not (isinstance(kind, type) and issubclass(kind, Provider)):
        raise ConfigError(
            f"backends.{id}.type: {kind_name!r} is no subclass of inferwire_server.backends.provider.Provider"
        )
    return kind
