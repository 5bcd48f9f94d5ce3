"""A response format is kept to the letter, whatever the model would rather say, or the request is refused."""

from __future__ import annotations

import asyncio
import json
import re

import grpc
import pytest

from inferwire import text_of
from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.engine.text_reader import TextReader

from . import engine_fakes
from .engine_fakes import Bench, make_sequence, saying
from .serving import bare_stub, demo, running

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 3, "maximum": 9},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GBNF = 'root ::= "<" [0-9]{2,4} ">"'
LARK = 'start: "[" NUMBER ("," NUMBER){0,3} "]"\nNUMBER: /[1-9]{1,2}/'


def fits_person(text: str) -> bool:
    person = json.loads(text)
    return (
        set(person) == {"name", "age", "tags"}
        and 1 <= len(person["name"]) <= 12
        and person["age"] in range(3, 10)
        and len(person["tags"]) <= 3
        and set(person["tags"]) <= {"a", "b"}
    )


FORMATS = {
    "json_schema": (pb.ResponseFormat(json_schema=json.dumps(PERSON)), fits_person),
    "regex": (
        pb.ResponseFormat(regex=r"[a-c]{3}-\d{1,4}!"),
        lambda text: bool(re.fullmatch(r"[a-c]{3}-\d{1,4}!", text)),
    ),
    "choice": (
        pb.ResponseFormat(choice=pb.ChoiceList(choices=["yes", 'a "quote"', "naïve 月"])),
        lambda text: text in ("yes", 'a "quote"', "naïve 月"),
    ),
    "gbnf": (
        pb.ResponseFormat(grammar=pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_GBNF, text=GBNF)),
        lambda text: bool(re.fullmatch(r"<[0-9]{2,4}>", text)),
    ),
    "lark": (
        pb.ResponseFormat(grammar=pb.Grammar(syntax=pb.GRAMMAR_SYNTAX_LARK, text=LARK)),
        lambda text: bool(re.fullmatch(r"\[[1-9]{1,2}(,[1-9]{1,2}){0,3}\]", text)),
    ),
    "json_object": (
        pb.ResponseFormat(json_object=pb.JsonObject()),
        lambda text: isinstance(json.loads(text), dict),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
async def test_every_whole_answer_has_the_form(name):
    """Thirty seeds at a high temperature: what ended by itself fits, what was cut short is a beginning."""
    response_format, fits = FORMATS[name]
    num_whole = 0
    async with running(models={"demo": demo()}) as (_, client):
        assert (await client.get_model("demo")).capabilities.structured_output
        for seed in range(30):
            request = pb.CompleteRequest(prompt="Once upon a time", response_format=response_format)
            request.sampling.seed = seed
            request.sampling.temperature = 1.5
            request.stopping.max_tokens = 120
            response = await client.complete(request)
            if response.completion.finish_reason == pb.FINISH_REASON_STOP:
                num_whole += 1
                assert fits(text_of(response.message)), text_of(response.message)
            else:
                assert pb.FINISH_REASON_LENGTH == response.completion.finish_reason
    assert num_whole >= (5 if name == "json_object" else 25)


async def test_a_chat_is_constrained_as_well_and_beside_free_ones():
    """The constraint is the request's own: the stream beside it says what it says."""
    async with running(models={"demo": demo()}) as (_, client):
        chat = pb.Chat(
            messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="What is the capital of France?")])]
        )
        bound = pb.CompleteRequest(chat=chat, response_format=FORMATS["choice"][0])
        free = pb.CompleteRequest(chat=chat)
        for request in (bound, free):
            request.sampling.temperature = 0
        answers = await asyncio.gather(*(client.complete(request) for request in (bound, free, bound, free)))
        texts = [text_of(answer.message) for answer in answers]
        assert texts[0] == texts[2] in ("yes", 'a "quote"', "naïve 月")
        assert ["The capital of France is Paris."] * 2 == texts[1::2]


