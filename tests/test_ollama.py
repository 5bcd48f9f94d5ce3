"""Ollama's own API: what is sent, what is read, what a failure means, and how a model is loaded and freed there."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import pytest

from inferwire import InferwireError
from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.backends.ollama import Ollama, Parser
from inferwire_server.backends.providers import build
from inferwire_server.config import BackendSettings, ConfigError
from tests.providers.asking import chat, collect, new_call
from tests.providers.ollama import MODEL, OllamaWire
from tests.providers.server import (
    CALLS,
    CUT,
    HELLO,
    THOUGHTFUL,
    Call,
    Reply,
    Request,
    Script,
    ScriptedProvider,
    Stall,
    Text,
    pieces,
    provider,
)
from tests.serving import running

WIRE = OllamaWire()
RAW = OllamaWire(is_raw=True)


def settings(server: ScriptedProvider, **more: Any) -> BackendSettings:
    return BackendSettings(
        type="ollama",
        base_url=server.url,
        **{"models": [MODEL], "health_seconds": 0, "idle_seconds": 2, **more},
    )


@contextlib.asynccontextmanager
async def ollama(server: ScriptedProvider, **more: Any) -> AsyncIterator[Ollama]:
    """Yields the adapter of a scripted provider."""
    it = Ollama("o", settings(server, **more))
    try:
        yield it
    finally:
        await it.close()


async def ask(
    server: ScriptedProvider, request: pb.CompleteRequest | None = None, **more: Any
) -> pb.CompleteResponse:
    """Returns the answer to a request."""
    async with ollama(server, **more) as it:
        return await collect(it.backend(MODEL), request or chat())


# What is read.


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("script", [HELLO, THOUGHTFUL, CALLS, CUT])
async def test_an_answer_is_what_the_provider_said(script, seed):
    """Text, thoughts, calls, finish and usage; through a real connection, in pieces of any size."""
    async with provider(OllamaWire()) as server:
        server.reply = server.good(script, seed=seed)
        answer = await ask(server)
    _check(script, answer)
    assert ("o", MODEL) == (answer.started.backend, answer.started.model)


def _check(script: Script, answer: pb.CompleteResponse) -> None:
    parts = answer.message.parts
    assert script.text == "".join(part.text for part in parts)
    assert script.thought == "".join(part.reasoning.text for part in parts)
    calls = [part.tool_call for part in parts if part.HasField("tool_call")]
    assert [(name, arguments or "{}") for name, arguments in script.calls] == [
        (call.name, call.arguments) for call in calls
    ]
    assert [piece.id for piece in script.pieces if isinstance(piece, Call)] == [call.id for call in calls]
    completion = answer.completion
    assert script.finish.upper() == pb.FinishReason.Name(completion.finish_reason).removeprefix(
        "FINISH_REASON_"
    )
    # Ollama calls the end of an answer with calls what it calls the end of any other.
    assert ("length" if script is CUT else "stop") == completion.raw_finish_reason
    assert (11, 3, 7) == (
        completion.usage.prompt_tokens,
        completion.usage.cached_prompt_tokens,
        completion.usage.completion_tokens,
    )


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("script", [HELLO, THOUGHTFUL, CUT])
async def test_a_raw_prompt_is_completed_without_a_template(script, seed):
    """The other endpoint, with the text in another place."""
    async with provider(OllamaWire(is_raw=True)) as server:
        server.reply = server.good(script, seed=seed)
        answer = await ask(server, pb.CompleteRequest(prompt="Once upon"))
        sent = server.completions[0]
    _check(script, answer)
    assert "/api/generate" == sent.path
    assert {
        "model": MODEL,
        "stream": True,
        "truncate": False,
        "shift": False,
        "prompt": "Once upon",
        "raw": True,
        "options": {},
    } == sent.json


def _read(parts: Iterable[bytes]) -> pb.CompleteResponse:
    """Returns the answer that the parser makes of the pieces of a body."""
    parser, gatherer = Parser(), Gatherer()
    for part in parts:
        for event in parser.feed(part):
            gatherer.add(event)
    if parser.completion is None:
        for event in parser.close():
            gatherer.add(event)
    gatherer.add(pb.StreamCompleteResponse(completion=parser.completion))
    return gatherer.response()


def _line(**fields: Any) -> bytes:
    return msgspec.json.encode(fields) + b"\n"


END = _line(done=True, done_reason="stop")


def test_any_split_gives_the_same_answer():
    """Two hundred random cuts of an answer with everything in it: one result."""
    script = Script((*THOUGHTFUL.pieces, *CALLS.pieces, Text(" done")), finish="tool_calls")
    data = b"".join(WIRE.events(script))
    expected = _read([data])
    for seed in range(200):
        assert expected == _read(pieces(data, random.Random(seed)))


def test_a_last_line_needs_no_end():
    """It is whole if it can be read."""
    data = b"".join(WIRE.events(HELLO))
    assert _read([data]) == _read([data.removesuffix(b"\n")])


@pytest.mark.parametrize("wire", [WIRE, RAW])
@pytest.mark.parametrize("num_left", [0, 1, 3])
def test_an_answer_without_its_terminal_line_is_none(wire, num_left):
    """The end of the body is not the end of the answer."""
    with pytest.raises(errors.UpstreamTruncated):
        _read(wire.events(HELLO)[:-1][:num_left])


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", pb.FINISH_REASON_STOP),
        ("length", pb.FINISH_REASON_LENGTH),
        ("load", pb.FINISH_REASON_OTHER),
        ("unload", pb.FINISH_REASON_OTHER),
        ("what is to come", pb.FINISH_REASON_OTHER),
        ("", pb.FINISH_REASON_OTHER),
        (None, pb.FINISH_REASON_OTHER),
    ],
)
def test_a_reason_that_is_not_known_is_another(reason, expected):
    """With the provider's own word for it."""
    completion = _read([_line(done=True, done_reason=reason)]).completion
    assert (expected, reason or "") == (completion.finish_reason, completion.raw_finish_reason)


