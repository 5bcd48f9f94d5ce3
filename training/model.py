"""The network: a small Llama in JAX, laid out as llama.cpp's `llama` architecture expects it.

Weights are stored (output, input) as in a GGUF file, and rotary embeddings turn interleaved pairs of
channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

Parameters = dict[str, jax.Array]


@dataclass(frozen=True)
class Shape:
    """Widths in channels. Each must be a multiple of 32, so that the file could also be quantized to Q8_0."""

    num_tokens: int = 1024
    num_layers: int = 4
    width: int = 192
    num_heads: int = 3
    feed_forward: int = 448
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


def init(shape: Shape, seed: int) -> Parameters:
    """Return float32 parameters by their GGUF names; what writes to the residual stream starts at zero."""
    keys = iter(jax.random.split(jax.random.key(seed), 1 + 7 * shape.num_layers))

    def matrix(rows: int, columns: int) -> jax.Array:
        return jax.random.normal(next(keys), (rows, columns)) * columns**-0.5

    width, feed_forward = shape.width, shape.feed_forward
    parameters = {
        "token_embd": jax.random.normal(next(keys), (shape.num_tokens, width)) * 0.02,
        "output_norm": jnp.ones(width),
    }
    for layer in range(shape.num_layers):
        parameters |= {
            f"blk.{layer}.attn_norm": jnp.ones(width),
            f"blk.{layer}.attn_q": matrix(width, width),
            f"blk.{layer}.attn_k": matrix(width, width),
            f"blk.{layer}.attn_v": matrix(width, width),
            f"blk.{layer}.attn_output": jnp.zeros((width, width)),
            f"blk.{layer}.ffn_norm": jnp.ones(width),
            f"blk.{layer}.ffn_gate": matrix(feed_forward, width),
            f"blk.{layer}.ffn_up": matrix(feed_forward, width),
            f"blk.{layer}.ffn_down": jnp.zeros((width, feed_forward)),
        }
    return parameters


def logits(
    shape: Shape, parameters: Parameters, tokens: jax.Array, segments: jax.Array, positions: jax.Array
) -> jax.Array:
    """Return float32 logits [batch, length, num_tokens] for int32 `tokens` [batch, length].

    A token sees the tokens before it with the same number in `segments` [batch, length], that is, its own
    conversation; `positions` [batch, length] count from the start of the conversation.
    """
    cosine, sine = _rotation(shape, positions)

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], shape.num_heads, shape.head_width)

    x = parameters["token_embd"][tokens]
    for layer in range(shape.num_layers):
        weight = {name: parameters[f"blk.{layer}.{name}"] for name in LAYER_WEIGHTS}
        y = _norm(shape, x, weight["attn_norm"])
        q = _rotate(heads(y @ _split_pairs(shape, weight["attn_q"]).T), cosine, sine)
        k = _rotate(heads(y @ _split_pairs(shape, weight["attn_k"]).T), cosine, sine)
        v = heads(y @ weight["attn_v"].T)
        y = _attention(q * shape.head_width**-0.5, k, v, segments).reshape(x.shape)
        x = x + y @ weight["attn_output"].T
        y = _norm(shape, x, weight["ffn_norm"])
        y = jax.nn.silu(y @ weight["ffn_gate"].T) * (y @ weight["ffn_up"].T)
        x = x + y @ weight["ffn_down"].T
    return _norm(shape, x, parameters["output_norm"]) @ parameters["token_embd"].T


ATTENTION_BLOCK = 128
LAYER_WEIGHTS = [
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
]  # fmt: skip


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Return the causal attention [batch, length, heads, head_width] within each segment.

    Taken in blocks of queries, so that the half of the scores that nobody may see is mostly not computed: on
    a CPU the scores cost more than all the matrices.
    """
    length = q.shape[1]
    blocks = []
    for start in range(0, length, ATTENTION_BLOCK):
        stop = min(start + ATTENTION_BLOCK, length)
        past = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        mask = past & (segments[:, start:stop, None] == segments[:, None, :stop])
        scores = jnp.einsum("bqhd,bkhd->bhqk", q[:, start:stop], k[:, :stop])
        shares = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9))
        blocks.append(jnp.einsum("bhqk,bkhd->bqhd", shares, v[:, :stop]))
    return jnp.concatenate(blocks, axis=1)


def _norm(shape: Shape, x: jax.Array, gain: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + shape.norm_epsilon) * gain


def _rotation(shape: Shape, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine [batch, length, 1, head_width / 2] of the angle of each pair of channels."""
    frequencies = shape.rope_base ** (-jnp.arange(0, shape.head_width, 2) / shape.head_width)
    angles = positions[:, :, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _split_pairs(shape: Shape, weight: jax.Array) -> jax.Array:
    """Reorder the rows of `weight` so that each head gives the first channels of its pairs, then the second
    ones.

    llama.cpp turns the pairs (0, 1), (2, 3) and so on. Queries and keys may be reordered alike without
    changing their products, and two halves are turned much faster than interleaved channels.
    """
    pairs = weight.reshape(shape.num_heads, shape.head_width // 2, 2, shape.width)
    return pairs.swapaxes(1, 2).reshape(shape.width, shape.width)


def _rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turn the pairs of `x` [batch, length, heads, head_width], split in halves, by their angles."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
