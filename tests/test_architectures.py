"""Models whose memory is no plain KV cache: found out as that, computed together, and kept apart.

A recurrent layer has one state per sequence, which only goes forward; a sliding window forgets. Random models of five
architectures, which give llama.cpp four kinds of such memory, are served by a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import operator
import os
import pathlib
import random
import string
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import gguf
import grpc
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.config import ModelSettings
from inferwire_server.engine.cells import Sharing
from inferwire_server.engine.llama_model import LlamaModel
from tests.models import architectures, tiny
from tests.models.architectures import LoraFault

from .serving import bare_stub, rest, running

SEED = 20261121

WRITERS: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "mamba": architectures.write_mamba,
    "mamba2": architectures.write_mamba2,
    "jamba": architectures.write_jamba,
    "lfm2": architectures.write_lfm2,
    "gemma3": architectures.write_gemma3,
}

# In nats. Other neighbours in a batch, or a prompt cut in other places, round differently. That moved the lead of the likeliest
# token by 0.014 at most over 1152 tokens of gemma3, the most sensitive of these models, and by 0.00002 over as many of mamba.
# So a token that leads by MARGIN leads in every batch; one that leads by less may change places with the second, and from
# there on two answers have nothing in common.
MARGIN = 0.05

# Small, so that most prompts are cut into chunks, and a chunk stands beside tokens of running answers.
BATCH_SIZE = 24
NUM_SLOTS = 8
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write(folder / f"{name}.gguf") for name, write in WRITERS.items()}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a stream told: its tokens, and how far each was ahead of the second likeliest.

    Also the most sequences that were seen running meanwhile, and how much of the prompt had been computed before.
    """

    tokens: list[int]
    leads: list[float]
    most_running: int
    num_cached: int

    def assert_same(self, other: Answer) -> int:
        """Compares another answer, or as much as there is of it, up to where a token without the margin has changed.

        Returns how many tokens were compared.
        """
        compared = 0
        for expected, lead, actual in zip(self.tokens, self.leads, other.tokens, strict=False):
            if actual != expected and lead < MARGIN:
                break
            assert expected == actual, f"after {compared} tokens; it led by {lead}"
            compared += 1
        return compared


class Ask(Protocol):
    """Streams a greedy answer; cancels it while its prompt is read ("prefill"), or after so many tokens."""

    async def __call__(
        self, prompt: str, *, max_tokens: int = MAX_TOKENS, cancel_at: str | int | None = None
    ) -> Answer: ...


@contextlib.asynccontextmanager
async def served(path: pathlib.Path, **config: int) -> AsyncIterator[Ask]:
    """Yields a way to ask a model that a fresh server has loaded with this config."""
    config = {"parallel_sequences": NUM_SLOTS, "batch_size": BATCH_SIZE, "threads": 1, **config}
    settings = ModelSettings(path=str(path), config=config)
    async with running(models={"tiny": settings}) as (server, _), bare_stub(server) as stub:

        async def ask(
            prompt: str, *, max_tokens: int = MAX_TOKENS, cancel_at: str | int | None = None
        ) -> Answer:
            request = pb.CompleteRequest(prompt=prompt, model="tiny")
            request.output.MergeFrom(pb.OutputOptions(logprobs=True, top_logprobs=4, progress=True))
            request.sampling.temperature = 0
            request.stopping.ignore_eos = True
            request.stopping.max_tokens = max_tokens
            call = stub.StreamComplete(request)
            entries: list[pb.TokenLogprob] = []
            most_running = num_cached = 0
            while (event := await call.read()) is not grpc.aio.EOF:
                most_running = max(most_running, server.registry.occupancy("tiny").sequences_running)
                entries += [*event.text.logprobs, *event.completion.logprobs]
                num_cached = event.completion.usage.cached_prompt_tokens
                if is_reached(cancel_at, event, len(entries)):
                    call.cancel()
                    # Cancelled, or it had ended before the cancel came.
                    with contextlib.suppress(asyncio.CancelledError):
                        await rest(call)
                    break
            tokens = [entry.token_id for entry in entries]
            return Answer(tokens, list(map(lead_of, entries)), most_running, num_cached)

        yield ask


