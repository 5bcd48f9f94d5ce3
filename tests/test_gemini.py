"""Gemini's format: what is sent, what is read, and what a failure means."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.backends.answer import MAX_IDLE_EVENTS
from inferwire_server.backends.base import as_message
from inferwire_server.backends.gemini import Gemini, Parser
from inferwire_server.backends.provider import RemoteBackend
from inferwire_server.config import BackendSettings
from tests.providers.asking import chat, collect, new_call
from tests.providers.gemini import FINISHES, MODEL, GeminiWire, chunk, event
from tests.providers.server import (
    CALLS,
    CUT,
    FILTERED,
    HELLO,
    THOUGHTFUL,
    Call,
    Close,
    Reply,
    Script,
    ScriptedProvider,
    Step,
    Text,
    Thought,
    pieces,
    provider,
)

WIRE = GeminiWire()
OBJECT = {"type": "object", "properties": {}}


@contextlib.asynccontextmanager
async def asking(model: str = MODEL, **more: Any) -> AsyncIterator[tuple[ScriptedProvider, RemoteBackend]]:
    """Yields a provider, and a backend that asks it."""
    async with provider(WIRE) as server:
        settings = BackendSettings(
            type="gemini", base_url=server.url, models=[model], health_seconds=0, idle_seconds=2, **more
        )
        adapter = Gemini("g", settings)
        try:
            yield server, adapter.backend(model)
        finally:
            await adapter.close()


def sending(*chunks: object, end: Sequence[Step] = ()) -> Reply:
    """Returns a reply of these chunks."""
    return Reply(media_type=WIRE.media_type, steps=[*map(event, chunks), *end])


def read(*parts: bytes) -> pb.CompleteResponse:
    """Returns the answer that the parts of a body are."""
    parser, gatherer = Parser(), Gatherer()
    for part in parts:
        for delta in parser.feed(part):
            gatherer.add(delta)
    for delta in parser.close():
        gatherer.add(delta)
    gatherer.add(pb.StreamCompleteResponse(completion=parser.completion))
    return gatherer.response()


def read_chunks(*chunks: object) -> pb.CompleteResponse:
    """Returns the answer that these chunks are."""
    return read(*map(event, chunks))


STOP = chunk(finish="STOP")


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("script", [HELLO, THOUGHTFUL, CALLS, CUT, FILTERED])
async def test_an_answer_is_what_the_provider_said(script, seed):
    """Text, thoughts, calls, finish and usage; through a real connection, in pieces of any size."""
    async with asking() as (server, it):
        server.reply = server.good(script, seed=seed)
        answer = await collect(it, chat())
    parts = answer.message.parts
    assert script.text == "".join(part.text for part in parts)
    assert script.thought == "".join(part.reasoning.text for part in parts)
    calls = [part.tool_call for part in parts if part.HasField("tool_call")]
    assert [(name, arguments or "{}") for name, arguments in script.calls] == [
        (call.name, call.arguments) for call in calls
    ]
    assert [piece.id for piece in script.pieces if isinstance(piece, Call)] == [call.id for call in calls]
    assert script.finish.upper() == pb.FinishReason.Name(answer.completion.finish_reason).removeprefix(
        "FINISH_REASON_"
    )
    assert FINISHES[script.finish] == answer.completion.raw_finish_reason
    usage = answer.completion.usage
    assert (11, 3, script.completion_tokens, script.reasoning_tokens) == (
        usage.prompt_tokens,
        usage.cached_prompt_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
    )
    assert ("g", MODEL) == (answer.started.backend, answer.started.model)


def test_any_split_gives_the_same_answer():
    """Two hundred random cuts of an answer with everything in it: one result."""
    script = Script(
        (*THOUGHTFUL.pieces, Thought("And", "signed"), *CALLS.pieces, Text(" done")), finish="tool_calls"
    )
    data = b"".join(WIRE.events(script))
    expected = read(data)
    for seed in range(200):
        assert expected == read(*pieces(data, random.Random(seed)))


EVERYTHING = pb.CompleteRequest()
EVERYTHING.chat.messages.add(role=pb.ROLE_SYSTEM).parts.add(text="Be brief.")
EVERYTHING.chat.messages.add(role=pb.ROLE_SYSTEM).parts.add(text="Be kind.")
EVERYTHING.chat.messages.add(role=pb.ROLE_USER).parts.add(text="Look.")
EVERYTHING.chat.messages[2].parts.add(image=pb.Image(data=b"heic", media_type="image/heic"))
EVERYTHING.chat.tools.add(
    name="f", description="A tool", parameters='{"type": "object", "properties": {"a": {}}}'
)
EVERYTHING.chat.tools.add(name="g")
EVERYTHING.chat.tool_choice.name = "f"
EVERYTHING.chat.reasoning.budget_tokens = 512
EVERYTHING.sampling.temperature = 0.7
EVERYTHING.sampling.top_p = 0.9
EVERYTHING.sampling.top_k = 20
EVERYTHING.sampling.seed = 0
EVERYTHING.sampling.frequency_penalty = 0.5
EVERYTHING.sampling.presence_penalty = -0.5
EVERYTHING.sampling.repetition_penalty = 1
EVERYTHING.stopping.max_tokens = 9
EVERYTHING.stopping.stop.append("never said")
EVERYTHING.output.logprobs = True
EVERYTHING.output.top_logprobs = 2
EVERYTHING.response_format.json_schema = '{"type": "object"}'


async def test_what_is_asked_is_what_is_sent():
    """Every field that is supported stands in the body; zero is said as zero, and stop texts stay with the gateway."""
    async with asking() as (server, it):
        await collect(it, EVERYTHING)
    assert f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse" == server.completions[0].path
    assert {
        "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Look."},
                    {"inlineData": {"mimeType": "image/heic", "data": "aGVpYw=="}},
                ],
            }
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "f",
                        "description": "A tool",
                        "parametersJsonSchema": {"type": "object", "properties": {"a": {}}},
                    },
                    {"name": "g", "parametersJsonSchema": OBJECT},
                ]
            }
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "temperature": 0.7,
            "topP": 0.9,
            "topK": 20,
            "seed": 0,
            "frequencyPenalty": 0.5,
            "presencePenalty": -0.5,
            "maxOutputTokens": 9,
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object"},
            "responseLogprobs": True,
            "logprobs": 2,
            "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 512},
        },
    } == server.completions[0].json


def _mode(mode: pb.ToolChoiceMode) -> Callable[[pb.CompleteRequest], None]:
    def set_it(request: pb.CompleteRequest) -> None:
        request.chat.tools.add(name="f")
        request.chat.tool_choice.mode = mode

    return set_it


def _tools(mode: str) -> dict[str, Any]:
    return {
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": OBJECT}]}],
        "toolConfig": {"functionCallingConfig": {"mode": mode}},
    }


def _reasoning(**options: Any) -> Callable[[pb.CompleteRequest], None]:
    return lambda request: request.chat.reasoning.CopyFrom(pb.ReasoningOptions(**options))


def _config(**config: object) -> dict[str, Any]:
    return {"generationConfig": config}


@pytest.mark.parametrize(
    ("set_it", "expected"),
    [
        (lambda r: None, {}),
        (lambda r: setattr(r.sampling, "top_k", 0), {}),
        (lambda r: setattr(r.chat.tool_choice, "mode", pb.TOOL_CHOICE_MODE_NONE), {}),
        (lambda r: r.chat.tools.add(name="f"), {"tools": _tools("")["tools"]}),
        (_mode(pb.TOOL_CHOICE_MODE_AUTO), _tools("AUTO")),
        (_mode(pb.TOOL_CHOICE_MODE_NONE), _tools("NONE")),
        (_mode(pb.TOOL_CHOICE_MODE_REQUIRED), _tools("ANY")),
        (
            lambda r: r.response_format.json_object.SetInParent(),
            _config(responseMimeType="application/json"),
        ),
        (lambda r: setattr(r.output, "logprobs", True), _config(responseLogprobs=True)),
        (_reasoning(), {}),
        (_reasoning(enabled=True), _config(thinkingConfig={"includeThoughts": True})),
        (_reasoning(enabled=False), _config(thinkingConfig={"thinkingBudget": 0})),
        (_reasoning(budget_tokens=0), _config(thinkingConfig={"thinkingBudget": 0})),
        (
            _reasoning(enabled=True, budget_tokens=64),
            _config(thinkingConfig={"includeThoughts": True, "thinkingBudget": 64}),
        ),
        *(
            (
                _reasoning(effort=getattr(pb, f"REASONING_EFFORT_{level}")),
                _config(thinkingConfig={"includeThoughts": True, "thinkingLevel": level}),
            )
            for level in ("MINIMAL", "LOW", "MEDIUM", "HIGH")
        ),
    ],
)
async def test_a_wish_has_its_own_words(set_it, expected):
    """And what is not wished for is not sent at all: models without thoughts refuse any wish that concerns them."""
    async with asking() as (server, it):
        request = chat("Hello?")
        set_it(request)
        await collect(it, request)
    contents = [{"role": "user", "parts": [{"text": "Hello?"}]}]
    assert {"contents": contents, **expected} == server.completions[0].json


async def test_a_models_name_is_quoted():
    """It cannot name another method or another host's path."""
    async with asking("a/b:c?d e") as (server, it):
        await collect(it, chat())
    assert "/v1beta/models/a%2Fb%3Ac%3Fd%20e:streamGenerateContent?alt=sse" == server.completions[0].path


