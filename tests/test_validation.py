"""Requests are checked against the contract: every range at its edges, every rule of a chat, all at once."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors, validation

PROTO = Path(__file__).resolve().parent.parent / "proto/inferwire/v1"
MAX_PROMPT_BYTES = 1000


def check(request: pb.CompleteRequest) -> list[tuple[str, str]]:
    """The violations of a request; none when it passes."""
    return violations_of(lambda: validation.complete_request(request, max_prompt_bytes=MAX_PROMPT_BYTES))


def violations_of(call: Callable[[], None]) -> list[tuple[str, str]]:
    try:
        call()
    except errors.InvalidRequest as error:
        return list(error.violations)
    return []


def paths(violations: list[tuple[str, str]]) -> list[str]:
    return [field for field, _ in violations]


def completion(**fields: Any) -> pb.CompleteRequest:
    return pb.CompleteRequest(prompt="Hi", **fields)


def message(role: pb.Role, *parts: pb.Part) -> pb.Message:
    return pb.Message(role=role, parts=parts)


def text(words: str = "Hi") -> pb.Part:
    return pb.Part(text=words)


def call(id: str = "c1", name: str = "f", arguments: str = "{}") -> pb.Part:
    return pb.Part(tool_call=pb.ToolCall(id=id, name=name, arguments=arguments))


def result(call_id: str = "c1", **fields: Any) -> pb.Part:
    return pb.Part(tool_result=pb.ToolResult(call_id=call_id, text="42", **fields))


SYSTEM = message(pb.ROLE_SYSTEM, text())
USER = message(pb.ROLE_USER, text())
ASSISTANT = message(pb.ROLE_ASSISTANT, text())
CALLS = message(pb.ROLE_ASSISTANT, call())
RESULTS = message(pb.ROLE_TOOL, result())


def chat(*messages: pb.Message, **fields: Any) -> pb.CompleteRequest:
    return pb.CompleteRequest(chat=pb.Chat(messages=messages, **fields))


TABLES = [
    ("sampling", pb.Sampling, validation.SAMPLING_RANGES, lambda m: completion(sampling=m)),
    ("sampling.xtc", pb.Xtc, validation.XTC_RANGES, lambda m: completion(sampling=pb.Sampling(xtc=m))),
    ("sampling.dry", pb.Dry, validation.DRY_RANGES, lambda m: completion(sampling=pb.Sampling(dry=m))),
    ("sampling.mirostat", pb.Mirostat, validation.MIROSTAT_RANGES,
     lambda m: completion(sampling=pb.Sampling(mirostat=m))),
]  # fmt: skip


def neighbour(value: float, *, up: bool) -> float:
    """The next 32-bit float."""
    if value == 0:
        return 1e-30 if up else -1e-30
    bits = struct.unpack("<i", struct.pack("<f", value))[0]
    bits += 1 if up == (value > 0) else -1
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


def base(kind: type[Message]) -> dict[str, Any]:
    return {"version": 2} if kind is pb.Mirostat else {}


FLOATS = [
    pytest.param(where, kind, name, least, most, wrap, id=f"{where}.{name}")
    for where, kind, ranges, wrap in TABLES
    for name, (least, most) in ranges.items()
    if kind.DESCRIPTOR.fields_by_name[name].cpp_type == kind.DESCRIPTOR.fields_by_name[name].CPPTYPE_FLOAT
]
INTEGERS = [
    pytest.param(where, kind, name, least, most, wrap, id=f"{where}.{name}")
    for where, kind, ranges, wrap in TABLES
    for name, (least, most) in ranges.items()
    if kind.DESCRIPTOR.fields_by_name[name].cpp_type != kind.DESCRIPTOR.fields_by_name[name].CPPTYPE_FLOAT
]


class TestRanges:
    @pytest.mark.parametrize(("where", "kind", "name", "least", "most", "wrap"), FLOATS)
    def test_floats(self, where: str, kind: Any, name: str, least: float, most: float, wrap: Any) -> None:
        """The edges pass; the next float outside, infinity and `nan` do not."""
        inside = [neighbour(least, up=True), most] + ([least] if least != validation.ABOVE_ZERO else [])
        outside = [neighbour(least, up=False), neighbour(most, up=True), math.inf, -math.inf, math.nan]
        if least == validation.ABOVE_ZERO:
            outside += [0.0, -1.0]
        for value in inside:
            assert [] == check(wrap(kind(**base(kind) | {name: value}))), value
        for value in outside:
            assert [f"{where}.{name}"] == paths(check(wrap(kind(**base(kind) | {name: value})))), value

    @pytest.mark.parametrize(("where", "kind", "name", "least", "most", "wrap"), INTEGERS)
    def test_integers(
        self, where: str, kind: Any, name: str, least: int, most: int | None, wrap: Any
    ) -> None:
        """The edges pass; one below and one above do not."""
        signed = (
            kind.DESCRIPTOR.fields_by_name[name].cpp_type
            == kind.DESCRIPTOR.fields_by_name[name].CPPTYPE_INT32
        )
        limit = (1 << 31) - 1 if signed else (1 << 32) - 1
        for value in (least, limit if most is None else most):
            assert [] == check(wrap(kind(**base(kind) | {name: value})))
        outside = [
            value
            for value in (least - 1, *([] if most is None else [most + 1, limit]))
            if value >= 0 or signed
        ]
        for value in outside:
            assert [f"{where}.{name}"] == paths(check(wrap(kind(**base(kind) | {name: value})))), value

    @pytest.mark.parametrize(("where", "kind", "name", "least", "most", "wrap"), FLOATS + INTEGERS)
    def test_the_contract_says_the_same(
        self, where: str, kind: Any, name: str, least: float, most: float | None, wrap: Any
    ) -> None:
        """Where a field's comment states a range it is that of the table."""
        source = (PROTO / "inference.proto").read_text()
        body = re.search(rf"^message {kind.DESCRIPTOR.name} \{{\n(.*?)^\}}", source, re.MULTILINE | re.DOTALL)
        assert body is not None
        comment = re.search(rf"((?:  //.*\n)+)  (?:optional )?\w+ {name} =", body[1])
        assert comment is not None
        words = re.sub(r"\s*//\s*", " ", comment[1])
        stated = re.search(r"Range: (above 0|-?[\d.]+) to (-?[\d.]+)", words)
        if stated is None:
            assert name in ("top_k", "penalty_window", "allowed_length", "window", "version"), words
            return
        low = validation.ABOVE_ZERO if stated[1] == "above 0" else float(stated[1])
        assert (least, most) == (low, float(stated[2].rstrip(".")))

    @pytest.mark.parametrize(
        ("name", "least", "most"), [(name, *edges) for name, edges in validation.CONFIG_RANGES.items()]
    )
    def test_config(self, name: str, least: int, most: int) -> None:
        """A load's numbers, at their edges and beside them."""

        def violations(value: int) -> list[str]:
            config = models_pb2.LoadConfig(**{name: value})
            return paths(
                violations_of(
                    lambda: validation.load_request(models_pb2.LoadRequest(model="m", config=config))
                )
            )

        assert [] == violations(least) + violations(most)
        assert [f"config.{name}"] == violations(most + 1)
        if least >= 1 or name == "gpu_layers":
            assert [f"config.{name}"] == violations(least - 1)

    @pytest.mark.parametrize(
        ("fields", "path"),
        [
            ({"scheduling": pb.Scheduling(priority=-100)}, None),
            ({"scheduling": pb.Scheduling(priority=100)}, None),
            ({"scheduling": pb.Scheduling(priority=-101)}, "scheduling.priority"),
            ({"scheduling": pb.Scheduling(priority=101)}, "scheduling.priority"),
            ({"scheduling": pb.Scheduling(cache_salt="é" * 128)}, None),
            ({"scheduling": pb.Scheduling(cache_salt="é" * 128 + "a")}, "scheduling.cache_salt"),
            ({"output": pb.OutputOptions(logprobs=True, top_logprobs=20)}, None),
            ({"output": pb.OutputOptions(logprobs=True, top_logprobs=0)}, None),
            ({"output": pb.OutputOptions(logprobs=True, top_logprobs=21)}, "output.top_logprobs"),
            ({"output": pb.OutputOptions(top_logprobs=1)}, "output.top_logprobs"),
            ({"stopping": pb.Stopping(max_tokens=0)}, None),
            ({"stopping": pb.Stopping(max_tokens=(1 << 32) - 1)}, None),
            ({"stopping": pb.Stopping(stop=["a"] * 16)}, None),
            ({"stopping": pb.Stopping(stop=["a"] * 17)}, "stopping.stop"),
            ({"stopping": pb.Stopping(stop=["a", ""])}, "stopping.stop[1]"),
            ({"stopping": pb.Stopping(stop=["é" * 128])}, None),
            ({"stopping": pb.Stopping(stop=["é" * 128 + "a"])}, "stopping.stop[0]"),
            ({"stopping": pb.Stopping(stop_token_ids=range(16))}, None),
            ({"stopping": pb.Stopping(stop_token_ids=range(17))}, "stopping.stop_token_ids"),
            ({"stopping": pb.Stopping(repetition_limit=2)}, None),
            ({"stopping": pb.Stopping(repetition_limit=1)}, "stopping.repetition_limit"),
            ({"stopping": pb.Stopping(repetition_limit=0)}, "stopping.repetition_limit"),
            ({"stopping": pb.Stopping(time_limit=Duration(nanos=1_000_000))}, None),
            ({"stopping": pb.Stopping(time_limit=Duration(seconds=86400))}, None),
            ({"stopping": pb.Stopping(time_limit=Duration())}, "stopping.time_limit"),
            ({"stopping": pb.Stopping(time_limit=Duration(seconds=-1))}, "stopping.time_limit"),
            ({"stopping": pb.Stopping(time_limit=Duration(seconds=86400, nanos=1))}, "stopping.time_limit"),
            ({"sampling": pb.Sampling(seed=0)}, None),
            ({"sampling": pb.Sampling(seed=(1 << 32) - 1)}, None),
            ({"sampling": pb.Sampling(logit_bias={1: -math.inf, 2: 0, 3: 1e30})}, None),
            ({"sampling": pb.Sampling(logit_bias={7: math.inf})}, "sampling.logit_bias[7]"),
            ({"sampling": pb.Sampling(logit_bias={7: math.nan})}, "sampling.logit_bias[7]"),
            ({"sampling": pb.Sampling(logit_bias=dict.fromkeys(range(4096), 1.0))}, None),
            ({"sampling": pb.Sampling(logit_bias=dict.fromkeys(range(4097), 1.0))}, "sampling.logit_bias"),
            ({"sampling": pb.Sampling(mirostat=pb.Mirostat())}, "sampling.mirostat.version"),
            ({"sampling": pb.Sampling(dry=pb.Dry(sequence_breakers=["a"] * 32))}, None),
            ({"sampling": pb.Sampling(dry=pb.Dry(sequence_breakers=["a"] * 33))}, "sampling.dry.sequence_breakers"),
            ({"sampling": pb.Sampling(dry=pb.Dry(sequence_breakers=[""]))}, "sampling.dry.sequence_breakers[0]"),
            ({"sampling": pb.Sampling(dry=pb.Dry(sequence_breakers=["a\0"]))}, "sampling.dry.sequence_breakers[0]"),
            ({"sampling": pb.Sampling(dry=pb.Dry(sequence_breakers=["a" * 65]))}, "sampling.dry.sequence_breakers[0]"),
            ({"model": "a" * 128}, None),
            ({"model": "org/Model-7B_v1.0:q8"}, None),
            ({"model": "a" * 129}, "model"),
            ({"model": "a b"}, "model"),
            ({"model": "modèle"}, "model"),
            ({"model": "a\n"}, "model"),
            ({"response_format": pb.ResponseFormat()}, "response_format"),
            ({"response_format": pb.ResponseFormat(json_object=pb.JsonObject())}, None),
            ({"response_format": pb.ResponseFormat(json_schema="{}")}, None),
            ({"response_format": pb.ResponseFormat(json_schema="true")}, None),
            ({"response_format": pb.ResponseFormat(json_schema="")}, "response_format.json_schema"),
            ({"response_format": pb.ResponseFormat(json_schema="[]")}, "response_format.json_schema"),
            ({"response_format": pb.ResponseFormat(json_schema="[" * 9999)}, "response_format.json_schema"),
            ({"response_format": pb.ResponseFormat(choice=pb.ChoiceList(choices=["a", "b"]))}, None),
            ({"response_format": pb.ResponseFormat(choice=pb.ChoiceList())}, "response_format.choice.choices"),
            ({"response_format": pb.ResponseFormat(choice=pb.ChoiceList(choices=["a", ""]))},
             "response_format.choice.choices"),
            ({"response_format": pb.ResponseFormat(choice=pb.ChoiceList(choices=["a", "a"]))},
             "response_format.choice.choices"),
            ({"response_format": pb.ResponseFormat(grammar=pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_LARK))}, None),
            ({"response_format": pb.ResponseFormat(grammar=pb.Grammar())}, "response_format.grammar.syntax"),
            ({"response_format": pb.ResponseFormat(grammar=pb.Grammar(syntax=9))}, "response_format.grammar.syntax"),
        ],
    )  # fmt: skip
    def test_everything_else(self, fields: dict[str, Any], path: str | None) -> None:
        """Counts, sizes, durations and enums, at their edges and beside them."""
        assert ([] if path is None else [path]) == paths(check(completion(**fields)))


