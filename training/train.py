"""Trains the demo model from nothing: `python -m training.train`.

Writes a checkpoint (`.npz`) now and then and at the end, and the GGUF file with it. The seed is fixed; the
number of steps and not the clock ends the run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from training.chat import ChatRenderer
from training.corpus import MIX, TOOL_MIX, Mix, conversations
from training.export import DEMO_PATH, export, load
from training.model import Parameters, Shape, init, logits
from training.tokenizer import Tokenizer

SEED = 20
BATCH_ROWS, ROW_TOKENS = 8, 384
NUM_TOKENIZER_CONVERSATIONS = 6000
# What the user, the system and the tools say is learnt a little: it shapes the embeddings.
ASSISTANT_WEIGHT, OTHER_WEIGHT = 1.0, 0.1
MATRIX_RATE, VECTOR_RATE = 0.015, 0.003
NUM_WARMUP_STEPS = 40
WEIGHT_DECAY = 0.02


@dataclass(frozen=True)
class Stage:
    """Steps with one mix of conversations. The rates rise and fall once in a stage, `rate` times as high."""

    mix: Mix
    num_steps: int
    rate: float


STAGES = [Stage(MIX, 2500, 1.0), Stage(TOOL_MIX, 500, 0.5)]


@dataclass(frozen=True)
class Batch:
    """Arrays [BATCH_ROWS, ROW_TOKENS], all int32 but for `weights`, the float32 weights of the loss."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


jax.tree_util.register_dataclass(
    Batch, data_fields=["tokens", "targets", "weights", "segments", "positions"], meta_fields=[]
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--checkpoint", type=Path, default=Path("demo.npz"))
    arguments.add_argument("--gguf", type=Path, default=DEMO_PATH)
    arguments.add_argument("--export-every", type=int, default=200, metavar="STEPS")
    arguments.add_argument(
        "--skip-stages",
        type=int,
        default=0,
        metavar="N",
        help="go on from a checkpoint at the end of N stages",
    )
    options = arguments.parse_args()
    train(options.checkpoint, options.gguf, options.export_every, options.skip_stages)


def train(checkpoint: Path, gguf: Path, export_every: int, num_skipped: int) -> None:
    """Run the stages after the first `num_skipped`, which `checkpoint` has behind it."""
    started = time.monotonic()
    if num_skipped:
        shape, tokenizer, arrays = load(checkpoint)
        parameters = {name: jnp.asarray(array) for name, array in arrays.items()}
    else:
        shape = Shape()
        tokenizer = learn_tokenizer(shape.num_tokens)
        parameters = init(shape, SEED)
    print(f"{tokenizer!r} after {time.monotonic() - started:.0f} s", flush=True)

    num_tokens = 0
    for number, stage in enumerate(STAGES[num_skipped:], start=num_skipped + 1):
        momentum = jax.tree.map(jnp.zeros_like, parameters)
        variance = jax.tree.map(jnp.zeros_like, parameters)
        losses: list[jax.Array] = []
        stage_batches = itertools.islice(batches(tokenizer, SEED + number, stage.mix), stage.num_steps)
        for step, batch in enumerate(stage_batches, start=1):
            warmup, progress = min(1.0, step / NUM_WARMUP_STEPS), step / stage.num_steps
            rate = stage.rate * warmup * min(1.0, 1.25 * (1 - progress) + 0.01)
            parameters, momentum, variance, loss = update(
                shape, parameters, momentum, variance, batch, step, rate
            )
            losses.append(loss)
            num_tokens += batch.tokens.size
            if step % 50 == 0 or step == stage.num_steps:
                mean, seconds = float(jnp.mean(jnp.stack(losses[-50:]))), time.monotonic() - started
                print(
                    f"stage {number} step {step} | loss {mean:.4f} | {num_tokens:,} tokens | {seconds:.0f} s | "
                    f"{num_tokens / seconds:,.0f} tokens/s",
                    flush=True,
                )
            if step % export_every == 0 or step == stage.num_steps:
                save(checkpoint, shape, tokenizer, parameters)
                export(checkpoint, gguf)
    num_parameters = sum(parameter.size for parameter in parameters.values())
    print(f"{num_parameters:,} parameters, {gguf.stat().st_size:,} bytes, {time.monotonic() - started:.0f} s")


def learn_tokenizer(num_tokens: int) -> Tokenizer:
    renderer = ChatRenderer()
    sample = itertools.islice(conversations(SEED), NUM_TOKENIZER_CONVERSATIONS)
    texts = (renderer.render(c.messages, c.tools, enable_thinking=c.enable_thinking) for c in sample)
    return Tokenizer.train(texts, num_tokens)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2, 3))
