"""OpenAI's format and its dialects: what is sent, what is read, and what a failure means."""

from __future__ import annotations

import random

import msgspec
import pytest

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.backends.base import as_message
from inferwire_server.backends.openai import DIALECTS, OpenAI, Parser
from inferwire_server.backends.providers import BUILT_IN
from inferwire_server.config import BackendSettings
from tests.providers.asking import chat, collect, new_call
from tests.providers.openai import MODEL, OpenAIWire
from tests.providers.server import (
    CALLS,
    CUT,
    FILTERED,
    HELLO,
    THOUGHTFUL,
    Call,
    Reply,
    Script,
    Text,
    pieces,
    provider,
)

WIRE = OpenAIWire()


@pytest.fixture
async def backend():
    """Makes a backend of a scripted provider, as often as a test wants."""
    made = []

    def make(server, type="openai", **more):
        settings = BackendSettings(
            type=type, base_url=server.url, models=[MODEL], health_seconds=0, idle_seconds=2, **more
        )
        made.append(OpenAI("o", settings))
        return made[-1].backend(MODEL)

    yield make
    for each in made:
        await each.close()


def test_every_dialect_is_a_type():
    """What the table of dialects has can be configured, and nothing else leads to this adapter."""
    assert set(DIALECTS) == {name for name, where in BUILT_IN.items() if where.endswith(":OpenAI")}


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("script", [HELLO, THOUGHTFUL, CALLS, CUT, FILTERED])
async def test_an_answer_is_what_the_provider_said(backend, script, seed):
    """Text, thoughts, calls, finish and usage; through a real connection, in pieces of any size."""
    async with provider(WIRE) as server:
        server.reply = server.good(script, seed=seed)
        answer = await collect(backend(server), chat())
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
    assert script.finish == answer.completion.raw_finish_reason
    usage = answer.completion.usage
    assert (11, 3, script.completion_tokens, script.reasoning_tokens) == (
        usage.prompt_tokens,
        usage.cached_prompt_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
    )
    assert ("o", MODEL) == (answer.started.backend, answer.started.model)


def test_any_split_gives_the_same_answer():
    """Two hundred random cuts of an answer with everything in it: one result."""
    script = Script((*THOUGHTFUL.pieces, *CALLS.pieces, Text(" done")), finish="tool_calls")
    data = b"".join(WIRE.events(script))
    expected = _read([data])
    for seed in range(200):
        assert expected == _read(pieces(data, random.Random(seed)))


def _read(parts: list[bytes]) -> pb.CompleteResponse:
    parser, gatherer = Parser(), Gatherer()
    for part in parts:
        for event in parser.feed(part):
            gatherer.add(event)
    if parser.completion is None:
        for event in parser.close():
            gatherer.add(event)
    gatherer.add(pb.StreamCompleteResponse(completion=parser.completion))
    return gatherer.response()


EVERYTHING = pb.CompleteRequest()
EVERYTHING.chat.messages.add(role=pb.ROLE_SYSTEM).parts.add(text="Be brief.")
EVERYTHING.chat.messages.add(role=pb.ROLE_USER).parts.add(text="Look.")
EVERYTHING.chat.messages[1].parts.add(image=pb.Image(data=b"png", media_type="image/png"))
_turn = EVERYTHING.chat.messages.add(role=pb.ROLE_ASSISTANT)
_turn.parts.add(reasoning=pb.Reasoning(text="hmm"))
_turn.parts.add(text="Wait.")
_turn.parts.add(tool_call=pb.ToolCall(id="c1", name="f", arguments='{"a": 1}'))
_results = EVERYTHING.chat.messages.add(role=pb.ROLE_TOOL)
_results.parts.add(tool_result=pb.ToolResult(call_id="c1", text="17"))
EVERYTHING.chat.tools.add(
    name="f", description="A tool", parameters='{"type": "object", "properties": {"a": {}}}'
)
EVERYTHING.chat.tools.add(name="g")
EVERYTHING.chat.tool_choice.name = "f"
EVERYTHING.chat.parallel_tool_calls = False
EVERYTHING.chat.reasoning.effort = pb.REASONING_EFFORT_LOW
EVERYTHING.sampling.temperature = 0.7
EVERYTHING.sampling.top_p = 0.9
EVERYTHING.sampling.frequency_penalty = 0.5
EVERYTHING.sampling.presence_penalty = -0.5
EVERYTHING.sampling.seed = 0
EVERYTHING.sampling.logit_bias[7] = -1.5
EVERYTHING.stopping.max_tokens = 9
EVERYTHING.output.logprobs = True
EVERYTHING.output.top_logprobs = 2
EVERYTHING.response_format.json_schema = '{"type": "object"}'


