"""Many runs share their resamples: the same distribution as a pair's own draws, and the same values and verdicts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hf_recipes.compare import measures, shared_draws
from hf_recipes.compare.pairing import Paired
from hf_recipes.compare.shared_draws import draw_shared
from hf_recipes.compare.statistics import bootstrap, swapped
from hf_recipes.compare.verdict import Side, compare
from hf_recipes.evaluation.scores import Scores

RESAMPLES = 4000


def counts(seed: int, n: int = 300) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n), np.ones(n, int)], axis=1).astype(float)


def test_shared_draws_are_those_of_the_bootstrap_and_of_the_exchange_in_mean_and_covariance() -> None:
    runs = [counts(seed) for seed in range(3)]
    found = draw_shared({"a": runs}, RESAMPLES, 0)["a"]
    together = np.concatenate([one.sums for one in found], axis=1)
    every = np.concatenate(runs, axis=1)
    for drawn in (together, bootstrap(every, RESAMPLES, 1)):
        assert drawn.mean(axis=0) == pytest.approx(every.sum(axis=0), rel=0.01)
        assert np.cov(drawn.T) == pytest.approx(len(every) * np.cov(every.T, bias=True), abs=20)
    assert (found[0].sums[:, 2] == 300).all() and not found[0].moved.any()
    gained = found[1].moved
    expected = swapped(runs[0], runs[1], RESAMPLES, 1)[0] - runs[0].sum(axis=0)
    assert gained.mean(axis=0) == pytest.approx(expected.mean(axis=0), abs=0.6)
    assert np.cov(gained.T) == pytest.approx(np.cov(expected.T), abs=12)


def test_rows_that_are_no_counts_keep_draws_of_their_own() -> None:
    assert list(draw_shared({"a": [counts(0), counts(1)], "b": [counts(0) + 0.5] * 2}, 10, 0)) == ["a"]
    assert draw_shared({"a": [counts(0) * 1e6] * 2}, 10, 0) == {}


def test_a_comparison_of_many_runs_has_the_values_and_nearly_the_intervals_of_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gold = np.arange(400) % 3
    rng = np.random.default_rng(0)
    scores, runs = [], []
    for i in range(6):
        predicted = np.where(rng.random(400) < 0.6 + 0.06 * i, gold, rng.integers(0, 3, 400))
        columns = {"id": [str(row) for row in range(400)], "gold": gold, "predicted": predicted}
        table = pa.table({**columns, "correct": predicted == gold})
        scores.append(Scores(task="text-classification", label_names=("a", "b", "c"), table=table))
        runs.append(SimpleNamespace(name=str(i), group="x"))
    every: Any = runs
    paired = Paired(
        runs=tuple(every),
        split="eval",
        scores=tuple(scores),
        measures=measures.MEASURES["text-classification"],
        notes=(),
    )
    sides = [Side(name=str(i), runs=(i,)) for i in range(6)]
    of_pairs = compare(paired, sides)
    monkeypatch.setattr(shared_draws, "MANY", 2)
    monkeypatch.setattr(shared_draws, "BATCH", 2)
    shared = compare(paired, sides)
    for one, other in zip(sum(of_pairs.findings, ()), sum(shared.findings, ()), strict=True):
        assert (one.metric, one.test, one.difference.value) == (other.metric, other.test, other.difference.value)
        assert (other.difference.low, other.difference.high) == pytest.approx(
            (one.difference.low, one.difference.high), abs=0.004
        )
        assert other.p == pytest.approx(one.p, abs=0.02)
