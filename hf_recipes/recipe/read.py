"""A recipe file to a `Recipe`, or every error at once.

    file --read--> layers (the file, what it `extends`, the arguments) --upgrade each--> merged --validate--> Recipe

Only the standard library and ruamel.yaml are imported: `hf-recipes check` answers without torch.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.merge import Layer, file_layers, merged, override_layer
from hf_recipes.recipe.recipe import Recipe, location_of
from hf_recipes.recipe.schema.own_keys import DATASET, SOURCES, TOP, TRAINERS


def read_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge, translate and judge a recipe. `overrides` are "Section.key=value", the last word.

    Raises RecipeError with every fault of the file, of what it extends and of the overrides, in the order of the lines.
    Nothing heavy is imported and nothing is written.
    """
    errors: list[Diagnostic] = []
    layers, whole = file_layers(path, errors)
    if layers or whole:
        layers.append(override_layer(overrides, errors))
    elif overrides:
        override_layer(overrides, errors)
    recipe = _resolve(path, layers, whole, errors) if layers else None
    if errors or recipe is None:
        raise RecipeError(_in_order(errors, path, layers))
    return recipe


def _resolve(path: str, layers: list[Layer], whole: bool, errors: list[Diagnostic]) -> Recipe:
    """One Recipe of the layers; what is wrong is added to `faults`, and the Recipe then only serves the next check."""
    from hf_recipes.recipe.upgrade import upgrade_sections
    from hf_recipes.recipe.validate import Judge, judge_sections

    translations: list[str] = []
    upgraded = []
    for layer in layers:
        sections, locations, lines, wrong = upgrade_sections(layer.sections, layer.locations)
        upgraded.append(replace(layer, sections=sections, locations=locations))
        translations += lines
        errors += wrong
    sections, locations, broken = merged(upgraded, errors)
    _drop_nulls(sections)
    judge = Judge(location=lambda dotted: location_of(locations, dotted, path))
    judge_sections(sections, judge)
    if whole:
        _judge_whole(sections, broken, judge, upgraded)
        for trainer in (t for t in TRAINERS if isinstance(sections.get(t), dict)):
            if (
                sections[trainer].get("output_dir") is None
            ):  # upstream's "trainer_output" would be shared by all recipes
                sections[trainer]["output_dir"] = f"runs/{os.path.splitext(os.path.basename(path))[0]}"
    recipe = Recipe(path=path, sections=sections, locations=locations, translations=tuple(dict.fromkeys(translations)))
    errors += judge.errors
    if whole:
        errors += _contradictions(recipe, judge.bad | broken)
    if not errors:
        from hf_recipes.recipe.rules.all_rules import warnings

        judge.warnings += warnings(recipe)
    return replace(recipe, warnings=tuple(_in_order(judge.warnings, path, layers)))


def _drop_nulls(sections: dict[str, Any]) -> None:
    """Null for a word of ours, or for the model's source, says nothing: it takes a parent's value away."""
    ours: tuple[tuple[Any, Iterable[str]], ...] = (
        (sections, TOP),
        (sections.get("model"), SOURCES),
        (sections.get("dataset"), DATASET),
    )
    for holder, words in ours:
        for word in words if isinstance(holder, dict) else ():
            if word in holder and holder[word] is None:
                del holder[word]


def _contradictions(recipe: Recipe, bad: set[str]) -> list[Diagnostic]:
    """What recipe/rules/all_rules.py finds in the sound part of a recipe: neither the keys at fault nor what follows
    from them.

    A task that is misspelled is taken as the nearest one, and of two trainers each is judged alone, so that one fault
    does not hide the others.
    """
    from hf_recipes.catalog.tasks import TASKS
    from hf_recipes.common.text import nearest
    from hf_recipes.recipe.rules.all_rules import errors

    sections = copy.deepcopy(dict(recipe.sections))
    task = sections.get("task")
    sections["task"] = task if isinstance(task, str) and task in TASKS else nearest(str(task), TASKS)
    if not sections["task"]:
        return []
    for dotted in bad - {"task"}:
        holder: Any = sections
        *parents, last = dotted.split(".")
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and not (last in TRAINERS and not parents):
            holder.pop(last, None)
    told: list[Diagnostic] = []
    for trainer in (t for t in TRAINERS if isinstance(sections.get(t), dict)):
        alone = {name: value for name, value in sections.items() if name == trainer or name not in TRAINERS}
        told += errors(replace(recipe, sections=alone))
    names = {dotted.rpartition(".")[2] for dotted in bad if dotted not in TRAINERS}
    return [f for f in told if not names & set(re.findall(r"\w+", f"{f.message} {f.fix}"))]


