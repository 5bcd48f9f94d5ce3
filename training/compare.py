"""Compares a checkpoint with llama.cpp on its GGUF file: `python -m training.compare demo.npz demo.gguf`.

Tells a wrong file (tokens, layout, template) from a model that has learnt too little. Exits with 1 on a
difference.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import jax.numpy as jnp
import llama_cpp
import numpy as np

from training.chat import ChatRenderer
from training.corpus import conversations
from training.export import DEMO_PATH, load
from training.model import logits

SEED = 7
NUM_TOKENIZED, NUM_SCORED = 500, 10
# Half precision in the file against single precision here.
MAX_DIFFERENCE = 0.15
MORE_TEXTS = [
    "", " ", "\n", "  two  spaces\n\n\nand lines \n", "don't we'll I'M", "3+4=7, 12 345",
    "Ünïcödé καλημέρα 日本 🦊🚀",
    "tabs\tand\r\nreturns", "a_b-c/d {\"x\": [1, 2]}",
    "<think>\nx\n</think>\n\n<tool_call>\n{}\n</tool_call>", "  \n  x",
]  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("gguf", type=Path, nargs="?", default=DEMO_PATH)
    options = arguments.parse_args()
    shape, tokenizer, parameters = load(options.checkpoint)
    llama = llama_cpp.Llama(str(options.gguf), n_ctx=1024, logits_all=True, verbose=False)
    renderer = ChatRenderer(llama.metadata["tokenizer.chat_template"])
    texts = [
        renderer.render(c.messages, c.tools, enable_thinking=c.enable_thinking)
        for c in itertools.islice(conversations(SEED), NUM_TOKENIZED)
    ]
    different = [
        text
        for text in texts + MORE_TEXTS
        if tokenizer.encode(text) != llama.tokenize(text.encode(), add_bos=False, special=True)
    ]
    print(f"tokens: {len(different)} of {len(texts) + len(MORE_TEXTS)} texts differ {different[:3]}")

    weights = {name: jnp.asarray(parameter) for name, parameter in parameters.items()}
    worst, num_positions, num_same = 0.0, 0, 0
    for text in texts[:NUM_SCORED]:
        ids = tokenizer.encode(text)
        llama.reset()
        llama.eval(ids)
        theirs = np.array(llama.scores[: len(ids)])
        tokens = jnp.asarray([ids])
        ours = np.asarray(logits(shape, weights, tokens, jnp.zeros_like(tokens), jnp.arange(len(ids))[None]))[
            0
        ]
        worst = max(worst, float(np.abs(ours - theirs).max()))
        num_positions += len(ids)
        num_same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    print(
        f"logits: {worst:.4f} at most apart, the same best token at {num_same} of {num_positions} positions"
    )
    sys.exit(1 if different or worst > MAX_DIFFERENCE else 0)


if __name__ == "__main__":
    main()
