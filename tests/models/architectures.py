"""Writes tiny GGUF models whose memory is not the plain KV cache of tiny.py, models of embeddings, and adapters.

A few layers of random weights over tiny.py's vocabulary of bytes. They are scaled so that a greedy answer depends on all of
the prompt that the model can see, does not run into a loop at once, and seldom has two tokens that are equally likely.
"""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Sequence

import gguf
import numpy as np
import numpy.typing as npt

from . import tiny

WIDTH = 64
HIDDEN_WIDTH = 128
NUM_HEADS = 4
NUM_KV_HEADS = 2
HEAD_WIDTH = WIDTH // NUM_HEADS
CONTEXT_LENGTH = 512
WINDOW = 32
# Standard deviation of the logits. The wider they lie, the rarer a tie, and the larger a rounding error in them.
LOGIT_DEVIATION = 4.8

# Of the recurrent layers. llama.cpp wants an inner width of twice the width.
INNER_WIDTH = 2 * WIDTH
STATE_WIDTH = 16
CONVOLUTION_WIDTH = 4
TIME_STEP_RANK = 4
NUM_STATE_HEADS = 8

LORA_RANK = 4
LORA_ALPHA = 8.0


def write_mamba(path: pathlib.Path, *, seed: int = tiny.SEED) -> pathlib.Path:
    """Writes a recurrent model: each layer has a state that only goes forward, and there is no attention."""
    model = _Model(path, "mamba", num_layers=3, seed=seed)
    model.add_state_space(time_step_rank=TIME_STEP_RANK)
    for layer in range(3):
        model.constant(f"blk.{layer}.attn_norm.weight", WIDTH, 1)
        model.add_mamba(layer)
    return model.finish()


def write_mamba2(path: pathlib.Path, *, seed: int = tiny.SEED) -> pathlib.Path:
    """Writes a recurrent model of the second kind: the states of a head share one decay."""
    model = _Model(path, "mamba2", num_layers=3, seed=seed)
    model.add_state_space(time_step_rank=NUM_STATE_HEADS)
    model.writer.add_ssm_group_count(1)
    for layer in range(3):
        model.constant(f"blk.{layer}.attn_norm.weight", WIDTH, 1)
        model.add_mamba2(layer)
    return model.finish()


def write_jamba(path: pathlib.Path, *, seed: int = tiny.SEED) -> pathlib.Path:
    """Writes a hybrid model: recurrent layers before and behind one of attention."""
    num_kv_heads = (0, NUM_KV_HEADS, 0)
    model = _Model(path, "jamba", num_layers=len(num_kv_heads), seed=seed)
    model.add_state_space(time_step_rank=TIME_STEP_RANK)
    model.add_heads(num_kv_heads)
    for layer, num_kv in enumerate(num_kv_heads):
        model.constant(f"blk.{layer}.attn_norm.weight", WIDTH, 1)
        if num_kv:
            model.add_attention(layer)
        else:
            model.add_mamba(layer)
            for name, width in (("dt", TIME_STEP_RANK), ("b", STATE_WIDTH), ("c", STATE_WIDTH)):
                model.constant(f"blk.{layer}.ssm_{name}_norm.weight", width, 1)
        model.add_feed_forward(layer)
    return model.finish()


def write_lfm2(path: pathlib.Path, *, window: int = WINDOW, seed: int = tiny.SEED) -> pathlib.Path:
    """Writes a hybrid model whose attention has a sliding window; its recurrent layers are short convolutions."""
    num_kv_heads = (0, NUM_KV_HEADS, 0)
    model = _Model(
        path, "lfm2", num_layers=len(num_kv_heads), seed=seed, output_norm="token_embd_norm.weight"
    )
    model.writer.add_shortconv_l_cache(CONVOLUTION_WIDTH)
    model.writer.add_sliding_window(window)
    model.add_heads(num_kv_heads)
    for layer, num_kv in enumerate(num_kv_heads):
        block = f"blk.{layer}"
        model.constant(f"{block}.attn_norm.weight", WIDTH, 1)
        if num_kv:
            model.add_attention(layer, norm=1.0)
        else:
            model.matrix(f"{block}.shortconv.in_proj.weight", 3 * WIDTH, WIDTH)
            model.matrix(f"{block}.shortconv.conv.weight", WIDTH, CONVOLUTION_WIDTH)
            model.matrix(f"{block}.shortconv.out_proj.weight", WIDTH, WIDTH)
        model.add_feed_forward(layer)
    return model.finish()


