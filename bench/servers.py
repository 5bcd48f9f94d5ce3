"""Servers of other makers as remote backends: the demo model behind llama.cpp's server and llama-cpp-python's.

    python -m bench.servers

Asks what the demo model must know (tests/models/demo_cases.json) through this server from each of them, in OpenAI's format and
in Anthropic's, streamed and as a whole, and compares with the cases. Prints a table and writes bench/results/servers.json;
returns 1 when an answer misses that the backend should have given. Nothing is timed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from inferwire import AsyncClient
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.config import BackendSettings, Settings
from inferwire_server.models import demo_model_path
from inferwire_server.server import Server
from tools import setup_env

from . import build
from .contestants import Config
from .peers import LlamaServer, PackagedServer

CASES = pathlib.Path(__file__).parent.parent / "tests" / "models" / "demo_cases.json"
RESULTS = pathlib.Path(__file__).parent / "results"
MODEL = "demo"


class _Llama(LlamaServer):
    options = ("--no-webui", "--log-verbosity", "1", "--jinja", "--cache-ram", "0")


def requests() -> dict[str, list[tuple[pb.CompleteRequest, Mapping[str, Any]]]]:
    """Returns the cases by kind, each with what must come."""
    cases = json.loads(CASES.read_text())
    asked: dict[str, list[tuple[pb.CompleteRequest, Mapping[str, Any]]]] = {}
    for kind in ("questions", "chats", "tools"):
        asked[kind] = [(_request(case), case) for case in cases[kind][:20]]
    return asked


def _request(case: Mapping[str, Any]) -> pb.CompleteRequest:
    request = pb.CompleteRequest()
    for message in case.get("messages") or [{"role": "user", "content": case["ask"]}]:
        turn = request.chat.messages.add(role=pb.Role.Value(f"ROLE_{message['role'].upper()}"))
        turn.parts.add(text=message["content"])
    for tool in case.get("tools", ()):
        function = tool["function"]
        request.chat.tools.add(
            name=function["name"],
            description=function["description"],
            parameters=json.dumps(function["parameters"]),
        )
    request.sampling.temperature = 0
    request.stopping.max_tokens = 200
    return request


def _said(answer: pb.CompleteResponse) -> tuple[str, list[dict[str, Any]]]:
    parts = answer.message.parts
    calls = [part.tool_call for part in parts if part.HasField("tool_call")]
    return (
        "".join(part.text for part in parts).strip(),
        [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls],
    )


async def _ask(client: AsyncClient, model: str) -> dict[str, dict[str, int]]:
    """Returns, for each kind, how many cases there were and how many answers were right, whole and streamed."""
    told: dict[str, dict[str, int]] = {}
    for kind, cases in requests().items():
        counts = told[kind] = {"cases": len(cases), "right": 0, "streamed_right": 0, "with_usage": 0}
        for request, case in cases:
            request.model = model
            expected = ("", case["calls"]) if kind == "tools" else (case["answer"], [])
            answer = await client.complete(request)
            counts["right"] += _said(answer) == expected
            async with client.stream(request) as stream:
                streamed = await stream.gather()
            counts["streamed_right"] += _said(streamed) == expected
            usage = answer.completion.usage
            counts["with_usage"] += usage.prompt_tokens > 0 and usage.completion_tokens > 0
    return told


async def run(folder: pathlib.Path) -> dict[str, dict[str, dict[str, int]]]:
    """Starts the servers and asks each of them through a server of ours."""
    config = Config(demo_model_path(), 1024, 1, 1, folder)
    llama, packaged = _Llama(config), PackagedServer(config)
    started: list[LlamaServer | PackagedServer] = [packaged]
    backends = {"packaged": _settings("openai-compatible", packaged, "/v1", refuses=["chat.tools"])}
    if build.LLAMA_SERVER.exists():
        started.append(llama)
        backends["llama"] = _settings("llama-server", llama, "/v1")
        backends["llama-anthropic"] = _settings("anthropic", llama, "")
    try:
        for server in started:
            await server.start()
        gateway = Server(Settings(address="127.0.0.1:0", backends=backends))
        await gateway.start()
        try:
            async with AsyncClient(f"127.0.0.1:{gateway.port}") as client:
                return {id: await _ask(client, f"{id}/{MODEL}") for id in backends}
        finally:
            await gateway.stop(drain_seconds=0)
    finally:
        for server in started:
            await server.stop()


def _settings(
    type: str, server: LlamaServer | PackagedServer, path: str, refuses: list[str] | None = None
) -> BackendSettings:
    return BackendSettings(
        type=type,
        base_url=f"http://127.0.0.1:{server._port}{path}",
        models=[MODEL],
        options={"refuses": refuses} if refuses else {},
    )


def main() -> int:
    """Returns 1 when an answer missed."""
    build.fetch_source()
    try:
        build.build()
    except setup_env.SetupError as error:
        print(f"{error}\nGoing on without llama-server.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        told = asyncio.run(run(pathlib.Path(name)))
    print(f"{'backend':<18}{'kind':<12}{'cases':>7}{'right':>7}{'streamed':>10}{'usage':>7}")
    for id, kinds in told.items():
        for kind, counts in kinds.items():
            print(
                f"{id:<18}{kind:<12}"
                + "{cases:>7}{right:>7}{streamed_right:>10}{with_usage:>7}".format(**counts)
            )
    (RESULTS / "servers.json").write_text(json.dumps(told, indent=2) + "\n")
    texts = [kinds[kind] for kinds in told.values() for kind in ("questions", "chats")]
    return 0 if all(counts["cases"] == counts["right"] == counts["streamed_right"] for counts in texts) else 1


if __name__ == "__main__":
    os.environ.setdefault("INFERWIRE_LOG_LEVEL", "warning")
    sys.exit(main())