def test_what_is_null_says_nothing():
    """As some servers between write it; counts that are missing are 0."""
    line = _line(
        message={"content": None, "thinking": None, "tool_calls": None, "images": None},
        logprobs=None,
        error=None,
        prompt_eval_count=None,
    )
    answer = _read([line, END])
    assert [] == list(answer.message.parts)
    assert pb.Usage() == answer.completion.usage


def test_calls_without_ids_get_them():
    """Each its own; a call comes whole, in one line or in several, and one without arguments has the empty object."""
    first = {"function": {"name": "f", "arguments": {"a": [1, {"b": "ü"}]}}}
    lines = [
        _line(message={"content": "", "tool_calls": [first, {"function": {"name": "g"}}]}),
        _line(message={"content": "", "tool_calls": [{"function": {"name": "f", "arguments": None}}]}),
    ]
    answer = _read([*lines, END])
    calls = [part.tool_call for part in answer.message.parts]
    assert [("f", '{"a":[1,{"b":"ü"}]}'), ("g", "{}"), ("f", "{}")] == [
        (call.name, call.arguments) for call in calls
    ]
    assert 3 == len({call.id for call in calls if call.id})
    assert pb.FINISH_REASON_TOOL_CALLS == answer.completion.finish_reason


def test_log_probabilities_wait_for_text():
    """A token that is half a character has bytes and no text of its own; what is left at the end is in the completion."""
    half = {"token": "\ufffd", "logprob": -0.25, "bytes": [0xC3]}
    whole = {
        "token": "x",
        "logprob": -0.5,
        "top_logprobs": [{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -1.5, "bytes": [121]}],
    }
    last = {"token": "", "logprob": -0.75, "top_logprobs": None}
    lines = [
        _line(message={"content": ""}, logprobs=[half]),
        _line(message={"content": "x"}, logprobs=[whole]),
        _line(message={"content": ""}, logprobs=[last], done=True, done_reason="stop"),
    ]
    answer = _read(lines)
    assert [(b"\xc3", -0.25), (b"x", -0.5), (b"", -0.75)] == [
        (each.piece, each.logprob) for each in answer.logprobs
    ]
    assert [(b"x", -0.5), (b"y", -1.5)] == [(top.piece, top.logprob) for top in answer.logprobs[1].top]
    assert 1 == len(answer.completion.logprobs)