async def test_the_operators_query_does_not_replace_ours():
    """Without `alt=sse` the answer would be no stream of events."""
    async with asking(query={"quotaUser": "me"}) as (server, it):
        await collect(it, chat())
    assert {"alt=sse", "quotaUser=me"} == set(server.completions[0].path.partition("?")[2].split("&"))


async def test_an_answer_goes_back_as_it_came():
    """Signatures byte for byte at their own parts, arguments as they were written, results by the id of their call."""
    signed = {"text": "Let me see.", "thought": True, "thoughtSignature": "/+8B"}
    arguments = msgspec.Raw(b'{"city": "K\xc3\xb6ln", "n": 1.0, "id": 12345678901234567890}')
    function = {"id": "c1", "name": "weather", "args": arguments}
    call: dict[str, Any] = {"functionCall": function, "thoughtSignature": "AAEC"}
    second = {"functionCall": {"id": "c2", "name": "time", "args": {}}}
    async with asking() as (server, it):
        server.reply = sending(
            chunk(signed),
            chunk({"text": "I will "}),
            chunk({"text": "look."}),
            chunk({"text": "", "thoughtSignature": "c2lnbmVk"}),
            chunk(call, second),
            STOP,
        )
        request = chat()
        request.output.message = True
        events = [as_message(each) async for each in it.stream(request, new_call())]
        message = events[-1].completion.message
        assert [b"\xff\xef\x01", b"signed"] == [
            part.reasoning.signature for part in message.parts if part.HasField("reasoning")
        ]
        follow = chat()
        follow.chat.messages.append(message)
        for call_id, result in (("c2", {"text": "noon"}), ("c1", {"text": "no such city", "is_error": True})):
            turn = follow.chat.messages.add(role=pb.ROLE_TOOL)
            turn.parts.add(tool_result=pb.ToolResult(call_id=call_id, **result))
        follow.chat.messages.add(role=pb.ROLE_USER).parts.add(text="So?")
        await collect(it, follow)
        sent = server.completions[1]
    assert [
        {"role": "user", "parts": [{"text": "Hello?"}]},
        {
            "role": "model",
            "parts": [
                signed,
                {"text": "I will look."},
                {"text": "", "thoughtSignature": "c2lnbmVk"},
                {**call, "functionCall": {**function, "args": msgspec.json.decode(arguments)}},
                second,
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c2", "name": "time", "response": {"result": "noon"}}},
                {"functionResponse": {"id": "c1", "name": "weather", "response": {"error": "no such city"}}},
            ],
        },
        {"role": "user", "parts": [{"text": "So?"}]},
    ] == sent.json["contents"]
    assert bytes(arguments) in sent.body


