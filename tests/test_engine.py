"""The loop of the engine over a model that is arithmetic: what each sequence is told, and what it leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from inferwire.v1 import error_reason_pb2
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.engine.cells import Sharing
from tests.engine_fakes import CONTEXT_LENGTH, EOS, Bench, kinds_of, make_sequence, saying, text_of

Events = list[pb.StreamCompleteResponse]


def assert_lawful(events: Events) -> None:
    """`started` first and once, one completion and it is last, no empty delta."""
    kinds = kinds_of(events)
    assert ("started", "completion") == (kinds[0], kinds[-1])
    assert (1, 1) == (kinds.count("started"), kinds.count("completion"))
    assert all(event.text.text for event in events if event.HasField("text"))


def seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def completion_of(events: Events) -> pb.Completion:
    assert_lawful(events)
    return events[-1].completion


def without_times(events: Events) -> list[pb.StreamCompleteResponse]:
    copies = []
    for event in events:
        copy = pb.StreamCompleteResponse()
        copy.CopyFrom(event)
        copy.completion.ClearField("timing") if copy.HasField("completion") else None
        copies.append(copy)
    return copies


requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 255), min_size=1, max_size=30),
        "max_tokens": st.integers(0, 30),
        "stops": st.lists(st.text("abcde", min_size=1, max_size=2), max_size=3),
        "include_stop": st.booleans(),
        "stop_tokens": st.frozensets(st.sampled_from([*range(97, 123), EOS]), max_size=2),
        "repetition_limit": st.sampled_from([0, 0, 2, 3]),
        "priority": st.integers(-1, 1),
        "want_progress": st.booleans(),
        "want_token_ids": st.booleans(),
        "want_logprobs": st.booleans(),
        "want_message": st.booleans(),
    }
)


class TestTheLawOfTheStream:
    @settings(deadline=None)
    @given(st.lists(requests, min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 8))
    def test_any_requests(self, fields: list[dict[str, Any]], num_slots: int, spare: int) -> None:
        """Whatever runs beside it, each sequence is told by the law, and nothing is held afterwards."""
        bench = Bench(num_slots=num_slots, batch_size=num_slots + spare, token_seconds=0.001)
        bench.run(*(make_sequence(number, **field) for number, field in enumerate(fields)))
        bench.assert_nothing_held()
        assert {} == bench.errors
        for number, field in enumerate(fields):
            events = bench.events[number]
            completion = completion_of(events)
            deltas = [event.text for event in events if event.HasField("text")]
            generated = completion.usage.completion_tokens
            assert len(field["prompt"]) == completion.usage.prompt_tokens
            assert generated <= field["max_tokens"]
            token_ids = [token for delta in deltas for token in delta.token_ids] + list(completion.token_ids)
            logprobs = [entry for delta in deltas for entry in delta.logprobs] + list(completion.logprobs)
            assert (generated if field["want_token_ids"] else 0) == len(token_ids)
            assert (generated if field["want_logprobs"] else 0) == len(logprobs)
            if field["want_token_ids"] and field["want_logprobs"]:
                assert token_ids == [entry.token_id for entry in logprobs]
            if field["want_message"]:
                assert text_of(events) == "".join(part.text for part in completion.message.parts)
            assert field["want_progress"] == ("progress" in kinds_of(events))
            if field["want_progress"]:
                last = max(place for place, kind in enumerate(kinds_of(events)) if kind == "progress")
                assert "text" not in kinds_of(events)[:last]

    @settings(deadline=None)
    @given(st.lists(requests, min_size=2, max_size=4))
    def test_neighbours_do_not_matter(self, fields: list[dict[str, Any]]) -> None:
        """A sequence is told the same alone and among others."""
        together = Bench(num_slots=2, batch_size=4)
        for field in fields:
            field["want_progress"] = False
        together.run(*(make_sequence(number, **field) for number, field in enumerate(fields)))
        for number, field in enumerate(fields):
            alone = Bench(num_slots=1, batch_size=4).run(make_sequence(number, **field))
            assert without_times(alone) == without_times(together.events[number])

    def test_started_comes_with_the_first_delta(self) -> None:
        """Until there is something to say nothing is said, so that an early failure may still be retried."""
        bench = Bench(saying(b"ab"), batch_size=4)
        bench.submit(make_sequence(1, [0]))
        bench.engine.run_until_idle()
        first = next(report for report in bench.reports if report.sequences)
        assert ["started", "text"] == kinds_of(first.sequences[0].events)

    def test_an_empty_answer(self) -> None:
        """No delta at all: `started` comes together with the completion."""
        assert ["started", "completion"] == kinds_of(Bench(saying(b"")).run(make_sequence(1, [0])))

    def test_each_step_is_one_report(self) -> None:
        """A step is reported also when it tells nothing else: a long prompt is still a sign of life."""
        bench = Bench(batch_size=4)
        bench.run(make_sequence(1, [5] * 20, max_tokens=0))
        assert 5 == len(bench.reports)
        assert [4, 8, 12, 16, 0] == [report.cells_used for report in bench.reports]
        assert [1, 1, 1, 1, 0] == [report.running for report in bench.reports]

    def test_a_report_tells_what_the_step_did(self) -> None:
        """Its tokens, sequences and seconds, and totals that only grow; the second time the prompt comes from the cache."""
        bench = Bench(lambda context: ord("a"), batch_size=20, sharing=Sharing.PREFIX, step_seconds=0.5)
        for number in (1, 2):
            bench.run(make_sequence(number, [5] * 30, max_tokens=3))
        told = [
            (
                report.step_tokens,
                report.step_sequences,
                report.step_seconds,
                report.prompt_tokens_total,
                report.cached_prompt_tokens_total,
                report.completion_tokens_total,
            )
            for report in bench.reports
        ]
        assert [
            (20, 1, 0.5, 20, 0, 0),
            (10, 1, 0.5, 30, 0, 1),
            (1, 1, 0.5, 30, 0, 2),
            (1, 1, 0.5, 30, 0, 3),
            (1, 1, 0.5, 31, 29, 4),
            (1, 1, 0.5, 31, 29, 5),
            (1, 1, 0.5, 31, 29, 6),
        ] == told
        assert {bench.scheduler.cells.num_cells} == {report.cells_total for report in bench.reports}

    def test_characters_are_whole(self) -> None:
        """A token that ends inside a character shows nothing until the character is whole."""
        events = Bench(saying("a€".encode())).run(make_sequence(1, [0]))
        assert ["a", "€"] == [event.text.text for event in events if event.HasField("text")]


class TestHowAnAnswerEnds:
    @pytest.mark.parametrize(
        ("answer", "fields", "text", "completion"),
        [
            (b"abc", {}, "abc", pb.Completion(finish_reason=pb.FINISH_REASON_STOP, eos_token=EOS)),
            (b"abc", {"max_tokens": 0}, "", pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH)),
            (b"abc", {"max_tokens": 1}, "a", pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH)),
            (b"abc", {"max_tokens": 3}, "abc", pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH)),
            (b"abc", {"max_tokens": 4}, "abc", pb.Completion(finish_reason=pb.FINISH_REASON_STOP, eos_token=EOS)),
            (b"ab!c", {"stop_tokens": frozenset(b"!")}, "ab",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP, stop_token=ord("!"))),
            (b"ab", {"stop_tokens": frozenset([EOS])}, "ab",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP, stop_token=EOS)),
            (b"one END", {"stops": ["END"]}, "one ",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string="END")),
            (b"one END", {"stops": ["END"], "include_stop": True}, "one END",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string="END")),
            (b"one EN", {"stops": ["END"]}, "one EN",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP, eos_token=EOS)),
            (b"one EN", {"stops": ["END"], "max_tokens": 6}, "one EN",
             pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH)),
            (b"END", {"stops": ["END"], "max_tokens": 3}, "",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string="END")),
            (b"a\xe2", {"stops": ["\ufffd"]}, "a",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP_STRING, stop_string="\ufffd")),
            (b"abbbc", {"repetition_limit": 3}, "abbb", pb.Completion(finish_reason=pb.FINISH_REASON_REPETITION)),
            (b"abbcbb", {"repetition_limit": 3}, "abbcbb",
             pb.Completion(finish_reason=pb.FINISH_REASON_STOP, eos_token=EOS)),
            (b"bb", {"repetition_limit": 2}, "bb", pb.Completion(finish_reason=pb.FINISH_REASON_REPETITION)),
            (b"a\xe2\x82", {}, "a\ufffd", pb.Completion(finish_reason=pb.FINISH_REASON_STOP, eos_token=EOS)),
            (b"ab", {"ignore_eos": True, "max_tokens": 4}, "ab!!",
             pb.Completion(finish_reason=pb.FINISH_REASON_LENGTH)),
        ],
    )  # fmt: skip
    def test_reason_and_text(
        self, answer: bytes, fields: dict[str, Any], text: str, completion: pb.Completion
    ) -> None:
        """Each way to end has its reason, says what stopped it, and leaves exactly its text."""
        bench = Bench(saying(answer))
        events = bench.run(make_sequence(1, [0], **fields))
        ended = completion_of(events)
        assert text == text_of(events)
        expected = (completion.finish_reason, completion.WhichOneof("stopped_by"))
        assert expected == (ended.finish_reason, ended.WhichOneof("stopped_by"))
        stopped_by = completion.WhichOneof("stopped_by")
        if stopped_by is not None:
            assert getattr(completion, stopped_by) == getattr(ended, stopped_by)
        bench.assert_nothing_held()

    def test_a_full_context_is_length(self) -> None:
        """With max_tokens at what the context has room for, the last cell is never passed."""
        prompt = [0] * 10
        bench = Bench(lambda context: ord("a"))
        events = bench.run(make_sequence(1, prompt, max_tokens=CONTEXT_LENGTH - len(prompt)))
        assert pb.FINISH_REASON_LENGTH == completion_of(events).finish_reason
        assert CONTEXT_LENGTH - len(prompt) == len(text_of(events))
        assert max(report.cells_used for report in bench.reports) < CONTEXT_LENGTH

    def test_a_prompt_may_fill_the_context(self) -> None:
        """Who wants no token may use every cell for the prompt."""
        bench = Bench()
        events = bench.run(make_sequence(1, [0] * CONTEXT_LENGTH, max_tokens=0))
        assert ["started", "completion"] == kinds_of(events)
        bench.assert_nothing_held()

    @pytest.mark.parametrize("num_neighbours", [0, 1], ids=["running", "waiting"])
    def test_the_time_limit(self, num_neighbours: int) -> None:
        """At its time limit an answer ends with what there is, also when it still waits for a slot."""
        bench = Bench(lambda context: ord("a"), num_slots=1, step_seconds=0.125)
        neighbours = [make_sequence(2, [0], max_tokens=20)][:num_neighbours]
        bench.submit(*neighbours)
        events = bench.run(make_sequence(1, [0], time_limit=1.25))
        assert pb.FINISH_REASON_TIME_LIMIT == completion_of(events).finish_reason
        assert (10 if not neighbours else 0) == len(text_of(events))
        timing = events[-1].completion.timing
        assert 1.25 == seconds(timing.total)
        assert (0.0 if not neighbours else 1.25) == seconds(timing.queued)
        assert (not neighbours) == timing.HasField("time_to_first_token")
        bench.assert_nothing_held()

    def test_the_time_limit_tells_what_is_held_back(self) -> None:
        """Half a stop text and half a character are told when time is up."""
        bench = Bench(saying(b"one EN\xe2" + b"x" * 40), step_seconds=0.1)
        assert "one EN\ufffd" == text_of(bench.run(make_sequence(1, [0], stops=["END"], time_limit=0.7)))

    @pytest.mark.parametrize("num_neighbours", [0, 1], ids=["running", "waiting"])
    def test_the_deadline(self, num_neighbours: int) -> None:
        """At the call's deadline a sequence fails, also when it still waits; no completion is told."""
        bench = Bench(lambda context: ord("a"), num_slots=1, step_seconds=0.125)
        neighbours = [make_sequence(2, [0], max_tokens=20)][:num_neighbours]
        bench.submit(*neighbours)
        events = bench.run(make_sequence(1, [0], deadline=1.25, time_limit=1.25))
        assert "completion" not in kinds_of(events)
        assert [1] == list(bench.errors)
        assert error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED == bench.errors[1].reason
        last = [entry for report in bench.reports for entry in report.sequences if entry.sequence_id == 1][-1]
        assert (10 if not neighbours else 0) == last.generated_tokens
        bench.assert_nothing_held()