class TestTheInput:
    @pytest.mark.parametrize(
        ("request_", "path"),
        [
            (pb.CompleteRequest(), "input"),
            (pb.CompleteRequest(prompt=""), "prompt"),
            (pb.CompleteRequest(chat=pb.Chat()), "chat.messages"),
            (pb.CompleteRequest(prompt="a"), None),
        ],
    )
    def test_exactly_one(self, request_: pb.CompleteRequest, path: str | None) -> None:
        """A prompt or a chat, and not an empty one. (Both cannot be said: the later one counts.)"""
        assert ([] if path is None else [path]) == paths(check(request_))

    def test_the_later_one_counts(self) -> None:
        """On the wire both may be there; the message then has the last, as protobuf says."""
        data = completion().SerializeToString() + chat(USER).SerializeToString()
        request = pb.CompleteRequest.FromString(data)
        assert "chat" == request.WhichOneof("input")
        assert [] == check(request)

    def test_defaults_pass(self) -> None:
        """Every option may be there and say nothing."""
        assert [] == check(
            completion(
                sampling=pb.Sampling(xtc=pb.Xtc(), dry=pb.Dry()),
                stopping=pb.Stopping(),
                output=pb.OutputOptions(),
                scheduling=pb.Scheduling(),
            )
        )

    def test_all_violations_at_once(self) -> None:
        """A caller learns everything from one answer, each with its exact path."""
        request = pb.CompleteRequest(
            model="not a name",
            chat=pb.Chat(messages=[message(pb.ROLE_UNSPECIFIED, text()), USER, SYSTEM, ASSISTANT]),
            sampling=pb.Sampling(
                temperature=-1, top_p=2, xtc=pb.Xtc(probability=3), logit_bias={5: math.nan}
            ),
            stopping=pb.Stopping(stop=[""], repetition_limit=1),
            response_format=pb.ResponseFormat(json_schema="no"),
            output=pb.OutputOptions(top_logprobs=99),
            scheduling=pb.Scheduling(priority=1000),
        )
        assert [
            "model",
            "chat.messages[0].role",
            "chat.messages[2].role",
            "chat.messages[3].role",
            "sampling.temperature",
            "sampling.top_p",
            "sampling.xtc.probability",
            "sampling.logit_bias[5]",
            "stopping.stop[0]",
            "stopping.repetition_limit",
            "response_format.json_schema",
            "output.top_logprobs",
            "output.top_logprobs",
            "scheduling.priority",
        ] == paths(check(request))


