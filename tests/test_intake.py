"""The engine's door: requests become sequences with every value filled in, or are refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire_server import errors
from inferwire_server.engine.chat.family import family
from inferwire_server.engine.chat.model import ChatModel, template_messages
from inferwire_server.engine.chat.template import ChatTemplate
from inferwire_server.engine.intake import Intake, resolve_sampling, sampling_params
from inferwire_server.engine.sequence import SamplingParams
from inferwire_server.engine.v1 import engine_pb2
from tests.engine_fakes import EOS, NUM_TOKENS, FakeClock, FakeVocabulary

CONTEXT_LENGTH = 32
DEFAULTS = SamplingParams()


class NoGrammars:
    """Compiles nothing: no request here asks for a form."""

    def is_special(self, token: int) -> bool:
        return False

    def compile(self, response_format: pb.ResponseFormat) -> Any:
        raise AssertionError("a form was asked for")

    def compile_lark(self, text: str, field: str) -> Any:
        raise AssertionError("a form was asked for")


def make_intake(source: str | None = None, *, clock: FakeClock | None = None) -> Intake:
    vocabulary = FakeVocabulary()
    model = None
    if source is not None:
        template = ChatTemplate(source, bos="\1", eos="<eos>", max_bytes=1000)
        model = ChatModel(
            model="demo", template=template, family=family("plain"), vocabulary=vocabulary, grammars=NoGrammars(),
        )  # fmt: skip
    return Intake(
        model="demo", instance_id="i1", vocabulary=vocabulary, chat=model,
        context_length=CONTEXT_LENGTH, clock=clock or FakeClock(),
    )  # fmt: skip


def submit(request: pb.CompleteRequest, **fields: Any) -> engine_pb2.SubmitCommand:
    fields = {"sequence_id": 7, "request_id": "r7", "time_limit_seconds": 60.0} | fields
    return engine_pb2.SubmitCommand(request=request, **fields)


def prompt(text: str = "Hi", **fields: Any) -> pb.CompleteRequest:
    return pb.CompleteRequest(prompt=text, **fields)


def chat(**fields: Any) -> pb.CompleteRequest:
    messages = [pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")])]
    return pb.CompleteRequest(chat=pb.Chat(messages=messages, **fields))


class TestSequence:
    def test_a_plain_request(self) -> None:
        """What was not asked for is the default, and `started` says what is in force."""
        sequence = make_intake(clock=FakeClock(100.0)).sequence(submit(prompt(sampling=pb.Sampling(seed=5))))
        assert [1, *b"Hi"] == sequence.prompt
        assert (7, 29, 100.0, 160.0, None) == (
            sequence.sequence_id, sequence.max_tokens, sequence.arrived, sequence.time_limit, sequence.deadline,
        )  # fmt: skip
        assert ("r7", "demo", "local", "i1", 29) == (
            sequence.started.id, sequence.started.model, sequence.started.backend,
            sequence.started.model_instance_id, sequence.started.max_tokens,
        )  # fmt: skip
        wants = (
            sequence.want_logprobs, sequence.want_progress, sequence.want_token_ids, sequence.want_message,
            sequence.ignore_eos,
        )  # fmt: skip
        assert (False,) * 5 == wants
        assert (0, frozenset(), 0) == (sequence.priority, sequence.stop_tokens, sequence.repetition_limit)

    def test_everything_asked_for(self) -> None:
        """Each option reaches its place."""
        sequence = make_intake(clock=FakeClock(100.0)).sequence(
            submit(
                prompt(
                    stopping=pb.Stopping(
                        max_tokens=3, stop=["END"], include_stop=True, ignore_eos=True, stop_token_ids=[4, 5],
                        repetition_limit=6,
                    ),
                    output=pb.OutputOptions(logprobs=True, top_logprobs=2, progress=True, token_ids=True, message=True),
                    scheduling=pb.Scheduling(priority=-3),
                ),
                deadline_seconds=2.5,
            )
        )  # fmt: skip
        assert (3, 102.5, frozenset({4, 5}), 6, -3) == (
            sequence.max_tokens, sequence.deadline, sequence.stop_tokens, sequence.repetition_limit, sequence.priority,
        )  # fmt: skip
        assert (True, True, 2, True, True, True) == (
            sequence.ignore_eos, sequence.want_logprobs, sequence.num_top_logprobs, sequence.want_progress,
            sequence.want_token_ids, sequence.want_message,
        )  # fmt: skip
        assert "one END" == sequence.text.push(b"one END two")

    def test_a_deadline_may_be_now(self) -> None:
        """Zero seconds are a deadline, not none."""
        assert 0.0 == make_intake().sequence(submit(prompt(), deadline_seconds=0.0)).deadline

    @pytest.mark.parametrize(
        ("num_bytes", "stopping", "max_tokens"),
        [
            (CONTEXT_LENGTH - 2, pb.Stopping(), 1),
            (CONTEXT_LENGTH - 1, pb.Stopping(max_tokens=0), 0),
            (1, pb.Stopping(max_tokens=0), 0),
            (1, pb.Stopping(max_tokens=1000), CONTEXT_LENGTH - 2),
        ],
    )
    def test_the_room_of_the_context(self, num_bytes: int, stopping: pb.Stopping, max_tokens: int) -> None:
        """max_tokens is at most what the context has room for, and says so; 0 needs no room."""
        sequence = make_intake().sequence(submit(prompt("a" * num_bytes, stopping=stopping)))
        assert (max_tokens, max_tokens) == (sequence.max_tokens, sequence.started.max_tokens)

    @pytest.mark.parametrize(
        ("num_bytes", "stopping"),
        [
            (CONTEXT_LENGTH - 1, pb.Stopping()),
            (CONTEXT_LENGTH - 1, pb.Stopping(max_tokens=1)),
            (CONTEXT_LENGTH, pb.Stopping(max_tokens=0)),
            (500, pb.Stopping()),
        ],
    )
    def test_beyond_the_context(self, num_bytes: int, stopping: pb.Stopping) -> None:
        """Nothing is cut: the request is refused with both numbers."""
        with pytest.raises(errors.ContextLengthExceeded) as caught:
            make_intake().sequence(submit(prompt("a" * num_bytes, stopping=stopping)))
        assert {
            "model": "demo", "promptTokens": str(num_bytes + 1), "contextLength": str(CONTEXT_LENGTH),
        } == caught.value.metadata  # fmt: skip

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"sampling": pb.Sampling(logit_bias={0: 1, NUM_TOKENS: 1})}, "sampling.logit_bias"),
            ({"stopping": pb.Stopping(stop_token_ids=[0, (1 << 32) - 1])}, "stopping.stop_token_ids"),
        ],
    )
    def test_ids_outside_the_vocabulary(self, fields: dict[str, Any], field: str) -> None:
        """A token that the model does not have is an error, not an index into memory."""
        with pytest.raises(errors.InvalidRequest) as caught:
            make_intake().sequence(submit(prompt(**fields)))
        assert [field] == [path for path, _ in caught.value.violations]

    def test_the_last_id_is_inside(self) -> None:
        """Ids are counted from 0."""
        sequence = make_intake().sequence(
            submit(prompt(stopping=pb.Stopping(stop_token_ids=[NUM_TOKENS - 1])))
        )
        assert frozenset({NUM_TOKENS - 1}) == sequence.stop_tokens


SCALARS = [
    (path, field.name)
    for path, kind in (("", pb.Sampling), ("xtc", pb.Xtc), ("dry", pb.Dry), ("mirostat", pb.Mirostat))
    for field in kind.DESCRIPTOR.fields
    if field.cpp_type != field.CPPTYPE_MESSAGE and field.has_presence
]


class TestSampling:
    def test_defaults(self) -> None:
        """A request that says nothing gets the defaults that the contract names, and those of no filter it left off."""
        resolved = resolve_sampling(pb.Sampling())
        assert (40, 64) == (resolved.top_k, resolved.penalty_window)
        floats = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "top_n_sigma": 0.0,
                  "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}  # fmt: skip
        assert pytest.approx(floats) == {name: getattr(resolved, name) for name in floats}
        assert (False, False, False) == tuple(resolved.HasField(name) for name in ("xtc", "dry", "mirostat"))
        resolved = resolve_sampling(pb.Sampling(xtc=pb.Xtc(), dry=pb.Dry(), mirostat=pb.Mirostat(version=2)))
        assert (1.75, 2, -1) == (resolved.dry.base, resolved.dry.allowed_length, resolved.dry.window)
        assert ["\n", ":", '"', "*"] == list(resolved.dry.sequence_breakers)
        assert pytest.approx([0.1, 5.0, 0.1]) == [
            resolved.xtc.threshold, resolved.mirostat.tau, resolved.mirostat.eta,
        ]  # fmt: skip

    def test_every_scalar_is_filled_in(self) -> None:
        """`started` leaves no value of the sampling open."""
        asked = pb.Sampling(xtc=pb.Xtc(), dry=pb.Dry(), mirostat=pb.Mirostat())
        resolved = resolve_sampling(asked)
        for path, name in SCALARS:
            holder = getattr(resolved, path) if path else resolved
            assert holder.HasField(name), f"{path}.{name}"

    @pytest.mark.parametrize(("path", "name"), SCALARS)
    def test_zero_is_a_value(self, path: str, name: str) -> None:
        """A zero that was said is not replaced by a default, on either side of the door."""
        asked = pb.Sampling()
        setattr(getattr(asked, path) if path else asked, name, 0)
        resolved = resolve_sampling(asked)
        assert 0 == getattr(getattr(resolved, path) if path else resolved, name)
        assert 0 == getattr(sampling_params(resolved), f"{path}_{name}" if path else name)

    def test_what_was_asked_is_in_force(self) -> None:
        """Values reach the sampler as they were sent."""
        asked = pb.Sampling(
            temperature=0.5, top_k=3, seed=9, logit_bias={4: -math.inf, 5: 2.0},
            xtc=pb.Xtc(probability=0.5, threshold=0.25), mirostat=pb.Mirostat(version=1, tau=4, eta=0.5),
            dry=pb.Dry(multiplier=2, base=3, allowed_length=4, window=5, sequence_breakers=["!"]),
        )  # fmt: skip
        params = sampling_params(resolve_sampling(asked))
        assert (0.5, 3, 9, {4: -math.inf, 5: 2.0}) == (
            params.temperature, params.top_k, params.seed, params.logit_bias,
        )  # fmt: skip
        assert (0.5, 0.25, 1, 4.0, 0.5) == (
            params.xtc_probability, params.xtc_threshold, params.mirostat_version, params.mirostat_tau,
            params.mirostat_eta,
        )  # fmt: skip
        assert (2.0, 3.0, 4, 5, ("!",)) == (
            params.dry_multiplier, params.dry_base, params.dry_allowed_length, params.dry_window,
            params.dry_sequence_breakers,
        )  # fmt: skip

    def test_what_is_off_is_the_default(self) -> None:
        """Filters that were left off do nothing."""
        params = sampling_params(resolve_sampling(pb.Sampling(seed=0)))
        assert (0.0, 0.0, 0) == (params.xtc_probability, params.dry_multiplier, params.mirostat_version)
        assert (DEFAULTS.xtc_threshold, DEFAULTS.dry_sequence_breakers) == (
            params.xtc_threshold, params.dry_sequence_breakers,
        )  # fmt: skip
        assert not params.looks_back

    def test_the_request_stays_as_it_is(self) -> None:
        """Filling in the defaults changes a copy."""
        asked = pb.Sampling(xtc=pb.Xtc())
        resolve_sampling(asked)
        assert pb.Sampling(xtc=pb.Xtc()) == asked

    def test_the_seed(self) -> None:
        """A seed that was given is told again, 0 too; else one is drawn, another each time."""
        assert [0, 5] == [resolve_sampling(pb.Sampling(seed=seed)).seed for seed in (0, 5)]
        assert len({resolve_sampling(pb.Sampling()).seed for _ in range(8)}) > 1
        sequence = make_intake().sequence(submit(prompt()))
        assert sequence.started.sampling.seed == sequence.sampling.seed

    @pytest.mark.parametrize(
        ("params", "looks_back"),
        [
            (SamplingParams(), False),
            (SamplingParams(repetition_penalty=1.1), True),
            (SamplingParams(frequency_penalty=-1), True),
            (SamplingParams(presence_penalty=1, penalty_window=0), False),
            (SamplingParams(dry_multiplier=1), True),
            (SamplingParams(dry_multiplier=1, dry_window=0), False),
        ],
    )
    def test_who_looks_back(self, params: SamplingParams, looks_back: bool) -> None:
        """Only a draw that depends on the tokens before it needs the prompt."""
        assert looks_back == params.looks_back


class TestPrompt:
    def test_a_raw_prompt(self) -> None:
        """BOS is added, and the words of special tokens are read as those tokens: who sends it writes the template."""
        assert [1, *b"Hi", EOS] == make_intake().prompt_tokens(prompt("Hi<eos>"))

    def test_a_chat_goes_through_the_template(self) -> None:
        """The template writes the special tokens, BOS included."""
        intake = make_intake("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
        assert [1, *b"Hi", EOS] == intake.prompt_tokens(chat())

    def test_a_model_without_a_template(self) -> None:
        """A chat is refused, and the field named."""
        with pytest.raises(errors.UnsupportedByBackend) as caught:
            make_intake().prompt_tokens(chat())
        assert ["chat"] == [path for path, _ in caught.value.violations]

    def test_a_template_that_writes_nothing(self) -> None:
        """An input without a token is refused: there would be nothing to compute."""
        with pytest.raises(errors.InvalidRequest) as caught:
            make_intake("").prompt_tokens(chat())
        assert ["chat"] == [path for path, _ in caught.value.violations]

    def test_template_arguments(self) -> None:
        """A Struct's values become Python's: whole numbers are whole, null is none."""
        intake = make_intake("{{ [i, f, s, b, n, l, o, big] | tojson if i is defined }}x")
        request = chat()
        request.chat.template_arguments.update(
            {"i": 5, "f": 1.5, "s": "x", "b": True, "n": None, "l": [1, [2.0]], "o": {"k": -0.0}, "big": 1e20}
        )
        text = bytes(intake.prompt_tokens(request)).decode()
        assert '[5, 1.5, "x", true, null, [1, [2]], {"k": 0}, 100000000000000000000]x' == text

    def test_a_number_that_json_has_not(self) -> None:
        """The engine's door holds also what the gateway should have refused."""
        request = chat()
        request.chat.template_arguments.update({"n": math.nan, "i": math.inf})
        assert b"nan inf" == bytes(make_intake("{{ n }} {{ i }}").prompt_tokens(request))


