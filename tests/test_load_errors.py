"""Loads that fail, through a real server: every broken file and every bad request has its code and reason, and no more.

A file may kill the engine process that reads it. It may not harm the server or the other models, may not hang, and its
loader's words stay in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import pathlib
import re
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from inferwire import AsyncClient, InferwireError, text_of
from inferwire.v1 import models_pb2
from inferwire_server.config import ModelSettings
from inferwire_server.server import Server
from inferwire_server.validation import CONFIG_RANGES
from tests.models import tiny
from tests.models.corrupt import Broken, broken_files
from tests.serving import running

# A load that takes longer hangs.
HANG_SECONDS = 30.0
LOADS_AT_ONCE = 3
CONFIG = models_pb2.LoadConfig(context_length=64, parallel_sequences=1, threads=1)
# As the comments of ModelService.Load say.
CODES = {
    "MODEL_PATH_NOT_ALLOWED": grpc.StatusCode.INVALID_ARGUMENT,
    "MODEL_FILE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "BACKEND_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "MODEL_FILE_INVALID": grpc.StatusCode.FAILED_PRECONDITION,
    "TEMPLATE_INVALID": grpc.StatusCode.FAILED_PRECONDITION,
    "UNSUPPORTED_BY_BACKEND": grpc.StatusCode.FAILED_PRECONDITION,
}
# What only the log may say: paths, exit codes, exceptions, and the loader's vocabulary.
INTERNALS = re.compile(
    r"/|\\|\.gguf|\.cpp|\.py|traceback|exception|error:|errno|\bexit|signal|abort|assert|segfault|sigsegv|killed|"
    r"llama|ggml|gguf|jinja|tensor|vocab|hparams|metadata|magic|ctypes|null",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny.write_tiny_model(tmp_path_factory.mktemp("good") / "good.gguf").read_bytes()


@pytest.fixture
def root(tmp_path: pathlib.Path, good: bytes) -> pathlib.Path:
    """A model root with one good file."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "good.gguf").write_bytes(good)
    return root


@contextlib.asynccontextmanager
async def serving(root: pathlib.Path) -> AsyncIterator[tuple[Server, AsyncClient]]:
    """Yields a server with one good model, READY, which is to answer at the end as at the beginning."""
    config = {"context_length": 64, "parallel_sequences": 1, "threads": 1}
    model = ModelSettings(path=str(root / "good.gguf"), config=config)
    async with running(models={"good": model}, model_roots=[str(root)]) as (server, client):
        instance_id, text = server.registry.model("good").instance_id, await answer(client)
        yield server, client
        assert text == await answer(client)
        assert instance_id == server.registry.model("good").instance_id


async def answer(client: AsyncClient) -> str:
    """Returns what the good model says."""
    response = await client.complete(
        prompt="Once", model="good", max_tokens=8, temperature=0, timeout=HANG_SECONDS
    )
    return text_of(response.message)


async def refusal(
    client: AsyncClient, request: models_pb2.LoadRequest, timeout: float = HANG_SECONDS
) -> InferwireError | None:
    """Returns the failure of a load; None when it succeeded."""
    try:
        await client.load(request, timeout=timeout)
    except InferwireError as error:
        return error
    return None


def local(model: str, path: str, **config: object) -> models_pb2.LoadRequest:
    source = models_pb2.ModelSource(local=models_pb2.LocalSource(path=path))
    request = models_pb2.LoadRequest(model=model, source=source, config=CONFIG)
    request.config.MergeFrom(models_pb2.LoadConfig(**config))
    return request