def write_gemma3(
    path: pathlib.Path,
    *,
    window: int = WINDOW,
    pattern: Sequence[bool] = (True, False, True),
    seed: int = tiny.SEED,
) -> pathlib.Path:
    """Writes a model with a sliding window in the layers where `pattern` is true; the others see the whole context."""
    return _gemma3(path, "gemma3", window=window, pattern=pattern, seed=seed).finish()


def write_gemma_embedding(
    path: pathlib.Path, *, pooling_type: gguf.PoolingType = gguf.PoolingType.MEAN, seed: int = tiny.SEED
) -> pathlib.Path:
    """Writes an encoder whose file does not say that it is one: only the name of its architecture does."""
    model = _gemma3(path, "gemma-embedding", window=WINDOW, pattern=(True, False, True), seed=seed)
    model.writer.add_pooling_type(pooling_type)
    return model.finish()


def _gemma3(
    path: pathlib.Path, architecture: str, *, window: int, pattern: Sequence[bool], seed: int
) -> _Model:
    # The architecture multiplies its embeddings by the root of their width.
    model = _Model(path, architecture, num_layers=len(pattern), seed=seed, embedding_scale=WIDTH**-0.5)
    model.writer.add_sliding_window(window)
    model.writer.add_sliding_window_pattern(pattern)
    model.add_heads([NUM_KV_HEADS] * len(pattern))
    for layer in range(len(pattern)):
        block = f"blk.{layer}"
        model.constant(f"{block}.attn_norm.weight", WIDTH, 1)
        model.add_attention(layer, norm=1.5)
        model.constant(f"{block}.post_attention_norm.weight", WIDTH, 1)
        model.add_feed_forward(layer)
        model.constant(f"{block}.post_ffw_norm.weight", WIDTH, 1)
    return model


def write_bert(
    path: pathlib.Path, *, pooling_type: gguf.PoolingType = gguf.PoolingType.MEAN, seed: int = tiny.SEED
) -> pathlib.Path:
    """Writes an encoder: it answers with a vector of WIDTH values, and every token sees all the others.

    The vocabulary puts BOS before a text, which is the token that CLS pooling reads, and EOS behind it.
    """
    model = _Model(path, "bert", num_layers=2, seed=seed, output_norm=None)
    model.writer.add_pooling_type(pooling_type)
    model.writer.add_causal_attention(False)
    model.writer.add_layer_norm_eps(1e-5)
    model.writer.add_token_type_count(2)
    model.writer.add_add_eos_token(True)
    model.add_heads([NUM_HEADS] * 2)
    model.matrix("token_types.weight", 2, WIDTH)
    # Half as large as a token's own vector.
    model.matrix("position_embd.weight", CONTEXT_LENGTH, WIDTH, scale=0.5 * WIDTH**0.5)
    model.layer_norm("token_embd_norm")
    for layer in range(2):
        block = f"blk.{layer}"
        for name in ("q", "k", "v", "output"):
            model.matrix(f"{block}.attn_{name}.weight", WIDTH, WIDTH)
            model.constant(f"{block}.attn_{name}.bias", WIDTH, 0)
        model.layer_norm(f"{block}.attn_output_norm")
        model.matrix(f"{block}.ffn_up.weight", HIDDEN_WIDTH, WIDTH)
        model.constant(f"{block}.ffn_up.bias", HIDDEN_WIDTH, 0)
        model.matrix(f"{block}.ffn_down.weight", WIDTH, HIDDEN_WIDTH)
        model.constant(f"{block}.ffn_down.bias", WIDTH, 0)
        model.layer_norm(f"{block}.layer_output_norm")
    return model.finish()


class LoraFault(enum.Enum):
    """What is wrong with an adapter."""

    # llama.cpp refuses these.
    ARCHITECTURE = "for another architecture"
    WIDTH = "for a model of another width"
    # Of these it dies: of the first while it reads the file, of the others when the adapter is first used.
    ALPHA_TYPE = "alpha is a whole number"
    RANK = "the halves for the token embedding have different ranks"
    ELEMENT_TYPE = "the weights are 64-bit floats"