@pytest.mark.parametrize(
    "line",
    [
        b"[1]\n",
        b'{"done": tru\n',
        _line(message={"content": 7}),
        _line(message={"tool_calls": [{"function": {"arguments": {}}}]}),
        _line(message={"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
        b'{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": "\xff"}}}]}}\n',
        _line(logprobs=[{"token": "x", "logprob": -1.0, "bytes": [256]}]),
        _line(done=True, done_reason="stop", eval_count=-1),
        _line(done=True, done_reason="stop", eval_count=1 << 32),
    ],
)
def test_what_is_no_line_of_an_answer_breaks_the_format(line):
    """Nothing of it is told."""
    with pytest.raises(errors.UpstreamProtocolError):
        _read([line, END])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("secret", errors.UpstreamProtocolError),
        ("an error was encountered while running the model: secret", errors.UpstreamProtocolError),
        ('model "secret" not found, try pulling it first', errors.UpstreamModelNotFound),
        ("the input length exceeds the context length", errors.ContextLengthExceeded),
        ("", errors.UpstreamProtocolError),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_an_error_in_a_stream_is_an_error(text, expected, end):
    """Also as a last line without its end, and after text."""
    with pytest.raises(expected) as raised:
        _read([WIRE.events(HELLO)[0], _line(error=text).removesuffix(b"\n") + end])
    assert "secret" not in raised.value.message + raised.value.detail + str(raised.value.metadata)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (400, "secret", errors.UpstreamRejected),
        (400, '"secret" does not support tools', errors.UpstreamRejected),
        (400, "the input length exceeds the context length", errors.ContextLengthExceeded),
        (400, "prompt too long; exceeded max context length by 17 tokens", errors.ContextLengthExceeded),
        (413, "the input length exceeds the context length", errors.ContextLengthExceeded),
        (500, "input exceeds maximum context length and cannot be truncated", errors.ContextLengthExceeded),
        (401, "unauthorized", errors.UpstreamAuth),
        (403, "secret", errors.UpstreamAuth),
        (404, "model 'secret' not found", errors.UpstreamModelNotFound),
        (429, "secret", errors.UpstreamRateLimited),
        (500, "secret", errors.UpstreamProtocolError),
        (502, "secret", errors.UpstreamUnavailable),
        (
            503,
            "server busy, please try again.  maximum pending requests exceeded",
            errors.UpstreamUnavailable,
        ),
    ],
)
async def test_a_status_is_its_reason(status, text, expected):
    """The provider's words stay here."""
    async with provider(OllamaWire()) as server:
        server.reply = Reply(
            status, steps=[server.wire.error(status, message=text)], headers=(("retry-after", "2"),)
        )
        with pytest.raises(expected) as raised:
            await ask(server)
    assert "secret" not in raised.value.message + str(raised.value.metadata) + raised.value.detail
    if expected is errors.UpstreamRateLimited:
        assert 2 == raised.value.retry_delay_seconds


async def test_the_counts_of_a_prompt_that_is_too_long_are_told():
    """Where the provider's sentence has them."""
    text = "request (9739 tokens) exceeds the available context size (8192 tokens), try increasing it"
    async with provider(OllamaWire()) as server:
        server.reply = Reply(400, steps=[server.wire.error(400, message=text)])
        with pytest.raises(errors.ContextLengthExceeded) as raised:
            await ask(server)
    assert {"promptTokens": "9739", "contextLength": "8192", "model": MODEL} == raised.value.metadata


@pytest.mark.parametrize("body", [b"404 page not found", b"", b'{"error": {"message": "secret"}}', b"[]"])
async def test_a_failure_in_other_words_has_its_status(body):
    """As a server between, or one too old for what is asked, writes it."""
    async with provider(OllamaWire()) as server:
        server.reply = Reply(404, "text/plain", [body])
        with pytest.raises(errors.UpstreamModelNotFound):
            await ask(server)


# What is sent.


EVERYTHING = pb.CompleteRequest()
EVERYTHING.chat.messages.add(role=pb.ROLE_SYSTEM).parts.add(text="Be brief.")
_question = EVERYTHING.chat.messages.add(role=pb.ROLE_USER)
_question.parts.add(text="Look ")
_question.parts.add(image=pb.Image(data=b"png", media_type="image/png"))
_question.parts.add(image=pb.Image(data=b"jpeg", media_type="image/jpeg"))
_question.parts.add(text="here.")
_turn = EVERYTHING.chat.messages.add(role=pb.ROLE_ASSISTANT)
_turn.parts.add(reasoning=pb.Reasoning(text="hmm"))
_turn.parts.add(text="Wait.")
_turn.parts.add(tool_call=pb.ToolCall(id="c1", name="f", arguments='{"a": 1.50}'))
_turn.parts.add(tool_call=pb.ToolCall(id="c2", name="g"))
_results = EVERYTHING.chat.messages.add(role=pb.ROLE_TOOL)
_results.parts.add(tool_result=pb.ToolResult(call_id="c2", text="17"))
_results.parts.add(tool_result=pb.ToolResult(call_id="c1"))
EVERYTHING.chat.tools.add(
    name="f", description="A tool", parameters='{"type": "object", "properties": {"a": {}}}'
)
EVERYTHING.chat.tools.add(name="g")
EVERYTHING.chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_AUTO
EVERYTHING.chat.reasoning.enabled = True
EVERYTHING.sampling.temperature = 0
EVERYTHING.sampling.top_k = 0
EVERYTHING.sampling.top_p = 0.9
EVERYTHING.sampling.min_p = 0.05
EVERYTHING.sampling.typical_p = 0.7
EVERYTHING.sampling.repetition_penalty = 1.1
EVERYTHING.sampling.frequency_penalty = 0.5
EVERYTHING.sampling.presence_penalty = -0.5
EVERYTHING.sampling.penalty_window = -1
EVERYTHING.sampling.seed = 0
EVERYTHING.sampling.mirostat.CopyFrom(pb.Mirostat(version=2, tau=4.5, eta=0.2))
EVERYTHING.stopping.max_tokens = 9
EVERYTHING.stopping.stop.append("kept by the gateway")
EVERYTHING.output.logprobs = True
EVERYTHING.output.top_logprobs = 2
EVERYTHING.response_format.json_schema = '{"type": "object"}'


