"""The scorecard: computed from what was measured, and blank where nothing was."""

from __future__ import annotations

import pytest

from .scorecard import BEGIN, MEASURES, Scorecard, quantile, table


def entry(card: Scorecard, row: str, place: int = 0) -> dict[str, object]:
    return [entry for entry in card.entries() if entry["id"] == row][place]


def test_what_was_not_measured_is_blank():
    """Every promise has its line, with its target and no figure, no n and no verdict."""
    entries = Scorecard().entries()
    assert len(MEASURES) == len(entries)
    assert {f"R{number}" for number in range(1, 44)} == {entry["id"] for entry in entries}
    assert {None} == {entry[key] for entry in entries for key in ("measured", "n", "met", "machine")}
    assert all(entry["target"] for entry in entries)


@pytest.mark.parametrize(
    ("row", "key", "figure", "is_met"),
    [
        ("R1", "stub", 100.0, True),
        ("R1", "stub", 100.1, False),
        ("R5", "retry", 100.0, True),
        ("R5", "retry", 99.9, False),
        ("R2", "bytes", 0.0, True),
        ("R2", "bytes", 1.0, False),
    ],
)
def test_the_verdict_is_computed(row, key, figure, is_met):
    """At most the target, or at least where more is better."""
    card = Scorecard()
    card.tell(row, key, figure, n=1)
    (told,) = [entry for entry in card.entries() if entry["met"] is not None]
    assert (row, figure, 1, is_met) == (told["id"], told["measured"], told["n"], told["met"])


def test_of_two_figures_the_worse_counts():
    """Samples add up, and a good one hides no bad one."""
    card = Scorecard()
    for figure in (3.0, 7.0, 5.0):
        card.tell("R1", "stub", figure, n=10)
        card.tell("R5", "retry", figure, n=10)
    assert (7.0, 30) == (entry(card, "R1")["measured"], entry(card, "R1")["n"])
    assert 3.0 == entry(card, "R5", 2)["measured"]


def test_what_nobody_promised_cannot_be_told():
    """A row without a target is a mistake of its test."""
    with pytest.raises(KeyError):
        Scorecard().tell("R1", "nonsense", 1, n=1)


def test_it_is_written(tmp_path):
    """The table stands behind the mark; the words before it stay."""
    (tmp_path / "README.md").write_text(f"# Words\n\n{BEGIN}\nold table\n")
    card = Scorecard()
    card.tell("R1", "stub", 12.345678, n=400)
    card.tell("R2", "bytes", 1, n=200)
    card.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# Words\n\n{BEGIN}")
    assert "old table" not in text
    assert "| <= 100 ms | 12.35 | 400 | yes |" in text
    assert "| 1.0 | 200 | **no** |" in text
    assert (tmp_path / "scorecard.json").read_text().startswith("[")
    assert 2 + len(MEASURES) + 2 == len(table(card.entries()).splitlines())


def test_quantiles_of_few_are_the_largest():
    """The p99 of fewer than a hundred samples is the worst of them."""
    assert [3, 1, 100] == [quantile([1, 3, 2], 0.99), quantile([1, 3, 2], 0.0), quantile(range(1, 101), 0.99)]
