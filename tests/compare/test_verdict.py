"""Sides, findings and verdicts of a comparison, each by hand-made runs whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from hf_recipes.compare import measures, verdict
from hf_recipes.compare.pairing import Paired
from hf_recipes.compare.statistics import Interval
from hf_recipes.compare.verdict import BETTER, SAME, UNKNOWN, WORSE, Finding, Side, compare, group_sides
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.scores import Scores


def _runs(*names: str, groups: str = "") -> list[Any]:
    return [SimpleNamespace(name=n, group=g) for n, g in zip(names, groups or "x" * len(names), strict=True)]


def _paired(gold: np.ndarray, *predicted: np.ndarray, groups: str = "") -> Paired:
    """Classifiers that predicted these labels."""
    tables = [
        pa.table({"id": [str(i) for i in range(len(gold))], "gold": gold, "predicted": one, "correct": one == gold})
        for one in predicted
    ]
    scores = tuple(Scores(task="text-classification", label_names=("no", "yes"), table=table) for table in tables)
    runs = tuple(_runs(*(f"run-{i}" for i in range(len(predicted))), groups=groups))
    return Paired(runs=runs, split="eval", scores=scores, measures=(measures.ACCURACY, measures.F1), notes=("a note",))


def _wrong(gold: np.ndarray, count: int, start: int = 0) -> np.ndarray:
    """Predictions that are right but for `count` rows from `start` on."""
    found = gold.copy()
    found[start : start + count] ^= 1
    return found


GOLD = np.arange(400) % 2


# sides --------------------------------------------------------------------------------------------------------------


def _sides(*names: str, groups: str = "") -> list[tuple[str, tuple[int, ...]]]:
    return [(side.name, side.runs) for side in group_sides(_runs(*names, groups=groups), True)]


def test_without_groups_each_run_is_a_side() -> None:
    sides = group_sides(_runs("a", "b"), False)
    assert [(side.name, side.runs) for side in sides] == [("a", (0,)), ("b", (1,))]


def test_runs_of_two_recipes_are_two_sides_named_by_what_their_names_share() -> None:
    assert _sides("a-1", "b/seed-1", "a-2", "b/seed-2", groups="xyxy") == [
        ("a (2 runs)", (0, 2)),
        ("b (2 runs)", (1, 3)),
    ]


def test_names_of_which_one_begins_the_other_share_the_shorter_one() -> None:
    assert _sides("a", "ab", "c1", "c2", groups="xxyy") == [("a (2 runs)", (0, 1)), ("c (2 runs)", (2, 3))]
    assert _sides("ab", "a", "c1", "c2", groups="xxyy")[0] == ("a (2 runs)", (0, 1))


def test_names_that_share_nothing_are_given_from_the_first_to_the_last() -> None:
    assert _sides("k-1", "m-1", "c1", "c2", groups="xxyy")[0] == ("k-1 to m-1 (2 runs)", (0, 1))


def test_two_recipes_of_one_name_get_letters() -> None:
    assert [name for name, _ in _sides("a-1", "a-2", "a-3", "a-4", groups="xxyy")] == [
        "a (2 runs) A",
        "a (2 runs) B",
    ]


def test_runs_of_one_recipe_are_grouped_by_name_where_each_name_has_two() -> None:
    assert _sides("a-1", "b-1", "a-2", "b-2") == [("a (2 runs)", (0, 2)), ("b (2 runs)", (1, 3))]


@pytest.mark.parametrize(
    ("names", "first", "second"),
    [
        (["s-1", "s-2", "s-3", "s-4"], (0, 1), (2, 3)),
        (["s-1", "s-2", "s-3", "s-4", "s-5"], (0, 1, 2), (3, 4)),
        (["a-1", "a-2", "a-3", "b-1"], (0, 1), (2, 3)),  # one b alone says nothing
    ],
)
def test_other_runs_of_one_recipe_are_halves(names: list[str], first: Any, second: Any) -> None:
    assert [runs for _, runs in _sides(*names)] == [first, second]


def test_a_run_that_is_alone_and_three_of_one_recipe_are_refused() -> None:
    for names, groups in ((("a-1", "a-2", "b-1"), "xxy"), (("a-1", "a-2", "a-3"), "xxx")):
        with pytest.raises(RecipeError):
            group_sides(_runs(*names, groups=groups), True)


# findings -----------------------------------------------------------------------------------------------------------


def _compare(paired: Paired, *sides: tuple[int, ...], **options: Any) -> verdict.Comparison:
    return compare(paired, [Side(name=f"side {i}", runs=runs) for i, runs in enumerate(sides)], **options)


def test_accuracy_of_two_runs_has_both_values_their_intervals_and_the_exact_test() -> None:
    paired = _paired(GOLD, _wrong(GOLD, 200), _wrong(GOLD, 40, 180))  # 20 wrong in both
    found = _compare(paired, (0,), (1,), resamples=2000)
    [[accuracy, f1]] = found.findings
    assert (accuracy.metric, accuracy.percent, f1.metric) == ("accuracy", True, "f1")
    assert (accuracy.first.value, accuracy.second.value, accuracy.difference.value) == pytest.approx((0.5, 0.9, 0.4))
    for one, middle in ((accuracy.first, 0.5), (accuracy.second, 0.9), (accuracy.difference, 0.4)):
        assert middle - 0.1 < one.low < middle < one.high < middle + 0.1
    assert accuracy.test == "exact McNemar" and accuracy.p == pytest.approx(binomtest(20, 200, 0.5).pvalue)
    assert f1.test == "approximate randomisation" and f1.p == pytest.approx(1 / 2001)
    assert (accuracy.verdict, f1.verdict) == (BETTER, BETTER)
    assert 0 < accuracy.detectable < 0.2
    assert (found.seed, found.resamples, found.notes) == (0, 2000, ("a note", verdict.ABOUT_MODELS))
    assert _compare(paired, (1,), (0,), resamples=200).findings[0][0].verdict == WORSE


def test_the_exact_test_counts_the_examples_that_one_run_alone_gets_right() -> None:
    paired = _paired(GOLD, _wrong(GOLD, 30), _wrong(GOLD, 12, 25))  # 25 only the second gets right, 7 only the first
    [[accuracy, _]] = _compare(paired, (0,), (1,), resamples=200).findings
    assert accuracy.p == pytest.approx(binomtest(7, 32, 0.5).pvalue)


def test_p_values_against_the_first_run_are_corrected_for_their_number() -> None:
    paired = _paired(GOLD, _wrong(GOLD, 60), _wrong(GOLD, 40), _wrong(GOLD, 59))
    [[one, _], [other, _]] = _compare(paired, (0,), (1,), (2,), resamples=200).findings
    assert one.p_corrected == pytest.approx(2 * one.p) and other.p_corrected == pytest.approx(other.p)


def test_groups_of_two_seeds_have_means_and_a_note_that_two_are_few() -> None:
    wrong = [200, 120, 40, 80]
    paired = _paired(GOLD, *(_wrong(GOLD, count) for count in wrong))
    found = _compare(paired, (0, 1), (2, 3), resamples=500)
    assert found.notes == (
        "a note",
        "all runs have the same recipe and differ only in their seeds: every difference is chance",
        "side 0, side 1: fewer than 3 seeds: the interval is wide because little is known",
    )
    [[accuracy, _]] = found.findings
    assert accuracy.first == Interval(
        value=pytest.approx(0.6), low=0.5, high=pytest.approx(0.7), error=pytest.approx(0.2 / 2**0.5)
    )
    assert accuracy.second.value == pytest.approx(0.85) and accuracy.test == "Student's t over seeds and examples"
    assert -1 <= accuracy.difference.low < 0.25 < accuracy.difference.high <= 1


def test_groups_of_three_seeds_of_two_recipes_have_no_note() -> None:
    paired = _paired(GOLD, *(_wrong(GOLD, count) for count in (50, 52, 54, 20, 22, 24)), groups="xxxyyy")
    assert _compare(paired, (0, 1, 2), (3, 4, 5), resamples=200).notes == ("a note",)


def test_accuracy_over_several_tokens_an_example_is_not_tested_by_mcnemar() -> None:
    table = pa.table({"id": ["a", "b"], "gold": [[0, 1], [1]], "predicted": [[0, 0], [1]]})
    scores = Scores(task="token-classification", label_names=("O", "B-X"), table=table)
    paired = Paired(
        runs=tuple(_runs("a", "b")), split="eval", scores=(scores, scores), measures=(measures.ACCURACY,), notes=()
    )
    [[accuracy]] = _compare(paired, (0,), (1,), resamples=100).findings
    assert (accuracy.test, accuracy.p, accuracy.verdict) == ("approximate randomisation", 1.0, SAME)


# the verdict --------------------------------------------------------------------------------------------------------

JUST_BELOW, ALPHA = 0.0499, 0.05


@pytest.mark.parametrize(
    ("value", "low", "high", "p", "expected"),
    [
        (0.0, 0.0, 0.0, 1.0, SAME),
        (0.0, -0.1, 0.1, 1.0, UNKNOWN),  # equal by chance: the examples differ
        (0.1, 0.0, 0.0, 0.5, UNKNOWN),
        (0.2, 0.1, 0.3, JUST_BELOW, BETTER),
        (-0.2, -0.3, -0.1, JUST_BELOW, WORSE),
        (0.2, 0.1, 0.3, 0.051, UNKNOWN),  # the interval alone
        (0.2, -0.01, 0.3, 0.001, UNKNOWN),  # the test alone
        (-0.2, -0.3, 0.01, 0.001, UNKNOWN),
        (0.2, 0.0, 0.3, 0.001, UNKNOWN),  # an interval that ends at 0 holds 0
        (-0.2, -0.3, 0.0, 0.001, UNKNOWN),
    ],
)
def test_the_verdict_is_better_or_worse_where_test_and_interval_agree(
    value: float, low: float, high: float, p: float, expected: str
) -> None:
    apart = Interval(value=value, low=low, high=high, error=0.1)
    words = {"first": apart, "second": apart, "test": "", "verdict": "", "detectable": 0.1, "percent": True}
    words["alike"] = expected == SAME
    finding = Finding(metric="accuracy", difference=apart, p=p / 2, p_corrected=p, **words)
    assert verdict._decide_verdict(finding, measures.ACCURACY).verdict == expected
    turned = {BETTER: WORSE, WORSE: BETTER}.get(expected, expected)  # of perplexity, less is better
    assert verdict._decide_verdict(finding, measures.PERPLEXITY).verdict == turned


def test_the_level_of_a_verdict_is_five_percent() -> None:
    assert pytest.approx(ALPHA) == verdict.ALPHA
