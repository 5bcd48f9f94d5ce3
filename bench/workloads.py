"""What is asked of the contestants. A workload returns its turns as they were; what they mean is said in `report`."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable

from inferwire.v1 import models_pb2

from . import model
from . import stream as event_stream
from .contestants import MODEL_NAME, Contestant, Inferwire, Request, Stream, Unavailable
from .inprocess import EngineAlone, InProcess
from .peers import BatchedBench
from .turns import Act, Bench, Entry, Turn

NUM_RUNNING = 8
# Tokens of each running stream before a long prompt arrives, and after it is read.
_NUM_AROUND = 12

SCHEMA = (
    '{"type": "object", "required": ["name", "tags", "count"], "additionalProperties": false, "properties": {'
    '"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}, "count": {"type": "integer"}}}'
)

Workload = Callable[[Bench], Awaitable[list[Turn]]]


async def distinct_prompts(bench: Bench) -> list[Turn]:
    """W1: prompts that share nothing, all at once; and apart from it a phase in which every stream only decodes."""
    scale = bench.scale
    turns = []
    for count in scale.streams:
        whole = _distinct(bench, count, "W1")

        async def decode(contestant: Contestant, round_: int, count: int = count) -> Turn:
            # One prompt for all is read once, so that all begin to decode at the same time.
            text = bench.prompts.text(scale.prompt_tokens, "decode", count, round_)
            request = await bench.prompts.request(text, scale.completion_tokens)
            return await bench.timed(contestant, round_, lambda: contestant.ask([request] * count))

        kernels = BatchedBench(bench.ours.config, count, scale.prompt_tokens, scale.completion_tokens)

        async def decode_only(contestant: Contestant, round_: int, kernels: BatchedBench = kernels) -> Turn:
            rates: list[float] = []

            async def act() -> list[Stream]:
                rates.append(await kernels.run())
                return []

            turn = await bench.timed(contestant, round_, act)
            turn.figures["tokens_per_second"] = rates[0]
            return turn

        entries = [Entry(bench.ours, f"run {count}", whole), Entry(bench.llama_server, f"run {count}", whole)]
        if count in scale.packaged_streams:
            entries.append(Entry(bench.packaged, f"run {count}", whole))
        entries += [
            Entry(bench.ours, f"decode {count}", decode),
            Entry(kernels, f"decode {count}", decode_only),
        ]
        turns += await bench.take_turns(entries)
    return turns


def _distinct(bench: Bench, count: int, *seed: object) -> Act:
    """Returns the act of asking so many prompts that share nothing."""
    scale = bench.scale

    async def act(contestant: Contestant, round_: int) -> Turn:
        requests = await bench.prompts.requests(
            count, scale.prompt_tokens, scale.completion_tokens, *seed, count, round_
        )
        return await bench.timed(contestant, round_, lambda: contestant.ask(requests))

    return act


async def shared_prefix(bench: Bench) -> list[Turn]:
    """W2: prompts that begin alike, with a beginning that is new in each round."""
    scale = bench.scale

    async def act(contestant: Contestant, round_: int) -> Turn:
        prefix = bench.prompts.text(scale.shared_tokens, "W2", round_)
        texts = [
            prefix + bench.prompts.text(scale.own_tokens, "W2 own", round_, index)
            for index in range(scale.shared_streams)
        ]
        requests = [await bench.prompts.request(text, scale.shared_completion_tokens) for text in texts]
        return await bench.timed(contestant, round_, lambda: contestant.ask(requests))

    return await bench.take_turns([Entry(bench.ours, "run", act), Entry(bench.llama_server, "run", act)])


async def long_arrival(bench: Bench) -> list[Turn]:
    """W3: streams decode while a long prompt arrives. The last stream of a turn is the long prompt's."""
    scale = bench.scale

    async def act(contestant: Contestant, round_: int) -> Turn:
        running = await bench.prompts.requests(NUM_RUNNING, 32, 1500, "W3", round_)
        long = await bench.prompts.request(bench.prompts.text(scale.long_tokens, "W3 long", round_), 2)
        return await bench.timed(contestant, round_, lambda: _interrupted(contestant, running, long))

    return await bench.take_turns([Entry(bench.ours, "run", act), Entry(bench.llama_server, "run", act)])


async def _interrupted(contestant: Contestant, running: list[Request], long: Request) -> list[Stream]:
    """Returns the streams around the arrival of a long prompt: some tokens before it, and some after."""
    streams = [Stream() for _ in running]
    tasks = [
        asyncio.create_task(contestant.stream(request, stream))
        for request, stream in zip(running, streams, strict=True)
    ]

    async def grown_to(lengths: list[int]) -> None:
        while any(len(stream.times) < length for stream, length in zip(streams, lengths, strict=True)):
            if any(task.done() for task in tasks):
                raise Unavailable(f"{contestant.name}: a stream ended before the long prompt was read")
            await asyncio.sleep(0.01)

    try:
        await grown_to([_NUM_AROUND] * len(streams))
        (arrived,) = await contestant.ask([long])
        await grown_to([len(stream.times) + _NUM_AROUND for stream in streams])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for stream in streams:
        stream.end, stream.completion_tokens = stream.times[-1], len(stream.times)
    return [*streams, arrived]


