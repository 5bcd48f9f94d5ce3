"""Every wire format, and how a test configures a backend for one."""

from __future__ import annotations

from inferwire_server.config import BackendSettings
from tests.providers.anthropic import AnthropicWire
from tests.providers.gemini import GeminiWire
from tests.providers.ollama import OllamaWire
from tests.providers.openai import OpenAIWire
from tests.providers.server import ScriptedProvider

# The same format with another of its dialects is the fifth adapter: another request, another set of quirks.
WIRES = {
    "openai": OpenAIWire(),
    "llama-server": OpenAIWire(),
    "anthropic": AnthropicWire(),
    "gemini": GeminiWire(),
    "ollama": OllamaWire(),
}
MODEL = "m"


def settings(server: ScriptedProvider, type: str, **more) -> BackendSettings:
    """Returns the settings of a backend that is a scripted provider, with little patience."""
    return BackendSettings(
        type=type,
        models=[MODEL],
        **{
            "base_url": server.url,
            "health_seconds": 0,
            "idle_seconds": 0.4,
            "progress_seconds": 1.0,
            "breaker_failures": 1000,
            **more,
        },
    )
