"""Anthropic's Messages: what is sent, what is read, what goes back as it came, and what a failure means."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import pytest

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.backends.anthropic import Anthropic, Parser
from inferwire_server.backends.provider import RemoteBackend
from inferwire_server.config import BackendSettings, ConfigError
from tests.providers.anthropic import MODEL, AnthropicWire, event
from tests.providers.asking import chat, collect
from tests.providers.server import (
    CALLS,
    CUT,
    FILTERED,
    HELLO,
    Call,
    Reply,
    Script,
    ScriptedProvider,
    Text,
    Thought,
    pieces,
    provider,
)

WIRE = AnthropicWire()
THOUGHTFUL = Script(
    (Thought("Let me "), Thought("see.", "c2ln+bmF0/dXJl="), Text("It is "), Text("42.")), reasoning_tokens=4
)
EVERY = Script((*THOUGHTFUL.pieces, *CALLS.pieces, Text(" done")), finish="tool_calls")
START = WIRE.events(HELLO)[0]
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}) + event(
    "message_stop"
)
# The beginning of every body of `chat()`.
PLAIN = {
    "model": MODEL,
    "stream": True,
    "max_tokens": 4096,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}],
}


@contextlib.asynccontextmanager
async def connected(
    options: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[ScriptedProvider, RemoteBackend]]:
    """Yields a provider that says hello, and the backend that asks it."""
    async with provider(WIRE) as server:
        settings = BackendSettings(
            type="anthropic",
            base_url=server.url,
            models=[MODEL],
            health_seconds=0,
            idle_seconds=2,
            options=options or {},
            **more,
        )
        anthropic = Anthropic("a", settings)
        try:
            yield server, anthropic.backend(MODEL)
        finally:
            await anthropic.close()


async def sent(request: pb.CompleteRequest) -> Any:
    """Returns the body that a request makes."""
    async with connected() as (server, backend):
        await collect(backend, request)
    return server.completions[0].json


def read(parts: Iterable[bytes]) -> pb.CompleteResponse:
    """Returns the answer that these bytes hold."""
    parser, gatherer = Parser(), Gatherer()
    for part in parts:
        for each in parser.feed(part):
            gatherer.add(each)
    if parser.completion is None:
        for each in parser.close():
            gatherer.add(each)
    gatherer.add(pb.StreamCompleteResponse(completion=parser.completion))
    return gatherer.response()


def conversation(*messages: tuple[Any, ...]) -> pb.CompleteRequest:
    """Returns a request with these messages, each a role and its parts."""
    request = pb.CompleteRequest()
    for role, *parts in messages:
        request.chat.messages.add(role=role, parts=parts)
    return request


def text(words: str) -> pb.Part:
    return pb.Part(text=words)


def tool_call(id: str, name: str = "f", arguments: str = "{}") -> pb.Part:
    return pb.Part(tool_call=pb.ToolCall(id=id, name=name, arguments=arguments))


def tool_result(id: str, **more: Any) -> pb.Part:
    return pb.Part(tool_result=pb.ToolResult(call_id=id, **more))


def thinking(max_tokens: int, **more: Any) -> pb.CompleteRequest:
    """Returns what a request says of thoughts and of the bound on the answer."""
    request = pb.CompleteRequest(stopping=pb.Stopping(max_tokens=max_tokens))
    request.chat.reasoning.CopyFrom(pb.ReasoningOptions(**more))
    return request


# What is read.


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("script", [HELLO, THOUGHTFUL, CALLS, CUT, FILTERED, EVERY])
async def test_an_answer_is_what_the_provider_said(script, seed):
    """Text, thoughts, calls, finish and usage; through a real connection, in pieces of any size."""
    async with connected() as (server, backend):
        server.reply = server.good(script, seed=seed)
        answer = await collect(backend, chat())
    parts = answer.message.parts
    assert script.text == "".join(part.text for part in parts)
    assert [(script.thought, b"c2ln+bmF0/dXJl=")] * bool(script.thought) == [
        (part.reasoning.text, part.reasoning.signature) for part in parts if part.HasField("reasoning")
    ]
    calls = [part.tool_call for part in parts if part.HasField("tool_call")]
    assert [(name, arguments or "{}") for name, arguments in script.calls] == [
        (call.name, call.arguments) for call in calls
    ]
    assert [piece.id for piece in script.pieces if isinstance(piece, Call)] == [call.id for call in calls]
    assert script.finish.upper() == pb.FinishReason.Name(answer.completion.finish_reason).removeprefix(
        "FINISH_REASON_"
    )
    usage = answer.completion.usage
    assert (11, 3, script.completion_tokens, script.reasoning_tokens) == (
        usage.prompt_tokens,
        usage.cached_prompt_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
    )
    assert ("a", MODEL) == (answer.started.backend, answer.started.model)


def test_any_split_gives_the_same_answer():
    """Two hundred random cuts of an answer with everything in it: one result."""
    data = b"".join(WIRE.events(EVERY))
    expected = read([data])
    for seed in range(200):
        assert expected == read(pieces(data, random.Random(seed)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("end_turn", "STOP"),
        ("stop_sequence", "STOP_STRING"),
        ("max_tokens", "LENGTH"),
        ("model_context_window_exceeded", "LENGTH"),
        ("refusal", "CONTENT_FILTER"),
        ("pause_turn", "OTHER"),
        ("something_new", "OTHER"),
    ],
)
def test_a_stop_reason_is_its_finish_reason(word, expected):
    """The provider's own word is told beside it."""
    end = event("message_delta", delta={"stop_reason": word}, usage={"output_tokens": 7})
    completion = read([START, end, event("message_stop")]).completion
    assert (f"FINISH_REASON_{expected}", word) == (
        pb.FinishReason.Name(completion.finish_reason),
        completion.raw_finish_reason,
    )


