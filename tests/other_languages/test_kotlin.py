"""docs/other-languages.md works: a client generated for Kotlin, built by Maven and run against the real server."""

from __future__ import annotations

import asyncio
import pathlib
import re
import shutil

import pytest

from tests.serving import running
from tools import clients

FOLDER = pathlib.Path(__file__).parent / "kotlin"
PROGRAM = FOLDER / "target" / "classes" / "MainKt.class"


async def run(*command: str) -> str:
    """Runs a command in the folder; returns what it printed, which is the failure where it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=FOLDER,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode, output.decode()
    return output.decode()


def is_fresh() -> bool:
    """Whether the program is there and younger than all that it is made of."""
    sources = [*FOLDER.glob("*.*"), *FOLDER.glob("src/*"), *(clients.ROOT / "proto/inferwire/v1").iterdir()]
    return PROGRAM.exists() and PROGRAM.stat().st_mtime > max(source.stat().st_mtime for source in sources)


@pytest.mark.timeout(600)
async def test_a_flow_of_kotlin():
    """A stream is a Flow; leaving it after three events cancels the call, a refusal has its reason."""
    missing = [tool for tool in ("javac", "mvn") if shutil.which(tool) is None]
    if missing and clients.is_ci():
        pytest.fail(f"not on this machine: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    if not is_fresh():
        await run("mvn", "-B", "-q", "process-classes")
    classpath = f"target/classes:{(FOLDER / 'target' / 'classpath').read_text().strip()}"
    # Whoever was left holds nothing any more: that is checked at the end of the server.
    async with running() as (server, _):
        told = await run("java", "-cp", classpath, "MainKt", f"127.0.0.1:{server.port}")
    assert told.splitlines() == [
        "text: Hello",
        "finish reason: FINISH_REASON_STOP",
        "events: STARTED TEXT TEXT",
        "refused: NOT_FOUND MODEL_NOT_FOUND",
    ]


async def test_the_page_shows_what_is_run():
    """The code of the page stands in the project, line by line."""
    page = (clients.ROOT / "docs" / "other-languages.md").read_text()
    for language, file in (("yaml", "buf.gen.yaml"), ("kotlin", "src/Main.kt")):
        lines = [line.strip() for line in (FOLDER / file).read_text().splitlines()]
        for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL):
            for line in block.splitlines():
                assert line.strip() in lines
