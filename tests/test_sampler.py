"""The sampler chain: each field of the contract reaches its llama.cpp sampler, and does what the contract says."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server.engine.cells import Trim
from inferwire_server.engine.intake import resolve_sampling, sampling_params
from inferwire_server.engine.llama_runner import LlamaRunner
from inferwire_server.engine.sampler import LlamaSampler
from inferwire_server.engine.scheduler import Chunk
from inferwire_server.engine.sequence import SamplingParams
from tests.models import tiny

Logits = npt.NDArray[np.float32]

CONTEXT_LENGTH = 64
# Every filter off: what is left is temperature and the draw.
PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
NUM_DRAWS = 64
# ln of 0.4, 0.3, 0.2, 0.1; what is not named is as good as impossible.
FOUR = {97: math.log(0.4), 98: math.log(0.3), 99: math.log(0.2), 100: math.log(0.1)}

Make = Callable[..., LlamaSampler]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> LlamaRunner:
    path = tiny.write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    return LlamaRunner(str(path), models_pb2.LoadConfig(parallel_sequences=1))


@pytest.fixture
def make(runner: LlamaRunner) -> Iterator[Make]:
    """Makes samplers from PLAIN with some fields changed, and closes them."""
    made = []

    def make(*, forbidden: Iterable[int] = (), base: SamplingParams = PLAIN, **fields: Any) -> LlamaSampler:
        sampler = LlamaSampler(
            runner.vocabulary.handle,
            dataclasses.replace(base, **fields),
            num_vocab=tiny.NUM_TOKENS,
            context_length=CONTEXT_LENGTH,
            forbidden=forbidden,
        )
        made.append(sampler)
        return sampler

    yield make
    for sampler in made:
        sampler.close()


def logits_of(values: dict[int, float]) -> Logits:
    logits = np.full(tiny.NUM_TOKENS, -30.0, dtype=np.float32)
    for token, value in values.items():
        logits[token] = value
    return logits


def noise(seed: int = 0) -> Logits:
    return np.random.default_rng(seed).normal(0, 3, tiny.NUM_TOKENS).astype(np.float32)


def apply(sampler: LlamaSampler, logits: Logits) -> Any:
    """Returns llama.cpp's candidates after the whole chain."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, value in enumerate(logits):
        data[token].id, data[token].logit = token, value
    candidates = llama_cpp.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    candidates.kept_alive = data
    llama_cpp.llama_sampler_apply(sampler.chain, ctypes.byref(candidates))
    return candidates


def draw(sampler: LlamaSampler, logits: Logits) -> int:
    """Draws a token and tells the chain, as `llama_sampler_sample` does."""
    candidates = apply(sampler, logits)
    token = int(candidates.data[candidates.selected].id)
    llama_cpp.llama_sampler_accept(sampler.chain, token)
    return token


def draws(sampler: LlamaSampler, logits: Logits, count: int = NUM_DRAWS) -> list[int]:
    return [draw(sampler, logits) for _ in range(count)]


def kept(sampler: LlamaSampler, logits: Logits) -> set[int]:
    """Returns the tokens that the filters left."""
    candidates = apply(sampler, logits)
    return {int(candidates.data[index].id) for index in range(candidates.size)}


def names(sampler: LlamaSampler) -> list[str]:
    chain = sampler.chain
    # llama.cpp names one that has nothing to do with a question mark, such as "?temp" for a temperature of 1.
    return [
        llama_cpp.llama_sampler_name(llama_cpp.llama_sampler_chain_get(chain, index)).decode()
        for index in range(llama_cpp.llama_sampler_chain_n(chain))
    ]


# Which samplers there are.


