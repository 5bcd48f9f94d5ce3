"""The scorecard: what is promised for when things go wrong, and what was measured.

`MEASURES` is every promise with its numeric target. A row tells its figure through `Scorecard.tell`; whether the target is met
is computed from the two and written by nobody. What was not measured stays blank.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Iterator, Sequence

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Measure:
    """A promise: the figure is at most `limit`, or at least. `row` is its row of the scorecard."""

    row: str
    key: str
    what: str
    limit: float
    unit: str = ""
    is_least: bool = False

    @property
    def target(self) -> str:
        """The target as it is read."""
        return f"{'>=' if self.is_least else '<='} {self.limit:g} {self.unit}".rstrip()

    def is_met_by(self, figure: float) -> bool:
        """Whether a figure meets the target."""
        return figure >= self.limit if self.is_least else figure <= self.limit


def _row(
    row: str, *measures: tuple[str, str, float, str] | tuple[str, str, float, str, bool]
) -> Iterator[Measure]:
    for measure in measures:
        yield Measure(row, *measure)


LEAST = True
MEASURES: tuple[Measure, ...] = (
    *_row(
        "R1",
        ("stub", "cancel until slot and cells are free, stub engine, p99", 100, "ms"),
        ("decode", "the same while the demo model decodes, p99", 250, "ms"),
        ("prefill", "the same in its prefill, steps of at most 250 ms, p99", 350, "ms"),
    ),
    *_row("R2", ("bytes", "streams that differ because others beside them were cancelled", 0, "")),
    *_row("R3", ("leases", "leases and cells still held after mixed RPCs", 0, "")),
    *_row("R4", ("bleed", "answers that show another request's state", 0, "")),
    *_row(
        "R5",
        ("admitted", "requests admitted beyond slots and queue", 0, ""),
        ("reject", "rejection, p99", 50, "ms"),
        ("retry", "rejections with RetryInfo", 100, "%", LEAST),
        ("slower", "answers of those admitted, slower than without overload, p99", 10, "%"),
    ),
    *_row(
        "R6",
        ("p99", "Health.Check under load, p99", 50, "ms"),
        ("max", "Health.Check under load, slowest", 250, "ms"),
        ("watch", "Health.Watch tells a change, slowest", 100, "ms"),
    ),
    *_row(
        "R7",
        ("p99", "lag of the gateway's event loop under load, p99", 20, "ms"),
        ("max", "lag of the gateway's event loop under load, longest", 100, "ms"),
    ),
    *_row(
        "R8",
        ("lost", "accepted streams that a drain lost", 0, ""),
        ("told", "SIGTERM until Watch says NOT_SERVING", 100, "ms"),
        ("exit", "exit beyond lame duck and drain time", 3, "s"),
    ),
    *_row("R9", ("errors", "errors that clients see in rolling restarts of two replicas", 0, "")),
    *_row(
        "R10",
        ("detect", "kill until the gateway knows, p99", 250, "ms"),
        ("status", "kill until the last stream has its status, slowest", 500, "ms"),
        ("wrong", "streams without the exact status", 0, ""),
        ("others", "failures of another model's stream", 0, ""),
        ("gap", "longest gap between another model's tokens", 200, "ms"),
        ("again", "serving again, beyond the time of a load, slowest", 1, "s"),
    ),
    *_row(
        "R11",
        ("detect", "hang until its status, beyond the stall limit, slowest", 1, "s"),
        ("false", "engines ended in a legal long prefill", 0, ""),
    ),
    *_row("R12", ("alive", "engines alive 2 s after kill -9 of their gateway", 0, "")),
    *_row(
        "R13",
        ("crashes", "crashes by one poisonous request", 2, ""),
        ("others", "others that were answered in the end", 100, "%", LEAST),
    ),
    *_row(
        "R14",
        ("memory", "growth of the gateway by 32 readers that do not read", 32, "MiB"),
        ("others", "throughput of the others", 95, "%", LEAST),
        ("freed", "freed, off the write stall limit", 1, "s"),
    ),
    *_row("R15", ("free", "half-open peer until its slot is free, beyond the keepalive", 1, "s")),
    *_row(
        "R16",
        ("gateway", "growth of the gateway over 7,500 RPCs", 10, "MiB"),
        ("engine", "growth of the engine over 7,500 RPCs", 16, "MiB"),
    ),
    *_row(
        "R17",
        ("fds", "file descriptors more than before", 2, ""),
        ("threads", "threads more than before", 2, ""),
        ("tasks", "tasks more than before", 2, ""),
        ("processes", "processes more than before", 0, ""),
    ),
    *_row(
        "R18",
        ("crashes", "wrong answers and crashes in 800 loads, unloads and requests", 0, ""),
        ("copies", "copies of the model at once", 1, ""),
        ("growth", "growth of the gateway meanwhile", 20, "MiB"),
    ),
    *_row(
        "R19",
        ("lost", "streams that an unload with a drain lost", 0, ""),
        ("force", "unload without a drain until the statuses, slowest", 500, "ms"),
        ("late", "unload beyond its drain timeout, slowest", 2, "s"),
    ),
    *_row(
        "R20",
        ("died", "broken model files that harmed the gateway or another model's answer, or are told wrongly", 0, ""),
        ("slow", "Load of one until its answer, slowest", 10, "s"),
        ("memory", "memory of an engine that reads one, most", 1024, "MiB"),
    ),
    *_row("R21", ("wrong", "malformed requests answered UNKNOWN or INTERNAL, or that harmed", 0, "")),
    *_row(
        "R22",
        ("accepted", "response formats that cannot be enforced and were not refused", 0, ""),
        ("slow", "refusal, slowest", 200, "ms"),
        ("deaths", "engines that died of one", 0, ""),
    ),
    *_row(
        "R23",
        ("executed", "hostile chat templates that did something", 0, ""),
        ("slow", "a template until it is refused, CPU time, slowest", 1, "s"),
        ("lag", "lag of the gateway's event loop meanwhile, longest", 100, "ms"),
    ),
    *_row("R24", ("wrong", "texts that differ from the bytes decoded at once", 0, "")),
    *_row("R25", ("false", "faults of a provider that ended OK, or with a wrong status", 0, "")),
    *_row(
        "R26",
        ("late", "status of a stall beyond the idle limit, slowest", 0.5, "s"),
        ("open", "connections still open", 0, ""),
        ("breaker", "failures until the breaker opens", 5, ""),
        ("probe", "first probe off its time", 0.5, "s"),
    ),
    *_row(
        "R27",
        ("expired", "expired requests that reached the engine", 0, ""),
        ("overshoot", "status beyond the deadline and a step, p99", 100, "ms"),
        ("precision", "DEADLINE_UNREACHABLE that were right", 90, "%", LEAST),
    ),
    *_row("R28", ("wrong", "faults without the exact code, reason and retryability", 0, "")),
    *_row("R29", ("bytes", "trailers in the worst case", 6144, "bytes")),
    *_row("R30", ("hits", "canaries found where they must not be", 0, "")),
    *_row(
        "R31",
        ("wrong", "pairs of credential and RPC without the exact status", 0, ""),
        ("open", "RPCs without a scope", 0, ""),
        ("timing", "time tells a nearly right key from a wrong one, share of pairs off one half", 5, "%"),
    ),
    *_row(
        "R32",
        ("opened", "files opened outside the model roots", 0, ""),
        ("oracle", "answers that tell whether a file exists", 0, ""),
    ),
    *_row("R33", ("connects", "connections to addresses that are not the operator's", 0, "")),
    *_row(
        "R34",
        ("failed", "streams and handshakes that failed in rotations", 0, ""),
        ("effective", "a new certificate until it is served, slowest", 5, "s"),
    ),
    *_row("R35", ("back", "descriptors free again until Health answers", 5, "s")),
    *_row(
        "R36",
        ("failed", "requests that failed because logs could not be written", 0, ""),
        ("dropped", "lines that were counted as lost, for each request", 1, "", LEAST),
    ),
    *_row(
        "R37",
        ("spurious", "statuses caused by a clock that jumps by an hour", 0, ""),
        ("lint", "durations in the code taken from the wall clock", 0, ""),
    ),
    *_row("R38", ("passed", "interoperability cases that pass, of five clients", 100, "%", LEAST)),
    *_row("R39", ("goaway", "clients sent away that ping through a silence of 45 s", 0, "")),
    *_row(
        "R40",
        ("amplified", "calls that arrive for each that was made, at three times the load", 1.1, ""),
        ("committed", "streams computed again that had begun for their callers", 0, ""),
    ),
    *_row(
        "R41",
        ("wrong", "starts that cannot be, without exit code 2 and one line", 0, ""),
        ("slow", "exit after the imports, slowest", 1, "s"),
    ),
    *_row(
        "R42",
        ("hung", "calls without a status 1 s after their deadline, in 10 minutes of random faults", 0, ""),
        ("wrong", "calls whose reason is no fault's of these", 0, ""),
        ("growth", "growth of the gateway meanwhile", 10, "MiB"),
    ),
    *_row(
        "R43",
        ("rate", "tokens/s lost to the engine process", 3, "%"),
        ("first", "time to the first token added by it", 1, "ms"),
    ),
)  # fmt: skip
BY_NAME = {(measure.row, measure.key): measure for measure in MEASURES}


@dataclasses.dataclass(frozen=True)
class Figure:
    """What was measured, and on how many samples."""

    value: float
    n: int


class Scorecard:
    """The figures of a run."""

    def __init__(self) -> None:
        self._figures: dict[Measure, Figure] = {}

    def __repr__(self) -> str:
        return f"<Scorecard [{len(self._figures)} of {len(MEASURES)} measured]>"

    def tell(self, row: str, key: str, value: float, *, n: int) -> None:
        """Notes a figure; of two for one measure the worse one. KeyError for a measure that nobody promised."""
        measure = BY_NAME[row, key]
        worst = min if measure.is_least else max
        before = self._figures.get(measure)
        if before is not None:
            value, n = worst(before.value, value), before.n + n
        self._figures[measure] = Figure(float(f"{value:.4g}"), n)

    def lines(self) -> Iterator[str]:
        """Yields a line for people for each figure."""
        for measure in MEASURES:
            if figure := self._figures.get(measure):
                met = "" if measure.is_met_by(figure.value) else "   NOT MET"
                yield (
                    f"{measure.row:4} {measure.what}: {figure.value:g} {measure.unit} of {measure.target}, "
                    f"n {figure.n}{met}"
                )

    def entries(self) -> list[dict[str, object]]:
        """Returns every measure, those that were not measured included."""
        return [
            {
                "id": measure.row,
                "measure": measure.what,
                "target": measure.target,
                "measured": figure and figure.value,
                "n": figure and figure.n,
                "met": measure.is_met_by(figure.value) if figure else None,
                "machine": MACHINE if figure else None,
            }
            for measure in MEASURES
            for figure in [self._figures.get(measure)]
        ]

    def write(self, folder: pathlib.Path = HERE) -> None:
        """Writes scorecard.json, and the table in README.md."""
        entries = self.entries()
        (folder / "scorecard.json").write_text(json.dumps(entries, indent=1) + "\n")
        readme = folder / "README.md"
        text, begin, _ = readme.read_text().partition(BEGIN)
        readme.write_text(f"{text}{begin}\n{table(entries)}\n")


BEGIN = "<!-- Written by `make reliability`. -->\n"
MACHINE = (
    f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
)


def table(entries: Sequence[dict[str, object]]) -> str:
    """Returns the scorecard as a Markdown table."""
    lines = ["| Row | Measure | Target | Measured | n | Met |", "|---|---|---|---|---|---|"]
    for entry in entries:
        met = {True: "yes", False: "**no**", None: ""}[entry["met"]]  # type: ignore[index]
        measured, n = ("" if entry[key] is None else f"{entry[key]:,}" for key in ("measured", "n"))
        lines.append(f"| {entry['id']} | {entry['measure']} | {entry['target']} | {measured} | {n} | {met} |")
    return "\n".join([f"Measured on {MACHINE}.", "", *lines])


def quantile(samples: Sequence[float], share: float) -> float:
    """Returns the sample that a share of all does not exceed; the largest of few."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(samples: Sequence[float], unit: str = "ms") -> str:
    """Returns n, median, p99 and maximum for people."""
    return (
        f"n {len(samples)}, p50 {statistics.median(samples):.1f}, p99 {quantile(samples, 0.99):.1f}, "
        f"max {max(samples):.1f} {unit}"
    )
