"""Frames between the gateway and an engine process, and failures that travel in them."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferwire.v1 import error_reason_pb2
from inferwire_server import errors, wire
from inferwire_server.engine.v1 import engine_pb2


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=12))
def test_frames_come_whole_at_any_split(texts: list[bytes], places: list[int]) -> None:
    """However the bytes arrive, each payload is given once, whole and in order."""
    messages = [engine_pb2.EngineError(message=text.hex()) for text in texts]
    data = b"".join(map(wire.frame, messages))
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    reader = wire.FrameReader()
    payloads = [
        payload for begin, end in itertools.pairwise(edges) for payload in reader.feed(data[begin:end])
    ]
    assert messages == [engine_pb2.EngineError.FromString(payload) for payload in payloads]
    assert "<FrameReader [0 bytes held]>" == repr(reader)


def test_half_a_frame_is_held() -> None:
    """Nothing is given before the last byte, also of an empty message and within the length."""
    frame = wire.frame(engine_pb2.EngineError(message="hello"))
    reader = wire.FrameReader()
    assert [] == [payload for byte in frame[:-1] for payload in reader.feed(bytes([byte]))]
    assert f"<FrameReader [{len(frame) - 1} bytes held]>" == repr(reader)
    assert [frame[wire.HEADER.size :]] == list(reader.feed(frame[-1:]))
    assert [b"", b""] == list(reader.feed(wire.frame(engine_pb2.Command()) * 2))


def test_a_frame_is_a_length_and_a_message() -> None:
    """Four bytes, the most significant first."""
    message = engine_pb2.EngineError(message="x" * 300)
    assert (303).to_bytes(4, "big") + message.SerializeToString() == wire.frame(message)


@pytest.mark.parametrize("leaf", errors.leaves(), ids=lambda leaf: leaf.reason)
def test_a_failure_comes_back_as_it_went(leaf: type[errors.ServingError]) -> None:
    """Every failure survives the way through the socket: class, words, metadata, violations and the log's words."""
    error = leaf(
        "say it again",
        metadata={"model": "démo"},
        violations=[("chat", "no"), ("chat", "why")],
        detail="at 0x7f",
    )
    message = engine_pb2.EngineError.FromString(wire.pack_error(error).SerializeToString())
    actual = wire.unpack_error(message)
    assert leaf is type(actual)
    assert vars(error) == vars(actual)
    assert error.args == actual.args


def test_reasons_are_the_contracts() -> None:
    """A failure's reason is the name of its enum value without the prefix."""
    assert error_reason_pb2.ERROR_REASON_QUEUE_FULL == wire.reason_value(errors.QueueFull("full"))


def test_grpc_is_not_imported() -> None:
    """The engine process speaks these frames and has no use for gRPC."""
    code = "import sys, inferwire_server.wire; sys.exit('grpc' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