def test_the_defaults_are_the_contracts(make: Make) -> None:
    """What is unset: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, nothing else."""
    in_force = sampling_params(resolve_sampling(pb.Sampling(seed=1)))
    assert ["top-k", "top-p", "min-p", "temp", "dist"] == names(make(base=in_force))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["temp", "dist"]),
        ({"temperature": 0.0}, ["greedy"]),
        ({"top_k": 5}, ["top-k", "temp", "dist"]),
        ({"top_p": 0.5}, ["top-p", "temp", "dist"]),
        ({"min_p": 0.5}, ["min-p", "temp", "dist"]),
        ({"typical_p": 0.5}, ["typical", "temp", "dist"]),
        ({"top_n_sigma": 1.0}, ["top-n-sigma", "temp", "dist"]),
        ({"xtc_probability": 0.5}, ["xtc", "temp", "dist"]),
        ({"dry_multiplier": 0.5}, ["dry", "temp", "dist"]),
        ({"dry_multiplier": 0.5, "temperature": 0.0}, ["dry", "greedy"]),
        ({"repetition_penalty": 1.1}, ["penalties", "temp", "dist"]),
        ({"frequency_penalty": 0.1}, ["penalties", "temp", "dist"]),
        ({"presence_penalty": 0.1}, ["penalties", "temp", "dist"]),
        ({"presence_penalty": 0.1, "temperature": 0.0}, ["penalties", "greedy"]),
        ({"mirostat_version": 1}, ["temp", "mirostat"]),
        ({"mirostat_version": 2}, ["temp", "mirostat-v2"]),
        ({"mirostat_version": 2, "top_k": 5, "top_p": 0.5, "min_p": 0.5}, ["temp", "mirostat-v2"]),
        ({"logit_bias": {97: 1.0}}, ["logit-bias", "temp", "dist"]),
        (
            {
                "logit_bias": {97: 1.0},
                "presence_penalty": 0.1,
                "dry_multiplier": 0.5,
                "top_n_sigma": 1.0,
                "top_k": 5,
                "typical_p": 0.5,
                "top_p": 0.5,
                "min_p": 0.5,
                "xtc_probability": 0.5,
            },
            [
                "logit-bias", "penalties", "dry", "top-n-sigma", "top-k", "typical", "top-p", "min-p", "xtc",
                "temp", "dist",
            ],
        ),
    ],
)  # fmt: skip
def test_a_field_adds_its_sampler_in_its_place(
    make: Make, fields: dict[str, Any], expected: list[str]
) -> None:
    """A value that means "off" adds none; mirostat stands in place of the filters."""
    assert expected == names(make(**{"temperature": 0.7, **fields}))


def test_zero_means_off(make: Make) -> None:
    """Every zero that the contract calls off, said at once."""
    asked = pb.Sampling(
        temperature=0.7, top_k=0, top_p=1, min_p=0, typical_p=1, top_n_sigma=0, xtc=pb.Xtc(probability=0),
        dry=pb.Dry(multiplier=0), repetition_penalty=1, frequency_penalty=0, presence_penalty=0, seed=0,
    )  # fmt: skip
    assert ["temp", "dist"] == names(make(base=sampling_params(resolve_sampling(asked))))


def test_forbidden_tokens_are_a_bias(make: Make) -> None:
    """They outrank a bias that the caller set."""
    sampler = make(forbidden=[97], temperature=0.7, logit_bias={97: 100.0, 98: 100.0})
    assert ["logit-bias", "temp", "dist"] == names(sampler)
    assert {98} == set(draws(sampler, noise()))


# What each does.


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-30, 1e-5])
@pytest.mark.parametrize("mirostat_version", [0, 1, 2])
def test_no_temperature_means_the_likeliest(make: Make, temperature: float, mirostat_version: int) -> None:
    """Also a temperature so small that dividing by it would overflow."""
    for seed in range(8):
        logits = noise(seed)
        sampler = make(temperature=temperature, mirostat_version=mirostat_version)
        assert int(logits.argmax()) == draw(sampler, logits)


def test_temperature_shapes_the_draw(make: Make) -> None:
    """Higher is flatter: at 1 the frequencies are the probabilities, far above they are even."""
    logits = logits_of(FOUR)
    counts = {
        t: draws(make(temperature=t, seed=5), logits, 2000).count(97) / 2000 for t in (0.25, 1.0, 100.0)
    }
    assert 0.4**4 / (0.4**4 + 0.3**4 + 0.2**4 + 0.1**4) == pytest.approx(counts[0.25], abs=0.05)
    assert 0.4 == pytest.approx(counts[1.0], abs=0.05)
    assert 0.05 > counts[100.0]


