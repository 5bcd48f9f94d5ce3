"""The product whole: a client, a channel, the gateway, an engine process, the demo model."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from inferwire import InferwireError, user
from inferwire.gather import gather
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.config import EngineSettings, ModelSettings

from .serving import DEMO, bare_stub, demo, endless, failure, running


@pytest.mark.parametrize("model", ["demo", "scripted"])
async def test_a_stream_obeys_the_law(model):
    """started first and once, deltas that are not empty, exactly one completion last, then OK."""
    async with running(models={"demo": demo()}, scripted=True) as (_, client):
        for max_tokens in (0, 1, 12):
            async with client.stream(
                prompt="Once upon a time there was", model=model, max_tokens=max_tokens
            ) as stream:
                events = [event async for event in stream]
            kinds = [event.WhichOneof("event") for event in events]
            assert kinds[0] == "started"
            assert kinds[-1] == "completion"
            assert set(kinds[1:-1]) <= {"text"}
            assert all(event.text.text for event in events[1:-1])
            assert events[0].started.model == model
            completion = events[-1].completion
            assert completion.usage.completion_tokens <= max_tokens
            if model == "demo":
                assert completion.finish_reason == pb.FINISH_REASON_LENGTH
                assert completion.usage.completion_tokens == max_tokens


async def test_the_started_event_tells_what_is_in_force_and_zero_is_a_value():
    """Zeros reach the engine as zeros; what is unset is told with its default."""
    async with running(models={"demo": demo()}) as (_, client):
        request = pb.CompleteRequest(prompt="Once", model="demo")
        for name in ("temperature", "top_k", "min_p", "seed", "penalty_window"):
            setattr(request.sampling, name, 0)
        request.stopping.max_tokens = 3
        started = (await client.complete(request)).started
        assert (0, 0, 0, 0, 0) == (
            started.sampling.temperature,
            started.sampling.top_k,
            started.sampling.min_p,
            started.sampling.seed,
            started.sampling.penalty_window,
        )
        assert started.sampling.HasField("seed")
        assert pytest.approx(0.95) == started.sampling.top_p
        assert 3 == started.max_tokens
        assert started.model_instance_id


async def test_an_unset_seed_is_drawn_and_told_and_repeats_the_answer():
    """Sending back the seed of `started` gives the same text, from an engine in its deterministic setting."""
    async with running(models={"demo": demo(deterministic=True)}) as (_, client):
        first = await client.complete(prompt="Once upon a time", max_tokens=40, temperature=1.0)
        again = await client.complete(
            prompt="Once upon a time", max_tokens=40, temperature=1.0, seed=first.started.sampling.seed
        )
        # So small a model tells the same story for one seed in a hundred.
        others = [
            await client.complete(
                prompt="Once upon a time",
                max_tokens=40,
                temperature=1.0,
                seed=first.started.sampling.seed ^ bit,
            )
            for bit in (1, 2, 4, 8)
        ]
        assert first.message == again.message
        assert any(first.message != other.message for other in others)


async def test_usage_timing_and_stop_are_told():
    """The completion accounts for the request."""
    async with running(models={"demo": demo()}) as (_, client):
        response = await client.complete(
            chat=[user("What is the capital of France?")], temperature=0, stop=["Par"]
        )
        completion = response.completion
        assert "The capital of France is " == response.message.parts[0].text
        assert pb.FINISH_REASON_STOP_STRING == completion.finish_reason
        assert "Par" == completion.stop_string
        counted = await client.count_tokens(chat=[user("What is the capital of France?")])
        assert counted.tokens == completion.usage.prompt_tokens
        timing = completion.timing
        assert timing.total.ToNanoseconds() >= timing.time_to_first_token.ToNanoseconds() > 0
        assert timing.total.ToNanoseconds() >= timing.decode.ToNanoseconds() > 0
        assert timing.prefill.ToNanoseconds() > 0

        ended = await client.complete(chat=[user("What is the capital of France?")], temperature=0)
        assert pb.FINISH_REASON_STOP == ended.completion.finish_reason
        assert "eos_token" == ended.completion.WhichOneof("stopped_by")


async def test_logprobs_and_token_ids_account_for_every_token():
    """The ids and log probabilities of all events together are those of all generated tokens."""
    async with running(models={"demo": demo()}) as (_, client):
        request = pb.CompleteRequest(chat=pb.Chat(messages=[user("Tell me a story about a fox.")]))
        request.stopping.max_tokens = 12
        request.sampling.temperature = 0
        request.output.logprobs = True
        request.output.top_logprobs = 3
        request.output.token_ids = True
        response = await client.complete(request)
        assert 12 == len(response.token_ids) == len(response.logprobs)
        for token, entry in zip(response.token_ids, response.logprobs, strict=True):
            assert token == entry.token_id == entry.top[0].token_id
            assert 3 == len(entry.top)
            assert entry.logprob == entry.top[0].logprob <= 0
        told = await client.detokenize(list(response.token_ids))
        assert told.decode() == response.message.parts[0].text


async def test_progress_events_come_between_started_and_the_first_delta():
    """Who asks for progress is told of the queue and of the prompt."""
    async with running(models={"demo": demo(deterministic=True, batch_size=16)}) as (_, client):
        request = pb.CompleteRequest(prompt="word " * 60, model="demo")
        request.stopping.max_tokens = 30
        request.stopping.ignore_eos = True
        request.output.progress = True

        async def kinds() -> list[str]:
            async with client.stream(request) as stream:
                return [
                    event.progress.WhichOneof("stage") or event.WhichOneof("event")
                    if event.WhichOneof("event") == "progress"
                    else event.WhichOneof("event")
                    async for event in stream
                ]

        both = await asyncio.gather(kinds(), kinds())
        for seen in both:
            assert "started" == seen[0]
            assert "prefill" in seen
            assert seen.index("prefill") < seen.index("text")
        assert any("queue" in seen for seen in both)


async def test_beyond_the_queue_a_request_is_refused_at_once():
    """A queue is bounded: what does not fit is told when to come back, before any work."""
    async with (
        running(models={"demo": demo(parallel_sequences=2)}, engine=EngineSettings(queue_capacity=2)) as (
            server,
            _,
        ),
        bare_stub(server) as stub,
    ):
        held = [stub.StreamComplete(endless(progress=True)) for _ in range(4)]
        for call in held:
            assert "started" == (await call.read()).WhichOneof("event")
        error = await failure(stub.Complete(pb.CompleteRequest(prompt="Once", model="demo")))
        assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL") == (error.code, error.reason)
        assert "2" == error.metadata["queueCapacity"]
        assert error.retry_delay is not None
        for call in held:
            call.cancel()


async def test_tokens_round_trip():
    """Tokenize and Detokenize are each other's inverse; pieces are the bytes of the tokens."""
    async with running(models={"demo": demo()}) as (_, client):
        for text in ("", "Hello there", "naïve café λόγος 東京 🙂", "<|im_start|>user"):
            split = await client.tokenize(text)
            joined = await client.detokenize(list(split.token_ids))
            assert text.encode() == joined == b"".join(split.pieces)
        special = await client.tokenize("<|im_start|>", parse_special=True)
        assert 1 == len(special.token_ids)