async def test_what_is_asked_is_what_is_sent(backend):
    """Every field that is supported stands in the body; zero is said as zero."""
    async with provider(WIRE) as server:
        await collect(backend(server), EVERYTHING)
    assert {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look."},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}},
                ],
            },
            {
                "role": "assistant",
                "content": "Wait.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "17"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "A tool",
                    "parameters": {"type": "object", "properties": {"a": {}}},
                },
            },
            {
                "type": "function",
                "function": {"name": "g", "parameters": {"type": "object", "properties": {}}},
            },
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "temperature": 0.7,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "seed": 0,
        "logit_bias": {"7": -1.5},
        "max_completion_tokens": 9,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    } == server.completions[0].json


@pytest.mark.parametrize(
    ("type", "set_it", "expected"),
    [
        (
            "vllm",
            lambda r: setattr(r.response_format, "regex", "a+"),
            {"structured_outputs": {"regex": "a+"}},
        ),
        (
            "vllm",
            lambda r: r.response_format.choice.choices.extend(["a", "b"]),
            {"structured_outputs": {"choice": ["a", "b"]}},
        ),
        ("vllm", lambda r: setattr(r.scheduling, "cache_salt", "s"), {"cache_salt": "s"}),
        ("vllm", lambda r: setattr(r.sampling, "repetition_penalty", 1.5), {"repetition_penalty": 1.5}),
        ("vllm", lambda r: r.stopping.stop_token_ids.append(3), {"stop_token_ids": [3]}),
        ("sglang", lambda r: setattr(r.response_format, "regex", "a+"), {"regex": "a+"}),
        ("llama-server", lambda r: setattr(r.sampling, "repetition_penalty", 1.5), {"repeat_penalty": 1.5}),
        ("llama-server", lambda r: setattr(r.sampling, "top_n_sigma", 2.0), {"top_n_sigma": 2.0}),
        ("llama-server", lambda r: setattr(r.stopping, "ignore_eos", True), {"ignore_eos": True}),
        (
            "llama-server",
            lambda r: r.response_format.grammar.CopyFrom(
                pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_GBNF, text='root ::= "a"')
            ),
            {"grammar": 'root ::= "a"'},
        ),
        (
            "llama-server",
            lambda r: r.chat.template_arguments.update({"enable_thinking": False}),
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ("mistral", lambda r: setattr(r.sampling, "seed", 5), {"random_seed": 5}),
        ("deepseek", lambda r: setattr(r.stopping, "max_tokens", 5), {"max_tokens": 5}),
    ],
)
async def test_a_dialect_has_its_own_names(backend, type, set_it, expected):
    """The same field of ours is what that service calls it."""
    async with provider(WIRE) as server:
        request = chat()
        set_it(request)
        await collect(backend(server, type), request)
        body = server.completions[0].json
    assert expected == {key: body[key] for key in expected}


