"""`make conformance`: builds the clients, runs every case with each, prints the table and keeps it.

python -m tests.conformance [LANGUAGE...]
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from inferwire_server import logs

from . import runner

#: What each language's program is built with, in the language's folder; and the tool without which there is none.
BUILDS: dict[str, tuple[str, list[list[str]]]] = {
    "python": ("python3", []),
    "go": ("go", [["go", "build", "-o", "build/conformance", "./conformance"]]),
    "typescript": ("npm", [["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]]),
    "rust": ("cargo", [["cargo", "build", "--locked", "--package", "inferwire-conformance"]]),
    "java": ("mvn", [["mvn", "-B", "-q", "test-compile"]]),
    "cpp": (
        "cmake",
        [["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build", "-j", "2"]],
    ),
}
RESULTS = runner.HERE / "results.json"
README = runner.HERE / "README.md"
MARK = "<!-- The table below is written by `make conformance`. -->\n"


def build(language: str) -> str | None:
    """Builds a language's program. Returns why it cannot be."""
    tool, commands = BUILDS[language]
    folder = runner.ROOT / "clients" / language
    if not folder.is_dir():
        return "there is no such client"
    if shutil.which(tool) is None:
        return f"{tool} is not on this machine"
    for command in commands:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            return f"`{' '.join(command)}` failed:\n{(ran.stdout + ran.stderr)[-2000:]}"
    return None


def table(results: dict[str, dict[str, str | None]]) -> str:
    """Returns cases by languages as Markdown."""
    languages = list(results)
    lines = [f"| case | {' | '.join(languages)} |", f"|---|{'---|' * len(languages)}"]
    for case in runner.CASES:
        cells = [_cell(results[language].get(case["name"], "not run")) for language in languages]
        lines.append(f"| {case['name']} | {' | '.join(cells)} |")
    passed = [sum(why is None for why in outcomes.values()) for outcomes in results.values()]
    lines.append(f"| **passed** | {' | '.join(f'{count} of {len(runner.CASES)}' for count in passed)} |")
    return "\n".join(lines) + "\n"


def _cell(why: str | None) -> str:
    return "pass" if why is None else "FAIL"


def main() -> int:
    """Returns 1 when a case failed or a client could not be built."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logs.configure(format="text", level="error")
    chosen = sys.argv[1:] or list(BUILDS)
    known: dict[str, dict[str, str | None]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    is_whole = True
    for language in chosen:
        begin = time.monotonic()
        print(f"==> {language}", flush=True)
        if why := build(language):
            print(f"    {why}")
            is_whole = False
            continue
        built = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            outcomes = asyncio.run(runner.run_all(language, pathlib.Path(name)))
        known[language] = outcomes
        failed = {name: why for name, why in outcomes.items() if why is not None}
        is_whole &= not failed
        print(
            f"    {len(outcomes) - len(failed)} of {len(outcomes)} cases;"
            f" built in {built - begin:.0f} s, run in {time.monotonic() - built:.0f} s"
        )
        for name, why in failed.items():
            print(f"    {name}: {why}")
    ordered = {language: known[language] for language in BUILDS if language in known}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    text = README.read_text()
    README.write_text(text[: text.index(MARK) + len(MARK)] + "\n" + table(ordered))
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