class TestChat:
    @pytest.mark.parametrize(
        "messages",
        [
            (USER,),
            (SYSTEM, USER),
            (SYSTEM, SYSTEM, USER),
            (USER, ASSISTANT, USER),
            (USER, USER),
            (USER, CALLS, RESULTS),
            (USER, CALLS, RESULTS, USER),
            (USER, CALLS, USER),
            (USER, message(pb.ROLE_ASSISTANT, text(), call("a"), call("b")), message(pb.ROLE_TOOL, result("a")),
             message(pb.ROLE_TOOL, result("b"))),
            (USER, message(pb.ROLE_ASSISTANT, call("a"), call("b")), message(pb.ROLE_TOOL, result("b"), result("a"))),
            (USER, message(pb.ROLE_ASSISTANT, pb.Part(reasoning=pb.Reasoning(text="hm")), text()), USER),
            (message(pb.ROLE_USER, text(), pb.Part(image=pb.Image(data=b"x", media_type="image/png"))),),
            (USER, CALLS, message(pb.ROLE_TOOL, result(images=[pb.Image(data=b"x", media_type="image/png")]))),
            (USER, message(pb.ROLE_ASSISTANT, call(arguments="")), RESULTS),
        ],
    )  # fmt: skip
    def test_what_is_a_conversation(self, messages: tuple[pb.Message, ...]) -> None:
        """SYSTEM first, calls and results in order, USER or TOOL last."""
        assert [] == check(chat(*messages))

    @pytest.mark.parametrize(
        ("messages", "expected"),
        [
            ((message(pb.ROLE_UNSPECIFIED, text()),), ["chat.messages[0].role", "chat.messages[0].role"]),
            ((message(9, text()), USER), ["chat.messages[0].role"]),
            ((USER, SYSTEM, USER), ["chat.messages[1].role"]),
            ((USER, ASSISTANT), ["chat.messages[1].role"]),
            ((SYSTEM,), ["chat.messages[0].role"]),
            ((RESULTS,), ["chat.messages[0].role", "chat.messages[0].parts[0].tool_result.call_id"]),
            ((USER, ASSISTANT, RESULTS),
             ["chat.messages[2].role", "chat.messages[2].parts[0].tool_result.call_id"]),
            ((USER, CALLS, USER, RESULTS),
             ["chat.messages[3].role", "chat.messages[3].parts[0].tool_result.call_id"]),
            ((USER, CALLS, message(pb.ROLE_TOOL, result("c2"))), ["chat.messages[2].parts[0].tool_result.call_id"]),
            ((message(pb.ROLE_USER),), ["chat.messages[0].parts"]),
            ((message(pb.ROLE_USER, pb.Part()),), ["chat.messages[0].parts[0]"]),
            ((message(pb.ROLE_SYSTEM, pb.Part(image=pb.Image(data=b"x", media_type="image/png"))), USER),
             ["chat.messages[0].parts[0].image"]),
            ((message(pb.ROLE_USER, call()),), ["chat.messages[0].parts[0].tool_call"]),
            ((message(pb.ROLE_USER, result()),), ["chat.messages[0].parts[0].tool_result"]),
            ((USER, message(pb.ROLE_ASSISTANT, result()), USER), ["chat.messages[1].parts[0].tool_result"]),
            ((USER, CALLS, message(pb.ROLE_TOOL, text())), ["chat.messages[2].parts[0].text"]),
            ((message(pb.ROLE_USER, pb.Part(image=pb.Image())),),
             ["chat.messages[0].parts[0].image.data", "chat.messages[0].parts[0].image.media_type"]),
            ((USER, CALLS, message(pb.ROLE_TOOL, result(images=[pb.Image(data=b"x", media_type="text/html")]))),
             ["chat.messages[2].parts[0].tool_result.images[0].media_type"]),
            ((USER, message(pb.ROLE_ASSISTANT, call(name="")), USER), ["chat.messages[1].parts[0].tool_call.name"]),
            ((USER, message(pb.ROLE_ASSISTANT, call(arguments="[1]")), USER),
             ["chat.messages[1].parts[0].tool_call.arguments"]),
            ((USER, message(pb.ROLE_ASSISTANT, call(arguments='{"a":')), USER),
             ["chat.messages[1].parts[0].tool_call.arguments"]),
            ((USER, message(pb.ROLE_ASSISTANT, call(arguments='{"a":' * 5000)), USER),
             ["chat.messages[1].parts[0].tool_call.arguments"]),
        ],
    )  # fmt: skip
    def test_what_is_none(self, messages: tuple[pb.Message, ...], expected: list[str]) -> None:
        """Each rule of a conversation, with the path of the message or part that breaks it."""
        limit = 100_000
        violations = violations_of(
            lambda: validation.complete_request(chat(*messages), max_prompt_bytes=limit)
        )
        assert expected == paths(violations)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"tools": [pb.Tool(name="f"), pb.Tool(name="g", parameters="{}")]}, []),
            ({"tools": [pb.Tool(name="f"), pb.Tool(name="f")]}, ["chat.tools[1].name"]),
            ({"tools": [pb.Tool(name="")]}, ["chat.tools[0].name"]),
            ({"tools": [pb.Tool(name="a" * 64)]}, []),
            ({"tools": [pb.Tool(name="a" * 65)]}, ["chat.tools[0].name"]),
            ({"tools": [pb.Tool(name="f g")]}, ["chat.tools[0].name"]),
            ({"tools": [pb.Tool(name="f", parameters="[]")]}, ["chat.tools[0].parameters"]),
            ({"tools": [pb.Tool(name="f", parameters="no")]}, ["chat.tools[0].parameters"]),
            ({"tools": [pb.Tool(name="f", parameters='{"properties": 5}')]}, ["chat.tools[0].parameters"]),
            ({"tool_choice": pb.ToolChoice()}, ["chat.tool_choice"]),
            ({"tool_choice": pb.ToolChoice(name="f")}, ["chat.tool_choice.name"]),
            ({"tools": [pb.Tool(name="f")], "tool_choice": pb.ToolChoice(name="f")}, []),
            ({"tool_choice": pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)}, ["chat.tool_choice.mode"]),
            ({"tool_choice": pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO)}, []),
            ({"tool_choice": pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_UNSPECIFIED)}, ["chat.tool_choice.mode"]),
            ({"tool_choice": pb.ToolChoice(mode=9)}, ["chat.tool_choice.mode"]),
            ({"reasoning": pb.ReasoningOptions(effort=pb.REASONING_EFFORT_HIGH)}, []),
            ({"reasoning": pb.ReasoningOptions(effort=9)}, ["chat.reasoning.effort"]),
        ],
    )
    def test_tools_and_reasoning(self, fields: dict[str, Any], expected: list[str]) -> None:
        """Names are unique and callable, schemas are objects, a choice names a tool."""
        assert expected == paths(check(chat(USER, **fields)))

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_template_arguments_are_finite(self, number: float) -> None:
        """JSON has no such numbers, though a Struct can carry them."""
        request = chat(USER)
        request.chat.template_arguments.update(
            {"a": number, "b": {"c": [1, number]}, "d": [True, None, "x", 1.5]}
        )
        expected = ["chat.template_arguments.a", "chat.template_arguments.b.c[1]"]
        assert expected == sorted(paths(check(request)))


