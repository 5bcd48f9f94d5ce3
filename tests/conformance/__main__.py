"""`make conformance`: builds the clients, runs every case with each, prints the table and keeps it.

python -m tests.conformance [LANGUAGE...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import sys
import tempfile
import time

from inferwire_server import logs
from tools import clients

from . import runner

RESULTS = runner.HERE / "results.json"
README = runner.HERE / "README.md"
MARK = "<!-- The table below is written by `make conformance`. -->\n"

Results = dict[str, runner.Outcomes]


def main() -> int:
    """Returns 1 when a case went otherwise than is known, or a client could not be built."""
    logs.configure(format="text", level="error")
    parser = argparse.ArgumentParser(
        description="Builds the clients and runs every conformance case with each."
    )
    parser.add_argument("languages", nargs="*", metavar="LANGUAGE", help=", ".join(clients.CLIENTS))
    chosen = parser.parse_args().languages or list(clients.CLIENTS)
    if unknown := sorted(set(chosen) - set(clients.CLIENTS)):
        parser.error(f"there is no client in {', '.join(unknown)}")
    built = [language for language in chosen if _is_built(language)]
    found = asyncio.run(_run(built))
    results: Results = {**(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}), **found}
    results = {language: results[language] for language in clients.CLIENTS if language in results}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = README.read_text()
    README.write_text(text[: text.index(MARK) + len(MARK)] + "\n" + table(results))
    print(table(results))
    surprised = [
        f"{language}: {name}: {why}"
        for language in built
        for name, why in runner.surprises(found[language], runner.known_failing(language)).items()
    ]
    print("\n".join(surprised))
    return 1 if surprised or built != chosen else 0


def _is_built(language: str) -> bool:
    client = clients.CLIENTS[language]
    try:
        if problem := client.problem():
            raise clients.BuildError(problem)
        clients.build(client)
    except clients.BuildError as error:
        print(f"{language}: {error}", flush=True)
        return False
    return True


async def _run(languages: list[str]) -> Results:
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        async with runner.suite(languages, pathlib.Path(name)) as suite:
            for language in languages:
                began = time.monotonic()
                results[language] = await suite.spoken(language)
                print(f"{language:10} {time.monotonic() - began:4.0f} s", flush=True)
            began = time.monotonic()
            for language in languages:
                results[language].update(await suite.silent(language))
            print(f"{'silence':10} {time.monotonic() - began:4.0f} s more", flush=True)
    return results


def table(results: Results) -> str:
    """Returns cases by languages as Markdown."""
    languages = list(results)
    lines = [f"| case | {' | '.join(languages)} |", f"|---|{'---|' * len(languages)}"]
    for case in runner.CASES:
        cells = [_cell(results[language], case["name"]) for language in languages]
        lines.append(f"| {case['name']} | {' | '.join(cells)} |")
    cells = [
        f"{sum(_cell(outcomes, case['name']) == 'pass' for case in runner.CASES)} of {len(runner.CASES)}"
        for outcomes in results.values()
    ]
    lines.append(f"| **passed** | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(outcomes: runner.Outcomes, name: str) -> str:
    if name not in outcomes:
        return "not run"
    return "pass" if outcomes[name] is None else "FAIL"


if __name__ == "__main__":
    sys.exit(main())
