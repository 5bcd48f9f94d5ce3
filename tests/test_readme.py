"""The README's lines work as they are written: taken out of it and run, with nothing changed but the port."""

from __future__ import annotations

import asyncio
import pathlib
import re
import shlex
import sys

import pytest

from .serving import demo, running

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ").split("   # ")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("$ ")
]
BIN = pathlib.Path(sys.executable).parent


async def run(port: int, *command: str) -> tuple[int, str, str]:
    """Runs a command with the README's port replaced; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(word.replace("127.0.0.1:50051", f"127.0.0.1:{port}") for word in command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"INFERWIRE_ADDRESS": f"127.0.0.1:{port}", "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(ROOT)},
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


def command_with(words: str) -> list[str]:
    """Returns the one command of the README that holds some words, as the shell would split it."""
    (found,) = [command for command in COMMANDS if words in command]
    first, *rest = shlex.split(found)
    return [str(BIN / pathlib.Path(first).name), *rest]


@pytest.mark.parametrize("code", PYTHON)
async def test_the_python_client_of_the_readme(code):
    """It prints an answer, and what the answer cost."""
    async with running(models={"demo": demo()}) as (server, _):
        returned, output, errors = await run(
            server.port, sys.executable, "-c", code.replace("50051", str(server.port))
        )
    assert (0, "") == (returned, errors)
    assert output.startswith("The capital of France is Paris.\n")
    assert "completion_tokens" in output


async def test_buf_curl_of_the_readme():
    """A stream by reflection."""
    async with running(models={"demo": demo()}) as (server, _):
        returned, output, errors = await run(server.port, *command_with("buf curl"))
    assert (0, "") == (returned, errors)
    assert "FINISH_REASON" in output


async def test_the_scripted_line_of_the_readme():
    """The script is played."""
    async with running(scripted=True) as (server, _):
        returned, output, errors = await run(server.port, *command_with("--model scripted"))
    assert (0, "Hello\n") == (returned, output)
    assert "length" in errors


def test_every_make_target_of_the_readme_exists():
    """What the README asks to make can be made."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert {"serve", "setup"} <= named <= targets
