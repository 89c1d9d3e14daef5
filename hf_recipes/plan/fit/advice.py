"""If it does not fit: the cheapest changes that make it fit, each verified by a trace, with what it costs.

Imports neither torch nor transformers.

Candidates come in tiers: the same result, more time, slightly other rounding, another result; then two and three
combined. Two are traced at a time, those first that may fit by a guess; within a tier the change that is closest to
the recipe comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.common.text import as_yaml
from hf_recipes.errors import OutOfTimeError, RecipeError
from hf_recipes.plan.fit.changes import BATCH, Option, batches, combined_changes, fixed_bytes, single_changes
from hf_recipes.plan.fit.verdict import FITS, MARGIN, Fit, check_fits
from hf_recipes.plan.trace.worker import LAST_VERDICT, time_limit
from hf_recipes.recipe.global_batch import without_derived
from hf_recipes.recipe.rules.all_rules import errors

WANTED = 3
SECONDS = 40.0  # of the command: no trace is begun that would end later, and one that takes longer is ended
LOCATION = "plan's advice"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that fits. `values` are overrides as a user types them."""

    values: Mapping[str, Any]
    what: str
    cost: str
    fit: Fit  # of the changed recipe

    @property
    def overrides(self) -> str:
        """ "SFTConfig.per_device_train_batch_size=4 SFTConfig.gradient_accumulation_steps=8" """
        return " ".join(f"{name}={as_yaml(value)}" for name, value in self.values.items())


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Changes that fit, the cheapest first; `untried`: others for which no time was left."""

    changes: tuple[Change, ...]
    untried: int = 0


def advise(
    fit: Fit,
    *,
    length: int | None = None,
    asked: bool = False,
    seconds: float = SECONDS,
    began: float | None = None,
) -> Advice:
    """At most three changes, the cheapest first; none where nothing that plan knows makes it fit.

    length: tokens of the longest row, as for the verdict. `asked`: the user's own, which overrules max_length: shorter
    rows are no change then. Ends after `seconds` with what is known by then. `began`: when they began, by
    time.monotonic(); None: now.
    """
    end = (time.monotonic() if began is None else began) + seconds - LAST_VERDICT
    with time_limit(end - time.monotonic()):
        return _advise(fit, length, asked, end)


def _advise(fit: Fit, length: int | None, asked: bool, end: float) -> Advice:
    found, took, late = dict[tuple[tuple[str, str], ...], Change](), 0.0, 0
    probe = _smallest(fit, length)  # the recipe at one row a device: how far the batch reaches
    every = [*single_changes(fit, probe), *combined_changes(fit, probe)]
    every = [option for option in every if not (asked and _is_shorter(option))]
    options = {_key(option): option for option in reversed(every)}  # the first of two that come to the same
    order = {_key(option): n for n, option in reversed(list(enumerate(every)))}
    waiting = [option for option in options.values() if _is_worth_a_trace(fit, option)]
    waiting.sort(key=lambda option: (not _may_fit(fit, probe, option), order[_key(option)]))
    one_row = next(batches(fit, (1,), probe), None) if probe is not None else None
    spare: list[Change] = []  # the probe is a change itself, the least of its kind
    if probe is not None and one_row is not None:
        waiting = [option for option in waiting if _key(option) != _key(one_row)]
        spare = [_change(one_row, fit, probe)] if probe.verdict == FITS and _is_valid(fit, one_row) else []
        if spare and not any(option.kinds == BATCH for option in waiting):  # and the only one
            options[_key(one_row)], order[_key(one_row)] = one_row, -1
            found[_key(one_row)] = spare.pop()
    while waiting and len(found) < WANTED and time.monotonic() + took < end:
        enough = [options[key].kinds for key in found] + [BATCH] * len(spare)
        waiting.sort(key=lambda option: any(kinds < option.kinds for kinds in enough))  # they come last, if at all
        first = waiting[0]  # and another that is traced at the same length
        batch = [first, *[one for one in waiting[1:] if not first.kinds < one.kinds and _alike(first, one)][:1]]
        waiting = [option for option in waiting if option not in batch]
        started = time.monotonic()
        traced = check_fits(
            [fit.recipe.with_values(option.values, LOCATION) for option in batch],
            fit.gpu,
            length=None if _is_shorter(first) else length,
            usable=fit.usable,
            layout=fit.layout,
        )
        took = time.monotonic() - started
        for option, one in zip(batch, traced, strict=True):
            if isinstance(one, Fit) and one.verdict == FITS:
                found[_key(option)] = _change(option, fit, one)
            elif isinstance(one, OutOfTimeError):
                late += 1
    keys = sorted(found, key=lambda key: order[key])
    cheapest = [found[key] for key in keys]
    if len(cheapest) < WANTED:  # behind larger batches
        place = sum(options[key].kinds == BATCH for key in keys)
        cheapest[place:place] = spare
    return Advice(changes=tuple(cheapest[:WANTED]), untried=0 if len(cheapest) >= WANTED else len(waiting) + late)


def _change(option: Option, fit: Fit, fitting: Fit) -> Change:
    cost = _counted(option.cost, fit, fitting)
    return Change(values=without_derived(fit.recipe, option.values), what=option.what, cost=cost, fit=fitting)


def explain_no_fit(fit: Fit) -> str:
    """Why nothing fits, in one line: what is there before the first row."""
    fixed = sum(fit.trace.parts.get(part, 0) for part in ("weights", "gradients", "optimizer"))
    weights = fit.trace.parts.get("weights", 0)
    if weights > fit.usable:
        return f"the weights alone take {weights / 2**30:.2f} GiB, more than the GPU has"
    return f"weights, gradients and optimizer take {fixed / 2**30:.2f} GiB before the first row"


def format_advice(advice: Advice, fit: Fit) -> list[str]:
    """What the terminal shows below a verdict that is not "fits"."""
    left = f"  {advice.untried} more changes were not tried: the time was over" if advice.untried else ""
    if not advice.changes:
        none = "no change that was tried" if left else "no change that plan knows"
        return [f"  {none} makes it fit: {explain_no_fit(fit)}", *([left] if left else [])]
    lines = ["  what would fit, the cheapest first (each verified by a trace):"]
    for number, change in enumerate(advice.changes, 1):
        reserved = f"{change.fit.reserved.peak / 2**30:.2f} GiB reserved"
        lines += [f"  {number}. {change.what}: {reserved}; costs {change.cost}", f"     {change.overrides}"]
    return [*lines, *([left] if left else [])]


def as_json(advice: Advice) -> list[dict[str, Any]]:
    """For tools."""
    return [
        {
            "overrides": change.overrides,
            "what": change.what,
            "cost": change.cost,
            "verdict": change.fit.verdict,
            "reserved_bytes": change.fit.reserved.peak,
            "allocated_bytes": change.fit.trace.allocated,
        }
        for change in advice.changes
    ]


def _smallest(fit: Fit, length: int | None) -> Fit | None:
    option = next(iter(batches(fit, (1,))), None)
    if option is None:
        return None
    changed = fit.recipe.with_values(option.values, LOCATION)
    found = check_fits([changed], fit.gpu, length=length, usable=fit.usable, layout=fit.layout)[0]
    return found if isinstance(found, Fit) else None


def _is_worth_a_trace(fit: Fit, option: Option) -> bool:
    return option.least_bytes * MARGIN <= fit.usable and _is_valid(fit, option)


def _may_fit(fit: Fit, probe: Fit | None, option: Option) -> bool:
    """By a guess that no verdict rests on: what stands, a share of the rest, and the allocator's slack."""
    variable = max(0.0, fit.trace.allocated - fixed_bytes(fit)) * option.variable
    near = probe or fit
    slack = max(1.0, near.reserved.peak / near.trace.allocated)
    return (option.fixed + variable) * slack * MARGIN <= fit.usable


def _is_valid(fit: Fit, option: Option) -> bool:
    """Whether `check` would accept the changed recipe."""
    try:
        return not errors(fit.recipe.with_values(option.values, LOCATION))
    except RecipeError:
        return False


def _is_shorter(option: Option) -> bool:
    """Whether it changes max_length: the length of the longest row says nothing then."""
    return any(name.endswith(".max_length") for name in option.values)


def _alike(one: Option, other: Option) -> bool:
    return _is_shorter(one) == _is_shorter(other)


def _counted(cost: str, before: Fit, after: Fit) -> str:
    """Numbers that the traces have counted."""
    more = after.trace.flops / before.trace.flops - 1 if before.trace.flops else 0.0
    fill: dict[str, Callable[[], str]] = {
        "{flops}": lambda: f"{more:.0%} more arithmetic, every layer is computed twice",
        "{trainable}": lambda: f"{after.trace.trainable:,} of {after.trace.parameters:,} parameters are trained",
    }
    for mark, text in fill.items():
        if mark in cost:
            cost = cost.replace(mark, text())
    return cost


def _key(option: Option) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in option.values.items()))
