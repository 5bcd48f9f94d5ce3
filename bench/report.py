"""What the person at the terminal sees, and the files: raw turns, figures and plots. A run of a part updates that part only."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from . import figures
from .contestants import Inferwire, Stream
from .figures import Row
from .inprocess import InProcess
from .peers import BatchedBench, LlamaServer, PackagedServer
from .turns import Turn
from .workloads import WORKLOADS

# The same colour for the same contestant everywhere.
_COLOURS = {
    Inferwire.name: "#0b6e4f",
    LlamaServer.name: "#c8553d",
    PackagedServer.name: "#7d7d7d",
    BatchedBench.name: "#30618c",
    InProcess.name: "#b08900",
}


def machine() -> str:
    """Returns what the figures were measured on, without its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.machine()
    cores = f"{os.cpu_count()} cores"
    return f"{processor}, {cores}, {platform.system()}, Python {platform.python_version()}"


def save(folder: Path, workload: str, turns: list[Turn], rows: list[Row], facts: dict[str, str]) -> None:
    """Writes a workload's turns and figures beside those of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = _read(folder / "engine.json", {})
    raw[workload] = {**facts, "turns": [_plain(turn) for turn in turns]}
    _write(folder / "engine.json", {key: raw[key] for key in WORKLOADS if key in raw})
    summary = [row for row in _read(folder / "summary.json", []) if row["id"] != workload]
    summary += [{**dataclasses.asdict(row), **facts} for row in rows]
    summary.sort(key=lambda row: list(WORKLOADS).index(row["id"]))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def load(folder: Path) -> dict[str, list[Turn]]:
    """Returns the turns of every workload that was ever run."""
    return {
        workload: [
            Turn(**{**turn, "streams": [Stream(**stream) for stream in turn["streams"]]})
            for turn in entry["turns"]
        ]
        for workload, entry in _read(folder / "engine.json", {}).items()
    }


def print_table(rows: list[Row]) -> None:
    """Prints the figures beside their targets."""
    heads = ["", "measure", "value", "min..max", "target", "", "who had what"]
    cells = [
        [
            row.id,
            row.measure,
            "not measured" if row.value is None else f"{_short(row.value)} {row.unit}",
            "..".join(map(_short, row.spread)) if row.rounds > 1 else "",
            row.target,
            {True: "met", False: "MISSED", None: ""}[row.met]
            + (" *" if row.other_cores > figures.NOISY_CORES else ""),
            ", ".join(f"{name} {_short(value)}" for name, value in row.peers.items())
            + (f" {row.peers_unit}" if row.peers else ""),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in [heads, *cells]:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(text.rstrip())
    if any(row.other_cores > figures.NOISY_CORES for row in rows):
        print("* others kept more than a tenth of a core busy meanwhile: measure again on a quiet machine")
    for reason in dict.fromkeys(note for row in rows for note in row.notes):
        print(f"\nNot measured: {reason}")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(turn: Turn) -> dict[str, Any]:
    """Returns a turn without its texts, with times to a tenth of a millisecond."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items() if key != "text"}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    plain: dict[str, Any] = rounded(dataclasses.asdict(turn))
    return plain


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def _write(path: Path, raw: dict[str, Any]) -> None:
    """Writes a line per turn, so that two versions can be compared."""
    entries = []
    for workload, entry in raw.items():
        turns = ",\n".join(json.dumps(turn) for turn in entry["turns"])
        facts = json.dumps({key: value for key, value in entry.items() if key != "turns"})[:-1]
        entries.append(f'{json.dumps(workload)}: {facts}, "turns": [\n{turns}\n]}}')
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def plot(folder: Path) -> None:
    """Draws what the raw turns have into `folder`."""
    # Imported late: it takes a while, and nothing else needs it.
    import matplotlib as mpl  # type: ignore[import-not-found]

    mpl.use("Agg")
    mpl.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 120, "font.size": 9}
    )
    turns = load(folder)
    if "W1" in turns:
        _plot_throughput(folder / "throughput.png", turns["W1"])
    if "W3" in turns:
        _plot_stalls(folder / "stalls.png", turns["W3"])
    if "W2" in turns or "W4" in turns:
        _plot_bars(folder / "sharing.png", turns.get("W2", []), turns.get("W4", []))


def _plot_throughput(path: Path, turns: list[Turn]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, kind, of, title in (
        (axes[0], "run", figures.tokens_per_second, "Whole run: distinct prompts, all at once"),
        (axes[1], "decode", figures.decode_rate, "While every stream decodes"),
    ):
        chosen = [turn for turn in turns if turn.case.startswith(kind)]
        for name in dict.fromkeys(turn.contestant for turn in chosen):
            counts = sorted({int(turn.case.split()[1]) for turn in chosen if turn.contestant == name})
            values = [
                [of(turn) for turn in chosen if turn.contestant == name and turn.case == f"{kind} {count}"]
                for count in counts
            ]
            middle = [statistics.median(rounds) for rounds in values]
            errors = [
                [value - min(rounds) for value, rounds in zip(middle, values, strict=True)],
                [max(rounds) - value for value, rounds in zip(middle, values, strict=True)],
            ]
            axis.errorbar(
                counts, middle, yerr=errors, label=name, color=_COLOURS[name], marker="o", capsize=3
            )
        counts = sorted({int(turn.case.split()[1]) for turn in chosen})
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set(title=title, xlabel="streams", ylabel="completion tokens per second")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _plot_stalls(path: Path, turns: list[Turn]) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    first = [turn for turn in turns if turn.round == 0]
    for turn in first:
        *running, long = turn.streams
        points = [
            (when - long.begin, seconds * 1000)
            for stream in running
            for when, seconds in figures.gaps(stream)
        ]
        colour = _COLOURS[turn.contestant]
        axis.scatter(*zip(*points, strict=True), s=9, color=colour, label=turn.contestant, alpha=0.7)
        axis.axvspan(0, long.times[0] - long.begin, color=colour, alpha=0.08, lw=0)
    axis.axhline(300, color="black", lw=0.8, ls="--")
    axis.annotate("300 ms", (1, 300), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yscale("log")
    axis.set(
        title="Eight running streams while a long prompt arrives (at 0; shaded until its first token)",
        xlabel="seconds since the long prompt was sent",
        ylabel="time since the stream's last token, ms",
    )
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _plot_bars(path: Path, shared: list[Turn], chats: list[Turn]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    for axis, turns, of, title, label in (
        (axes[0], shared, lambda turn: turn.seconds, "Shared prefix: whole run", "seconds"),
        (axes[1], shared, _slowest_first_token, "Shared prefix: first token, p99", "seconds"),
        (axes[2], chats, lambda turn: turn.seconds, "Chats: whole run", "seconds"),
    ):
        names = list(dict.fromkeys(turn.contestant for turn in turns))
        values = [[of(turn) for turn in turns if turn.contestant == name] for name in names]
        middle = [statistics.median(rounds) for rounds in values]
        bars = axis.bar(names, middle, color=[_COLOURS[name] for name in names], width=0.6)
        for bar, rounds in zip(bars, values, strict=True):
            # Beside the figure, which stands in the middle.
            axis.plot([bar.get_x() + 0.1 * bar.get_width()] * len(rounds), rounds, "k_", ms=10)
        axis.bar_label(bars, fmt="%.1f", padding=4)
        axis.set(title=title, ylabel=label)
        axis.margins(y=0.15)
    figure.savefig(path)
    plt.close(figure)


def _slowest_first_token(turn: Turn) -> float:
    return figures.percentile(figures.first_token_seconds(turn), 99)
