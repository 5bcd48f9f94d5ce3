"""R8, R9: a server that goes away loses no stream that it accepted, says so at once, and ends with exit code 0 in time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferwire import AsyncClient, InferwireError
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub

from . import rig

NUM_RUNNING, NUM_QUEUED = 16, 20
LAME_DUCK_SECONDS = 0.5
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Drain:
    """One drain of a gateway with running and queued streams, from the signal to the exit."""

    def __init__(self) -> None:
        self.told_ms = 0.0
        self.exit_code = -1
        self.exit_seconds = 0.0
        self.num_lost = 0
        self.codes: list[grpc.StatusCode] = []
        self.lame_duck_code: grpc.StatusCode | None = None
        self.late_code: grpc.StatusCode | None = None

    async def run(self, model: str, *, drain_seconds: float, max_tokens: int | None) -> Drain:
        """`max_tokens` None: the streams outlast every drain."""
        with rig.gateway(
            f"--model=stub={model}",
            lame_duck_seconds=str(LAME_DUCK_SECONDS),
            drain_seconds=str(drain_seconds),
        ) as gateway:
            async with grpc.aio.insecure_channel(gateway.address, [("grpc.enable_retries", 0)]) as channel:
                stub, health = InferenceServiceStub(channel), health_pb2_grpc.HealthStub(channel)
                watch = health.Watch(health_pb2.HealthCheckRequest())
                while (await watch.read()).status == NOT_SERVING:
                    pass
                asked = rig.request(max_tokens=max_tokens, endless=True)
                asked.output.progress = True
                calls = [stub.StreamComplete(asked) for _ in range(NUM_RUNNING + NUM_QUEUED)]
                # Accepted: each has said that it is there.
                for call in calls:
                    await call.read()
                gateway.popen.send_signal(signal.SIGTERM)
                begin = time.monotonic()
                assert NOT_SERVING == (await watch.read()).status
                self.told_ms = (time.monotonic() - begin) * 1000
                self.lame_duck_code = await _code(stub.StreamComplete(rig.request("!", max_tokens=1)))
                ending = [asyncio.ensure_future(_code(call)) for call in calls]
                await asyncio.sleep(max(0.0, begin + 2 * LAME_DUCK_SECONDS - time.monotonic()))
                self.late_code = await _code(stub.StreamComplete(rig.request("late", max_tokens=1)))
                self.codes = await rig.within(60, asyncio.gather(*ending), "the end of the streams")
                self.num_lost = sum(code is not grpc.StatusCode.OK for code in self.codes)
                self.exit_code = await gateway.exit_code(60)
                self.exit_seconds = time.monotonic() - begin
        return self


async def _code(call) -> grpc.StatusCode:
    """Reads a stream to its end. OK counts only with a completion."""
    kind = None
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            kind = event.WhichOneof("event")
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK if kind == "completion" else grpc.StatusCode.UNKNOWN


async def test_r8_a_drain_loses_nothing(tmp_path, card):
    """Running and queued streams finish, also those of the lame duck; who comes later is refused. A drain that does not wait
    for them is seen.
    """
    model = rig.stub_model(tmp_path, slots=NUM_RUNNING, step_seconds=0.02).path
    for _ in range(3):
        drain = await Drain().run(model, drain_seconds=20, max_tokens=40)
        assert (0, grpc.StatusCode.OK) == (drain.exit_code, drain.lame_duck_code)
        assert grpc.StatusCode.UNAVAILABLE == drain.late_code
        assert 0 == drain.num_lost, drain.codes
        card.tell("R8", "lost", drain.num_lost, n=len(drain.codes))
        card.tell("R8", "told", drain.told_ms, n=1)

    # Streams that outlast the drain are ended in time, and it is no failure of the process.
    drain = await Drain().run(model, drain_seconds=1, max_tokens=None)
    assert (0, {grpc.StatusCode.ABORTED}) == (drain.exit_code, set(drain.codes))
    card.tell("R8", "exit", drain.exit_seconds - LAME_DUCK_SECONDS - 1, n=1)

    control = await Drain().run(model, drain_seconds=0.1, max_tokens=40)
    assert control.num_lost > 0


class Replicas:
    """Two gateways behind one client, which are restarted one after the other while requests go on."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._ports = [rig.free_port(), rig.free_port()]
        self._gateways: list[rig.Process] = []
        self.num_answered = 0
        self.errors: list[str] = []

    @property
    def target(self) -> str:
        """Both, for a client that balances."""
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self._ports)

    async def run(self, num_restarts: int, *, signal_number: signal.Signals = signal.SIGTERM) -> None:
        try:
            self._gateways = [self._start(index) for index in range(2)]
            for gateway in self._gateways:
                await rig.until_ready(gateway.address)
            async with AsyncClient(self.target, balance=True) as client:
                asking = asyncio.create_task(self._ask(client))
                await asyncio.sleep(1)  # traffic comes first
                for number in range(num_restarts):
                    index = number % 2
                    self._gateways[index].popen.send_signal(signal_number)
                    await self._gateways[index].exit_code(60)
                    self._gateways[index].close()
                    self._gateways[index] = self._start(index)
                    await rig.until_ready(self._gateways[index].address)
                    await asyncio.sleep(1)  # clients see at their own pace that it is back
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
        finally:
            for gateway in self._gateways:
                gateway.close()

    def _start(self, index: int) -> rig.Process:
        address = f"--address=127.0.0.1:{self._ports[index]}"
        return rig.Process(f"--model=stub={self._model}", address, lame_duck_seconds="1", drain_seconds="10")

    async def _ask(self, client: AsyncClient) -> None:
        """Twenty requests per second, each a stream of a quarter of a second."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._one(client))
                await asyncio.sleep(0.05)

    async def _one(self, client: AsyncClient) -> None:
        try:
            events = [event async for event in client.stream(rig.request(max_tokens=25, endless=True))]
            assert events[-1].HasField("completion")
            self.num_answered += 1
        except InferwireError as error:
            self.errors.append(f"{error.code} {error.reason} {error.message}")


@pytest.mark.nightly
async def test_r9_clients_do_not_notice_a_rolling_restart(tmp_path, card):
    """Two replicas are restarted in turn at 20 requests per second, and no client sees an error. A replica that is killed is
    seen.
    """
    model = rig.stub_model(tmp_path, slots=16, step_seconds=0.01).path
    replicas = Replicas(model)
    await replicas.run(5)
    card.tell("R9", "errors", len(replicas.errors), n=replicas.num_answered)
    assert [] == replicas.errors
    assert replicas.num_answered > 100

    control = Replicas(model)
    await control.run(1, signal_number=signal.SIGKILL)
    assert [] != control.errors
