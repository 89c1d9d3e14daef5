"""95 % intervals of one run's metrics: what its report and a list of runs show."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from hf_recipes.compare.measures import available
from hf_recipes.compare.statistics import bootstrap, interval
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
        value = float(measure.value(rows.sum(axis=0)))
        one = interval(value, np.asarray(measure.value(bootstrap(rows, RESAMPLES, seed))))
        found[measure.name] = MetricInterval(value=value, low=one.low, high=one.high)
    return found


def intervals_of_run(folder: Path, record: RunRecord) -> dict[str, dict[str, MetricInterval]]:
    """split -> metric -> interval, for the score files that a run has written and the metrics that it reports. Raises
    RecipeError for a file that is damaged or missing."""
    return {
        split: compute_intervals(
            read_scores(folder / name), {key.partition("_")[2] for key in record.metrics.of(split)}
        )
        for split, name in record.scores.items()
    }