async def chats(bench: Bench) -> list[Turn]:
    """W4: users who chat at the same time; every question comes with all that was said before."""
    scale = bench.scale

    async def talk(contestant: Contestant, *seed: object) -> list[Stream]:
        messages: list[tuple[str, str]] = []
        streams = []
        for index in range(scale.chat_turns):
            messages.append(("user", bench.prompts.text(scale.user_tokens, index, *seed).strip()))
            request = Request(scale.completion_tokens, messages=tuple(messages))
            streams += await contestant.ask([request])
            messages.append(("assistant", streams[-1].text))
        return streams

    async def act(contestant: Contestant, round_: int) -> Turn:
        async def everybody() -> list[Stream]:
            talks = [talk(contestant, "W4", number, round_) for number in range(scale.users)]
            return [stream for streams in await asyncio.gather(*talks) for stream in streams]

        return await bench.timed(contestant, round_, everybody)

    return await bench.take_turns([Entry(bench.ours, "run", act), Entry(bench.llama_server, "run", act)])


async def structured(bench: Bench) -> list[Turn]:
    """W5: the same run with free answers and with answers bound to a schema."""
    scale = bench.scale

    def bound_to(schema: str) -> Act:
        async def act(contestant: Contestant, round_: int) -> Turn:
            free = await bench.prompts.requests(
                NUM_RUNNING, scale.prompt_tokens, scale.completion_tokens, "W5", bool(schema), round_
            )
            requests = [dataclasses.replace(request, json_schema=schema) for request in free]
            return await bench.timed(contestant, round_, lambda: contestant.ask(requests))

        return act

    servers = [bench.ours, bench.llama_server]
    free = [Entry(server, "free", bound_to("")) for server in servers]
    return await bench.take_turns([*free, *(Entry(server, "schema", bound_to(SCHEMA)) for server in servers)])


async def events(bench: Bench) -> list[Turn]:
    """W6: what a streamed event costs beside a bare grpc.aio stream; see `bench.stream`."""
    taken = await event_stream.samples(bench.scale.events, bench.scale.rounds)
    return [
        Turn(name, "run", round_, figures=dict(sample))
        for name, samples in taken.items()
        for round_, sample in enumerate(samples)
    ]


async def separate_process(bench: Bench) -> list[Turn]:
    """W7: the engine in the client's own process, in a process of its own, and behind the whole service."""
    scale = bench.scale
    config = bench.ours.config
    contestants: list[Contestant] = [bench.ours, InProcess(config), EngineAlone(config)]
    # Of a model that takes no time, what is left is the price.
    tiny = dataclasses.replace(config, model=model.make(model.TINY), folder=config.folder / "tiny")
    tiny.folder.mkdir(exist_ok=True)
    tiny_ones: list[Contestant] = [InProcess(tiny), EngineAlone(tiny)]
    turns = []
    try:
        for count in (1, NUM_RUNNING):

            async def first(
                contestant: Contestant, round_: int, count: int = count, repeats: int = scale.first_tokens
            ) -> Turn:
                batches = [
                    await bench.prompts.requests(count, 8, 1, "W7", count, index, round_)
                    for index in range(repeats)
                ]

                async def act() -> list[Stream]:
                    return [stream for batch in batches for stream in await contestant.ask(batch)]

                return await bench.timed(contestant, round_, act)

            whole = _distinct(bench, count, "W7")
            turns += await bench.take_turns([Entry(one, f"run {count}", whole) for one in contestants])
            # A millisecond is little beside a machine's moods, so turns are short and many.
            entries = [Entry(one, f"first {count}", first) for one in contestants]
            turns += await bench.take_turns(entries, rounds=4 * scale.rounds)
            often = functools.partial(first, repeats=20 * scale.first_tokens)
            entries = [Entry(one, f"first {count} tiny", often) for one in tiny_ones]
            turns += await bench.take_turns(entries, rounds=2 * scale.rounds)
    finally:
        for contestant in (*contestants[1:], *tiny_ones):
            await contestant.stop()
    return turns


async def memory(bench: Bench) -> list[Turn]:
    """MEM: what freshly started servers hold after the same run, both still up, since they share the model's pages."""
    servers = [bench.ours, bench.llama_server]
    turns = []
    for round_ in range(min(3, bench.scale.rounds)):
        for server in servers:
            await server.stop()
        entries = [Entry(server, "run", _distinct(bench, 16, "MEM", round_)) for server in servers]
        taken = await bench.take_turns(entries, rounds=1)
        pss_bytes = {server.name: server.pss_bytes() for server in servers}
        for turn in taken:
            turn.round, turn.figures["pss_bytes"] = round_, pss_bytes[turn.contestant]
        turns += taken
    return turns


async def loads(bench: Bench) -> list[Turn]:
    """W8: the model is loaded and unloaded again and again; round 0 of memory is before the first load."""
    server = Inferwire(bench.ours.config, loads=False)
    turns = []

    async def cycle(contestant: Contestant, round_: int) -> Turn:
        async def load() -> list[Stream]:
            await server.models.Load(models_pb2.LoadRequest(model=MODEL_NAME))
            return []

        turn = await bench.timed(server, round_, load)
        await server.models.Unload(models_pb2.UnloadRequest(model=MODEL_NAME))
        turn.figures["pss_bytes"] = server.pss_bytes()
        turn.figures["processes"] = len(server.processes())
        return turn

    try:
        await server.start()
        turns.append(Turn(server.name, "before", 0, figures={"pss_bytes": server.pss_bytes()}))
        turns += await bench.take_turns([Entry(server, "load", cycle)], rounds=bench.scale.loads)
    finally:
        await server.stop()
    return turns


WORKLOADS: dict[str, Workload] = {
    "W1": distinct_prompts,
    "W2": shared_prefix,
    "W3": long_arrival,
    "W4": chats,
    "W5": structured,
    "W6": events,
    "W7": separate_process,
    "W8": loads,
    "MEM": memory,
}
