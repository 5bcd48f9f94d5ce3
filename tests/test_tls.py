"""TLS of the ports: who is let in, certificates that change while calls run, ports that are apart."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import pathlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire.v1.inference_pb2_grpc import InferenceServiceStub
from inferwire.v1.models_pb2_grpc import ModelServiceStub
from inferwire_server import tls
from inferwire_server.config import ConfigError, Settings
from inferwire_server.ports import AddressInUse
from inferwire_server.server import Server

from .certificates import DAY, Authority
from .serving import rest

SECOND = datetime.timedelta(seconds=1)


class Files:
    """The files that a server is told to use, and who makes them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.authority = Authority(folder, "servers")
        self.clients = Authority(folder, "clients")
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.put("first")

    def put(self, name: str, **validity: Any) -> None:
        """Makes a new pair and puts it where the server looks."""
        key, certificate = self.authority.issue(name, **validity)
        shutil.copy(key, self.key)
        shutil.copy(certificate, self.certificate)

    def settings(self, *, mutual: bool = False, **more: Any) -> Settings:
        return Settings(
            address="127.0.0.1:0",
            scripted=True,
            tls_certificate=str(self.certificate),
            tls_key=str(self.key),
            tls_client_ca=str(self.clients.ca) if mutual else "",
            **more,
        )


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    return Files(tmp_path)


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Server]:
    server = Server(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(drain_seconds=0)


def channel(
    server: Server, ca: pathlib.Path | None, pair: tuple[pathlib.Path, pathlib.Path] | None = None
) -> grpc.aio.Channel:
    target = f"127.0.0.1:{server.port}"
    # A connection of its own for each channel, so that each shakes hands.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if ca is None:
        return grpc.aio.insecure_channel(target, options)
    key, certificate = (path.read_bytes() for path in pair) if pair else (None, None)
    return grpc.aio.secure_channel(
        target, grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate), options
    )


async def answers(it: grpc.aio.Channel) -> bool:
    """Whether a call gets through."""
    async with it:
        call = InferenceServiceStub(it).Health(pb.HealthRequest(), timeout=10)
        code = await call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code == grpc.StatusCode.OK


