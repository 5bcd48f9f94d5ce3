"""Channel arguments: gRPC's core ignores keys that it does not know, so each is looked for in the library itself."""

from __future__ import annotations

import pathlib
import re

import grpc._cython.cygrpc
import pytest

from inferwire.channel import CHANNEL_OPTIONS
from inferwire_server import channel_arguments

CORE = pathlib.Path(grpc._cython.cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("key", sorted({key for key, _ in (*channel_arguments.OPTIONS, *CHANNEL_OPTIONS)}))
def test_the_core_knows_the_key(key):
    """The key stands in the core as a whole string, not as a part of a longer one."""
    assert re.search(rb"(?<![a-z_.])" + re.escape(key.encode()) + rb"\0", CORE)


def test_a_wrong_key_would_be_seen():
    """The key that other servers ship, and that does nothing, is not in the core."""
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms" not in CORE
