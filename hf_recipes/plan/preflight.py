"""`run` asks plan first, once, where a GPU is present: what cannot fit is refused before anything is loaded.

The trace is made in a child process, since it patches torch; how much memory is free the driver reports. Imports
neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.gpus import Gpu, recognise_gpu
from hf_recipes.common.text import format_bytes
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.plan.fit.plan import plan_recipe
from hf_recipes.plan.fit.show import EXPANDABLE, as_json
from hf_recipes.plan.fit.verdict import OUT, TIGHT, custom_gpu
from hf_recipes.plan.time.efficiency import read_timed_records
from hf_recipes.plan.time.forecast import as_json as forecast_json
from hf_recipes.plan.time.forecast import forecast_time, format_forecast

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

SKIP_PLAN = "--no-plan trains anyway"


def present_gpu(device: Device) -> Gpu:
    """The row of catalog/gpus.toml for the GPU of this process, else what its driver reports."""
    known = recognise_gpu(device.name, device.memory_bytes)
    if known is not None:
        return known
    assert device.memory_bytes is not None
    return custom_gpu(device.name, device.memory_bytes, device.capability, "the driver")


def ask_plan(recipe: Recipe, device: Device, free_bytes: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """plan's result for the record; None where it cannot predict, which is printed and does not stop the run.

    free_bytes: what torch's allocator can still have on the GPU. Raises PlanError if the recipe cannot fit there.
    """
    try:
        found = plan_recipe(recipe, present_gpu(device), usable=free_bytes)
    except RecipeError as problem:
        say(f"plan: no prediction ({problem.errors[0].message})")
        return None
    fit = found.fit
    line = f"{format_bytes(fit.reserved.peak)} reserved at the peak, {format_bytes(free_bytes)} free on {device.name}"
    if fit.verdict == OUT:
        location = recipe.location(f"{recipe.trainer}.per_device_train_batch_size")
        fix = f"`hf-recipes plan {recipe.path} --gpu {fit.gpu.name}` shows what would fit; {SKIP_PLAN}"
        raise PlanError.at(location, f"this does not fit the GPU: {line}, in the {fit.trace.phase} pass", fix)
    say(f"plan: {fit.verdict}, {line}")
    if fit.verdict == TIGHT:
        say(f"plan: {EXPANDABLE}")
    timed = forecast_time(recipe, fit.trace, fit.gpu, lengths=found.lengths, records=read_timed_records())
    say(f"plan: {format_forecast(timed)}")
    return {**as_json(fit), "forecast": forecast_json(timed)}


def suggest_changes(recipe: Recipe, device: Device, say: Callable[[str], None]) -> None:
    """After a run that was out of memory: plan's figure for it, and the cheapest changes that fit by it."""
    from hf_recipes.plan.fit import advice

    fit = plan_recipe(recipe, present_gpu(device)).fit
    say(f"plan: {fit.verdict}, {format_bytes(fit.reserved.peak)} reserved of {format_bytes(fit.usable)}")
    for line in advice.format_advice(advice.advise(fit), fit):
        say(line)