@pytest.mark.parametrize(
    "fields",
    [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.0}, {"top_p": 1e-6}, {"top_n_sigma": 1e-6}],
)
def test_the_narrowest_filter_is_greedy_at_any_temperature(make: Make, fields: dict[str, float]) -> None:
    for seed in range(4):
        logits = noise(seed)
        assert {int(logits.argmax())} == set(draws(make(temperature=50.0, **fields), logits, 8))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top_k": 2}, {97, 98}),
        ({"top_k": 1 << 31}, set(range(tiny.NUM_TOKENS))),
        ({"top_p": 0.65}, {97, 98}),
        ({"top_p": 0.75}, {97, 98, 99}),
        ({"min_p": 0.6}, {97, 98}),
        ({"min_p": 0.4}, {97, 98, 99}),
        # The information of a token, ln(1/p), nearest to the entropy of 1.28: first 0.3 (1.20), then 0.2 (1.61), 0.4 (0.92).
        ({"typical_p": 0.2}, {98}),
        ({"typical_p": 0.45}, {98, 99}),
    ],
)
def test_a_filter_keeps_what_the_contract_says(
    make: Make, fields: dict[str, Any], expected: set[int]
) -> None:
    """Of four tokens with the probabilities 0.4, 0.3, 0.2 and 0.1."""
    assert expected == kept(make(**fields), logits_of(FOUR))


@pytest.mark.parametrize("sigmas", [1.0, 1.5, 2.0])
def test_top_n_sigma_keeps_what_is_near_the_best(make: Make, sigmas: float) -> None:
    logits = noise(3)
    expected = {int(token) for token in np.flatnonzero(logits >= logits.max() - sigmas * logits.std())}
    assert 1 < len(expected) < tiny.NUM_TOKENS
    assert expected == set(draws(make(top_n_sigma=sigmas, temperature=50.0), logits, 3000))


def test_xtc_takes_the_top_choices_away(make: Make) -> None:
    """Of the tokens at or above the threshold only the least likely stays; with probability 0 nothing happens."""
    logits = logits_of(FOUR)
    assert {97, 98}.isdisjoint(kept(make(xtc_probability=1.0, xtc_threshold=0.15), logits))
    assert {98, 99, 100} < kept(make(xtc_probability=1.0, xtc_threshold=0.25), logits)
    assert 97 in kept(make(xtc_probability=1.0, xtc_threshold=0.6), logits)
    assert 97 in kept(make(xtc_probability=0.0, xtc_threshold=0.15), logits)
    some = make(xtc_probability=0.5, xtc_threshold=0.15)
    assert {True, False} == {97 in kept(some, logits) for _ in range(NUM_DRAWS)}


@pytest.mark.parametrize(
    ("bias", "is_drawn"), [(-math.inf, False), (-3.4e38, False), (100.0, True), (3.4e38, True)]
)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_a_bias_forbids_and_forces(make: Make, bias: float, is_drawn: bool, temperature: float) -> None:
    """Also at the ends of what a float can hold, where the arithmetic must not overflow."""
    logits = noise(1)
    token = 98 if is_drawn else int(logits.argmax())
    drawn = set(draws(make(temperature=temperature, logit_bias={token: bias}), logits))
    assert is_drawn == (token in drawn)
    if is_drawn:
        assert {token} == drawn


def test_two_forced_tokens_share_the_draw(make: Make) -> None:
    """The largest floats there are, twice: still these two and no other, also when a penalty multiplies them."""
    bias = {98: 3.4e38, 99: 3.4e38}
    assert {98, 99} == set(draws(make(temperature=0.01, logit_bias=bias), noise(1)))
    assert {98, 99} >= set(draws(make(temperature=0.01, logit_bias=bias, repetition_penalty=1e-6), noise(1)))


def test_a_small_bias_is_added(make: Make) -> None:
    """It moves a token past those that are nearer than itself, and no further."""
    logits = logits_of({97: 2.0, 98: 1.0})
    assert 97 == draw(make(temperature=0.0, logit_bias={98: 0.9}), logits)
    assert 98 == draw(make(temperature=0.0, logit_bias={98: 1.1}), logits)


