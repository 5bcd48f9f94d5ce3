"""Embeddings: computed in the same loop as completions, equal to what llama-cpp-python computes alone."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferwire import AsyncClient, InferwireError
from inferwire.v1 import inference_pb2 as pb
from inferwire_server.config import ModelSettings
from inferwire_server.engine.cells import Sharing
from inferwire_server.engine.embedding import PooledVector
from tests.engine_fakes import Bench, make_sequence
from tests.models import architectures

from .serving import DEMO, bare_stub, demo, endless, failure, running

TEXTS = ["The name of the city is Paris.", "Hello!", "What is 2+3? " * 30]
# A batch's shape moves components of a unit vector a little.
TOLERANCE = 2e-3


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    async with running(models={"demo": demo(batch_size=64, context_length=512)}) as (_, client):
        yield client


def vectors(response: pb.EmbedResponse) -> npt.NDArray[np.float32]:
    return np.array([embedding.values for embedding in response.embeddings], dtype=np.float32)


class TestPooledVector:
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from([1, 2, 3]), st.booleans())
    def test_chunks_do_not_matter(self, sizes: list[int], pooling: pb.Pooling, normalize: bool) -> None:
        """The same vector, however the tokens came."""
        tokens = np.random.default_rng(0).standard_normal((sum(sizes), 4)).astype(np.float32)
        pooled = PooledVector(pooling, num_tokens=len(tokens), normalize=normalize)
        begin = 0
        for size in sizes:
            pooled.add(tokens[begin : begin + size])
            begin += size
        expected = {1: tokens.mean(axis=0), 2: tokens[0], 3: tokens[-1]}[pooling]
        if normalize:
            expected = expected / np.linalg.norm(expected)
        assert np.allclose(expected, pooled.values(), atol=1e-6)

    def test_dimensions_are_cut_before_the_length_is_made_one(self) -> None:
        """Otherwise a shortened vector would be shorter than 1."""
        pooled = PooledVector(pb.POOLING_LAST, num_tokens=1, dimensions=2)
        pooled.add(np.array([[3.0, 4.0, 12.0]], dtype=np.float32))
        assert [pytest.approx(0.6), pytest.approx(0.8)] == pooled.values().tolist()

    def test_nothing_has_no_length(self) -> None:
        """A vector of zeros stays one, and is no NaN."""
        pooled = PooledVector(pb.POOLING_MEAN, num_tokens=1)
        pooled.add(np.zeros((1, 3), dtype=np.float32))
        assert [0, 0, 0] == pooled.values().tolist()


@pytest.mark.parametrize(
    ("pooling", "theirs"),
    [
        (pb.POOLING_MEAN, llama_cpp.LLAMA_POOLING_TYPE_MEAN),
        (pb.POOLING_CLS, llama_cpp.LLAMA_POOLING_TYPE_CLS),
        (pb.POOLING_LAST, llama_cpp.LLAMA_POOLING_TYPE_LAST),
        (pb.POOLING_UNSPECIFIED, llama_cpp.LLAMA_POOLING_TYPE_LAST),
    ],
)
async def test_vectors_are_those_of_llama_cpp(client: AsyncClient, pooling: pb.Pooling, theirs: int) -> None:
    """Every pooling, also over texts that are cut into chunks; a causal model that names none takes the last token."""
    response = await client.embed(TEXTS, pooling=pooling)
    alone = llama_cpp.Llama(DEMO, embedding=True, pooling_type=theirs, n_ctx=512, n_batch=512, verbose=False)
    expected = np.array(alone.embed(TEXTS, normalize=True))
    alone.close()
    assert np.allclose(expected, vectors(response), atol=TOLERANCE)
    assert "demo" == response.model
    counted = [await client.tokenize(text, add_special=True) for text in TEXTS]
    assert sum(len(each.token_ids) for each in counted) == response.usage.prompt_tokens


@pytest.mark.parametrize("kind", [gguf.PoolingType.MEAN, gguf.PoolingType.CLS])
async def test_an_encoder_embeds_and_completes_nothing(
    tmp_path: pathlib.Path, kind: gguf.PoolingType
) -> None:
    """Texts are computed whole, several at once, by the file's own pooling; who asks for a completion is told."""
    path = architectures.write_bert(tmp_path / "bert.gguf", pooling_type=kind)
    config = {"context_length": 64, "parallel_sequences": 4, "threads": 1}
    async with running(models={"bert": ModelSettings(path=str(path), config=config)}) as (_, client):
        texts = ["one text", "one more text", "x" * 60]
        together = vectors(await client.embed(texts))
        alone = llama_cpp.Llama(str(path), embedding=True, n_ctx=64, n_batch=64, verbose=False)
        expected = np.array([alone.embed(text, normalize=True) for text in texts])
        alone.close()
        assert np.allclose(expected, together, atol=TOLERANCE)
        model = await client.get_model("bert")
        assert (True, False, False) == (
            model.capabilities.embeddings,
            model.capabilities.prompt,
            model.capabilities.chat,
        )
        with pytest.raises(InferwireError) as caught:
            await client.complete(prompt="a", model="bert")
        assert "UNSUPPORTED_BY_BACKEND" == caught.value.reason
        with pytest.raises(InferwireError) as caught:
            await client.embed(["x" * 100])
        assert "CONTEXT_LENGTH_EXCEEDED" == caught.value.reason


