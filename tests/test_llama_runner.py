"""The runner against llama.cpp: batches, slots, logits, the vocabulary, and what becomes of a LoadConfig."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence as Tokens
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from inferwire.v1 import models_pb2
from inferwire_server import errors
from inferwire_server.engine import host, llama_model
from inferwire_server.engine.cells import Trim
from inferwire_server.engine.detokenizer import TextStream
from inferwire_server.engine.host import available_memory_bytes, num_usable_cores
from inferwire_server.engine.llama_model import LlamaModel
from inferwire_server.engine.llama_runner import LlamaRunner
from inferwire_server.engine.runner import BatchRejected
from inferwire_server.engine.scheduler import Chunk
from inferwire_server.engine.sequence import SamplingParams, Sequence
from inferwire_server.models import demo_model_path
from tests.models import architectures, tiny

Logits = npt.NDArray[np.float32]

# How far logits of the demo model may move with the shape of a batch; they reach from -10 to 20.
MARGIN = 0.02
PROMPTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n",
    "The name of the city is",
)


def load(path: pathlib.Path, **config: object) -> LlamaRunner:
    return LlamaRunner(str(path), models_pb2.LoadConfig(**config))


@pytest.fixture(scope="module")
def demo() -> LlamaRunner:
    return load(demo_model_path(), context_length=512, parallel_sequences=4, threads=2)


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    """Every test begins with empty slots."""
    if "demo" in request.fixturenames:
        runner = request.getfixturevalue("demo")
        for slot in range(4):
            runner.arrange([Trim(slot, 0)])


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny.write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny_runner(tiny_path: pathlib.Path) -> LlamaRunner:
    return load(tiny_path, parallel_sequences=1)


def chunk(slot: int, tokens: Tokens[int], position: int = 0, *, wants_logits: bool = True) -> Chunk:
    sequence = Sequence(
        sequence_id=slot,
        prompt=list(tokens),
        sampling=SamplingParams(temperature=0),
        max_tokens=1,
        started=None,
        text=TextStream(),
        arrived=0.0,
        time_limit=math.inf,
    )
    return Chunk(sequence, slot, list(tokens), position, wants_logits)


def decode(runner: LlamaRunner, *chunks: Chunk) -> list[Logits | None]:
    """Computes a batch. Returns a copy of each chunk's logits, None where none were wanted."""
    rows = runner.decode(chunks)
    return [None if row < 0 else logits_of(runner, row) for row in rows]


def logits_of(runner: LlamaRunner, row: int) -> Logits:
    pointer = llama_cpp.llama_get_logits_ith(runner._context, row)
    return np.ctypeslib.as_array(pointer, shape=(runner.vocabulary.num_tokens,)).copy()


def prefill(runner: LlamaRunner, slot: int, tokens: Tokens[int]) -> Logits:
    (logits,) = decode(runner, chunk(slot, tokens))
    assert logits is not None
    return logits


def end_position(runner: LlamaRunner, slot: int) -> int:
    return int(llama_cpp.llama_memory_seq_pos_max(runner._memory, slot))


def tokens_of(runner: LlamaRunner, text: str) -> list[int]:
    return runner.vocabulary.tokenize(text, add_special=True, parse_special=True)


def violated(caught: pytest.ExceptionInfo[errors.InvalidRequest]) -> list[str]:
    return [field for field, _ in caught.value.violations]


# Batches and slots.


