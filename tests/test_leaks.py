"""What must not get out: a marked word in everything that callers, operators and providers say, and a search where it may not be.

The server is the real command with its own environment, at the most talkative log level. The control is the same run with
`log_prompts`: what that setting tells is found, so the search can find, and all else is still not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator

import grpc
import psutil
import pytest

from inferwire import AsyncClient
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.models import demo_model_path
from tests.collector import collecting
from tests.providers.asking import chat
from tests.providers.openai import OpenAIWire
from tests.providers.server import Reply, Script, ScriptedProvider, Text, provider
from tests.test_metrics import get

SERVICE = "/inferwire.v1.InferenceService"
MARK = "zqcanary"

# What a caller writes: never in a log, a number or a span, unless the operator asks for it. To himself it may be told.
PROMPT = f"{MARK}prompt"
# What a model says.
ANSWER = f"{MARK}answer"
# What a caller writes that is no prompt: names, paths, metadata, schemas, bytes that are no message.
WORD = f"{MARK}word"
# What nobody may see but who owns it, in no log and in no status: keys, the environment, where files are, a provider's words.
KEY, ENVIRONMENT, PLACE, PROVIDER = f"{MARK}key", f"{MARK}environment", f"{MARK}place", f"{MARK}provider"
SECRETS = (KEY, ENVIRONMENT, PLACE, PROVIDER)


@dataclasses.dataclass
class Run:
    """A server and all that came out of it."""

    process: asyncio.subprocess.Process
    port: int
    metrics_port: int
    log: pathlib.Path
    texts: list[str] = dataclasses.field(default_factory=list)
    statuses: list[str] = dataclasses.field(default_factory=list)
    answers: list[str] = dataclasses.field(default_factory=list)

    def keep(self, error: grpc.aio.AioRpcError) -> None:
        self.statuses.append(
            f"{error.code()} {error.details()} {error.initial_metadata()} {error.trailing_metadata()}"
        )

    async def ask(self, channel: grpc.aio.Channel, method: str, request: object, **options) -> bytes:
        """Calls a method with a message or with bytes, and keeps the status that it fails with."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            if method == "StreamComplete":
                answer = b"".join(
                    [event async for event in channel.unary_stream(f"{SERVICE}/{method}")(data, **options)]
                )
            else:
                answer = await channel.unary_unary(method if "/" in method else f"{SERVICE}/{method}")(
                    data, **options
                )
        except grpc.aio.AioRpcError as error:
            self.keep(error)
            return b""
        return answer