PHASES = [
    pytest.param(0, id="before its first step"),
    pytest.param(1, id="between two chunks"),
    pytest.param(4, id="decoding"),
]


class TestCancel:
    @pytest.mark.parametrize("after_reports", PHASES)
    def test_nothing_is_held(self, after_reports: int) -> None:
        """In every phase a cancelled sequence leaves no cell and no sampler, and hears nothing more."""
        bench = Bench(num_slots=1, batch_size=4)
        bench.submit(make_sequence(1, [9] * 12, want_progress=True))
        told: list[int] = []

        def cancel() -> None:
            told.append(len(bench.events[1]))
            bench.engine.cancel(1)

        bench.at_report(after_reports, cancel) if after_reports else cancel()
        bench.engine.run_until_idle()
        bench.assert_nothing_held()
        assert told == [len(bench.events[1])]
        assert "completion" not in kinds_of(bench.events[1])
        assert (0, 0, 0) == (
            bench.reports[-1].running,
            bench.reports[-1].waiting,
            bench.reports[-1].cells_used,
        )

    def test_while_waiting(self) -> None:
        """A sequence without a slot can be cancelled; who holds the slot does not notice."""
        bench = Bench(saying(b"abcdef"), num_slots=1)
        bench.at_report(2, lambda: bench.engine.cancel(2))
        events = bench.run(make_sequence(1, [0]), make_sequence(2, [0]))
        assert "abcdef" == text_of(events)
        assert [] == bench.events[2]
        bench.assert_nothing_held()

    @pytest.mark.parametrize("victim", [1, 2, 3])
    @pytest.mark.parametrize("after_reports", range(1, 9))
    def test_others_do_not_notice(self, victim: int, after_reports: int) -> None:
        """The other sequences are told the same as if nobody had been cancelled, also who gets the freed slot."""
        prompts = {1: [3] * 9, 2: [5] * 2, 3: [7] * 6, 4: [4] * 5}

        def run(cancel: bool) -> Bench:
            bench = Bench(num_slots=2, batch_size=4)
            if cancel:
                bench.at_report(after_reports, lambda: bench.engine.cancel(victim))
            bench.run(*(make_sequence(number, prompt, max_tokens=8) for number, prompt in prompts.items()))
            bench.assert_nothing_held()
            return bench

        expected, actual = run(cancel=False), run(cancel=True)
        for number in set(prompts) - {victim}:
            assert without_times(expected.events[number]) == without_times(actual.events[number])

    def test_unknown_ids_are_ignored(self) -> None:
        """A cancel that comes after the end changes nothing, and is no reason for a report."""
        bench = Bench(saying(b"ab"))
        bench.engine.cancel(7)
        assert "ab" == text_of(bench.run(make_sequence(1, [0])))
        num_reports = len(bench.reports)
        bench.engine.cancel(1)
        bench.engine.run_until_idle()
        (report,) = bench.reports[num_reports:]
        assert ([], 0) == (list(report.sequences), report.step_tokens)

    def test_the_freed_cells_are_told_at_once(self) -> None:
        """Also when nobody is left to step for, the gateway learns that the slot is free."""
        bench = Bench()
        emitted = threading.Event()
        bench.at_report(1, lambda: bench.engine.cancel(1))
        bench.at_report(2, emitted.set)
        bench.submit(make_sequence(1, [0] * 40))
        thread = threading.Thread(target=bench.engine.run)
        thread.start()
        assert emitted.wait(30)
        bench.engine.stop()
        thread.join(30)
        assert (0, 0) == (bench.reports[1].running, bench.reports[1].cells_used)


