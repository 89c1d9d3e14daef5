"""`hf-recipes tune`: what makes this recipe faster on this machine. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_recipes.common.text import as_yaml, format_duration
from hf_recipes.common.typed_json import to_json
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.tuning.candidates import Here, list_candidates
from hf_recipes.pipeline.tuning.pairs import Trial
from hf_recipes.pipeline.tuning.search import LEAST_STEPS, Base, Tuned, search
from hf_recipes.pipeline.tuning.worker import FailedTrialError, Worker
from hf_recipes.plan.fit.write_recipe import write_recipe
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe

FIRST = 600.0  # seconds for the first steps of the recipe as it is: data may have to be prepared


def command(
    path: str,
    overrides: Sequence[str] = (),
    *,
    minutes: float = 2.0,
    output: str | None = None,
    every: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Tries settings for about `minutes`, prints what each brings, and writes the recipe with those that were kept.
    Raises RecipeError for what a run would refuse."""
    from hf_recipes.data.splits import file_errors

    if output is not None and overrides:
        what = "overrides are not in the file that is written"
        raise RecipeError.at("argument '--output'", what, "put them into the recipe")
    recipe = read_recipe(path, overrides)
    errors = file_errors(recipe)
    if errors:
        raise RecipeError(errors)
    if recipe.training.get("do_train") is False:
        where = recipe.location(f"{recipe.trainer}.do_train")
        raise RecipeError.at(where, "do_train: false has no step to make faster", "leave it out")
    target = output or default_target(path)
    if os.path.exists(target) and not (dry_run or overrides):
        raise RecipeError.at("argument '--output'", f"{target!r} exists", "name a new file, or remove that one")
    tell = (lambda line: None) if as_json else say
    began, worker = time.monotonic(), Worker()
    try:
        facts = worker.facts(recipe, FIRST)
        here = Here(
            kind=facts["kind"],
            capability=_pair(facts["capability"]),
            attention=None,
            packages=facts["packages"],
            kernels=facts["kernels"],
        )
        if dry_run:
            for candidate in list_candidates(recipe, here, every=every):
                say(f"  {candidate}")
            return
        tell(f"tune: {path} on {facts['name']} ({facts['kind']})")
        base = _first_steps(worker, recipe)
        here = replace(here, attention=base.timed.attention)
        candidates = list_candidates(recipe, here, every=every)
        tell(f"  as it is: {_describe(base.timed)}; {len(candidates)} settings to try")
        left = max(0.0, minutes * 60 - (time.monotonic() - began))
        found = search(recipe, candidates, worker, base=base, seconds=left, say=tell)
    finally:
        worker.close()
    if as_json:
        say(json.dumps(_to_json(path, facts, found), indent=1))
    tell(_conclude(found, time.monotonic() - began))
    if found.values and not overrides:
        tell(write_recipe(path, target, found.values))
    elif found.values:
        keys = ", ".join(f"{key}: {as_yaml(value)}" for key, value in found.values.items())
        tell(f"  not written, since overrides are not in the file; put into the recipe: {keys}")


def default_target(path: str) -> str:
    """recipe.yaml -> recipe-tuned.yaml beside it; in this folder for a recipe that came with the package."""
    given = Path(path)
    shipped = Path(__file__).resolve().parent.parent in given.resolve().parents
    return str((Path() if shipped else given.parent) / f"{given.stem}-tuned.yaml")


def _first_steps(worker: Worker, recipe: Recipe) -> Base:
    try:
        checked = worker.run(recipe, 0, check=True, seconds=FIRST)
        return Base(checked=checked, timed=worker.run(recipe, LEAST_STEPS, check=False, seconds=FIRST))
    except FailedTrialError as problem:
        what = f"the recipe as it is does not make its first steps: {problem}"
        raise RecipeError.at(
            recipe.path, what, "`hf-recipes run` shows more; `hf-recipes plan` says what fits"
        ) from None


def _describe(trial: Trial) -> str:
    used = f", {trial.mfu:.1%} of the peak rate (MFU)" if trial.mfu is not None else ""
    return f"{trial.step_seconds:.3g} s a step, {trial.tokens_per_second:,.0f} tokens a second{used}"


def _conclude(found: Tuned, seconds: float) -> str:
    lasted = f"after {format_duration(seconds)}"
    if not found.values:
        return f"{lasted}: nothing was faster beyond noise; the recipe stays as it is"
    kept = ", ".join(f"{key.rpartition('.')[2]}: {as_yaml(value)}" for key, value in found.values.items())
    return f"{lasted}: {kept}; together about {found.times:.2f} times as fast"


def _pair(found: Any) -> tuple[int, int] | None:
    return (int(found[0]), int(found[1])) if found else None


def _to_json(path: str, facts: Any, found: Tuned) -> dict[str, Any]:
    return {"recipe": path, "device": facts, "values": dict(found.values), "times": found.times, **to_json(found)}
