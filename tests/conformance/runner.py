"""Runs the cases against one language's program, which speaks JSON lines (see README.md here)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.config import ModelSettings, Settings
from inferwire_server.models import demo_model_path
from inferwire_server.server import Server
from tests.certificates import issued

from .peer import Peer

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CASES: list[dict[str, Any]] = json.loads((HERE / "cases.json").read_text())
PATIENCE_SECONDS = 60.0

REQUESTS: Mapping[str, type[Message]] = {
    "Complete": pb.CompleteRequest,
    "StreamComplete": pb.CompleteRequest,
    "GatherStream": pb.CompleteRequest,
    "CountTokens": pb.CompleteRequest,
    "Embed": pb.EmbedRequest,
    "Tokenize": pb.TokenizeRequest,
    "Detokenize": pb.DetokenizeRequest,
    "ListModels": pb.ListModelsRequest,
    "GetModel": pb.GetModelRequest,
    "WatchModels": pb.WatchModelsRequest,
    "ListBackends": pb.ListBackendsRequest,
    "Health": pb.HealthRequest,
    "Load": models_pb2.LoadRequest,
    "StreamLoad": models_pb2.LoadRequest,
    "Unload": models_pb2.UnloadRequest,
    "HealthCheck": health_pb2.HealthCheckRequest,
    "HealthWatch": health_pb2.HealthCheckRequest,
}
ANSWERS: Mapping[str, type[Message]] = {
    "Complete": pb.CompleteResponse,
    "StreamComplete": pb.StreamCompleteResponse,
    "GatherStream": pb.CompleteResponse,
    "CountTokens": pb.CountTokensResponse,
    "Embed": pb.EmbedResponse,
    "Tokenize": pb.TokenizeResponse,
    "Detokenize": pb.DetokenizeResponse,
    "ListModels": pb.ListModelsResponse,
    "GetModel": pb.GetModelResponse,
    "WatchModels": pb.WatchModelsResponse,
    "ListBackends": pb.ListBackendsResponse,
    "Health": pb.HealthResponse,
    "Load": models_pb2.LoadResponse,
    "StreamLoad": models_pb2.StreamLoadResponse,
    "Unload": models_pb2.UnloadResponse,
    "HealthCheck": health_pb2.HealthCheckResponse,
    "HealthWatch": health_pb2.HealthCheckResponse,
}


@dataclasses.dataclass
class World:
    """What the cases meet: our server, plain and behind TLS, and a peer that says what a case wrote."""

    server: Server
    peer: Peer
    targets: dict[str, dict[str, Any]]


@contextlib.asynccontextmanager
async def world(folder: pathlib.Path) -> AsyncIterator[World]:
    """Yields the servers of all cases."""
    key, certificate, ca = issued(folder, "server")
    client_key, client_certificate, client_ca = issued(folder, "client")
    pair = [(key.read_bytes(), certificate.read_bytes())]
    server = Server(
        Settings(
            address="127.0.0.1:0",
            scripted=True,
            models={
                "demo": ModelSettings(
                    path=str(demo_model_path()),
                    config={"context_length": 512, "parallel_sequences": 4, "threads": 1},
                ),
                "spare": ModelSettings(
                    path=str(demo_model_path()),
                    config={"context_length": 256, "parallel_sequences": 1, "threads": 1},
                    load=False,
                ),
            },
        )
    )
    # The server has no TLS of its own yet; its port for these cases is made here, before it starts.
    tls = server._ports[0].server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    both = grpc.ssl_server_credentials(pair, client_ca.read_bytes(), require_client_auth=True)
    mutual = server._ports[0].server.add_secure_port("127.0.0.1:0", both)
    peer = Peer()
    await peer.start()
    await server.start()
    try:
        changes = server.registry.changes
        while not server.registry.is_ready:
            await changes.after(changes.revision)
        own = {"cert": str(client_certificate), "key": str(client_key)}
        yield World(
            server,
            peer,
            {
                "server": {"target": f"127.0.0.1:{server.port}"},
                "peer": {"target": f"127.0.0.1:{peer.port}"},
                "tls": {"target": f"127.0.0.1:{tls}", "tls": {"ca": str(ca)}},
                "mtls": {"target": f"127.0.0.1:{mutual}", "tls": {"ca": str(ca), **own}},
                "mtls without a certificate": {
                    "target": f"127.0.0.1:{mutual}",
                    "tls": {"ca": str(ca)},
                },
                "tls with another ca": {
                    "target": f"127.0.0.1:{tls}",
                    "tls": {"ca": str(client_ca)},
                },
            },
        )
    finally:
        await server.stop(drain_seconds=0)
        await peer.stop()


class Program:
    """A language's program."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERWIRE_")}
        self._process = await asyncio.create_subprocess_exec(
            self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=128 << 20,
        )

    async def stop(self) -> None:
        """Closes its input, and waits for its end."""
        assert self._process is not None, "started"
        assert self._process.stdin is not None, "with a pipe"
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer to a line."""
        assert self._process is not None, "started"
        assert self._process.stdin is not None, "with a pipe"
        assert self._process.stdout is not None, "with a pipe"
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        await self._process.stdin.drain()
        answer = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_SECONDS)
        assert answer, "the program ended"
        told: dict[str, Any] = json.loads(answer)
        assert line["id"] == told["id"], "another line's answer"
        assert "fault" not in told, told
        return told


async def run(case: Mapping[str, Any], program: Program, world: World) -> None:
    """Runs a case. AssertionError says what differs."""
    if "peer" in case:
        world.peer.play(case["peer"])
    for number, call in enumerate(case["calls"]):
        await _call(f"{case['name']}#{number}", call, program, world)
    if "asked" in case:
        _check_asked(case["asked"], world.peer)
    while world.server.registry.num_leases:
        # A call that was left must free what it held; the test's timeout is the guard.
        await world.server.registry.changes.after(
            world.server.registry.changes.revision, timeout_seconds=0.05
        )


async def _call(id: str, call: Mapping[str, Any], program: Program, world: World) -> None:
    method = call["method"]
    request = _request(call)
    connect = {**world.targets[call.get("to", "server")], **call.get("connect", {})}
    line = {
        "id": id,
        "connect": {"tls": False, **connect},
        "call": {
            "method": method,
            "request": base64.b64encode(request.SerializeToString()).decode(),
            **{key: call[key] for key in ("timeout_ms", "metadata", "cancel_after") if key in call},
        },
    }
    told = await program.ask(line)
    messages = [ANSWERS[method].FromString(base64.b64decode(each)) for each in told["messages"]]
    _check(call["expect"], messages, told)


def _request(call: Mapping[str, Any]) -> Message:
    """Returns the request. `script` is what the scripted model shall say; `large` fills its prompt."""
    request = json_format.ParseDict(call.get("request", {}), REQUESTS[call["method"]]())
    if isinstance(request, pb.CompleteRequest):
        if "script" in call:
            request.model = "scripted"
            request.prompt = json.dumps(call["script"])
        if "words" in call:
            request.model = "scripted"
            request.prompt = " ".join(["word"] * call["words"])
    return request


def _check(expect: Mapping[str, Any], messages: list[Any], told: Mapping[str, Any]) -> None:
    for key, wanted in expect.items():
        match key:
            case "messages":
                shown = [_shown(message) for message in messages]
                assert len(wanted) == len(shown), shown
                for one, other in zip(wanted, shown, strict=True):
                    _match(one, other, "message")
            case "first" | "last":
                _match(wanted, _shown(messages[0 if key == "first" else -1]), key)
            case "count":
                assert wanted == len(messages)
            case "text":
                assert wanted == "".join(
                    message.text.text for message in messages if message.HasField("text")
                )
            case "length":
                assert wanted == sum(
                    len(message.text.text) for message in messages if message.HasField("text")
                )
            case "left_early":
                assert wanted == told.get("left_early", False)
            case "error":
                _check_error(wanted, told["error"])
            case _:
                raise AssertionError(f"the case asks for {key}")
    if "error" not in expect:
        assert told["error"] is None, told["error"]


def _check_error(wanted: Mapping[str, Any], error: Mapping[str, Any] | None) -> None:
    assert error is not None, "it ended OK"
    for key, value in wanted.items():
        if key == "retry":
            assert value == (error.get("retry_delay_ms") is not None), error
        elif key == "message_has":
            assert value in error["message"], error
        else:
            _match(value, error.get(key), key)


def _check_asked(wanted: Mapping[str, Any], peer: Peer) -> None:
    if "num_calls" in wanted:
        assert wanted["num_calls"] == peer.asked.num_calls
    for key, value in wanted.get("metadata", {}).items():
        assert value == peer.asked.metadata[-1].get(key), peer.asked.metadata[-1]
    for key in wanted.get("no_metadata", ()):
        assert key not in peer.asked.metadata[-1]


def _shown(message: Message) -> Any:
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=False)


def _match(wanted: Any, actual: Any, where: str) -> None:
    """Whether all that is wanted is there: of an object its keys, of a list every element in its place."""
    if isinstance(wanted, dict) and isinstance(actual, dict):
        for key, value in wanted.items():
            if value is None:
                assert key not in actual, f"{where}.{key} is set: {actual}"
            else:
                assert key in actual, f"{where}.{key} is missing: {actual}"
                _match(value, actual[key], f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(actual, list):
        assert len(wanted) == len(actual), f"{where}: {actual}"
        for index, (one, other) in enumerate(zip(wanted, actual, strict=True)):
            _match(one, other, f"{where}[{index}]")
    else:
        assert wanted == actual, f"{where}: {actual!r}"


async def run_all(language: str, folder: pathlib.Path) -> dict[str, str | None]:
    """Runs every case with a language's program. Returns why each failed, None where it passed."""
    command = ROOT / "clients" / language / "conformance" / "run"
    outcomes: dict[str, str | None] = {}
    async with world(folder) as servers:
        program = Program(str(command))
        await program.start()
        for case in CASES:
            try:
                await run(case, program, servers)
                outcomes[case["name"]] = None
            except (AssertionError, TimeoutError, KeyError, IndexError) as error:
                outcomes[case["name"]] = f"{type(error).__name__}: {error}"[:500]
                if isinstance(error, TimeoutError):
                    # What it answers later must not be taken for the answer to the next line.
                    await program.stop()
                    program = Program(str(command))
                    await program.start()
        await program.stop()
    return outcomes