class TestFailures:
    def test_a_rejected_batch_fails_alone(self) -> None:
        """Who was in the batch fails with INTERNAL; who waits and who comes later is answered."""
        bench = Bench(saying(b"abc"), num_slots=1)
        bench.runner.rejects = lambda batch: batch.chunks[0].sequence.sequence_id == 1
        bench.run(make_sequence(1, [0]), make_sequence(2, [0]))
        assert [] == bench.events[1]
        assert [1] == list(bench.errors)
        assert error_reason_pb2.ERROR_REASON_INTERNAL == bench.errors[1].reason
        assert "abc" == text_of(bench.events[2])
        assert "abc" == text_of(bench.run(make_sequence(3, [0])))
        bench.assert_nothing_held()

    def test_who_was_not_in_the_batch_goes_on(self) -> None:
        """A sequence whose prompt had no room in a rejected batch is computed in the next."""
        bench = Bench(batch_size=4)
        rejections = iter([True])
        bench.runner.rejects = lambda batch: next(rejections, False)
        bench.run(make_sequence(1, [0] * 8), make_sequence(2, [0] * 8, max_tokens=3))
        assert [1] == list(bench.errors)
        assert_lawful(bench.events[2])
        bench.assert_nothing_held()

    def test_a_failure_tells_how_much_was_generated(self) -> None:
        """The gateway says tokensEmitted from it."""
        bench = Bench(saying(b"abcdef"))
        bench.at_report(3, lambda: setattr(bench.runner, "rejects", lambda batch: True))
        bench.run(make_sequence(1, [0]))
        assert 3 == bench.reports[-1].sequences[0].generated_tokens

    def test_anything_else_ends_the_loop(self) -> None:
        """Only a rejected batch is survived: the state after another failure is not known."""

        def broken(context: Sequence[int]) -> int:
            raise OSError("the device is gone")

        with pytest.raises(OSError, match="the device is gone"):
            Bench(broken).run(make_sequence(1, [0]))