def test_a_stop_sequence_of_the_operators_own_is_told():
    """Who adds some in the body's options learns which one it was."""
    end = event(
        "message_delta",
        delta={"stop_reason": "stop_sequence", "stop_sequence": "###"},
        usage={"output_tokens": 7},
    )
    assert "###" == read([START, end, event("message_stop")]).completion.stop_string


def test_an_answer_without_its_terminal_event_is_none():
    """However many of the other events came; and the terminal event ends nothing without a stop reason."""
    events = WIRE.events(EVERY)
    for number in range(len(events)):
        with pytest.raises(errors.UpstreamTruncated):
            read(events[:number])
    with pytest.raises(errors.UpstreamTruncated):
        read([*events[:-2], events[-1]])


async def test_a_stream_that_ends_early_is_a_failure():
    """Also when the connection ends as connections do."""
    async with connected() as (server, backend):
        server.reply = Reply(media_type=WIRE.media_type, steps=WIRE.events(HELLO)[:-1])
        with pytest.raises(errors.UpstreamTruncated):
            await collect(backend, chat())


def test_what_is_not_known_says_nothing():
    """New kinds of events and of blocks, and the calls of the provider's own tools, are nobody's business here."""
    events = [
        START,
        event("something_new", index=3, delta={"partial_json": "{"}),
        event(
            "content_block_start", index=0, content_block={"type": "server_tool_use", "name": "web_search"}
        ),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"q": 1}'}),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": "a"}),
        event("content_block_delta", index=1, delta={"type": "citations_delta", "citation": {"title": "t"}}),
        event("content_block_delta", index=1, delta={"type": "text_delta", "text": "b"}),
        END,
    ]
    assert [text("ab")] == list(read(events).message.parts)


