"""Writes a checkpoint as a GGUF file: `python -m training.export demo.npz demo.gguf`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

from training.chat import TEMPLATE
from training.model import Shape
from training.tokenizer import CONTROL_TOKENS, TEXT_TOKENS, Tokenizer

DEMO_PATH = Path(__file__).parents[1] / "service" / "inferwire_server" / "models" / "demo.gguf"
MAX_BYTES = 4_000_000
# Longer than any row of the training: rotary positions only count within a conversation, and short skills
# still work.
CONTEXT_LENGTH = 2048


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("gguf", type=Path, nargs="?", default=DEMO_PATH)
    options = arguments.parse_args()
    export(options.checkpoint, options.gguf)


def load(checkpoint: Path) -> tuple[Shape, Tokenizer, dict[str, np.ndarray]]:
    """Read what `train.save` has written; the arrays are float32 by their GGUF names."""
    with np.load(checkpoint) as arrays:
        header = json.loads(str(arrays["header"]))
        parameters = {name: arrays[name] for name in arrays.files if name != "header"}
    return Shape(**header["shape"]), Tokenizer([(a, b) for a, b in header["merges"]]), parameters


def export(checkpoint: Path, path: Path) -> None:
    """Write `path`, matrices as F16 and gains as F32. A reader never sees half a file.

    Raises `ValueError` when the file is larger than MAX_BYTES.
    """
    shape, tokenizer, parameters = load(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial_path, "llama")
    writer.add_type("model")
    writer.add_name("inferwire demo")
    writer.add_description(
        "A tiny language model for the tests and the first run of inferwire, trained by this repository on "
        "text that it generates itself. Not for real use."
    )
    writer.add_license("Apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.num_tokens)
    _add_tokenizer(writer, tokenizer)
    writer.add_chat_template(TEMPLATE)
    for name, parameter in parameters.items():
        kind = np.float16 if parameter.ndim == 2 else np.float32
        writer.add_tensor(f"{name}.weight", parameter.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size_bytes = partial_path.stat().st_size
    if size_bytes > MAX_BYTES:
        partial_path.unlink()
        raise ValueError(
            f"The file would have {size_bytes:,} bytes; make the model smaller than {MAX_BYTES:,}."
        )
    partial_path.replace(path)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    kinds = dict.fromkeys(CONTROL_TOKENS, gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(TEXT_TOKENS, gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokenizer.tokens])
    writer.add_token_merges([f"{a} {b}" for a, b in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.ids["<|endoftext|>"])
    writer.add_eos_token_id(tokenizer.ids["<|im_end|>"])
    writer.add_pad_token_id(tokenizer.ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


if __name__ == "__main__":
    main()