class TestSizes:
    @pytest.mark.parametrize(
        ("request_", "size"),
        [
            (pb.CompleteRequest(prompt="é" * 500 + "a"), 1001),
            (chat(message(pb.ROLE_USER, text("a" * 1000))), None),
            (chat(*[message(pb.ROLE_USER, text("a" * 400))] * 3), None),
        ],
    )
    def test_a_prompt_too_large(self, request_: pb.CompleteRequest, size: int | None) -> None:
        """Bytes of UTF-8 are counted, of all messages together; the answer says both numbers."""
        with pytest.raises(errors.PromptTooLarge) as caught:
            check(request_)
        assert str(MAX_PROMPT_BYTES) == caught.value.metadata["maxBytes"]
        assert int(caught.value.metadata["bytes"]) > MAX_PROMPT_BYTES
        if size is not None:
            assert str(size) == caught.value.metadata["bytes"]

    def test_a_prompt_at_the_limit(self) -> None:
        """The limit itself passes."""
        assert [] == check(pb.CompleteRequest(prompt="é" * 500))

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (chat(*[USER] * 4097), "chat.messages"),
            (chat(USER, tools=[pb.Tool(name=f"t{number}") for number in range(129)]), "chat.tools"),
            (chat(USER, tools=[pb.Tool(name="t", parameters=" " * 262145)]), "chat.tools[0].parameters"),
            (completion(response_format=pb.ResponseFormat(json_schema=" " * 262145)), "response_format.json_schema"),
            (completion(response_format=pb.ResponseFormat(regex="a" * 262145)), "response_format.regex"),
            (completion(response_format=pb.ResponseFormat(
                grammar=pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_GBNF, text="a" * 262145))),
             "response_format.grammar.text"),
            (chat(message(pb.ROLE_USER, pb.Part(
                image=pb.Image(data=b"x" * ((16 << 20) + 1), media_type="image/png")))),
             "chat.messages[0].parts[0].image.data"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )  # fmt: skip
    def test_a_part_too_large(self, request_: pb.CompleteRequest, field: str) -> None:
        """Lists, schemas, grammars and images have their own limits; the answer says field, size and limit."""
        with pytest.raises(errors.RequestTooLarge) as caught:
            check(request_)
        assert field == caught.value.metadata["field"]
        assert int(caught.value.metadata["size"]) > int(caught.value.metadata["maxSize"])


