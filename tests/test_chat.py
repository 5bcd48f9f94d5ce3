"""Tools, thoughts and forms of answers over chat: what is asked for is enforced, whatever the model would rather say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferwire import AsyncClient, InferwireError, text_of, user
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.engine.chat.family import family, names

from .serving import demo, running

NUM_ANSWERS = 6
SUM = "What is 2 + 3?"
# Shows tools, and knows nothing of any family.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 6},
        "pages": {"type": "integer", "minimum": 10, "maximum": 99},
        "kind": {"enum": ["novel", "poem"]},
    },
    "required": ["title", "pages", "kind"],
    "additionalProperties": False,
}
SWITCH = {
    "type": "object",
    "properties": {"is_on": {"type": "boolean"}},
    "required": ["is_on"],
    "additionalProperties": False,
}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
COLOUR = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'


def tool(name: str, parameters: dict[str, Any] | None = None) -> pb.Tool:
    return pb.Tool(name=name, parameters="" if parameters is None else json.dumps(parameters))


TOOLS = [tool("add_book", BOOK), tool("switch", SWITCH), tool("now")]


def asking(text: str, tools: list[pb.Tool] | None = None, **chat: Any) -> pb.CompleteRequest:
    request = pb.CompleteRequest(chat=pb.Chat(messages=[user(text)], tools=tools, **chat))
    request.sampling.temperature = 0
    request.sampling.seed = 1
    return request


def choice(name: str) -> pb.ToolChoice:
    if name.startswith("TOOL_CHOICE_MODE_"):
        return pb.ToolChoice(mode=pb.ToolChoiceMode.Value(name))
    return pb.ToolChoice(name=name)


REQUIRED, NONE = choice("TOOL_CHOICE_MODE_REQUIRED"), choice("TOOL_CHOICE_MODE_NONE")


def calls_of(message: pb.Message) -> list[pb.ToolCall]:
    return [part.tool_call for part in message.parts if part.HasField("tool_call")]


def thoughts_of(message: pb.Message) -> str:
    return "".join(part.reasoning.text for part in message.parts)


def assert_valid(call: pb.ToolCall) -> None:
    """The arguments satisfy the schema of the tool."""
    arguments = json.loads(call.arguments)
    match call.name:
        case "add_book":
            assert {"title", "pages", "kind"} == set(arguments)
            assert 1 <= len(arguments["title"]) <= 6
            assert arguments["pages"] in range(10, 100)
            assert arguments["kind"] in ("novel", "poem")
        case "switch":
            assert arguments in ({"is_on": True}, {"is_on": False})
        case "now":
            assert {} == arguments
        case _:
            raise AssertionError(call.name)


async def refused(client: AsyncClient, request: pb.CompleteRequest) -> InferwireError:
    with pytest.raises(InferwireError) as caught:
        await client.complete(request)
    return caught.value


@pytest.fixture
async def client() -> Any:
    async with running(models={"demo": demo()}) as (_, client):
        yield client


@pytest.mark.parametrize("name", [name for name in names() if family(name).calls])
async def test_a_required_call_is_made_by_a_model_that_does_not_know_how(name: str) -> None:
    """In the syntax of each family, at a high temperature: one valid call at least, and nothing of the syntax in the text."""
    model = demo(chat_family=name, chat_template=TEMPLATE)
    async with running(models={"demo": model}) as (_, client):
        described = await client.get_model("demo")
        assert described.capabilities.tools
        assert name == described.config.chat_family

        async def ask(seed: int) -> pb.CompleteResponse:
            request = asking("Hello", TOOLS, tool_choice=REQUIRED, parallel_tool_calls=bool(seed % 2))
            request.chat.reasoning.enabled = False
            request.sampling.temperature = 1.5
            request.sampling.seed = seed
            request.stopping.max_tokens = 700
            return await client.complete(request)

        for seed, response in enumerate(await asyncio.gather(*map(ask, range(NUM_ANSWERS)))):
            calls = calls_of(response.message)
            if response.completion.finish_reason == pb.FINISH_REASON_LENGTH:
                # It called without end. The last one may be cut, even before it was one.
                calls = calls[:-1]
            else:
                assert pb.FINISH_REASON_TOOL_CALLS == response.completion.finish_reason, response
                assert not text_of(response.message).strip()
                assert calls
            assert len(calls) <= 1 or seed % 2, "parallel calls were switched off"
            for call in calls:
                assert_valid(call)


async def test_a_named_tool_is_called(client: AsyncClient) -> None:
    """That one and no other, as a stream and at once."""
    for entry in TOOLS:
        request = asking("What is the capital of France?", TOOLS, tool_choice=choice(entry.name))
        request.chat.parallel_tool_calls = False
        response = await client.complete(request)
        (call,) = calls_of(response.message)
        assert entry.name == call.name
        assert_valid(call)
        async with client.stream(request) as stream:
            events = [event async for event in stream]
        deltas = [event.tool_call for event in events if event.HasField("tool_call")]
        assert [entry.name] + [""] * (len(deltas) - 1) == [delta.name for delta in deltas]
        assert [call.id] + [""] * (len(deltas) - 1) == [delta.id for delta in deltas]
        assert call.arguments == "".join(delta.arguments for delta in deltas)


async def test_no_tool_is_called_when_that_is_said(client: AsyncClient) -> None:
    """Where the same request without that word is a call."""
    request = asking("What is the weather in Paris?", [tool("get_weather", WEATHER)])
    assert calls_of((await client.complete(request)).message)
    request.chat.tool_choice.CopyFrom(NONE)
    response = await client.complete(request)
    assert not calls_of(response.message)
    assert "<tool_call>" not in text_of(response.message)


async def test_a_call_that_the_model_began_ends_as_its_schema_says(client: AsyncClient) -> None:
    """The model has learnt that this tool takes a city by name; the schema knows two."""
    cities = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bern"]}}, "required": ["city"], "additionalProperties": False}  # fmt: skip
    response = await client.complete(asking("What is the weather in Paris?", [tool("get_weather", cities)]))
    (call,) = calls_of(response.message)
    assert json.loads(call.arguments)["city"] in ("Rome", "Bern")
    assert pb.FINISH_REASON_TOOL_CALLS == response.completion.finish_reason


async def test_a_call_that_was_cut_is_told_as_far_as_it_came(client: AsyncClient) -> None:
    """The reason is LENGTH, and the arguments are the beginning of the whole ones."""
    request = asking("What is the weather in Paris?", [tool("get_weather", WEATHER)])
    whole = await client.complete(request)
    (expected,) = calls_of(whole.message)
    request.stopping.max_tokens = whole.completion.usage.completion_tokens - 5
    response = await client.complete(request)
    (call,) = calls_of(response.message)
    assert pb.FINISH_REASON_LENGTH == response.completion.finish_reason
    assert expected.name == call.name
    assert expected.arguments.startswith(call.arguments)
    assert expected.arguments != call.arguments


async def test_tokens_stand_with_their_deltas(client: AsyncClient) -> None:
    """Every token id is told once, in order, whichever delta carries it; log probabilities go along."""
    request = asking("What is the weather in Paris?", [tool("get_weather", WEATHER)])
    request.output.token_ids = request.output.logprobs = request.output.message = True
    async with client.stream(request) as stream:
        gathered = await stream.gather()
    assert gathered.completion.usage.completion_tokens == len(gathered.token_ids) == len(gathered.logprobs)
    assert list(gathered.token_ids) == [logprob.token_id for logprob in gathered.logprobs]
    assert gathered.message == gathered.completion.message
    pieces = b"".join(logprob.piece for logprob in gathered.logprobs).decode()
    assert pieces.startswith("<tool_call>")


async def test_tools_are_counted(client: AsyncClient) -> None:
    """CountTokens sees what the model reads."""
    request = asking("What is the weather in Paris?", [tool("get_weather", WEATHER)])
    counted = (await client.count_tokens(request)).tokens
    assert counted == (await client.complete(request)).completion.usage.prompt_tokens
    del request.chat.tools[:]
    assert counted > (await client.count_tokens(request)).tokens


# Thoughts.


async def test_a_thought_has_a_budget(client: AsyncClient) -> None:
    """At its end the thought is closed and the answer follows."""
    request = asking(SUM, reasoning=pb.ReasoningOptions(enabled=True))
    free = await client.complete(request)
    budget = free.completion.usage.reasoning_tokens // 2
    assert budget > 1
    for logprobs in (False, True):
        request.chat.reasoning.budget_tokens = budget
        request.output.logprobs = logprobs
        bound = await client.complete(request)
        assert budget == bound.completion.usage.reasoning_tokens
        assert thoughts_of(free.message).startswith(thoughts_of(bound.message))
        assert text_of(bound.message).strip()
        assert "think>" not in str(bound.message)


@pytest.mark.parametrize(
    "off", [{"enabled": False}, {"budget_tokens": 0}, {"enabled": True, "budget_tokens": 0}]
)
async def test_a_thought_can_be_forbidden(client: AsyncClient, off: dict[str, Any]) -> None:
    """There is an answer without it."""
    response = await client.complete(asking(SUM, reasoning=pb.ReasoningOptions(**off)))
    assert not thoughts_of(response.message)
    assert 0 == response.completion.usage.reasoning_tokens
    assert "2 + 3 = 5." == text_of(response.message)


async def test_a_form_begins_behind_the_thought(client: AsyncClient) -> None:
    """The thought is free, the answer is not; without a thought it is the same form."""
    request = asking(SUM, reasoning=pb.ReasoningOptions(enabled=True))
    request.response_format.json_schema = COLOUR
    response = await client.complete(request)
    assert thoughts_of(response.message).strip()
    assert json.loads(text_of(response.message))["n"] in (1, 2)
    request.chat.reasoning.enabled = False
    response = await client.complete(request)
    assert not thoughts_of(response.message)
    assert json.loads(text_of(response.message))["n"] in (1, 2)


async def test_a_thought_does_not_end_what_is_owed(client: AsyncClient) -> None:
    """A model that would end its answer in the thought goes on to what was asked for."""

    async def ask(seed: int) -> pb.CompleteResponse:
        request = asking(
            "Hello",
            TOOLS,
            tool_choice=REQUIRED,
            reasoning=pb.ReasoningOptions(enabled=True, budget_tokens=60),
        )
        request.sampling.temperature = 1.5
        request.sampling.seed = seed
        request.stopping.max_tokens = 900
        return await client.complete(request)

    for response in await asyncio.gather(*map(ask, range(NUM_ANSWERS))):
        assert 0 < response.completion.usage.reasoning_tokens <= 60
        assert calls_of(response.message)
        assert not text_of(response.message).strip()


async def test_a_required_call_comes_behind_the_thought(client: AsyncClient) -> None:
    """Both are told, each as what it is."""
    request = asking(
        SUM, TOOLS, tool_choice=REQUIRED, reasoning=pb.ReasoningOptions(enabled=True, budget_tokens=20)
    )
    response = await client.complete(request)
    assert thoughts_of(response.message).strip()
    assert calls_of(response.message)
    for call in calls_of(response.message):
        assert_valid(call)


# What cannot be done.


async def test_what_the_model_cannot_do_is_refused() -> None:
    """By its name, before anything is generated."""
    plain = demo(chat_template="{{ messages[-1].content }}")
    async with running(models={"demo": plain}) as (_, client):
        capabilities = (await client.get_model("demo")).capabilities
        assert (True, False, False) == (capabilities.chat, capabilities.tools, capabilities.reasoning)
        for request, field in (
            (asking("Hi", TOOLS), "chat.tools"),
            (asking("Hi", reasoning=pb.ReasoningOptions(enabled=True)), "chat.reasoning"),
            (asking("Hi", reasoning=pb.ReasoningOptions(budget_tokens=5)), "chat.reasoning"),
        ):
            error = await refused(client, request)
            assert ("UNSUPPORTED_BY_BACKEND", [field]) == (error.reason, [v.field for v in error.violations])
        await client.complete(asking("Hi", reasoning=pb.ReasoningOptions(enabled=False)))


async def test_levels_of_effort_need_a_template_that_knows_them(client: AsyncClient) -> None:
    """The demo model's does not."""
    request = asking(SUM, reasoning=pb.ReasoningOptions(effort=pb.REASONING_EFFORT_LOW))
    error = await refused(client, request)
    assert "UNSUPPORTED_BY_BACKEND" == error.reason
    assert ["chat.reasoning.effort"] == [violation.field for violation in error.violations]


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
        {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}},
        {"type": "nonsense"},
        {"type": "object", "properties": {"x": {"type": 5}}},
    ],
)
@pytest.mark.parametrize("must", [True, False])
async def test_a_schema_that_cannot_be_enforced_is_refused(
    client: AsyncClient, parameters: dict[str, Any], must: bool
) -> None:
    """Also when the model need not call anything; and the engine goes on."""
    request = asking("Hello", [tool("t", parameters)], tool_choice=REQUIRED if must else None)
    error = await refused(client, request)
    assert "GRAMMAR_INVALID" == error.reason
    assert ["chat.tools"] == [violation.field for violation in error.violations]
    assert text_of((await client.complete(asking("Hello"))).message)


async def test_many_tools_are_bounded(client: AsyncClient) -> None:
    """Five megabytes of tools are refused in time, and the engine goes on."""
    parameters = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "x" * 900} for i in range(45)}}  # fmt: skip
    request = asking("Hello", [tool(f"tool_{number}", parameters) for number in range(120)])
    assert request.ByteSize() > 4_500_000
    error = await refused(client, request)
    assert error.reason in (
        "REQUEST_TOO_LARGE",
        "PROMPT_TOO_LARGE",
        "TEMPLATE_REJECTED",
        "CONTEXT_LENGTH_EXCEEDED",
    )
    assert text_of((await client.complete(asking("Hello"))).message)
