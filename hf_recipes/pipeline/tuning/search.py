"""The search of `tune`: one candidate after another against what was kept so far, in the time that was given.

Imports neither torch nor transformers: `Measurer` runs the trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hf_recipes.common.text import first_line, format_bytes
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.tuning.candidates import Candidate
from hf_recipes.pipeline.tuning.pairs import (
    Gain,
    Trial,
    gain_of,
    is_hopeless,
    loss_rises,
    losses_differ,
    order_of,
    ratio_of,
)
from hf_recipes.pipeline.tuning.worker import FailedTrialError
from hf_recipes.recipe.recipe import Recipe

KEPT, SLOWER, UNSURE, LITTLE = "kept", "slower", "cannot tell", "too little"
REFUSED, FAILED, UNTRIED = "other loss", "cannot run", "not tried"
WORTH = 1.02  # times as fast: below, a key more in the recipe is not worth it
LONGEST = 160  # characters of a reason
LEAST_PAIRS, MOST_PAIRS = 3, 5  # an interval needs three; beyond five the next candidate is worth more
LEAST_STEPS, MOST_STEPS = 3, 20  # timed steps of a trial
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 2e-2  # relative, of the first losses


class Measurer(Protocol):
    """What the search needs of a worker."""

    def run(self, recipe: Recipe, steps: int, *, check: bool, seconds: float, new_process: bool = False) -> Trial: ...


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of a candidate."""

    candidate: Candidate
    verdict: str
    gain: Gain | None = None
    why: str = ""
    before: Trial | None = None  # the last trial of what was kept before it
    after: Trial | None = None  # its own last trial

    def __str__(self) -> str:
        measured = f"{self.gain}: " if self.gain is not None else ""
        return f"{self.candidate}  {measured}{self.verdict}{f' ({self.why})' if self.why else ''}"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """`values`: dotted keys of all candidates that were kept."""

    base: Trial
    tried: tuple[Tried, ...]
    values: Mapping[str, Any]

    @property
    def times(self) -> float:
        """Of all that was kept together: the product of what each added to those before it."""
        found = 1.0
        for one in self.tried:
            if one.verdict == KEPT and one.gain is not None:
                found *= one.gain.times
        return found


