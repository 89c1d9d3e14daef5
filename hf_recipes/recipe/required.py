"""What a complete recipe must have: a task, one trainer, a model from one source, data, a tokenizer."""

from __future__ import annotations

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import format_value, nearest
from hf_recipes.recipe.document import Document
from hf_recipes.recipe.foreign_keys import preference_method
from hf_recipes.recipe.schema.own_keys import SOURCES, TRAINERS
from hf_recipes.recipe.validate import Validator


def validate_required(document: Document) -> Document:
    """The document with an error for everything that is missing or given twice; what is broken counts as given."""
    validator = Validator(document)
    _task(validator)
    _trainer(validator)
    _model(validator)
    _dataset(validator)
    return validator.result()


def _task(validator: Validator) -> None:
    task = validator.sections.get("task")
    tasks = ", ".join(TASKS)
    if task is None:
        if not validator.is_broken("task"):
            validator.error("task", "the recipe has no task", f"write `task:` with one of {tasks}")
    elif not (isinstance(task, str) and task in TASKS):
        near = nearest(str(task), TASKS)
        fix = f"did you mean {near!r}?" if near else f"it must be one of {tasks}"
        validator.error("task", *(preference_method(str(task)) or (f"there is no task {format_value(task)}", fix)))


def _trainer(validator: Validator) -> None:
    trainers = [name for name in TRAINERS if name in validator.sections]
    if len(trainers) == 2:
        validator.error(*_both_trainers(validator.document))
    elif not trainers and not validator.is_broken(*TRAINERS):
        fix = "write TrainingArguments (Trainer) or SFTConfig (SFTTrainer)"
        validator.error("", "the recipe has neither TrainingArguments nor SFTConfig", fix)


def _both_trainers(document: Document) -> tuple[str, str, str]:
    """Two trainers, reported at the one that was written last, with the way to take the other one away."""

    def written(trainer: str) -> tuple[int, int]:
        """Later files, and later lines of one file, are written later; the arguments last."""
        file, _, line = document.location(trainer).rpartition(":")
        if document.location(trainer).startswith("argument "):
            return 1, 0
        return -document.files.index(file) if file in document.files else 0, int(line) if line.isdigit() else 0

    first, second = sorted(TRAINERS, key=written)
    what = f"the recipe has {second} here and {first} ({document.location(first)})"
    if written(first)[0] == written(second)[0]:
        return second, what, "keep one of them: TrainingArguments for Trainer, SFTConfig for SFTTrainer"
    if document.location(second).startswith("argument "):
        return second, what, f"keep one of them: the argument '{first}=null' takes the other away"
    return second, what, f"keep one of them: `{first}: null` in this file takes the parent's away"


def _model(validator: Validator) -> None:
    model = validator.sections.get("model")
    if model is None:
        if not validator.is_broken("model"):
            fix = "write `model:` with pretrained_model_name_or_path, preset or config"
            validator.error("model", "the recipe has no model", fix)
        return
    if not isinstance(model, dict):
        return
    given = [key for key in SOURCES if key in model]
    if not given and validator.is_broken(*(f"model.{key}" for key in SOURCES)):
        return
    if not given:
        what = "model names no weights and no shape"
        validator.error("model", what, "write one of pretrained_model_name_or_path, preset, config")
        return
    if len(given) > 1 and not (
        given == ["pretrained_model_name_or_path", "config"] and isinstance(model["config"], str)
    ):
        fix = f"keep one of them (`{given[0]}: null` takes a parent's away)"
        validator.error(f"model.{given[-1]}", f"model has {' and '.join(given)}", fix)
    if given[0] != SOURCES[0]:
        _tokenizer(validator, given[0])


def _tokenizer(validator: Validator, source: str) -> None:
    """A model from scratch has no tokenizer of its own."""
    tokenizer = validator.sections.get("tokenizer")
    named = isinstance(tokenizer, dict) and tokenizer.get("pretrained_model_name_or_path") is not None
    broken = validator.is_broken("tokenizer", "tokenizer.pretrained_model_name_or_path", "BpeTrainer")
    if not named and "BpeTrainer" not in validator.sections and not broken:
        fix = "write `tokenizer:` with pretrained_model_name_or_path, or `BpeTrainer:` to train one on the data"
        validator.error(f"model.{source}", "a model from scratch needs a tokenizer", fix)


def _dataset(validator: Validator) -> None:
    dataset = validator.sections.get("dataset")
    if dataset is None:
        if not validator.is_broken("dataset"):
            fix = "write `dataset:` with load_dataset's arguments, such as path: json"
            validator.error("dataset", "the recipe has no dataset", fix)
    elif isinstance(dataset, dict) and dataset.get("path") is None and not validator.is_broken("dataset.path"):
        fix = "write a format (json, csv, text, parquet), a folder or a Hub id"
        validator.error("dataset", "dataset has no path", fix)