def test_sequences_computed_together_answer_as_each_alone(demo: LlamaRunner) -> None:
    """Neighbours in a batch change nothing but the last digits: same greedy tokens, same logits within the margin."""
    prompts = [tokens_of(demo, prompt) for prompt in PROMPTS]

    def answers(slots: list[int]) -> tuple[list[list[int]], list[list[Logits]]]:
        generated: list[list[int]] = [[] for _ in slots]
        logits: list[list[Logits]] = [[] for _ in slots]
        chunks = [chunk(slot, prompts[slot]) for slot in slots]
        for _ in range(16):
            found = decode(demo, *chunks)
            chunks = []
            for index, (slot, row) in enumerate(zip(slots, found, strict=True)):
                assert row is not None
                logits[index].append(row)
                position = len(prompts[slot]) + len(generated[index])
                generated[index].append(int(row.argmax()))
                chunks.append(chunk(slot, generated[index][-1:], position))
        return generated, logits

    together, together_logits = answers([0, 1, 2, 3])
    for slot in range(4):
        demo.arrange([Trim(slot, 0)])
    for slot in range(4):
        (alone,), (alone_logits,) = answers([slot])
        assert alone == together[slot]
        np.testing.assert_allclose(alone_logits, together_logits[slot], atol=MARGIN)


def test_a_chunked_prompt_is_read_as_a_whole_one(demo: LlamaRunner) -> None:
    """Where a prompt is cut changes nothing but the last digits, and a chunk that wants no logits gets none."""
    tokens = tokens_of(demo, PROMPTS[0])
    whole = prefill(demo, 0, tokens)
    first, second = len(tokens) // 3, len(tokens) // 2
    assert [None] == decode(demo, chunk(1, tokens[:first], wants_logits=False))
    assert [None] == decode(demo, chunk(1, tokens[first:second], first, wants_logits=False))
    assert not llama_cpp.llama_get_logits_ith(demo._context, second - first - 1)
    (last,) = decode(demo, chunk(1, tokens[second:], second))
    assert last is not None
    np.testing.assert_allclose(last, whole, atol=MARGIN)


def test_a_prompt_and_decoding_sequences_share_a_batch(demo: LlamaRunner) -> None:
    """Each chunk gets the logits of its own last token, whatever its length and its place."""
    one, other = tokens_of(demo, PROMPTS[0]), tokens_of(demo, PROMPTS[3])
    expected_next = prefill(demo, 0, [*one, 5])
    expected_prompt = prefill(demo, 1, other)
    prefill(demo, 2, one)
    rows = demo.decode(
        [chunk(3, other[:3], wants_logits=False), chunk(2, [5], len(one)), chunk(3, other[3:], 3)]
    )
    assert [-1, 3, 3 + len(other) - 3] == rows
    np.testing.assert_allclose(logits_of(demo, rows[1]), expected_next, atol=MARGIN)
    np.testing.assert_allclose(logits_of(demo, rows[2]), expected_prompt, atol=MARGIN)


def test_clear_empties_a_slot_and_no_other(demo: LlamaRunner) -> None:
    """What is cleared has no position left; a neighbour keeps its own."""
    prefill(demo, 0, [1, 2, 3])
    prefill(demo, 1, [1, 2, 3, 4])
    demo.arrange([Trim(0, 0)])
    assert -1 == end_position(demo, 0)
    assert 3 == end_position(demo, 1)
    demo.arrange([Trim(0, 0)])  # an empty slot may be cleared


def test_a_reused_slot_carries_nothing_over(demo: LlamaRunner) -> None:
    """After clear, the same prompt has the very logits that a fresh context gives."""
    tokens = tokens_of(demo, PROMPTS[1])
    for slot in range(4):
        prefill(demo, slot, tokens_of(demo, PROMPTS[0] * 3))
    demo.arrange([Trim(2, 0)])
    reused = prefill(demo, 2, tokens)
    fresh = load(demo_model_path(), context_length=512, parallel_sequences=4, threads=2)
    np.testing.assert_array_equal(reused, prefill(fresh, 2, tokens))


def test_a_slot_takes_its_whole_context(tiny_path: pathlib.Path) -> None:
    """Every slot has room for the whole context at once, also one that is no multiple of llama.cpp's rounding."""
    runner = load(tiny_path, context_length=300, parallel_sequences=3, batch_size=300)
    for slot in range(3):
        assert np.isfinite(prefill(runner, slot, [7] * 300)).all()
    assert [299, 299, 299] == [end_position(runner, slot) for slot in range(3)]


