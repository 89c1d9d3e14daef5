"""One run's own numbers with their intervals: what a report of it and a list of runs show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.comparison.measures import available
from hf_recipes.comparison.statistics import bootstrap, interval
from hf_recipes.scores import Scores, read_scores

RESAMPLES = 2000


def intervals(scores: Scores, seed: int = 0) -> dict[str, dict[str, Any]]:
    """metric -> {"value", "low", "high"}: 95 % by the bootstrap of the examples, as a record keeps them."""
    found = {}
    for measure in available(scores.task, [scores]):
        rows = measure.rows(scores)
        value = float(measure.value(rows.sum(axis=0)))
        one = interval(value, np.asarray(measure.value(bootstrap(rows, RESAMPLES, seed))))
        found[measure.name] = {"value": value, "low": one.low, "high": one.high}
    return found


def of_files(folder: Path, names: Mapping[str, str]) -> dict[str, dict[str, dict[str, Any]]]:
    """split -> metric -> interval, of the score files that a run has written."""
    return {split: intervals(read_scores(folder / name)) for split, name in names.items()}


def shown(interval_of: Mapping[str, Any], percent: bool) -> str:
    """ "92.3 % (90.1 to 94.2)"."""
    value, low, high = (interval_of[key] for key in ("value", "low", "high"))
    if not all(isinstance(one, int | float) for one in (value, low, high)):
        return str(value)
    if percent:
        return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{value:.4g} ({low:.4g} to {high:.4g})"