# The seed.


@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFE, 0xFFFFFFFF])
@pytest.mark.parametrize(
    "fields", [{}, {"xtc_probability": 0.5}, {"mirostat_version": 1}, {"mirostat_version": 2}]
)
def test_a_seed_repeats_the_draws(make: Make, seed: int, fields: dict[str, Any]) -> None:
    """Each seed is a seed: 0, and the one that llama.cpp takes for "draw one"."""
    logits = noise(2)
    assert draws(make(seed=seed, **fields), logits) == draws(make(seed=seed, **fields), logits)


@pytest.mark.parametrize("fields", [{}, {"mirostat_version": 1}, {"mirostat_version": 2}])
def test_another_seed_draws_otherwise(make: Make, fields: dict[str, Any]) -> None:
    logits = noise(2)
    assert 4 == len({tuple(draws(make(seed=seed, **fields), logits)) for seed in (0, 1, 2, 0xFFFFFFFF)})


# Looking back.


@pytest.mark.parametrize(
    "fields", [{"repetition_penalty": 2.0}, {"frequency_penalty": 1.5}, {"presence_penalty": 1.5}]
)
def test_a_penalty_counts_the_prompt_and_the_answer(make: Make, fields: dict[str, float]) -> None:
    """A token of the prompt is passed over for the next best, and so is one that was drawn."""
    logits = logits_of({97: 2.0, 98: 1.2, 99: 0.8})
    sampler = make(temperature=0.0, **fields)
    assert 97 == draw(sampler, logits)
    assert 98 == draw(sampler, logits)
    after_prompt = make(temperature=0.0, **fields)
    after_prompt.accept([97])
    assert 98 == draw(after_prompt, logits)


def test_frequency_counts_and_presence_does_not(make: Make) -> None:
    logits = logits_of({97: 2.0, 98: 0.0})
    for fields, expected in (({"frequency_penalty": 0.7}, 98), ({"presence_penalty": 0.7}, 97)):
        sampler = make(temperature=0.0, **fields)
        sampler.accept([97, 97, 97])
        assert expected == draw(sampler, logits)


def test_a_negative_penalty_prefers_what_was_there(make: Make) -> None:
    sampler = make(temperature=0.0, presence_penalty=-2.0)
    sampler.accept([98])
    assert 98 == draw(sampler, logits_of({97: 2.0, 98: 1.0}))


@pytest.mark.parametrize(
    ("window", "distance", "is_seen"), [(0, 0, False), (3, 2, True), (3, 3, False), (-1, 60, True)]
)
def test_the_window_bounds_the_penalties(make: Make, window: int, distance: int, is_seen: bool) -> None:
    """0 means no window, so no penalty; -1 means the whole context."""
    sampler = make(temperature=0.0, presence_penalty=5.0, penalty_window=window)
    sampler.accept([97] + [50] * distance)
    assert (98 if is_seen else 97) == draw(sampler, logits_of({97: 2.0, 98: 1.0}))


LOOP = [*b"one two three. one two"]


@pytest.mark.parametrize(
    ("fields", "continues"),
    [
        ({}, False),
        ({"dry_multiplier": 0.0}, True),
        ({"dry_window": 0}, True),
        ({"dry_allowed_length": 50}, True),
        ({"dry_window": 4}, True),
        ({"dry_window": 40}, False),
        ({"dry_sequence_breakers": (" ",), "dry_allowed_length": 4}, True),
    ],
)
def test_dry_ends_a_repetition(make: Make, fields: dict[str, Any], continues: bool) -> None:
    """Each field bounds it: strength, window, the free length, and texts that end a repetition."""
    after = {ord(" "): 2.0, ord("!"): 1.0}
    sampler = make(**{"temperature": 0.0, "dry_multiplier": 5.0, "dry_sequence_breakers": ("\n",), **fields})
    sampler.accept(LOOP)
    assert (ord(" ") if continues else ord("!")) == draw(sampler, logits_of(after))