async def test_results_of_calls_without_ids_are_told_apart_by_their_order():
    """An id may come again in a later turn, and may be missing: the call that is meant is one of the turn before."""
    request = chat()
    for names in (("f", "g"), ("h",)):
        turn = request.chat.messages.add(role=pb.ROLE_ASSISTANT)
        results = request.chat.messages.add(role=pb.ROLE_TOOL)
        for name in names:
            turn.parts.add(tool_call=pb.ToolCall(name=name, arguments=""))
            results.parts.add(tool_result=pb.ToolResult(text=name))
    async with asking() as (server, it):
        await collect(it, request)
        contents = server.completions[0].json["contents"]
    parts = [part for content in contents[1:] for part in content["parts"]]
    assert [{"functionCall": {"name": name, "args": {}}} for name in ("f", "g", "h")] == [
        part for part in parts if "functionCall" in part
    ]
    assert [
        {"functionResponse": {"name": name, "response": {"result": name}}} for name in ("f", "g", "h")
    ] == [part for part in parts if "functionResponse" in part]


async def test_what_the_service_cannot_is_refused_before_the_call():
    """With the field's path; nothing reaches the provider."""
    request = chat()
    request.chat.parallel_tool_calls = True
    request.sampling.min_p = 0.1
    request.sampling.logit_bias[3] = 1
    request.response_format.regex = "a"
    request.chat.messages[0].parts.add(image=pb.Image(data=b"x", media_type="image/gif"))
    request.chat.messages.add(role=pb.ROLE_ASSISTANT).parts.add(tool_call=pb.ToolCall(id="c", name="f"))
    result = pb.ToolResult(call_id="c", images=[pb.Image(data=b"x", media_type="image/png")])
    request.chat.messages.add(role=pb.ROLE_TOOL).parts.add(tool_result=result)
    async with asking() as (server, it):
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await collect(it, request)
        assert {
            "chat.parallel_tool_calls",
            "sampling.min_p",
            "sampling.logit_bias",
            "response_format.regex",
            "chat.messages[0].parts[1].image.media_type",
            "chat.messages[2].parts[0].tool_result.images[0]",
        } == {field for field, _ in raised.value.violations}
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await collect(it, pb.CompleteRequest(prompt="raw"))
        assert ["prompt"] == [field for field, _ in raised.value.violations]
        assert [] == server.requests