def violations_of(error: InferwireError | None) -> list[str]:
    assert error is not None, "the load succeeded"
    assert ("INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT) == (error.reason, error.code)
    return [violation.field for violation in error.violations]


def leaks(error: InferwireError, request: models_pb2.LoadRequest) -> list[str]:
    """Returns what a failure says and should not; the caller's own name of the model is his."""
    texts = [
        error.message,
        *error.metadata.values(),
        *(violation.description for violation in error.violations),
    ]
    return [text for text in texts if INTERNALS.search(text.replace(request.model, ""))]


# Files.


@pytest.mark.parametrize("part", range(6))
async def test_a_broken_file_is_refused_and_harms_nobody(root: pathlib.Path, good: bytes, part: int) -> None:
    """Each ends in its documented reason in time, tells no internals, leaves the name FAILED, and the server goes on."""
    files = list(broken_files(good))[part::6]
    async with serving(root) as (server, client):
        turns = asyncio.Semaphore(LOADS_AT_ONCE)

        async def problems(index: int, broken: Broken) -> list[str]:
            name = f"m{index}"
            (root / f"{name}.gguf").write_bytes(broken.data)
            request = local(name, f"{name}.gguf")
            async with turns:
                error, text = await asyncio.gather(refusal(client, request), answer(client))
            found = (
                [] if text == await answer(client) else [f"{broken.name}: the other model answers otherwise"]
            )
            if error is None:
                return [f"{broken.name}: it was loaded"]
            found += [f"{broken.name}: tells {leak!r}" for leak in leaks(error, request)]
            if (broken.reason, CODES[broken.reason]) != (error.reason, error.code):
                found.append(f"{broken.name}: {error.code} {error.reason} {error.message}")
            failure = server.registry.model(name)
            if models_pb2.MODEL_STATE_FAILED != failure.state or failure.failure.message != error.message:
                found.append(f"{broken.name}: is left as {failure}")
            return found

        lists = await asyncio.gather(*(problems(index, broken) for index, broken in enumerate(files)))
        assert [] == [problem for found in lists for problem in found]
        # The name is not burnt: with a good file in its place the same load succeeds.
        (root / "m0.gguf").write_bytes(good)
        assert models_pb2.MODEL_STATE_READY == (await client.load(local("m0", "m0.gguf"))).model.state


def test_the_corpus_has_a_file_of_each_kind(good: bytes) -> None:
    """Names are unique, no file is the good one, and both reasons occur."""
    files = list(broken_files(good))
    assert len(files) == len({broken.name for broken in files}) > 90
    assert all(broken.data != good for broken in files)
    assert {"MODEL_FILE_INVALID", "TEMPLATE_INVALID"} == {broken.reason for broken in files}


@pytest.mark.parametrize("name", ["text", "llama.block_count_0", "template_syntax"])
async def test_a_watched_load_fails_as_a_plain_one(root: pathlib.Path, good: bytes, name: str) -> None:
    """Progress may come first; then the same status, whether the loader refused the file or died of it."""
    (broken,) = (broken for broken in broken_files(good) if broken.name == name)
    (root / "broken.gguf").write_bytes(broken.data)
    request = local("m", "broken.gguf")
    async with serving(root) as (_, client):
        plain = await refusal(client, request)
        events = []
        watched = None
        try:
            async for event in client.stream_load(request, timeout=HANG_SECONDS):
                events.append(event.WhichOneof("event"))  # noqa: PERF401  those before the failure count
        except InferwireError as error:
            watched = error
        assert {"progress"} == set(events)
        assert watched is not None
        assert plain is not None
        assert (plain.code, plain.reason, plain.message) == (watched.code, watched.reason, watched.message)
        assert [] == leaks(watched, request)


async def test_a_path_is_a_regular_file_beneath_a_root(root: pathlib.Path) -> None:
    """What leaves a root is not allowed, the same whether it exists or not; what is not there is not found."""
    (root / "dir").mkdir()
    (root / "link.gguf").symlink_to(root / "good.gguf")
    (root / "linked").symlink_to(root)
    (root.parent / "outside.gguf").write_bytes(b"")
    expected = {
        "missing.gguf": "MODEL_FILE_NOT_FOUND",
        "dir": "MODEL_FILE_NOT_FOUND",
        "dir/missing.gguf": "MODEL_FILE_NOT_FOUND",
        "good.gguf/more": "MODEL_FILE_NOT_FOUND",
        "x" * 300: "MODEL_FILE_NOT_FOUND",
        "x" * 2000: "MODEL_PATH_NOT_ALLOWED",
        "": "MODEL_PATH_NOT_ALLOWED",
        ".": "MODEL_PATH_NOT_ALLOWED",
        "..": "MODEL_PATH_NOT_ALLOWED",
        "/etc/passwd": "MODEL_PATH_NOT_ALLOWED",
        str(root / "good.gguf"): "MODEL_PATH_NOT_ALLOWED",
        "../outside.gguf": "MODEL_PATH_NOT_ALLOWED",
        "../missing.gguf": "MODEL_PATH_NOT_ALLOWED",
        "dir/../good.gguf": "MODEL_PATH_NOT_ALLOWED",
        "good.gguf\0": "MODEL_PATH_NOT_ALLOWED",
        "link.gguf": "MODEL_PATH_NOT_ALLOWED",
        "linked/good.gguf": "MODEL_PATH_NOT_ALLOWED",
    }
    async with serving(root) as (server, client):
        for path, reason in expected.items():
            request = local("m", path)
            error = await refusal(client, request)
            assert error is not None, path
            assert (path, reason, CODES[reason]) == (path, error.reason, error.code)
            assert [] == leaks(error, request)
        # Refused at the door, so the name is not even known.
        assert ["good"] == [model.name for model in server.registry.models()]


async def test_a_cache_beyond_the_memory_is_refused(root: pathlib.Path) -> None:
    """By arithmetic, before the system grants what it cannot give; how much was missing is told."""
    async with serving(root) as (server, client):
        request = local("m", "good.gguf", context_length=1 << 20, parallel_sequences=256)
        request.config.rope.freq_scale = 0.001
        request.config.key_cache_type = request.config.value_cache_type = models_pb2.CACHE_TYPE_F32
        error = await refusal(client, request)
        assert error is not None
        assert ("INSUFFICIENT_MEMORY", grpc.StatusCode.RESOURCE_EXHAUSTED) == (error.reason, error.code)
        assert int(error.metadata["neededBytes"]) > int(error.metadata["availableBytes"]) > 0
        assert [] == leaks(error, request)
        assert models_pb2.MODEL_STATE_FAILED == server.registry.model("m").state


async def test_what_only_the_model_can_refuse_names_its_field(root: pathlib.Path) -> None:
    """Values that are within their range and impossible for this model, told by the engine process."""
    async with serving(root) as (_, client):
        for config, field in (
            ({"context_length": tiny.CONTEXT_LENGTH + 1}, "config.context_length"),
            ({"parallel_sequences": 20, "batch_size": 19}, "config.batch_size"),
            ({"micro_batch_size": 600}, "config.micro_batch_size"),
            ({"key_cache_type": models_pb2.CACHE_TYPE_Q4_0}, "config.key_cache_type"),
            ({"tensor_split": [1.0] * 1000}, "config.tensor_split"),
            ({"chat_family": "nobody's"}, "config.chat_family"),
        ):
            request = local("m", "good.gguf", **config)
            error = await refusal(client, request)
            assert [field] == violations_of(error)
            assert error is not None
            assert [] == leaks(error, request)


async def test_a_template_of_the_request_is_checked_as_the_files_own(root: pathlib.Path) -> None:
    async with serving(root) as (_, client):
        request = local("m", "good.gguf", chat_template="{% for %}")
        error = await refusal(client, request)
        assert error is not None
        assert ("TEMPLATE_INVALID", grpc.StatusCode.FAILED_PRECONDITION) == (error.reason, error.code)
        assert [] == leaks(error, request)
        loaded = await client.load(local("m", "good.gguf", chat_template="{{ messages[0].content }}"))
        assert loaded.model.capabilities.chat


# Requests, which no engine process ever sees.

Edit = Callable[[models_pb2.LoadRequest], object]


@pytest.fixture
async def client(root: pathlib.Path) -> AsyncIterator[AsyncClient]:
    """A client of a server with a root and no model."""
    async with running(model_roots=[str(root)], scripted=True) as (server, client):
        known = server.registry.models()
        yield client
        assert known == server.registry.models()
        assert not any(backend.id == "local" for backend in server.registry.backends())


@pytest.mark.parametrize("name", CONFIG_RANGES)
async def test_a_number_outside_its_range_names_its_field(client: AsyncClient, name: str) -> None:
    """One below the least and one above the most. (What lies within is refused by nobody here: the file is missing.)"""
    least, most = CONFIG_RANGES[name]
    assert most is not None
    is_unsigned = models_pb2.LoadConfig.DESCRIPTOR.fields_by_name[name].cpp_type == 3
    for value in (int(least) - 1, int(most) + 1, (1 << 31) - 1):
        if value >= 0 or not is_unsigned:
            request = local("m", "missing.gguf", **{name: value})
            assert f"config.{name}" in violations_of(await refusal(client, request))
    for value in (int(least), int(most)):
        error = await refusal(client, local("m", "missing.gguf", **{name: value}))
        assert error is not None
        assert "MODEL_FILE_NOT_FOUND" == error.reason


@pytest.mark.parametrize(
    ("edit", "fields"),
    [
        (lambda request: request.ClearField("model"), ["model"]),
        (lambda request: setattr(request, "model", "a b"), ["model"]),
        (lambda request: setattr(request, "model", "m\n"), ["model"]),
        (lambda request: setattr(request, "model", "x" * 129), ["model"]),
        (lambda request: request.ClearField("source"), ["source"]),
        (lambda request: request.source.Clear(), ["source"]),
        (lambda request: setattr(request.config, "key_cache_type", 99), ["config.key_cache_type"]),
        (lambda request: setattr(request.config, "value_cache_type", -1), ["config.value_cache_type"]),
        (lambda request: setattr(request.config, "flash_attention", 99), ["config.flash_attention"]),
        (lambda request: setattr(request.config.rope, "scaling", 99), ["config.rope.scaling"]),
        (lambda request: setattr(request.config.rope, "freq_base", math.nan), ["config.rope.freq_base"]),
        (lambda request: setattr(request.config.rope, "freq_scale", math.inf), ["config.rope.freq_scale"]),
        (
            lambda request: request.config.tensor_split.extend([1, -1, math.nan]),
            ["config.tensor_split[1]", "config.tensor_split[2]"],
        ),
        (
            lambda request: request.config.MergeFrom(models_pb2.LoadConfig(batch_size=8, micro_batch_size=9)),
            ["config.micro_batch_size"],
        ),
        (
            lambda request: request.config.MergeFrom(
                models_pb2.LoadConfig(
                    value_cache_type=models_pb2.CACHE_TYPE_Q8_0,
                    flash_attention=models_pb2.FLASH_ATTENTION_OFF,
                )
            ),
            ["config.value_cache_type"],
        ),
        (lambda request: setattr(request.config, "chat_template", "x" * (1 << 19)), ["config.chat_template"]),
        (lambda request: request.keep_alive.FromSeconds(-1), ["keep_alive"]),
        (lambda request: request.keep_alive.FromSeconds(0), ["keep_alive"]),
        (lambda request: request.keep_alive.FromSeconds(366 * 86400), ["keep_alive"]),
        (
            lambda request: request.MergeFrom(
                models_pb2.LoadRequest(model="a b", config=models_pb2.LoadConfig(threads=0, main_gpu=256))
            ),
            ["model", "config.threads", "config.main_gpu"],
        ),
    ],
)
async def test_a_bad_request_names_its_fields(client: AsyncClient, edit: Edit, fields: list[str]) -> None:
    """All of them at once."""
    request = local("m", "missing.gguf")
    edit(request)
    assert fields == violations_of(await refusal(client, request))


@pytest.mark.parametrize(
    ("edit", "reason", "fields"),
    [
        (
            lambda request: request.source.hub.MergeFrom(models_pb2.HubSource(repository="a/b")),
            "UNSUPPORTED_BY_BACKEND",
            ["source.hub"],
        ),
        (
            lambda request: request.source.remote.MergeFrom(models_pb2.RemoteSource(backend="x", model="y")),
            "BACKEND_NOT_FOUND",
            [],
        ),
        (
            lambda request: request.config.draft.MergeFrom(models_pb2.DraftModel(max_tokens=4)),
            "UNSUPPORTED_BY_BACKEND",
            ["config.draft"],
        ),
    ],
)
async def test_what_is_not_served_is_refused_and_not_dropped(
    client: AsyncClient, edit: Edit, reason: str, fields: list[str]
) -> None:
    request = local("m", "good.gguf")
    edit(request)
    error = await refusal(client, request)
    assert error is not None
    assert (reason, CODES[reason]) == (error.reason, error.code)
    assert fields == [violation.field for violation in error.violations]
    assert [] == leaks(error, request)