@pytest.mark.parametrize(
    ("type", "header"),
    [("openai", ("authorization", "Bearer sk-canary")), ("azure", ("api-key", "sk-canary"))],
)
async def test_the_key_goes_into_its_header_and_nowhere_else(backend, type, header, monkeypatch):
    """Not into the path, the body, a repr or an error."""
    monkeypatch.setenv("TEST_KEY", "sk-canary")
    async with provider(WIRE) as server:
        it = backend(server, type, api_key_env="TEST_KEY", query={"api-version": "2026-01-01"})
        await collect(it, chat())
        sent = server.completions[0]
        assert header[1] == sent.headers[header[0]]
        assert "api-version=2026-01-01" in sent.path
        assert "canary" not in sent.path + sent.body.decode()
        server.reply = server.failed(401)
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


async def test_a_raw_prompt_is_completed_where_the_service_can(backend):
    """The older endpoint, with its own shape of choices and log probabilities."""
    chunk = {
        "choices": [
            {
                "index": 0,
                "text": " there",
                "logprobs": {
                    "tokens": [" there"],
                    "token_logprobs": [-0.5],
                    "top_logprobs": [{" there": -0.5, " you": -1.5}],
                },
                "finish_reason": None,
            }
        ]
    }
    end = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    async with provider(WIRE) as server:
        steps = [b"data: " + msgspec.json.encode(each) + b"\n\n" for each in (chunk, end)]
        server.reply = Reply(media_type=WIRE.media_type, steps=[*steps, b"data: [DONE]\n\n"])
        request = pb.CompleteRequest(model=MODEL, prompt="Hello")
        request.output.logprobs = True
        request.output.top_logprobs = 2
        answer = await collect(backend(server, "vllm"), request)
        sent = server.completions[0]
    assert ("/completions", "Hello", 2) == (sent.path, sent.json["prompt"], sent.json["logprobs"])
    assert " there" == answer.message.parts[0].text
    assert [(b" there", -0.5), (b" you", -1.5)] == [
        (top.piece, top.logprob) for top in answer.logprobs[0].top
    ]


async def test_log_probabilities_come_with_their_bytes():
    """A token that is half a character has bytes and no text of its own; its number waits for the text."""
    first = {"token": "\\xf0", "logprob": -0.25, "bytes": [0xF0, 0x9F], "top_logprobs": []}
    second = {
        "token": "x",
        "logprob": -0.5,
        "bytes": None,
        "top_logprobs": [{"token": "x", "logprob": -0.5, "bytes": [120]}],
    }
    chunks = [
        {"choices": [{"delta": {"content": ""}, "logprobs": {"content": [first]}}]},
        {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [second]}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    parts = [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]
    answer = _read([*parts, b"data: [DONE]\n\n"])
    assert [(b"\xf0\x9f", -0.25), (b"x", -0.5)] == [(each.piece, each.logprob) for each in answer.logprobs]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "", errors.UpstreamRejected),
        (400, "context_length_exceeded", errors.ContextLengthExceeded),
        (401, "invalid_api_key", errors.UpstreamAuth),
        (403, "", errors.UpstreamAuth),
        (404, "model_not_found", errors.UpstreamModelNotFound),
        (413, "", errors.UpstreamRejected),
        (422, "", errors.UpstreamRejected),
        (429, "rate_limit_exceeded", errors.UpstreamRateLimited),
        (500, "", errors.UpstreamProtocolError),
        (502, "", errors.UpstreamUnavailable),
        (503, "", errors.UpstreamUnavailable),
        (504, "", errors.UpstreamUnavailable),
        (529, "", errors.UpstreamUnavailable),
    ],
)
async def test_a_status_is_its_reason(backend, status, code, expected):
    """The provider's words stay here; only a code of the known list is told."""
    async with provider(WIRE) as server:
        server.reply = server.failed(status, code, retry_after="2")
        with pytest.raises(expected) as raised:
            await collect(backend(server), chat())
    assert "secret" not in raised.value.message + str(raised.value.metadata) + raised.value.detail
    if expected is errors.UpstreamRateLimited:
        assert 2 == raised.value.retry_delay_seconds


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'{"error": {"message": "secret", "code": 429}}', errors.UpstreamRateLimited),
        (b'{"error": {"message": "secret", "type": "overloaded_error"}}', errors.UpstreamUnavailable),
        (b'{"error": {"message": "secret", "code": "content_filter"}}', errors.UpstreamRejected),
        (b'{"object": "error", "message": "secret", "code": 400}', errors.UpstreamRejected),
        (b'{"error": "secret"}', errors.UpstreamProtocolError),
        (
            b'{"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 99, "n_ctx": 64}}',
            errors.ContextLengthExceeded,
        ),
    ],
)
@pytest.mark.parametrize("form", [b"data: %s\n\n", b"%s\n", b"%s"])
def test_an_error_in_a_stream_is_an_error(event, expected, form):
    """As an event, as a bare line, and as a last line without its end."""
    with pytest.raises(expected) as raised:
        _read([WIRE.events(HELLO)[0] + form % event])
    assert "secret" not in raised.value.message + raised.value.detail
    if expected is errors.ContextLengthExceeded:
        assert {"promptTokens": "99", "contextLength": "64"} == raised.value.metadata