async def test_what_is_asked_is_what_is_sent():
    """Every field that is supported stands in the body; zero is said as zero, and nothing may be cut in silence."""
    async with provider(OllamaWire()) as server:
        await ask(server, EVERYTHING, options={"supports": ["sampling.mirostat"]})
        sent = server.completions[0]
    assert ("POST", "/api/chat") == (sent.method, sent.path)
    assert {
        "model": MODEL,
        "stream": True,
        "truncate": False,
        "shift": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Look here.", "images": ["cG5n", "anBlZw=="]},
            {
                "role": "assistant",
                "content": "Wait.",
                "thinking": "hmm",
                "tool_calls": [
                    {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": 1.5}}},
                    {"id": "c2", "function": {"index": 1, "name": "g", "arguments": {}}},
                ],
            },
            {"role": "tool", "tool_name": "g", "tool_call_id": "c2", "content": "17"},
            {"role": "tool", "tool_name": "f", "tool_call_id": "c1", "content": ""},
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
        "think": True,
        "format": {"type": "object"},
        "logprobs": True,
        "top_logprobs": 2,
        "options": {
            "temperature": 0,
            "top_k": 0,
            "top_p": 0.9,
            "min_p": 0.05,
            "typical_p": 0.7,
            "repeat_penalty": 1.1,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "repeat_last_n": -1,
            "seed": 0,
            "mirostat": 2,
            "mirostat_tau": 4.5,
            "mirostat_eta": 0.2,
            "num_predict": 9,
        },
    } == sent.json


async def test_what_is_not_asked_is_not_sent():
    """A plain question is a plain body: what is unset is Ollama's own affair."""
    async with provider(OllamaWire()) as server:
        await ask(server)
    assert {
        "model": MODEL,
        "stream": True,
        "truncate": False,
        "shift": False,
        "messages": [{"role": "user", "content": "Hello?"}],
        "options": {},
    } == server.completions[0].json


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        (pb.ReasoningOptions(), {}),
        (pb.ReasoningOptions(enabled=True), {"think": True}),
        (pb.ReasoningOptions(enabled=False), {"think": False}),
        (pb.ReasoningOptions(effort=pb.REASONING_EFFORT_LOW), {"think": "low"}),
        (pb.ReasoningOptions(effort=pb.REASONING_EFFORT_MEDIUM), {"think": "medium"}),
        (pb.ReasoningOptions(enabled=True, effort=pb.REASONING_EFFORT_HIGH), {"think": "high"}),
        (pb.ReasoningOptions(enabled=False, effort=pb.REASONING_EFFORT_HIGH), {"think": False}),
    ],
)
async def test_how_to_think_is_one_word(reasoning, expected):
    """A level says that it thinks, too; whoever says that it shall not has said all."""
    async with provider(OllamaWire()) as server:
        request = chat()
        request.chat.reasoning.CopyFrom(reasoning)
        await ask(server, request)
    body = server.completions[0].json
    assert expected == {key: body[key] for key in body if key == "think"}


async def test_any_json_has_a_word_of_its_own():
    """Not a schema."""
    async with provider(OllamaWire()) as server:
        request = chat()
        request.response_format.json_object.SetInParent()
        await ask(server, request)
    assert "json" == server.completions[0].json["format"]


async def test_no_tool_is_called_where_none_is_known():
    """Ollama knows no NONE: the tools stay here."""
    async with provider(OllamaWire()) as server:
        request = chat()
        request.chat.tools.add(name="f")
        request.chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_NONE
        await ask(server, request)
    assert "tools" not in server.completions[0].json


