"""The scripted providers are faithful: what the providers' own clients read from them is what the script says."""

from __future__ import annotations

import contextlib
import gc
import json
import warnings
from typing import Any

import pytest

from tests.providers.anthropic import AnthropicWire
from tests.providers.gemini import GeminiWire
from tests.providers.ollama import OllamaWire
from tests.providers.openai import MODEL, OpenAIWire
from tests.providers.server import CALLS, CUT, HELLO, THOUGHTFUL, Script, ScriptedProvider, provider

with warnings.catch_warnings():
    # What these packages do while they are imported is not ours to mend.
    warnings.simplefilter("ignore")
    import anthropic
    import google.genai
    import google.genai.errors
    import google.genai.types
    import ollama
    import openai

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _collected():
    """What these clients leave open is theirs; it must not be found in the middle of another test."""
    yield
    gc.collect()


SCRIPTS = [HELLO, THOUGHTFUL, CALLS, CUT]
QUESTION: Any = [{"role": "user", "content": "Hello?"}]

Read = tuple[str, str, list[tuple[str, dict[str, Any]]], str, tuple[int, int]]


def expected(script: Script, finish: str) -> Read:
    """What a client must have read: text, thought, calls, the finish in its own word, and the usage."""
    calls = [(name, json.loads(arguments or "{}")) for name, arguments in script.calls]
    return script.text, script.thought, calls, finish, (script.prompt_tokens, script.completion_tokens)


async def by_openai(server: ScriptedProvider) -> Read:
    text, thought, finish = "", "", ""
    usage: tuple[int, int] = (0, 0)
    calls: dict[int, list[str]] = {}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.usage:
                usage = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                thought += (choice.delta.model_extra or {}).get("reasoning_content") or ""
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or []:
                    told = calls.setdefault(call.index, ["", ""])
                    told[0] += call.function.name or ""
                    told[1] += call.function.arguments or ""
    return text, thought, [(name, json.loads(args or "{}")) for name, args in calls.values()], finish, usage


async def by_anthropic(server: ScriptedProvider) -> Read:
    async with (
        anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=100, messages=QUESTION) as stream,
    ):
        message = await stream.get_final_message()
    blocks = message.content
    usage = message.usage
    prompt_tokens = (
        usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    )
    return (
        "".join(block.text for block in blocks if block.type == "text"),
        "".join(block.thinking for block in blocks if block.type == "thinking"),
        [(block.name, block.input) for block in blocks if block.type == "tool_use"],
        message.stop_reason or "",
        (prompt_tokens, usage.output_tokens),
    )


async def by_google(server: ScriptedProvider) -> Read:
    text, thought, finish = "", "", ""
    usage: tuple[int, int] = (0, 0)
    calls: list[tuple[str, dict[str, Any]]] = []
    client = google.genai.Client(
        api_key="k", http_options=google.genai.types.HttpOptions(base_url=server.url)
    )
    async for chunk in await client.aio.models.generate_content_stream(model="m", contents="Hello?"):
        if chunk.usage_metadata and chunk.usage_metadata.prompt_token_count:
            counts = chunk.usage_metadata
            completion = (counts.candidates_token_count or 0) + (counts.thoughts_token_count or 0)
            usage = (counts.prompt_token_count or 0), completion
        for candidate in chunk.candidates or []:
            finish = candidate.finish_reason.value if candidate.finish_reason else finish
            for part in (candidate.content and candidate.content.parts) or []:
                if part.function_call:
                    calls.append((part.function_call.name, part.function_call.args or {}))
                elif part.thought:
                    thought += part.text or ""
                else:
                    text += part.text or ""
    await client.aio.aclose()
    return text, thought, calls, finish, usage


async def by_ollama(server: ScriptedProvider) -> Read:
    text, thought, finish = "", "", ""
    usage: tuple[int, int] = (0, 0)
    calls: list[tuple[str, dict[str, Any]]] = []
    client = ollama.AsyncClient(host=server.url)
    stream = await client.chat("m", messages=QUESTION, stream=True)
    async with contextlib.aclosing(client._client):
        parts = [part async for part in stream]
    for part in parts:
        text += part.message.content or ""
        thought += part.message.thinking or ""
        calls += [
            (call.function.name, dict(call.function.arguments)) for call in part.message.tool_calls or []
        ]
        if part.done:
            finish = part.done_reason or ""
            usage = (part.prompt_eval_count or 0), (part.eval_count or 0)
    return text, thought, calls, finish, usage


CLIENTS = {
    "openai": (OpenAIWire(), by_openai, {"stop": "stop", "tool_calls": "tool_calls", "length": "length"}),
    "anthropic": (
        AnthropicWire(),
        by_anthropic,
        {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"},
    ),
    "gemini": (GeminiWire(), by_google, {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS"}),
    "ollama": (OllamaWire(), by_ollama, {"stop": "stop", "tool_calls": "stop", "length": "length"}),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_the_official_client_reads_what_the_script_says(name, script):
    """Text, thoughts, calls, finish reason and usage, streamed in whole events."""
    wire, read, finishes = CLIENTS[name]
    async with provider(wire, script) as server:
        assert expected(script, finishes[script.finish]) == await read(server)


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("openai", 401, openai.AuthenticationError),
        ("openai", 429, openai.RateLimitError),
        ("openai", 400, openai.BadRequestError),
        ("openai", 500, openai.InternalServerError),
        ("anthropic", 401, anthropic.AuthenticationError),
        ("anthropic", 429, anthropic.RateLimitError),
        ("anthropic", 529, anthropic.InternalServerError),
        ("gemini", 429, google.genai.errors.ClientError),
        ("gemini", 503, google.genai.errors.ServerError),
        ("ollama", 404, ollama.ResponseError),
    ],
)
async def test_the_official_client_knows_the_failure(name, status, error):
    """Bodies of failures are the providers' own form too."""
    wire, read, _ = CLIENTS[name]
    async with provider(wire) as server:
        server.reply = server.failed(status)
        with pytest.raises(error):
            await read(server)


@pytest.mark.parametrize(
    ("name", "error"),
    [("openai", openai.APIError), ("anthropic", anthropic.APIStatusError), ("ollama", ollama.ResponseError)],
)
async def test_the_official_client_knows_an_error_in_a_stream(name, error):
    """An event in a stream that has begun is taken for what it is."""
    wire, read, _ = CLIENTS[name]
    async with provider(wire) as server:
        events = [*wire.events(HELLO)[:3], wire.error_event()]
        server.reply = server.good(HELLO)
        server.reply = type(server.reply)(media_type=wire.media_type, steps=events)
        with pytest.raises(error):
            await read(server)