def test_a_full_slot_rejects_a_batch_and_stays_as_it_was(tiny_path: pathlib.Path) -> None:
    """A batch that finds no cells is rejected; afterwards the other sequences go on."""
    runner = load(tiny_path, context_length=256, parallel_sequences=2, batch_size=256)
    prefill(runner, 0, [7] * 256)
    prefill(runner, 1, [7] * 10)
    with pytest.raises(BatchRejected):
        decode(runner, chunk(0, [7], 256))
    assert [255, 9] == [end_position(runner, 0), end_position(runner, 1)]
    (logits,) = decode(runner, chunk(1, [7], 10))
    assert logits is not None
    assert np.isfinite(logits).all()


# Logits.


@pytest.mark.parametrize("num_top", [0, 1, 5, 20, 1024, 5000])
def test_logprobs_are_a_float64_softmax(demo: LlamaRunner, num_top: int) -> None:
    """ln p of the drawn token and of the likeliest ones, best first, as float64 arithmetic says."""
    tokens = tokens_of(demo, PROMPTS[0])
    (row,) = demo.decode([chunk(0, tokens)])
    logits = logits_of(demo, row).astype(np.float64)
    expected = logits - (logits.max() + math.log(np.exp(logits - logits.max()).sum()))
    for token in (0, 42, int(logits.argmax())):
        logprob, top = demo.logprobs(row, token, num_top)
        assert expected[token] == pytest.approx(logprob, abs=1e-6)
        assert min(num_top, 1024) == len(top) == len({candidate for candidate, _ in top})
        for candidate, value in top:
            assert expected[candidate] == pytest.approx(value, abs=1e-6)
        values = [value for _, value in top]
        assert sorted(expected, reverse=True)[: len(values)] == pytest.approx(values, abs=1e-6)
    assert np.exp(expected).sum() == pytest.approx(1)


def test_logprobs_are_those_of_the_model_and_not_of_the_sampler(demo: LlamaRunner) -> None:
    """A bias changes the draw and not what is told of the model."""
    (row,) = demo.decode([chunk(0, tokens_of(demo, PROMPTS[0]))])
    before = demo.logprobs(row, 42, 5)
    sampler = demo.new_sampler(SamplingParams(temperature=0, logit_bias={42: 100.0}))
    assert 42 == demo.sample(row, sampler)
    sampler.close()
    assert before == demo.logprobs(row, 42, 5)


# The vocabulary.


@pytest.mark.parametrize(
    "text",
    ["", "Hello, world!", " two  spaces\n\ttab", "naïve café", "日本語", "👩‍👩‍👧 family", "a\0b", "x" * 5000],
)
def test_pieces_join_to_the_text(demo: LlamaRunner, tiny_runner: LlamaRunner, text: str) -> None:
    """Tokens are the text's bytes, cut; nothing is added, lost or normalized."""
    for runner in (demo, tiny_runner):
        vocabulary = runner.vocabulary
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert text.encode() == b"".join(map(vocabulary.piece, tokens))


def test_every_byte_of_the_tiny_model_is_a_token(tiny_runner: LlamaRunner) -> None:
    """Token i is the byte i, so what the model says is often no UTF-8."""
    assert [bytes([byte]) for byte in range(256)] == list(map(tiny_runner.vocabulary.piece, range(256)))


def test_special_tokens_are_read_only_when_asked(tiny_runner: LlamaRunner) -> None:
    """Text that looks like a special token is text, unless the caller wants it parsed."""
    vocabulary = tiny_runner.vocabulary
    text = "a<|done|>"
    assert [97, tiny.END_TURN] == vocabulary.tokenize(text, add_special=False, parse_special=True)
    assert list(text.encode()) == vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert [tiny.BOS, 97] == vocabulary.tokenize("a", add_special=True, parse_special=False)