def test_a_hidden_thought_is_a_signature_without_text():
    """Whether its block is hidden, or a thought whose text is kept back; neighbours stay apart."""
    blocks = [
        {"type": "redacted_thinking", "data": "aGlk"},
        {"type": "thinking", "thinking": "", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZGVu"},
    ]
    events = [event("content_block_start", index=i, content_block=block) for i, block in enumerate(blocks)]
    thoughts = [part.reasoning for part in read([START, *events, END]).message.parts]
    assert [("", b"redacted:aGlk"), ("", b"c2ln"), ("", b"redacted:ZGVu")] == [
        (thought.text, thought.signature) for thought in thoughts
    ]


def test_counts_come_early_and_late():
    """Those of the end outrank those of the beginning; what the end does not tell stays."""
    start = event(
        "message_start",
        message={
            "usage": {
                "input_tokens": 5,
                "cache_creation_input_tokens": 20,
                "cache_read_input_tokens": 300,
                "output_tokens": 1,
            }
        },
    )
    usage = {"input_tokens": 6, "cache_read_input_tokens": None, "output_tokens": 9}
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    told = read([start, end, event("message_stop")]).completion.usage
    assert pb.Usage(prompt_tokens=326, cached_prompt_tokens=300, completion_tokens=9) == told


@pytest.mark.parametrize(
    "broken",
    [
        event("message_start", message={"usage": {"input_tokens": -1}}),
        event("message_start", message={"usage": {"input_tokens": 1 << 31}}),
        event("content_block_start", index=0),
        event("content_block_start", index=0, content_block={"type": "tool_use", "id": "c"}),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{"}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": 7}),
        b'data: ["message_stop"]\n\n',
        b"data: {\n\n",
        b'{"type": "message_stop"}\n',
    ],
)
def test_an_event_that_breaks_the_format_is_a_failure(broken):
    """Counts that are none, a call without a name or a beginning, what is no JSON, and an event that is no event."""
    with pytest.raises(errors.UpstreamProtocolError):
        read([START, broken, END])


@pytest.mark.parametrize("idle", [WIRE.keep_alive, WIRE.empty])
def test_events_that_say_nothing_are_no_answer(idle):
    """They may come for ever; the stream is given up after ten thousand in a row."""
    with pytest.raises(errors.UpstreamStalled):
        read([START, idle * 10_001, END])


# What is sent.


async def test_what_is_asked_is_what_is_sent():
    """Every field that is supported stands in the body."""
    request = conversation(
        (pb.ROLE_SYSTEM, text("Be brief. "), text("Be kind.")),
        (pb.ROLE_SYSTEM, text("Be quick.")),
        (pb.ROLE_USER, text("Look."), pb.Part(image=pb.Image(data=b"png", media_type="image/png"))),
        (
            pb.ROLE_ASSISTANT,
            pb.Part(reasoning=pb.Reasoning(text="hmm", signature=b"c2ln")),
            text("Wait."),
            tool_call("c1", arguments='{"a": 1.50}'),
            tool_call("c2", "g", ""),
        ),
        (
            pb.ROLE_TOOL,
            tool_result("c1", text="17"),
            tool_result("c2", text="No such city.", is_error=True),
        ),
    )
    request.chat.tools.add(
        name="f", description="A tool", parameters='{"type": "object", "properties": {"a": {}}}'
    )
    request.chat.tools.add(name="g")
    request.chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_AUTO
    request.chat.parallel_tool_calls = False
    request.chat.reasoning.enabled = True
    request.chat.reasoning.budget_tokens = 1024
    request.chat.reasoning.effort = pb.REASONING_EFFORT_LOW
    request.sampling.temperature = 0.7
    request.sampling.top_k = 5
    request.sampling.top_p = 0.9
    request.stopping.max_tokens = 2000
    request.response_format.json_schema = '{"type": "object", "additionalProperties": false}'
    body = await sent(request)
    assert {
        "model": MODEL,
        "stream": True,
        "max_tokens": 2000,
        "system": [
            {"type": "text", "text": "Be brief. Be kind."},
            {"type": "text", "text": "Be quick."},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look."},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "cG5n"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hmm", "signature": "c2ln"},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1.5}},
                    {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "17"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "content": "No such city.",
                        "is_error": True,
                    },
                ],
            },
        ],
        "tools": [
            {
                "name": "f",
                "description": "A tool",
                "input_schema": {"type": "object", "properties": {"a": {}}},
            },
            {"name": "g", "input_schema": {"type": "object", "properties": {}}},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {
            "effort": "low",
            "format": {
                "type": "json_schema",
                "schema": {"type": "object", "additionalProperties": False},
            },
        },
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
    } == body


async def test_what_is_not_asked_is_not_sent():
    """A value that asks for nothing is no field of the body; zero, where it says something, is."""
    request = chat()
    assert PLAIN == await sent(request)
    request.sampling.top_k = 0
    request.sampling.top_p = 1
    request.sampling.min_p = 0
    request.chat.parallel_tool_calls = True
    request.chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_NONE
    assert PLAIN == await sent(request)
    request.sampling.temperature = 0
    request.sampling.top_p = 0
    assert {**PLAIN, "temperature": 0.0, "top_p": 0.0} == await sent(request)


