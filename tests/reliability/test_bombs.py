"""R22, R23, R24: response formats, chat templates and bytes that are made to kill, to hang or to slip through."""

from __future__ import annotations

import asyncio
import pathlib
import sys
import time

import grpc
import jinja2
import pytest

from inferwire import AsyncClient, InferwireError, text_of
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.engine.chat.template import ChatTemplate
from inferwire_server.engine.detokenizer import TextStream
from inferwire_server.server import Server
from tests.hostile import formats, templates
from tests.models import tiny
from tests.serving import bare_stub, demo, running

from . import rig
from .scorecard import spread


async def accepted(server: Server, model: str) -> tuple[list[str], list[float]]:
    """Returns the response formats of the corpus that were not refused as they must be, and the refusals' milliseconds."""
    wrong, samples = [], []
    async with bare_stub(server) as stub:
        for name, response_format in formats.FORMATS.items():
            asked = rig.request("Once", model, max_tokens=50)
            asked.response_format.CopyFrom(response_format)
            begin = time.perf_counter()
            try:
                await rig.within(30, stub.Complete(asked), name)
                wrong.append(name)
                continue
            except grpc.aio.AioRpcError as raised:
                error = InferwireError.of(raised)
            samples.append((time.perf_counter() - begin) * 1000)
            fields = [violation.field for violation in error.violations]
            if (
                error.code != grpc.StatusCode.INVALID_ARGUMENT
                or error.reason
                not in ("GRAMMAR_INVALID", "GRAMMAR_TOO_COMPLEX", "INVALID_REQUEST", "REQUEST_TOO_LARGE")
                or not all(field.startswith("response_format") for field in fields)
                or not fields
            ):
                wrong.append(f"{name}: {error!r}")
    return wrong, samples


async def test_r22_what_cannot_be_enforced_is_refused_and_kills_nothing(stub, card):
    """INVALID_ARGUMENT with the field, never an answer without the constraint; the engine is the same afterwards. An engine that
    ignores formats is seen.
    """
    num = len(formats.FORMATS)
    async with running(models={"demo": demo()}) as (server, client):
        instance = server.registry.model("demo").instance_id
        wrong, samples = await accepted(server, "demo")
        deaths = server.registry.model("demo").restarts
        assert (await client.complete(prompt="Once", model="demo", max_tokens=1)).HasField("completion")
        assert instance == server.registry.model("demo").instance_id
    print(f"refused: {spread(samples)}")
    card.tell("R22", "accepted", len(wrong), n=num)
    card.tell("R22", "slow", max(samples), n=len(samples))
    card.tell("R22", "deaths", deaths, n=num)
    assert [] == wrong

    async with rig.stub_server(models={"stub": stub(ignores_formats=True)}) as (server, _):
        wrong, _ = await accepted(server, "stub")
    assert len(wrong) > num / 2


def touching(path: pathlib.Path) -> list[str]:
    """Returns templates that make a file, where nothing holds them."""
    command = f"touch {path}"
    return [
        f"{{{{ cycler.__init__.__globals__.os.popen('{command}').close() }}}}",
        f"{{{{ joiner.__init__.__globals__.os.popen('{command}').close() }}}}",
        f"{{{{ namespace.__init__.__globals__.os.popen('{command}').close() }}}}",
        f"{{{{ lipsum.__globals__.os.popen('{command}').close() }}}}",
        f"{{{{ lipsum.__globals__['os'].system('{command}') }}}}",
        f"{{{{ self.__init__.__globals__.__builtins__.open('{path}', 'w').close() }}}}",
        f"{{{{ cycler.__init__.__globals__.__builtins__.__import__('os').system('{command}') }}}}",
        f"{{{{ (lipsum|attr('__globals__'))['os'].system('{command}') }}}}",
        f"{{{{ lipsum['__glo' ~ 'bals__'].os.system('{command}') }}}}",
        f"{{% set o = lipsum.__globals__ %}}{{{{ o['os'].system('{command}') }}}}",
    ]


