"""Forced tool calls over many schemas: `make bench-calls`.

A model of random weights with a vocabulary of 151,936 tokens is asked 500 times to call one of 50 tools whose schemas were drawn
at random: every answer must be a call whose arguments satisfy the tool's schema, as the library jsonschema judges. Strings, lists
and numbers of the schemas are bounded, because a model of random weights never ends a text by itself. Then the price: what the
parser costs for each token of these answers, and how fast 8 streams decode a call beside 8 that decode free text, on the model of
the other benchmarks, taking turns. Prints the figures and writes bench/results/calls.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import jsonschema

from inferwire import AsyncClient, user
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import logs
from inferwire_server.config import ModelSettings, Settings
from inferwire_server.engine.chat.family import family
from inferwire_server.engine.chat.parser import AnswerParser
from inferwire_server.server import Server
from tools import setup_env

from . import build, model, report
from .__main__ import RESULTS

NUM_STREAMS = 8
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILY = "hermes"
REQUIRED = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)


def schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """Returns the schema of an object with a few properties."""
    properties = {
        f"{draw.choice('abcdefgh')}_{number}": _value(draw, depth) for number in range(draw.randint(1, 5))
    }
    required = [key for key in properties if draw.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(draw: random.Random, depth: int) -> dict[str, Any]:
    kinds = [
        "string",
        "integer",
        "boolean",
        "enum",
        "null or string",
        *(["array", "object"] if depth else []),
    ]
    match draw.choice(kinds):
        case "string":
            return {"type": "string", "minLength": draw.randint(0, 3), "maxLength": draw.randint(3, 12)}
        case "integer":
            least = draw.randint(-50, 50)
            return {"type": "integer", "minimum": least, "maximum": least + draw.randint(1, 1000)}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": draw.sample(["red", "green", 'a "quote"', "naïve", 1, 2.5, None, True], 3)}
        case "null or string":
            return {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 6}]}
        case "array":
            return {
                "type": "array",
                "items": _value(draw, depth - 1),
                "minItems": draw.randint(0, 2),
                "maxItems": 3,
            }
        case _:
            return schema(draw, depth - 1)


def call_request(tools: dict[str, dict[str, Any]], seed: int) -> pb.CompleteRequest:
    """Returns a request that must be answered with a call."""
    request = pb.CompleteRequest(chat=pb.Chat(messages=[user(f"Go on, {seed}.")], tool_choice=REQUIRED))
    for name, parameters in tools.items():
        request.chat.tools.add(name=name, parameters=json.dumps(parameters))
    request.chat.parallel_tool_calls = False
    request.sampling.temperature = 1
    request.sampling.seed = seed
    request.stopping.max_tokens = 1000
    request.output.token_ids = request.output.logprobs = True
    return request


def problem_of(response: pb.CompleteResponse, tools: dict[str, dict[str, Any]]) -> str | None:
    """Returns what is wrong with an answer; None when it is one valid call and nothing else."""
    if response.completion.finish_reason != pb.FINISH_REASON_TOOL_CALLS:
        return pb.FinishReason.Name(response.completion.finish_reason)
    parts = list(response.message.parts)
    if len(parts) != 1 or not parts[0].HasField("tool_call"):
        return f"parts: {[part.WhichOneof('part') for part in parts]}"
    call = parts[0].tool_call
    try:
        jsonschema.validate(json.loads(call.arguments), tools[call.name])
    except (KeyError, ValueError, jsonschema.ValidationError) as error:
        return str(error).partition("\n")[0]
    return None


def parser_microseconds(answers: list[list[str]], tools: dict[str, Any]) -> float:
    """Returns what the parser costs per token, the median of five readings of all answers."""
    template = family(FAMILY).response_template
    costs = []
    for _ in range(5):
        begin = time.perf_counter()
        for pieces in answers:
            parser = AnswerParser(template, tools=tools)
            for piece in pieces:
                parser.feed(piece)
            parser.finish()
        costs.append((time.perf_counter() - begin) / sum(map(len, answers)) * 1e6)
    return statistics.median(costs)


async def decode_rate(client: AsyncClient, requests: list[pb.CompleteRequest]) -> float:
    """Returns the tokens per second of streams that decode together, from the last first token to the first end."""

    async def times(request: pb.CompleteRequest) -> list[float]:
        moments = []
        async with client.stream(request) as stream:
            async for event in stream:
                delta = getattr(event, event.WhichOneof("event") or "")
                moments += [time.perf_counter()] * len(getattr(delta, "token_ids", ()))
        return moments

    streams = await asyncio.gather(*map(times, requests))
    begin, end = max(stream[0] for stream in streams), min(stream[-1] for stream in streams)
    return sum(begin < moment <= end for stream in streams for moment in stream) / (end - begin)


def free_request(seed: int) -> pb.CompleteRequest:
    """Returns a request for free text of the same length as a long call."""
    request = pb.CompleteRequest(chat=pb.Chat(messages=[user(f"Go on, {seed}.")]))
    request.sampling.temperature = 1
    request.sampling.seed = seed
    request.stopping.max_tokens = 60
    request.stopping.ignore_eos = True
    request.output.token_ids = True
    return request


async def run(num_requests: int, num_schemas: int, rounds: int) -> dict[str, Any]:
    """Returns the figures."""
    config = {"context_length": 4096, "chat_template": TEMPLATE, "chat_family": FAMILY}
    models = {
        shape.name: ModelSettings(path=str(model.make(shape)), config={**config, "parallel_sequences": slots})
        for shape, slots in ((model.TINY, 32), (model.QWEN2_05B, NUM_STREAMS))
    }
    server = Server(Settings(address="127.0.0.1:0", models=models))
    await server.start()
    draw = random.Random(model.SEED)
    tools = {f"tool_{number}": schema(draw) for number in range(num_schemas)}
    try:
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            await _until_ready(client)
            slots = asyncio.Semaphore(32)

            async def ask(number: int) -> tuple[str | None, list[str]]:
                name = f"tool_{number % num_schemas}"
                request = call_request({name: tools[name]}, number)
                request.model = model.TINY.name
                async with slots:
                    response = await client.complete(request)
                pieces = [logprob.piece.decode("utf-8", "replace") for logprob in response.logprobs]
                return problem_of(response, tools), pieces

            begin = time.perf_counter()
            answers = await asyncio.gather(*map(ask, range(num_requests)))
            seconds = time.perf_counter() - begin
            problems = [problem for problem, _ in answers if problem is not None]
            # Long enough that all streams decode together for a while.
            wide = {"wide": {"type": "object", "required": ["text"], "additionalProperties": False, "properties": {"text": {"type": "string", "minLength": 400}}}}  # fmt: skip
            rates: dict[str, list[float]] = {"free": [], "call": []}
            for round_ in range(rounds):
                free = [free_request(seed) for seed in range(NUM_STREAMS)]
                bound = [call_request(wide, seed) for seed in range(NUM_STREAMS)]
                for request in (*free, *bound):
                    request.model = model.QWEN2_05B.name
                    request.stopping.max_tokens = 60
                    request.output.logprobs = False
                turns = [("free", free), ("call", bound)]
                for kind, requests in turns if round_ % 2 == 0 else reversed(turns):
                    rates[kind].append(await decode_rate(client, requests))
    finally:
        await server.stop(drain_seconds=0)
    texts = [[piece for piece in pieces if piece] for _, pieces in answers]
    return {
        "requests": num_requests,
        "schemas": num_schemas,
        "valid": num_requests - len(problems),
        "problems": sorted(set(problems)),
        "tokens": sum(map(len, texts)),
        "seconds": round(seconds, 1),
        "parser_microseconds_per_token": round(parser_microseconds(texts, tools), 2),
        "free_tokens_per_second": round(statistics.median(rates["free"]), 1),
        "call_tokens_per_second": round(statistics.median(rates["call"]), 1),
        "call_against_free": round(
            statistics.median(call / free for call, free in zip(rates["call"], rates["free"], strict=True)), 3
        ),
        "machine": report.machine(),
    }


async def _until_ready(client: AsyncClient) -> None:
    async with client.watch_models() as lists:
        async for listed in lists:
            if all(entry.state == models_pb2.MODEL_STATE_READY for entry in listed.models):
                return


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="make bench-calls", description="Measures forced tool calls.")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--schemas", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    logs.configure(format="text", level="warning")
    build.fetch_source()
    figures = asyncio.run(run(arguments.requests, arguments.schemas, arguments.rounds))
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<32} {value}")
    path = Path(RESULTS) / "calls.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Written: {path.relative_to(setup_env.ROOT)}")


if __name__ == "__main__":
    main()
