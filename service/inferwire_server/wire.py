"""How the gateway and an engine process speak: length-prefixed protobuf frames, and failures as messages.

A frame is a 4-byte big-endian length and a message of `inferwire_server.engine.v1`. Sans-IO: each end reads and writes
its socket in its own way. Must not import `grpc`, because the engine process does not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import cast

from google.protobuf.message import Message

from inferwire.v1.error_reason_pb2 import ErrorReason
from inferwire_server import errors
from inferwire_server.engine.v1 import engine_pb2

HEADER = struct.Struct(">I")
# Far beyond what either end says; a longer frame is no frame.
MAX_FRAME_BYTES = 256 << 20
REASON_PREFIX = "ERROR_REASON_"


class MalformedFrame(Exception):
    """The bytes are not frames: the other end is broken."""


def frame(message: Message) -> bytes:
    """Returns the frame of a message."""
    payload = message.SerializeToString()
    return HEADER.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into the payloads of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __repr__(self) -> str:
        return f"<FrameReader [{len(self._buffer)} bytes held]>"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the payloads that `data` completes. Raises MalformedFrame."""
        self._buffer += data
        begin = 0
        while len(self._buffer) - begin >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, begin)
            if length > MAX_FRAME_BYTES:
                raise MalformedFrame(f"a frame of {length} bytes")
            end = begin + HEADER.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[begin + HEADER.size : end])
            begin = end
        del self._buffer[:begin]


def reason_value(error: errors.ServingError) -> ErrorReason:
    """Returns the contract's enum value of a failure."""
    return cast(ErrorReason, ErrorReason.Value(REASON_PREFIX + error.reason))


def pack_error(error: errors.ServingError) -> engine_pb2.EngineError:
    """Returns a failure as a message."""
    return engine_pb2.EngineError(
        reason=reason_value(error),
        message=error.message,
        metadata=error.metadata,
        violations=[
            engine_pb2.FieldViolation(field=field, description=description)
            for field, description in error.violations
        ],
        detail=error.detail,
    )


def unpack_error(message: engine_pb2.EngineError) -> errors.ServingError:
    """Returns the failure that a message tells."""
    cls = errors.BY_REASON[ErrorReason.Name(message.reason).removeprefix(REASON_PREFIX)]
    return cls(
        message.message,
        metadata=dict(message.metadata),
        violations=[(violation.field, violation.description) for violation in message.violations],
        detail=message.detail,
    )