@pytest.mark.parametrize(
    ("set_it", "field"),
    [
        (lambda r: setattr(r.sampling, "seed", 1 << 31), "sampling.seed"),
        (lambda r: setattr(r.stopping, "max_tokens", 0), "stopping.max_tokens"),
        (_reasoning(effort=pb.REASONING_EFFORT_LOW, budget_tokens=9), "chat.reasoning.effort"),
        (_reasoning(effort=pb.REASONING_EFFORT_LOW, enabled=False), "chat.reasoning.effort"),
    ],
)
async def test_a_value_that_cannot_be_said_is_refused(set_it, field):
    """Neither cut to what can be said nor left out."""
    async with asking() as (server, it):
        request = chat()
        set_it(request)
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await collect(it, request)
        assert [field] == [path for path, _ in raised.value.violations]
        assert [] == server.requests


async def test_a_body_without_a_finish_reason_is_no_answer():
    """However cleanly it ends."""
    async with asking() as (server, it):
        for reply in (
            sending(),
            sending(chunk({"text": "Hel"})),
            sending(chunk({"text": "Hel"}, finish="FINISH_REASON_UNSPECIFIED")),
            sending({"promptFeedback": {}, "usageMetadata": {"promptTokenCount": 1}}),
        ):
            server.reply = reply
            with pytest.raises(errors.UpstreamTruncated):
                await collect(it, chat())


