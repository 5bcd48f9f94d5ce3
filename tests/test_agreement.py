"""Greedy answers do not depend on who else is served: any mix of streams, cancels, shared prefixes and preemptions.

In the deterministic setting they are equal to the byte. Elsewhere the shape of a batch moves logits slightly, so an answer
must agree with that of a run alone wherever the likeliest token leads the second by MARGIN.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest

from inferwire.v1 import models_pb2
from inferwire_server.engine.cells import Cells, Sharing, Trim
from inferwire_server.engine.engine import Engine
from inferwire_server.engine.llama_runner import LlamaRunner
from inferwire_server.engine.sampler import LlamaSampler
from inferwire_server.engine.scheduler import Scheduler, StepBudget
from inferwire_server.engine.sequence import SamplingParams, Sequence
from inferwire_server.engine.v1 import engine_pb2
from inferwire_server.models import demo_model_path
from tests.engine_fakes import make_sequence

# Nats. Logits of the demo model move by up to 0.02 with the shape of a batch (test_llama_runner); this is five times that.
MARGIN = 0.1
CONTEXT_LENGTH = 256
NUM_SLOTS = 6
BATCH_SIZE = 48


class Run:
    """An engine on a real model, with what each sequence said: its tokens, and how far each led."""

    def __init__(self, runner: LlamaRunner, *, sharing: Sharing, num_cells: int | None) -> None:
        self.runner = runner
        for slot in range(runner.config.parallel_sequences):
            runner.arrange([Trim(slot, 0)])
        self.said: dict[int, list[tuple[int, float]]] = {}
        self.num_reports = 0
        self.at_report: dict[int, list[Callable[[], None]]] = {}
        self.scheduler = Scheduler(
            cells=Cells(
                num_slots=runner.config.parallel_sequences,
                cells_per_slot=CONTEXT_LENGTH,
                num_cells=num_cells,
                sharing=sharing,
            ),
            batch_size=BATCH_SIZE,
        )
        self.engine: Engine[LlamaSampler] = Engine(
            runner=runner,
            scheduler=self.scheduler,
            budget=StepBudget(
                batch_size=BATCH_SIZE,
                max_decode_step_seconds=1,
                max_prefill_step_seconds=1,
                fixed_tokens=BATCH_SIZE,
            ),
            emit=self._take,
        )

    def _take(self, report: engine_pb2.StepReport) -> None:
        self.num_reports += 1
        for entry in report.sequences:
            said = self.said.setdefault(entry.sequence_id, [])
            for event in entry.events:
                for token in (*event.text.logprobs, *event.completion.logprobs):
                    # The end is ignored, so it leads nobody.
                    ends = self.runner.vocabulary.end_tokens()
                    first, second, *_ = [top.logprob for top in token.top if top.token_id not in ends]
                    said.append((token.token_id, first - second))
        for action in self.at_report.pop(self.num_reports, ()):
            action()


def new_runner(**config: object) -> LlamaRunner:
    return LlamaRunner(
        str(demo_model_path()),
        models_pb2.LoadConfig(context_length=CONTEXT_LENGTH, batch_size=BATCH_SIZE, threads=1, **config),
    )


@pytest.fixture(scope="module")
def alone() -> LlamaRunner:
    return new_runner(parallel_sequences=1)


@pytest.fixture(scope="module", params=[None, CONTEXT_LENGTH + 64], ids=["own cells", "a small pool"])
def crowded(request: pytest.FixtureRequest) -> LlamaRunner:
    return new_runner(parallel_sequences=NUM_SLOTS, cache_tokens=request.param)


@pytest.fixture(scope="module")
def deterministic() -> LlamaRunner:
    return new_runner(deterministic=True)


def ask(number: int, prompt: list[int], max_tokens: int) -> Sequence:
    sequence = make_sequence(
        number, prompt, max_tokens=max_tokens, want_logprobs=True, num_top_logprobs=6, ignore_eos=True
    )
    sequence.sampling = SamplingParams(temperature=0)
    return sequence


def run_mix(draw: random.Random, runner: LlamaRunner) -> tuple[Run, list[Sequence], set[int]]:
    """Runs a random mix. Returns it, its sequences, and which of them were cancelled somewhere on the way."""
    tokenize = functools.partial(runner.vocabulary.tokenize, add_special=True, parse_special=True)
    roots = [
        tokenize(" ".join(f"{subject} number {draw.randrange(99)} is here." for _ in range(12)))
        for subject in ("Rule", "City")
    ]
    sequences = []
    for number in range(14):
        root = draw.choice(roots)
        own = tokenize(f" The name of the {draw.choice(['city', 'bird', 'king'])} is {draw.randrange(99)}")
        prompt = [*root[: draw.randrange(len(root))], *own[1:]]
        sequences.append(ask(number, prompt[: CONTEXT_LENGTH - 80], draw.randrange(1, 80)))
    is_deterministic = runner.config.deterministic
    run = Run(
        runner,
        sharing=Sharing.NONE if is_deterministic else Sharing.PREFIX,
        num_cells=runner.model.num_pooled_cells,
    )
    cancelled = {sequence.sequence_id for sequence in sequences if draw.random() < 0.25}
    for number in cancelled:
        action = functools.partial(run.engine.cancel, number)
        run.at_report.setdefault(draw.randrange(1, 60), []).append(action)
    for sequence in sequences:
        if draw.random() < 0.5:
            run.engine.submit(sequence)
        else:
            action = functools.partial(run.engine.submit, sequence)
            run.at_report.setdefault(draw.randrange(1, 20), []).append(action)
    # Somebody must be there for the others to come.
    run.engine.submit(make_sequence(99, [1, 2, 3], max_tokens=60, ignore_eos=True))
    run.engine.run_until_idle()
    return run, sequences, cancelled


def run_alone(runner: LlamaRunner, sequence: Sequence) -> list[tuple[int, float]]:
    run = Run(runner, sharing=Sharing.NONE, num_cells=None)
    run.engine.submit(ask(sequence.sequence_id, sequence.prompt, sequence.max_tokens))
    run.engine.run_until_idle()
    return run.said[sequence.sequence_id]


@pytest.mark.parametrize("seed", range(4))
def test_answers_agree_with_those_of_a_run_alone(seed: int, crowded: LlamaRunner, alone: LlamaRunner) -> None:
    """Wherever the likeliest token leads; nearly every token is compared."""
    run, sequences, cancelled = run_mix(random.Random(seed), crowded)
    num_compared = num_said = 0
    for sequence in sequences:
        said = run.said.get(sequence.sequence_id, [])
        expected = run_alone(alone, sequence)
        if sequence.sequence_id not in cancelled:
            assert len(said) == len(expected) or any(lead < MARGIN for _, lead in expected)
        num_said += len(said)
        for (token, lead), (actual, _) in zip(expected, said, strict=False):
            if token != actual and lead < MARGIN:
                break
            assert token == actual, f"sequence {sequence.sequence_id}: it led by {lead}"
            num_compared += 1
    assert num_said > 150
    assert num_compared > 0.6 * num_said
    assert any(sequence.num_cached for sequence in sequences)
    if crowded.model.num_pooled_cells is not None:
        assert any(sequence.num_preemptions for sequence in sequences)
    assert 0 == run.scheduler.cells.num_used


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_equal_in_the_deterministic_setting(seed: int, deterministic: LlamaRunner) -> None:
    """Every token, whoever was served before and whoever was cancelled."""
    run, sequences, cancelled = run_mix(random.Random(seed), deterministic)
    for sequence in sequences:
        said = [token for token, _ in run.said.get(sequence.sequence_id, [])]
        expected = [token for token, _ in run_alone(deterministic, sequence)]
        if sequence.sequence_id in cancelled:
            assert expected[: len(said)] == said
        else:
            assert expected == said
