"""The wordings that the demo model is said never to have seen are not in its training text."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from training import corpus

CASES = json.loads(Path(__file__).with_name("demo_cases.json").read_text(encoding="utf-8"))
UNSEEN = [case["ask"] for case in CASES["questions"] if case["unseen_wording"]]
NUM_CONVERSATIONS = 4000


def normal(text: str) -> str:
    """Return the words of `text` only, so that a comma or a capital makes no new wording."""
    return " ".join(re.findall(r"\w+|[+*=]", text.lower()))


@pytest.fixture(scope="module")
def seen() -> str:
    """Every question with a fixed answer in every wording, and what users say in a sample of
    conversations."""
    texts = {normal(text) for text in corpus.question_texts()}
    for conversation in itertools.islice(corpus.conversations(seed=1), NUM_CONVERSATIONS):
        texts |= {
            normal(message["content"]) for message in conversation.messages if message["role"] == "user"
        }
    return "\n".join(texts)


@pytest.mark.parametrize("ask", UNSEEN)
def test_an_unseen_wording_is_in_no_text(ask: str, seen: str) -> None:
    """Not as a question and not as a part of one."""
    assert normal(ask) not in seen


@pytest.mark.parametrize("ask", [ask for ask in UNSEEN if ":" in ask])
def test_an_unseen_way_to_ask_for_a_repetition_is_in_no_wording(ask: str) -> None:
    """What is to be repeated is drawn freely, so the words before it decide."""
    request = normal(ask.split(":")[0])
    assert all(request not in normal(wording) for wording in corpus.REPEAT_WORDINGS)


def test_a_seen_wording_is_found(seen: str) -> None:
    """The search finds what is there; otherwise the tests above would prove nothing."""
    assert normal("What is the capital of France?") in seen


def test_all_questions_of_the_corpus_are_enumerated() -> None:
    """`question_texts` is complete: whatever the makers of facts and sums ask is in it."""
    every = set(corpus.question_texts())
    rng = random.Random(3)
    drawn = {maker(rng).ask for maker in (corpus.fact, corpus.addition) for _ in range(3000)}
    assert drawn <= every


def test_the_same_seed_gives_the_same_conversations() -> None:
    """Training can be repeated."""
    first, second = (list(itertools.islice(corpus.conversations(seed=5), 50)) for _ in range(2))
    assert first == second


def test_there_are_as_many_cases_as_promised() -> None:
    """Sixty questions, and fifteen of them in a wording of their own."""
    assert len({case["ask"] for case in CASES["questions"] if not case["unseen_wording"]}) >= 60
    assert len(set(UNSEEN)) >= 15