def update(
    shape: Shape,
    parameters: Parameters,
    momentum: Parameters,
    variance: Parameters,
    batch: Batch,
    step: int,
    rate: float,
) -> tuple[Parameters, Parameters, Parameters, jax.Array]:
    """Take one step: Muon for the matrices of the layers, AdamW for the embedding and the gains.

    Muon (Jordan and others, 2024) replaces the momentum of a matrix by the nearest orthogonal matrix; it
    needs about half the steps of AdamW here.
    """
    loss, gradients = jax.value_and_grad(loss_of, argnums=1)(shape, parameters, batch)
    norm = jnp.sqrt(sum(jnp.sum(gradient**2) for gradient in gradients.values()))
    clip = jnp.minimum(1.0, 1.0 / (norm + 1e-6))
    for name, gradient in gradients.items():
        gradient = gradient * clip
        parameter = parameters[name]
        if name.startswith("blk.") and parameter.ndim == 2:
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            direction = orthogonal(0.95 * momentum[name] + 0.05 * gradient)
            direction *= max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            change = MATRIX_RATE * (direction + WEIGHT_DECAY * parameter)
        else:
            momentum[name] = 0.9 * momentum[name] + 0.1 * gradient
            variance[name] = 0.98 * variance[name] + 0.02 * gradient**2
            mean, deviation = momentum[name] / (1 - 0.9**step), jnp.sqrt(variance[name] / (1 - 0.98**step))
            change = VECTOR_RATE * mean / (deviation + 1e-8)
        parameters[name] = parameter - rate * change
    return parameters, momentum, variance, loss


def loss_of(shape: Shape, parameters: Parameters, batch: Batch) -> jax.Array:
    """Return the weighted mean of the negative log-likelihood, in nats per token."""
    scores = logits(shape, parameters, batch.tokens, batch.segments, batch.positions)
    target_scores = jnp.take_along_axis(scores, batch.targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(scores, axis=-1) - target_scores
    return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights)


def orthogonal(matrix: jax.Array) -> jax.Array:
    """Return roughly the nearest orthogonal matrix, by five Newton-Schulz iterations with Muon's
    coefficients."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (jnp.linalg.norm(wide) + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def batches(tokenizer: Tokenizer, seed: int, mix: Mix) -> Iterator[Batch]:
    """Yield batches of conversations packed in rows; what does not fit in the rest of a row is cut off."""
    renderer = ChatRenderer()
    endless = conversations(seed, mix)
    while True:
        rows = np.zeros((4, BATCH_ROWS, ROW_TOKENS + 1), np.int32)
        for row in range(BATCH_ROWS):
            used, segment = 0, 0
            while used < ROW_TOKENS + 1:
                conversation = next(endless)
                text = renderer.render(
                    conversation.messages, conversation.tools, enable_thinking=conversation.enable_thinking
                )
                ids = np.array(tokenizer.encode(text)[: ROW_TOKENS + 1 - used], np.int32)
                segment += 1
                place = rows[:, row, used : used + len(ids)]
                place[0], place[1], place[2] = ids, assistant_mask(tokenizer, ids), segment
                place[3] = np.arange(len(ids))
                used += len(ids)
        tokens, said, segments, positions = rows
        weights = np.where(said[:, 1:], ASSISTANT_WEIGHT, OTHER_WEIGHT).astype(np.float32)
        # The first token of a conversation does not follow from the one before it.
        weights[segments[:, 1:] != segments[:, :-1]] = 0.0
        yield Batch(tokens[:, :-1], tokens[:, 1:], weights, segments[:, :-1], positions[:, :-1])


def assistant_mask(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return which of `ids` [length] the model has to say: an assistant's turn up to and with its end."""
    header = [tokenizer.ids["<|im_start|>"], *tokenizer.encode("assistant\n")]
    end = tokenizer.ids["<|im_end|>"]
    mask = np.zeros(len(ids), bool)
    position = 0
    while position < len(ids):
        if ids[position : position + len(header)].tolist() == header:
            position += len(header)
            ends = np.flatnonzero(ids[position:] == end)
            stop = position + int(ends[0]) + 1 if len(ends) else len(ids)
            mask[position:stop] = True
            position = stop
        position += 1
    return mask


def save(path: Path, shape: Shape, tokenizer: Tokenizer, parameters: Parameters) -> None:
    """Write what `export` needs. A reader never sees half a file."""
    arrays = {name: np.asarray(parameter) for name, parameter in parameters.items()}
    header = json.dumps({"shape": asdict(shape), "merges": tokenizer.merges})
    partial_path = path.with_suffix(".partial.npz")
    np.savez(partial_path, header=np.array(header), **arrays)  # type: ignore[arg-type]
    partial_path.replace(path)


if __name__ == "__main__":
    main()