async def test_questions_about_the_server():
    """ListModels, GetModel, ListBackends and Health agree with each other."""
    async with running(
        models={"demo": demo(), "other": ModelSettings(path=DEMO, load=False)}, scripted=True
    ) as (
        _,
        client,
    ):
        listed = await client.list_models()
        assert ["demo", "other", "scripted"] == [model.name for model in listed.models]
        assert "demo" == listed.default_model
        model = await client.get_model("demo")
        assert models_pb2.MODEL_STATE_READY == model.state
        assert "llama" == model.architecture
        assert (1024, 8) == (model.context_length, model.config.parallel_sequences)
        assert model.capabilities.chat
        assert model.capabilities.tools
        assert not model.capabilities.images
        assert "demo.gguf" == model.source.local.path
        assert models_pb2.MODEL_STATE_UNLOADED == (await client.get_model("other")).state
        backends = await client.list_backends()
        assert ["local", "scripted"] == [backend.id for backend in backends]
        assert ["demo"] == list(backends[0].available_models)
        health = await client.health()
        assert health.ready
        assert 8 == health.models[0].parallel_sequences


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (
            lambda r: setattr(r.chat.reasoning, "effort", pb.REASONING_EFFORT_HIGH),
            "chat.reasoning.effort",
        ),
        (
            lambda r: (
                r.chat.messages[0].parts.add().image.MergeFrom(pb.Image(data=b"x", media_type="image/png"))
            ),
            "chat.messages[0].parts[1].image",
        ),
    ],
)
async def test_what_a_local_model_cannot_honour_is_refused(change, field):
    """Nothing of a request is dropped in silence."""
    async with running(models={"demo": demo()}) as (_, client):
        request = pb.CompleteRequest(model="demo", chat=pb.Chat(messages=[user("Hi")]))
        change(request)
        with pytest.raises(InferwireError) as caught:
            await client.complete(request)
        assert grpc.StatusCode.FAILED_PRECONDITION == caught.value.code
        assert "UNSUPPORTED_BY_BACKEND" == caught.value.reason
        assert [field] == [violation.field for violation in caught.value.violations]