async def test_a_body_that_is_cut_after_the_finish_reason_is_no_answer():
    """More may have been on its way: only the body's own end tells that nothing was."""
    async with asking() as (server, it):
        server.reply = sending(chunk({"text": "Hel"}, finish="STOP"), end=[Close()])
        with pytest.raises(errors.UpstreamTruncated):
            await collect(it, chat())


async def test_what_comes_after_a_finish_reason_belongs_to_the_answer():
    """Some models put one on every chunk; the last one counts, and so does the last usage."""
    async with asking() as (server, it):
        server.reply = sending(
            {**chunk({"text": "Hel"}, finish="STOP"), "usageMetadata": {"candidatesTokenCount": 1}},
            chunk({"text": "lo"}, finish="MAX_TOKENS"),
            {"usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 2, "thoughtsTokenCount": 3}},
        )
        answer = await collect(it, chat())
    assert "Hello" == answer.message.parts[0].text
    completion = answer.completion
    assert (pb.FINISH_REASON_LENGTH, "MAX_TOKENS") == (completion.finish_reason, completion.raw_finish_reason)
    assert pb.Usage(prompt_tokens=4, completion_tokens=5, reasoning_tokens=3) == completion.usage


async def test_a_blocked_prompt_is_filtered():
    """There is no candidate at all, only the reason."""
    async with asking() as (server, it):
        server.reply = sending(
            {"promptFeedback": {"blockReason": "BLOCKLIST"}, "usageMetadata": {"promptTokenCount": 4}}
        )
        answer = await collect(it, chat())
    assert [] == list(answer.message.parts)
    assert (pb.FINISH_REASON_CONTENT_FILTER, "BLOCKLIST", 4) == (
        answer.completion.finish_reason,
        answer.completion.raw_finish_reason,
        answer.completion.usage.prompt_tokens,
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("STOP", pb.FINISH_REASON_STOP),
        ("MAX_TOKENS", pb.FINISH_REASON_LENGTH),
        ("SAFETY", pb.FINISH_REASON_CONTENT_FILTER),
        ("RECITATION", pb.FINISH_REASON_CONTENT_FILTER),
        ("BLOCKLIST", pb.FINISH_REASON_CONTENT_FILTER),
        ("PROHIBITED_CONTENT", pb.FINISH_REASON_CONTENT_FILTER),
        ("SPII", pb.FINISH_REASON_CONTENT_FILTER),
        ("IMAGE_SAFETY", pb.FINISH_REASON_CONTENT_FILTER),
        ("LANGUAGE", pb.FINISH_REASON_CONTENT_FILTER),
        ("MALFORMED_FUNCTION_CALL", pb.FINISH_REASON_OTHER),
        ("OTHER", pb.FINISH_REASON_OTHER),
        ("A_WORD_OF_TOMORROW", pb.FINISH_REASON_OTHER),
    ],
)
def test_a_finish_reason_is_ours(word, expected):
    """A word that is not known is OTHER; the word itself is told."""
    completion = read_chunks(chunk({"text": "x"}, finish=word)).completion
    assert (expected, word) == (completion.finish_reason, completion.raw_finish_reason)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (b'{"functionCall": {"name": "f"}}', "{}"),
        (b'{"functionCall": {"name": "f", "args": null, "id": ""}}', "{}"),
        (b'{"functionCall": {"name": "f", "args" :  { "a" : [1.0, {}] } }}', '{ "a" : [1.0, {}] }'),
    ],
)
def test_a_call_has_the_arguments_that_were_written(part, expected):
    """One call for each part, with an id of ours where there is none; a stop after it is TOOL_CALLS."""
    data = b'data: {"candidates": [{"content": {"parts": [%s, %s]}}]}\n\n' % (part, part)
    answer = read(data, event(STOP))
    assert [("f", expected)] * 2 == [
        (each.tool_call.name, each.tool_call.arguments) for each in answer.message.parts
    ]
    assert 2 == len({each.tool_call.id for each in answer.message.parts} - {""})
    assert pb.FINISH_REASON_TOOL_CALLS == answer.completion.finish_reason


