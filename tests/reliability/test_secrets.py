"""R30, R33, R36: what must stay inside stays inside, nobody is sent to an address of a caller's choice, and full disks hurt nobody."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import pathlib
import re
import secrets
import signal
import socket
import urllib.request
from typing import Self

import grpc
import psutil
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire.v1.models_pb2_grpc import ModelServiceStub
from inferwire_server.backends import _http
from tests.collector import Collector, collecting
from tests.providers.asking import chat
from tests.providers.server import Reply
from tests.providers.wires import MODEL
from tests.serving import bare_stub, demo, rest, running
from tests.test_access import table

from . import rig
from .test_remote import gateway as provider_gateway

KINDS = ("prompt", "completion", "key", "token", "path", "environment", "schema", "tool")


async def hits(folder: pathlib.Path, model: str, collector: Collector, **settings: str) -> list[str]:
    """Runs a gateway that logs everything, lets all go wrong that may, and returns the canaries that came out, and where."""
    canaries = {kind: f"canary{kind}{secrets.token_hex(6)}" for kind in KINDS}
    told: list[str] = []
    root = folder / canaries["path"]
    root.mkdir()
    keys = folder / "keys.toml"
    keys.write_text(table("all", '"infer", "admin", "health"'))
    with rig.gateway(
        f"--model=stub={model}",
        f"--model-root={root}",
        f"--keys-file={keys}",
        log_level="debug",
        metrics_address=f"127.0.0.1:{(metrics_port := rig.free_port())}",
        traces_endpoint=collector.url,
        rig_canary=canaries["environment"],
        **settings,
    ) as it:
        await rig.until_ready(it.address, "iw_all")
        (engine,) = it.children
        assert (0, 0) == engine.rlimit(psutil.RLIMIT_CORE), "its memory is written to no file when it crashes"
        environment = pathlib.Path(f"/proc/{engine.pid}/environ").read_text(errors="replace")
        async with grpc.aio.insecure_channel(it.address, [("grpc.enable_retries", 0)]) as channel:
            stub, models = InferenceServiceStub(channel), ModelServiceStub(channel)
            said = canaries["completion"].encode().hex()
            wrong = pb.CompleteRequest(model="stub", prompt=canaries["prompt"])
            wrong.response_format.json_schema = json.dumps({"type": canaries["schema"]})
            tools = chat(canaries["prompt"], "stub")
            tools.chat.tools.add().name = canaries["tool"]
            requests = [
                rig.request(f"{canaries['prompt']} say:{said};"),
                rig.request(canaries["prompt"] * 500),
                rig.request(f"{canaries['prompt']} !crash@2"),
                wrong,
                tools,
            ]
            for request, key in itertools.product(requests, ("iw_all", canaries["token"])):
                told.append(await _told(stub.StreamComplete(request, metadata=_bearer(key))))
            load = models_pb2.LoadRequest(model="m")
            load.source.local.path = f"../{canaries['path']}/x.gguf"
            told.append(await _told(models.Load(load, metadata=_bearer("iw_all"))))
        metrics = await asyncio.to_thread(_fetched, f"http://127.0.0.1:{metrics_port}/metrics")
        it.popen.send_signal(signal.SIGINT)
        await it.exit_code(60)
        assert "inferwire" in metrics
        assert len(collector.spans) >= len(told), "a span for each call at least"
        artefacts = {
            "log": it.log,
            "statuses": "\n".join(told),
            "engine's environment": environment,
            "metrics": metrics,
            "traces": "\n".join(map(str, collector.requests)),
        }
    # The completion is the caller's, and so is his own prompt in what he is told of it.
    return [
        f"{kind} in the {where}"
        for (kind, canary), (where, text) in itertools.product(canaries.items(), artefacts.items())
        if canary in text
    ]


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def _told(call) -> str:
    """Returns all that a failed call tells; nothing of one that did not fail."""
    try:
        await (rest(call) if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return f"{error.details()} {error.trailing_metadata()} {error.initial_metadata()}"
    return ""


async def test_r30_nothing_that_is_private_comes_out(stub, card, tmp_path):
    """Prompts, answers, keys, paths and the environment are in no log at its loudest, no status, no metric, no trace, and no engine's
    environment. A server that logs prompts is seen.
    """
    model = stub().path
    async with collecting() as collector:
        found = await hits(tmp_path, model, collector)
    card.tell("R30", "hits", len(found), n=5 * len(KINDS))
    assert [] == found

    (tmp_path / "control").mkdir()
    async with collecting() as collector:
        control = await hits(
            tmp_path / "control", model, collector, rig_tells_prompts="1", log_prompts="true"
        )
    assert {"prompt in the log", "prompt in the traces"} <= set(control)


class Sink:
    """A port that nobody has any business with."""

    def __init__(self) -> None:
        self.num_connections = 0
        self.data = b""
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        both = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = both.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=both)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None, "left before it was entered"
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                self.data += await reader.read(1 << 16)
        writer.close()

    def urls(self) -> list[str]:
        """Returns ways to write where it is."""
        hosts = (
            "127.0.0.1", "localhost", "127.1", "0", "0.0.0.0", "0x7f000001", "2130706433", "0177.0.0.1", "[::1]",
            "[::ffff:127.0.0.1]", "user:pass@127.0.0.1", "127.0.0.1.", "LOCALHOST", "127.0.0.2", "%31%32%37.0.0.1",
        )  # fmt: skip
        schemes = ("http", "https", "ftp", "gopher")
        return [f"{scheme}://{host}:{self.port}/x.gguf" for scheme in schemes for host in hosts]


async def test_r33_nobody_is_sent_to_an_address_of_a_callers_choice(card, tmp_path, monkeypatch):
    """Sixty ways to write an address, in every field that takes text of that kind, and a provider that redirects: no connection is
    made, and no key is on the wire. A client that follows redirects is seen.
    """
    async with (
        Sink() as sink,
        running(models={"demo": demo()}, model_roots=[str(tmp_path)]) as (server, _),
        bare_stub(server) as stub,
    ):
        urls = sink.urls()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            models = ModelServiceStub(channel)
            for url in urls:
                schema = rig.request("Once", "demo", max_tokens=2)
                schema.response_format.json_schema = json.dumps({"$ref": url})
                local, hub, remote = (models_pb2.LoadRequest(model="m") for _ in range(3))
                local.source.local.path = url
                hub.source.hub.repository = url
                remote.source.remote.backend, remote.source.remote.model = url, url
                for call in (
                    stub.Complete(schema),
                    *(models.Load(request) for request in (local, hub, remote)),
                ):
                    assert "" != await _told(call), url
        num = 4 * len(urls)
        async with provider_gateway("openai") as (provider, _, remote_stub):
            redirects = [
                Reply(status, headers=(("location", url),)) for status in (301, 307) for url in urls[:15]
            ]
            for provider.reply in redirects:
                # Of an address that is none, the format is what is wrong.
                told = await _told(remote_stub.Complete(chat(model=f"x/{MODEL}")))
                assert "UPSTREAM_REDIRECT" in told or "UPSTREAM_PROTOCOL_ERROR" in told
        card.tell("R33", "connects", sink.num_connections, n=num + len(redirects))
        assert 0 == sink.num_connections

        client = _http.httpx.AsyncClient.__init__

        def following(self, **options):
            client(self, **{**options, "follow_redirects": True})

        monkeypatch.setattr(_http.httpx.AsyncClient, "__init__", following)
        async with provider_gateway("openai") as (provider, _, remote_stub):
            provider.reply = Reply(307, headers=(("location", f"http://127.0.0.1:{sink.port}/"),))
            await _told(remote_stub.Complete(chat(model=f"x/{MODEL}")))
        assert sink.num_connections > 0


async def with_log(log: pathlib.Path, stub_path: str, num: int) -> tuple[int, float]:
    """Returns how many of some requests fail when a gateway's log goes to a file, and how many lines it says it could not write."""
    num_failed = 0
    metrics_port = rig.free_port()
    with (
        log.open("w") as full,
        rig.gateway(
            f"--model=stub={stub_path}", stderr=full, metrics_address=f"127.0.0.1:{metrics_port}"
        ) as it,
    ):
        await rig.until_ready(it.address)
        async with grpc.aio.insecure_channel(it.address) as channel:
            stub = InferenceServiceStub(channel)
            for number in range(num):
                try:
                    await stub.Complete(rig.request(f"{number}", max_tokens=3, endless=True))
                except grpc.aio.AioRpcError:
                    num_failed += 1
        metrics = await asyncio.to_thread(_fetched, f"http://127.0.0.1:{metrics_port}/metrics")
        it.popen.send_signal(signal.SIGINT)
        assert 0 == await it.exit_code(60)
    (num_dropped,) = re.findall(r"^inferwire_log_lines_dropped_total (\S+)$", metrics, re.MULTILINE)
    return num_failed, float(num_dropped)


async def test_r36_a_full_disk_fails_no_request(stub, card, tmp_path):
    """Each request logs, no line can be written, and every answer comes; the lines are counted, and the drain ends with exit code 0.
    That a line cannot be written there is seen, and that none is counted where one can.
    """
    num = 200
    failed, dropped = await with_log(pathlib.Path("/dev/full"), stub().path, num)
    card.tell("R36", "failed", failed, n=num)
    card.tell("R36", "dropped", dropped / num, n=num)
    assert 0 == failed
    assert dropped >= num
    assert (0, 0) == await with_log(tmp_path / "log", stub().path, 20)
    with pytest.raises(OSError, match="No space left"):
        pathlib.Path("/dev/full").write_text("a line\n")
