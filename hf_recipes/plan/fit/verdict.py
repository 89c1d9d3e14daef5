"""Does this recipe fit that GPU? A trace and a GPU to a verdict.

Imports neither torch nor transformers: the traces are made in children.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_recipes.catalog.gpus import Gpu, context_range, find_gpu, parse_bytes, usable_bytes
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.plan.fit.parallel import SINGLE, Layout, apply_layout
from hf_recipes.plan.trace.cuda_allocator import replay_trace
from hf_recipes.plan.trace.load_race import reserved_range
from hf_recipes.plan.trace.result import Reserved, Trace
from hf_recipes.plan.trace.worker import trace_recipe, trace_recipes
from hf_recipes.recipe.recipe import Recipe

CPU = "cpu"
PROCESS_BYTES = 600 * 2**20  # of Python with torch, transformers and trl imported: measured with transformers 5
FITS, TIGHT, OUT = "fits", "tight", "out of memory"
UNSURE = "cannot say"  # a closed form that would fit
NOT_APPLE = "an Apple GPU is not modelled: CUDA's kernels stand for its own"
MARGIN = 1.11  # on what is reserved: no row of docs/plan-accuracy.md is then called "fits" where it would not
DEFAULT_CAPABILITY = (8, 6)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A recipe on a GPU. `reserved` is the allocator's answer without a limit of memory."""

    recipe: Recipe
    gpu: Gpu
    trace: Trace
    reserved: Reserved
    usable: int  # bytes that the allocator can have on the GPU
    verdict: str  # FITS, TIGHT, OUT or UNSURE
    layout: Layout = SINGLE

    @property
    def share(self) -> float:
        """Of the GPU's usable memory."""
        return self.reserved.peak / self.usable

    @property
    def reserved_range(self) -> tuple[int, int]:
        """The least and the most bytes reserved where something else than `run` loads a 4-bit model in threads."""
        return reserved_range(self.trace) if self.trace.load else (self.reserved.peak, self.reserved.peak)


def choose_gpu(gpu: str | None, memory: str | None, capability: str | None) -> Gpu:
    """The GPU that the arguments name: --gpu, or --memory with --compute-capability (8.6 without it)."""
    if gpu is not None and memory is not None:
        raise PlanError.at("argument '--memory'", "--gpu and --memory name two GPUs", "give one of them")
    if capability is not None and memory is None:
        raise PlanError.at("argument '--compute-capability'", "it goes with --memory; a GPU named by --gpu has its own")
    if gpu is not None:
        return find_gpu(gpu)
    if memory is None:
        raise PlanError.at("hf-recipes plan", "which GPU?", "give --gpu rtx-3070, or --memory 8GiB")
    major, _, minor = (capability or "8.6").partition(".")
    if not (major.isdecimal() and minor.isdecimal() and len(major + minor) < 9):
        raise PlanError.at(
            "argument '--compute-capability'", f"{capability!r} is not a compute capability", "write it as 8.6"
        )
    found = custom_gpu(f"a GPU of {memory}", parse_bytes(memory), (int(major), int(minor)), "the command line")
    if usable_bytes(found) <= 0:
        context = f"{context_range(found)[1] / 2**30:.2f} GiB"
        raise PlanError.at("argument '--memory'", f"CUDA alone takes up to {context} of {memory}", "write it as 8GiB")
    return found


def custom_gpu(name: str, memory_bytes: int, capability: tuple[int, int] | None, source: str) -> Gpu:
    """A GPU of which only its memory and its compute capability are known."""
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


