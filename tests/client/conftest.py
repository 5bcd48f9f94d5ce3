"""What every test of the client stands on: one scripted server on its own port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.scripted import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server