def _judge_whole(sections: dict[str, Any], broken: set[str], judge: Any, layers: Sequence[Layer]) -> None:
    """What a recipe must have, all of it: a task, one trainer, a model from one source, data, a tokenizer."""
    from hf_recipes.catalog.tasks import TASKS
    from hf_recipes.common.text import nearest, said

    task = sections.get("task")
    tasks = ", ".join(TASKS)
    if task is None and "task" not in broken:
        judge.error("task", "the recipe has no task", f"write `task:` with one of {tasks}")
    elif task is not None and not (isinstance(task, str) and task in TASKS):
        near = nearest(str(task), TASKS)
        judge.error(
            "task",
            f"there is no task {said(task)}",
            f"did you mean {near!r}?" if near else f"it must be one of {tasks}",
        )
    trainers = [t for t in TRAINERS if t in sections]
    if len(trainers) == 2:
        judge.error(*_both_trainers(judge, layers))
    elif not trainers and not broken & set(TRAINERS):
        fix = "write TrainingArguments (Trainer) or SFTConfig (SFTTrainer)"
        judge.error("", "the recipe has neither TrainingArguments nor SFTConfig", fix)
    _judge_source(sections, broken, judge)
    dataset = sections.get("dataset")
    if dataset is None and "dataset" not in broken:
        judge.error(
            "dataset", "the recipe has no dataset", "write `dataset:` with load_dataset's words, such as path: json"
        )
    elif isinstance(dataset, dict) and dataset.get("path") is None:
        judge.error("dataset", "dataset has no path", "write a format (json, csv, text, parquet), a folder or a Hub id")


def _both_trainers(judge: Any, layers: Sequence[Layer]) -> tuple[str, str, str]:
    """Two trainers, told at the one that was written last, with the way to take the other one away."""

    def written(trainer: str) -> tuple[int, int]:
        layer = next(n for n, found in enumerate(layers) if isinstance(found.sections.get(trainer), dict))
        line = judge.location(trainer).rpartition(":")[2]
        return layer, int(line) if line.isdigit() else 0

    first, second = sorted(TRAINERS, key=written)
    what = f"the recipe has {second} here and {first} ({judge.location(first)})"
    if written(first)[0] == written(second)[0]:
        return second, what, "keep one of them: TrainingArguments for Trainer, SFTConfig for SFTTrainer"
    if judge.location(second).startswith("argument "):
        return second, what, f"keep one of them: the argument '{first}=null' takes the other away"
    return second, what, f"keep one of them: `{first}: null` in this file takes the parent's away"


def _judge_source(sections: dict[str, Any], broken: set[str], judge: Any) -> None:
    model = sections.get("model")
    if model is None:
        if "model" not in broken:
            fix = "write `model:` with pretrained_model_name_or_path, preset or config"
            judge.error("model", "the recipe has no model", fix)
        return
    if not isinstance(model, dict):
        return
    given = [word for word in SOURCES if word in model]
    if not given:
        what = "model names no weights and no shape"
        judge.error("model", what, "write one of pretrained_model_name_or_path, preset, config")
    elif len(given) > 1:
        fix = f"keep one of them (`{given[0]}: null` takes a parent's away)"
        judge.error(f"model.{given[-1]}", f"model has {' and '.join(given)}", fix)
    tokenizer = sections.get("tokenizer")
    named = isinstance(tokenizer, dict) and tokenizer.get("pretrained_model_name_or_path") is not None
    if (
        given
        and given[0] != SOURCES[0]
        and not named
        and "BpeTrainer" not in sections
        and not broken & {"tokenizer", "BpeTrainer"}
    ):
        fix = "write `tokenizer:` with pretrained_model_name_or_path, or `BpeTrainer:` to train one on the data"
        judge.error(f"model.{given[0]}", "a model from scratch needs a tokenizer", fix)


def _in_order(errors: Sequence[Diagnostic], path: str, layers: Sequence[Layer]) -> list[Diagnostic]:
    """Faults without repeats, by line: the recipe's own first, then those of what it extends, then the arguments."""
    files = [path, *reversed([layer.path for layer in layers if layer.path and layer.path != path])]

    def key(error: Diagnostic) -> tuple[int, int]:
        if error.location.startswith("argument "):
            return len(files) + 1, 0
        match = re.fullmatch(r"(.*):(\d+)", error.location, re.S)
        file, line = (match[1], int(match[2])) if match else (error.location, 0)
        return files.index(file) if file in files else len(files), line

    return sorted(dict.fromkeys(errors), key=key)
