"""Metrics that are computed once, of a model that is trained: those of generated answers (exact_match, rouge, bleu) and
modules of the `evaluate` package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import MetricError
from hf_recipes.evaluation.metrics import generated
from hf_recipes.inference import answers
from hf_recipes.inference.module_metrics import compute_modules, inputs_of_modules, load_modules
from hf_recipes.record import MetricInterval

if TYPE_CHECKING:
    from hf_recipes.evaluation.scoring import Scoring
    from hf_recipes.inference.trained import Trained

# Keeps a run's processes together: the rows of one of them -> those of all, in the order of the processes.
Gather = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True, kw_only=True)
class Added:
    """Metrics beside those of the task. `answers`: names of evaluation/metrics/generated.py; `where`: who asked."""

    answers: tuple[str, ...] = ()
    modules: Mapping[str, Any] = field(default_factory=dict)
    where: str = "metrics"

    def __bool__(self) -> bool:
        return bool(self.answers or self.modules)


NONE = Added()


@dataclass(frozen=True, kw_only=True)
class AddedValues:
    """`values`: by name, without the prefix of the split; `notes`: which of them have no interval, and why."""

    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, MetricInterval] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def choose_metrics(task: str, names: Iterable[str], where: str, *, trusted: bool = False) -> Added:
    """Before anything heavy is loaded. Raises MetricError for a metric that cannot be computed of this task."""
    names = tuple(dict.fromkeys(names))
    of_answers = tuple(name for name in names if name in generated.NAMES)
    others = [name for name in names if name not in of_answers]
    if of_answers and task != "chat":
        what = f"{of_answers[0]} compares generated answers, and the task is {task}"
        raise MetricError.at(where, what, "leave it out")
    if others and TASKS[task].generates and task != "chat":
        what = f"{others[0]!r} needs predictions to compare, and {task} has none"
        raise MetricError.at(where, what, "leave it out")
    generated.check_packages(of_answers, where)
    return Added(answers=of_answers, modules=load_modules(others, where, trusted=trusted), where=where)


def check_answers(added: Added, task: str, splits: Iterable[Any]) -> None:
    """Before a model trains for hours. Raises DataError where the prepared rows have no answer to compare with."""
    if added and task == "chat":
        for rows in splits:
            answers.split_rows(rows, added.where)


def add_metrics(
    added: Added,
    trained: Trained,
    scoring: Scoring,
    split: str,
    folder: Path,
    batch_size: int,
    gather: Gather | None = None,
    part: tuple[int, int] = (0, 1),
) -> AddedValues:
    """The values of one split, whose scores are written. Their files go into `folder`: answers.jsonl,
    metrics/NAME.json, and columns of the scores.

    Where several processes hold the model, each answers its `part` (number, count) of the rows, `gather` joins them,
    and the first one scores them; the others get no values. Raises MetricError for a module that refuses the
    predictions.
    """
    suffix, prepared = "" if split == "eval" else f"-{split}", scoring.prepared
    if trained.task != "chat":
        if part[0]:
            return AddedValues()
        last = scoring.of_split[split].last
        inputs = inputs_of_modules(scoring.task.scored_as, last, prepared.label_names, scoring.threshold)
        return _of_modules(added, inputs, folder, suffix)
    rows, scores = prepared.evals[split], folder / f"scores{suffix}.parquet"
    texts = answers.answer_rows(trained, rows, batch_size, added.where, gather=gather, part=part)
    if part[0]:
        return AddedValues()
    answers.write_answers(folder / f"answers{suffix}.jsonl", prepared.ids[split], texts)
    said, meant = ([one[key] for one in texts] for key in ("answer", "reference"))
    columns = generated.score_texts(added.answers, said, meant)
    answers.add_columns(scores, columns)
    found = _of_modules(added, (said, meant), folder, suffix)
    return replace(found, values={**_of_columns(columns, scores), **found.values})


def _of_columns(columns: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Their intervals are computed where those of all columns of scores are (compare/intervals.py)."""
    from hf_recipes.compare.measures import available
    from hf_recipes.evaluation.scores import read_scores

    scores = read_scores(path)
    measures = [one for one in available(scores.task, [scores]) if one.name in columns]
    return {one.name: float(one.value(one.rows(scores).sum(axis=0))) for one in measures}


def _of_modules(added: Added, inputs: tuple[list[Any], list[Any]], folder: Path, suffix: str) -> AddedValues:
    values, rows, notes = compute_modules(added.modules, *inputs, folder, added.where, suffix)
    return AddedValues(values=values, intervals={name: _mean_interval(row) for name, row in rows.items()}, notes=notes)


def _mean_interval(values: Sequence[float]) -> MetricInterval:
    """Of a mean over examples."""
    import numpy as np

    from hf_recipes.compare.intervals import RESAMPLES, compute_interval
    from hf_recipes.compare.measures import mean_of
    from hf_recipes.compare.statistics import bootstrap

    rows = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    measure = mean_of(values)
    one = compute_interval(measure, rows, np.asarray(measure.value(bootstrap(rows, RESAMPLES, 0))))
    return MetricInterval(value=one.value, low=one.low, high=one.high)
