"""Does this recipe fit that card? A trace and a card to a verdict. Light: the traces are made in children."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_recipes.catalog.gpus import Gpu, find, parse_bytes, usable_bytes
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.parallel import SINGLE, Layout, applied
from hf_recipes.plan.trace.cuda_allocator import reserved
from hf_recipes.plan.trace.result import Reserved, Trace
from hf_recipes.plan.trace.worker import trace, trace_all
from hf_recipes.recipe.recipe import Recipe

CPU = "cpu"
PROCESS_BYTES = 600 * 2**20  # of Python with torch, transformers and trl imported: measured, FACTS of today's stack
FITS, TIGHT, OUT = "fits", "tight", "out of memory"
UNSURE = "cannot say"  # a closed form that would fit
NOT_APPLE = "an Apple GPU is not modelled: CUDA's kernels stand for its own"
MARGIN = 1.11  # on what is reserved: no row of docs/plan-accuracy.md is then called "fits" where it would not
DEFAULT_CAPABILITY = (8, 6)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A recipe on a card. `held` is the allocator's answer where it may have all that it likes."""

    recipe: Recipe
    gpu: Gpu
    seen: Trace
    held: Reserved
    usable: int  # bytes that the allocator can have on the card
    verdict: str  # FITS, TIGHT, OUT or UNSURE
    spread: Layout = SINGLE

    @property
    def share(self) -> float:
        """Of the card's usable memory."""
        return self.held.peak / self.usable


def card(gpu: str | None, memory: str | None, capability: str | None) -> Gpu:
    """The card that the arguments name: --gpu, or --memory with --compute-capability (8.6 if none is said)."""
    if gpu is not None and memory is not None:
        raise RecipeError.at("argument '--memory'", "--gpu and --memory name two cards", "keep one of them")
    if capability is not None and memory is None:
        raise RecipeError.at("argument '--compute-capability'", "it goes with --memory; a card of --gpu has its own")
    if gpu is not None:
        return find(gpu)
    if memory is None:
        raise RecipeError.at("hf-recipes plan", "which card?", "say --gpu rtx-3070, or --memory 8GiB")
    major, _, minor = (capability or "8.6").partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise RecipeError.at(
            "argument '--compute-capability'", f"{capability!r} is no compute capability", "write it as 8.6"
        )
    return custom_card(f"a card of {memory}", parse_bytes(memory), (int(major), int(minor)), "the command line")


def custom_card(name: str, memory_bytes: int, capability: tuple[int, int] | None, source: str) -> Gpu:
    """A card of which nothing but its memory and its compute capability is known."""
    return Gpu(
        name=name,
        title=name,
        memory_bytes=memory_bytes,
        capability=capability,
        bandwidth=None,
        half_flops=None,
        tf32_flops=None,
        fp32_flops=None,
        source=source,
    )


def cpu_card() -> Gpu:
    """This machine's memory as a card."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return replace(custom_card(CPU, total, None, "this machine"), unified=True)


def judge(recipe: Recipe, seen: Trace, gpu: Gpu, usable: int | None = None, spread: Layout = SINGLE) -> Judged:
    """FITS: what the allocator reserves is there with MARGIN to spare; TIGHT: what is allocated is there, what is
    reserved hardly or not (set expandable_segments); OUT: neither. `usable`: bytes, where the card itself was asked."""
    if gpu.name == CPU:
        return _on_cpu(recipe, seen, gpu)
    usable = usable_bytes(gpu) if usable is None else usable
    seen = applied(seen, spread)
    if gpu.unified:
        seen = replace(seen, estimate=(*seen.estimate, NOT_APPLE))
    held = reserved(seen)
    if held.peak * MARGIN <= usable:
        verdict = FITS
    else:
        verdict = OUT if reserved(seen, capacity=usable, expandable=True).out_of_memory else TIGHT
    if spread.is_closed_form and verdict != OUT:
        verdict = UNSURE
    return Judged(recipe=recipe, gpu=gpu, seen=seen, held=held, usable=usable, verdict=verdict, spread=spread)


def device_words(gpu: Gpu) -> dict[str, Any]:
    """The tracer's words for a card."""
    return {"capability": gpu.capability or DEFAULT_CAPABILITY, "cpu": gpu.name == CPU}


def _on_cpu(recipe: Recipe, seen: Trace, gpu: Gpu) -> Judged:
    """malloc gives back what is freed: what is allocated counts, beside the process itself."""
    usable = gpu.memory_bytes - PROCESS_BYTES
    held = Reserved(peak=seen.allocated, out_of_memory=seen.allocated > usable, retries=0, allocated=seen.allocated)
    verdict = OUT if held.out_of_memory else FITS
    return Judged(recipe=recipe, gpu=gpu, seen=seen, held=held, usable=usable, verdict=verdict)


def examine(
    recipe: Recipe,
    gpu: Gpu,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    spread: Layout = SINGLE,
    usable: int | None = None,
) -> Judged:
    """Traces the recipe as it would train on this card, and judges it. Raises RecipeError for what `run` or the tracer
    refuses."""
    seen = trace(recipe, length=length, micro_batch=micro_batch, **device_words(gpu))
    return judge(recipe, seen, gpu, usable, spread)


def examine_all(
    recipes: Sequence[Recipe],
    gpu: Gpu,
    *,
    length: int | None = None,
    spread: Layout = SINGLE,
    usable: int | None = None,
) -> list[Judged | RecipeError]:
    """`examine` of each, two at a time; a refusal stands where its verdict would."""
    found = trace_all(recipes, length=length, **device_words(gpu))
    return [
        one if isinstance(one, RecipeError) else judge(recipe, one, gpu, usable, spread)
        for recipe, one in zip(recipes, found, strict=True)
    ]