def write_lora(
    path: pathlib.Path,
    *,
    alpha: float = LORA_ALPHA,
    fault: LoraFault | None = None,
    seed: int = tiny.SEED,
) -> pathlib.Path:
    """Writes an adapter of rank LORA_RANK for the model of tiny.py, strong enough to change its answers at once."""
    writer = gguf.GGUFWriter(path, "qwen2" if fault is LoraFault.ARCHITECTURE else "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    if fault is LoraFault.ALPHA_TYPE:
        writer.add_uint32("adapter.lora.alpha", int(alpha))
    else:
        writer.add_float32("adapter.lora.alpha", alpha)
    random = np.random.default_rng(seed)
    kind = np.float64 if fault is LoraFault.ELEMENT_TYPE else np.float32

    def add(name: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns)) * columns**-0.5
        writer.add_tensor(name, weights.astype(kind))

    columns = tiny.WIDTH // 2 if fault is LoraFault.WIDTH else tiny.WIDTH
    for layer in range(tiny.NUM_LAYERS):
        for name, rows in (
            ("attn_q", tiny.WIDTH),
            ("attn_output", tiny.WIDTH),
            ("ffn_up", tiny.HIDDEN_WIDTH),
        ):
            add(f"blk.{layer}.{name}.weight.lora_a", LORA_RANK, columns)
            add(f"blk.{layer}.{name}.weight.lora_b", rows, LORA_RANK)
    if fault is LoraFault.RANK:
        # Both halves stand transposed for the embedding.
        add("token_embd.weight.lora_a", tiny.NUM_TOKENS, LORA_RANK)
        add("token_embd.weight.lora_b", tiny.WIDTH, 2 * LORA_RANK)
    return _written(writer, path)