def is_reached(cancel_at: str | int | None, event: pb.StreamCompleteResponse, num_tokens: int) -> bool:
    if isinstance(cancel_at, str):
        return event.progress.WhichOneof("stage") == cancel_at
    return cancel_at is not None and num_tokens >= cancel_at


def lead_of(entry: pb.TokenLogprob) -> float:
    """Returns how far the likeliest token is ahead, of those that may be drawn while the end is ignored."""
    first, second, *_ = [top.logprob for top in entry.top if top.token_id not in (tiny.EOS, tiny.END_TURN)]
    return first - second


def words(draw: random.Random, num_bytes: int) -> str:
    return "".join(draw.choices(f"{string.ascii_lowercase} ", k=num_bytes))


# Memory that cannot be cut anywhere.


@pytest.mark.parametrize("name", WRITERS)
def test_memory_that_cannot_be_cut_is_found_out(paths: dict[str, pathlib.Path], name: str) -> None:
    """Recurrent, hybrid and sliding window: a sequence may at most go on where another has ended."""
    model = LlamaModel(str(paths[name]), models_pb2.LoadConfig())
    assert name == model.architecture
    assert Sharing.WHOLE is model.sharing
    assert paths[name].stat().st_size < 1 << 20


def test_a_plain_cache_may_be_cut(tmp_path: pathlib.Path) -> None:
    """Else the test above would prove nothing."""
    path = tiny.write_tiny_model(tmp_path / "tiny.gguf")
    assert Sharing.PREFIX is LlamaModel(str(path), models_pb2.LoadConfig()).sharing


# Streams at once, and one after the other.


@pytest.mark.parametrize("config", [{}, {"cache_tokens": 600}], ids=["own cells", "pooled cells"])
@pytest.mark.parametrize("name", WRITERS)
async def test_streams_at_once_answer_as_each_alone(
    paths: dict[str, pathlib.Path], name: str, config: dict[str, int]
) -> None:
    """Short and long prompts, beyond the batch and beyond the window, more streams than slots, a third of them cancelled.

    Each answer is that of the same request alone, and a cancelled one is it as far as it came. The pool has room for two
    or three of the longer ones at a time.
    """
    draw = random.Random(SEED)
    prompts = [words(draw, length) for length in (1, 5, 17, 23, 40, 64, 90, 128, 150, 177, 200, 240)]
    num_tokens = len(prompts) * MAX_TOKENS
    async with served(paths[name], **config) as ask:
        alone = [await ask(prompt) for prompt in prompts]
        assert num_tokens == sum(len(answer.tokens) for answer in alone)
        assert max(answer.most_running for answer in alone) <= 1
        most_running = 0
        for _ in range(3):
            cancels: dict[int, str | int] = {
                index: "prefill" if number % 2 else draw.randrange(1, MAX_TOKENS)
                for number, index in enumerate(draw.sample(range(4, len(prompts)), 4))
            }
            together = await asyncio.gather(
                *(ask(prompt, cancel_at=cancels.get(index)) for index, prompt in enumerate(prompts))
            )
            compared = sum(map(Answer.assert_same, alone, together))
            assert compared > num_tokens / 3
            assert {MAX_TOKENS} == {
                len(answer.tokens) for index, answer in enumerate(together) if index not in cancels
            }
            most_running = max(most_running, *(answer.most_running for answer in together))
    assert most_running > 1, "no two of them ran at once"
    assert len(prompts) == len({tuple(answer.tokens) for answer in alone}), "the model ignores its prompt"