async def test_a_prompt_longer_than_the_context_is_refused_and_one_that_fills_it_ends_with_length():
    """Nothing is cut in silence; the context's edge is LENGTH."""
    async with running(models={"demo": demo(context_length=32)}) as (_, client):
        with pytest.raises(InferwireError) as caught:
            await client.complete(prompt="word " * 100, model="demo")
        assert (grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED") == (
            caught.value.code,
            caught.value.reason,
        )
        assert "32" == caught.value.metadata["contextLength"]
        assert int(caught.value.metadata["promptTokens"]) > 32

        response = await client.complete(endless())
        usage = response.completion.usage
        assert 32 == usage.prompt_tokens + usage.completion_tokens
        assert pb.FINISH_REASON_LENGTH == response.completion.finish_reason


async def test_time_limit_ends_with_what_there_is_and_a_deadline_with_its_status():
    """The request's own limit is OK with TIME_LIMIT; the call's deadline is DEADLINE_EXCEEDED."""
    async with running(models={"demo": demo()}, scripted=True) as (_, client):
        script = '{"events": [{"text": "a"}, {"delay_seconds": 60}, {"text": "b"}]}'
        request = pb.CompleteRequest(prompt=script, model="scripted")
        request.stopping.time_limit.FromMilliseconds(100)
        response = await client.complete(request)
        assert pb.FINISH_REASON_TIME_LIMIT == response.completion.finish_reason
        assert "a" == response.message.parts[0].text

        with pytest.raises(InferwireError) as caught:
            await client.complete(prompt=script, model="scripted", timeout=0.2)
        assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code

        # The context is full before long, so a limit of the engine needs an answer that is slower than it: none is.
        request = endless()
        request.stopping.time_limit.FromMilliseconds(20)
        response = await client.complete(request)
        assert response.completion.finish_reason in (pb.FINISH_REASON_TIME_LIMIT, pb.FINISH_REASON_LENGTH)


async def test_gathering_a_stream_is_the_unary_answer():
    """Complete is StreamComplete read to its end."""
    async with running(scripted=True) as (_, client):
        script = (
            '{"events": [{"reasoning": "hm"}, {"text": "a"}, {"tool_call": {"index": 0, "id": "c", "name": "f"}}, '
            '{"tool_call": {"index": 0, "arguments": "{\\"x\\":"}}, {"text": "b"}, '
            '{"tool_call": {"index": 0, "arguments": "1}"}}]}'
        )
        async with client.stream(prompt=script, seed=1) as stream:
            gathered = gather([event async for event in stream])
        unary = await client.complete(prompt=script, seed=1)
        assert gathered.message == unary.message
        assert pb.FINISH_REASON_TOOL_CALLS == unary.completion.finish_reason
