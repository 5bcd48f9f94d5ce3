"""Writes tiny GGUF models: two layers of random weights over a vocabulary of bytes, well under a megabyte.

What such a model says is noise, which is the point: its bytes are often no UTF-8, and sometimes several make one character.
"""

from __future__ import annotations

import pathlib

import gguf
import numpy as np

SEED = 20240229
NUM_LAYERS = 2
WIDTH = 64
NUM_HEADS = 4
NUM_KV_HEADS = 2
HEAD_WIDTH = WIDTH // NUM_HEADS
HIDDEN_WIDTH = 128
CONTEXT_LENGTH = 512

BOS, EOS, BEGIN_TURN, END_TURN, LONG = range(256, 261)
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|turn|>", "<|done|>", f"<|{'long' * 50}|>")
NUM_TOKENS = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|done|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def write_tiny_model(
    path: pathlib.Path,
    *,
    name: str = "tiny",
    chat_template: str | None = CHAT_TEMPLATE,
    context_length: int = CONTEXT_LENGTH,
    head_width: int = HEAD_WIDTH,
    seed: int = SEED,
    pooling_type: gguf.PoolingType | None = None,
) -> pathlib.Path:
    """Writes a model that llama.cpp loads, and returns its path. The same arguments write the same bytes.

    Token i below 256 is the byte i. The special tokens follow; EOS and END_TURN end a generation. A `pooling_type` makes
    it a model of embeddings, with causal attention.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(HIDDEN_WIDTH)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_rope_dimension_count(head_width)
    if head_width != HEAD_WIDTH:
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(NUM_TOKENS)
    if pooling_type is not None:
        writer.add_pooling_type(pooling_type)
    add_vocabulary(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    _add_tensors(writer, seed, head_width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Adds the vocabulary of bytes and special tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([_spelled(byte) for byte in range(256)] + list(SPECIAL_TOKENS))
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS))
    # One merge of two bytes whose union is no token: llama.cpp wants a list, and this one never applies.
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(END_TURN)
    writer.add_add_bos_token(True)


def _spelled(byte: int) -> str:
    """Returns a byte as GPT-2's vocabulary spells it: printable ones as they are, the others moved behind 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))


def _add_tensors(writer: gguf.GGUFWriter, seed: int, head_width: int) -> None:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def ones() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.ones(WIDTH, dtype=np.float32)

    writer.add_tensor("token_embd.weight", matrix(NUM_TOKENS, WIDTH, 1.0))
    for layer in range(NUM_LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", ones())
        writer.add_tensor(f"{block}.attn_q.weight", matrix(NUM_HEADS * head_width, WIDTH, 0.2))
        writer.add_tensor(f"{block}.attn_k.weight", matrix(NUM_KV_HEADS * head_width, WIDTH, 0.2))
        writer.add_tensor(f"{block}.attn_v.weight", matrix(NUM_KV_HEADS * head_width, WIDTH, 0.2))
        writer.add_tensor(f"{block}.attn_output.weight", matrix(WIDTH, NUM_HEADS * head_width, 0.2))
        writer.add_tensor(f"{block}.ffn_norm.weight", ones())
        writer.add_tensor(f"{block}.ffn_gate.weight", matrix(HIDDEN_WIDTH, WIDTH, 0.2))
        writer.add_tensor(f"{block}.ffn_up.weight", matrix(HIDDEN_WIDTH, WIDTH, 0.2))
        writer.add_tensor(f"{block}.ffn_down.weight", matrix(WIDTH, HIDDEN_WIDTH, 0.2))
    writer.add_tensor("output_norm.weight", ones())
    writer.add_tensor("output.weight", matrix(NUM_TOKENS, WIDTH, 0.3))