async def test_what_the_operator_sets_goes_along_and_the_request_outranks_it():
    """With whatever is asked, so that Ollama need not load the model anew."""
    options = {"keep_alive": "5m", "parameters": {"num_ctx": 8192, "temperature": 0.1}}
    async with provider(OllamaWire()) as server, ollama(server, options=options) as it:
        request = chat()
        request.sampling.temperature = 0.7
        await collect(it.backend(MODEL), request)
        await it.backend(MODEL).embed(pb.EmbedRequest(inputs=["a"]), new_call())
        await it.load(MODEL, 60)
        asked, embedded, loaded = (each.json for each in server.requests)
    assert ("5m", {"num_ctx": 8192, "temperature": 0.7}) == (asked["keep_alive"], asked["options"])
    assert ("5m", {"num_ctx": 8192, "temperature": 0.1}) == (embedded["keep_alive"], embedded["options"])
    # The load's own word outranks it.
    assert (60, {"num_ctx": 8192, "temperature": 0.1}) == (loaded["keep_alive"], loaded["options"])


async def test_the_key_goes_into_its_header_and_nowhere_else(monkeypatch):
    """Not into the body, a repr or an error; there need be none."""
    monkeypatch.setenv("TEST_KEY", "sk-canary")
    async with provider(OllamaWire()) as server:
        await ask(server)
        async with ollama(server, api_key_env="TEST_KEY") as it:
            await collect(it.backend(MODEL), chat())
            await it.load(MODEL, None)
            server.reply = server.failed(401)
            with pytest.raises(errors.UpstreamAuth) as raised:
                await collect(it.backend(MODEL), chat())
            told = [repr(it), repr(it.http), str(vars(raised.value))]
    without, *with_key = server.requests
    assert "authorization" not in without.headers
    assert ["Bearer sk-canary"] * 3 == [each.headers["authorization"] for each in with_key]
    assert not any(b"canary" in each.body for each in with_key)
    assert not any("canary" in text or "secret words" in text for text in told)


# What is refused.


@pytest.mark.parametrize(
    ("field", "set_it"),
    [
        ("chat.tool_choice.name", lambda r: setattr(r.chat.tool_choice, "name", "f")),
        (
            "chat.tool_choice.mode",
            lambda r: setattr(r.chat.tool_choice, "mode", pb.TOOL_CHOICE_MODE_REQUIRED),
        ),
        (
            "chat.reasoning.effort",
            lambda r: setattr(r.chat.reasoning, "effort", pb.REASONING_EFFORT_MINIMAL),
        ),
        ("chat.reasoning.budget_tokens", lambda r: setattr(r.chat.reasoning, "budget_tokens", 5)),
        ("chat.parallel_tool_calls", lambda r: setattr(r.chat, "parallel_tool_calls", False)),
        ("chat.template_arguments", lambda r: r.chat.template_arguments.update({"a": 1})),
        ("stopping.max_tokens", lambda r: setattr(r.stopping, "max_tokens", 0)),
        ("stopping.ignore_eos", lambda r: setattr(r.stopping, "ignore_eos", True)),
        ("sampling.mirostat", lambda r: setattr(r.sampling.mirostat, "version", 2)),
        ("sampling.top_n_sigma", lambda r: setattr(r.sampling, "top_n_sigma", 1.0)),
        ("sampling.logit_bias", lambda r: r.sampling.logit_bias.update({1: 1.0})),
        ("response_format.json_schema", lambda r: setattr(r.response_format, "json_schema", " true")),
        ("response_format.regex", lambda r: setattr(r.response_format, "regex", "a+")),
        ("output.token_ids", lambda r: setattr(r.output, "token_ids", True)),
        (
            "chat.messages[0].parts[1].image.media_type",
            lambda r: r.chat.messages[0].parts.add(image=pb.Image(data=b"x", media_type="image/tiff")),
        ),
    ],
)
async def test_what_ollama_cannot_is_refused_before_the_call(field, set_it):
    """With the field's path; nothing reaches the provider."""
    async with provider(OllamaWire()) as server:
        request = chat()
        set_it(request)
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await ask(server, request)
        assert [field] == [path for path, _ in raised.value.violations]
        assert {"model": MODEL, "backend": "o"} == raised.value.metadata
        assert [] == server.requests


async def test_a_value_that_says_nothing_is_no_demand():
    """It is let through and not sent."""
    async with provider(OllamaWire()) as server:
        request = chat()
        request.sampling.top_n_sigma = 0
        await ask(server, request)
    assert {} == server.completions[0].json["options"]