@pytest.mark.parametrize(
    ("choice", "is_parallel", "expected"),
    [
        (None, None, None),
        (None, True, {"type": "auto", "disable_parallel_tool_use": False}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO), None, {"type": "auto"}),
        (pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED), None, {"type": "any"}),
        (
            pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED),
            False,
            {"type": "any", "disable_parallel_tool_use": True},
        ),
        (pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE), False, {"type": "none"}),
        (pb.ToolChoice(name="f"), None, {"type": "tool", "name": "f"}),
        (
            pb.ToolChoice(name="f"),
            False,
            {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        ),
    ],
)
async def test_a_choice_of_tools_has_the_providers_words(choice, is_parallel, expected):
    """Whether several calls may come belongs to the choice there, and to no choice of none."""
    request = chat()
    request.chat.tools.add(name="f")
    if choice is not None:
        request.chat.tool_choice.CopyFrom(choice)
    if is_parallel is not None:
        request.chat.parallel_tool_calls = is_parallel
    assert expected == (await sent(request)).get("tool_choice")


ADAPTIVE = {"adaptive_thinking": True, "thinking_tokens": 2000}


@pytest.mark.parametrize(
    ("options", "reasoning", "max_tokens", "expected"),
    [
        ({}, pb.ReasoningOptions(), None, (None, 4096)),
        ({"max_tokens": 99}, pb.ReasoningOptions(), None, (None, 99)),
        ({}, pb.ReasoningOptions(), 7, (None, 7)),
        ({}, pb.ReasoningOptions(enabled=False), None, ({"type": "disabled"}, 4096)),
        ({}, pb.ReasoningOptions(enabled=False, budget_tokens=2000), None, ({"type": "disabled"}, 4096)),
        ({}, pb.ReasoningOptions(budget_tokens=0), 7, ({"type": "disabled"}, 7)),
        ({}, pb.ReasoningOptions(enabled=True, budget_tokens=0), None, ({"type": "disabled"}, 4096)),
        ({}, pb.ReasoningOptions(enabled=True), None, ({"type": "enabled", "budget_tokens": 4096}, 8192)),
        (
            {"thinking_tokens": 2000, "max_tokens": 100},
            pb.ReasoningOptions(enabled=True),
            None,
            ({"type": "enabled", "budget_tokens": 2000}, 2100),
        ),
        (
            {},
            pb.ReasoningOptions(budget_tokens=1024),
            None,
            ({"type": "enabled", "budget_tokens": 1024}, 5120),
        ),
        (
            {},
            pb.ReasoningOptions(enabled=True, budget_tokens=1024),
            1025,
            ({"type": "enabled", "budget_tokens": 1024}, 1025),
        ),
        (
            ADAPTIVE,
            pb.ReasoningOptions(enabled=True),
            None,
            ({"type": "adaptive", "display": "summarized"}, 6096),
        ),
        (
            ADAPTIVE,
            pb.ReasoningOptions(enabled=True),
            9,
            ({"type": "adaptive", "display": "summarized"}, 9),
        ),
        (ADAPTIVE, pb.ReasoningOptions(budget_tokens=0), None, ({"type": "disabled"}, 4096)),
    ],
)
async def test_thoughts_and_the_bound_on_the_answer(options, reasoning, max_tokens, expected):
    """The API wants a bound always, and one above the budget: where the request sets none, the budget comes on top.

    `started` tells the bound in force.
    """
    request = chat()
    request.chat.reasoning.CopyFrom(reasoning)
    if max_tokens is not None:
        request.stopping.max_tokens = max_tokens
    async with connected(options) as (server, backend):
        answer = await collect(backend, request)
    body = server.completions[0].json
    assert expected == (body.get("thinking"), body["max_tokens"])
    assert expected[1] == answer.started.max_tokens


