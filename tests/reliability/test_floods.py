"""R21, R35: bytes, frames and connections that no client should send. Who sends them is told so; others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from inferwire.v1 import inference_pb2, models_pb2
from inferwire_server import rpc
from inferwire_server.server import Server
from tests.serving import bare_stub

from . import rig
from .test_crashes import Witness

METHODS = [
    method
    for file in (inference_pb2, models_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    # Watches do not end, and an unloaded model refuses everything for one reason.
    if not method.name.startswith(("Watch", "Unload"))
]
FORBIDDEN = {"UNKNOWN", "INTERNAL"}


def some_message(message: Message, draw: random.Random, depth: int = 0) -> Message:
    """Fills a message with values of the right types and of every size, few of which make sense."""
    for field in message.DESCRIPTOR.fields:
        if (
            draw.random() < 0.6
            or depth > 4
            or (field.message_type and field.message_type.GetOptions().map_entry)
        ):
            continue
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            place = getattr(message, field.name)
            for _ in range(draw.choice((1, 1, 3))):
                some_message(place.add() if field.is_repeated else place, draw, depth + 1)
                if not field.is_repeated:
                    place.SetInParent()
                    break
        elif field.is_repeated:
            getattr(message, field.name).extend(some_value(field, draw) for _ in range(draw.choice((1, 9))))
        else:
            setattr(message, field.name, some_value(field, draw))
    return message


def some_value(field: FieldDescriptor, draw: random.Random) -> object:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return draw.randbytes(draw.choice((0, 1, 100)))
        case FieldDescriptor.CPPTYPE_STRING:
            return draw.choice(("", "stub", "x" * 5000, "\0", "é🙂", "../..", "{", "a\u202eb"))
        case FieldDescriptor.CPPTYPE_BOOL:
            return draw.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return draw.choice((0, 1, 2, 99))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return draw.choice((0.0, -1.0, 0.5, 1e30, float("inf"), float("nan")))
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
            return draw.choice((0, -1, 1, 2**31 - 1, -(2**31)))
        case _:
            return draw.choice((0, 1, 2**31, 2**32 - 1))


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """Returns bytes with a few of them changed, taken out, doubled, or cut off."""
    changed = bytearray(data or b"\x0a\x01a")
    for _ in range(draw.choice((0, 1, 1, 4))):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place:place] = draw.randbytes(draw.choice((1, 8)))
            case 2:
                del changed[place : place + draw.choice((1, 5))]
            case _:
                del changed[place:]
        if not changed:
            break
    return bytes(changed)


async def fuzzed(server: Server, num: int, draw: random.Random) -> Counter[str]:
    """Returns the codes with which so many nonsensical requests end, by code and method."""
    codes: Counter[str] = Counter()
    slots = asyncio.Semaphore(16)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_retries", 0)]) as channel:

        async def one() -> None:
            method = draw.choice(METHODS)
            message = some_message(GetMessageClass(method.input_type)(), draw)
            if hasattr(message, "model") and draw.random() < 0.7:
                message.model = "stub"
            data = spoilt(message.SerializeToString(), draw)
            path = f"/{method.containing_service.full_name}/{method.name}"
            async with slots:
                try:
                    if method.server_streaming:
                        async for _ in channel.unary_stream(path)(data, timeout=5):
                            pass
                    else:
                        await channel.unary_unary(path)(data, timeout=5)
                    code = "OK"
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
            codes[f"{code} {method.name}" if code in FORBIDDEN else code] += 1

        await asyncio.gather(*(one() for _ in range(num)))
    return codes


def _headers(stream: int, block: bytes, *flags: str) -> bytes:
    frame = HeadersFrame(stream, block)
    for flag in flags:
        frame.flags.add(flag)
    return bytes(frame.serialize())


def _frames(make: Callable[[int], Frame], num: int) -> bytes:
    return b"".join(make(number).serialize() for number in range(num))


def _continuation(stream: int, block: bytes) -> Frame:
    return ContinuationFrame(stream, block)


def attacks(address: str) -> dict[str, bytes]:
    """Returns what is sent behind a good preface, by name."""
    encoder = H2Connection(H2Configuration(client_side=True)).encoder
    path = "/inferwire.v1.InferenceService/StreamComplete"
    good = [(":method", "POST"), (":scheme", "http"), (":authority", address), (":path", path)]
    good += [("content-type", "application/grpc"), ("te", "trailers")]
    block = encoder.encode(good)
    opened = [_headers(1 + 2 * number, encoder.encode(good), "END_HEADERS") for number in range(2000)]
    resets = [RstStreamFrame(1 + 2 * number, error_code=8).serialize() for number in range(2000)]
    ping = PingFrame(0, b"12345678")
    large = encoder.encode([*good, ("x-large", "y" * 200_000)])
    pieces = [large[begin : begin + 16_000] for begin in range(0, len(large), 16_000)]
    data = DataFrame(1, b"\x00\x00\x00\x00\x05hello")
    data.flags.add("END_STREAM")
    first = whole = _headers(1, block, "END_HEADERS")
    return {
        "streams that are reset at once": b"".join(map(bytes.__add__, opened, resets)),
        "streams that are never used": b"".join(opened),
        "pings": ping.serialize() * 5000,
        "settings": SettingsFrame(0, {3: 100}).serialize() * 5000,
        "window updates": WindowUpdateFrame(0, 1).serialize() * 5000,
        "a window that overflows": WindowUpdateFrame(0, 2**31 - 1).serialize() * 2,
        "headers that never end": _headers(1, block) + _frames(lambda _: _continuation(1, b""), 5000),
        "large headers": _headers(1, pieces[0])
        + b"".join(_continuation(1, it).serialize() for it in pieces[1:]),
        "data before headers": data.serialize(),
        "data without a frame of gRPC": first + DataFrame(1, b"\xff" * 100).serialize() + data.serialize(),
        "a frame that is too large": b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        "a frame of an unknown type": b"\x00\x00\x04\xfe\x00\x00\x00\x00\x01abcd" * 1000,
        "half a frame": first[:5],
        "headers on stream zero": whole[:5] + bytes(4) + whole[9:],
        "headers that cannot be unpacked": _headers(1, b"\xff" * 50, "END_HEADERS"),
        "an absurd length of a message": first + DataFrame(1, b"\x00\xff\xff\xff\xffx").serialize(),
    }


async def attacked(server: Server, name: str, data: bytes) -> None:
    """Sends frames over a connection of their own, and reads what comes until it is closed or nothing comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
        with contextlib.suppress(ConnectionError):
            writer.write(preface + data)
            async with asyncio.timeout(2):
                await writer.drain()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(0.5):
                while await reader.read(1 << 16):
                    pass
    except TimeoutError:
        pass  # it does not read on, which is its right
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def witnessed(server: Server) -> AsyncIterator[Witness]:
    """Yields somebody whose streams go on meanwhile."""
    witness = Witness()
    async with bare_stub(server) as stub:
        task = asyncio.create_task(witness.run(stub, "other"))
        yield witness
        task.cancel()
        await asyncio.wait([task])