async def test_an_operator_may_refuse_what_a_version_passes_over():
    """The capabilities tell it, too."""
    refuses = ["sampling.repetition_penalty", "chat.images", "prompt"]
    async with provider(OllamaWire()) as server:
        request = chat()
        request.sampling.repetition_penalty = 1.5
        with pytest.raises(errors.UnsupportedByBackend):
            await ask(server, request, options={"refuses": refuses})
        async with ollama(server, options={"refuses": refuses}) as it:
            expected = models_pb2.Capabilities(
                chat=True, tools=True, reasoning=True, structured_output=True, logprobs=True, embeddings=True
            )
            assert expected == it.capabilities


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep_alvie": "5m"}, "did you mean backends.o.options.keep_alive"),
        ({"pull": "yes"}, "backends.o.options.pull"),
        ({"load_seconds": 0}, "backends.o.options.load_seconds"),
        ({"supports": ["sampling.xtc"]}, "backends.o.options.supports: 'sampling.xtc'"),
        ({"refuses": ["sampling.seeds"]}, "did you mean sampling.seed"),
    ],
)
def test_an_option_that_does_not_fit_is_named(options, expected):
    """With the nearest that does."""
    with pytest.raises(ConfigError, match=expected):
        build({"o": BackendSettings(type="ollama", options=options)})


async def test_it_is_where_ollama_is_unless_the_operator_says_otherwise():
    """On this machine, on its usual port."""
    it = Ollama("o", BackendSettings(type="ollama"))
    assert "http://127.0.0.1:11434" in repr(it.http)
    assert "Ollama" == it.display_name
    await it.close()


# Vectors.


async def test_texts_become_vectors():
    """In their order, all in one request; what is too long is no vector of its beginning."""
    async with provider(OllamaWire()) as server, ollama(server) as it:
        response = await it.backend(MODEL).embed(
            pb.EmbedRequest(model=MODEL, inputs=["a", "bcd"], dimensions=2, normalize=True), new_call()
        )
    assert [[1, 0], [3, 1]] == [list(each.values) for each in response.embeddings]
    assert (MODEL, 5) == (response.model, response.usage.prompt_tokens)
    assert ["/api/embed"] == [each.path for each in server.requests]
    assert {
        "model": MODEL,
        "options": {},
        "input": ["a", "bcd"],
        "truncate": False,
        "dimensions": 2,
    } == server.requests[0].json


@pytest.mark.parametrize(
    ("request_", "field", "num_requests"),
    [
        (pb.EmbedRequest(inputs=["a"], pooling=pb.POOLING_MEAN), "pooling", 0),
        (pb.EmbedRequest(inputs=["a"], normalize=False), "normalize", 0),
        # Only the vectors tell what the model has.
        (pb.EmbedRequest(inputs=["a"], dimensions=4), "dimensions", 1),
    ],
)
async def test_what_vectors_cannot_be_is_refused(request_, field, num_requests):
    """With the field's path."""
    async with provider(OllamaWire()) as server, ollama(server) as it:
        with pytest.raises(errors.UnsupportedByBackend) as raised:
            await it.backend(MODEL).embed(request_, new_call())
    assert [field] == [path for path, _ in raised.value.violations]
    assert num_requests == len(server.requests)


class Answering(OllamaWire):
    """Answers any request with the test's reply. `asked`: one has come."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    def is_completion(self, request: Request) -> bool:
        self.asked.set()
        return True


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"embeddings": [[1.0]]}', errors.UpstreamProtocolError),
        (b'{"embeddings": null}', errors.UpstreamProtocolError),
        (b'{"embeddings": [["secret"], [1]]}', errors.UpstreamProtocolError),
        (b"<html>", errors.UpstreamProtocolError),
    ],
)
async def test_vectors_that_are_none_break_the_format(body, expected):
    """One for each text, of numbers."""
    async with provider(Answering()) as server, ollama(server) as it:
        server.reply = Reply(steps=[body])
        with pytest.raises(expected) as raised:
            await it.backend(MODEL).embed(pb.EmbedRequest(inputs=["a", "b"]), new_call())
    assert "secret" not in raised.value.message + raised.value.detail


async def test_a_text_that_is_too_long_is_told():
    """Not the vector of its beginning."""
    async with provider(Answering()) as server, ollama(server) as it:
        server.reply = Reply(
            400, steps=[server.wire.error(400, message="the input length exceeds the context length")]
        )
        with pytest.raises(errors.ContextLengthExceeded):
            await it.backend(MODEL).embed(pb.EmbedRequest(inputs=["a"]), new_call())


# How it is.


async def test_it_is_asked_how_it_is_for_its_models():
    """Which needs no model; a server that answers is there."""
    async with provider(OllamaWire()) as server, ollama(server) as it:
        await it.check()
        assert [("GET", "/api/tags")] == [(each.method, each.path) for each in server.requests]
    async with provider(Answering()) as server, ollama(server) as it:
        server.reply = server.failed(503)
        with pytest.raises(errors.UpstreamUnavailable):
            await it.check()


# Models there.


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, -1), (60.0, 60), (0.5, 1), (90.25, 91), (86400.0 * 365, 86400 * 365)]
)
async def test_a_model_is_loaded_for_its_time(seconds, expected):
    """In whole seconds, never less; without a time, until it is unloaded."""
    async with provider(OllamaWire()) as server, ollama(server) as it:
        await it.load(MODEL, seconds)
        assert {MODEL: expected} == server.wire.held
        assert {
            "model": MODEL,
            "options": {},
            "stream": False,
            "keep_alive": expected,
        } == server.requests[0].json
        assert ["/api/generate"] == [each.path for each in server.requests]
        await it.unload(MODEL)
        assert {} == server.wire.held


async def test_a_model_that_is_not_there_is_not_fetched():
    """Gigabytes are the operator's to ask for."""
    wire = OllamaWire()
    wire.library = {"new:7b"}
    async with provider(wire) as server, ollama(server) as it:
        with pytest.raises(errors.UpstreamModelNotFound):
            await it.load("new:7b", None)
        assert ["/api/generate"] == [each.path for each in server.requests]


