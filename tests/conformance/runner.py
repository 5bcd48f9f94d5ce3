"""Runs the cases against one language's program, which speaks JSON lines (see README.md here)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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

from .peer import Asked, Peer
from .relay import Relay
from .wire import WirePeer

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CASES: list[dict[str, Any]] = json.loads((HERE / "cases.json").read_text())
KNOWN_FAILING = HERE / "known_failing"
PATIENCE_SECONDS = 60.0

#: Why each case failed, None where it passed.
Outcomes = dict[str, str | None]

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


# Keys that the guarded server knows, by their scope.
KEYS = {"infer": "iw_infer", "admin": "iw_admin"}


@dataclasses.dataclass
class World:
    """What the cases meet: our server, plain and behind a relay, guarded ones, and peers that say what a case wrote."""

    server: Server
    peer: Peer
    wire: WirePeer
    relay: Relay
    targets: dict[str, dict[str, Any]]


@contextlib.asynccontextmanager
async def world(folder: pathlib.Path) -> AsyncIterator[World]:
    """Yields the servers of all cases."""
    async with _guarded(folder) as guarded, _open(guarded) as servers:
        yield servers


@contextlib.asynccontextmanager
async def _open(guarded: Mapping[str, dict[str, Any]]) -> AsyncIterator[World]:
    """Yields the servers that anybody may call, and the targets of all."""
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
                    config={"context_length": 2048, "parallel_sequences": 1, "threads": 1},
                    load=False,
                ),
            },
        )
    )
    async with contextlib.AsyncExitStack() as running:
        peer, wire = Peer(), WirePeer()
        await _start(running, peer.start, peer.stop)
        await _start(running, wire.start, wire.stop)
        await _start(running, server.start, functools.partial(server.stop, drain_seconds=0))
        relay = Relay(server.port)
        await _start(running, relay.start, relay.stop)
        changes = server.registry.changes
        while not server.registry.is_ready:
            await changes.after(changes.revision)
        yield World(
            server,
            peer,
            wire,
            relay,
            {
                "server": {"target": f"127.0.0.1:{server.port}"},
                "relay": {"target": f"127.0.0.1:{relay.port}"},
                "peer": {"target": f"127.0.0.1:{peer.port}"},
                "wire": {"target": f"127.0.0.1:{wire.port}"},
                **guarded,
            },
        )


@contextlib.asynccontextmanager
async def _guarded(folder: pathlib.Path) -> AsyncIterator[dict[str, dict[str, Any]]]:
    """Yields servers that let in whom they know, as targets: behind TLS, behind mTLS, and behind TLS with keys."""
    key, certificate, ca = issued(folder, "server")
    client_key, client_certificate, client_ca = issued(folder, "client")
    keys = folder / "keys.toml"
    keys.write_text(
        "".join(
            f"[keys.{scope}]\nsha256 = '{hashlib.sha256(text.encode()).hexdigest()}'\nscopes = ['{scope}']\n"
            for scope, text in KEYS.items()
        )
    )
    pair = {"tls_certificate": str(certificate), "tls_key": str(key)}
    servers = {
        name: Server(Settings(address="127.0.0.1:0", scripted=True, **pair, **more))
        for name, more in (
            ("tls", {}),
            ("mtls", {"tls_client_ca": str(client_ca)}),
            ("keys", {"keys_file": str(keys)}),
        )
    }
    trusts = {"ca": str(ca)}
    own = {"cert": str(client_certificate), "key": str(client_key)}
    async with contextlib.AsyncExitStack() as running:
        for server in servers.values():
            await _start(running, server.start, functools.partial(server.stop, drain_seconds=0))
        at = {name: {"target": f"127.0.0.1:{server.port}"} for name, server in servers.items()}
        yield {
            "tls": {**at["tls"], "tls": trusts},
            "tls with another ca": {**at["tls"], "tls": {"ca": str(client_ca)}},
            "mtls": {**at["mtls"], "tls": {**trusts, **own}},
            "mtls without a certificate": {**at["mtls"], "tls": trusts},
            "keys": {**at["keys"], "tls": trusts},
        }


class ProgramEnded(Exception):
    """It ended while it was asked."""


class Program:
    """A language's program."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    def of(cls, language: str) -> Program:
        """Returns a language's, not started yet."""
        return cls(str(ROOT / "clients" / language / "conformance" / "run"))

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
            async with asyncio.timeout(20):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer to a line. Raises TimeoutError, ProgramEnded."""
        assert self._process is not None, "started"
        assert self._process.stdin is not None, "with a pipe"
        assert self._process.stdout is not None, "with a pipe"
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await self._process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ProgramEnded from error
        if not answer:
            raise ProgramEnded
        told: dict[str, Any] = json.loads(answer)
        assert line["id"] == told["id"], "another line's answer"
        assert "fault" not in told, told
        return told


async def run(case: Mapping[str, Any], program: Program, world: World) -> None:
    """Runs a case. AssertionError says what differs."""
    if "peer" in case:
        world.peer.play(case["peer"])
    if "wire" in case:
        world.wire.play(case["wire"])
    for number, call in enumerate(case["calls"]):
        line = _line(f"{case['name']}#{number}", call, world.targets[call.get("to", "server")])
        async with asyncio.TaskGroup() as both:
            if "meanwhile" in call:
                both.create_task(_meanwhile(call["meanwhile"], world))
            told = await program.ask(line)
        _check(call["expect"], _messages(call, told), told)
    if "asked" in case:
        _check_asked(case["asked"], world.wire.asked if "wire" in case else world.peer.asked, case["calls"])
    while world.server.registry.num_leases:
        # A call that was left must free what it held; the test's timeout is the guard.
        await world.server.registry.changes.after(
            world.server.registry.changes.revision, timeout_seconds=0.05
        )


def _line(id: str, call: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": id,
        "connect": {"tls": False, **target, **call.get("connect", {})},
        "call": {
            "method": call["method"],
            "request": base64.b64encode(request_of(call).SerializeToString()).decode(),
            **{key: call[key] for key in ("timeout_ms", "metadata", "cancel_after") if key in call},
        },
    }


def _messages(call: Mapping[str, Any], told: Mapping[str, Any]) -> list[Any]:
    return [ANSWERS[call["method"]].FromString(base64.b64decode(each)) for each in told["messages"]]


async def _meanwhile(call: Mapping[str, Any], world: World) -> None:
    """Makes an operator's call of ModelService, as soon as the program's call over the relay has brought so much."""
    await world.relay.until_data(call["after_data"])
    method = call["method"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.server.port}") as channel:
        made = channel.unary_unary(
            f"/inferwire.v1.ModelService/{method}",
            request_serializer=REQUESTS[method].SerializeToString,
            response_deserializer=ANSWERS[method].FromString,
        )
        answer = await made(request_of(call), timeout=PATIENCE_SECONDS)
    _match(call["expect"], _shown(answer), method)


def request_of(call: Mapping[str, Any]) -> Message:
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
                assert wanted == _text_of(messages)
            case "length":
                assert wanted == len(_text_of(messages))
            case "begins":
                # What was on its way when a stream broke may be lost, but nothing in the middle.
                shown = [_shown(message) for message in messages]
                assert len(shown) <= len(wanted), shown
                for one, other in zip(wanted, shown, strict=False):
                    _match(one, other, "message")
            case "lacks":
                assert wanted not in _text_of(messages)
            case "left_early":
                assert wanted == told.get("left_early", False)
            case "error":
                _check_error(wanted, told["error"])
            case _:
                raise AssertionError(f"the case asks for {key}")
    if "error" not in expect:
        assert told["error"] is None, told["error"]


def _text_of(messages: list[Any]) -> str:
    return "".join(message.text.text for message in messages if message.HasField("text"))


def _check_error(wanted: Mapping[str, Any], error: Mapping[str, Any] | None) -> None:
    assert error is not None, "it ended OK"
    for key, value in wanted.items():
        if key == "retry":
            assert value == (error.get("retry_delay_ms") is not None), error
        elif key == "message_has":
            assert value in error["message"], error
        else:
            _match(value, error.get(key), key)


def _check_asked(wanted: Mapping[str, Any], asked: Asked, calls: list[Mapping[str, Any]]) -> None:
    for key, value in wanted.items():
        match key:
            case "num_calls":
                assert value == asked.num_calls, asked
            case "num_connections":
                assert value == len(asked.connections), asked
            case "least_silent_pings":
                assert value <= asked.num_silent_pings, asked
            case "metadata":
                for name, text in value.items():
                    assert text == asked.metadata[-1].get(name), asked.metadata[-1]
            case "no_metadata":
                for name in value:
                    assert name not in asked.metadata[-1]
            case "same_requests":
                assert value is True, "what is asked for, if anything"
                came = [
                    REQUESTS[call["method"]].FromString(request)
                    for call, request in zip(calls, asked.requests, strict=True)
                ]
                assert [request_of(call) for call in calls] == came
            case _:
                raise AssertionError(f"the case asks for {key}")


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


class Suite:
    """All cases, for some languages. The silent ones last most of a minute: those of all languages run at once, beside the
    others, which run one language after the other.
    """

    def __init__(self, world: World, languages: list[str]) -> None:
        self._world = world
        self._silent = {language: asyncio.create_task(_silent(language)) for language in languages}

    def __repr__(self) -> str:
        silent = [language for language, task in self._silent.items() if not task.done()]
        return f"<Suite [silent: {', '.join(silent) or 'none'} | {self._world.server!r}]>"

    async def spoken(self, language: str) -> Outcomes:
        """Runs every case of a language but the silent ones."""
        outcomes: Outcomes = {}
        program = Program.of(language)
        await program.start()
        for case in CASES:
            if "silence" in case:
                continue
            try:
                outcomes[case["name"]] = await _why(run(case, program, self._world))
            except (TimeoutError, ProgramEnded) as error:
                outcomes[case["name"]] = type(error).__name__
                # What it answers later must not be taken for the answer to the next line.
                await program.stop()
                program = Program.of(language)
                await program.start()
        await program.stop()
        return outcomes

    async def silent(self, language: str) -> Outcomes:
        """Returns what became of the silent cases of a language."""
        return await self._silent[language]

    async def close(self) -> None:
        """Ends what still runs."""
        for task in self._silent.values():
            task.cancel()
        await asyncio.gather(*self._silent.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def suite(languages: list[str], folder: pathlib.Path) -> AsyncIterator[Suite]:
    """Yields the cases, ready to run; those of silence run already."""
    async with world(folder) as servers:
        made = Suite(servers, languages)
        try:
            yield made
        finally:
            await made.close()


async def _silent(language: str) -> Outcomes:
    """Runs the silent cases of a language side by side, each with servers and a program of its own."""
    cases = [case for case in CASES if "silence" in case]

    async def one(case: Mapping[str, Any]) -> str | None:
        try:
            return await _why(_run_silent(case, language))
        except (TimeoutError, ProgramEnded) as error:
            return type(error).__name__

    # Who cancels this waits until their servers have stopped.
    async with asyncio.TaskGroup() as group:
        tasks = {case["name"]: group.create_task(one(case)) for case in cases}
    return {name: task.result() for name, task in tasks.items()}


async def _run_silent(case: Mapping[str, Any], language: str) -> None:
    async with contextlib.AsyncExitStack() as running:
        server = Server(Settings(address="127.0.0.1:0", scripted=True))
        await _start(running, server.start, functools.partial(server.stop, drain_seconds=0))
        relay, wire, program = Relay(server.port), WirePeer(), Program.of(language)
        for each in (relay, wire, program):
            await _start(running, each.start, each.stop)
        wire.play(case.get("wire", ()))
        ports = {"relay": relay.port, "wire": wire.port}
        for number, call in enumerate(case["calls"]):
            target = {"target": f"127.0.0.1:{ports[call['to']]}"}
            told = await program.ask(_line(f"{case['name']}#{number}", call, target))
            _check(call["expect"], _messages(call, told), told)
        if "asked" in case:
            _check_asked(case["asked"], wire.asked, case["calls"])
        assert 0 == relay.num_goaways, f"{relay}"
        assert case["silence"].get("num_connections", 0) == relay.num_connections, f"{relay}"


async def _why(case: Awaitable[None]) -> str | None:
    """Returns why a case failed, None where it passed. Raises TimeoutError, ProgramEnded."""
    try:
        await case
    except (AssertionError, KeyError, IndexError, grpc.RpcError, ExceptionGroup) as raised:
        error = _first(raised)
        if isinstance(error, (TimeoutError, ProgramEnded)):
            raise error from None
        return f"{type(error).__name__}: {error}"[:500]
    return None


def _first(error: Exception) -> Exception:
    """Returns what a task group's failure began with."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def known_failing(language: str) -> set[str]:
    """Returns the cases that a language is known to fail."""
    return set((KNOWN_FAILING / f"{language}.txt").read_text().splitlines())


def surprises(outcomes: Outcomes, known: set[str]) -> dict[str, str]:
    """Returns what went otherwise than is known: failures, and passes of what was known to fail."""
    return {
        name: "it passes, and is known to fail: take it out of known_failing" if why is None else why
        for name, why in outcomes.items()
        if (why is None) == (name in known)
    }


async def _start(
    running: contextlib.AsyncExitStack,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Starts something that is stopped with `running`, also when its start is broken off."""
    running.push_async_callback(stop)
    await start()
