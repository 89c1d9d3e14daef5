"""95 % intervals of a run's metrics, of a difference of two runs, and of two recipes over their seeds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from hf_recipes.compare import small_samples
from hf_recipes.compare.measures import Measure, available
from hf_recipes.compare.statistics import Interval, bootstrap, grouped, interval, studentised
from hf_recipes.evaluation.scores import Scores, read_scores
from hf_recipes.record import MetricInterval, RunRecord

RESAMPLES = 1000


def compute_intervals(scores: Scores, metrics: Collection[str], seed: int = 0) -> dict[str, MetricInterval]:
    """By metric, for those of `metrics` that can be resampled: 95 % by the bootstrap of the examples."""
    found = {}
    for measure in available(scores.task, [scores]):
        if measure.name not in metrics:
            continue
        rows = measure.rows(scores)
        one = compute_interval(measure, rows, np.asarray(measure.value(bootstrap(rows, RESAMPLES, seed))))
        if np.isfinite([one.low, one.high]).all():  # of one example there is none
            found[measure.name] = MetricInterval(value=one.value, low=one.low, high=one.high)
    return found


def compute_interval(measure: Measure, rows: np.ndarray, draws: np.ndarray) -> Interval:
    """The interval of one run's metric; `draws`: the metric of resampled examples. Percentiles of the draws, or where
    these say too little (few examples, a share near 0 or 1) an interval of small_samples.py."""
    value = float(measure.value(rows.sum(axis=0)))
    if measure.units is not None and small_samples.has_few(value, len(rows)):
        return small_samples.wilson(value, measure.units(rows), draws)
    return _interval_by_size(measure, rows, value, draws)


def _interval_by_size(measure: Measure, rows: np.ndarray, value: float, draws: np.ndarray) -> Interval:
    if measure.positive:
        return small_samples.jackknife_of_logarithm(rows)
    if measure.linear or (measure.slope is not None and len(rows) < small_samples.FEW):
        return small_samples.jackknife(rows, measure.value)
    return interval(value, draws)


def intervals_of_run(folder: Path, record: RunRecord) -> dict[str, dict[str, MetricInterval]]:
    """split -> metric -> interval, for the score files that a run has written and the metrics that it reports. Raises
    RecipeError for a file that is damaged or missing."""
    return {
        split: compute_intervals(
            read_scores(folder / name), {key.partition("_")[2] for key in record.metrics.of(split)}
        )
        for split, name in record.scores.items()
    }


def intervals_of_pair(
    measure: Measure, a: np.ndarray, b: np.ndarray, resamples: int, seed: int, draws: np.ndarray | None = None
) -> tuple[tuple[Interval, Interval], Interval]:
    """Of each run's value, and of their difference. `draws`: resampled sums of both, if they are drawn already."""
    value, slope = measure.value, measure.slope
    if measure.linear or (slope is not None and len(a) < small_samples.FEW):
        ends = (_interval_by_size(measure, a, 0.0, np.zeros(0)), _interval_by_size(measure, b, 0.0, np.zeros(0)))
        return ends, small_samples.jackknife_difference(a, b, value)
    middle = float(value(b.sum(axis=0)) - value(a.sum(axis=0)))
    if slope is not None:
        difference, draws = studentised(a, b, value, slope, resamples, seed)
    elif draws is None:
        draws = bootstrap(np.concatenate([a, b], axis=1), resamples, seed)
    of_a, of_b = value(draws[:, : a.shape[1]]), value(draws[:, a.shape[1] :])
    if measure.percent and len(a) < small_samples.FEWEST:
        unknown = float("nan")
        difference = Interval(value=middle, low=unknown, high=unknown, error=unknown)
    elif measure.percent and small_samples.differ_on_few([a, b]):
        draws = _add_pseudo_examples(measure, a, draws, (1, 1), seed)
        apart = value(draws[:, a.shape[1] :]) - value(draws[:, : a.shape[1]])
        difference = small_samples.interval_around(middle, apart)
    elif slope is None:
        difference = interval(middle, of_b - of_a)
    return (compute_interval(measure, a, of_a), compute_interval(measure, b, of_b)), difference


def interval_of_groups(
    measure: Measure, first: list[np.ndarray], second: list[np.ndarray], resamples: int, seed: int
) -> tuple[Interval, float, float]:
    """Interval, p-value and degrees of freedom of the difference of two recipes' means over their seeds."""
    runs, value = [*first, *second], measure.value
    draws = bootstrap(np.concatenate(runs, axis=1), resamples, seed)
    if measure.percent and small_samples.differ_on_few(runs):
        draws = _add_pseudo_examples(measure, runs[0], draws, (len(first), len(second)), seed)
    values = np.stack([value(part) for part in np.split(draws, len(runs), axis=1)])
    means = [np.array([float(value(run.sum(axis=0))) for run in group]) for group in (first, second)]
    freedom = small_samples.freedom_of(runs[0]) if measure.slope is not None else max(1.0, len(runs[0]) - 1.0)
    covariance = np.cov(values[:, np.isfinite(values).all(axis=0)], bias=True)
    return grouped(covariance, (means[0], means[1]), freedom)


def _add_pseudo_examples(
    measure: Measure, rows: np.ndarray, draws: np.ndarray, sides: tuple[int, int], seed: int
) -> np.ndarray:
    assert measure.extremes is not None  # every share has them
    return small_samples.add_pseudo_examples(draws, *measure.extremes(rows), sides, seed)