async def test_a_load_fetches_the_model_where_the_operator_says_so():
    """Only one that is not there: a server without the internet can still load what it has."""
    wire = OllamaWire()
    wire.library = {"new:7b"}
    async with provider(wire) as server, ollama(server, options={"pull": True}) as it:
        await it.load("new:7b", None)
        await it.load(MODEL, 7)
        assert {"new:7b": -1, MODEL: 7} == wire.held
        expected = ["/api/generate", "/api/pull", "/api/generate", "/api/generate"]
        assert expected == [each.path for each in server.requests]
        assert {"model": "new:7b", "stream": True} == server.requests[1].json
        with pytest.raises(errors.UpstreamModelNotFound):
            await it.load("nowhere", None)


PULLED = [_line(status="pulling manifest"), _line(status="pulling", total=2), _line(status="success")]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (PULLED, None),
        ([*PULLED[:-1], b'{"status": "success"}'], None),
        ([PULLED[0], b"\n", *PULLED[1:]], None),
        (PULLED[:-1], errors.UpstreamTruncated),
        ([], errors.UpstreamTruncated),
        ([*PULLED[:-1], _line(error="secret")], errors.UpstreamProtocolError),
        (
            [*PULLED[:-1], _line(error="pull model manifest: file does not exist")],
            errors.UpstreamModelNotFound,
        ),
        ([*PULLED[:-1], b'{"error": "secret"}'], errors.UpstreamProtocolError),
        ([*PULLED[:-1], b"garbage\n"], errors.UpstreamProtocolError),
    ],
)
async def test_what_is_fetched_is_fetched_whole(lines, expected, seed):
    """Only "success" is one, at any split of the lines; else nothing is loaded."""
    load = Reply(steps=[_line(done=True, done_reason="load")])
    async with provider(Answering()) as server, ollama(server, options={"pull": True}) as it:
        steps = pieces(b"".join(lines), random.Random(seed))
        server.queue = [server.failed(404), Reply(media_type=server.wire.media_type, steps=steps), load]
        if expected is None:
            await it.load(MODEL, None)
            assert 3 == len(server.requests)
        else:
            with pytest.raises(expected) as raised:
                await it.load(MODEL, None)
            assert "secret" not in raised.value.message + raised.value.detail
            assert 2 == len(server.requests)


@pytest.mark.parametrize("pull", [False, True])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, errors.UpstreamAuth),
        (404, errors.UpstreamModelNotFound),
        (500, errors.UpstreamProtocolError),
        (503, errors.UpstreamUnavailable),
    ],
)
async def test_a_load_that_fails_says_why(status, expected, pull):
    """By its status, as an answer does."""
    async with provider(Answering()) as server, ollama(server, options={"pull": pull}) as it:
        server.reply = server.failed(status)
        with pytest.raises(expected):
            await it.load(MODEL, None)
        assert (2 if pull and status == 404 else 1) == len(server.requests)


@pytest.mark.parametrize("body", [b'{"done": false}', b"{}", b"", b"OK"])
async def test_a_load_is_over_when_ollama_says_so(body):
    """A status alone is not enough."""
    async with provider(Answering()) as server, ollama(server) as it:
        server.reply = Reply(steps=[body])
        with pytest.raises(errors.UpstreamProtocolError):
            await it.load(MODEL, None)