async def test_neighbours_of_one_role_are_one_message():
    """So the results of a turn's calls stand together, before whatever the person adds."""
    request = conversation(
        (pb.ROLE_USER, text("a")),
        (pb.ROLE_USER, text("b"), text("c")),
        (pb.ROLE_ASSISTANT, tool_call("c1"), tool_call("c2")),
        (pb.ROLE_TOOL, tool_result("c1")),
        (
            pb.ROLE_TOOL,
            tool_result("c2", text="See.", images=[pb.Image(data=b"gif", media_type="image/gif")]),
        ),
        (pb.ROLE_USER, text("And?")),
    )
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "Z2lm"}}
    assert [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
                {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "See."}, picture],
                },
                {"type": "text", "text": "And?"},
            ],
        },
    ] == (await sent(request))["messages"]


async def test_what_the_api_refuses_of_a_history_is_left_out():
    """Thoughts that are not its own, and whitespace alone; a turn of nothing else is no turn."""
    request = conversation(
        (pb.ROLE_USER, text("a")),
        (pb.ROLE_ASSISTANT, pb.Part(reasoning=pb.Reasoning(text="unsigned"))),
        (pb.ROLE_USER, text("b"), text("")),
        (
            pb.ROLE_ASSISTANT,
            pb.Part(reasoning=pb.Reasoning(text="another's", signature=b"\xff\x00")),
            text("\n\n"),
            tool_call("c1"),
        ),
        (pb.ROLE_TOOL, tool_result("c1", text="\n")),
    )
    assert [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "\n"}]},
    ] == (await sent(request))["messages"]


async def test_ids_of_other_providers_are_made_fit():
    """A call and its result still belong together; different ids stay different; the provider's own stay as they are."""
    ids = ["functions.f:0", "functions.f:1", "", "toolu_01A-b"]
    request = conversation(
        (pb.ROLE_USER, text("a")),
        (pb.ROLE_ASSISTANT, *map(tool_call, ids)),
        (pb.ROLE_TOOL, *map(tool_result, ids)),
    )
    _, calls, results = (await sent(request))["messages"]
    made = [block["id"] for block in calls["content"]]
    assert made == [block["tool_use_id"] for block in results["content"]]
    assert len(set(ids)) == len(set(made))
    assert all(id and set(id) <= set("abcdefghijklmnopqrstuvwxyzA0123456789_-") for id in made)
    assert ids[3] == made[3]


async def test_an_answer_goes_back_as_it_came():
    """The final message, appended to the history as it stands, is the provider's own content again: thoughts, signatures,
    hidden thoughts, text and calls, in their order.
    """
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln+bmF0/dXJl="},
        {"type": "redacted_thinking", "data": "aGlkZGVu"},
        {"type": "text", "text": "I look. 🙂"},
        {"type": "thinking", "thinking": "", "signature": "bGF0ZXI="},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln", "n": [1, 2.5]}},
        {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {}},
    ]
    events = [START]
    for index, block in enumerate(blocks):
        given = {"input": {}} if block["type"] == "tool_use" else {}
        events.append(event("content_block_start", index=index, content_block={**block, **given}))
        if block.get("input"):
            arguments = msgspec.json.encode(block["input"]).decode()
            for half in (arguments[:9], arguments[9:]):
                delta = {"type": "input_json_delta", "partial_json": half}
                events.append(event("content_block_delta", index=index, delta=delta))
        events.append(event("content_block_stop", index=index))
    events.append(event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 7}))
    async with connected() as (server, backend):
        data = b"".join([*events, event("message_stop")])
        server.reply = Reply(media_type=WIRE.media_type, steps=pieces(data, random.Random(7)))
        request = chat()
        request.output.message = True
        message = (await collect(backend, request)).completion.message
        assert pb.ROLE_ASSISTANT == message.role
        request.chat.messages.append(message)
        request.chat.messages.add(role=pb.ROLE_TOOL, parts=[tool_result("toolu_1"), tool_result("toolu_2")])
        await collect(backend, request)
    assert {"role": "assistant", "content": blocks} == server.completions[1].json["messages"][1]


