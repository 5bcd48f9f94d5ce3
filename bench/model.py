"""The model that everything is measured with: the shape of Qwen2-0.5B and its vocabulary, with random weights in Q8_0.

What a model says does not matter here, only what it costs; so nothing has to be downloaded and everybody can make the same
file. Greedy answers are words that never end, and their text gives the same tokens again, as a real model's mostly does.
"""

from __future__ import annotations

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

PATH = WORK / "qwen2-0.5b-random-q8_0.gguf"

LAYERS = 24
WIDTH = 896
HEADS = 14
KV_HEADS = 2
HEAD_WIDTH = WIDTH // HEADS
FEED_FORWARD = 4864
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


def make() -> Path:
    """Writes the model, unless this very code has written it, and returns where it is."""
    stamp = PATH.with_suffix(".stamp")
    made_of = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if PATH.exists() and stamp.exists() and stamp.read_text() == made_of:
        return PATH
    setup_env.step("Writing the model, once: 0.5 GB")
    vocabulary = gguf.GGUFReader(VOCABULARY)
    partial = PATH.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "qwen2")
    writer.add_name("Qwen2 0.5B shape, random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_chat_template(TEMPLATE)
    tokens = _copy_tokenizer(vocabulary, writer)
    for name, values in _tensors(tokens):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(PATH)
    stamp.write_text(made_of)
    return PATH


def _copy_tokenizer(vocabulary: Any, writer: Any) -> list[str]:
    """Copies every field of the tokenizer but its chat template. Returns the tokens' texts."""
    for key, field in vocabulary.fields.items():
        if key.startswith("tokenizer.ggml."):
            kind, sub_kind = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), kind, sub_kind)
    return list(vocabulary.fields["tokenizer.ggml.tokens"].contents())


def _tensors(tokens: list[str]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yields every tensor [rows, columns] in the order of the file; the output layer is the embedding's own."""
    random = np.random.default_rng(SEED)

    def normal(*shape: int, scale: float = WEIGHT_SCALE) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    embedding = normal(len(tokens), WIDTH)
    # A row of zeros has the logit zero, and among many words one is always above.
    embedding[[re.fullmatch("Ġ[A-Za-z]+", token) is None for token in tokens]] = 0
    yield "token_embd.weight", embedding
    yield "output_norm.weight", np.ones(WIDTH, dtype=np.float32)
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            yield f"{name}.{norm}.weight", np.ones(WIDTH, dtype=np.float32)
        for part, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
            yield f"{name}.{part}.weight", normal(heads * HEAD_WIDTH, WIDTH)
            yield f"{name}.{part}.bias", normal(heads * HEAD_WIDTH, scale=BIAS_SCALE)
        yield f"{name}.attn_output.weight", normal(WIDTH, WIDTH)
        for part in ("ffn_gate", "ffn_up"):
            yield f"{name}.{part}.weight", normal(FEED_FORWARD, WIDTH)
        yield f"{name}.ffn_down.weight", normal(WIDTH, FEED_FORWARD)
