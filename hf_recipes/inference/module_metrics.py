"""Modules of the `evaluate` package as metrics: a local folder or file, or a name of the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.common.text import first_line
from hf_recipes.errors import MetricError

FOLDER = "metrics"  # of what evaluate.save writes, in the evaluation's folder
WHERE = "argument '--metric'"


def load_modules(names: Sequence[str], *, trusted: bool) -> dict[str, Any]:
    """Name -> module. A module is a program: one that is not on this machine is loaded only where its user trusts it.

    Raises MetricError for one that cannot be loaded.
    """
    if not names:
        return {}
    import evaluate

    found = {}
    for name in names:
        local = os.path.exists(name)
        if not local and not trusted:
            what = f"{name!r} is no file here; a metric of the Hub is a program that runs on this machine"
            raise MetricError.at(WHERE, what, "name its folder, or add --trust-remote-code")
        try:
            found[_short(name)] = evaluate.load(str(Path(name).resolve()) if local else name)
        except Exception as problem:  # it is somebody's program: it may raise anything
            fix = "is it a folder with a module of the evaluate package?" if local else "is the Hub reachable?"
            raise MetricError.at(WHERE, f"{name!r} cannot be loaded: {first_line(problem)}", fix) from problem
    return found


def _short(name: str) -> str:
    return Path(name.rstrip("/")).name.removesuffix(".py")


def compute_modules(
    modules: Mapping[str, Any], predictions: Sequence[Any], references: Sequence[Any], folder: Path
) -> dict[str, float]:
    """The numbers that the modules compute; each result is written by `evaluate.save` into `folder`/metrics.

    Raises MetricError for a module that refuses the inputs.
    """
    import evaluate

    found: dict[str, float] = {}
    for name, module in modules.items():
        try:
            result = module.compute(predictions=list(predictions), references=list(references))
        except Exception as problem:  # as above
            what = f"{name!r} refuses the predictions of this task: {first_line(problem)}"
            raise MetricError.at(WHERE, what, "use a metric that is made for them") from problem
        (folder / FOLDER).mkdir(exist_ok=True)
        shown = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in result.items()}
        evaluate.save(folder / FOLDER / f"{name}.json", **shown)
        found |= {key: float(value) for key, value in result.items() if isinstance(value, int | float | np.number)}
    return found


def inputs_of_modules(kind: str, prediction: Any, label_names: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """(predictions, references) in the form that modules of each kind of task expect: labels as numbers, values, or
    lists of tags. `kind`: a Task's `scored_as`; `prediction`: of the evaluation."""
    gold = np.asarray(prediction.label_ids)
    if kind == "text-classification":
        return np.asarray(prediction.predictions).argmax(axis=-1).tolist(), gold.tolist()
    if kind == "multi-label-classification":
        return (np.asarray(prediction.predictions) > 0).astype(int).tolist(), gold.astype(int).tolist()
    if kind == "text-regression":
        return np.asarray(prediction.predictions).reshape(-1).tolist(), gold.reshape(-1).tolist()
    from hf_recipes.evaluation.compute_metrics import tag_names

    tags, _ = prediction.predictions
    return tag_names(tags, gold, label_names), tag_names(gold, gold, label_names)
