"""If it does not fit: the cheapest changes that make it fit, each verified by a trace, with what it costs. Light.

Candidates come in tiers: the same result, more time, slightly other rounding, another result; then two and three
together. Two are traced at a time, those first that may fit by a guess; within a tier the one that leaves the run
closest to what was asked comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.common.text import as_yaml
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.changes import BATCH, Option, alone, batches, standing_bytes, together
from hf_recipes.plan.fit.verdict import FITS, MARGIN, Judged, examine_all
from hf_recipes.recipe.rules.all_rules import errors

WANTED = 3
SECONDS = 40.0  # no traces are begun that would end later than this, as long as the last ones took
PLACE = "plan's advice"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that fits. `words` are overrides as a user types them."""

    words: Mapping[str, Any]
    what: str
    cost: str
    judged: Judged  # of the changed recipe

    @property
    def overrides(self) -> str:
        """ "SFTConfig.per_device_train_batch_size=4 SFTConfig.gradient_accumulation_steps=8" """
        return " ".join(f"{name}={as_yaml(value)}" for name, value in self.words.items())


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Changes that fit, the cheapest first; `untried`: others for which no time was left."""

    changes: tuple[Change, ...]
    untried: int = 0


def advise(judged: Judged, *, length: int | None = None, seconds: float = SECONDS) -> Advice:
    """At most three changes, the cheapest first; none where nothing that plan knows makes it fit (see `hopeless`).

    length: tokens of the longest row, as for the verdict. Begins no trace that would end after `seconds`.
    """
    began, found, took = time.monotonic(), dict[tuple[tuple[str, str], ...], Change](), 0.0
    probe = _smallest(judged, length)  # the recipe at one row a device: how far the batch reaches
    every = [*alone(judged, probe), *together(judged, probe)]
    options = {_key(option): option for option in reversed(every)}  # the first of two that come to the same
    order = {_key(option): n for n, option in reversed(list(enumerate(every)))}
    waiting = [option for option in options.values() if _is_worth_a_trace(judged, option)]
    waiting.sort(key=lambda option: (not _may_fit(judged, probe, option), order[_key(option)]))
    one_row = next(batches(judged, (1,), probe), None) if probe is not None else None
    spare: list[Change] = []  # the probe is a change itself, the least of its kind
    if probe is not None and one_row is not None:
        waiting = [option for option in waiting if _key(option) != _key(one_row)]
        spare = [_change(one_row, judged, probe)] if probe.verdict == FITS and _is_valid(judged, one_row) else []
        if spare and not any(option.kinds == BATCH for option in waiting):  # and the only one
            options[_key(one_row)], order[_key(one_row)] = one_row, -1
            found[_key(one_row)] = spare.pop()
    while waiting and len(found) < WANTED and time.monotonic() - began + took < seconds:
        enough = [options[key].kinds for key in found] + [BATCH] * len(spare)
        waiting.sort(key=lambda option: any(kinds < option.kinds for kinds in enough))  # they come last, if at all
        batch = waiting[:1] + [option for option in waiting[1:] if not waiting[0].kinds < option.kinds][:1]
        waiting = [option for option in waiting if option not in batch]
        started = time.monotonic()
        seen = examine_all(
            [judged.recipe.with_values(option.words, PLACE) for option in batch],
            judged.gpu,
            length=_length(batch, length),
            usable=judged.usable,
            spread=judged.spread,
        )
        took = time.monotonic() - started
        for option, one in zip(batch, seen, strict=True):
            if isinstance(one, Judged) and one.verdict == FITS:
                found[_key(option)] = _change(option, judged, one)
    cheapest = [found[key] for key in sorted(found, key=lambda key: order[key])]
    if len(cheapest) < WANTED:
        cheapest = [*spare, *cheapest]
    return Advice(changes=tuple(cheapest[:WANTED]), untried=0 if len(cheapest) >= WANTED else len(waiting))


def _change(option: Option, judged: Judged, fitting: Judged) -> Change:
    cost = _counted(option.cost, judged, fitting)
    return Change(words=option.words, what=option.what, cost=cost, judged=fitting)


def hopeless(judged: Judged) -> str:
    """Why nothing fits, in one line: what is there before the first row."""
    standing = sum(judged.seen.parts.get(part, 0) for part in ("weights", "gradients", "optimizer"))
    weights = judged.seen.parts.get("weights", 0)
    if weights > judged.usable:
        return f"the weights alone take {weights / 2**30:.2f} GiB, more than the card has"
    return f"weights, gradients and optimizer take {standing / 2**30:.2f} GiB before the first row"


def lines(advice: Advice, judged: Judged) -> list[str]:
    """What the terminal shows below a verdict that is not "fits"."""
    left = f"  {advice.untried} more changes were not tried: the time was over" if advice.untried else ""
    if not advice.changes:
        none = "no change that was tried" if left else "no change that plan knows"
        return [f"  {none} makes it fit: {hopeless(judged)}", *([left] if left else [])]
    said = ["  what would fit, the cheapest first (each verified by a trace):"]
    for number, change in enumerate(advice.changes, 1):
        reserved = f"{change.judged.held.peak / 2**30:.2f} GiB reserved"
        said += [f"  {number}. {change.what}: {reserved}; costs {change.cost}", f"     {change.overrides}"]
    return said


def as_json(advice: Advice) -> list[dict[str, Any]]:
    """For tools."""
    return [
        {
            "overrides": change.overrides,
            "what": change.what,
            "cost": change.cost,
            "verdict": change.judged.verdict,
            "reserved_bytes": change.judged.held.peak,
            "allocated_bytes": change.judged.seen.allocated,
        }
        for change in advice.changes
    ]


def _smallest(judged: Judged, length: int | None) -> Judged | None:
    option = next(iter(batches(judged, (1,))), None)
    if option is None:
        return None
    changed = judged.recipe.with_values(option.words, PLACE)
    found = examine_all([changed], judged.gpu, length=length, usable=judged.usable, spread=judged.spread)[0]
    return found if isinstance(found, Judged) else None


def _is_worth_a_trace(judged: Judged, option: Option) -> bool:
    return option.least * MARGIN <= judged.usable and _is_valid(judged, option)


def _may_fit(judged: Judged, probe: Judged | None, option: Option) -> bool:
    """By a guess that no verdict rests on: what stands, a share of the rest, and the allocator's slack."""
    moving = max(0.0, judged.seen.allocated - standing_bytes(judged)) * option.moving
    near = probe or judged
    slack = max(1.0, near.held.peak / near.seen.allocated)
    return (option.standing + moving) * slack * MARGIN <= judged.usable


def _is_valid(judged: Judged, option: Option) -> bool:
    """Whether `check` would accept the changed recipe."""
    try:
        return not errors(judged.recipe.with_values(option.words, PLACE))
    except RecipeError:
        return False


def _length(batch: list[Option], length: int | None) -> int | None:
    """A change of the length must not be overruled by the length that was asked for."""
    changed = any(name.endswith(".max_length") for option in batch for name in option.words)
    return None if changed else length


def _counted(cost: str, before: Judged, after: Judged) -> str:
    """Numbers that the traces have counted."""
    more = after.seen.flops / before.seen.flops - 1 if before.seen.flops else 0.0
    fill: dict[str, Callable[[], str]] = {
        "{flops}": lambda: f"{more:.0%} more arithmetic, every layer is computed twice",
        "{trainable}": lambda: f"{after.seen.trainable:,} of {after.seen.parameters:,} parameters are trained",
    }
    for mark, text in fill.items():
        if mark in cost:
            cost = cost.replace(mark, text())
    return cost


def _key(option: Option) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in option.words.items()))
