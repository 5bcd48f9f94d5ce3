"""Servers of other makers as remote backends: the demo model behind llama.cpp's server and llama-cpp-python's.

    python -m bench.servers

Asks the demo model's cases (tests/models/demo_cases.json) through this server from each of them, in OpenAI's format and in
Anthropic's, streamed and as a whole. Each answer must be the one that the other server gives when it is asked directly, without
us. Prints a table and writes bench/results/servers.json; returns 1 when an answer differs. Nothing is timed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from typing import Any

import gguf

from inferwire import AsyncClient, InferwireError
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
# What is cached changes sums in their last digits, and so small a model's answers with them.
_BODY = {"cache_prompt": False}


# A filter of the demo model's template that llama.cpp's own reading of Jinja does not know, and the same without it.
_FILTER = "{{- (parameters.properties or {}) | list | tojson }}"
_LOOP = """{{- "[" }}{%- for name, _ in (parameters.properties or {}).items() %}
    {{- '"' ~ name ~ '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}{{- "]" }}"""


class _Llama(LlamaServer):
    """llama.cpp's server, with the demo model's template in words that it reads."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        field = gguf.GGUFReader(config.model).fields["tokenizer.chat_template"]
        template = bytes(field.parts[field.data[0]]).decode()
        assert _FILTER in template, "the template is the one that was trained with"
        file = config.folder / "template.jinja"
        file.write_text(template.replace(_FILTER, _LOOP))
        quiet = ("--no-webui", "--log-verbosity", "1", "--cache-ram", "0")
        self.options = (*quiet, "--jinja", "--chat-template-file", str(file))


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


def _ask_directly(
    server: LlamaServer | PackagedServer, case: Mapping[str, Any]
) -> tuple[str, list[dict[str, Any]]]:
    """Returns what a server answers to a case in its own words, not streamed."""
    body = {
        "messages": case.get("messages") or [{"role": "user", "content": case["ask"]}],
        "temperature": 0,
        "max_tokens": 200,
        **_BODY,
    }
    if case.get("tools"):
        body["tools"] = case["tools"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{server._port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        message = json.load(response)["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return (
        (message.get("content") or "").strip(),
        [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in calls],
    )


async def _ask(
    client: AsyncClient, model: str, server: LlamaServer | PackagedServer
) -> dict[str, dict[str, int]]:
    """Returns, for each kind, how many cases there were and how many answers, whole and streamed, were those of the server."""
    told: dict[str, dict[str, int]] = {}
    for kind, cases in requests().items():
        counts = told[kind] = {
            "cases": len(cases), "refused": 0, "same": 0, "streamed_same": 0, "with_usage": 0, "right": 0,
        }  # fmt: skip
        for request, case in cases:
            request.model = model
            try:
                answer = await client.complete(request)
            except InferwireError as error:
                # What a server cannot do is refused before the call; anything else is a failure of this check.
                if error.reason != "UNSUPPORTED_BY_BACKEND":
                    raise
                counts["refused"] += 1
                continue
            expected = await asyncio.to_thread(_ask_directly, server, case)
            counts["same"] += _said(answer) == expected
            counts["right"] += expected == (("", case["calls"]) if kind == "tools" else (case["answer"], []))
            async with client.stream(request) as stream:
                streamed = await stream.gather()
            counts["streamed_same"] += _said(streamed) == expected
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
                asked = {id: packaged if id == "packaged" else llama for id in backends}
                return {id: await _ask(client, f"{id}/{MODEL}", server) for id, server in asked.items()}
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
        options={"refuses": refuses or [], "body": _BODY},
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
    print(
        f"{'backend':<18}{'kind':<12}{'cases':>7}{'refused':>9}{'same':>6}{'streamed':>10}{'usage':>7}{'right':>7}"
    )
    for id, kinds in told.items():
        for kind, counts in kinds.items():
            print(
                f"{id:<18}{kind:<12}"
                + "{cases:>7}{refused:>9}{same:>6}{streamed_same:>10}{with_usage:>7}{right:>7}".format(
                    **counts
                )
            )
    (RESULTS / "servers.json").write_text(json.dumps(told, indent=2) + "\n")
    asked = [counts for kinds in told.values() for counts in kinds.values()]
    answered = [counts["cases"] - counts["refused"] for counts in asked]
    is_same = all(
        num == counts["same"] == counts["streamed_same"] for num, counts in zip(answered, asked, strict=True)
    )
    return 0 if is_same else 1


if __name__ == "__main__":
    os.environ.setdefault("INFERWIRE_LOG_LEVEL", "warning")
    sys.exit(main())
