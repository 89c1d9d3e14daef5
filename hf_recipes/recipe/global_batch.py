"""`global_batch_size`: the sequences of an optimizer step, whatever the number of processes.

    gradient_accumulation_steps = global_batch_size / (per_device_train_batch_size x processes)

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.recipe import CHOSEN, Recipe
from hf_recipes.recipe.rules.rule import number_of

KEY, PER_DEVICE, ACCUMULATION = "global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"


def global_batch_of(recipe: Recipe) -> int | None:
    """The recipe's global_batch_size in sequences; None where it has none, or a broken one."""
    found = recipe.get(KEY)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def rows_per_device(recipe: Recipe) -> int:
    """per_device_train_batch_size, upstream's default included."""
    return max(1, int(number_of(recipe, PER_DEVICE) or 1))


def accumulation_of(recipe: Recipe, processes: int = 1) -> int:
    """Micro-batches of an optimizer step: the recipe's own number, else what global_batch_size leaves (at least 1)."""
    given, whole = recipe.training.get(ACCUMULATION), global_batch_of(recipe)
    if given is not None or whole is None:
        return int(given or 1)
    return max(1, whole // (rows_per_device(recipe) * processes))


def derive_accumulation(recipe: Recipe, processes: int) -> tuple[str, int, str] | None:
    """(key, value, reason) of the accumulation that global_batch_size asks for; None where nothing is to derive."""
    whole = global_batch_of(recipe)
    if whole is None or recipe.training.get(ACCUMULATION) is not None:
        return None
    steps = accumulation_of(recipe, processes)
    reason = f"{KEY}: {whole} = {rows_per_device(recipe)} per device x {processes} x {steps}"
    return f"{recipe.trainer}.{ACCUMULATION}", steps, reason


def with_accumulation(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with the derived accumulation in it."""
    found = derive_accumulation(recipe, processes)
    return recipe if found is None else recipe.with_values({found[0]: found[1]}, CHOSEN + found[2])


def without_derived(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted values for the user's file, without an accumulation that the file's global_batch_size decides."""
    dotted = f"{recipe.trainer}.{ACCUMULATION}"
    return {key: value for key, value in values.items() if key != dotted or not recipe.has_derived_accumulation}


def find_errors(recipe: Recipe, processes: int | None = None) -> Iterator[Diagnostic]:
    """What no number of processes could keep, or this one (`processes`) cannot."""
    whole = global_batch_of(recipe)
    if whole is None:
        return
    rows, steps = rows_per_device(recipe), recipe.training.get(ACCUMULATION)
    steps = steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None
    split = recipe.training.get("accelerator_config")
    if isinstance(split, Mapping) and split.get("split_batches") is True:
        what = f"split_batches: true divides {PER_DEVICE} over the processes, and {KEY} counts it on each"
        where = recipe.location(f"{recipe.trainer}.accelerator_config")
        yield Diagnostic(location=where, message=what, fix=f"leave split_batches out, or {KEY}")
        return
    unit = rows * (processes or 1) * (steps or 1)
    if whole % unit == 0 and (steps is None or processes is None or whole == unit):
        return
    product = f"{rows} per device"
    product += f" x {processes} process{'es' * (processes > 1)}" if processes is not None else ""
    if steps is not None:
        what = f"{KEY} is {whole}, and {product} x {steps} accumulation = {unit}"
        fix = f"remove {ACCUMULATION}: {KEY} decides it"
        yield Diagnostic(location=recipe.location(f"{recipe.trainer}.{ACCUMULATION}"), message=what, fix=fix)
        return
    what = f"{KEY}: {whole} is no multiple of {product}" + (f" = {unit}" if processes is not None else "")
    yield Diagnostic(location=recipe.location(KEY), message=what, fix=_fix(whole, rows, unit // rows))


def _fix(whole: int, rows: int, others: int) -> str:
    """The nearest global batches, and the largest smaller number of rows that divides this one. `others`: processes."""
    unit = rows * others
    near = [each for each in (whole // unit * unit, -(-whole // unit) * unit) if each]
    wider = next((each for each in range(rows - 1, 0, -1) if whole % (each * others) == 0), None)
    words = " or ".join(map(str, dict.fromkeys(near)))
    return f"write {words}" + (f", or {PER_DEVICE}: {wider}" if wider else "")