class TestMessages:
    def test_the_shape(self) -> None:
        """Roles in lower case, parts of text joined, thoughts apart, calls with their arguments as objects."""
        call = pb.ToolCall(id="c1", name="add", arguments='{"a": 1}')
        parts = [
            pb.Part(reasoning=pb.Reasoning(text="h")), pb.Part(reasoning=pb.Reasoning(text="m")),
            pb.Part(text="a"), pb.Part(tool_call=call), pb.Part(text="b"),
            pb.Part(tool_call=pb.ToolCall(id="c2", name="now")),
        ]  # fmt: skip
        conversation = pb.Chat(
            messages=[
                pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="s")]),
                pb.Message(role=pb.ROLE_ASSISTANT, parts=parts),
            ]
        )
        assert [
            {"role": "system", "content": "s"},
            {
                "role": "assistant",
                "content": "ab",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}},
                    {"type": "function", "id": "c2", "function": {"name": "now", "arguments": {}}},
                ],
            },
        ] == template_messages(conversation)

    def test_one_result_per_message(self) -> None:
        """Results that came in one message are one message each for the template."""
        results = [pb.Part(tool_result=pb.ToolResult(call_id=id, text=id * 2)) for id in "ab"]
        conversation = pb.Chat(messages=[pb.Message(role=pb.ROLE_TOOL, parts=results)])
        assert [
            {"role": "tool", "content": "aa", "tool_call_id": "a", "name": ""},
            {"role": "tool", "content": "bb", "tool_call_id": "b", "name": ""},
        ] == template_messages(conversation)


