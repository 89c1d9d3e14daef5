"""`run` asks plan first, once, where a card is present: what cannot fit is refused before anything is loaded. Light.

The tracing is a child's (it patches torch); the card itself says what is free on it beside context and other programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.gpus import Gpu, recognise
from hf_recipes.common.text import amount
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.plan import plan
from hf_recipes.plan.fit.show import EXPANDABLE, as_json
from hf_recipes.plan.fit.verdict import OUT, TIGHT, custom_card
from hf_recipes.plan.time.efficiency import records_here
from hf_recipes.plan.time.forecast import as_json as forecast_json
from hf_recipes.plan.time.forecast import forecast
from hf_recipes.plan.time.forecast import line as line_of

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

INSIST = "--no-plan trains all the same"


def present_card(device: Device) -> Gpu:
    """The entry of catalog/gpus.py for the card of this process, else what its driver tells of it."""
    known = recognise(device.name, device.memory_bytes)
    if known is not None:
        return known
    assert device.memory_bytes is not None
    return custom_card(device.name, device.memory_bytes, device.capability, "the driver")


def ask_plan(recipe: Recipe, device: Device, free_bytes: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """plan's answer for the record; None where it cannot tell, which is said and stops nothing.

    free_bytes: what torch's allocator can still have on the card. Raises RecipeError if the recipe cannot fit there.
    """
    try:
        found = plan(recipe, present_card(device), usable=free_bytes)
    except RecipeError as problem:
        say(f"plan: cannot tell ({problem.errors[0].message})")
        return None
    judged = found.judged
    line = f"{amount(judged.held.peak)} reserved at the peak, {amount(free_bytes)} free on {device.name}"
    if judged.verdict == OUT:
        where = recipe.location(f"{recipe.trainer}.per_device_train_batch_size")
        fix = f"`hf-recipes plan {recipe.path} --gpu {judged.gpu.name}` says what would fit; {INSIST}"
        raise RecipeError.at(where, f"this does not fit the card: {line}, in the {judged.seen.phase} pass", fix)
    say(f"plan: {judged.verdict}, {line}")
    if judged.verdict == TIGHT:
        say(f"plan: {EXPANDABLE}")
    timed = forecast(recipe, judged.seen, judged.gpu, lengths=found.lengths, records=records_here())
    say(f"plan: {line_of(timed)}")
    return {**as_json(judged), "forecast": forecast_json(timed)}


def what_would_fit(recipe: Recipe, device: Device, say: Callable[[str], None]) -> None:
    """After a run that was out of memory: plan's figure for it, and the cheapest changes that it says fit."""
    from hf_recipes.plan.fit import advice

    judged = plan(recipe, present_card(device)).judged
    say(f"plan: {judged.verdict}, {amount(judged.held.peak)} reserved of {amount(judged.usable)}")
    for line in advice.lines(advice.advise(judged), judged):
        say(line)