@contextlib.asynccontextmanager
async def serving(folder: pathlib.Path, upstream: ScriptedProvider, **settings) -> AsyncIterator[Run]:
    """Yields a server: two local models, one of them with a template that quotes, a remote one, the scripted one, routes."""
    place = folder / PLACE
    place.mkdir()
    shutil.copy(demo_model_path(), place / "demo.gguf")
    template = "{{ raise_exception('Not this: ' ~ messages[0].content) if 'prompt' in messages[0].content else 'x' }}"
    config = {
        "address": "127.0.0.1:0",
        "metrics_address": "127.0.0.1:0",
        "scripted": True,
        "log_level": "debug",
        "model_roots": [str(place)],
        **settings,
    }
    small = "context_length = 512\nparallel_sequences = 4\nthreads = 1\n"
    tables = f"""
[models.demo]
path = {json.dumps(str(place / "demo.gguf"))}
[models.demo.config]
{small}
[models.quoting]
path = {json.dumps(str(place / "demo.gguf"))}
[models.quoting.config]
{small}chat_template = {json.dumps(template)}
[engine]
max_restarts = 10
[backends.far]
type = "openai"
base_url = "{upstream.url}"
api_key_env = "UPSTREAM_KEY"
models = ["m"]
health_seconds = 0
breaker_failures = 1000
headers = {{ "x-second-key" = "{KEY}2" }}
[routes.best]
candidates = ["far/m", "scripted"]
retries = 0
"""
    file = folder / "inferwire.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()) + tables)
    log = folder / "log"
    environment = {
        **os.environ,
        "UPSTREAM_KEY": f"{KEY}1",
        "SOMETHING": ENVIRONMENT,
        "GRPC_VERBOSITY": "DEBUG",
    }
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferwire_server.cli", "serve", "--config", str(file),
            stdout=asyncio.subprocess.PIPE, stderr=stderr, env=environment,
        )  # fmt: skip
    try:
        port = metrics_port = 0
        while not (port and metrics_port):
            line = (await process.stdout.readline()).decode()
            assert line, log.read_text()
            if found := re.search(r"listens on .*:(\d+)$", line):
                port = int(found[1])
            if found := re.search(r"Metrics at .*:(\d+)$", line):
                metrics_port = int(found[1])
        yield Run(process, port, metrics_port, log)
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert 0 == process.returncode
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def talk(run: Run, upstream: ScriptedProvider) -> None:
    """Says a marked word wherever one can be said, and keeps what comes back."""
    metadata = (
        ("authorization", f"Bearer {KEY}3"),
        ("x-request-id", f"{WORD} with spaces"),
        ("x-something", WORD),
        ("x-inferwire-hops", WORD),
    )
    async with AsyncClient(f"127.0.0.1:{run.port}") as client:
        async for snapshot in client.watch_models():
            if all(model.state == models_pb2.MODEL_STATE_READY for model in snapshot.models):
                break
        channel = client.channel

        async def ask(method: str, request: object) -> bytes:
            return await run.ask(channel, method, request, metadata=metadata)

        prompt = pb.CompleteRequest(model="demo", prompt=f"Tell {PROMPT}")
        prompt.stopping.stop.append(f"{WORD}stop")
        prompt.scheduling.cache_salt = f"{WORD}salt"
        for method in ("Complete", "StreamComplete"):
            await ask(method, prompt)
        prompt.stopping.ignore_eos, prompt.stopping.max_tokens = True, 40
        told = pb.CompleteResponse.FromString(await ask("Complete", prompt))
        run.answers.append("".join(part.text for part in told.message.parts))
        for format in (
            {"json_schema": f'{{"const": "{PROMPT}"}}'},
            {"json_schema": f'{{"{WORD}'},
            {"regex": f"({WORD}"},
        ):
            asked = pb.CompleteRequest(model="demo", prompt=f"Tell {PROMPT}")
            setattr(asked.response_format, *next(iter(format.items())))
            await ask("StreamComplete", asked)
        for model in ("demo", "quoting"):
            question = chat(PROMPT, model=model)
            question.chat.tools.add(name="tool", description=PROMPT, parameters=f'{{"{WORD}": 1}}')
            await ask("StreamComplete", question)
            await ask("StreamComplete", chat(PROMPT, model=model))
            await ask("CountTokens", chat(PROMPT, model=model))
        await ask("Embed", pb.EmbedRequest(model="demo", inputs=[PROMPT]))
        await ask("Tokenize", pb.TokenizeRequest(model="demo", text=PROMPT))
        await ask("Detokenize", pb.DetokenizeRequest(model="demo", token_ids=[1, 1 << 30]))
        await ask("Complete", pb.CompleteRequest(model="demo", prompt=PROMPT * 2000))

        # Scripts: an answer, a failure behind it, and what is no script.
        for script in (
            {"events": [{"text": ANSWER}, {"reasoning": ANSWER}, {"text": "."}]},
            {"events": [{"text": ANSWER}, {"error": {"reason": "UPSTREAM_STALLED"}}]},
            {"events": [{"text": ANSWER}, {"error": {"reason": "INTERNAL"}}]},
            {WORD: 1},
        ):
            await ask("StreamComplete", pb.CompleteRequest(model="scripted", prompt=json.dumps(script)))

        # Elsewhere: an answer, what is refused with the provider's words, what breaks off, what is no JSON.
        good = upstream.good(Script((Text(ANSWER), Text("."))))
        wire = upstream.wire
        for reply in (
            good,
            dataclasses.replace(good, steps=good.steps[:2]),
            *(
                Reply(
                    status=status,
                    steps=[wire.error(status, message=f"{PROVIDER} {PROMPT} {KEY}1")],
                    media_type="application/json",
                )
                for status in (400, 401, 404, 429, 500, 503)
            ),
            Reply(steps=[f"data: {PROVIDER}{PROMPT}\n\n".encode()], media_type="text/event-stream"),
        ):
            upstream.reply = reply
            for model in ("far/m", "best"):
                await ask("StreamComplete", chat(PROMPT, model=model))

        # What is wrong at the door.
        await ask("Complete", chat(PROMPT, model=f"{WORD}model"))
        await ask("Complete", chat(PROMPT, model=f"far/{WORD}model"))
        await ask("StreamComplete", pb.CompleteRequest(model="demo"))
        await ask("Complete", b"\x0a\xff" + WORD.encode())
        await ask(f"{SERVICE}/{WORD}method", b"")
        await ask("GetModel", pb.GetModelRequest(model=f"{WORD}model"))
        for path in (f"{WORD}.gguf", f"../{PLACE}/demo.gguf", f"/etc/{WORD}", f"{WORD}\0", f"{WORD}/" * 50):
            load = models_pb2.LoadRequest(model="new")
            load.source.local.path = path
            await ask("/inferwire.v1.ModelService/Load", load)
        bad = models_pb2.LoadRequest(model="bad")
        bad.source.local.path = "demo.gguf"
        bad.config.chat_template = "{{ " + WORD
        await ask("/inferwire.v1.ModelService/Load", bad)

        # A caller who leaves, one who is too late, and an engine that dies with its prompts.
        long = pb.CompleteRequest(model="demo", prompt=PROMPT)
        long.stopping.ignore_eos = True
        await run.ask(channel, "Complete", long, timeout=0.05)
        left = channel.unary_stream(f"{SERVICE}/StreamComplete")(long.SerializeToString())
        await left.read()
        left.cancel()
        await_crash = channel.unary_stream(f"{SERVICE}/StreamComplete")(long.SerializeToString())
        await await_crash.read()
        engines = psutil.Process(run.process.pid).children(recursive=True)
        run.texts += [pathlib.Path(f"/proc/{each.pid}/environ").read_bytes().decode() for each in engines]
        assert 2 == len(engines)
        for engine in engines:
            engine.send_signal(signal.SIGABRT)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await await_crash.read() is not grpc.aio.EOF:
                pass
        run.texts.append((await asyncio.to_thread(get, run.metrics_port))[2])
        run.texts.append(str(await client.health()))
        run.statuses.append(str(await client.list_models()))
        for backend in await client.list_backends():
            run.statuses.append(str(backend))