@pytest.mark.parametrize(
    "part",
    [
        b'{"functionCall": {"args": {}}}',
        b'{"functionCall": {"name": "f", "args": [1]}}',
        b'{"functionCall": {"name": "f", "args": {"a": "\xff"}}}',
        b'{"text": "x", "thoughtSignature": "not base64!"}',
        b'{"text": 1}',
    ],
)
def test_a_part_that_breaks_the_format_is_an_error(part):
    """A call without a name or with arguments that are no object, and what is no text or signature."""
    with pytest.raises(errors.UpstreamProtocolError):
        read(b'data: {"candidates": [{"content": {"parts": [%s]}}]}\n\n' % part, event(STOP))


def test_nulls_and_other_candidates_say_nothing():
    """Neither null, nor a field that is not known, nor a second candidate that nobody asked for."""
    nulls = {
        "candidates": [
            {"content": None, "finishReason": None, "logprobsResult": None},
            {"index": 0, "content": {"parts": None}},
            {"content": {"parts": [{"text": None, "thought": None, "thoughtSignature": None}]}},
            {"content": {"parts": [{"executableCode": {"code": "1"}}]}, "safetyRatings": []},
            {"index": 1, "content": {"parts": [{"text": "other"}]}, "finishReason": "SAFETY"},
        ],
        "promptFeedback": None,
        "usageMetadata": None,
        "error": None,
    }
    answer = read_chunks(nulls, chunk({"text": "x"}), STOP, nulls)
    assert [pb.Part(text="x")] == list(answer.message.parts)
    assert pb.FINISH_REASON_STOP == answer.completion.finish_reason


@pytest.mark.parametrize("empty", [chunk(), chunk({"text": ""}), STOP, {"usageMetadata": {}}])
def test_chunks_that_say_nothing_are_no_answer_for_ever(empty):
    """Neither a finish reason nor a usage that is told again and again."""
    with pytest.raises(errors.UpstreamStalled):
        read(event(empty) * MAX_IDLE_EVENTS, event(empty))


def test_the_signature_of_a_text_comes_after_it():
    """A text has no place for one. What follows begins a new part, so that nothing is merged with what was signed."""
    answer = read_chunks(
        chunk({"text": "a", "thoughtSignature": "YQ=="}, {"text": "b"}), chunk({"text": "c"}), STOP
    )
    assert [pb.Part(text="a"), pb.Part(reasoning=pb.Reasoning(signature=b"a")), pb.Part(text="bc")] == list(
        answer.message.parts
    )


def test_log_probabilities_come_with_their_text():
    """Those of a chunk without text wait for the next; a probability of zero is written as text."""
    first = {
        "chosenCandidates": [{"token": "H", "tokenId": 7, "logProbability": -0.5}],
        "topCandidates": [
            {
                "candidates": [
                    {"token": "H", "tokenId": 7, "logProbability": -0.5},
                    {"token": "J", "tokenId": 8, "logProbability": "-Infinity"},
                ]
            }
        ],
    }
    second = {"chosenCandidates": [{"token": "i", "tokenId": 9}]}
    chunks = [chunk(), chunk({"text": "H"}), chunk({"text": "i"}), STOP]
    chunks[0]["candidates"][0]["logprobsResult"] = first
    chunks[2]["candidates"][0]["logprobsResult"] = second
    tops = [
        pb.TopLogprob(token_id=7, piece=b"H", logprob=-0.5),
        pb.TopLogprob(token_id=8, piece=b"J", logprob=float("-inf")),
    ]
    assert [
        pb.TokenLogprob(token_id=7, piece=b"H", logprob=-0.5, top=tops),
        pb.TokenLogprob(token_id=9, piece=b"i"),
    ] == list(read_chunks(*chunks).logprobs)


