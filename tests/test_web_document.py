"""The lines of docs/web.md work as they are written: taken out of it and run, with nothing changed but the port."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import shlex
import shutil
import sys

import pytest

from .serving import demo, running

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs/web.md").read_text()
COMMANDS = [
    line.removeprefix("$ ").strip()
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if "curl" in line
]
# What each prints, in their order.
EXPECTED = [
    '"FINISH_REASON_LENGTH"',
    '"The capital of France is Paris."',
    '"defaultModel": "demo"',
    '"status": "SERVING"',
    '"reason": "MODEL_NOT_FOUND"',
    '"FINISH_REASON_LENGTH"',
]


def test_every_line_is_tried():
    """A line that is added is added below, too."""
    assert len(EXPECTED) == len(COMMANDS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_the_lines():
    """Each prints what the document says of it."""
    async with running(models={"demo": demo()}, web_address="127.0.0.1:0") as (server, _):
        for command, expected in zip(COMMANDS, EXPECTED, strict=True):
            program, *words = shlex.split(
                command.replace("127.0.0.1:8080", f"127.0.0.1:{server.web.address.port}")
            )
            quiet = ["--silent", "--show-error"] if program == "curl" else []
            process = await asyncio.create_subprocess_exec(
                shutil.which(program) or pathlib.Path(sys.executable).with_name(program),
                *(*words, *quiet) if quiet else words,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            output, errors = await process.communicate()
            assert (0, b"") == (process.returncode, errors), command
            assert expected in output.decode(), command


async def test_the_answer_of_the_failure():
    """The document shows code, message and details as they are."""
    (shown,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    told = json.loads(shown)
    async with running(web_address="127.0.0.1:0") as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.web.address.port)
        body = b'{"prompt": "Hi", "model": "nope"}'
        writer.write(
            b"POST /inferwire.v1.InferenceService/Complete HTTP/1.0\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        answer = json.loads((await reader.read(-1)).partition(b"\r\n\r\n")[2])
        writer.close()
    assert (told["code"], told["message"]) == (answer["code"], answer["message"])
    assert told["details"][0]["debug"] == answer["details"][0]["debug"]
    assert answer["details"][0]["value"].startswith(told["details"][0]["value"].removesuffix("..."))
