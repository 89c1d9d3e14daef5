"""Compares runs with the first one, metric by metric: interval, test, verdict."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from hf_recipes.compare import shared_draws, small_samples, statistics
from hf_recipes.compare.intervals import interval_of_groups, intervals_of_pair
from hf_recipes.compare.measures import ACCURACY, Measure
from hf_recipes.compare.pairing import Paired
from hf_recipes.compare.runs import Run
from hf_recipes.compare.statistics import Interval
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.scores import Scores

Rows = Callable[[Scores], np.ndarray]
BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "cannot tell"
ALPHA = 1 - statistics.LEVEL
SEEDS = 3  # runs that a recipe should have in a group
ABOUT_MODELS = (
    "this is about these models, not about their recipes: train each recipe with three seeds or more, "
    "then add --group recipe"
)
ONE_RECIPE = "all runs have the same recipe and differ only in their seeds: every difference is chance"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One metric of one run (or group) against the first. `difference` is second minus first."""

    metric: str
    first: Interval
    second: Interval
    difference: Interval
    p: float
    p_corrected: float  # Holm, over the runs that are compared with the first
    test: str
    verdict: str
    detectable: float  # the smallest difference that this evaluation could have shown (power 80 %)
    percent: bool
    alike: bool  # every example scores alike in all runs


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is compared: one run, or the runs of one recipe."""

    name: str
    runs: tuple[int, ...]  # indices into Paired.runs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Each side after the first against the first; `findings[i]` are of sides[i + 1], a metric each."""

    paired: Paired
    sides: tuple[Side, ...]
    findings: tuple[tuple[Finding, ...], ...]
    notes: tuple[str, ...]
    resamples: int
    seed: int


def group_sides(runs: Sequence[Run], grouped: bool) -> tuple[Side, ...]:
    """One side a run; with `grouped` one a recipe, by order of appearance. Runs of one recipe are grouped by their
    names (a-1 a-2 b-1 b-2), else the first half is compared with the second. Raises RecipeError for a single run."""
    if not grouped:
        return tuple(Side(name=run.name, runs=(i,)) for i, run in enumerate(runs))
    groups = _group_by(run.group for run in runs)
    if len(groups) == 1:
        if len(runs) < 4:
            what = f"all {len(runs)} runs have the same recipe"
            raise RecipeError.at(
                "argument '--group'", what, "give runs of two recipes, or four of one to compare half with half"
            )
        groups = _group_by(_stem(run.name) for run in runs)
        if len(groups) == 1 or min(map(len, groups)) < 2:
            middle = (len(runs) + 1) // 2
            groups = [list(range(middle)), list(range(middle, len(runs)))]
    found = []
    for members in groups:
        names = [runs[i].name for i in members]
        if len(members) < 2:
            what = f"{names[0]} is the only run of its recipe: one seed does not show what another would give"
            raise RecipeError.at("argument '--group'", what, f"train it with {SEEDS} seeds or more")
        found.append(Side(name=_common_name(names), runs=tuple(members)))
    if len({side.name for side in found}) < len(found):
        found = [replace(side, name=f"{side.name} {chr(65 + i)}") for i, side in enumerate(found)]
    return tuple(found)


def _group_by(keys: Iterable[str]) -> list[list[int]]:
    """Indices of equal keys, by order of appearance."""
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _stem(name: str) -> str:
    """A name without its seed: "a/seed-42" and "a-3" are "a"."""
    return re.sub(r"[-_./]*(seed[-_=]?)?[-_./\d]*$", "", name)


def _common_name(names: Sequence[str]) -> str:
    """The common beginning of the names, without the seed."""
    shortest = min(names, key=len)
    same = next((n for n, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), len(shortest))
    stem = _stem(shortest[:same])
    if not stem:  # named by their seeds only
        return f"{names[0]} to {names[-1]} ({len(names)} runs)"
    return f"{stem} ({len(names)} runs)"