async def test_r23_a_hostile_template_does_nothing_and_holds_up_nobody(card, draw, tmp_path, is_nightly):
    """At its load each is refused as TEMPLATE_INVALID; no file is touched, and the gateway's loop goes on. Where nothing holds
    them the same templates do touch the file.
    """
    touched = tmp_path / "touched"
    names = list(templates.BOMBS) if is_nightly else draw.sample(list(templates.BOMBS), 15)
    sources = touching(touched) + [templates.BOMBS[name] for name in names]
    slowest = 0.0
    for source in sources:
        begin = time.process_time()
        with pytest.raises(errors.TemplateInvalid):
            ChatTemplate(source, bos="", eos="", max_bytes=4 << 20)
        slowest = max(slowest, time.process_time() - begin)
    card.tell("R23", "slow", slowest, n=len(sources))

    tiny.write_tiny_model(tmp_path / "tiny.gguf")
    wrong = []
    async with running(model_roots=[str(tmp_path)]) as (_, client), rig.Lag() as lag:
        loading = asyncio.Semaphore(2)

        async def load(number: int, source: str) -> None:
            config = models_pb2.LoadConfig(context_length=64, threads=1, chat_template=source)
            async with loading:
                reason = await _refused(client, f"m{number}", config)
            if reason != "TEMPLATE_INVALID":
                wrong.append(f"{source[:100]}: {reason}")

        await asyncio.gather(*(load(number, source) for number, source in enumerate(sources)))
    print(f"lag: {spread(lag.milliseconds)}")
    card.tell("R23", "executed", len(wrong) + touched.exists(), n=len(sources))
    card.tell("R23", "lag", max(lag.milliseconds), n=len(lag.milliseconds))
    assert [] == wrong
    assert not touched.exists()

    for source in touching(touched):
        jinja2.Environment().from_string(source).render()
        assert touched.exists(), source
        touched.unlink()


async def _refused(client: AsyncClient, model: str, config: models_pb2.LoadConfig) -> str:
    try:
        await rig.within(60, client.load(model, "tiny.gguf", config=config), "a load")
    except InferwireError as error:
        return error.reason
    return "it was loaded"


async def differing(server: Server, streams: list[bytes]) -> int:
    """Returns how many answers of an engine that says these bytes, one per token, are not what they are as a whole."""
    slots = asyncio.Semaphore(16)
    async with bare_stub(server) as stub:

        async def is_different(data: bytes) -> bool:
            async with slots:
                answer: pb.CompleteResponse = await stub.Complete(rig.request(f"say:{data.hex()};"))
            return text_of(answer.message) != data.decode(errors="replace")

        return sum(await asyncio.gather(*map(is_different, streams)))


def num_lost_characters(every: int) -> tuple[int, int]:
    """Returns how many characters do not come whole out of a split in two, and how many splits were tried."""
    num_lost = num = 0
    stream = TextStream()
    for code in range(0, sys.maxunicode + 1, every):
        if 0xD800 <= code < 0xE000:
            continue
        char = chr(code)
        data = char.encode()
        for size in range(len(data)):
            num += 1
            num_lost += stream.push(data[:size]) + stream.push(data[size:]) != char
    return num_lost, num


async def test_r24_no_byte_is_lost(stub, card, draw, is_nightly):
    """Every character at every split, and random bytes through a server, read as the bytes do at once. Tokens that are decoded
    one by one are seen.
    """
    lost, num = num_lost_characters(1 if is_nightly else 7)
    card.tell("R24", "wrong", lost, n=num)
    assert 0 == lost

    valid = "aé€😀\0ÿ\uffff\U0010ffff"
    streams = [
        (draw.randbytes(draw.randint(0, 24)) if number % 2 else "".join(draw.choices(valid, k=8)).encode())
        for number in range(10_000 if is_nightly else 2_000)
    ]
    async with rig.stub_server(models={"stub": stub(slots=16)}) as (server, _):
        wrong = await differing(server, streams)
    card.tell("R24", "wrong", wrong, n=len(streams))
    assert 0 == wrong

    async with rig.stub_server(models={"stub": stub("alone", decodes_tokens_alone=True)}) as (server, _):
        assert await differing(server, streams[:50]) > 0
