"""The model that everything is measured with: the shape of Qwen2-0.5B and its vocabulary, with random weights in Q8_0.

What a model says does not matter here, only what it costs; so nothing has to be downloaded and everybody can make the same
file. Greedy answers are words that never end, and their text gives the same tokens again, as a real model's mostly does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tools import setup_env

from .build import VOCABULARY, WORK


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2 model."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int

    @property
    def path(self) -> Path:
        """Where the file is."""
        return WORK / f"{self.name}-random-q8_0.gguf"


QWEN2_05B = Shape("qwen2-0.5b", layers=24, width=896, heads=14, kv_heads=2, feed_forward=4864)
# As small as can be with the whole vocabulary: for what depends on the vocabulary alone.
TINY = Shape("qwen2-tiny", layers=2, width=64, heads=2, kv_heads=1, feed_forward=128)

CONTEXT = 32768
ROPE_BASE = 1e6
NORM_EPSILON = 1e-6
SEED = 20261121

# Keeps what a layer adds of the order of one, whatever a layer reads.
WEIGHT_SCALE = 0.02
BIAS_SCALE = 0.1

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(shape: Shape = QWEN2_05B) -> Path:
    """Writes a model, unless this very code has written it, and returns where it is."""
    path = shape.path
    stamp = path.with_suffix(".stamp")
    made_of = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if path.exists() and stamp.exists() and stamp.read_text() == made_of:
        return path
    setup_env.step(f"Writing the model {shape.name}, once")
    vocabulary = gguf.GGUFReader(VOCABULARY)
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "qwen2")
    writer.add_name(f"{shape.name}, random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_chat_template(TEMPLATE)
    tokens = _copy_tokenizer(vocabulary, writer)
    for name, values in _tensors(shape, tokens):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    stamp.write_text(made_of)
    return path


def _copy_tokenizer(vocabulary: Any, writer: Any) -> list[str]:
    """Copies every field of the tokenizer but its chat template. Returns the tokens' texts."""
    for key, field in vocabulary.fields.items():
        if key.startswith("tokenizer.ggml."):
            kind, sub_kind = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), kind, sub_kind)
    return list(vocabulary.fields["tokenizer.ggml.tokens"].contents())


def _tensors(shape: Shape, tokens: list[str]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yields every tensor [rows, columns] in the order of the file; the output layer is the embedding's own."""
    random = np.random.default_rng(SEED)
    width, head_width = shape.width, shape.width // shape.heads

    def normal(*shape: int, scale: float = WEIGHT_SCALE) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    embedding = normal(len(tokens), width)
    # A row of zeros has the logit zero, and among many words one is always above.
    embedding[[re.fullmatch("Ġ[A-Za-z]+", token) is None for token in tokens]] = 0
    yield "token_embd.weight", embedding
    yield "output_norm.weight", np.ones(width, dtype=np.float32)
    for layer in range(shape.layers):
        name = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            yield f"{name}.{norm}.weight", np.ones(width, dtype=np.float32)
        for part, heads in (("attn_q", shape.heads), ("attn_k", shape.kv_heads), ("attn_v", shape.kv_heads)):
            yield f"{name}.{part}.weight", normal(heads * head_width, width)
            yield f"{name}.{part}.bias", normal(heads * head_width, scale=BIAS_SCALE)
        yield f"{name}.attn_output.weight", normal(width, width)
        for part in ("ffn_gate", "ffn_up"):
            yield f"{name}.{part}.weight", normal(shape.feed_forward, width)
        yield f"{name}.ffn_down.weight", normal(width, shape.feed_forward)
