"""`run` asks plan first, once, where a GPU is present: what cannot fit is refused before anything is loaded.

The trace is made in a child process, since it patches torch; how much memory is free the driver reports. Imports
neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.gpus import Gpu, recognise_gpu
from hf_recipes.common.text import format_bytes
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.plan.fit.parallel import SINGLE, Layout, least_bytes
from hf_recipes.plan.fit.plan import plan_recipe
from hf_recipes.plan.fit.show import EXPANDABLE, as_json
from hf_recipes.plan.fit.verdict import FITS, MARGIN, OUT, TIGHT, UNSURE, assess_fit, custom_gpu
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


def ask_plan(
    recipe: Recipe,
    device: Device,
    free_bytes: int,
    say: Callable[[str], None],
    *,
    layout: Layout = SINGLE,
    offloads: bool = False,
) -> dict[str, Any] | None:
    """plan's result for the record; None where it cannot predict, which is printed and does not stop the run.

    free_bytes: what torch's allocator can still have on the GPU; layout: of this launch; offloads: whether it keeps
    weights or optimizer in the CPU's memory. Raises PlanError if the recipe cannot fit there: of a sharded launch of
    which no rank is traced, and where plan knows an upper bound only, if a rank's weights, gradients and optimizer
    alone do not.
    """
    gpu = present_gpu(device)
    try:
        is_traced = layout.is_traceable and not offloads
        found = plan_recipe(recipe, gpu, usable=free_bytes, layout=layout if is_traced else SINGLE)
        if is_traced and found.fit.trace.processes == 1:  # no rank could be traced
            found = plan_recipe(recipe, gpu, usable=free_bytes)
    except RecipeError as problem:
        say(f"plan: no prediction ({problem.errors[0].message})")
        return None
    fit = assess_fit(recipe, found.fit.trace, gpu, free_bytes, layout)
    free = f"{format_bytes(free_bytes)} free on {device.name}"
    line = f"{format_bytes(fit.reserved.peak)} reserved at the peak, {free}"
    least = least_bytes(found.fit.trace, layout)
    closed = layout.is_closed_form(found.fit.trace)
    bound = fit.verdict == OUT and found.fit.trace.is_upper_bound
    if fit.verdict == OUT and (not (closed or bound) or (least > free_bytes and not offloads)):
        gpus = "the GPU" if layout.processes == 1 else f"{layout.processes} GPUs"
        what = f"this does not fit {gpus}: {line}, in the {fit.trace.phase} pass"
        fix = f"`hf-recipes plan {recipe.path} --gpu {fit.gpu.name}` shows what would fit; {SKIP_PLAN}"
        if closed or bound:
            held = "weights, gradients and optimizer" if closed else "weights and optimizer"
            what = f"this does not fit {gpus}: a process has {format_bytes(least)} of {held} alone, {free}"
            fix = f"take more GPUs, an adapter (LoraConfig) or offloading; {SKIP_PLAN}"
        location = recipe.location(f"{recipe.trainer}.per_device_train_batch_size")
        raise PlanError.at(location, what, fix)
    verdict = UNSURE if closed or bound else fit.verdict  # a closed form or an upper bound alone refuses nothing
    # NCCL takes its share when the ranks first talk to each other: after this.
    if verdict == FITS and fit.reserved.peak * MARGIN > free_bytes - layout.nccl_bytes:
        verdict = TIGHT
    say(f"plan: {verdict}, {line}")
    if verdict == TIGHT:
        say(f"plan: {EXPANDABLE}")
    if bound:
        say(f"plan: {'; '.join(found.fit.trace.estimate)}")
    records = read_timed_records()
    timed = forecast_time(
        recipe, fit.trace, fit.gpu, lengths=found.lengths, processes=layout.processes, records=records
    )
    say(f"plan: {format_forecast(timed)}")
    return {**as_json(fit), "verdict": verdict, "forecast": forecast_json(timed)}


def suggest_changes(recipe: Recipe, device: Device, say: Callable[[str], None]) -> None:
    """After a run that was out of memory: plan's figure for it, and the cheapest changes that fit by it."""
    from hf_recipes.plan.fit import advice

    fit = plan_recipe(recipe, present_gpu(device)).fit
    say(f"plan: {fit.verdict}, {format_bytes(fit.reserved.peak)} reserved of {format_bytes(fit.usable)}")
    for line in advice.format_advice(advice.advise(fit), fit):
        say(line)
