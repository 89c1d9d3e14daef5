"""Errors and correlations of scores as sums over examples: their values are SciPy's, their spread the bootstrap's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_recipes.compare import correlations, measures
from hf_recipes.compare.intervals import intervals_of_pair


def scores(n: int, ties: bool, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 5, n).astype(float) if ties else rng.normal(size=n)
    predicted = gold + rng.normal(0, noise, n)
    return gold, np.round(predicted) if ties else np.exp(predicted)


@pytest.mark.parametrize("ties", [False, True])
def test_values_equal_scipys(ties: bool) -> None:
    gold, predicted = scores(200, ties)
    for rows, measure, wanted in (
        (correlations.pearson_rows, measures.PEARSON, stats.pearsonr(gold, predicted).statistic),
        (correlations.spearman_rows, measures.SPEARMAN, stats.spearmanr(gold, predicted).statistic),
        (correlations.squared_errors, measures.MSE, np.mean((gold - predicted) ** 2)),
    ):
        assert float(measure.value(rows(gold, predicted).sum(axis=0))) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_the_spread_of_resampled_rows_is_that_of_resampled_correlations(ties: bool) -> None:
    gold, predicted = scores(400, ties)
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 400, (400, 400))
    for rows, scipys in (
        (correlations.pearson_rows(gold, predicted), stats.pearsonr),
        (correlations.spearman_rows(gold, predicted), stats.spearmanr),
    ):
        ours = correlations.tanh_of_mean(np.stack([rows[draw].sum(axis=0) for draw in draws])).std()
        theirs = np.std([scipys(gold[draw], predicted[draw]).statistic for draw in draws])
        assert ours == pytest.approx(theirs, rel=0.15)


def test_constant_predictions_have_no_correlation_and_perfect_ones_have_one() -> None:
    gold = np.arange(10.0)
    for measure, rows in (
        (measures.PEARSON, correlations.pearson_rows),
        (measures.SPEARMAN, correlations.spearman_rows),
    ):
        assert np.isnan(measure.value(rows(gold, np.zeros(10)).sum(axis=0)))
        assert float(measure.value(rows(gold, 2 * gold).sum(axis=0))) == pytest.approx(1.0, abs=1e-9)


def test_a_better_predictor_of_scores_is_found_better_by_its_interval() -> None:
    gold, first = scores(300, ties=False, noise=1.0)
    second = np.exp(gold)
    for measure, rows in (
        (measures.PEARSON, correlations.pearson_rows),
        (measures.SPEARMAN, correlations.spearman_rows),
    ):
        _, apart = intervals_of_pair(measure, rows(gold, first), rows(gold, second), 200, 0)
        assert 0 < apart.low < apart.value < apart.high < 1