class _Model:
    """A file under way: its metadata, and random weights from one seed in the order in which they are added."""

    def __init__(
        self,
        path: pathlib.Path,
        architecture: str,
        *,
        num_layers: int,
        seed: int,
        embedding_scale: float = 1.0,
        output_norm: str | None = "output_norm.weight",
    ) -> None:
        self._path = path
        self._random = np.random.default_rng(seed)
        self.writer = gguf.GGUFWriter(path, architecture)
        self.writer.add_name(f"tiny {architecture}")
        self.writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        self.writer.add_context_length(CONTEXT_LENGTH)
        self.writer.add_embedding_length(WIDTH)
        self.writer.add_block_count(num_layers)
        self.writer.add_feed_forward_length(HIDDEN_WIDTH)
        self.writer.add_layer_norm_rms_eps(1e-5)
        self.writer.add_vocab_size(tiny.NUM_TOKENS)
        tiny.add_vocabulary(self.writer)
        self.writer.add_chat_template(tiny.CHAT_TEMPLATE)
        self._add("token_embd.weight", self._normal(tiny.NUM_TOKENS, WIDTH) * embedding_scale)
        if output_norm is not None:
            self.constant(output_norm, WIDTH, 1)
            self.matrix("output.weight", tiny.NUM_TOKENS, WIDTH, scale=LOGIT_DEVIATION)

    def finish(self) -> pathlib.Path:
        """Writes the file and returns its path."""
        return _written(self.writer, self._path)

    # Metadata.

    def add_heads(self, num_kv_heads: Sequence[int]) -> None:
        """Adds the heads of attention; a layer with 0 of them for keys and values is a recurrent one."""
        self.writer.add_head_count(NUM_HEADS)
        self.writer.add_head_count_kv(list(num_kv_heads))
        self.writer.add_key_length(HEAD_WIDTH)
        self.writer.add_value_length(HEAD_WIDTH)
        self.writer.add_rope_dimension_count(HEAD_WIDTH)
        self.writer.add_rope_freq_base(10000.0)

    def add_state_space(self, *, time_step_rank: int) -> None:
        """Adds the widths of the recurrent layers."""
        self.writer.add_ssm_conv_kernel(CONVOLUTION_WIDTH)
        self.writer.add_ssm_inner_size(INNER_WIDTH)
        self.writer.add_ssm_state_size(STATE_WIDTH)
        self.writer.add_ssm_time_step_rank(time_step_rank)

    # Weights of a layer.

    def add_attention(self, layer: int, *, norm: float | None = None) -> None:
        """Adds grouped attention. Queries and keys are normed to the size `norm`: the larger, the sharper it looks."""
        block = f"blk.{layer}"
        self.matrix(f"{block}.attn_q.weight", NUM_HEADS * HEAD_WIDTH, WIDTH)
        self.matrix(f"{block}.attn_k.weight", NUM_KV_HEADS * HEAD_WIDTH, WIDTH)
        self.matrix(f"{block}.attn_v.weight", NUM_KV_HEADS * HEAD_WIDTH, WIDTH)
        self.matrix(f"{block}.attn_output.weight", WIDTH, NUM_HEADS * HEAD_WIDTH)
        if norm is not None:
            self.constant(f"{block}.attn_q_norm.weight", HEAD_WIDTH, norm)
            self.constant(f"{block}.attn_k_norm.weight", HEAD_WIDTH, norm)

    def add_feed_forward(self, layer: int) -> None:
        """Adds a gated feed-forward network."""
        block = f"blk.{layer}"
        self.constant(f"{block}.ffn_norm.weight", WIDTH, 1)
        self.matrix(f"{block}.ffn_gate.weight", HIDDEN_WIDTH, WIDTH)
        self.matrix(f"{block}.ffn_up.weight", HIDDEN_WIDTH, WIDTH)
        self.matrix(f"{block}.ffn_down.weight", WIDTH, HIDDEN_WIDTH)

    def add_mamba(self, layer: int) -> None:
        """Adds a state space of the first kind; each row of the inner width has a decay per state."""
        block = f"blk.{layer}"
        self.matrix(f"{block}.ssm_in.weight", 2 * INNER_WIDTH, WIDTH)
        self.matrix(f"{block}.ssm_conv1d.weight", INNER_WIDTH, CONVOLUTION_WIDTH)
        self.constant(f"{block}.ssm_conv1d.bias", INNER_WIDTH, 0)
        self.matrix(f"{block}.ssm_x.weight", TIME_STEP_RANK + 2 * STATE_WIDTH, INNER_WIDTH)
        self.matrix(f"{block}.ssm_dt.weight", INNER_WIDTH, TIME_STEP_RANK)
        self.constant(f"{block}.ssm_dt.bias", INNER_WIDTH, 0)
        self._add(f"{block}.ssm_a", np.tile(-_decays(STATE_WIDTH), (INNER_WIDTH, 1)))
        self.constant(f"{block}.ssm_d", INNER_WIDTH, 1)
        self.matrix(f"{block}.ssm_out.weight", WIDTH, INNER_WIDTH)

    def add_mamba2(self, layer: int) -> None:
        """Adds a state space of the second kind, in one group."""
        block = f"blk.{layer}"
        convolved = INNER_WIDTH + 2 * STATE_WIDTH
        self.matrix(f"{block}.ssm_in.weight", INNER_WIDTH + convolved + NUM_STATE_HEADS, WIDTH)
        self.matrix(f"{block}.ssm_conv1d.weight", convolved, CONVOLUTION_WIDTH)
        self.constant(f"{block}.ssm_conv1d.bias", convolved, 0)
        self.constant(f"{block}.ssm_dt.bias", NUM_STATE_HEADS, 0)
        self._add(f"{block}.ssm_a", -_decays(NUM_STATE_HEADS)[:, None])
        self._add(f"{block}.ssm_d", np.ones((NUM_STATE_HEADS, 1)))
        self._add(f"{block}.ssm_norm.weight", np.ones((1, INNER_WIDTH)))
        self.matrix(f"{block}.ssm_out.weight", WIDTH, INNER_WIDTH)

    # Tensors.

    def matrix(self, name: str, rows: int, columns: int, *, scale: float = 1.0) -> None:
        """Adds a random matrix that keeps the size of what it multiplies, times `scale`."""
        self._add(name, self._normal(rows, columns) * (scale * columns**-0.5))

    def layer_norm(self, name: str) -> None:
        """Adds a norm with weight and bias that does nothing more."""
        self.constant(f"{name}.weight", WIDTH, 1)
        self.constant(f"{name}.bias", WIDTH, 0)

    def constant(self, name: str, width: int, value: float) -> None:
        """Adds a vector of one value."""
        self._add(name, np.full(width, value))

    def _normal(self, rows: int, columns: int) -> npt.NDArray[np.float64]:
        return self._random.standard_normal((rows, columns))

    def _add(self, name: str, weights: npt.NDArray[np.float64]) -> None:
        self.writer.add_tensor(name, weights.astype(np.float32))


def _decays(count: int) -> npt.NDArray[np.float64]:
    """Returns how fast states forget, from hundreds of tokens to one."""
    return np.geomspace(0.002, 1.0, count)


def _written(writer: gguf.GGUFWriter, path: pathlib.Path) -> pathlib.Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
