"""Modules of the `evaluate` package as metrics: a local folder or file, or a name of the Hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.common.text import first_line
from hf_recipes.errors import MetricError

FOLDER = "metrics"  # of what evaluate.save writes, in the folder of the run or of the evaluation
MOST_SINGLE = 1000  # rows that a module is asked about one by one, to see whether its value is their mean


def load_modules(names: Sequence[str], where: str, *, trusted: bool) -> dict[str, Any]:
    """Name -> module. A module is a program: one that is not on this machine is loaded only where its user trusts it.

    Raises MetricError for one that cannot be loaded.
    """
    if not names:
        return {}
    import evaluate

    found: dict[str, Any] = {}
    for name in names:
        path = os.path.expanduser(name)
        local = os.path.exists(path)
        if not local and not trusted:
            what = f"{name!r} is no file here; a metric of the Hub is a program that runs on this machine"
            raise MetricError.at(where, what, "name its folder, or add --trust-remote-code")
        if _short(name) in found:
            what = f"{name!r} is the second module that is called {_short(name)!r}"
            raise MetricError.at(where, what, "give its folder another name")
        try:
            found[_short(name)] = evaluate.load(str(Path(path).resolve()) if local else name)
        except Exception as problem:  # it is somebody's program: it may raise anything
            fix = "is it a folder with a module of the evaluate package?" if local else "is the Hub reachable?"
            raise MetricError.at(where, f"{name!r} cannot be loaded: {first_line(problem)}", fix) from problem
    return found


def _short(name: str) -> str:
    return Path(name.rstrip("/")).name.removesuffix(".py")


def compute_modules(
    modules: Mapping[str, Any],
    predictions: Sequence[Any],
    references: Sequence[Any],
    folder: Path,
    where: str,
    suffix: str = "",
) -> tuple[dict[str, float], dict[str, list[float]], tuple[str, ...]]:
    """(the numbers that the modules compute, a value an example of those that are their mean, which are not).

    A list of as many numbers as examples is reported by its mean. Each result is written by `evaluate.save` into
    `folder`/metrics. Raises MetricError for a module that refuses the inputs.
    """
    import evaluate

    found: dict[str, float] = {}
    rows: dict[str, list[float]] = {}
    notes = []
    for name, module in modules.items():
        try:
            result = module.compute(predictions=list(predictions), references=list(references))
        except Exception as problem:  # as above
            what = f"{name!r} refuses the predictions of this task: {first_line(problem)}"
            raise MetricError.at(where, what, "use a metric that is made for them") from problem
        (folder / FOLDER).mkdir(exist_ok=True)
        shown = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in result.items()}
        evaluate.save(folder / FOLDER / f"{name}{suffix}.json", **shown)
        lists = {key: _numbers(value, len(references)) for key, value in result.items()}
        every = {key: values for key, values in lists.items() if values}
        values = {key: float(value) for key, value in result.items() if isinstance(value, int | float | np.number)}
        means = _means(module, values, predictions, references)
        every |= means
        found |= values | {key: float(np.mean(one)) for key, one in every.items() if key not in values}
        rows |= every
        without = [key for key in values if key not in every]
        if without:
            notes.append(f"{', '.join(without)} of {name!r}: no interval, since {_reason(len(references))}")
    return found, rows, tuple(notes)


def _reason(count: int) -> str:
    if count > MOST_SINGLE:
        return f"whether it is the mean of the rows' values is looked at for {MOST_SINGLE:,} rows or fewer"
    return "it could not be shown to be the mean of the rows' values"


def _numbers(value: Any, count: int) -> list[float] | None:
    """A value an example, if that is what the list is."""
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(listed, list | tuple) or len(listed) != count:
        return None
    numbers = all(isinstance(one, int | float | np.number) for one in listed)
    return [float(one) for one in listed] if numbers else None


def _means(
    module: Any, values: Mapping[str, float], predictions: Sequence[Any], references: Sequence[Any]
) -> dict[str, list[float]]:
    """Of the values that are the mean over the examples: the examples' own, each computed alone. Where all examples
    have the same one nothing follows from it: F1 of right predictions is 1 of each and of all."""
    if not values or len(references) > MOST_SINGLE:
        return {}
    single: dict[str, list[float]] = {key: [] for key in values}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a score of one example
        for one, other in zip(predictions, references, strict=True):
            try:
                result = module.compute(predictions=[one], references=[other])
                for key, column in single.items():
                    column.append(float(result[key]))
            except Exception:  # a program that needs more than one example
                return {}
    return {
        key: column
        for key, column in single.items()
        if len(set(column)) > 1 and np.isclose(np.mean(column), values[key], rtol=1e-6, atol=1e-9)
    }


def inputs_of_modules(
    kind: str, prediction: Any, label_names: Sequence[str], threshold: float = 0.5
) -> tuple[list[Any], list[Any]]:
    """(predictions, references) in the form that modules of each kind of task expect: labels as numbers, values, or
    lists of tags. `kind`: a Task's `scored_as`; `prediction`: of the evaluation; `threshold`: of several labels."""
    gold = np.asarray(prediction.label_ids)
    if kind == "text-classification":
        return np.asarray(prediction.predictions).argmax(axis=-1).tolist(), gold.tolist()
    if kind == "multi-label-classification":
        from hf_recipes.evaluation.metrics.functions import probabilities

        predicted = probabilities(np.asarray(prediction.predictions)) >= threshold
        return predicted.astype(int).tolist(), gold.astype(int).tolist()
    if kind == "text-regression":
        return np.asarray(prediction.predictions).reshape(-1).tolist(), gold.reshape(-1).tolist()
    from hf_recipes.evaluation.compute_metrics import tag_names

    tags, _ = prediction.predictions
    return tag_names(tags, gold, label_names), tag_names(gold, gold, label_names)