@pytest.mark.parametrize(
    "pieces_of_calls",
    [
        # Another call under the same number.
        [[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}],
         [{"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}}]],
        # No numbers at all, and each call whole.
        [[{"id": "a", "function": {"name": "f", "arguments": "{}"}},
          {"id": "b", "function": {"name": "g", "arguments": "{}"}}]],
        # Ids and names repeated in every piece.
        [[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}],
         [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "}"}}],
         [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]],
        # No ids, in pieces.
        [[{"index": 0, "function": {"name": "f"}}], [{"index": 0, "function": {"arguments": "{}"}}],
         [{"index": 1, "function": {"name": "g", "arguments": "{}"}}]],
    ],
)  # fmt: skip
def test_calls_are_told_apart_however_they_are_counted(pieces_of_calls):
    """Servers differ in how they number and name calls; two calls are two calls."""
    chunks: list[dict[str, object]] = [{"delta": {"tool_calls": calls}} for calls in pieces_of_calls]
    chunks.append({"delta": {}, "finish_reason": "tool_calls"})
    data = [b"data: " + msgspec.json.encode({"choices": [chunk]}) + b"\n\n" for chunk in chunks]
    answer = _read([*data, b"data: [DONE]\n\n"])
    calls = [part.tool_call for part in answer.message.parts]
    assert [("f", "{}"), ("g", "{}")] == [(call.name, call.arguments) for call in calls]
    assert 2 == len({call.id for call in calls})


def test_an_answer_without_its_terminal_event_is_none():
    """Neither the end of the body nor "[DONE]" without a finish reason is one; a finish reason is where "[DONE]" never comes."""
    events = WIRE.events(HELLO)
    for parts in (events[:-3], events[:-1], [*events[:-3], events[-1]]):
        with pytest.raises(errors.UpstreamTruncated):
            _read(parts)
    lenient = Parser(done_marker=False)
    lenient.feed(b"".join(events[:-1]))
    lenient.close()
    assert pb.FINISH_REASON_STOP == lenient.completion.finish_reason


async def test_what_the_service_cannot_is_refused_before_the_call(backend):
    """With the field's path, by capability; nothing reaches the provider. A value that says nothing is no demand."""
    async with provider(WIRE) as server:
        request = chat()
        request.sampling.top_k = 5
        request.sampling.min_p = 0.1
        request.response_format.regex = "a"
        request.chat.messages[0].parts.add(image=pb.Image(data=b"x", media_type="image/tiff"))
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await collect(backend(server), request)
        assert {
            "sampling.top_k",
            "sampling.min_p",
            "response_format.regex",
            "chat.messages[0].parts[1].image.media_type",
        } == {field for field, _ in raised.value.violations}
        assert [] == server.requests
        neutral = chat()
        neutral.sampling.top_k = 0
        neutral.sampling.repetition_penalty = 1
        await collect(backend(server), neutral)
        assert not {"top_k", "repetition_penalty"} & set(server.completions[0].json)


