"""The two doors of a completion agree: the deltas of a stream, joined, are the unary answer of the same seed."""

from __future__ import annotations

import random

from inferwire.gather import Gatherer
from inferwire.v1 import inference_pb2 as pb

from .serving import demo, running

SEED = 20261120
NUM_REQUESTS = 200
STARTS = (
    "Once upon a time",
    "Tell me a story about a fox",
    "The capital of",
    "2 + 3 =",
    "naïve λόγος 東京 🙂",
    "x",
)


def random_request(draw: random.Random, model: str) -> pb.CompleteRequest:
    """Returns a request with random sampling, stopping and input."""
    request = pb.CompleteRequest(model=model)
    text = draw.choice(STARTS) + " and" * draw.randint(0, 30)
    if draw.random() < 0.5:
        request.prompt = text
    else:
        request.chat.messages.add(role=pb.ROLE_USER).parts.add(text=text)
    sampling = request.sampling
    sampling.seed = draw.getrandbits(32)
    for name, low, high in (
        ("temperature", 0, 2),
        ("top_p", 0.1, 1),
        ("min_p", 0, 0.3),
        ("typical_p", 0.2, 1),
        ("repetition_penalty", 0.8, 1.5),
        ("frequency_penalty", -1, 1),
    ):
        if draw.random() < 0.3:
            setattr(sampling, name, draw.uniform(low, high))
    if draw.random() < 0.3:
        sampling.top_k = draw.randint(0, 50)
    if draw.random() < 0.2:
        sampling.mirostat.version = draw.choice([1, 2])
    if draw.random() < 0.2:
        sampling.dry.multiplier = 0.8
    request.stopping.max_tokens = draw.randint(0, 40)
    if draw.random() < 0.4:
        request.stopping.stop.extend(draw.sample([" a", "e", "the ", ".", "月", " grove"], 2))
        request.stopping.include_stop = draw.random() < 0.5
    request.output.message = draw.random() < 0.5
    request.output.progress = draw.random() < 0.2
    return request


async def check(model: str, models) -> None:
    draw = random.Random(f"{SEED} {model}")
    print(f"seed {SEED}")
    async with running(models=models, scripted=True) as (_, client):
        for _ in range(NUM_REQUESTS):
            request = random_request(draw, model)
            streamed = Gatherer()
            async with client.stream(request) as stream:
                async for event in stream:
                    streamed.add(event)
            joined, unary = streamed.response(), await client.complete(request)
            for answer in (joined, unary):
                answer.started.ClearField("id")
                answer.completion.ClearField("timing")
            assert unary == joined, request
            if request.output.message:
                assert unary.message == unary.completion.message


async def test_the_scripted_backend_agrees_with_itself():
    """Two hundred random requests."""
    await check("scripted", {})


async def test_an_engine_in_its_deterministic_setting_agrees_with_itself():
    """Two hundred random requests, with fixed chunks, no cache, one at a time."""
    await check("demo", {"demo": demo(deterministic=True)})