@pytest.mark.parametrize("name", WRITERS)
async def test_a_slot_tells_nothing_of_who_had_it_before(paths: dict[str, pathlib.Path], name: str) -> None:
    """In the only slot, the answer is the same after whatever came before it as on a fresh server.

    Before it came others, its own beginning, itself with more behind it, and streams cancelled while a long prompt was
    read and while an answer was given.
    """
    draw = random.Random(SEED + 1)
    # So long that a buffer of 256 cells, the least that a window gets, has lost what lies before the end of the beginning.
    long = words(draw, 420)
    prompts = [long, long[:215], long + words(draw, 30), words(draw, 150), words(draw, 9)]
    fresh = []
    for prompt in prompts:
        async with served(paths[name], parallel_sequences=1) as ask:
            fresh.append(await ask(prompt))
    async with served(paths[name], parallel_sequences=1) as ask:
        for number, (before, after) in enumerate(itertools.permutations(range(len(prompts)), 2)):
            for cancel_at in (None, ("prefill", 20)[number % 2]):
                await ask(prompts[before], cancel_at=cancel_at)
                answer = await ask(prompts[after])
                assert MAX_TOKENS == len(answer.tokens)
                assert fresh[after].assert_same(answer) > 0


@pytest.mark.parametrize("name", WRITERS)
async def test_a_slot_is_gone_on_with_where_it_ended_and_nowhere_else(
    paths: dict[str, pathlib.Path], name: str
) -> None:
    """A prompt that begins with all that a slot holds computes only the rest; one that leaves earlier computes all.

    Both answer as on a fresh server. An answer of one token leaves exactly its prompt in the slot.
    """
    long = words(random.Random(SEED + 2), 420)
    begin, branch = long[:215], long[:190]
    num_held = len(begin) + 1  # with BOS
    fresh = []
    for prompt in (long, branch):
        async with served(paths[name], parallel_sequences=1) as ask:
            fresh.append(await ask(prompt))
    async with served(paths[name], parallel_sequences=1) as ask:
        for prompt, expected, num_cached in ((long, fresh[0], num_held), (branch, fresh[1], 0)):
            await ask(begin, max_tokens=1)
            answer = await ask(prompt)
            assert num_cached == answer.num_cached
            assert MAX_TOKENS == len(answer.tokens)
            assert expected.assert_same(answer) > 0


@pytest.mark.parametrize(
    ("write", "is_forgotten"),
    [
        pytest.param(architectures.write_mamba, False, id="mamba"),
        pytest.param(architectures.write_mamba2, False, id="mamba2"),
        pytest.param(architectures.write_jamba, False, id="jamba"),
        pytest.param(architectures.write_lfm2, True, id="lfm2"),
        pytest.param(architectures.write_gemma3, False, id="gemma3"),
        pytest.param(
            functools.partial(architectures.write_gemma3, pattern=(True, True)), True, id="gemma3 of windows"
        ),
    ],
)
async def test_how_far_back_a_model_sees(
    tmp_path: pathlib.Path, write: Callable[[pathlib.Path], pathlib.Path], is_forgotten: bool
) -> None:
    """A change 150 tokens back changes the answer, but where nothing sees farther than some windows of 32."""
    ends = words(random.Random(SEED), 150)
    async with served(write(tmp_path / "model.gguf")) as ask:
        one, other = [await ask(f"{begin}{ends}") for begin in "ab"]
    if is_forgotten:
        one.assert_same(other)
    else:
        assert one.tokens != other.tokens


# Models of embeddings, and adapters: what the tests of them are given is what it says.


