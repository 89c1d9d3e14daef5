"""The same examples in every run, in one order; or the reason why they cannot be compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_recipes.compare.measures import PERPLEXITY, Measure, available
from hf_recipes.compare.runs import Run
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.scores import Scores

WHERE = "hf-recipes compare"
ROWS = 4  # of a stretch: its ends, which differ by up to half a row, weigh little


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


def pair_runs(runs: Sequence[Run], *, split: str = "eval", common: bool = False, metric: str | None = None) -> Paired:
    """Brings the runs' examples together. Raises RecipeError for what cannot be compared: other tasks, labels or data.

    common: compare over the examples that all runs have, where their evaluation data differ.
    """
    tasks = sorted({run.scored_as for run in runs})
    if len(tasks) > 1:
        raise RecipeError.at(WHERE, f"runs of different tasks cannot be compared: {', '.join(tasks)}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        every = list(pool.map(lambda run: run.scores(split), runs))
    labels = {scores.label_names for scores in every}
    if len(labels) > 1:
        shown = "; ".join(f"{run.name}: {', '.join(s.label_names)}" for run, s in zip(runs, every, strict=True))
        if len({frozenset(names) for names in labels}) > 1:
            raise RecipeError.at(WHERE, f"the runs have different label sets ({shown})")
        raise RecipeError.at(
            WHERE, f"the runs number the same labels differently ({shown})", "evaluate one of them again"
        )
    notes = [f"{run.name} diverged: {run.record.diverged}" for run in runs if run.record.diverged]
    stretched = _pair_stretches(runs, every, split, notes)
    every = stretched or _align_examples(runs, every, common, notes)
    measures = available(runs[0].scored_as, every)
    if PERPLEXITY in measures and (stretched or not _same_tokens(every)):
        measures.remove(PERPLEXITY)
        notes.append("perplexity is left out: the runs have different tokens, or predict different ones")
        if not measures:
            raise RecipeError.at(
                WHERE,
                "perplexity cannot be compared across tokenizers, and the number of bytes of the text is not known",
            )
    if metric is not None:
        measures = [_choose_measure(metric, measures, runs[0].scored_as)]
    return Paired(runs=tuple(runs), split=split, scores=tuple(every), measures=tuple(measures), notes=tuple(notes))


def _pair_stretches(runs: Sequence[Run], every: Sequence[Scores], split: str, notes: list[str]) -> list[Scores] | None:
    """The same text in other rows (another tokenizer or length): paired by stretches of it. None where rows agree, or
    where the texts are not known to be the same."""
    texts = {run.record.data[split].fingerprint if split in run.record.data else None for run in runs}
    alike = all(scores.table["id"].equals(every[0].table["id"]) for scores in every[1:])
    if alike or len(texts) > 1 or texts & {None, ""} or not all("n_bytes" in s.table.column_names for s in every):
        return None
    if any(scores.table["n_bytes"].null_count for scores in every):
        return None
    if runs[0].task == "chat":  # a row is a conversation
        if len({len(scores.table) for scores in every}) > 1:
            what = "the runs were evaluated on the same conversations, but a different number of them was left out"
            raise RecipeError.at(WHERE, what, "raise max_length until none is left out")
        notes.append("the conversations have different tokens (another tokenizer or max_length): paired by their order")
        return [_sum_rows(scores, np.arange(len(scores.table)) + 1) for scores in every]
    cuts = find_stretches([scores.table["n_bytes"].to_numpy() for scores in every])
    notes.append(
        f"the runs cut the same text into different rows (another tokenizer or max_length): compared over "
        f"{len(cuts[0]):,} stretches of it, whose ends differ by less than a row"
    )
    return [_sum_rows(scores, ends) for scores, ends in zip(every, cuts, strict=True)]


def find_stretches(sizes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each run its rows' bytes -> the ends (row numbers, exclusive) of stretches that hold the same text in all.

    A stretch is ROWS rows of the run that has fewest; the others end at their row's end that is nearest in the text.
    """
    done = [np.cumsum(part) / max(part.sum(), 1) for part in sizes]
    fewest = min(done, key=len)
    marks = fewest[ROWS - 1 : len(fewest) - ROWS + 1 : ROWS]
    found = []
    for ends in done:
        middles = (ends[1:] + ends[:-1]) / 2
        found.append(np.searchsorted(middles, marks) + 1)
    cuts = np.array(found).reshape(len(sizes), -1)
    kept, last = [], np.zeros(len(sizes), int)
    for place in cuts.T:
        if (place > last).all() and all(end < len(part) for end, part in zip(place, sizes, strict=True)):
            kept.append(place)
            last = place
    ends = np.array([*kept, [len(part) for part in sizes]])
    return list(ends.T)


def _sum_rows(scores: Scores, ends: np.ndarray) -> Scores:
    """Rows added up to stretches."""
    import pyarrow as pa

    starts = np.concatenate([[0], ends[:-1]])
    columns = {
        name: np.add.reduceat(scores.table[name].to_numpy(), starts) for name in ("nll_sum", "n_tokens", "n_bytes")
    }
    names = [f"stretch {i + 1}" for i in range(len(ends))]
    return Scores(task=scores.task, label_names=(), table=pa.table({"id": names, **columns}))


def _align_examples(runs: Sequence[Run], every: list[Scores], common: bool, notes: list[str]) -> list[Scores]:
    if all(scores.table["id"].equals(every[0].table["id"]) for scores in every[1:]) and _are_unique(
        every[0].table["id"]
    ):
        return every  # as most runs are
    first = every[0].table["id"].to_pylist()
    shared = set(first)
    for scores in every[1:]:
        shared &= set(scores.table["id"].to_pylist())
    for run, scores in zip(runs[1:], every[1:], strict=True):
        theirs = set(scores.table["id"].to_pylist())
        gone, new = len(set(first) - theirs), len(theirs - set(first))
        if (gone or new) and not common:
            what = f"{runs[0].name} and {run.name} were evaluated on different examples: {gone:,} of {len(first):,} "
            what += f"are not in the second, {new:,} of {len(theirs):,} not in the first"
            fix = f"--common compares the {len(shared):,} that both have" if shared else "evaluate both on one data set"
            raise RecipeError.at(WHERE, what, fix)
    if not shared:
        raise RecipeError.at(WHERE, "the runs share no evaluated example", "evaluate them on one data set")
    if common and any(len(scores.table) != len(shared) for scores in every):
        notes.append(f"compared over the {len(shared):,} examples that all runs have (--common)")
    order = {name: place for place, name in enumerate(name for name in first if name in shared)}
    return [_reorder(scores, order) for scores in every]


def _are_unique(ids: Any) -> bool:
    return 0 < len(ids) == len(ids.unique())


def _reorder(scores: Scores, order: dict[str, int]) -> Scores:
    names = scores.table["id"].to_pylist()
    places = np.full(len(order), -1)
    for row, name in enumerate(names):
        if name in order:
            places[order[name]] = row
    table = scores.table.take(places)
    return replace(scores, table=table)


def _same_tokens(every: Sequence[Scores]) -> bool:
    first = every[0].table["n_tokens"]
    return all(scores.table["n_tokens"].equals(first) for scores in every[1:])


def _choose_measure(metric: str, measures: Sequence[Measure], task: str) -> Measure:
    for measure in measures:
        if measure.name == metric:
            return measure
    names = ", ".join(measure.name for measure in measures)
    raise RecipeError.at("argument '--metric'", f"{task} has no {metric!r} here", f"it must be one of {names}")