class TestWhatIsReturned:
    def test_token_ids(self) -> None:
        """Every generated token once and in order; those without text stand in the completion."""
        events = Bench(saying("a€".encode())).run(make_sequence(1, [0], want_token_ids=True))
        deltas = [event.text for event in events if event.HasField("text")]
        assert [list(b"a"), list("€".encode())] == [list(delta.token_ids) for delta in deltas]
        assert [EOS] == list(events[-1].completion.token_ids)

    def test_logprobs(self) -> None:
        """Each token with its bytes, those of the end token too, and as many candidates as asked."""
        events = Bench(saying(b"a")).run(make_sequence(1, [0], want_logprobs=True, num_top_logprobs=2))
        top = [
            pb.TopLogprob(token_id=0, piece=b"\0", logprob=0),
            pb.TopLogprob(token_id=1, piece=b"\1", logprob=-1),
        ]
        assert [pb.TokenLogprob(token_id=97, piece=b"a", logprob=-97, top=top)] == list(
            events[1].text.logprobs
        )
        assert [pb.TokenLogprob(token_id=EOS, piece=b"<eos>", logprob=-EOS, top=top)] == list(
            events[-1].completion.logprobs
        )

    def test_nothing_that_was_not_asked_for(self) -> None:
        """Without the options there are no ids, no log probabilities, no progress and no message."""
        events = Bench(saying(b"ab")).run(make_sequence(1, [0]))
        assert ["started", "text", "text", "completion"] == kinds_of(events)
        assert [pb.TextDelta(text="a"), pb.TextDelta(text="b")] == [event.text for event in events[1:3]]
        completion = events[-1].completion
        assert ([], [], False) == (
            list(completion.token_ids), list(completion.logprobs), completion.HasField("message"),
        )  # fmt: skip

    def test_the_message(self) -> None:
        """The whole answer as the assistant's message, without the stop text."""
        events = Bench(saying(b"one END")).run(make_sequence(1, [0], stops=["END"], want_message=True))
        message = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="one ")])
        assert message == events[-1].completion.message

    def test_queue_positions(self) -> None:
        """Who waits is told how many are ahead, at first and whenever that changes, and nothing twice."""
        bench = Bench(saying(b"ab"), num_slots=1)
        bench.run(*(make_sequence(number, [0], want_progress=True) for number in (1, 2, 3)))
        positions = {
            number: [event.progress.queue.position for event in events if event.progress.HasField("queue")]
            for number, events in bench.events.items()
        }
        assert {1: [], 2: [0], 3: [1, 0]} == positions

    def test_prefill_progress(self) -> None:
        """A prompt's way is told chunk by chunk, to its end."""
        events = Bench(batch_size=8).run(make_sequence(1, [0] * 20, want_progress=True, max_tokens=0))
        stages = [event.progress.prefill for event in events if event.HasField("progress")]
        assert [(8, 20), (16, 20), (20, 20)] == [
            (stage.processed_tokens, stage.total_tokens) for stage in stages
        ]

    def test_started_tells_that_a_slot_was_taken(self) -> None:
        """Who asks for progress hears of its slot in the same step, also when the budget leaves its prompt nothing."""
        bench = Bench(batch_size=8)
        bench.run(*(make_sequence(number, [0] * 8, want_progress=True, max_tokens=0) for number in (1, 2)))
        told = {entry.sequence_id: kinds_of(entry.events) for entry in bench.reports[0].sequences}
        assert {1: ["started", "progress", "completion"], 2: ["started"]} == told

    def test_priority(self) -> None:
        """Who has the higher priority gets the next slot."""
        bench = Bench(saying(b"ab"), num_slots=1)
        bench.run(make_sequence(1, [0]), make_sequence(2, [0]), make_sequence(3, [0], priority=1))
        ended = [
            entry.sequence_id
            for report in bench.reports
            for entry in report.sequences
            if "completion" in kinds_of(entry.events)
        ]
        assert [3, 1, 2] == ended

    def test_timing(self) -> None:
        """Queue, prefill, first token, decode and total, as the clock saw them; a clock may stand at zero."""
        bench = Bench(lambda context: ord("a"), num_slots=1, batch_size=8, step_seconds=1.0)
        bench.run(make_sequence(1, [0], max_tokens=2), make_sequence(2, [0] * 12, max_tokens=3))
        first, second = (bench.events[number][-1].completion.timing for number in (1, 2))

        def times(timing: pb.Timing) -> list[float]:
            names = ("queued", "prefill", "time_to_first_token", "decode", "total")
            return [seconds(getattr(timing, name)) for name in names]

        assert [0.0, 1.0, 1.0, 1.0, 2.0] == times(first)
        assert [2.0, 2.0, 4.0, 2.0, 6.0] == times(second)

    def test_the_prompt_is_told_to_the_sampler(self) -> None:
        """Penalties count the prompt, too."""
        bench = Bench()
        seen: list[list[int]] = []
        bench.at_report(1, lambda: seen.extend(sampler.accepted for sampler in bench.runner.samplers))
        bench.run(make_sequence(1, [3, 1, 2], max_tokens=5))
        assert [[3, 1, 2]] == seen


class TestTheLoop:
    def test_it_runs_until_it_is_stopped(self) -> None:
        """`run` sleeps while there is nothing to do, answers what comes, and ends at `stop`."""
        bench = Bench(saying(b"ab", b"cd"))
        thread = threading.Thread(target=bench.engine.run)
        thread.start()
        for number in (0, 1):
            done = threading.Event()
            bench.at_report(3, done.set)
            bench.submit(make_sequence(number, [number]))
            assert done.wait(30)
        bench.engine.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert ["ab", "cd"] == [text_of(bench.events[number]) for number in (0, 1)]

    def test_the_state_is_shown(self) -> None:
        """The representation tells scheduler, budget and inbox."""
        bench = Bench()
        bench.submit(make_sequence(1, [0]))
        assert repr(bench.engine).startswith("<Engine [<Scheduler [waiting 0 | running 0 | ")
        assert repr(bench.engine).endswith(" | inbox 1]>")
        assert "<Sequence 1 [waiting | slot None | prompt 0/3 | generated 0/5]>" == repr(
            make_sequence(1, [0] * 3, max_tokens=5)
        )