async def is_healthy(address: str) -> bool:
    """Whether a new connection is answered."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
    return True


async def test_r21_nonsense_harms_nobody(stub, card, draw, is_nightly, monkeypatch):
    """Malformed requests end with a code of their own, never UNKNOWN or INTERNAL; floods of frames cost their connection at most;
    another model's stream and the health go on. A server that takes a malformed request for its own defect is seen.
    """
    num = 50_000 if is_nightly else 3_000
    models = {"stub": stub(slots=8, context_length=512), "other": stub("other", step_seconds=0.01)}
    async with (
        rig.stub_server(models=models) as (server, _),
        witnessed(server) as witness,
    ):
        address = f"127.0.0.1:{server.port}"
        codes = await fuzzed(server, num, draw)
        print(f"codes: {dict(codes)}")
        wrong = sum(count for code, count in codes.items() if code.partition(" ")[0] in FORBIDDEN)
        for name, data in attacks(address).items():
            await rig.within(30, attacked(server, name, data), name)
            wrong += not await is_healthy(address)
        num_floods = len(attacks(address))
        restarts = server.registry.model("other").restarts
        if "stub" in server.registry.states():
            restarts += server.registry.model("stub").restarts
        wrong += len(witness.failures) + restarts
        card.tell("R21", "wrong", wrong, n=num + num_floods)
        assert 0 == wrong, codes
        assert len(witness.gaps) > 10

        def careless(self, data: bytes) -> Message:
            message = GetMessageClass(self.descriptor.input_type)()
            message.ParseFromString(data)
            return message

        monkeypatch.setattr(rpc.Method, "parse", careless)
        assert FORBIDDEN & {code.partition(" ")[0] for code in await fuzzed(server, 100, draw)}


@pytest.mark.nightly
async def test_r35_connections_beyond_the_limit_are_survived(stub, card):
    """With 128 descriptors and 500 connections nothing ends; when they are gone, Health answers soon. While they are there it does
    not, which is seen.
    """
    with rig.gateway(f"--model=stub={stub().path}", lame_duck_seconds="0") as gateway:
        await rig.until_ready(gateway.address)
        resource.prlimit(gateway.popen.pid, resource.RLIMIT_NOFILE, (128, 128))
        host, port = gateway.address.split(":")

        async def healthy() -> None:
            while not await is_healthy(gateway.address):
                pass

        with contextlib.ExitStack() as stack:
            for _ in range(500):
                it = stack.enter_context(socket.socket())
                it.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    it.connect((host, int(port)))
            await asyncio.sleep(1)
            with pytest.raises(rig.Hung):
                await rig.within(5, healthy())
        begin = asyncio.get_running_loop().time()
        await rig.within(50, healthy(), "an answer of Health")
        card.tell("R35", "back", asyncio.get_running_loop().time() - begin, n=1)
        gateway.popen.terminate()
        assert 0 == await gateway.exit_code(60)