def test_special_tokens_are_shown_only_when_asked(tiny_runner: LlamaRunner) -> None:
    """A control token has no text in an answer, and its name as a piece; also one longer than the usual buffer."""
    vocabulary = tiny_runner.vocabulary
    assert b"" == vocabulary.piece(tiny.END_TURN)
    assert b"<|done|>" == vocabulary.piece(tiny.END_TURN, special=True)
    assert tiny.SPECIAL_TOKENS[tiny.LONG - 256].encode() == vocabulary.piece(tiny.LONG, special=True)


def test_end_tokens_are_those_that_end_a_generation(demo: LlamaRunner, tiny_runner: LlamaRunner) -> None:
    """EOS and EOT, and no other."""
    assert [tiny.EOS, tiny.END_TURN] == tiny_runner.vocabulary.end_tokens()
    for runner in (demo, tiny_runner):
        vocabulary = runner.vocabulary
        assert vocabulary.end_tokens() == [
            token for token in range(vocabulary.num_tokens) if vocabulary.ends_generation(token)
        ]


def test_special_texts_are_those_that_a_template_writes(tiny_runner: LlamaRunner) -> None:
    assert ("<|begin|>", "<|end|>") == tuple(map(tiny_runner.vocabulary.special_text, ("bos", "eos")))


# What a file says of itself.


def test_a_model_describes_itself(tiny_path: pathlib.Path, tiny_runner: LlamaRunner) -> None:
    description = tiny_runner.model.description
    assert "llama" == description.architecture
    assert "F32" == description.quantization
    assert tiny.CONTEXT_LENGTH == description.context_length == description.training_context_length
    assert description.parameters * 4 == description.size_bytes
    assert 0 < description.size_bytes < tiny_path.stat().st_size < 1 << 20
    assert tiny.CHAT_TEMPLATE == tiny_runner.model.chat_template


def test_a_model_without_a_template_has_none(tmp_path: pathlib.Path) -> None:
    path = tiny.write_tiny_model(tmp_path / "plain.gguf", chat_template=None)
    assert "" == load(path, parallel_sequences=1).model.chat_template


def test_the_progress_of_reading_never_falls(tiny_path: pathlib.Path) -> None:
    """Fractions from 0 to 1, the last one 1."""
    told: list[float] = []
    LlamaRunner(str(tiny_path), models_pb2.LoadConfig(parallel_sequences=1), progress=told.append)
    assert sorted(told) == told
    assert 1 == told[-1]


# A LoadConfig and what becomes of it.


def test_unset_means_the_defaults_that_the_contract_says(tiny_path: pathlib.Path) -> None:
    runner = load(tiny_path)
    cores = num_usable_cores()
    assert runner.config == models_pb2.LoadConfig(
        context_length=tiny.CONTEXT_LENGTH,
        parallel_sequences=8,
        threads=cores,
        batch_threads=cores,
        batch_size=512,
        micro_batch_size=512,
        key_cache_type=models_pb2.CACHE_TYPE_F16,
        value_cache_type=models_pb2.CACHE_TYPE_F16,
        flash_attention=models_pb2.FLASH_ATTENTION_OFF,
        mmap=True,
        mlock=False,
        deterministic=False,
        cache_tokens=8 * tiny.CONTEXT_LENGTH,
    )


def test_a_small_cache_is_one_buffer_for_all(tiny_path: pathlib.Path) -> None:
    """llama.cpp then has that many cells, in one stream, and each sequence may still have its whole context."""
    runner = load(tiny_path, context_length=256, parallel_sequences=4, cache_tokens=512)
    assert runner.model._context_params().kv_unified
    assert (512, 512) == (
        llama_cpp.llama_n_ctx(runner._context),
        llama_cpp.llama_n_ctx_seq(runner._context),
    )
    assert 512 == runner.model.num_pooled_cells