async def test_log_probabilities_are_those_before_the_constraint():
    """A token that had to come may have been unlikely, and that is told."""
    async with running(models={"demo": demo()}) as (_, client):
        request = pb.CompleteRequest(prompt="Once upon a time", response_format=FORMATS["gbnf"][0])
        request.sampling.temperature = 0
        request.output.logprobs = True
        request.output.top_logprobs = 1
        response = await client.complete(request)
        assert response.logprobs[0].token_id != response.logprobs[0].top[0].token_id
        assert response.logprobs[0].logprob < response.logprobs[0].top[0].logprob


@pytest.mark.parametrize("regex", ["(.*a.{500}){300}", "((((a{1,99}){1,99}){1,99}){1,99}){1,99}b{99999999}"])
async def test_a_regex_that_costs_much_is_refused_or_kept_within_bounds(regex):
    """The compiler is lazy, so some bombs can be begun: the answer is bounded, or ends with its reason."""
    async with running(models={"demo": demo()}) as (server, client), bare_stub(server) as stub:
        instance = server.registry.model("demo").instance_id
        request = pb.CompleteRequest(prompt="Once", response_format=pb.ResponseFormat(regex=regex))
        request.stopping.max_tokens = 30
        try:
            outcome = (await stub.Complete(request)).completion.finish_reason
        except grpc.aio.AioRpcError as error:
            outcome = error.code()
        assert outcome in (pb.FINISH_REASON_LENGTH, grpc.StatusCode.INVALID_ARGUMENT)
        assert (await client.complete(prompt="Once", model="demo", max_tokens=1)).HasField("completion")
        assert instance == server.registry.model("demo").instance_id


class Exhausted:
    """A constraint that can say nothing from its third token on."""

    is_complete = False

    def __init__(self) -> None:
        self.num_asked = 0

    def mask(self):
        self.num_asked += 1
        if self.num_asked > 2:
            raise errors.GrammarTooComplex("the response format exceeds the limits")

    def accept(self, token: int) -> None:
        pass

    def forced(self) -> list[int]:
        return []


def test_a_constraint_that_fails_midway_fails_the_request():
    """No token is drawn without it; the others go on."""
    bench = Bench()
    bench.run(make_sequence(1, [0], reader=TextReader(Exhausted())), make_sequence(2, [0], max_tokens=9))
    assert "ERROR_REASON_GRAMMAR_TOO_COMPLEX" == errors_name(bench, 1)
    assert "completion" == bench.events[2][-1].WhichOneof("event")
    bench.assert_nothing_held()


class Forcing:
    """A constraint that leaves no choice behind an "a": "bc" must follow, and then all ends at a "d"."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    @property
    def is_complete(self) -> bool:
        return self.taken[-1:] == [ord("d")]

    def mask(self):
        return None

    def accept(self, token: int) -> None:
        self.taken.append(token)

    def forced(self) -> list[int]:
        return list(b"bc") if self.taken[-1:] == [ord("a")] else []


@pytest.mark.parametrize(("want_logprobs", "num_steps"), [(False, 2), (True, 4)])
def test_what_must_come_is_not_drawn(want_logprobs: bool, num_steps: int):
    """Forced tokens are told and computed at once, with the token behind them; who wants log probabilities draws all."""
    bench = Bench(saying(b"abcd"))
    sequence = make_sequence(1, [0], reader=TextReader(Forcing()), want_logprobs=want_logprobs)
    events = bench.run(sequence)
    assert "abcd" == engine_fakes.text_of(events)
    assert (pb.FINISH_REASON_STOP, 4) == (
        events[-1].completion.finish_reason,
        events[-1].completion.usage.completion_tokens,
    )
    assert num_steps == len(bench.runner.batches)
    bench.assert_nothing_held()


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_forced_tokens_count(max_tokens: int):
    """They are part of the answer, and of its limit."""
    events = Bench(saying(b"abcd")).run(
        make_sequence(1, [0], reader=TextReader(Forcing()), max_tokens=max_tokens)
    )
    assert ("abc"[:max_tokens], pb.FINISH_REASON_LENGTH) == (
        engine_fakes.text_of(events),
        events[-1].completion.finish_reason,
    )


def errors_name(bench: Bench, sequence_id: int) -> str:
    """Returns the name of the reason that a sequence failed with."""
    from inferwire.v1.error_reason_pb2 import ErrorReason

    return ErrorReason.Name(bench.errors[sequence_id].reason)
