"""The same examples in every run, in one order; or the reason why they cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_recipes.comparison.measures import BITS_PER_BYTE, MEASURES, PERPLEXITY, Measure
from hf_recipes.comparison.runs import Run
from hf_recipes.errors import fault
from hf_recipes.scores import Scores

WHERE = "hf-recipes compare"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Runs over the same examples: `rows[measure.name][run]` is (N, m), the examples in one order."""

    runs: tuple[Run, ...]
    split: str
    scores: tuple[Scores, ...]  # reordered and cut to the shared examples
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]

    def rows(self, measure: Measure) -> list[np.ndarray]:
        """(N, m) of each run."""
        return [measure.rows(scores) for scores in self.scores]

    @property
    def examples(self) -> int:
        return len(self.scores[0].table)


def pair(runs: Sequence[Run], *, split: str = "eval", common: bool = False, metric: str | None = None) -> Paired:
    """Brings the runs' examples together. Raises RecipeError for what cannot be compared: other tasks, labels or data.

    common: compare over the examples that all runs have, where their evaluation data differ.
    """
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise fault(WHERE, f"runs of other tasks cannot be compared: {', '.join(tasks)}")
    every = [run.scores(split) for run in runs]
    labels = {scores.label_names for scores in every}
    if len(labels) > 1:
        shown = "; ".join(f"{run.name}: {', '.join(s.label_names)}" for run, s in zip(runs, every, strict=True))
        if len({frozenset(names) for names in labels}) > 1:
            raise fault(WHERE, f"the runs have other label sets ({shown})")
        raise fault(WHERE, f"the runs number the same labels differently ({shown})", "evaluate one of them again")
    notes: list[str] = []
    every = _aligned(runs, every, common, notes)
    measures = [m for m in MEASURES[runs[0].task] if not _is_missing(m, every)]
    if PERPLEXITY in measures and not _same_tokens(every):
        measures.remove(PERPLEXITY)
        notes.append("perplexity is left out: the runs have other tokenizers, and a token is another piece of text")
        if not measures:
            raise fault(WHERE, "perplexity across tokenizers says nothing, and the text's bytes are not known")
    if metric is not None:
        measures = [_chosen(metric, measures, runs[0].task)]
    return Paired(runs=tuple(runs), split=split, scores=tuple(every), measures=tuple(measures), notes=tuple(notes))


def _aligned(runs: Sequence[Run], every: list[Scores], common: bool, notes: list[str]) -> list[Scores]:
    first = every[0].table["id"].to_pylist()
    shared = set(first)
    for scores in every[1:]:
        shared &= set(scores.table["id"].to_pylist())
    for run, scores in zip(runs[1:], every[1:], strict=True):
        theirs = set(scores.table["id"].to_pylist())
        gone, new = len(set(first) - theirs), len(theirs - set(first))
        if (gone or new) and not common:
            what = (
                f"{runs[0].name} and {run.name} were evaluated on other examples: {gone:,} of {len(first):,} are not "
            )
            what += f"in the second, {new:,} of {len(theirs):,} not in the first"
            mend = (
                f"--common compares the {len(shared):,} that both have" if shared else "evaluate both on one data set"
            )
            raise fault(WHERE, what, mend)
    if not shared:
        raise fault(WHERE, "the runs share no evaluated example", "evaluate them on one data set")
    if common and any(len(scores.table) != len(shared) for scores in every):
        notes.append(f"compared over the {len(shared):,} examples that all runs have (--common)")
    order = {name: place for place, name in enumerate(name for name in first if name in shared)}
    return [_in_order(scores, order) for scores in every]


def _in_order(scores: Scores, order: dict[str, int]) -> Scores:
    names = scores.table["id"].to_pylist()
    places = np.full(len(order), -1)
    for row, name in enumerate(names):
        if name in order:
            places[order[name]] = row
    table = scores.table.take(places)
    return Scores(task=scores.task, label_names=scores.label_names, table=table)


def _is_missing(measure: Measure, every: Sequence[Scores]) -> bool:
    """Bits per byte where the bytes are not known; span F1 where the labels are no tags."""
    if measure is BITS_PER_BYTE:
        return any(scores.table["n_bytes"].null_count for scores in every)
    if measure.name.startswith("span_f1"):
        return any(name != "O" and (len(name) < 3 or name[1] != "-") for name in every[0].label_names)
    return False


def _same_tokens(every: Sequence[Scores]) -> bool:
    first = every[0].table["n_tokens"]
    return all(scores.table["n_tokens"].equals(first) for scores in every[1:])


def _chosen(metric: str, measures: Sequence[Measure], task: str) -> Measure:
    for measure in measures:
        if measure.name == metric:
            return measure
    names = ", ".join(measure.name for measure in measures)
    raise fault("argument '--metric'", f"{task} has no {metric!r} here", f"it must be one of {names}")