@pytest.mark.parametrize("cache_tokens", [255, 4 * 256 + 1])
def test_a_cache_holds_one_context_and_no_more_than_all(tiny_path: pathlib.Path, cache_tokens: int) -> None:
    """Less could not finish a long request, and more would never be used."""
    with pytest.raises(errors.InvalidRequest) as caught:
        load(tiny_path, context_length=256, parallel_sequences=4, cache_tokens=cache_tokens)
    assert [("config.cache_tokens", "from 256 to 1024")] == list(caught.value.violations)


def test_learnt_positions_are_not_stretched(tmp_path: pathlib.Path) -> None:
    """Beyond the last of them llama.cpp aborts, whatever rope says."""
    path = architectures.write_bert(tmp_path / "bert.gguf")
    trained = load(path, parallel_sequences=1).model.description.training_context_length
    with pytest.raises(errors.InvalidRequest) as caught:
        load(path, context_length=trained + 1, rope=models_pb2.Rope(freq_base=1e6))
    assert "config.context_length" == caught.value.violations[0][0]


def test_a_long_context_is_cut_to_the_default(tmp_path: pathlib.Path) -> None:
    """A model of a million tokens does not take all memory unasked."""
    path = tiny.write_tiny_model(tmp_path / "long.gguf", context_length=1 << 20)
    assert 4096 == load(path, parallel_sequences=1).config.context_length


def test_sizes_and_threads_are_in_force(tiny_path: pathlib.Path) -> None:
    """llama.cpp itself says what was asked; each sequence has the whole context, rounded up."""
    runner = load(
        tiny_path,
        context_length=300,
        parallel_sequences=3,
        threads=1,
        batch_threads=2,
        batch_size=64,
        micro_batch_size=16,
    )
    context = runner._context
    assert 3 * 512 == llama_cpp.llama_n_ctx(context)
    assert 512 == llama_cpp.llama_n_ctx_seq(context)
    assert 3 == llama_cpp.llama_n_seq_max(context)
    assert 64 == llama_cpp.llama_n_batch(context)
    assert 16 == llama_cpp.llama_n_ubatch(context)
    assert 1 == llama_cpp.llama_n_threads(context)
    assert 2 == llama_cpp.llama_n_threads_batch(context)
    assert not runner.model._context_params().kv_unified


# ggml_type of ggml.h.
GGML_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30,
}  # fmt: skip


@pytest.mark.parametrize("name", GGML_TYPES)
def test_a_cache_type_is_in_force(demo: LlamaRunner, name: str) -> None:
    """A context with such a cache can be made and used, and its answer is near that of F16."""
    kind = models_pb2.CacheType.Value(f"CACHE_TYPE_{name}")
    runner = load(
        demo_model_path(),
        context_length=256,
        parallel_sequences=1,
        key_cache_type=kind,
        value_cache_type=kind,
    )
    params = runner.model._context_params()
    assert (GGML_TYPES[name], GGML_TYPES[name]) == (params.type_k, params.type_v)
    needs_flash_attention = name.startswith("Q")
    assert needs_flash_attention == (runner.config.flash_attention == models_pb2.FLASH_ATTENTION_AUTO)
    tokens = tokens_of(demo, PROMPTS[0])
    tolerance = 3.0 if name.startswith(("Q4", "Q5")) else 0.5
    np.testing.assert_allclose(prefill(runner, 0, tokens), prefill(demo, 0, tokens), atol=tolerance)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("UNSPECIFIED", 0), ("AUTO", 0), ("OFF", 0), ("ON", 1)],  # llama_flash_attn_type of llama.h
)
def test_flash_attention_is_in_force(tiny_path: pathlib.Path, asked: str, expected: int) -> None:
    value = models_pb2.FlashAttention.Value(f"FLASH_ATTENTION_{asked}")
    runner = load(tiny_path, parallel_sequences=1, flash_attention=value)
    assert expected == runner.model._context_params().flash_attn_type
    assert 512 == runner.config.micro_batch_size