class Embedder(OllamaWire):
    """Of models that only give embeddings: whatever else is asked is answered with the test's reply."""

    def is_completion(self, request: Request) -> bool:
        return not request.path.endswith("/api/embed")


async def test_a_model_that_takes_no_prompt_is_loaded_all_the_same():
    """By a request for no vector; if that is refused too, so is the load."""
    async with provider(Embedder()) as server, ollama(server) as it:
        server.reply = server.failed(400)
        await it.load(MODEL, 60)
        assert {MODEL: 60} == server.wire.held
        assert {"model": MODEL, "options": {}, "input": [], "keep_alive": 60} == server.requests[-1].json
    async with provider(Answering()) as server, ollama(server) as it:
        server.reply = server.failed(400)
        with pytest.raises(errors.UpstreamRejected):
            await it.load(MODEL, 60)


async def test_a_load_may_be_silent_for_longer_than_an_answer():
    """`load_seconds` is its patience, for the fetching and the loading; to stop waiting closes the connection."""
    async with provider(Answering()) as server:
        server.reply = Reply(steps=[Stall()])
        async with ollama(server, idle_seconds=0.05, options={"load_seconds": 0.2}) as it:
            begin = asyncio.get_running_loop().time()
            with pytest.raises(errors.UpstreamStalled):
                await it.load(MODEL, None)
            assert 0.2 <= asyncio.get_running_loop().time() - begin
        server.wire.asked.clear()
        async with ollama(server, idle_seconds=0.05) as it:
            load = asyncio.create_task(it.load(MODEL, None))
            await server.wire.asked.wait()
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
            # A connection's task ends when its caller leaves; the test's timeout is the guard.
            await asyncio.wait(server._tasks)


async def test_a_server_loads_asks_and_unloads_it():
    """Load reaches Ollama and is READY when it is; the model answers under its own name; Unload frees it there."""
    async with provider(OllamaWire()) as server:
        backends = {"o": settings(server, models=[], allow_unlisted=True)}
        async with running(backends=backends, scripted=False) as (_, client):
            request = models_pb2.LoadRequest(model="mine")
            request.source.remote.backend, request.source.remote.model = "o", MODEL
            request.keep_alive.FromSeconds(600)
            loaded = (await client.load(request)).model
            assert models_pb2.MODEL_STATE_READY == loaded.state
            assert {MODEL: 600} == server.wire.held
            (listed,) = (await client.list_models()).models
            assert ("mine", "o", MODEL) == (listed.name, listed.backend, listed.source.remote.model)
            assert listed.capabilities.tools
            (health,) = (await client.health()).models
            assert ("mine", models_pb2.MODEL_STATE_READY) == (health.name, health.state)
            answer = await client.complete(chat(model="mine"))
            assert HELLO.text == answer.message.parts[0].text
            assert ("mine", "o") == (answer.started.model, answer.started.backend)
            assert MODEL == server.completions[0].json["model"]
            vectors = await client.embed(["four"], model="mine")
            assert [4, 0, 0.5] == list(vectors.embeddings[0].values)
            assert (await client.unload("mine")).was_loaded
            assert {} == server.wire.held
            assert [] == list((await client.list_models()).models)
            with pytest.raises(InferwireError) as raised:
                await client.complete(chat(model="mine"))
            assert "MODEL_NOT_FOUND" == raised.value.reason


async def test_a_server_says_why_a_load_failed():
    """The caller of Load, and whoever asks afterwards; unlisted models are not for everybody."""
    async with provider(OllamaWire()) as server:
        backends = {"open": settings(server, allow_unlisted=True), "shut": settings(server)}
        async with running(backends=backends, scripted=False) as (_, client):
            request = models_pb2.LoadRequest(model="mine")
            request.source.remote.backend, request.source.remote.model = "open", "nowhere"
            with pytest.raises(InferwireError) as raised:
                await client.load(request)
            assert ("NOT_FOUND", "UPSTREAM_MODEL_NOT_FOUND") == (raised.value.code.name, raised.value.reason)
            model = await client.get_model("mine")
            assert models_pb2.MODEL_STATE_FAILED == model.state
            assert "UPSTREAM_MODEL_NOT_FOUND" in str(model.failure)
            request.source.remote.backend = "shut"
            with pytest.raises(InferwireError) as raised:
                await client.load(request)
            assert "MODEL_NOT_FOUND" == raised.value.reason
            # Those that are listed are there without a load.
            listed = {model.name for model in (await client.list_models()).models}
            assert {f"open/{MODEL}", f"shut/{MODEL}", "mine"} == listed
            assert HELLO.text == (await client.complete(chat(model=f"shut/{MODEL}"))).message.parts[0].text
