"""The tools that nobody here wrote: builds and installs them once, at the versions that lock files pin.

What a tool needs and is not there is a skip with its reason; on a build server it is a failure.
"""

from __future__ import annotations

import asyncio
import functools
import pathlib
import shutil
import subprocess
from typing import NoReturn

import pytest

from tools import clients

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
# A build of which nothing was kept downloads and compiles; on a busy machine that takes minutes.
BUILD_SECONDS = 540


def lacking(what: str) -> NoReturn:
    """Ends the test: skipped on a developer's machine, failed where everything must be there."""
    if clients.is_ci():
        pytest.fail(what)
    pytest.skip(what)


@functools.cache
def go(package: str) -> pathlib.Path:
    """Returns the program of a package that go.mod here pins. Go's own cache says what must be built."""
    folder = HERE / "go"
    if not shutil.which("go"):
        lacking("no go")
    # In a module's folder this fails when the module wants a newer Go that may not be fetched.
    asked = subprocess.run(["go", "version"], cwd=folder, capture_output=True, text=True, check=False)
    if asked.returncode:
        lacking(asked.stderr.strip())
    program = folder / "build" / pathlib.PurePath(package).name
    _run("go", "build", "-o", str(program), package, folder=folder)
    return program


@functools.cache
def npm() -> pathlib.Path:
    """Returns the folder of the Node programs, with the packages that its lock file pins."""
    folder = HERE / "node"
    if not (shutil.which("node") and shutil.which("npm")):
        lacking("no node and npm")
    installed = folder / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
        _run("npm", "ci", "--ignore-scripts", folder=folder)
    return folder


@functools.cache
def client(language: str) -> pathlib.Path:
    """Returns the conformance program of a client of ours, which the tests of balancing ask."""
    wanted = clients.CLIENTS[language]
    if problem := wanted.problem():
        lacking(problem)
    clients.build(wanted)
    return wanted.folder / "conformance" / "run"


async def run(*command: str | pathlib.Path, folder: pathlib.Path | None = None) -> tuple[int, str, str]:
    """Runs a tool; returns its exit code and what stands on standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


def _run(*command: str, folder: pathlib.Path) -> None:
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
    )
    if ended.returncode:
        pytest.fail(f"{' '.join(command)} in {folder.name}/: {ended.stderr or ended.stdout}")
