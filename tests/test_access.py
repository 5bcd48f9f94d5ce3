"""Who may call what: every RPC against every kind of credential, over real connections."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from inferwire import InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import access, config, errors
from inferwire_server.config import Settings
from inferwire_server.server import Server

KEYS = {name: f"iw_{name}" for name in ("infer", "admin", "health", "all", "expired", "narrow", "wrong")}


def table(name: str, scopes: str, more: str = "") -> str:
    digest = hashlib.sha256(KEYS[name].encode()).hexdigest()
    return f'[keys.{name}]\nsha256 = "{digest}"\nscopes = [{scopes}]\n{more}\n'


KEYS_FILE = (
    table("infer", '"infer"')
    + table("admin", '"admin"')
    + table("health", '"health"')
    + table("all", '"infer", "admin", "health"')
    + table("expired", '"infer", "admin", "health"', "expires = 2020-01-01")
    + table("narrow", '"infer", "admin", "health"', 'models = ["other", "scripted-*"]')
)
SCOPES = {"infer": {"infer"}, "admin": {"admin"}, "health": {"health"}, "all": {"infer", "admin", "health"}}


@pytest.fixture
def keys_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "keys.toml"
    file.write_text(KEYS_FILE)
    return file


@pytest.fixture
async def server(keys_file: pathlib.Path) -> Any:
    server = Server(Settings(address="127.0.0.1:0", scripted=True, keys_file=str(keys_file)))
    await server.start()
    yield server
    await server.stop(drain_seconds=0)


def admit(
    it: access.Access, method: str, sent: dict[str, str], certificate: list[str] | None = None
) -> access.Principal:
    """Returns who calls, if that principal may."""
    principal = it.identify(sent, certificate or ())
    it.check(principal, method)
    return principal


def metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return () if key is None else (("authorization", f"Bearer {KEYS[key]}"),)


async def outcome(
    channel: grpc.aio.Channel, method: str, key: str | None, request: Any = None, *, address: str = ""
) -> tuple[str, str]:
    """Returns the code and the reason that a call ends with; of a stream that begins, OK.

    A method to which a stream is sent is called at `address`.
    """
    service, _, name = method.partition("/")
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    if request is None:
        request = GetMessageClass(found.input_type)()
    answer = GetMessageClass(found.output_type)
    many = {
        "request_serializer": lambda it: it.SerializeToString(),
        "response_deserializer": answer.FromString,
    }
    sent = {"metadata": metadata(key), "timeout": 20}
    try:
        if found.client_streaming:
            # grpc.aio calls it an INTERNAL failure of its own when a call ends while it writes; the blocking client does not.
            await asyncio.to_thread(_first_of_many, address, f"/{method}", request, many, sent)
        elif found.server_streaming:
            responses = channel.unary_stream(f"/{method}", **many)(request, **sent)
            await responses.read()
            responses.cancel()
        else:
            await channel.unary_unary(f"/{method}", **many)(request, **sent)
    except (grpc.aio.AioRpcError, grpc.RpcError) as error:
        told = InferwireError.of(error)
        return told.code.name, told.reason
    return "OK", ""


def _first_of_many(
    address: str, path: str, request: Any, many: Mapping[str, Any], sent: Mapping[str, Any]
) -> None:
    with grpc.insecure_channel(address) as channel:
        next(channel.stream_stream(path, **many)(iter([request]), **sent))


def request_of(method: str) -> Any:
    """Returns a request that passes where the caller may call."""
    match method.rpartition("/")[2]:
        case "Complete" | "StreamComplete":
            return pb.CompleteRequest(model="scripted", prompt="a b")
        case "GetModel":
            return pb.GetModelRequest(model="scripted")
        case "ServerReflectionInfo":
            return reflection_pb2.ServerReflectionRequest(list_services="")
        case _:
            return None


def served() -> list[str]:
    """Every RPC of every service that a server has, read from the descriptors."""
    services = (
        "inferwire.v1.InferenceService",
        "inferwire.v1.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    )
    pool = descriptor_pool.Default()
    return [f"{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods]


async def test_what_is_served_is_what_the_table_names(server: Server) -> None:
    """Every RPC that the server answers has a scope, and none that it does not answer: a new RPC without one fails here."""
    assert set(access.NEEDED) == set(served())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda it: it.SerializeToString(),
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(metadata=metadata("all"), timeout=20)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        told = await call.read()
        call.cancel()
    assert {method.partition("/")[0] for method in served()} == {
        each.name for each in told.list_services_response.service
    }


@pytest.mark.parametrize("method", served())
@pytest.mark.parametrize("key", [None, "wrong", "expired", *SCOPES])
async def test_every_rpc_and_every_credential(server: Server, method: str, key: str | None) -> None:
    """Without a key TOKEN_MISSING, with none of ours TOKEN_INVALID, without the scope SCOPE_REQUIRED; else it is answered."""
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        told = await outcome(channel, method, key, request_of(method), address=address)
    assert is_right(method, key, told), told


def is_right(method: str, key: str | None, told: tuple[str, str]) -> bool:
    """Whether this is how a call with this credential must end."""
    needed = access.NEEDED[method]
    if key in ("wrong", "expired"):
        return ("UNAUTHENTICATED", "TOKEN_INVALID") == told
    if not needed:
        return ("OK", "") == told
    if key is None:
        return ("UNAUTHENTICATED", "TOKEN_MISSING") == told
    if not needed & SCOPES[key]:
        return ("PERMISSION_DENIED", "SCOPE_REQUIRED") == told
    return told[1] not in ("TOKEN_MISSING", "TOKEN_INVALID", "SCOPE_REQUIRED")


def test_a_method_without_a_scope_is_for_nobody(keys_file: pathlib.Path) -> None:
    """An RPC that nobody put into the table is refused even to who may do everything."""
    with pytest.raises(errors.ScopeRequired):
        admit(access.Access(keys_file), "inferwire.v1.ModelService/New", dict(metadata("all")))


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Basic aXdfYWxs", "iw_all", "Bearer iw_ALL", "Bearer iw_all x", "Bearer \x00"],
)
def test_what_is_no_key(keys_file: pathlib.Path, value: str) -> None:
    """Whatever stands in the header that is not one of the keys is one and the same failure."""
    with pytest.raises(errors.TokenInvalid, match=r"^the key is not valid$"):
        access.Access(keys_file).identify({"authorization": value})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_in_any_case(keys_file: pathlib.Path, scheme: str) -> None:
    """As HTTP says of authentication schemes (RFC 9110, 11.1)."""
    principal = access.Access(keys_file).identify({"authorization": f"{scheme} {KEYS['all']}"})
    assert "all" == principal.name


class TestModels:
    """A key may be for some models only. Others do not exist for it."""

    async def test_another_model_is_as_none(self, server: Server) -> None:
        """The answer for a model that is not the caller's differs in nothing from that for one that is not there."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for method, request in (
                ("Complete", pb.CompleteRequest(prompt="x")),
                ("StreamComplete", pb.CompleteRequest(prompt="x")),
                ("Embed", pb.EmbedRequest(inputs=["x"])),
                ("CountTokens", pb.CompleteRequest(prompt="x")),
                ("Tokenize", pb.TokenizeRequest(text="x")),
                ("Detokenize", pb.DetokenizeRequest(token_ids=[1])),
                ("GetModel", pb.GetModelRequest()),
            ):
                told = []
                for name in ("scripted", "other"):
                    request.model = name
                    told.append(
                        await outcome(channel, f"inferwire.v1.InferenceService/{method}", "narrow", request)
                    )
                assert [("NOT_FOUND", "MODEL_NOT_FOUND")] * 2 == told, method

    async def test_lists_have_only_ones_own(self, server: Server) -> None:
        """ListModels, WatchModels, Health and ListBackends tell nothing of others' models."""
        stub = f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(stub) as channel:
            from inferwire.v1.inference_pb2_grpc import InferenceServiceStub

            calls = InferenceServiceStub(channel)
            own = {"metadata": metadata("narrow"), "timeout": 20}
            listed = await calls.ListModels(pb.ListModelsRequest(), **own)
            assert ([], "") == (list(listed.models), listed.default_model)
            assert [] == list((await calls.Health(pb.HealthRequest(), **own)).models)
            assert [] == list((await calls.ListBackends(pb.ListBackendsRequest(), **own)).backends)
            watch = calls.WatchModels(pb.WatchModelsRequest(), **own)
            assert [] == list((await watch.read()).models)
            watch.cancel()
            everything = {"metadata": metadata("all"), "timeout": 20}
            assert ["scripted"] == [
                each.name for each in (await calls.ListModels(pb.ListModelsRequest(), **everything)).models
            ]

    async def test_loads_are_refused(self, server: Server) -> None:
        """An admin of some models neither loads nor unloads others."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for method, request in (
                ("Load", models_pb2.LoadRequest(model="scripted")),
                ("StreamLoad", models_pb2.LoadRequest(model="scripted")),
                ("Unload", models_pb2.UnloadRequest(model="scripted")),
            ):
                assert ("PERMISSION_DENIED", "SCOPE_REQUIRED") == await outcome(
                    channel, f"inferwire.v1.ModelService/{method}", "narrow", request
                )

    @pytest.mark.parametrize(
        ("key", "name", "code"),
        [
            (None, "", "OK"),
            (None, "liveness", "OK"),
            (None, "inferwire.v1.InferenceService", "OK"),
            (None, "model/scripted", "UNAUTHENTICATED"),
            (None, "model/none", "UNAUTHENTICATED"),
            ("health", "model/scripted", "OK"),
            ("infer", "model/scripted", "OK"),
            ("narrow", "model/scripted", "PERMISSION_DENIED"),
            ("narrow", "model/none", "PERMISSION_DENIED"),
            ("narrow", "model/other", "NOT_FOUND"),
        ],
    )
    async def test_health_by_name(self, server: Server, key: str | None, name: str, code: str) -> None:
        """Probes need no key; a model's name does, and whether it exists is told to its users alone."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            told = await outcome(
                channel, "grpc.health.v1.Health/Check", key, health_pb2.HealthCheckRequest(service=name)
            )
            assert code == told[0]
            if code != "NOT_FOUND":
                watched = await outcome(
                    channel, "grpc.health.v1.Health/Watch", key, health_pb2.HealthCheckRequest(service=name)
                )
                assert code == watched[0]

    async def test_all_names_need_all_models(self, server: Server) -> None:
        """List would show everybody's models."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert ("PERMISSION_DENIED", "SCOPE_REQUIRED") == await outcome(
                channel, "grpc.health.v1.Health/List", "narrow"
            )


class TestFile:
    """The file of the keys: mistakes are named, changes are taken over, what is broken changes nothing."""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[keys.a]\nscopes = ['infer']", "required field `sha256`"),
            ("[keys.a]\nsha256 = 'abc'\nscopes = ['infer']", "keys.a.sha256 is not 64 hex digits"),
            (f"[keys.a]\nsha256 = '{'0' * 64}'\nscopes = []", "length >= 1 - at `$.keys[...].scopes`"),
            (f"[keys.a]\nsha256 = '{'0' * 64}'\nscopes = ['root']", "Invalid enum value 'root'"),
            (f"[keys.a]\nsha256 = '{'0' * 64}'\nscope = ['infer']", "did you mean keys.a.scopes?"),
            ("[key.a]\n", "did you mean keys?"),
            ("[keys", "Expected"),
            (
                f"[keys.a]\nsha256 = '{'0' * 64}'\nscopes = ['infer']\n[keys.b]\nsha256 = '{'0' * 64}'\nscopes = ['infer']",
                "two principals share",
            ),
        ],
    )
    def test_mistakes(self, tmp_path: pathlib.Path, text: str, words: str) -> None:
        """A file that cannot be used is an error at the start, with the place."""
        file = tmp_path / "keys.toml"
        file.write_text(text)
        with pytest.raises(config.ConfigError) as caught:
            access.Access(file)
        assert words in str(caught.value)

    def test_a_missing_file(self, tmp_path: pathlib.Path) -> None:
        """It never means that everybody may come in."""
        with pytest.raises(config.ConfigError, match="No such file"):
            access.Access(tmp_path / "none.toml")

    def test_changes(self, keys_file: pathlib.Path) -> None:
        """A key that was taken out is refused from then on; a broken file leaves what holds."""
        method = "inferwire.v1.InferenceService/Health"
        it = access.Access(keys_file)
        assert "infer" == admit(it, method, dict(metadata("infer"))).name
        keys_file.write_text("[keys")
        it.refresh()
        assert "infer" == admit(it, method, dict(metadata("infer"))).name
        keys_file.write_text(table("admin", '"admin"'))
        it.refresh()
        with pytest.raises(errors.TokenInvalid):
            admit(it, method, dict(metadata("infer")))
        assert "admin" == admit(it, method, dict(metadata("admin"))).name

    def test_two_keys_of_one_principal(self, tmp_path: pathlib.Path) -> None:
        """While a key is replaced the old one and the new one hold."""
        file = tmp_path / "keys.toml"
        keys = [access.new_key(), access.new_key()]
        file.write_text(f"[keys.a]\nsha256 = {[digest for _, digest in keys]}\nscopes = ['infer']")
        it = access.Access(file)
        for key, _ in keys:
            assert (
                "a"
                == admit(
                    it, "inferwire.v1.InferenceService/Complete", {"authorization": f"Bearer {key}"}
                ).name
            )

    def test_a_new_key_cannot_be_guessed(self) -> None:
        """256 random bits, and the file has nothing but their hash."""
        key, digest = access.new_key()
        assert len(key) == len("iw_") + 43
        assert hashlib.sha256(key.encode()).hexdigest() == digest
        assert key != access.new_key()[0]


class TestCertificates:
    """Callers with a certificate need no key."""

    def test_without_a_file_every_certificate_is_somebody(self) -> None:
        """Who the authority vouches for may do everything, under the name in the certificate."""
        it = access.Access(is_mutual=True)
        assert "spiffe://x" == admit(it, "inferwire.v1.ModelService/Load", {}, ["spiffe://x", "cn"]).name
        with pytest.raises(errors.TokenMissing):
            admit(it, "inferwire.v1.ModelService/Load", {}, [])

    def test_with_a_file_it_must_be_named(self, tmp_path: pathlib.Path) -> None:
        """Any of a certificate's names may stand in the file; one that does not is refused."""
        file = tmp_path / "keys.toml"
        file.write_text(
            "[certificates.worker]\nnames = ['spiffe://x/worker', 'worker']\nscopes = ['infer']\n"
        )
        it = access.Access(file, is_mutual=True)
        assert (
            "worker" == admit(it, "inferwire.v1.InferenceService/Complete", {}, ["127.0.0.1", "worker"]).name
        )
        with pytest.raises(errors.ScopeRequired):
            admit(it, "inferwire.v1.ModelService/Load", {}, ["spiffe://x/worker"])
        with pytest.raises(errors.TokenInvalid):
            admit(it, "inferwire.v1.InferenceService/Complete", {}, ["spiffe://x/other"])


async def test_the_principal_keeps_prompts_apart(server: Server) -> None:
    """What the engine shares among requests it shares within one principal: its name is the key's, not the caller's word."""
    seen = []
    backend = server.registry._entries["scripted"].instance.backend
    original = backend.stream

    def stream(request: Any, call: Any) -> Any:
        seen.append(call.principal)
        return original(request, call)

    backend.stream = stream  # type: ignore[method-assign]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for key in ("infer", "all"):
            await outcome(
                channel,
                "inferwire.v1.InferenceService/Complete",
                key,
                pb.CompleteRequest(model="scripted", prompt="a"),
            )
    assert ["infer", "all"] == seen
