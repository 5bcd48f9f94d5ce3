"""Clients that know nothing but an address: `buf curl`, and a Python program without generated code."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pathlib
import sys
from typing import Any

import pytest
from google.rpc import error_details_pb2

from inferwire_server.server import INFERENCE_SERVICE, MODEL_SERVICE
from tests.serving import demo, running

from . import tools

BUF = pathlib.Path(sys.executable).with_name("buf")
INFERENCE = "inferwire.v1.InferenceService"
PARIS = "The capital of France is Paris."
QUESTION = {
    "chat": {"messages": [{"role": "ROLE_USER", "parts": [{"text": "What is the capital of France?"}]}]},
    "sampling": {"temperature": 0},
}
WRONG = {"prompt": "x", "sampling": {"topP": 2}}


async def buf_curl(port: int, method: str, *flags: str, data: dict | None = None) -> tuple[int, str, str]:
    """Calls a method, or does what a flag says; returns the exit code, standard output and standard error."""
    body = [] if data is None else ["-d", json.dumps(data)]
    return await tools.run(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, *body,
        f"http://127.0.0.1:{port}/{method}",
    )  # fmt: skip


def messages(output: str) -> list[dict[str, Any]]:
    """Returns the messages that stand one after another in a text."""
    decoder, text, found = json.JSONDecoder(), output.strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].strip()
    return found


async def python(port: int, method: str, data: dict, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Calls a method with a Python that finds no code of ours by accident; returns messages and status."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, tools.HERE / "python" / "reflected.py", f"127.0.0.1:{port}", INFERENCE, method,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        env=environment,
    )  # fmt: skip
    output, _ = await process.communicate(json.dumps(data).encode())
    assert 0 == process.returncode
    return [json.loads(line) for line in output.splitlines()]


async def test_buf_curl_lists_every_method():
    """Reflection names the contract, health and itself, and nothing else."""
    async with running() as (server, _):
        code, output, _ = await buf_curl(server.port, "", "--list-methods")
        ours = [
            f"{service.full_name}/{method.name}"
            for service in (INFERENCE_SERVICE, MODEL_SERVICE)
            for method in service.methods
        ]
        health = [f"grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")]
        own = ["grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
        assert (0, sorted([*ours, *health, *own])) == (code, sorted(output.split()))


async def test_buf_curl_completes_and_streams():
    """A unary answer and a stream of the demo model say the same."""
    async with running(models={"demo": demo()}) as (server, _):
        code, output, _ = await buf_curl(server.port, f"{INFERENCE}/Complete", data=QUESTION)
        assert 0 == code
        [answer] = messages(output)
        assert PARIS == answer["message"]["parts"][0]["text"]

        code, output, _ = await buf_curl(server.port, f"{INFERENCE}/StreamComplete", data=QUESTION)
        assert 0 == code
        first, *deltas, last = messages(output)
        assert ("started", "completion") == (next(iter(first)), next(iter(last)))
        assert PARIS == "".join(delta["text"]["text"] for delta in deltas)


async def test_buf_curl_reads_a_failure_and_its_details():
    """Before any event: the code, our words, ErrorInfo and the violation. After some: the events stand, then the code."""
    async with running() as (server, _):
        code, output, errors = await buf_curl(server.port, f"{INFERENCE}/Complete", data=WRONG)
        told = json.loads(errors)
        # buf's exit code is eight times gRPC's.
        assert (3 * 8, "", "invalid_argument") == (code, output, told["code"])
        assert "sampling.top_p" in told["message"]
        details = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in told["details"]}
        info = error_details_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
        assert ("INVALID_REQUEST", "inferwire.dev") == (info.reason, info.domain)
        request = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
        assert ["sampling.top_p"] == [violation.field for violation in request.field_violations]

        script = {"events": [{"text": "a"}, {"error": {"reason": "ENGINE_CRASHED", "message": "it fell"}}]}
        broken = {"prompt": json.dumps(script)}
        code, output, errors = await buf_curl(server.port, f"{INFERENCE}/StreamComplete", data=broken)
        told = json.loads(errors)
        assert ["started", "text"] == [next(iter(event)) for event in messages(output)]
        assert (10 * 8, "aborted", "it fell") == (code, told["code"], told["message"])


@pytest.mark.parametrize("name", ["", "liveness", INFERENCE, "model/scripted"])
async def test_buf_curl_asks_for_health(name):
    """The standard health service is called like any other."""
    async with running() as (server, _):
        code, output, _ = await buf_curl(server.port, "grpc.health.v1.Health/Check", data={"service": name})
        assert (0, [{"status": "SERVING"}]) == (code, messages(output))


async def test_reflection_is_off_when_it_is_set_off():
    """Beyond loopback reflection is off unless the operator says otherwise; the setting is obeyed here too."""
    async with running(reflection=False) as (server, _):
        code, _, errors = await buf_curl(server.port, f"{INFERENCE}/Health", data={})
        assert code != 0
        assert "failed to find service" in errors


async def test_python_needs_no_generated_code(tmp_path):
    """A unary answer, a stream and a failure with its reason, all by messages that the server itself described."""
    async with running(models={"demo": demo()}) as (server, _):
        answer, status = await python(server.port, "Complete", QUESTION, tmp_path)
        assert PARIS == answer["message"]["parts"][0]["text"]
        assert "OK" == status["code"]

        first, *deltas, last, status = await python(server.port, "StreamComplete", QUESTION, tmp_path)
        assert ("started", "completion") == (next(iter(first)), next(iter(last)))
        assert PARIS == "".join(delta["text"]["text"] for delta in deltas)
        assert "OK" == status["code"]

        [status] = await python(server.port, "Complete", WRONG, tmp_path)
        assert {"code": "INVALID_ARGUMENT", "reason": "INVALID_REQUEST"} == status
