"""Three servers and clients that balance by health: servers come and go, and no call fails.

The clients are ours, each with its language's own gRPC: round_robin over an address list, health checks of readiness,
retries of what was not answered at all. Each calls without a pause, through the program that the conformance suite asks.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message

from inferwire import AsyncClient
from inferwire.v1 import inference_pb2 as pb
from tests.conformance.runner import Program

from . import servers, tools
from .servers import ServerProcess

LANGUAGES = ("go", "java", "python")
# Long enough to be on its way when a signal comes.
STREAM = json.dumps({"events": [{"text": "a"}, {"delay_seconds": 0.02}, {"text": "b"}]})
REQUEST = pb.CompleteRequest(model="scripted", prompt=STREAM)
# So many calls in turn visit each server more than once, whichever is next.
ROUND = 9

# The clients are built within the first test that asks them.
pytestmark = pytest.mark.timeout(tools.BUILD_SECONDS + 180)


class Caller:
    """A client that makes one short stream after another, and remembers who answered."""

    def __init__(self, language: str, target: str) -> None:
        self._program = Program(str(tools.client(language)))
        self._connect = {"target": target, "tls": False, "balance": True}
        self._progress = asyncio.Condition()
        self.language = language
        #: The instance of the model that answered each call.
        self.answered_by: list[str] = []
        #: Calls that failed before anything of their answer had come, and those whose answer broke off.
        self.failures: list[dict[str, Any]] = []
        self.broken: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        told = f"calls {len(self.answered_by)} | failures {len(self.failures)} | broken {len(self.broken)}"
        return f"<Caller [{self.language} | {told}]>"

    async def run(self) -> None:
        """Calls until it is cancelled."""
        await self._program.start()
        try:
            while True:
                await self._call()
        finally:
            await self._program.stop()

    async def _call(self) -> None:
        told = await self._program.ask(
            {
                "id": str(len(self.answered_by)),
                "connect": self._connect,
                "call": {"method": "StreamComplete", "request": _base64(REQUEST)},
            }
        )
        events = [pb.StreamCompleteResponse.FromString(base64.b64decode(each)) for each in told["messages"]]
        async with self._progress:
            if told["error"] is None:
                assert "ab" == "".join(event.text.text for event in events)
                self.answered_by.append(events[0].started.model_instance_id)
            elif events:
                self.broken.append(told["error"])
            else:
                self.failures.append(told["error"])
            self._progress.notify_all()

    async def calls(self, count: int) -> list[str]:
        """Waits for so many more answers, and returns who gave them."""
        begin = len(self.answered_by)
        async with self._progress:
            await self._progress.wait_for(lambda: self.failures or len(self.answered_by) >= begin + count)
        assert [] == self.failures
        return self.answered_by[begin:]

    async def until_answered_by(self, wanted: set[str]) -> None:
        """Waits until a round of calls was answered by these and nobody else."""
        while set(await self.calls(ROUND)) != wanted:
            pass


async def instance(server: ServerProcess) -> str:
    """Returns what tells a server's answers from those of others. It also is a call that no balancer had a say in."""
    async with AsyncClient(server.address) as client, client.stream(REQUEST) as stream:
        async for event in stream:
            if event.HasField("started"):
                return event.started.model_instance_id
    raise AssertionError("a stream without a beginning")


@contextlib.asynccontextmanager
async def calling(languages: Sequence[str], fleet: Sequence[ServerProcess]) -> AsyncIterator[list[Caller]]:
    """Yields clients, two of each language, that call all the time. None of their calls may fail."""
    target = f"ipv4:{','.join(server.address for server in fleet)}"
    callers = [Caller(language, target) for language in languages for _ in range(2)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller.run(), name=caller.language) for caller in callers]
        yield callers
        for task in tasks:
            task.cancel()
    assert [[] for _ in callers] == [caller.failures for caller in callers]


async def all_of(callers: Sequence[Caller], wanted: set[str]) -> None:
    """Waits until each caller goes round these servers alone."""
    await asyncio.gather(*(caller.until_answered_by(wanted) for caller in callers))


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_server_that_drains_and_comes_back_fails_no_call(language):
    """Who drains gets no more calls, though it would still answer them; who comes back gets its share again."""
    async with contextlib.AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(servers.serving()) for _ in range(3)]
        leaving, *others = names = [await instance(server) for server in fleet]
        async with calling([language], fleet) as callers:
            await all_of(callers, set(names))
            for caller in callers:
                shares = collections.Counter(await caller.calls(10 * ROUND))
                assert set(names) == {name for name, num in shares.items() if num >= 2 * ROUND}, shares

            fleet[0].process.terminate()
            await fleet[0].until("", servers.NOT_SERVING)
            await all_of(callers, set(others))
            # In its lame duck it still answers whoever asks; that balanced calls go elsewhere is the work of health.
            assert leaving == await instance(fleet[0])
            begins = [len(caller.answered_by) for caller in callers]
            assert 0 == await fleet[0].process.wait()
            await asyncio.gather(*(caller.calls(ROUND) for caller in callers))
            for caller, begin in zip(callers, begins, strict=True):
                assert set(others) == set(caller.answered_by[begin:])

            back = await stack.enter_async_context(servers.serving(port=fleet[0].port))
            await all_of(callers, {await instance(back), *others})
        assert [[] for _ in callers] == [caller.broken for caller in callers]


async def test_a_server_that_is_stopped_fails_no_call():
    """Who is stopped says nothing, not even that it is not ready: keepalive finds it, and its calls are made again elsewhere.

    That takes the 30 and 10 seconds of the clients' keepalive, once. An answer that had begun breaks off: to ask again
    would say its beginning twice.
    """
    async with contextlib.AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(servers.serving()) for _ in range(3)]
        stopped, *others = names = [await instance(server) for server in fleet]
        async with calling(LANGUAGES, fleet) as callers:
            await all_of(callers, set(names))
            with servers.stopped(fleet[0].process.pid):
                await all_of(callers, set(others))
            await all_of(callers, {stopped, *others})
        for caller in callers:
            assert ["UNAVAILABLE"] * len(caller.broken) == [error["code"] for error in caller.broken]
            # It makes one call at a time, and the one that found the server stopped is the last that went there.
            assert len(caller.broken) <= 1


def _base64(message: Message) -> str:
    return base64.b64encode(message.SerializeToString()).decode()