@pytest.mark.parametrize("wrap", [b"%s", b"[%s]"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "", errors.UpstreamRejected),
        (400, "API_KEY_INVALID", errors.UpstreamAuth),
        (401, "", errors.UpstreamAuth),
        (403, "", errors.UpstreamAuth),
        (404, "", errors.UpstreamModelNotFound),
        (429, "", errors.UpstreamRateLimited),
        (499, "", errors.UpstreamUnavailable),
        (500, "", errors.UpstreamProtocolError),
        (503, "", errors.UpstreamUnavailable),
        (504, "", errors.UpstreamUnavailable),
    ],
)
async def test_a_status_is_its_reason(status, code, expected, wrap):
    """Also where the service wraps it in an array, and in a stream that has begun; the provider's words stay here."""
    body = wrap % WIRE.error(status, code)
    for reply in (
        Reply(status, steps=[body], headers=(("retry-after", "2"),)),
        Reply(media_type=WIRE.media_type, steps=[WIRE.events(HELLO)[0], b"data: %s\r\n\r\n" % body]),
    ):
        async with asking() as (server, it):
            server.reply = reply
            with pytest.raises(expected) as raised:
                await collect(it, chat())
        assert "secret" not in raised.value.message + str(raised.value.metadata) + raised.value.detail
        if expected is errors.UpstreamRejected:
            assert {"upstreamCode": "invalid_argument", "backend": "g"} == raised.value.metadata
        if expected is errors.UpstreamRateLimited and reply.status == 429:
            assert 2 == raised.value.retry_delay_seconds


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"status": "RESOURCE_EXHAUSTED"}}', errors.UpstreamRateLimited),
        (b'{"error": {"code": 0, "status": "UNAVAILABLE"}}', errors.UpstreamUnavailable),
        (b'{"error": {"message": "secret"}}', errors.UpstreamProtocolError),
        (b'{"candidates": []}', errors.UpstreamProtocolError),
    ],
)
@pytest.mark.parametrize("form", [b"%s\n", b"%s"])
def test_a_bare_line_is_an_error(body, expected, form):
    """An error that is no event is one all the same, and anything else has no place there."""
    with pytest.raises(expected) as raised:
        read(WIRE.events(HELLO)[0] + form % body)
    assert "secret" not in raised.value.message + raised.value.detail


