"""What the turns mean: figures beside their targets.

Contestants are compared round by round, because they took their turns side by side; a figure is the median of its rounds.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable

from .contestants import Inferwire, Stream
from .inprocess import EngineAlone, InProcess
from .peers import BatchedBench, LlamaServer, PackagedServer
from .stream import BARE
from .stream import OURS as SCRIPTED
from .turns import Turn

OURS = Inferwire.name
# Above this, somebody else's work on the machine may have decided the figure.
NOISY_CORES = 0.1

Measure = Callable[[Turn], float]
Combine = Callable[[float, float], float]


@dataclasses.dataclass(frozen=True)
class Target:
    """What a figure should be."""

    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"

    def is_met_by(self, value: float) -> bool:
        """Whether a figure is good enough."""
        return value >= self.bound if self.sign == ">=" else value <= self.bound


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure. `value` None: it was not measured, and `notes` say why. `peers`: who had what, in `peers_unit`."""

    id: str
    measure: str
    value: float | None
    unit: str
    target: str
    met: bool | None
    peers: dict[str, float]
    peers_unit: str
    spread: list[float]
    rounds: int
    other_cores: float
    notes: list[str]


class Rows:
    """The rows of one workload, made from its turns."""

    def __init__(self, workload: str, turns: list[Turn], failures: dict[str, str]) -> None:
        self._workload = workload
        self._turns = turns
        self._failures = failures
        self.rows: list[Row] = []

    def compare(
        self,
        measure: str,
        of: Measure,
        combine: Combine,
        *,
        ours: tuple[str, str],
        peer: tuple[str, str],
        unit: str = "x",
        peers_unit: str = "tokens/s",
        target: Target | None = None,
    ) -> None:
        """Adds what `combine` makes of our figure and of a peer's; both are (contestant, case)."""
        mine, theirs = self._by_round(of, *ours), self._by_round(of, *peer)
        rounds = sorted(mine.keys() & theirs.keys())
        values = [combine(mine[round_], theirs[round_]) for round_ in rounds]
        labels = [name if ours[0] != peer[0] else f"{name} {case}" for name, case in (ours, peer)]
        peers = {
            label: statistics.median(figures.values())
            for label, figures in zip(labels, (mine, theirs), strict=True)
            if figures
        }
        missing = [name for (name, _), figures in ((ours, mine), (peer, theirs)) if not figures]
        self._add(measure, values, unit, target, peers, peers_unit, {ours, peer}, missing)

    def tell(
        self,
        measure: str,
        of: Measure,
        unit: str,
        *,
        ours: tuple[str, str],
        target: Target | None = None,
        choose: Callable[[list[float]], float] = statistics.median,
    ) -> None:
        """Adds a figure of one contestant and case alone."""
        values = list(self._by_round(of, *ours).values())
        self._add(measure, values, unit, target, {}, "", {ours}, [] if values else [ours[0]], choose)

    def _add(
        self,
        measure: str,
        values: list[float],
        unit: str,
        target: Target | None,
        peers: dict[str, float],
        peers_unit: str,
        used: set[tuple[str, str]],
        missing: list[str],
        choose: Callable[[list[float]], float] = statistics.median,
    ) -> None:
        reasons = [f"{name}: {self._failures.get(name, 'took no turn')}" for name in missing]
        value = choose(values) if values else None
        noise = [turn.other_cores for turn in self._turns if (turn.contestant, turn.case) in used]
        self.rows.append(
            Row(
                id=self._workload,
                measure=measure,
                value=None if value is None else round(value, 4),
                unit=unit,
                target=str(target) if target else "",
                met=target.is_met_by(value) if target and value is not None else None,
                peers={name: round(figure, 4) for name, figure in peers.items()},
                peers_unit=peers_unit,
                spread=[round(min(values), 4), round(max(values), 4)] if values else [],
                rounds=len(values),
                other_cores=round(statistics.median(noise), 3) if noise else 0.0,
                notes=reasons,
            )
        )

    def _by_round(self, of: Measure, contestant: str, case: str) -> dict[int, float]:
        return {
            turn.round: of(turn)
            for turn in self._turns
            if turn.contestant == contestant and turn.case == case
        }

    def cpu(self, case: str) -> None:
        """Adds the CPU seconds that both servers used."""
        self.compare(
            f"CPU seconds against llama-server, {case}", lambda turn: turn.cpu_seconds, ratio,
            ours=(OURS, case), peer=(LlamaServer.name, case), peers_unit="s",
        )  # fmt: skip