@pytest.mark.parametrize(
    ("asked", "micro_batch_size", "expected"),
    [
        ({}, 256, "OFF"),  # 4 heads x 256 x 65536 cells x 4 bytes are 256 MiB
        ({"micro_batch_size": 512}, 512, "AUTO"),
        ({"batch_size": 64}, 64, "OFF"),
        ({"context_length": 131072}, 128, "OFF"),
        ({"context_length": 131328}, 512, "AUTO"),
        ({"context_length": 1024, "cache_tokens": 131072, "parallel_sequences": 200}, 128, "OFF"),
    ],
)
def test_flash_attention_is_chosen_by_the_memory_that_its_absence_costs(
    tiny_path: pathlib.Path, asked: dict[str, Any], micro_batch_size: int, expected: str
) -> None:
    """The scores of a micro batch may need 256 MiB; a long context makes it smaller, unless somebody chose it."""
    rope = models_pb2.Rope(scaling=models_pb2.ROPE_SCALING_LINEAR)
    config = {"context_length": 65536, "parallel_sequences": 1, "rope": rope} | asked
    runner = load(tiny_path, **config)
    value = models_pb2.FlashAttention.Value(f"FLASH_ATTENTION_{expected}")
    assert (value, micro_batch_size) == (runner.config.flash_attention, runner.config.micro_batch_size)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("NONE", 0), ("LINEAR", 1), ("YARN", 2), ("LONGROPE", 3)],  # llama_rope_scaling_type of llama.h
)
def test_rope_is_in_force(tiny_path: pathlib.Path, scaling: str, expected: int) -> None:
    """Each value reaches llama.cpp; a context beyond the model's own is allowed with them."""
    rope = models_pb2.Rope(
        scaling=f"ROPE_SCALING_{scaling}",
        freq_base=20000,
        freq_scale=0.5,
        yarn_ext_factor=0.75,
        yarn_attn_factor=1.25,
        yarn_beta_fast=30,
        yarn_beta_slow=2,
        yarn_orig_context=256,
    )
    runner = load(tiny_path, context_length=1024, parallel_sequences=1, rope=rope)
    params = runner.model._context_params()
    assert expected == params.rope_scaling_type
    assert (20000, 0.5) == (params.rope_freq_base, params.rope_freq_scale)
    assert (0.75, 1.25) == (params.yarn_ext_factor, params.yarn_attn_factor)
    assert (30, 2, 256) == (params.yarn_beta_fast, params.yarn_beta_slow, params.yarn_orig_ctx)
    assert 1024 == llama_cpp.llama_n_ctx_seq(runner._context)


def test_rope_changes_the_logits(tiny_path: pathlib.Path, tiny_runner: LlamaRunner) -> None:
    """The values do not stop at a struct."""
    scaled = load(tiny_path, parallel_sequences=1, rope=models_pb2.Rope(freq_base=20000, freq_scale=0.5))
    tiny_runner.arrange([Trim(0, 0)])
    tokens = list(range(40))
    assert np.abs(prefill(scaled, 0, tokens) - prefill(tiny_runner, 0, tokens)).max() > 0.1


def test_unset_rope_is_the_models_own(tiny_runner: LlamaRunner) -> None:
    params, default = tiny_runner.model._context_params(), llama_cpp.llama_context_default_params()
    for name in (
        "rope_scaling_type",
        "rope_freq_base",
        "rope_freq_scale",
        "yarn_attn_factor",
        "yarn_orig_ctx",
    ):
        assert getattr(default, name) == getattr(params, name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, llama_cpp.LLAMA_LOAD_MODE_AUTO),
        ({"mmap": True}, llama_cpp.LLAMA_LOAD_MODE_MMAP),
        ({"mmap": False}, llama_cpp.LLAMA_LOAD_MODE_NONE),
        ({"mlock": True}, llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK),
        ({"mlock": False}, llama_cpp.LLAMA_LOAD_MODE_MMAP),
        ({"mmap": True, "mlock": True}, llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK),
        ({"mmap": False, "mlock": True}, llama_cpp.LLAMA_LOAD_MODE_MLOCK),
    ],
)
def test_the_way_of_reading_is_in_force(config: dict[str, Any], expected: int) -> None:
    assert expected == LlamaModel._model_params(models_pb2.LoadConfig(**config)).load_mode