def compare(
    paired: Paired, sides: Sequence[Side], *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> Comparison:
    """Every metric of every side against the first. Deterministic for a seed."""
    notes = list(paired.notes)
    if all(len(side.runs) == 1 for side in sides):
        notes.append(ABOUT_MODELS)
    if any(len(side.runs) > 1 for side in sides) and len({run.group for run in paired.runs}) == 1:
        notes.append(ONE_RECIPE)
    few = [side.name for side in sides if 1 < len(side.runs) < SEEDS]
    if few:
        notes.append(f"{', '.join(few)}: fewer than {SEEDS} seeds: the interval is wide because little is known")
    by_metric = [
        _decide(found, measure)
        for found, measure in zip(_compute_findings(paired, sides, resamples, seed), paired.measures, strict=True)
    ]
    findings = tuple(tuple(of_metric[i] for of_metric in by_metric) for i in range(len(sides) - 1))
    return Comparison(
        paired=paired, sides=tuple(sides), findings=findings, notes=tuple(notes), resamples=resamples, seed=seed
    )


def _compute_findings(paired: Paired, sides: Sequence[Side], resamples: int, seed: int) -> list[list[Finding]]:
    """For each metric the findings of all sides but the first, which do not depend on each other."""
    found: list[list[Finding]] = [[] for _ in paired.measures]
    rows = {measure.rows: paired.rows(measure) for measure in paired.measures}  # some metrics have the same
    many = len(sides) > shared_draws.MANY and all(len(side.runs) == 1 for side in sides)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(1, len(sides), shared_draws.BATCH):
            batch = sides[start : start + shared_draws.BATCH]
            counts = _of_counts(paired, rows, [sides[0], *batch]) if many else {}
            drawn = shared_draws.draw_shared(counts, resamples, seed)
            for measure, findings in zip(paired.measures, found, strict=True):
                of_runs = rows[measure.rows]
                findings += pool.map(
                    functools.partial(
                        _compute_finding, measure, [of_runs[i] for i in sides[0].runs], resamples=resamples, seed=seed
                    ),
                    [[of_runs[i] for i in side.runs] for side in batch],
                    _pair_with_first(drawn.get(measure.rows), len(batch)),
                )
    return found


def _of_counts(
    paired: Paired, rows: Mapping[Rows, list[np.ndarray]], sides: Sequence[Side]
) -> dict[Rows, list[np.ndarray]]:
    """The rows of these sides' runs, for metrics of counts. (Others have draws that are the same for all runs.)"""
    kinds = {measure.rows for measure in paired.measures if measure.slope is None}
    return {kind: [of_runs[side.runs[0]] for side in sides] for kind, of_runs in rows.items() if kind in kinds}


def _pair_with_first(
    drawn: Sequence[shared_draws.Drawn] | None, count: int
) -> Sequence[tuple[shared_draws.Drawn, shared_draws.Drawn] | None]:
    return [None] * count if drawn is None else [(drawn[0], one) for one in drawn[1:]]


def _decide(found: Sequence[Finding], measure: Measure) -> list[Finding]:
    """Verdicts of one metric, with Holm's correction for the number of findings."""
    corrected = statistics.holm([one.p for one in found])
    return [_decide_verdict(replace(one, p_corrected=p), measure) for one, p in zip(found, corrected, strict=True)]


def _compute_finding(
    measure: Measure,
    first: list[np.ndarray],
    second: list[np.ndarray],
    drawn: tuple[shared_draws.Drawn, shared_draws.Drawn] | None,
    *,
    resamples: int,
    seed: int,
) -> Finding:
    """`drawn`: of the first run and the second, where many runs share their draws."""
    alike = all(np.array_equal(run, first[0]) for run in (*first, *second))
    if len(first) == len(second) == 1:
        a, b = first[0], second[0]
        draws = None if drawn is None else np.concatenate([one.sums for one in drawn], axis=1, dtype=float)
        ends, difference = intervals_of_pair(measure, a, b, resamples, seed, draws)
        test, p = _run_test(measure, a, b, resamples, seed, None if drawn is None else drawn[1].moved)
        few = measure.slope is not None and len(a) < small_samples.FEW
        freedom = small_samples.freedom_of(a) if few else math.inf
    else:
        difference, p, freedom = interval_of_groups(measure, first, second, resamples, seed)
        ends = (_mean_over_seeds(measure, first), _mean_over_seeds(measure, second))
        test = "Student's t over seeds and examples"
    if measure.percent:  # a difference of two shares has its bounds
        difference = replace(difference, low=max(difference.low, -1.0), high=min(difference.high, 1.0))
    return Finding(
        metric=measure.name,
        first=ends[0],
        second=ends[1],
        difference=difference,
        p=p,
        p_corrected=p,
        test=test,
        verdict="",
        detectable=min(statistics.detectable(difference.error, freedom), 1.0 if measure.percent else math.inf),
        percent=measure.percent,
        alike=alike,
    )


def _mean_over_seeds(measure: Measure, group: list[np.ndarray]) -> Interval:
    """The mean over the seeds, from the least to the greatest of them."""
    values = np.array([float(measure.value(run.sum(axis=0))) for run in group])
    error = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Interval(value=float(values.mean()), low=float(values.min()), high=float(values.max()), error=error)


def _run_test(
    measure: Measure, a: np.ndarray, b: np.ndarray, resamples: int, seed: int, moved: np.ndarray | None
) -> tuple[str, float]:
    one_each = measure is ACCURACY and bool((a[:, 1] == 1).all())
    if one_each:
        return "exact McNemar", statistics.mcnemar(a[:, 0] == 1, b[:, 0] == 1)
    p = statistics.randomisation(a, b, measure.value, resamples, seed, moved)
    return "approximate randomisation", p


def _decide_verdict(finding: Finding, measure: Measure) -> Finding:
    """Better or worse where test and interval agree; no difference where both runs score every example alike."""
    apart = finding.difference
    if finding.alike:
        return replace(finding, verdict=SAME)
    sure = finding.p_corrected < ALPHA and (apart.low > 0 or apart.high < 0)
    if not sure:
        return replace(finding, verdict=UNKNOWN)
    return replace(finding, verdict=BETTER if (apart.value > 0) == measure.higher_is_better else WORSE)
