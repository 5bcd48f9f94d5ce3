"""Every language's client meets every case, against the real server and a peer that says what no server of ours would."""

from __future__ import annotations

import pathlib

import pytest

from . import runner

#: What is there once a language's program was built; that of Python needs no build.
BUILT = {
    "python": "python/conformance/run",
    "go": "go/build/conformance",
    "typescript": "typescript/build/conformance/main.js",
    "rust": "rust/target/debug/inferwire-conformance",
    "java": "java/target/classpath",
    "cpp": "cpp/build/conformance/inferwire-conformance",
}
KNOWN_FAILING = pathlib.Path(__file__).parent / "known_failing"


def known_failing(language: str) -> set[str]:
    """The cases that a language is known to fail."""
    file = KNOWN_FAILING / f"{language}.txt"
    return set(file.read_text().splitlines()) if file.exists() else set()


def test_cases_are_told_apart():
    """A case is known by its name; there are many."""
    names = [case["name"] for case in runner.CASES]
    assert len(names) == len(set(names))
    assert len(names) >= 60


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", BUILT)
async def test_a_client_conforms(language, tmp_path):
    """All cases pass but those that are known to fail, and one of these that passes is an error as well."""
    if not (runner.ROOT / "clients" / BUILT[language]).exists():
        pytest.skip(f"not built: make conformance LANG={language}")
    outcomes = await runner.run_all(language, tmp_path)
    failed = {name: why for name, why in outcomes.items() if why is not None}
    known = known_failing(language)
    unexpected = {name: why for name, why in failed.items() if name not in known}
    assert {} == unexpected
    assert known == set(failed), "a case that was known to fail passes; take it out of the file"