@pytest.mark.parametrize("mmap", [True, False])
def test_a_model_loads_with_and_without_a_map(tiny_path: pathlib.Path, mmap: bool) -> None:
    runner = load(tiny_path, parallel_sequences=1, mmap=mmap)
    assert mmap == runner.config.mmap
    assert np.isfinite(prefill(runner, 0, [1, 2, 3])).all()


def test_the_gpu_settings_are_in_force() -> None:
    default = llama_cpp.llama_model_default_params()
    unset = LlamaModel._model_params(models_pb2.LoadConfig())
    assert (default.n_gpu_layers, default.main_gpu) == (unset.n_gpu_layers, unset.main_gpu)
    assert not unset.tensor_split
    asked = models_pb2.LoadConfig(gpu_layers=7, main_gpu=3, tensor_split=[3, 1])
    params = LlamaModel._model_params(asked)
    assert (7, 3) == (params.n_gpu_layers, params.main_gpu)
    split = [params.tensor_split[index] for index in range(llama_cpp.llama_max_devices())]
    assert [3, 1, *[0] * (len(split) - 2)] == split
    assert -1 == LlamaModel._model_params(models_pb2.LoadConfig(gpu_layers=-1)).n_gpu_layers
    assert 0 == LlamaModel._model_params(models_pb2.LoadConfig(gpu_layers=0)).n_gpu_layers


def test_a_tensor_split_lives_as_long_as_the_model(tiny_path: pathlib.Path) -> None:
    """The model keeps the pointer, so the runner keeps what it points to."""
    runner = load(tiny_path, parallel_sequences=1, tensor_split=[0.25])
    assert 0.25 == runner.model._params.tensor_split[0]


def test_deterministic_means_one_sequence(tiny_path: pathlib.Path) -> None:
    config = load(tiny_path, parallel_sequences=4, deterministic=True).config
    assert (True, 1) == (config.deterministic, config.parallel_sequences)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"context_length": tiny.CONTEXT_LENGTH + 1}, ["config.context_length"]),
        ({"batch_size": 7}, ["config.batch_size"]),
        ({"parallel_sequences": 20, "batch_size": 19}, ["config.batch_size"]),
        ({"micro_batch_size": 513}, ["config.micro_batch_size"]),
        ({"batch_size": 32, "micro_batch_size": 33}, ["config.micro_batch_size"]),
        ({"key_cache_type": models_pb2.CACHE_TYPE_Q8_0}, ["config.key_cache_type"]),
        (
            {
                "value_cache_type": models_pb2.CACHE_TYPE_Q4_0,
                "flash_attention": models_pb2.FLASH_ATTENTION_OFF,
            },
            ["config.value_cache_type"],
        ),
        ({"tensor_split": [1.0] * 1000}, ["config.tensor_split"]),
    ],
)
def test_an_impossible_value_names_its_field(
    tiny_path: pathlib.Path, config: dict[str, object], fields: list[str]
) -> None:
    """What cannot be is the caller's to mend, and is told as that. The tiny model's heads are narrower than a block."""
    with pytest.raises(errors.InvalidRequest) as caught:
        load(tiny_path, **config)
    assert fields == violated(caught)


def test_a_step_grows_with_the_sequences(tiny_path: pathlib.Path) -> None:
    """Many sequences need no batch size to be set."""
    config = load(tiny_path, context_length=8, parallel_sequences=256).config
    assert (256, 512) == (config.parallel_sequences, config.batch_size)


