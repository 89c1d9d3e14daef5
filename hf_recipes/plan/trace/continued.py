"""Models that compute token by token (Mamba's and RWKV's loops in Python): traced at three short lengths, and continued
by their law: every module's peak is a polynomial of the second degree in the length.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from hf_recipes.plan.trace.cuda_allocator import replay_trace
from hf_recipes.plan.trace.result import Trace, Work
from hf_recipes.recipe.model_facts import model_facts

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

LOOPS = ("rwkv", "mamba", "falcon_mamba", "jamba", "zamba")  # without their packages of kernels
LENGTHS = (16, 32, 64)


def length_to_continue(recipe: Recipe, length: int | None) -> int | None:
    """The length of a recipe that is too long for a trace of such a model; None for all others."""
    facts = model_facts(recipe.section("model"))
    if facts.model_type not in LOOPS:
        return None
    found = length or recipe.get(recipe.max_length_key) or facts.config.get("context_length")
    return found if isinstance(found, int) and found > 2 * LENGTHS[-1] else None


def continue_trace(traces: Sequence[Trace], length: int) -> Trace:
    """The trace at `length` of traces at LENGTHS: the longest of them with what is missing as one more activation."""
    last = traces[-1]

    def at(values: Sequence[int]) -> int:
        return max(values[-1], _parabola(LENGTHS, values, length))

    peaks = _continued([trace.module_peaks for trace in traces], at)
    phases = _continued([trace.phases for trace in traces], at)
    allocated = max(*phases.values(), *peaks.values(), at([trace.allocated for trace in traces]))
    phase = max(phases, key=lambda name: phases[name])
    more = allocated - last.allocated
    # What the allocator reserves beyond that is taken in proportion, the largest that was seen.
    reserved = [replay_trace(trace).peak for trace in traces]
    share = max(one / max(1, trace.allocated) for one, trace in zip(reserved, traces, strict=True))
    held = max(0, round(allocated * share) - reserved[-1] - more)
    storage = max((number for number, _ in last.events), default=-1) + 1
    lengths = ", ".join(map(str, LENGTHS))
    reason = f"traced at {lengths} tokens and continued to {length}: this model computes token by token"
    return replace(
        last,
        allocated=allocated,
        parts={**last.parts, "activations": last.parts["activations"] + more},
        phase=phase,
        phases=phases,
        module_peaks=peaks,
        largest=(),
        events=((storage, more + held), *last.events),
        work={name: _work([trace.work[name] for trace in traces], length) for name in last.work},
        length=length,
        estimate=(*last.estimate, reason),
        seconds=sum(trace.seconds for trace in traces),
    )


def _continued(found: Sequence[Mapping[str, int]], at: Callable[[Sequence[int]], int]) -> dict[str, int]:
    """Of what every trace has."""
    return {name: at([one.get(name, value) for one in found]) for name, value in found[-1].items()}


def _work(found: Sequence[Work], length: int) -> Work:
    values = {
        one.name: max(0, _parabola(LENGTHS, [getattr(work, one.name) for work in found], length))
        for one in fields(Work)
        if one.name != "seconds_traced"
    }
    return replace(found[-1], **values)


def _parabola(places: Sequence[int], values: Sequence[int], at: int) -> int:
    """The value at `at` of the polynomial through three points."""
    total = 0.0
    for i, value in enumerate(values):
        part = float(value)
        for j, place in enumerate(places):
            if j != i:
                part *= (at - place) / (places[i] - place)
        total += part
    return round(total)