def cpu_as_gpu() -> Gpu:
    """This machine's memory as a GPU."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return replace(custom_gpu(CPU, total, None, "this machine"), unified=True)


def assess_fit(recipe: Recipe, trace: Trace, gpu: Gpu, usable: int | None = None, layout: Layout = SINGLE) -> Fit:
    """FITS: what the allocator reserves is there with MARGIN to spare and the largest CUDA context that the GPU may
    have; TIGHT: what is allocated is there, what is reserved hardly or not (set expandable_segments); OUT: neither,
    with the smallest context. `usable`: free bytes, where the driver reports them: they are without the context.
    Several processes: NCCL takes the most that is known of it, or nothing."""
    if gpu.name == CPU:
        return _assess_on_cpu(recipe, trace, gpu)
    most = usable
    if usable is None:
        least_context, most_context = (0, 0) if gpu.unified else context_range(gpu)
        usable = usable_bytes(gpu) - layout.nccl_bytes
        most = usable + layout.nccl_bytes + most_context - least_context
    trace = apply_layout(trace, layout)
    if gpu.unified:
        trace = replace(trace, estimate=(*trace.estimate, NOT_APPLE))
    reserved = replay_trace(trace)
    if reserved.peak * MARGIN <= usable:
        verdict = FITS
    else:
        verdict = OUT if replay_trace(trace, capacity=most, expandable=True).out_of_memory else TIGHT
    if layout.is_closed_form(trace) and verdict != OUT:
        verdict = UNSURE
    return Fit(recipe=recipe, gpu=gpu, trace=trace, reserved=reserved, usable=usable, verdict=verdict, layout=layout)


def tracer_arguments(gpu: Gpu) -> dict[str, Any]:
    """The arguments of trace_recipe that depend on the GPU."""
    return {"capability": gpu.capability or DEFAULT_CAPABILITY, "cpu": gpu.name == CPU}


def _assess_on_cpu(recipe: Recipe, trace: Trace, gpu: Gpu) -> Fit:
    """malloc gives back what is freed: what is allocated counts, beside the process itself. FITS leaves MARGIN for the
    other programs of this machine."""
    usable = gpu.memory_bytes - PROCESS_BYTES
    reserved = Reserved(
        peak=trace.allocated, out_of_memory=trace.allocated > usable, retries=0, allocated=trace.allocated
    )
    verdict = FITS if trace.allocated * MARGIN <= usable else OUT if reserved.out_of_memory else TIGHT
    return Fit(recipe=recipe, gpu=gpu, trace=trace, reserved=reserved, usable=usable, verdict=verdict)


def check_fit(
    recipe: Recipe,
    gpu: Gpu,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    layout: Layout = SINGLE,
    usable: int | None = None,
) -> Fit:
    """Traces the recipe as it would train on this GPU, and compares it with the GPU's memory. Raises RecipeError for
    what `run` or the tracer refuses."""
    arguments = {"length": length, "micro_batch": micro_batch, **tracer_arguments(gpu)}
    trace, refusal = None, ""
    if is_rank_traced(gpu, layout):
        try:
            trace = trace_recipe(recipe, **arguments, **rank_arguments(layout))
        except PlanError as problem:
            refusal = problem.errors[0].message
    trace = trace or trace_recipe(recipe, **arguments)
    return assess_fit(recipe, _note_refusal(trace, refusal), gpu, usable, layout)


def check_fits(
    recipes: Sequence[Recipe],
    gpu: Gpu,
    *,
    length: int | None = None,
    layout: Layout = SINGLE,
    usable: int | None = None,
) -> list[Fit | RecipeError]:
    """`check_fit` of each, two at a time; an error takes the place of a refused recipe's."""
    rank = rank_arguments(layout) if is_rank_traced(gpu, layout) else {}
    arguments = {"length": length, **tracer_arguments(gpu)}
    found: list[Fit | RecipeError] = []
    for recipe, one in zip(recipes, trace_recipes(recipes, **arguments, **rank), strict=True):
        refusal = one.errors[0].message if rank and isinstance(one, PlanError) else ""
        trace = trace_recipes([recipe], **arguments)[0] if refusal else one
        if isinstance(trace, RecipeError):
            found.append(trace)
        else:
            found.append(assess_fit(recipe, _note_refusal(trace, refusal), gpu, usable, layout))
    return found


def is_rank_traced(gpu: Gpu, layout: Layout) -> bool:
    return layout.is_traceable and gpu.name != CPU


def rank_arguments(layout: Layout) -> dict[str, Any]:
    """The arguments of trace_recipe for one rank of this launch."""
    return {"processes": layout.processes, "fsdp": dict(layout.fsdp)}


def _note_refusal(trace: Trace, refusal: str) -> Trace:
    if not refusal:
        return trace
    return replace(trace, estimate=(*trace.estimate, f"no rank of this launch could be traced ({refusal})"))