class TestQueries:
    @pytest.mark.parametrize(
        ("add_special", "parse_special"), list(itertools.product([False, True], repeat=2))
    )
    def test_tokenize(self, add_special: bool, parse_special: bool) -> None:
        """Ids and bytes index by index, with special tokens as asked."""
        answer = make_intake().tokenize(
            pb.TokenizeRequest(text="é<eos>", add_special=add_special, parse_special=parse_special)
        )
        ids = [1] * add_special + list("é".encode()) + ([EOS] if parse_special else list(b"<eos>"))
        assert ("demo", ids) == (answer.model, list(answer.token_ids))
        assert (b"\1" if add_special else b"") + "é<eos>".encode() == b"".join(answer.pieces)

    def test_detokenize(self) -> None:
        """Bytes as they are, also when they are no text; an unknown id is refused."""
        intake = make_intake()
        assert b"a\xe2<eos>" == intake.detokenize(pb.DetokenizeRequest(token_ids=[97, 0xE2, EOS])).data
        assert b"" == intake.detokenize(pb.DetokenizeRequest()).data
        with pytest.raises(errors.InvalidRequest) as caught:
            intake.detokenize(pb.DetokenizeRequest(token_ids=[NUM_TOKENS]))
        assert ["token_ids"] == [path for path, _ in caught.value.violations]

    def test_count_tokens(self) -> None:
        """What a completion would put before the model; a prompt that is too long is counted, too."""
        answer = make_intake().count_tokens(prompt("a" * 99))
        assert pb.CountTokensResponse(model="demo", tokens=100, context_length=CONTEXT_LENGTH) == answer
