"""Channel arguments: gRPC's core ignores keys that it does not know, so each is looked for in the library itself."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re

import grpc._cython.cygrpc
import pytest

from inferwire import AsyncClient, text_of
from inferwire.channel import CHANNEL_OPTIONS
from inferwire_server import channel_arguments

from .reliability.proxy import Proxy
from .serving import running

CORE = pathlib.Path(grpc._cython.cygrpc.__file__).read_bytes()


SERVER_OPTIONS = (*channel_arguments.OPTIONS, *channel_arguments.connection_age(1, 1))


@pytest.mark.parametrize("key", sorted({key for key, _ in (*SERVER_OPTIONS, *CHANNEL_OPTIONS)}))
def test_the_core_knows_the_key(key):
    """The key stands in the core as a whole string, not as a part of a longer one."""
    assert re.search(rb"(?<![a-z_.])" + re.escape(key.encode()) + rb"\0", CORE)


def test_a_wrong_key_would_be_seen():
    """The key that other servers ship, and that does nothing, is not in the core."""
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms" not in CORE


async def test_a_connection_is_used_no_longer_than_it_may_be_and_no_call_notices():
    """A stream that is longer than its connection's age ends as it would have; calls after it go over new connections."""
    seconds = 0.4
    longer = json.dumps({"events": [{"text": "a"}, {"delay_seconds": 5 * seconds}, {"text": "b"}]})
    async with (
        running(scripted=True, max_connection_age_seconds=seconds) as (server, _),
        Proxy(server.port) as proxy,
        AsyncClient(proxy.address) as client,
    ):
        stream = asyncio.create_task(client.complete(prompt=longer, model="scripted"))
        while not stream.done():
            await client.complete(prompt=json.dumps({"events": [{"text": "a"}]}), model="scripted")
            await asyncio.sleep(0.01)
        assert "ab" == text_of((await stream).message)
        assert proxy.num_accepted >= 3


def test_a_connection_may_be_used_for_ever():
    """Where the operator says 0."""
    assert () == channel_arguments.connection_age(0, 600)


def test_a_call_has_its_whole_time_however_old_its_connection_is():
    """What a connection is left for its last calls is more than the longest of them may take; a number that is too large is none."""
    ages = dict(channel_arguments.connection_age(1800, 7200))
    assert 1_800_000 == ages["grpc.max_connection_age_ms"]
    assert ages["grpc.max_connection_age_grace_ms"] > 7_200_000
    assert {(1 << 31) - 1} == set(dict(channel_arguments.connection_age(1e8, 1e8)).values())