def load(path: pathlib.Path, **params: object) -> tuple[Any, Any]:
    """Loads a model with llama.cpp alone. Returns it and a context with these params; both live as long as the process."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    assert model
    settings = llama_cpp.llama_context_default_params()
    for name, value in {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, **params}.items():
        setattr(settings, name, value)
    context = llama_cpp.llama_init_from_model(model, settings)
    assert context
    return model, context


def compute(context: Any, text: str) -> int:
    """Computes a text anew, each token with its output. Returns how many tokens it has."""
    tokens = [tiny.BOS, *text.encode()]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, True
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    code = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    assert 0 == code
    return len(tokens)


def values(pointer: Any, count: int) -> npt.NDArray[np.float32]:
    assert pointer
    return np.ctypeslib.as_array(pointer, shape=(count,)).copy()


@pytest.mark.parametrize(
    ("write", "kind", "is_causal"),
    [
        (architectures.write_bert, "MEAN", False),
        (architectures.write_bert, "CLS", False),
        (architectures.write_gemma_embedding, "MEAN", False),
        (tiny.write_tiny_model, "LAST", True),
    ],
)
def test_a_model_of_embeddings_pools_as_its_file_says(
    tmp_path: pathlib.Path, write: Callable[..., pathlib.Path], kind: str, is_causal: bool
) -> None:
    """The vector of a text is the mean, the first or the last of its tokens' vectors.

    Those of an encoder, which has no memory, depend on what follows them; the others do not.
    """
    pooling_type = gguf.PoolingType[kind]
    path = write(tmp_path / "embeddings.gguf", pooling_type=pooling_type)
    assert path.stat().st_size < 1 << 20
    model, pooled = load(path, embeddings=True)
    _, unpooled = load(path, embeddings=True, pooling_type=gguf.PoolingType.NONE)
    width = llama_cpp.llama_model_n_embd(model)
    assert pooling_type == llama_cpp.llama_pooling_type(pooled)
    assert is_causal == bool(llama_cpp.llama_get_memory(pooled))
    first_tokens = []
    for text in ("one text", "one more text"):
        count = compute(unpooled, text)
        each = np.stack(
            [values(llama_cpp.llama_get_embeddings_ith(unpooled, at), width) for at in range(count)]
        )
        expected = {"MEAN": each.mean(axis=0), "CLS": each[0], "LAST": each[-1]}[kind]
        compute(pooled, text)
        actual = values(llama_cpp.llama_get_embeddings_seq(pooled, 0), width)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        first_tokens.append(each[0])
    one, other = first_tokens
    assert is_causal == np.allclose(one, other, atol=1e-3)


def use_adapter(model_path: str, adapter_path: str, scale: float = 1.0) -> list[int]:
    """Returns the likeliest token after each token of a text. ValueError when llama.cpp refuses the adapter."""
    model, context = load(pathlib.Path(model_path))
    adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(adapter_path))
    if not adapter:
        raise ValueError(adapter_path)
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    assert 0 == llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(scale))
    count = compute(context, "Once upon a time there was a fox.")
    pointers = [llama_cpp.llama_get_logits_ith(context, place) for place in range(count)]
    return [int(values(pointer, tiny.NUM_TOKENS).argmax()) for pointer in pointers]


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def test_an_adapter_changes_what_the_model_says(tmp_path: pathlib.Path, tiny_path: str) -> None:
    """Most of its answers; not with a scale of 0, and each adapter in its own way."""
    paths = [
        str(architectures.write_lora(tmp_path / f"{seed}.gguf", seed=seed))
        for seed in (tiny.SEED, tiny.SEED + 1)
    ]
    plain, one, other = (
        use_adapter(tiny_path, path, scale) for path, scale in ((paths[0], 0), (paths[0], 1), (paths[1], 1))
    )
    for left, right in itertools.combinations((plain, one, other), 2):
        assert sum(map(operator.ne, left, right)) > len(plain) / 2


@pytest.mark.parametrize("fault", [LoraFault.ARCHITECTURE, LoraFault.WIDTH])
def test_an_adapter_for_another_model_is_refused(
    tmp_path: pathlib.Path, tiny_path: str, fault: LoraFault
) -> None:
    """llama.cpp looks at the architecture's name and at the shapes."""
    path = architectures.write_lora(tmp_path / "other.gguf", fault=fault)
    with pytest.raises(ValueError, match=path.name):
        use_adapter(tiny_path, str(path))


@pytest.mark.parametrize("fault", [LoraFault.ALPHA_TYPE, LoraFault.RANK, LoraFault.ELEMENT_TYPE, None])
def test_of_some_adapters_llama_cpp_dies(
    tmp_path: pathlib.Path, tiny_path: str, fault: LoraFault | None
) -> None:
    """These must be found out before llama.cpp sees them: it tells no error, and every stream of the model would end."""
    path = architectures.write_lora(tmp_path / "adapter.gguf", fault=fault)
    script = "import sys; from tests.test_architectures import use_adapter; use_adapter(*sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", script, tiny_path, str(path)],
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
        # Without it ggml starts a debugger on its own process when it aborts.
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        stderr=subprocess.DEVNULL,
    )
    if fault is None:
        assert 0 == ended.returncode
    else:
        assert ended.returncode < 0, "it ended by a signal before"