def shown(server: Server) -> str:
    """Returns the serial number of the certificate that the port shows now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
        context.wrap_socket(plain) as it,
    ):
        return ssl.DER_cert_to_PEM_cert(it.getpeercert(binary_form=True) or b"")


async def test_with_tls_nothing_is_in_the_clear(files: Files) -> None:
    """The port answers who trusts its authority; plain text and another authority get nothing."""
    async with running(files.settings()) as server:
        assert await answers(channel(server, files.authority.ca))
        assert not await answers(channel(server, None))
        assert not await answers(channel(server, files.clients.ca))


async def test_mutual(files: Files) -> None:
    """With a client authority, only who shows a certificate of it is let in, under the name in it."""
    stranger = Authority(files.folder, "strangers")
    async with running(files.settings(mutual=True)) as server:
        own = files.clients.issue("worker", names=["spiffe://cluster/worker"])
        assert await answers(channel(server, files.authority.ca, own))
        assert not await answers(channel(server, files.authority.ca))
        assert not await answers(channel(server, files.authority.ca, stranger.issue("worker")))
        expired = files.clients.issue("late", begin=-2 * DAY, end=-DAY)
        assert not await answers(channel(server, files.authority.ca, expired))


async def test_scopes_of_a_certificate(files: Files) -> None:
    """A certificate that the keys file names has the scopes there and no others."""
    keys = files.folder / "keys.toml"
    keys.write_text('[certificates.worker]\nnames = ["spiffe://cluster/worker"]\nscopes = ["infer"]\n')
    async with running(files.settings(mutual=True, keys_file=str(keys))) as server:
        own = files.clients.issue("worker", names=["spiffe://cluster/worker"])
        other = files.clients.issue("other")
        async with channel(server, files.authority.ca, own) as it:
            await InferenceServiceStub(it).Complete(pb.CompleteRequest(prompt="a"), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ModelServiceStub(it).Unload(models_pb2.UnloadRequest(model="x"), timeout=10)
            assert grpc.StatusCode.PERMISSION_DENIED == refused.value.code()
        async with channel(server, files.authority.ca, other) as it:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await InferenceServiceStub(it).Health(pb.HealthRequest(), timeout=10)
            assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()


async def test_a_new_pair_is_taken_over(files: Files) -> None:
    """New connections get the new certificate without a restart, and a stream that runs does not notice."""
    async with running(files.settings()) as server:
        before = await asyncio.to_thread(shown, server)
        async with channel(server, files.authority.ca) as it:
            slow = '{"events": [{"text": "a"}, {"delay_seconds": 3}, {"text": "b"}]}'
            stream = InferenceServiceStub(it).StreamComplete(
                pb.CompleteRequest(model="scripted", prompt=slow), timeout=30
            )
            assert await stream.read() is not grpc.aio.EOF
            files.put("second")
            while await asyncio.to_thread(shown, server) == before:
                pass
            assert "completion" == (await rest(stream))[-1].WhichOneof("event")
        assert files.certificate.read_text().strip() == (await asyncio.to_thread(shown, server)).strip()
        assert await answers(channel(server, files.authority.ca))


class TestWhatCannotBeUsed:
    """A pair that is broken, does not belong together or is not valid now replaces nothing."""

    @pytest.mark.parametrize("what", ["half", "empty", "gone", "mismatch", "expired", "not yet"])
    def test_while_it_runs(self, files: Files, what: str) -> None:
        """The old pair stays; when the files are right again, they are taken over."""
        it = tls.Certificates(files.certificate, files.key, None)
        before = it._material
        spoil(files, what)
        it.refresh()
        assert before is it._material
        files.put("good")
        it.refresh()
        assert files.certificate.read_bytes() == it._material.certificate

    @pytest.mark.parametrize("what", ["half", "empty", "gone", "mismatch", "expired", "not yet"])
    def test_at_the_start(self, files: Files, what: str) -> None:
        """There is nothing to fall back on: the server does not start, and says which file it is."""
        spoil(files, what)
        with pytest.raises(ConfigError, match=r"tls\.(crt|key)"):
            tls.Certificates(files.certificate, files.key, None)

    def test_a_client_authority(self, files: Files) -> None:
        """Without it callers cannot be told apart: an error at the start, and no change later."""
        ca = files.folder / "ca.pem"
        ca.write_text("nothing")
        with pytest.raises(ConfigError, match=r"ca\.pem"):
            tls.Certificates(files.certificate, files.key, ca)


def spoil(files: Files, what: str) -> None:
    match what:
        case "half":
            data = files.certificate.read_bytes()
            files.certificate.write_bytes(data[: len(data) // 2])
        case "empty":
            files.key.write_bytes(b"")
        case "gone":
            files.certificate.unlink()
        case "mismatch":
            key, _ = files.authority.issue("another")
            shutil.copy(key, files.key)
        case "expired":
            files.put("late", begin=-2 * DAY, end=-SECOND)
        case "not yet":
            files.put("early", begin=DAY, end=2 * DAY)


class TestPorts:
    """ModelService and probes may have places of their own."""

    @pytest.mark.parametrize("kind", ["port", "socket"])
    async def test_administration_apart(self, tmp_path: pathlib.Path, kind: str) -> None:
        """Load and Unload are there and nowhere else; health is at both."""
        admin = "127.0.0.1:0" if kind == "port" else f"unix:{tmp_path}/admin.sock"
        async with running(Settings(address="127.0.0.1:0", scripted=True, admin_address=admin)) as server:
            own = server._ports[1].address
            if kind == "socket":
                assert 0o600 == pathlib.Path(own.path).stat().st_mode & 0o777
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as it:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ModelServiceStub(it).Unload(models_pb2.UnloadRequest(model="x"), timeout=10)
                assert grpc.StatusCode.UNIMPLEMENTED == refused.value.code()
                await InferenceServiceStub(it).Health(pb.HealthRequest(), timeout=10)
            async with grpc.aio.insecure_channel(str(own)) as it:
                await ModelServiceStub(it).Unload(models_pb2.UnloadRequest(model="x"), timeout=10)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await InferenceServiceStub(it).Health(pb.HealthRequest(), timeout=10)
                assert grpc.StatusCode.UNIMPLEMENTED == refused.value.code()
                told = await HealthStub(it).Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert health_pb2.HealthCheckResponse.SERVING == told.status
        assert not (tmp_path / "admin.sock").exists()

    async def test_a_socket_that_is_in_use(self, tmp_path: pathlib.Path) -> None:
        """A second server does not take the first one's socket away; one that was left behind is no obstacle."""
        admin = f"unix:{tmp_path}/admin.sock"
        settings = Settings(address="127.0.0.1:0", scripted=True, admin_address=admin)
        async with running(settings):
            second = Server(settings)
            with pytest.raises(AddressInUse, match=r"admin\.sock: another server is there"):
                await second.start()
            async with grpc.aio.insecure_channel(admin) as it:
                await HealthStub(it).Check(health_pb2.HealthCheckRequest(), timeout=10)
        left = socket.socket(socket.AF_UNIX)
        left.bind(f"{tmp_path}/admin.sock")
        left.close()
        async with running(settings):
            pass

    async def test_probes_in_the_clear(self, files: Files) -> None:
        """Beside a main port with TLS a kubelet can ask for health, and for nothing else."""
        async with (
            running(files.settings(mutual=True, probe_address="127.0.0.1:0")) as server,
            grpc.aio.insecure_channel(str(server._ports[1].address)) as it,
        ):
            told = await HealthStub(it).Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=10)
            assert health_pb2.HealthCheckResponse.SERVING == told.status
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await InferenceServiceStub(it).Health(pb.HealthRequest(), timeout=10)
            assert grpc.StatusCode.UNIMPLEMENTED == refused.value.code()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await HealthStub(it).Check(
                    health_pb2.HealthCheckRequest(service="model/scripted"), timeout=10
                )
            assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()