def test_the_base_of_dry_is_its_growth(make: Make) -> None:
    """The same repetition is worth more with a larger base."""
    logits = logits_of({ord(" "): 2.0, ord("!"): 0.0})
    for base, expected in ((1.0, " "), (4.0, "!")):
        sampler = make(temperature=0.0, dry_multiplier=0.1, dry_base=base, dry_sequence_breakers=("\n",))
        sampler.accept(LOOP)
        assert expected == chr(draw(sampler, logits))


@pytest.mark.parametrize(
    "breakers", [(), ("x" * 64,), ("é", "👩‍👩‍👧", "\n"), tuple("abcdefghijklmnopqrstuvwxyz012345")]
)
def test_any_sequence_breaker_is_taken(make: Make, breakers: tuple[str, ...]) -> None:
    sampler = make(dry_multiplier=1.0, dry_sequence_breakers=breakers)
    sampler.accept(LOOP)
    assert 0 <= draw(sampler, noise()) < tiny.NUM_TOKENS


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_holds_the_surprise(make: Make, version: int) -> None:
    """Its target and its rate reach it: a target of almost nothing draws the likeliest, a high one does not."""
    logits = noise(4)
    best = int(logits.argmax())

    def share(tau: float) -> float:
        return draws(make(mirostat_version=version, mirostat_tau=tau), logits, 1000).count(best) / 1000

    assert share(0.01) > 0.95
    assert share(4.0) < 0.3
    slow, fast = (make(mirostat_version=version, mirostat_tau=1.0, mirostat_eta=eta) for eta in (0.0, 1.0))
    assert draws(slow, logits) != draws(fast, logits)


def test_accept_costs_nothing_when_nothing_looks_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt is not walked token by token for a chain that forgets it at once."""
    plain, window_of_none = make(), make(presence_penalty=1.0, penalty_window=0)
    monkeypatch.setattr(llama_cpp, "llama_sampler_accept", lambda *_: pytest.fail("it was told"))
    plain.accept([97] * 10)
    window_of_none.accept([97] * 10)


# Its end.


def test_closing_twice_is_fine(make: Make) -> None:
    sampler = make()
    sampler.close()
    sampler.close()
    assert sampler.chain is None


def test_a_refused_sampler_frees_the_chain(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """When llama.cpp makes no sampler, nothing is left behind."""
    freed = []
    free = llama_cpp.llama_sampler_free

    def note(chain: Any) -> None:
        freed.append(chain)
        free(chain)

    monkeypatch.setattr(llama_cpp, "llama_sampler_init_dist", lambda seed: None)
    monkeypatch.setattr(llama_cpp, "llama_sampler_free", note)
    with pytest.raises(RuntimeError):
        make()
    assert 1 == len(freed)


def test_the_runner_draws_through_the_chain(runner: LlamaRunner) -> None:
    """`new_sampler` and `sample` on a computed row: forbidden tokens are never drawn, greedy is the argmax."""
    chunk = Chunk(None, 0, [1, 2, 3], 0, wants_logits=True)
    (row,) = runner.decode([chunk])
    pointer = llama_cpp.llama_get_logits_ith(runner._context, row)
    best = int(np.ctypeslib.as_array(pointer, shape=(tiny.NUM_TOKENS,)).argmax())
    greedy = runner.new_sampler(SamplingParams(temperature=0))
    assert best == runner.sample(row, greedy)
    logits = np.ctypeslib.as_array(pointer, shape=(tiny.NUM_TOKENS,)).copy()
    second, third, fourth = np.argsort(-logits)[1:4].tolist()
    other = runner.new_sampler(SamplingParams(temperature=0), forbidden=[best, third])
    assert second == runner.sample(row, other)
    mask = np.zeros(-(-tiny.NUM_TOKENS // 32), dtype=np.int32)
    for token in (third, fourth):
        mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
    assert third == runner.sample(row, greedy, mask)
    assert fourth == runner.sample(row, other, mask), "what a mask allows may still be forbidden"
    mask[:] = -1
    assert second == runner.sample(row, other, mask)
    assert np.array_equal(logits, runner._logits(row)), "llama.cpp's own numbers are left as they are"
    greedy.close()
    other.close()
    runner.arrange([Trim(0, 0)])
