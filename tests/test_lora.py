"""LoRA adapters are applied at Load, and those that cannot be are refused then."""

from __future__ import annotations

import pathlib

import pytest

from inferwire import AsyncClient, InferwireError, text_of
from inferwire.v1 import models_pb2
from inferwire_server.config import ModelSettings
from tests.models import architectures, tiny
from tests.models.architectures import LoraFault

from .serving import running

CONFIG = {"context_length": 128, "parallel_sequences": 1, "threads": 1}


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model root with a model and adapters of it."""
    tiny.write_tiny_model(tmp_path / "tiny.gguf")
    for seed in (1, 2):
        architectures.write_lora(tmp_path / f"{seed}.gguf", seed=seed)
    return tmp_path


def load(*adapters: tuple[str, float | None]) -> models_pb2.LoadRequest:
    request = models_pb2.LoadRequest(model="m", config=models_pb2.LoadConfig(**CONFIG), replace=True)
    request.source.local.path = "tiny.gguf"
    for path, scale in adapters:
        request.config.lora_adapters.add(source=models_pb2.LocalSource(path=path), scale=scale)
    return request


async def say(client: AsyncClient) -> str:
    answer = await client.complete(prompt="Once upon a time", model="m", temperature=0, max_tokens=24)
    return text_of(answer.message)


async def test_adapters_change_what_the_model_says(root: pathlib.Path) -> None:
    """Each in its own way, by its scale, and several at once; a scale of 0 changes nothing."""
    async with running(model_roots=[str(root)]) as (_, client):
        said = []
        for adapters in ([], [("1.gguf", None)], [("2.gguf", 1.0)], [("1.gguf", 1.0), ("2.gguf", 1.0)]):
            model = (await client.load(load(*adapters))).model
            assert len(adapters) == len(model.config.lora_adapters)
            said.append(await say(client))
        assert 4 == len(set(said))
        await client.load(load(("1.gguf", 0.0), ("2.gguf", 0.0)))
        assert said[0] == await say(client)


async def test_an_operator_names_adapters_in_the_configuration(root: pathlib.Path) -> None:
    """By a path of any folder, of which callers see the name alone."""
    adapter = {"source": {"path": str(root / "1.gguf")}}
    settings = ModelSettings(path=str(root / "tiny.gguf"), config={**CONFIG, "lora_adapters": [adapter]})
    async with running(models={"m": settings}) as (_, client):
        model = await client.get_model("m")
        assert ["1.gguf"] == [each.source.path for each in model.config.lora_adapters]
        assert await say(client)


async def test_an_adapter_of_no_numbers_is_refused(root: pathlib.Path) -> None:
    """llama.cpp would take it and say the first token for ever."""
    architectures.write_lora(root / "nan.gguf", alpha=float("nan"))
    async with running(model_roots=[str(root)]) as (_, client):
        with pytest.raises(InferwireError) as caught:
            await client.load(load(("nan.gguf", None)))
        assert "MODEL_FILE_INVALID" == caught.value.reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.gguf", "MODEL_FILE_NOT_FOUND"),
        ("../outside.gguf", "MODEL_PATH_NOT_ALLOWED"),
        ("", "MODEL_PATH_NOT_ALLOWED"),
        ("tiny.gguf", "MODEL_FILE_INVALID"),
        *((f"{fault.name}.gguf", "MODEL_FILE_INVALID") for fault in LoraFault),
    ],
)
async def test_what_is_no_adapter_is_refused(root: pathlib.Path, path: str, reason: str) -> None:
    """Also those of which llama.cpp dies: that is the load's failure, and the server goes on."""
    if path.removesuffix(".gguf") in LoraFault.__members__:
        architectures.write_lora(root / path, fault=LoraFault[path.removesuffix(".gguf")])
    async with running(model_roots=[str(root)]) as (_, client):
        with pytest.raises(InferwireError) as caught:
            await client.load(load((path, None)))
        assert reason == caught.value.reason
        await client.load(load())
        assert await say(client)