def rows(workload: str, turns: list[Turn], failures: dict[str, str]) -> list[Row]:
    """Returns the figures of a workload."""
    made = Rows(workload, turns, failures)
    _MAKERS[workload](made, turns)
    return made.rows


def _distinct_prompts(made: Rows, turns: list[Turn]) -> None:
    counts = sorted({int(turn.case.split()[1]) for turn in turns if turn.case.startswith("run ")})
    for count in counts:
        made.compare(
            f"whole run against llama-server, {count} streams", tokens_per_second, ratio,
            ours=(OURS, f"run {count}"), peer=(LlamaServer.name, f"run {count}"), target=Target(">=", 1.05),
        )  # fmt: skip
    for count in counts:
        made.compare(
            f"decoding against llama-batched-bench, {count} streams", decode_rate, ratio,
            ours=(OURS, f"decode {count}"), peer=(BatchedBench.name, f"decode {count}"), target=Target(">=", 0.97),
        )  # fmt: skip
    took_part = {int(turn.case.split()[1]) for turn in turns if turn.contestant == PackagedServer.name}
    for count in sorted(took_part) or [16]:
        made.compare(
            f"whole run against the packaged server, {count} streams", tokens_per_second, ratio,
            ours=(OURS, f"run {count}"), peer=(PackagedServer.name, f"run {count}"),
            target=Target(">=", 2.5) if count == 16 else None,
        )  # fmt: skip
    made.cpu(f"run {max(counts, default=1)}")


def _shared_prefix(made: Rows, turns: list[Turn]) -> None:
    ours, peer, target = (OURS, "run"), (LlamaServer.name, "run"), Target(">=", 3)
    made.compare(
        "whole run against llama-server", tokens_per_second, ratio, ours=ours, peer=peer, target=target
    )
    made.compare(
        "p99 of time to first token against llama-server", lambda turn: percentile(first_token_seconds(turn), 99), inverse,
        ours=ours, peer=peer, peers_unit="s", target=target,
    )  # fmt: skip
    made.cpu("run")


def _long_arrival(made: Rows, turns: list[Turn]) -> None:
    ours, peer = (OURS, "run"), (LlamaServer.name, "run")
    for share in (50, 99, 100):
        name = f"p{share}" if share < 100 else "maximum"
        target = Target("<=", 300) if share == 99 else None

        def milliseconds(turn: Turn, share: int = share) -> float:
            return percentile(stalls(turn), share) * 1000

        made.tell(f"{name} of inter-token time", milliseconds, "ms", ours=ours, target=target)
        times = Target(">=", 10) if share == 99 else None
        made.compare(
            f"{name} of inter-token time",
            milliseconds,
            inverse,
            ours=ours,
            peer=peer,
            peers_unit="ms",
            target=times,
        )
    made.compare(
        "first token of the long prompt against llama-server", lambda turn: first_token_seconds(turn)[-1], inverse,
        ours=ours, peer=peer, peers_unit="s",
    )  # fmt: skip
    made.cpu("run")


def _chats(made: Rows, turns: list[Turn]) -> None:
    ours, peer = (OURS, "run"), (LlamaServer.name, "run")
    made.compare(
        "whole run against llama-server",
        tokens_per_second,
        ratio,
        ours=ours,
        peer=peer,
        target=Target(">=", 1.0),
    )
    made.cpu("run")


def _structured(made: Rows, turns: list[Turn]) -> None:
    for name, target in ((OURS, Target(">=", 0.9)), (LlamaServer.name, None)):
        made.compare(
            f"schema against free, {name}", tokens_per_second, ratio,
            ours=(name, "schema"), peer=(name, "free"), target=target,
        )  # fmt: skip
    ours, peer = (OURS, "schema"), (LlamaServer.name, "schema")
    made.compare("whole run with schema against llama-server", tokens_per_second, ratio, ours=ours, peer=peer)
    made.cpu("schema")


def _events(made: Rows, turns: list[Turn]) -> None:
    for measure, key, unit, target in (
        ("streamed events against bare grpc.aio", "events_per_second", "events/s", Target(">=", 0.85)),
        ("CPU per event against bare grpc.aio", "cpu_us_per_event", "us", Target("<=", 1.3)),
    ):
        made.compare(
            measure,
            figure(key),
            ratio,
            ours=(SCRIPTED, "run"),
            peer=(BARE, "run"),
            peers_unit=unit,
            target=target,
        )