@pytest.mark.parametrize(
    ("options", "set_it", "expected"),
    [
        ({}, lambda r: setattr(r.sampling, "temperature", 1.5), "sampling.temperature"),
        ({}, lambda r: setattr(r.sampling, "seed", 1), "sampling.seed"),
        ({}, lambda r: setattr(r.sampling, "min_p", 0.1), "sampling.min_p"),
        ({}, lambda r: setattr(r.output, "logprobs", True), "output.logprobs"),
        ({}, lambda r: r.response_format.json_object.SetInParent(), "response_format.json_object"),
        ({}, lambda r: setattr(r, "prompt", "Once"), "prompt"),
        (
            {},
            lambda r: r.chat.messages[0].parts.add(image=pb.Image(data=b"x", media_type="image/tiff")),
            "chat.messages[0].parts[1].image.media_type",
        ),
        (
            {},
            lambda r: setattr(r.chat.reasoning, "effort", pb.REASONING_EFFORT_MINIMAL),
            "chat.reasoning.effort",
        ),
        (
            {},
            lambda r: setattr(r.chat.reasoning, "budget_tokens", 1023),
            "chat.reasoning.budget_tokens",
        ),
        (
            ADAPTIVE,
            lambda r: setattr(r.chat.reasoning, "budget_tokens", 5000),
            "chat.reasoning.budget_tokens",
        ),
        (
            {},
            lambda r: r.MergeFrom(thinking(max_tokens=2000, budget_tokens=2000)),
            "stopping.max_tokens",
        ),
        (
            {},
            lambda r: r.MergeFrom(thinking(max_tokens=4096, enabled=True)),
            "stopping.max_tokens",
        ),
        (
            {"refuses": ["response_format.json_schema"]},
            lambda r: setattr(r.response_format, "json_schema", "{}"),
            "response_format.json_schema",
        ),
    ],
)
async def test_what_the_api_cannot_is_refused_before_the_call(options, set_it, expected):
    """With the field's path; nothing reaches the provider."""
    async with connected(options) as (server, backend):
        request = chat()
        set_it(request)
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await collect(backend, request)
    assert [expected] == [field for field, _ in raised.value.violations]
    assert "a" == raised.value.metadata["backend"]
    assert [] == server.requests


async def test_every_wrong_value_is_told_at_once():
    """So that one answer is enough to mend the request."""
    async with connected() as (_, backend):
        request = chat()
        request.sampling.temperature = 2
        request.chat.reasoning.effort = pb.REASONING_EFFORT_MINIMAL
        request.chat.reasoning.budget_tokens = 5
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await collect(backend, request)
    assert ["sampling.temperature", "chat.reasoning.effort", "chat.reasoning.budget_tokens"] == [
        field for field, _ in raised.value.violations
    ]


async def test_stop_texts_end_the_answer_here():
    """The API cuts them off, so the gateway looks itself, and keeps them where they are to stay."""
    async with connected() as (server, backend):
        for include, expected in ((False, "Hello, wö"), (True, "Hello, wörld")):
            request = chat()
            request.stopping.stop.append("rld")
            request.stopping.include_stop = include
            answer = await collect(backend, request)
            assert expected == answer.message.parts[0].text
            assert ("rld", pb.FINISH_REASON_STOP_STRING) == (
                answer.completion.stop_string,
                answer.completion.finish_reason,
            )
        assert "stop_sequences" not in server.completions[0].json


async def test_an_operator_sets_the_version_and_adds_to_the_body():
    """What is added gives way to what the request says."""
    options = {"version": "2030-01-01", "body": {"service_tier": "auto", "max_tokens": 1}}
    async with connected(options) as (server, backend):
        await collect(backend, chat())
    assert {**PLAIN, "service_tier": "auto"} == server.completions[0].json
    assert "2030-01-01" == server.completions[0].headers["anthropic-version"]


@pytest.mark.parametrize(
    "options", [{"thinking_token": 2000}, {"thinking_tokens": 1023}, {"max_tokens": 0}, {"version": 1}]
)
def test_an_option_that_cannot_be_is_told(options):
    """When the server starts, with its place in the configuration."""
    with pytest.raises(ConfigError, match=r"backends\.a\.options"):
        Anthropic("a", BackendSettings(type="anthropic", options=options))


# What fails.


