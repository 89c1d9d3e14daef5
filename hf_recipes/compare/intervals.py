"""One run's own numbers with their intervals: what a report of it and a list of runs show."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.compare.measures import available
from hf_recipes.compare.statistics import bootstrap, interval
from hf_recipes.evaluation.scores import Scores, read_scores

RESAMPLES = 1000


def intervals(scores: Scores, metrics: Collection[str], seed: int = 0) -> dict[str, dict[str, Any]]:
    """metric -> {"value", "low", "high"}, of those of `metrics` that can be resampled: 95 % by the bootstrap of the
    examples, as a record keeps them."""
    found = {}
    for measure in available(scores.task, [scores]):
        if measure.name not in metrics:
            continue
        rows = measure.rows(scores)
        value = float(measure.value(rows.sum(axis=0)))
        one = interval(value, np.asarray(measure.value(bootstrap(rows, RESAMPLES, seed))))
        found[measure.name] = {"value": value, "low": one.low, "high": one.high}
    return found


def of_run(folder: Path, record: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """split -> metric -> interval, of the score files that a run has written and the metrics that it reports. Raises
    RecipeError for a file that is damaged or gone."""
    reported = record.get("metrics") or {}
    return {
        split: intervals(read_scores(folder / name), {key.partition("_")[2] for key in reported.get(split) or ()})
        for split, name in record["scores"].items()
    }
