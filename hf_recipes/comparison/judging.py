"""Runs against the first one, metric by metric: interval, test, and the verdict in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_recipes.comparison import statistics
from hf_recipes.comparison.measures import ACCURACY, Measure
from hf_recipes.comparison.pairing import Paired
from hf_recipes.comparison.runs import Run
from hf_recipes.comparison.statistics import Interval
from hf_recipes.errors import fault

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "cannot tell"
ALPHA = 1 - statistics.LEVEL
SEEDS = 3  # runs that a recipe should have in a group
ABOUT_MODELS = "about these models, not their recipes: train each with three seeds or more and say --group recipe"


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


def sides_of(runs: Sequence[Run], grouped: bool) -> tuple[Side, ...]:
    """One side a run; with `grouped` one a recipe, by order of appearance. Raises RecipeError for a lonely run."""
    if not grouped:
        return tuple(Side(name=run.name, runs=(i,)) for i, run in enumerate(runs))
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(run.group, []).append(i)
    found = []
    for members in groups.values():
        names = [runs[i].name for i in members]
        if len(members) < 2:
            what = f"{names[0]} is the only run of its recipe: one seed says nothing of what another would give"
            raise fault("argument '--group'", what, f"train it with {SEEDS} seeds or more")
        found.append(Side(name=_common(names), runs=tuple(members)))
    if len(found) < 2:
        raise fault("argument '--group'", "all runs are of one recipe", "give runs of two, or leave --group out")
    return tuple(found)


def _common(names: Sequence[str]) -> str:
    """The names' common beginning, without what is left of a seed."""
    shortest = min(names, key=len)
    same = next((n for n, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), len(shortest))
    stem = re.sub(r"[-_./]*(seed[-_=]?)?[-_./\d]*$", "", shortest[:same])
    return f"{stem or names[0]} ({len(names)} runs)"


def compare(
    paired: Paired, sides: Sequence[Side], *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> Comparison:
    """Every metric of every side against the first. Deterministic for a seed."""
    notes = list(paired.notes)
    if all(len(side.runs) == 1 for side in sides):
        notes.append(ABOUT_MODELS)
    few = [side.name for side in sides if 1 < len(side.runs) < SEEDS]
    if few:
        notes.append(f"{', '.join(few)}: fewer than {SEEDS} seeds: the interval is wide because little is known")
    by_metric = [_of_metric(paired, sides, measure, resamples, seed) for measure in paired.measures]
    findings = tuple(tuple(of_metric[i] for of_metric in by_metric) for i in range(len(sides) - 1))
    return Comparison(
        paired=paired, sides=tuple(sides), findings=findings, notes=tuple(notes), resamples=resamples, seed=seed
    )


def _of_metric(paired: Paired, sides: Sequence[Side], measure: Measure, resamples: int, seed: int) -> list[Finding]:
    rows = paired.rows(measure)
    first = [rows[i] for i in sides[0].runs]
    found = [_finding(measure, first, [rows[i] for i in side.runs], resamples, seed) for side in sides[1:]]
    corrected = statistics.holm([one.p for one in found])
    return [_judged(replace(one, p_corrected=p), measure) for one, p in zip(found, corrected, strict=True)]


def _finding(measure: Measure, first: list[np.ndarray], second: list[np.ndarray], resamples: int, seed: int) -> Finding:
    value = measure.value
    if len(first) == len(second) == 1:
        a, b = first[0], second[0]
        draws = statistics.bootstrap(np.concatenate([a, b], axis=1), resamples, seed)
        of_a, of_b = value(draws[:, : a.shape[1]]), value(draws[:, a.shape[1] :])
        ends = float(value(a.sum(axis=0))), float(value(b.sum(axis=0)))
        whole = (statistics.interval(ends[0], of_a), statistics.interval(ends[1], of_b))
        difference = statistics.interval(ends[1] - ends[0], of_b - of_a)
        if measure.slope is not None:
            difference = statistics.studentised(a, b, value, measure.slope, resamples, seed)
        test, p = _tested(measure, a, b, resamples, seed)
    else:
        difference, p = statistics.grouped(first, second, value, resamples, seed)
        whole = (_mean(measure, first), _mean(measure, second))
        test = "Student's t over seeds and examples"
    return Finding(
        metric=measure.name,
        first=whole[0],
        second=whole[1],
        difference=difference,
        p=p,
        p_corrected=p,
        test=test,
        verdict="",
        detectable=statistics.detectable(difference.error),
        percent=measure.percent,
    )


def _mean(measure: Measure, group: list[np.ndarray]) -> Interval:
    """The mean over the seeds, from the least to the greatest of them."""
    values = np.array([float(measure.value(run.sum(axis=0))) for run in group])
    error = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Interval(value=float(values.mean()), low=float(values.min()), high=float(values.max()), error=error)


def _tested(measure: Measure, a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> tuple[str, float]:
    one_each = measure is ACCURACY and bool((a[:, 1] == 1).all())
    if one_each:
        return "exact McNemar", statistics.mcnemar(a[:, 0] == 1, b[:, 0] == 1)
    return "approximate randomisation", statistics.randomisation(a, b, measure.value, resamples, seed)


def _judged(finding: Finding, measure: Measure) -> Finding:
    """Better or worse where test and interval agree; two runs that score every example alike show no difference."""
    apart = finding.difference
    if apart.value == 0 and apart.low == apart.high == 0:
        return replace(finding, verdict=SAME)
    sure = finding.p_corrected < ALPHA and (apart.low > 0 or apart.high < 0)
    if not sure:
        return replace(finding, verdict=UNKNOWN)
    return replace(finding, verdict=BETTER if (apart.value > 0) == measure.higher_is_better else WORSE)