@pytest.mark.parametrize(
    ("type", "status", "expected"),
    [
        ("invalid_request_error", 400, errors.UpstreamRejected),
        ("authentication_error", 401, errors.UpstreamAuth),
        ("permission_error", 403, errors.UpstreamAuth),
        ("not_found_error", 404, errors.UpstreamModelNotFound),
        ("request_too_large", 413, errors.UpstreamRejected),
        ("rate_limit_error", 429, errors.UpstreamRateLimited),
        ("api_error", 500, errors.UpstreamProtocolError),
        ("timeout_error", 504, errors.UpstreamUnavailable),
        ("overloaded_error", 529, errors.UpstreamUnavailable),
    ],
)
async def test_a_failure_is_its_reason(type, status, expected):
    """In a status and in a stream alike; the provider's words stay here, but for a code of the known list."""
    async with connected() as (server, backend):
        server.reply = server.failed(status, type, retry_after="2")
        with pytest.raises(expected) as by_status:
            await collect(backend, chat())
        in_stream = b"".join(WIRE.events(HELLO)[:-1]) + WIRE.error_event(type)
        server.reply = Reply(media_type=WIRE.media_type, steps=[in_stream])
        with pytest.raises(expected) as by_event:
            await collect(backend, chat())
    for raised in (by_status.value, by_event.value):
        assert "secret" not in raised.message + str(raised.metadata) + raised.detail
        code = type if expected is errors.UpstreamRejected else None
        assert code == raised.metadata.get("upstreamCode")
    if expected is errors.UpstreamRateLimited:
        assert 2 == by_status.value.retry_delay_seconds


@pytest.mark.parametrize("form", [b"event: error\ndata: %s\n\n", b"data: %s\n\n", b"%s\n", b"%s"])
def test_an_error_in_a_stream_is_an_error(form):
    """As an event with its name or without, as a bare line, and as a last line without its end."""
    with pytest.raises(errors.UpstreamUnavailable):
        read([START + form % WIRE.error(529)])


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"error": "secret"}', b'{"error": null}'])
async def test_a_failure_that_cannot_be_read_is_its_status(body):
    """Whatever stands between may answer in its own way."""
    async with connected() as (server, backend):
        server.reply = Reply(529, steps=[body])
        with pytest.raises(errors.UpstreamUnavailable):
            await collect(backend, chat())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "prompt is too long: 208310 tokens > 200000 maximum",
            {"promptTokens": "208310", "contextLength": "200000"},
        ),
        (
            "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease one",
            {"promptTokens": "178959", "contextLength": "200000"},
        ),
        ("Prompt is too long", {}),
    ],
)
async def test_a_prompt_that_is_too_long_is_told_as_such(message, expected):
    """With the counts where the provider gives them."""
    async with connected() as (server, backend):
        server.reply = Reply(400, steps=[WIRE.error(400, message=message)])
        with pytest.raises(errors.ContextLengthExceeded) as raised:
            await collect(backend, chat())
    assert {**expected, "model": MODEL} == raised.value.metadata


async def test_what_the_filter_refuses_is_told_as_such():
    """The provider has no code of its own for it."""
    async with connected() as (server, backend):
        message = "Output blocked by content filtering policy"
        server.reply = Reply(400, steps=[WIRE.error(400, message=message)])
        with pytest.raises(errors.UpstreamRejected) as raised:
            await collect(backend, chat())
    assert "content_filter" == raised.value.metadata["upstreamCode"]


async def test_the_key_goes_into_its_header_and_nowhere_else(monkeypatch):
    """Not into the path, the body, a repr or an error; the check carries it too."""
    monkeypatch.setenv("TEST_KEY", "sk-ant-canary")
    async with connected(api_key_env="TEST_KEY") as (server, backend):
        await collect(backend, chat())
        await backend.provider.check()
        for request, path in zip(server.requests, ("/v1/messages", "/v1/models"), strict=True):
            assert (path, "sk-ant-canary", "2023-06-01") == (
                request.path,
                request.headers["x-api-key"],
                request.headers["anthropic-version"],
            )
            assert "canary" not in request.path + request.body.decode()
            assert "authorization" not in request.headers
        server.reply = server.failed(401)
        with pytest.raises(errors.UpstreamAuth) as raised:
            await collect(backend, chat())
        told = [
            repr(backend),
            repr(backend.provider),
            repr(backend.provider.http),
            repr(backend.provider._key),
            repr(raised.value),
            str(vars(raised.value)),
        ]
        assert not any("canary" in text or "secret" in text for text in told)