@pytest.mark.parametrize(
    ("delay", "expected"), [("7s", 7), ("39.25s", 39.25), ("3600s", 60), ("soon", None), (None, None)]
)
@pytest.mark.parametrize("status", [200, 429])
async def test_a_delay_of_the_body_is_kept(status, delay, expected):
    """The service sends no header for it, but a detail; a minute is the most, as for the header."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}
    async with asking() as (server, it):
        server.reply = Reply(status, steps=[event(body) if status == 200 else msgspec.json.encode(body)])
        server.reply = dataclasses.replace(server.reply, media_type=WIRE.media_type)
        with pytest.raises(errors.UpstreamRateLimited) as raised:
            await collect(it, chat())
    assert expected == raised.value.retry_delay_seconds


@pytest.mark.parametrize("body", [b"", b"<html>secret</html>", b"{}", b'"secret"', b'{"error": "secret"}'])
async def test_a_failure_without_its_body_is_its_status(body):
    """What stands between us and the service may answer in its place."""
    async with asking() as (server, it):
        server.reply = Reply(404, steps=[body] if body else [])
        with pytest.raises(errors.UpstreamModelNotFound) as raised:
            await collect(it, chat())
    assert "secret" not in raised.value.message + raised.value.detail


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        (
            "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
            {"promptTokens": "1200293", "contextLength": "1048576"},
        ),
        ("The input token count exceeds the maximum number of tokens allowed 1048576.", {}),
    ],
)
async def test_a_prompt_that_is_too_long_is_told_with_its_counts(message, counts):
    """Where the provider gives them, they are numbers and no words of its own."""
    async with asking() as (server, it):
        server.reply = Reply(400, steps=[WIRE.error(400, message=message)])
        with pytest.raises(errors.ContextLengthExceeded) as raised:
            await collect(it, chat())
    assert {**counts, "model": MODEL} == raised.value.metadata


async def test_the_key_goes_into_its_header_and_nowhere_else(monkeypatch):
    """Not into the path, the body, a repr or an error."""
    monkeypatch.setenv("TEST_KEY", "AIza-canary")
    async with asking(api_key_env="TEST_KEY") as (server, it):
        await collect(it, chat())
        await it.provider.check()
        sent, listed = server.requests
        assert ("AIza-canary", "AIza-canary") == (
            sent.headers["x-goog-api-key"],
            listed.headers["x-goog-api-key"],
        )
        assert ("GET", "/v1beta/models") == (listed.method, listed.path)
        assert "canary" not in sent.path + sent.body.decode()
        error = WIRE.error(400, "API_KEY_INVALID", "secret words about AIza-canary")
        server.reply = Reply(400, steps=[error])
        with pytest.raises(errors.UpstreamAuth) as raised:
            await collect(it, chat())
        told = [
            repr(it),
            repr(it.provider),
            repr(it.provider.http),
            repr(it.provider._key),
            str(vars(raised.value)),
        ]
        assert not any("canary" in text or "secret words" in text for text in told)


async def test_a_key_is_not_needed():
    """Something between us and the service may have it."""
    async with asking() as (server, it):
        await collect(it, chat())
    assert "x-goog-api-key" not in server.completions[0].headers


async def test_embeddings_have_the_length_1():
    """As the contract says; the service leaves vectors of fewer dimensions as they were cut."""
    async with asking() as (server, it):
        request = pb.EmbedRequest(model=MODEL, inputs=["a", "four"], dimensions=2)
        response = await it.embed(request, new_call())
        length = 17**0.5
        assert [[1, 0], pytest.approx([4 / length, 1 / length])] == [
            list(each.values) for each in response.embeddings
        ]
        assert (5, MODEL) == (response.usage.prompt_tokens, response.model)
        assert f"/v1beta/models/{MODEL}:batchEmbedContents" == server.requests[0].path
        assert {
            "requests": [
                {
                    "model": f"models/{MODEL}",
                    "content": {"parts": [{"text": text}]},
                    "outputDimensionality": 2,
                }
                for text in ("a", "four")
            ]
        } == server.requests[0].json


async def test_many_texts_are_several_batches():
    """One batch has at most a hundred; the vectors stand in the order of the texts, and what was read is added up."""
    async with asking() as (server, it):
        texts = ["x" * (1 + index) for index in range(250)]
        response = await it.embed(pb.EmbedRequest(model=MODEL, inputs=texts), new_call())
    assert [100, 100, 50] == [len(request.json["requests"]) for request in server.requests]
    assert "outputDimensionality" not in server.requests[0].json["requests"][0]
    assert 15 == response.usage.prompt_tokens
    # The second component of a vector is the number in its batch, the first one the text's length.
    assert [pytest.approx(index % 100 / (1 + index)) for index in range(250)] == [
        each.values[1] / each.values[0] for each in response.embeddings
    ]


@pytest.mark.parametrize(
    "wish", [{"pooling": pb.POOLING_CLS}, {"normalize": False}], ids=["pooling", "normalize"]
)
async def test_embeddings_cannot_be_shaped_otherwise(wish):
    """Refused before the call."""
    async with asking() as (server, it):
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await it.embed(pb.EmbedRequest(model=MODEL, inputs=["a"], **wish), new_call())
        assert list(wish) == [field for field, _ in raised.value.violations]
        assert [] == server.requests


def test_vectors_that_are_not_one_for_each_text_are_an_error():
    """Nobody could tell which text they belong to."""
    adapter = Gemini("g", BackendSettings(type="gemini"))
    with pytest.raises(errors.UpstreamProtocolError):
        adapter.embedded(pb.EmbedRequest(inputs=["a", "b"]), b'{"embeddings": [{"values": [1.0]}]}')