def search(
    recipe: Recipe,
    candidates: Sequence[Candidate],
    measurer: Measurer,
    *,
    base: Base,
    seconds: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Tries them in order for `seconds`."""
    end = clock() + seconds
    values: dict[str, Any] = {}
    traces: frozenset[str] = frozenset()  # keys of what was kept that change a process
    tried: list[Tried] = []
    runs = _Runs(measurer, base)
    for number, candidate in enumerate(candidates):
        if candidate.values.keys() & values.keys():  # a larger micro-batch was kept: its smaller sisters are not tried
            continue
        left = end - clock()
        before = _Setting(recipe=recipe.with_values(values, "tune"), traces=traces)
        found = _try(before, candidate, runs, left / (len(candidates) - number), clock, end)
        tried.append(found)
        say(f"  {found}")
        if found.verdict == KEPT:
            values |= candidate.values
            traces = _with_traces(traces, candidate)
    return Tuned(base=base.timed, tried=tuple(tried), values=values)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The recipe as it is. `checked`: the first trial of a process, with its first losses; `timed`: another one."""

    checked: Trial
    timed: Trial

    def pair_seconds(self, steps: int) -> float:
        """Of two trials with so many timed steps, in a process that has the rows already."""
        return 2 * (self.timed.start_seconds + steps * self.timed.step_seconds)


@dataclass(frozen=True, kw_only=True)
class _Setting:
    recipe: Recipe
    traces: frozenset[str]


class _Runs:
    """Starts a new process where the one that is there was changed by what is not part of the next trial."""

    def __init__(self, measurer: Measurer, base: Base) -> None:
        self.base, self._measurer = base, measurer
        self._traces: frozenset[str] = frozenset()

    def run(self, setting: _Setting, steps: int, *, check: bool, seconds: float) -> Trial:
        fresh = not self._traces <= setting.traces
        self._traces = setting.traces if fresh else self._traces | setting.traces
        try:
            return self._measurer.run(setting.recipe, steps, check=check, seconds=seconds, new_process=fresh)
        except FailedTrialError:
            self._traces = frozenset()  # its process has ended
            raise


def _with_traces(traces: frozenset[str], candidate: Candidate) -> frozenset[str]:
    return traces | frozenset(candidate.values) if candidate.leaves_traces else traces


def _try(
    before: _Setting, candidate: Candidate, runs: _Runs, share: float, clock: Callable[[], float], end: float
) -> Tried:
    """One candidate against what was kept before it, in about `share` seconds and in any case before `end`."""
    base, began, left = runs.base, clock(), end - clock()
    after = _Setting(
        recipe=before.recipe.with_values(candidate.values, "tune"), traces=_with_traces(before.traces, candidate)
    )
    needed = LEAST_PAIRS * base.pair_seconds(LEAST_STEPS) + base.timed.start_seconds
    needed += 2 * base.checked.start_seconds if candidate.leaves_traces else 0.0
    if needed > left:
        why = f"needs about {needed:.0f} s, {max(0.0, left):.0f} s are left"
        return Tried(candidate=candidate, verdict=UNTRIED, why=why)
    try:
        if candidate.same_rows:
            checked = runs.run(after, 0, check=True, seconds=left)
            rough = candidate.rounds or _has_16_bits(after.recipe)
            tolerance = TOLERANCE_16_BIT if rough else TOLERANCE
            apart = losses_differ(base.checked.first_losses, checked.first_losses, tolerance)
            if apart is not None:
                why = f"the first losses differ by {apart:.1%}"
                return Tried(candidate=candidate, verdict=REFUSED, why=why)
        steps, pairs = _size(base, max(share, needed) - (clock() - began))
        measured: list[tuple[Trial, Trial]] = []
        ratios: list[float] = []
        for order in order_of(pairs):
            if end - clock() < base.pair_seconds(LEAST_STEPS) and measured:
                break
            found = {
                second: runs.run(after if second else before, steps, check=False, seconds=max(end - clock(), 1.0))
                for second in order
            }
            measured.append((found[False], found[True]))
            ratios.append(ratio_of(*measured[-1], same_rows=candidate.same_rows))
            if is_hopeless(ratios):
                break
    except FailedTrialError as problem:
        return Tried(candidate=candidate, verdict=FAILED, why=str(problem)[:LONGEST])
    except RecipeError as problem:
        return Tried(candidate=candidate, verdict=FAILED, why=first_line(problem)[:LONGEST])
    return _judge(candidate, measured, ratios)


def _judge(candidate: Candidate, measured: Sequence[tuple[Trial, Trial]], ratios: Sequence[float]) -> Tried:
    gain, (before, after) = gain_of(ratios), measured[-1]
    verdict, why = UNSURE, ""
    if is_hopeless(ratios) or gain.slower:
        verdict = SLOWER
    elif gain.faster and gain.times < WORTH:
        verdict = LITTLE
    elif gain.faster and not candidate.same_rows and loss_rises(measured):
        verdict, why = REFUSED, "the loss is higher, beyond noise"
    elif gain.faster:
        verdict, why = KEPT, _cost(before, after)
    return Tried(candidate=candidate, verdict=verdict, gain=gain, why=why, before=before, after=after)


def _size(base: Base, seconds: float) -> tuple[int, int]:
    """(timed steps of a trial, pairs) for about `seconds`: first as many steps as are useful, then more pairs."""
    a_trial = seconds / (2 * LEAST_PAIRS)
    steps = int((a_trial - base.timed.start_seconds) / max(base.timed.step_seconds, 1e-6))
    steps = max(LEAST_STEPS, min(MOST_STEPS, steps))
    return steps, max(LEAST_PAIRS, min(MOST_PAIRS, int(seconds / base.pair_seconds(steps))))


def _has_16_bits(recipe: Recipe) -> bool:
    training = recipe.training
    half = str(recipe.get("model.dtype", "")).endswith("16") or recipe.section("BitsAndBytesConfig")
    sft = recipe.trainer == "SFTConfig" and "bf16" not in training
    return bool(half or sft or training.get("bf16") or training.get("fp16") or recipe.get("master_weights"))


def _cost(before: Trial, after: Trial) -> str:
    """What a kept setting costs elsewhere; "" where that is little."""
    parts = []
    if before.peak_bytes and after.peak_bytes and after.peak_bytes > 1.05 * before.peak_bytes:
        parts.append(f"memory {format_bytes(before.peak_bytes)} -> {format_bytes(after.peak_bytes)}")
    later = after.start_seconds - before.start_seconds
    if later > max(5.0, before.start_seconds):
        parts.append(f"a start takes {later:.0f} s more")
    return ", ".join(parts)