def _separate_process(made: Rows, turns: list[Turn]) -> None:
    peer = InProcess.name
    for name, price, bounds in (
        (EngineAlone.name, "price of isolation", (3, 1)),
        (OURS, "price of the whole service", (None, None)),
    ):
        for count in (1, 8):
            case, first = f"run {count}", f"first {count}"
            percent, milliseconds = (Target("<=", bound) if bound else None for bound in bounds)
            made.compare(
                f"{price} in tokens/s, {count} streams", tokens_per_second,
                lambda ours, peer: (1 - ours / peer) * 100,
                ours=(name, case), peer=(peer, case), unit="%", target=percent,
            )  # fmt: skip
            made.compare(
                f"{price} to the first token, {count} streams",
                lambda turn: statistics.median(first_token_seconds(turn)) * 1000, lambda ours, peer: ours - peer,
                ours=(name, first), peer=(peer, first), unit="ms", peers_unit="ms", target=milliseconds,
            )  # fmt: skip
            if name == EngineAlone.name:
                made.compare(
                    f"{price} to the first token, {count} streams of a tiny model",
                    lambda turn: statistics.median(first_token_seconds(turn)) * 1000,
                    lambda ours, peer: ours - peer,
                    ours=(name, f"{first} tiny"), peer=(peer, f"{first} tiny"), unit="ms", peers_unit="ms",
                    target=milliseconds,
                )  # fmt: skip


def _memory(made: Rows, turns: list[Turn]) -> None:
    made.compare(
        "memory beyond llama-server's (PSS)", megabytes, lambda ours, peer: ours - peer,
        ours=(OURS, "run"), peer=(LlamaServer.name, "run"), unit="MB", peers_unit="MB", target=Target("<=", 150),
    )  # fmt: skip


def _loads(made: Rows, turns: list[Turn]) -> None:
    made.tell("time to load", lambda turn: turn.seconds, "s", ours=(OURS, "load"))
    before = [megabytes(turn) for turn in turns if turn.case == "before"]
    # The worst of all, not their median: this is about what stays.
    made.tell(
        "memory after an unload beyond that before the first load (PSS), the worst",
        lambda turn: megabytes(turn) - before[0], "MB", ours=(OURS, "load"), target=Target("<=", 5), choose=max,
    )  # fmt: skip


_MAKERS: dict[str, Callable[[Rows, list[Turn]], None]] = {
    "W1": _distinct_prompts,
    "W2": _shared_prefix,
    "W3": _long_arrival,
    "W4": _chats,
    "W5": _structured,
    "W6": _events,
    "W7": _separate_process,
    "W8": _loads,
    "MEM": _memory,
}


def ratio(ours: float, peer: float) -> float:
    """How many times ours is the peer's: for what should be much."""
    return ours / peer


def inverse(ours: float, peer: float) -> float:
    """How many times the peer's is ours: for what should be little."""
    return peer / ours


def tokens_per_second(turn: Turn) -> float:
    """Completion tokens of all streams by the whole turn's time."""
    return sum(stream.completion_tokens for stream in turn.streams) / turn.seconds


def decode_rate(turn: Turn) -> float:
    """Tokens per second from the moment when every stream has its first token to when the first one ends."""
    if "tokens_per_second" in turn.figures:
        return turn.figures["tokens_per_second"]
    begin = max(stream.times[0] for stream in turn.streams)
    end = min(stream.times[-1] for stream in turn.streams)
    return sum(sum(begin < moment <= end for moment in stream.times) for stream in turn.streams) / (
        end - begin
    )


def first_token_seconds(turn: Turn) -> list[float]:
    """The time to the first token of each stream."""
    return [stream.times[0] - stream.begin for stream in turn.streams]


def stalls(turn: Turn) -> list[float]:
    """The times between tokens of the running streams while the last stream's prompt waits to be read."""
    *running, long = turn.streams
    return [seconds for stream in running for _, seconds in gaps(stream, long.begin, long.times[0])]


def gaps(stream: Stream, begin: float = -math.inf, end: float = math.inf) -> list[tuple[float, float]]:
    """Returns (when, how long) of each time between two tokens that touches the span from `begin` to `end`."""
    pairs = zip(stream.times, stream.times[1:], strict=False)
    return [(later, later - earlier) for earlier, later in pairs if later > begin and earlier < end]


def percentile(values: Iterable[float], share: float) -> float:
    """Returns the smallest of the values that so many per cent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def figure(key: str) -> Measure:
    """Returns what reads a figure off a turn."""
    return lambda turn: turn.figures[key]


def megabytes(turn: Turn) -> float:
    """The memory of a turn."""
    return turn.figures["pss_bytes"] / 1e6