class TestOtherRequests:
    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            (pb.EmbedRequest(inputs=["a"]), []),
            (pb.EmbedRequest(), ["inputs"]),
            (pb.EmbedRequest(inputs=["a", ""]), ["inputs[1]"]),
            (pb.EmbedRequest(model="a b", inputs=["a"]), ["model"]),
        ],
    )
    def test_embed(self, request_: pb.EmbedRequest, expected: list[str]) -> None:
        """At least one text, none empty."""
        assert expected == paths(
            violations_of(lambda: validation.embed_request(request_, max_prompt_bytes=100))
        )

    def test_embed_sizes(self) -> None:
        """At most 2048 texts, and the limit counts all of them."""
        with pytest.raises(errors.RequestTooLarge):
            validation.embed_request(pb.EmbedRequest(inputs=["a"] * 2049), max_prompt_bytes=9999)
        with pytest.raises(errors.PromptTooLarge):
            validation.embed_request(pb.EmbedRequest(inputs=["a" * 60] * 2), max_prompt_bytes=100)

    def test_tokens(self) -> None:
        """Texts may be empty, and not beyond the limit."""
        validation.tokenize_request(pb.TokenizeRequest(), max_prompt_bytes=4)
        validation.detokenize_request(pb.DetokenizeRequest(), max_prompt_bytes=4)
        with pytest.raises(errors.PromptTooLarge):
            validation.tokenize_request(pb.TokenizeRequest(text="€€"), max_prompt_bytes=4)
        with pytest.raises(errors.PromptTooLarge):
            validation.detokenize_request(pb.DetokenizeRequest(token_ids=range(5)), max_prompt_bytes=4)
        for check_, request in (
            (validation.tokenize_request, pb.TokenizeRequest(model="a b")),
            (validation.detokenize_request, pb.DetokenizeRequest(model="a b")),
        ):
            with pytest.raises(errors.InvalidRequest):
                check_(request, max_prompt_bytes=4)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, []),
            ({"source": models_pb2.ModelSource()}, ["source"]),
            ({"keep_alive": Duration(seconds=1)}, []),
            ({"keep_alive": Duration()}, ["keep_alive"]),
            ({"config": models_pb2.LoadConfig(batch_size=4, micro_batch_size=5)}, ["config.micro_batch_size"]),
            ({"config": models_pb2.LoadConfig(batch_size=4, parallel_sequences=4)}, []),
            ({"config": models_pb2.LoadConfig(batch_size=4, parallel_sequences=5)}, ["config.batch_size"]),
            ({"config": models_pb2.LoadConfig(flash_attention=9)}, ["config.flash_attention"]),
            ({"config": models_pb2.LoadConfig(
                value_cache_type=models_pb2.CACHE_TYPE_Q8_0, flash_attention=models_pb2.FLASH_ATTENTION_OFF)},
             ["config.value_cache_type"]),
            ({"config": models_pb2.LoadConfig(rope=models_pb2.Rope(freq_base=math.nan))}, ["config.rope.freq_base"]),
            ({"config": models_pb2.LoadConfig(rope=models_pb2.Rope(yarn_ext_factor=math.inf))},
             ["config.rope.yarn_ext_factor"]),
            ({"config": models_pb2.LoadConfig(rope=models_pb2.Rope(freq_base=1e6, yarn_ext_factor=-1))}, []),
            ({"config": models_pb2.LoadConfig(tensor_split=[1, -1, math.inf])},
             ["config.tensor_split[1]", "config.tensor_split[2]"]),
            ({"config": models_pb2.LoadConfig(chat_template="é" * 131073)}, ["config.chat_template"]),
        ],
    )  # fmt: skip
    def test_load(self, fields: dict[str, Any], expected: list[str]) -> None:
        """A source that says nothing, settings at odds with one another, numbers that are none."""
        request = models_pb2.LoadRequest(model="m", **fields)
        assert expected == paths(violations_of(lambda: validation.load_request(request)))

    def test_names_are_required(self) -> None:
        """Load, Unload and GetModel name a model."""
        for call_ in (
            lambda: validation.load_request(models_pb2.LoadRequest()),
            lambda: validation.unload_request(models_pb2.UnloadRequest()),
            lambda: validation.get_model_request(pb.GetModelRequest()),
        ):
            assert ["model"] == paths(violations_of(call_))

    @pytest.mark.parametrize(
        ("timeout", "expected"),
        [
            (Duration(), []),
            (Duration(seconds=3600), []),
            (Duration(seconds=3601), ["drain_timeout"]),
            (Duration(seconds=-1), ["drain_timeout"]),
        ],
    )
    def test_unload(self, timeout: Duration, expected: list[str]) -> None:
        """From now to an hour."""
        request = models_pb2.UnloadRequest(model="m", drain_timeout=timeout)
        assert expected == paths(violations_of(lambda: validation.unload_request(request)))