@pytest.mark.parametrize("context_length", [1, 7])
def test_a_model_without_a_usable_context_is_refused(tmp_path: pathlib.Path, context_length: int) -> None:
    path = tiny.write_tiny_model(tmp_path / "short.gguf", context_length=context_length)
    with pytest.raises(errors.ModelFileInvalid):
        load(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("not a model")
    with pytest.raises(errors.ModelFileInvalid) as caught:
        load(path)
    assert str(path) not in caught.value.message


# Memory and cores.


def test_an_absurd_cache_is_refused_before_memory_is_touched(
    tiny_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 GiB of cells: refused by arithmetic; no context is ever asked for."""
    monkeypatch.setattr(llama_model, "available_memory_bytes", lambda: 32 << 30)
    monkeypatch.setattr(
        llama_cpp, "llama_init_from_model", lambda *_: pytest.fail("the context was asked for")
    )
    with pytest.raises(errors.InsufficientMemory) as caught:
        load(tiny_path, context_length=1 << 20, parallel_sequences=256, rope=models_pb2.Rope(freq_scale=0.5))
    cells = (1 << 20) * 256
    needed = cells * tiny.NUM_LAYERS * tiny.NUM_KV_HEADS * tiny.HEAD_WIDTH * (2 + 2)
    assert {"neededBytes": str(needed), "availableBytes": str(32 << 30)} == caught.value.metadata


def test_the_cache_is_counted_as_llama_cpp_makes_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the head width that the file says and the rounded context: exactly enough is taken, a byte less refused."""
    path = tiny.write_tiny_model(tmp_path / "wide.gguf", head_width=64)
    # 300 tokens are 512 cells; F32 keys have 4 bytes and F16 values 2.
    needed = 512 * 3 * tiny.NUM_LAYERS * tiny.NUM_KV_HEADS * 64 * (4 + 2)
    config = {"context_length": 300, "parallel_sequences": 3, "key_cache_type": models_pb2.CACHE_TYPE_F32}
    monkeypatch.setattr(llama_model, "available_memory_bytes", lambda: needed)
    load(path, **config)
    monkeypatch.setattr(llama_model, "available_memory_bytes", lambda: needed - 1)
    with pytest.raises(errors.InsufficientMemory):
        load(path, **config)


def test_without_a_word_of_the_system_memory_is_not_checked(
    tiny_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_model, "available_memory_bytes", lambda: None)
    load(tiny_path, parallel_sequences=1)


@dataclasses.dataclass(frozen=True)
class Cgroup:
    """A container's files under /sys/fs/cgroup."""

    path: pathlib.Path

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.path / name.replace("_", ".")).write_text(text)


@pytest.fixture
def cgroup(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Cgroup:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    return Cgroup(tmp_path)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (None, 6), ("max 100000", 6), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1),
        ("900000 100000", 6), ("nonsense", 6),
    ],
)  # fmt: skip
def test_usable_cores_are_those_of_the_affinity_and_the_quota(
    cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch, quota: str | None, expected: int
) -> None:
    """The smaller of both, and at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    if quota is not None:
        cgroup.write(cpu_max=quota)
    assert expected == num_usable_cores()


def test_available_memory_is_bounded_by_the_container(cgroup: Cgroup) -> None:
    """The limit less what is used, cached files not counted; a container without a limit changes nothing."""
    machine = available_memory_bytes()
    if machine is None:
        pytest.skip("the system does not tell its memory")
    cgroup.write(memory_max="5000000", memory_current="2000000")
    cgroup.write(memory_stat="anon 1000000\nactive_file 300000\ninactive_file 200000\n")
    assert 3500000 == available_memory_bytes()
    cgroup.write(memory_current="9000000")
    assert 0 == available_memory_bytes()
    cgroup.write(memory_max="max")
    assert machine == pytest.approx(available_memory_bytes(), rel=0.5)


def test_the_log_of_llama_cpp_survives_bytes_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A file's strings are printed by the loader; they need not be UTF-8. Debug lines are left out."""
    callback = ctypes.cast(
        llama_model._log_to_stderr, ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    )
    callback(2, b"name \xff\xfe\n", None)
    callback(1, b"debug\n", None)
    assert "name ��\n" == capsys.readouterr().err
