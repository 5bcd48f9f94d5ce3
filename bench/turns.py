"""How the contestants take turns: one after the other within each round, so that a slow minute of the machine hits all
alike, and never two at a time. What they are asked is in `workloads`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
import psutil

from inferwire.v1 import inference_pb2 as pb

from .contestants import MODEL_NAME, Contestant, Inferwire, Request, Stream, Unavailable
from .peers import LlamaServer, PackagedServer

# Common words: each is one token of most vocabularies, with its space before it.
_WORDS = """
    water house green table stone river light paper music garden school friend winter summer window market
    street doctor letter number family country morning evening animal history picture science language money
    mother father brother sister story world place people field group point state night right small large
"""

_IDLE_SECONDS = 0.1
_IDLE_CORES = 0.05
_PATIENCE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured: in full, or quickly."""

    rounds: int = 5
    prompt_tokens: int = 128
    completion_tokens: int = 48
    streams: tuple[int, ...] = (1, 4, 16, 32)
    packaged_streams: tuple[int, ...] = (1, 16)
    shared_streams: int = 16
    shared_tokens: int = 512
    own_tokens: int = 16
    shared_completion_tokens: int = 16
    long_tokens: int = 2000
    users: int = 8
    chat_turns: int = 4
    user_tokens: int = 60
    events: int = 1_000_000
    loads: int = 10
    first_tokens: int = 4

    def with_rounds(self, rounds: int) -> Scale:
        """Returns the same with another number of rounds."""
        return dataclasses.replace(self, rounds=rounds)


QUICK = Scale(
    rounds=1,
    prompt_tokens=64,
    completion_tokens=24,
    streams=(1, 16),
    packaged_streams=(16,),
    shared_tokens=256,
    shared_completion_tokens=8,
    long_tokens=1000,
    users=4,
    chat_turns=2,
    user_tokens=40,
    events=50_000,
    loads=3,
    first_tokens=3,
)


@dataclasses.dataclass
class Turn:
    """One contestant's turn. Seconds; times of streams are those since its begin.

    `other_cores`: the cores that were kept busy by anybody but this contestant and the client.
    `figures`: what was not timed here but told or read: a rate, a memory.
    """

    contestant: str
    case: str
    round: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    other_cores: float = 0.0
    streams: list[Stream] = dataclasses.field(default_factory=list)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


class Prompts:
    """Prompts of a given number of tokens, the same for every contestant and others in every round."""

    def __init__(self, server: Inferwire) -> None:
        self._server = server
        self._words: list[str] = []
        self._num_special = 0

    async def load(self) -> None:
        """Finds out which words are one token in this vocabulary. Unavailable when too few are."""
        self._num_special = len(await self._tokens(""))
        words = _WORDS.split()
        lengths = await asyncio.gather(*(self._tokens(f" {word} {word}") for word in words))
        self._words = [
            word for word, tokens in zip(words, lengths, strict=True) if len(tokens) == self._num_special + 2
        ]
        if len(self._words) < len(words) // 2:
            raise Unavailable("the model's vocabulary cuts plain words into pieces; take another MODEL")

    def text(self, num_tokens: int, *seed: object) -> str:
        """Returns words of so many tokens, always the same for the same seed."""
        draw = random.Random(repr(seed))
        return "".join(f" {draw.choice(self._words)}" for _ in range(num_tokens))

    async def request(self, text: str, max_tokens: int, *, json_schema: str = "") -> Request:
        """Returns the request of a prompt that `text` has made."""
        tokens = await self._tokens(text)
        assert len(tokens) == text.count(" ") + self._num_special, "every word is one token"
        return Request(max_tokens, prompt=text, token_ids=tuple(tokens), json_schema=json_schema)

    async def requests(self, count: int, num_tokens: int, max_tokens: int, *seed: object) -> list[Request]:
        """Returns requests of distinct prompts."""
        texts = [self.text(num_tokens, index, *seed) for index in range(count)]
        return [await self.request(text, max_tokens) for text in texts]

    async def _tokens(self, text: str) -> Sequence[int]:
        message = pb.TokenizeRequest(model=MODEL_NAME, text=text, add_special=True, parse_special=True)
        return list((await self._server.stub.Tokenize(message)).token_ids)


Act = Callable[[Contestant, int], Awaitable[Turn]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Who does what in a round."""

    contestant: Contestant
    case: str
    act: Act


@dataclasses.dataclass
class Bench:
    """What every workload gets: who takes part, how much is measured, and who has failed, with the reason."""

    ours: Inferwire
    llama_server: LlamaServer
    packaged: PackagedServer
    prompts: Prompts
    scale: Scale
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = print

    async def take_turns(self, entries: Sequence[Entry], *, rounds: int | None = None) -> list[Turn]:
        """Lets every entry act once per round, in an order that turns round. Who fails is left out from then on."""
        turns = []
        for round_ in range(rounds or self.scale.rounds):
            for entry in entries if round_ % 2 == 0 else reversed(entries):
                contestant = entry.contestant
                if contestant.name in self.failures:
                    continue
                try:
                    await contestant.start()
                    await self.ours.start()  # it may have failed; the prompts need its tokenizer
                    turn = await entry.act(contestant, round_)
                except (Unavailable, ExceptionGroup, OSError, grpc.RpcError) as error:
                    await self.fail(contestant, error)
                    continue
                turn.case = entry.case
                turns.append(turn)
                self.say(
                    f"    {entry.case:<14} round {round_ + 1}  {contestant.name:<20} {turn.seconds:7.2f} s"
                )
        return turns

    async def fail(self, contestant: Contestant, error: Exception) -> None:
        """Notes why a contestant cannot be measured, and stops it."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        log = "" if isinstance(error, Unavailable) else f"\n{contestant.log_tail()}"
        self.failures[contestant.name] = f"{error}{log}"
        self.say(f"    {contestant.name} cannot be measured: {error}{log}")
        await contestant.stop()

    async def timed(
        self, contestant: Contestant, round_: int, act: Callable[[], Awaitable[list[Stream]]]
    ) -> Turn:
        """Runs `act` while nobody else is busy, and returns it as a turn."""
        await self._all_idle(contestant)
        client = psutil.Process()
        cpu, busy, own = contestant.cpu_seconds(), _busy_seconds(), sum(client.cpu_times()[:2])
        begin = time.perf_counter()
        streams = await act()
        seconds = time.perf_counter() - begin
        cpu, busy, own = (
            contestant.cpu_seconds() - cpu, _busy_seconds() - busy, sum(client.cpu_times()[:2]) - own,
        )  # fmt: skip
        for stream in streams:
            stream.begin, stream.end = stream.begin - begin, stream.end - begin
            stream.times = [moment - begin for moment in stream.times]
        return Turn(
            contestant.name, "", round_, seconds, cpu, own, max(0.0, busy - cpu - own) / seconds, streams
        )

    async def _all_idle(self, contestant: Contestant) -> None:
        """Returns when no server does anything any more: those that wait for their turn must not use the cores."""
        everybody = {self.ours, self.llama_server, self.packaged, contestant}
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            before = sum(server.cpu_seconds() for server in everybody)
            await asyncio.sleep(_IDLE_SECONDS)
            used = sum(server.cpu_seconds() for server in everybody) - before
            if used <= _IDLE_CORES * _IDLE_SECONDS:
                return
            if time.monotonic() > give_up:
                self.say(f"    (servers that nobody asks use {used / _IDLE_SECONDS:.2f} cores)")
                return


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # What a virtual machine's host takes away counts as well.
    return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))
