"""The recipe's metrics that are computed once, at the end: of generated answers, and modules of `evaluate`.

The model answers as it is in memory. A metric that fails then is a warning: it is not worth a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import split_metrics
from hf_recipes.errors import RecipeError
from hf_recipes.inference.added_metrics import NONE, Added, AddedValues, add_metrics, choose_metrics
from hf_recipes.inference.trained import Found, Trained
from hf_recipes.models.config import longest_input
from hf_recipes.record import MetricInterval

if TYPE_CHECKING:
    from hf_recipes.evaluation.scoring import Scoring
    from hf_recipes.pipeline.recorder import RunRecorder
    from hf_recipes.recipe.recipe import Recipe


def choose(recipe: Recipe, *, trusted: bool) -> Added:
    """Before the data are read. Raises MetricError for a metric whose package or module is not here."""
    names = split_metrics(recipe)[1]
    return choose_metrics(recipe.task, names, recipe.location("metrics"), trusted=trusted) if names else NONE


def add(
    added: Added, trainer: Any, scoring: Scoring, recorder: RunRecorder
) -> Mapping[str, Mapping[str, MetricInterval]]:
    """Adds them to the record's metrics, and their files to its folder, after the scores are written there. Returns
    their intervals by split. Called on every process: each generates a part of the answers."""
    args, folder = trainer.args, recorder.folder
    if not added:
        return {}
    model = trainer.plain_model()
    if model is None and scoring.task.name == "chat":
        names = ", ".join((*added.answers, *added.modules))
        how = f"hf-recipes evaluate {folder} --data FILE --metric {names.split(', ')[0]}"
        recorder.note(f"{names}: not computed, since the model is spread over processes; afterwards: {how}")
        return {}
    found: dict[str, AddedValues] = {}
    trained = _hold(trainer, model, recorder)
    for split in scoring.prepared.evals:
        try:
            found[split] = add_metrics(
                added, trained, scoring, split, folder, args.per_device_eval_batch_size,
                gather=_gather if args.world_size > 1 else None, part=(args.process_index, args.world_size),
            )  # fmt: skip
        except RecipeError as problem:
            recorder.note(f"warning: {problem}")
            continue
        for line in found[split].notes if split == "eval" else ():
            recorder.note(line)
        named = {f"{split}_{name}": value for name, value in found[split].values.items()}
        metrics = replace(recorder.record.metrics, **{split: {**recorder.record.metrics.of(split), **named}})
        recorder.record = replace(recorder.record, metrics=metrics)
    return {split: one.intervals for split, one in found.items()}


def _gather(mine: list[Any]) -> list[Any]:
    from accelerate.utils import gather_object

    return list(gather_object(mine))


def _hold(trainer: Any, model: Any, recorder: RunRecorder) -> Trained:
    """The trainer's model as one that is in use."""
    record = recorder.record
    found = Found(folder=recorder.folder, task=record.task, record=record, adapter=False)
    if model is None:  # predictions are all that is needed
        return Trained(found=found, model=None, tokenizer=trainer.processing_class, positions=None)
    positions = longest_input(model.config)
    return Trained(found=found, model=model.eval(), tokenizer=trainer.processing_class, positions=positions)