def found(texts: list[str], *words: str) -> list[str]:
    """Returns the words that stand in the texts, plain or as base64 or hexadecimal digits."""
    whole = "\n".join(texts)
    forms = {
        word: (word, word.encode().hex(), base64.b64encode(word.encode()).decode()[:-4]) for word in words
    }
    return [word for word, written in forms.items() if any(form in whole for form in written)]


@pytest.mark.parametrize("format", ["text", "json"])
async def test_nothing_leaks(format, tmp_path):
    """Not into the log, a number, a span, a status that is none of the caller's business, or the environment of an engine."""
    async with (
        collecting() as collector,
        provider(OpenAIWire()) as upstream,
        serving(tmp_path, upstream, log_format=format, traces_endpoint=collector.url) as run,
    ):
        await talk(run, upstream)
        environment = pathlib.Path(f"/proc/{run.process.pid}/environ").read_text()
    # The server's end has sent every span that there was.
    run.texts.append(str(collector.requests))
    log = run.log.read_text()
    (answer,) = run.answers
    assert [] == found([log, *run.texts], PROMPT, ANSWER, WORD, *SECRETS, answer[:20])
    assert [] == found(run.statuses, *SECRETS)
    # What was searched is what should be: the run was talkative, failed in many ways, and the words were there to be found.
    assert len(answer) > 20
    assert 25 < len(run.statuses)
    for reason in (
        "TEMPLATE_REJECTED",
        "UPSTREAM_AUTH",
        "MALFORMED_MESSAGE",
        "ENGINE_CRASHED",
        "GRAMMAR_INVALID",
    ):
        assert reason in log
    assert "llama_model_loader" in log
    assert len(collector.spans) > 50
    assert [KEY, ENVIRONMENT] == found([environment], KEY, ENVIRONMENT)


async def test_the_search_finds(tmp_path):
    """With `log_prompts` the log has prompts and answers, and still no secret. Numbers never have."""
    async with (
        collecting() as collector,
        provider(OpenAIWire()) as upstream,
        serving(
            tmp_path, upstream, log_prompts=True, log_format="json", traces_endpoint=collector.url
        ) as run,
    ):
        await talk(run, upstream)
    log = run.log.read_text()
    assert [PROMPT, ANSWER] == found([log], PROMPT, ANSWER, *SECRETS)
    assert [] == found(run.texts, PROMPT, ANSWER, WORD, *SECRETS)
    assert [PROMPT, ANSWER] == found([str(collector.requests)], PROMPT, ANSWER, *SECRETS)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    calls = [line for line in lines if line["event"] == "rpc" and line.get("model") == "demo"]
    assert {f"Tell {PROMPT}", PROMPT} <= {line.get("prompt") for line in calls}
    assert run.answers[0] in {line.get("completion") for line in calls}
    assert "prompts_are_logged" in {line["event"] for line in lines}