@pytest.mark.parametrize("write", [architectures.write_bert, architectures.write_gemma_embedding])
async def test_an_encoder_is_found_out(tmp_path: pathlib.Path, write: Callable[..., pathlib.Path]) -> None:
    """Also one whose file does not say so: each token's vector depends on what follows it."""
    path = str(write(tmp_path / "encoder.gguf"))
    config = {"context_length": 128, "parallel_sequences": 1, "threads": 1}
    async with running(models={"encoder": ModelSettings(path=path, config=config)}) as (_, client):
        texts = ["a" * 90 + "b", "a" * 90 + "c"]
        one, other = vectors(await client.embed(texts, pooling=pb.POOLING_CLS))
        assert not np.allclose(one, other, atol=TOLERANCE)
        assert not (await client.get_model("encoder")).capabilities.prompt


async def test_lengths_and_dimensions(client: AsyncClient) -> None:
    """Unit length unless told otherwise; fewer dimensions are the leading ones."""
    raw = vectors(await client.embed(TEXTS[:1], normalize=False))[0]
    assert np.linalg.norm(raw) > 1.5
    short = vectors(await client.embed(TEXTS[:1], dimensions=5))[0]
    assert np.allclose(raw[:5] / np.linalg.norm(raw[:5]), short, atol=TOLERANCE)


async def test_many_texts_come_in_order(client: AsyncClient) -> None:
    """A hundred texts in one request, more than there are slots, in the order of the inputs."""
    texts = [f"Number {number}. " * (1 + number % 7) for number in range(100)]
    together = vectors(await client.embed(texts))
    for number in (0, 41, 99):
        alone = vectors(await client.embed([texts[number]]))[0]
        assert np.allclose(alone, together[number], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("inputs", "fields", "reason", "field"),
    [
        (["a", "word " * 600], {}, "CONTEXT_LENGTH_EXCEEDED", "inputs[1]"),
        (["a"], {"dimensions": 1 << 20}, "INVALID_REQUEST", "dimensions"),
        (["a"], {"dimensions": 0}, "INVALID_REQUEST", "dimensions"),
        (["a"], {"pooling": 77}, "INVALID_REQUEST", "pooling"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    client: AsyncClient, inputs: list[str], fields: dict[str, Any], reason: str, field: str
) -> None:
    """With the place in the request; nothing else is disturbed."""
    with pytest.raises(InferwireError) as caught:
        await client.embed(inputs, **fields)
    assert (reason, [field]) == (caught.value.reason, [each.field for each in caught.value.violations])


async def test_it_goes_on_beside_streams_and_is_cancelled() -> None:
    """Vectors come while streams run and more wait than there are slots; a cancelled request leaves nothing behind."""
    async with running(models={"demo": demo(parallel_sequences=3)}) as (server, _), bare_stub(server) as stub:
        streams = [stub.StreamComplete(endless()) for _ in range(2)]
        for stream in streams:
            await stream.read()
        response = await stub.Embed(pb.EmbedRequest(model="demo", inputs=TEXTS * 4))
        assert 12 == len(response.embeddings)
        call = stub.Embed(pb.EmbedRequest(model="demo", inputs=[TEXTS[2]] * 500))
        while server.registry.num_leases < 3:
            await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.01)
        call.cancel()
        for stream in streams:
            assert "text" == (await stream.read()).WhichOneof("event")
            stream.cancel()


async def test_a_crash_is_told() -> None:
    """An engine that dies fails the request with its reason."""
    async with running(models={"demo": demo()}) as (server, _), bare_stub(server) as stub:
        call = stub.Embed(pb.EmbedRequest(model="demo", inputs=[TEXTS[2]] * 2000))
        while not server.registry.num_leases:
            await server.registry.changes.after(server.registry.changes.revision, timeout_seconds=0.01)
        (backend,) = server.registry.backends()
        os.kill(backend.pid, signal.SIGKILL)
        assert "ENGINE_CRASHED" == (await failure(call)).reason


def test_a_long_text_does_not_stall_streams() -> None:
    """It is cut into chunks within the step's budget, and every stream gets its token in every step."""
    bench = Bench(num_slots=3, batch_size=16, sharing=Sharing.PREFIX)
    stream = make_sequence(1, [0], ignore_eos=True)
    vector = PooledVector(pb.POOLING_LAST, num_tokens=60)
    text = make_sequence(2, range(60), vector=vector)
    bench.at_report(2, lambda: bench.submit(text))
    bench.run(stream)
    embedding = [batch for batch in bench.runner.batches if batch.chunks[0].sequence is text]
    assert [15, 15, 15, 15] == [batch.num_tokens for batch in embedding]
    decoding = [batch for batch in bench.runner.batches if batch.chunks[0].sequence is stream]
    assert [1] * len(decoding) == [batch.num_tokens for batch in decoding]
    bench.assert_nothing_held()


async def test_asking_one_who_cannot() -> None:
    """A backend without vectors refuses."""
    async with running() as (server, _), bare_stub(server) as stub:
        error = await failure(stub.Embed(pb.EmbedRequest(model="scripted", inputs=["a"])))
        assert "UNSUPPORTED_BY_BACKEND" == error.reason
