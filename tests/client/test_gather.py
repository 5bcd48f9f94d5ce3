"""What a stream's concatenation is. Pure: no server."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferwire.gather import Gatherer, gather
from inferwire.v1 import inference_pb2 as inference
from tests.client.scripted import UNKNOWN_EVENT, Event, completion, reasoning, started, text


def tool_call(index: int, arguments: str = "", *, id: str = "", name: str = "") -> Event:
    return Event(tool_call=inference.ToolCallDelta(index=index, id=id, name=name, arguments=arguments))


def parts_of(*deltas: Event) -> list[inference.Part]:
    return list(gather([started(), *deltas, completion()]).message.parts)


def text_part(whole: str) -> inference.Part:
    return inference.Part(text=whole)


def thought_part(whole: str, signature: bytes = b"") -> inference.Part:
    return inference.Part(reasoning=inference.Reasoning(text=whole, signature=signature))


def call_part(id: str, name: str, arguments: str) -> inference.Part:
    return inference.Part(tool_call=inference.ToolCall(id=id, name=name, arguments=arguments))


class TestParts:
    def test_runs_are_one_part(self) -> None:
        """A delta extends the last part when that is of its kind, else it begins a new one."""
        assert [thought_part("hm"), text_part("ab"), thought_part("so"), text_part("c")] == parts_of(
            reasoning("h"), reasoning("m"), text("a"), text("b"), reasoning("so"), text("c")
        )

    def test_a_tool_call_is_one_part(self) -> None:
        """A call stands where its first delta stood, and gets all its arguments, whatever comes between."""
        assert [
            call_part("c0", "add", '{"a":1}'),
            text_part("and"),
            call_part("c1", "sub", "{}"),
        ] == parts_of(
            tool_call(0, id="c0", name="add"),
            tool_call(0, '{"a"'),
            text("and"),
            tool_call(1, "{}", id="c1", name="sub"),
            tool_call(0, ":1}"),
        )

    def test_a_signature_ends_its_thought(self) -> None:
        """Two signed thoughts in a row stay two: each signature is valid for its own text only."""
        assert [thought_part("ab", b"S1"), thought_part("c", b"S2")] == parts_of(
            reasoning("a"), reasoning("b"), reasoning("", b"S1"), reasoning("c", b"S2")
        )

    def test_a_hidden_thought_is_a_part(self) -> None:
        """A signature without text is a thought that the provider hides."""
        assert [text_part("a"), thought_part("", b"S")] == parts_of(text("a"), reasoning("", b"S"))

    def test_an_empty_answer_has_no_parts(self) -> None:
        """max_tokens 0 answers nothing, and that is a message of the model without parts."""
        response = gather([started(), completion()])
        assert inference.Message(role=inference.Role.ROLE_ASSISTANT) == response.message

    def test_progress_and_unknown_events_leave_no_trace(self) -> None:
        """They are about the way, not the answer; they do not even end a run."""
        progress = Event(progress=inference.Progress(queue=inference.QueueProgress(position=1)))
        assert [text_part("ab")] == parts_of(progress, text("a"), UNKNOWN_EVENT, text("b"))

    def test_tokens_without_text_count(self) -> None:
        """A delta that carries token ids alone adds them, and begins no part."""
        bare = Event(text=inference.TextDelta(token_ids=[1, 2]))
        response = gather([started(), bare, completion()])
        assert ([1, 2], 0) == (list(response.token_ids), len(response.message.parts))


class TestEnd:
    def test_no_completion(self) -> None:
        """A plain iterable that ends early gives no answer that could be taken for whole."""
        with pytest.raises(ValueError, match="completion"):
            gather([started(), text("a")])

    def test_the_answer_so_far(self) -> None:
        """`response` may be asked at any time; without the completion it says so by its absence."""
        gatherer = Gatherer()
        assert "<Gatherer [new | parts 0 | token ids 0]>" == repr(gatherer)
        gatherer.add(started())
        gatherer.add(text("a"))
        assert "<Gatherer [started | parts 1 | token ids 0]>" == repr(gatherer)
        early = gatherer.response()
        assert not early.HasField("completion")
        gatherer.add(text("b"))
        gatherer.add(completion())
        assert "<Gatherer [completed | parts 1 | token ids 0]>" == repr(gatherer)
        assert ("a", "ab") == (early.message.parts[0].text, gatherer.response().message.parts[0].text)
        assert gatherer.response() == gatherer.response()


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=3)


@st.composite
def deltas(draw: st.DrawFn) -> Event:
    """One delta of any kind, with token ids and their logprobs."""
    ids = draw(tokens)
    logprobs = [inference.TokenLogprob(token_id=token_id, logprob=-1) for token_id in ids]
    piece = draw(st.text("ab é☃", max_size=4))
    match draw(st.sampled_from(["text", "reasoning", "tool_call"])):
        case "text":
            return Event(text=inference.TextDelta(text=piece, token_ids=ids, logprobs=logprobs))
        case "reasoning":
            delta = inference.ReasoningDelta(text=piece, token_ids=ids, logprobs=logprobs)
            delta.signature = draw(st.sampled_from([b"", b"", b"sig"]))
            return Event(reasoning=delta)
        case _:
            call = inference.ToolCallDelta(arguments=piece, token_ids=ids, logprobs=logprobs)
            call.index = draw(st.integers(0, 2))
            return Event(tool_call=call)


def delta_of(
    event: Event,
) -> inference.TextDelta | inference.ReasoningDelta | inference.ToolCallDelta:
    arm = event.WhichOneof("event")
    assert arm is not None
    delta = getattr(event, arm)
    assert isinstance(delta, inference.TextDelta | inference.ReasoningDelta | inference.ToolCallDelta)
    return delta


@given(st.lists(deltas(), max_size=12), tokens)
def test_everything_concatenates(events: list[Event], last_ids: list[int]) -> None:
    """Of each kind, the parts joined are the deltas joined: nothing is lost, doubled or put out of order."""
    end = Event(completion=inference.Completion(token_ids=last_ids))
    response = gather([started(), *events, end])
    parts = response.message.parts
    assert "".join(e.text.text for e in events) == "".join(p.text for p in parts)
    assert "".join(e.reasoning.text for e in events) == "".join(p.reasoning.text for p in parts)
    assert b"".join(e.reasoning.signature for e in events) == b"".join(p.reasoning.signature for p in parts)
    seen = dict.fromkeys(e.tool_call.index for e in events if e.HasField("tool_call"))
    arguments = ["".join(e.tool_call.arguments for e in events if e.tool_call.index == i) for i in seen]
    assert arguments == [p.tool_call.arguments for p in parts if p.HasField("tool_call")]
    ids = [token_id for e in events for token_id in delta_of(e).token_ids]
    assert [*ids, *last_ids] == list(response.token_ids)
    assert ids == [logprob.token_id for logprob in response.logprobs]
    assert (started().started, end.completion) == (response.started, response.completion)


@given(st.lists(deltas(), max_size=12))
def test_no_part_is_empty_or_mergeable(events: list[Event]) -> None:
    """Two neighbours of one kind would have been one, unless a signature stands between them."""
    parts = gather([started(), *events, completion()]).message.parts
    for part in parts:
        assert part.text or part.reasoning.text or part.reasoning.signature or part.HasField("tool_call")
    for left, right in itertools.pairwise(parts):
        assert not (left.HasField("text") and right.HasField("text"))
        assert not (left.HasField("reasoning") and right.HasField("reasoning")) or left.reasoning.signature


@given(st.lists(deltas(), max_size=12), st.data())
def test_where_an_event_ends_carries_no_meaning(events: list[Event], data: st.DataObject) -> None:
    """A text delta cut in two anywhere gives the same answer; so a proxy may merge and split."""
    cut: list[Event] = []
    for event in events:
        if event.HasField("text"):
            whole = event.text.text
            at = data.draw(st.integers(0, len(whole)))
            cut.append(text(whole[:at]))
            rest = Event()
            rest.CopyFrom(event)
            rest.text.text = whole[at:]
            cut.append(rest)
        else:
            cut.append(event)
    assert gather([*events, completion()]) == gather([*cut, completion()])