async def test_an_operator_can_widen_and_narrow_a_dialect(backend):
    """Servers change faster than tables."""
    async with provider(WIRE) as server:
        options = {"supports": ["sampling.top_k"], "refuses": ["sampling.seed"], "body": {"priority": 3}}
        it = backend(server, "openai-compatible", options=options)
        request = chat()
        request.sampling.top_k = 5
        await collect(it, request)
        assert (5, 3) == (server.completions[0].json["top_k"], server.completions[0].json["priority"])
        request.sampling.seed = 1
        with pytest.raises(errors.UnsupportedByBackend):
            await collect(it, request)


async def test_stop_texts_end_the_answer_here(backend):
    """The service does not say which text stopped it, so the gateway looks itself; the provider's stream is closed."""
    async with provider(WIRE) as server:
        for include, expected in ((False, "Hello, wö"), (True, "Hello, wörld")):
            request = chat()
            request.stopping.stop.append("rld")
            request.stopping.include_stop = include
            answer = await collect(backend(server), request)
            assert expected == answer.message.parts[0].text
            assert ("rld", pb.FINISH_REASON_STOP_STRING) == (
                answer.completion.stop_string,
                answer.completion.finish_reason,
            )
        assert "stop" not in server.completions[0].json


async def test_embeddings_are_read_in_the_order_of_the_texts(backend):
    """Whatever order they come in; dimensions are asked for, pooling is refused."""
    async with provider(WIRE) as server:
        it = backend(server)
        request = pb.EmbedRequest(model=MODEL, inputs=["a", "bbb"], dimensions=2)
        response = await it.embed(request, new_call())
        assert [[1.0, 0.0], [3.0, 1.0]] == [list(each.values) for each in response.embeddings]
        assert 5 == response.usage.prompt_tokens
        assert 2 == server.requests[0].json["dimensions"]
        request.pooling = pb.POOLING_CLS
        with pytest.raises(errors.UnsupportedByBackend):
            await it.embed(request, new_call())


async def test_the_final_message_can_be_sent_back(backend):
    """An answer with a thought and calls becomes history as it stands."""
    async with provider(WIRE) as server:
        server.reply = server.good(CALLS)
        request = chat()
        request.output.message = True
        events = [as_message(event) async for event in backend(server).stream(request, new_call())]
        message = events[-1].completion.message
        follow = chat()
        follow.chat.messages.append(message)
        results = follow.chat.messages.add(role=pb.ROLE_TOOL)
        for part in message.parts:
            if part.HasField("tool_call"):
                results.parts.add(tool_result=pb.ToolResult(call_id=part.tool_call.id, text="ok"))
        await collect(backend(server), follow)
        sent = server.completions[1].json["messages"]
    assert ["user", "assistant", "tool", "tool"] == [each["role"] for each in sent]
    assert ["call_1", "call_2"] == [call["id"] for call in sent[1]["tool_calls"]]


async def test_a_key_file_is_read_again_when_its_key_is_refused(backend, tmp_path):
    """Secrets rotate: the request that is refused fails, and the next one carries the new key."""
    file = tmp_path / "key"
    file.write_text("old\n")
    async with provider(WIRE) as server:
        it = backend(server, api_key_file=str(file))
        file.write_text("new\n")
        server.queue = [server.failed(401)]
        with pytest.raises(errors.UpstreamAuth):
            await collect(it, chat())
        await collect(it, chat())
        assert ["Bearer old", "Bearer new"] == [sent.headers["authorization"] for sent in server.completions]


async def test_text_that_waits_for_a_stop_text_is_not_overtaken(backend):
    """What might begin a stop text is held back; when a call stands behind it, it was none and comes first."""
    async with provider(WIRE) as server:
        server.reply = server.good(CALLS)
        request = chat()
        request.stopping.stop.append(" Z")
        answer = await collect(backend(server), request)
    assert "I will look. " == answer.message.parts[0].text
    assert ["text", "tool_call", "tool_call"] == [part.WhichOneof("part") for part in answer.message.parts]
