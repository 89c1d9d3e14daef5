"""`hf-recipes plan`: does this recipe fit that card? Trace and card to a verdict, a table, and JSON. Light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_recipes.gpus import CONTEXT_BYTES, Gpu, find, parse_bytes, usable_bytes
from hf_recipes.plan import PARTS, Reserved, Trace, reserved, trace
from hf_recipes.recipe import read_recipe

GIB = 2**30
FITS, TIGHT, OUT = "fits", "tight", "out of memory"
NOT_APPLE = "an Apple GPU is not modelled: CUDA's kernels stand for its own"
MARGIN = 1.10  # on what is reserved: the worst that docs/plan-accuracy.md has is 9.6 % too low


def card(gpu: str | None, memory: str | None, capability: str | None) -> Gpu:
    """The card that the arguments name: --gpu, or --memory with --compute-capability (8.6 if none is said)."""
    if gpu is not None and memory is None:
        return find(gpu)
    from hf_recipes.errors import fault

    if memory is None:
        raise fault("hf-recipes plan", "which card?", "say --gpu rtx-3070, or --memory 8GiB")
    major, _, minor = (capability or "8.6").partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise fault("argument '--compute-capability'", f"{capability!r} is no compute capability", "write it as 8.6")
    name = f"a card of {memory}"
    return Gpu(
        name=name,
        title=name,
        memory_bytes=parse_bytes(memory),
        capability=(int(major), int(minor)),
        bandwidth=None,
        half_flops=None,
        tf32_flops=None,
        fp32_flops=None,
        source="the command line",
    )


def plan(path: str, overrides: Sequence[str], gpu: Gpu, length: int | None = None) -> tuple[Trace, Reserved, str]:
    """Traces the recipe as it would train on this card. Raises RecipeError for what `run` or the tracer refuses.

    The verdict: "fits" (what the allocator reserves is there with MARGIN to spare), "tight" (what is allocated is
    there, what is reserved hardly or not: set expandable_segments), "out of memory".
    """
    recipe = read_recipe(path, overrides)
    seen = trace(recipe, length=length, capability=gpu.capability or (8, 6))
    if gpu.unified:
        seen = replace(seen, estimate=(*seen.estimate, NOT_APPLE))
    usable = usable_bytes(gpu)
    held = reserved(seen)
    if held.peak * MARGIN <= usable:
        return seen, held, FITS
    return seen, held, OUT if reserved(seen, capacity=usable, expandable=True).out_of_memory else TIGHT


def lines(path: str, gpu: Gpu, seen: Trace, held: Reserved, verdict: str) -> list[str]:
    """The verdict, where the bytes of the peak are, and what was assumed."""
    usable = usable_bytes(gpu)
    widest = max(seen.parts.values())
    rows = [
        f"  {part:<16}{seen.parts.get(part, 0) / GIB:>8.2f} GiB  {'#' * round(40 * seen.parts.get(part, 0) / widest)}"
        for part in PARTS
        if seen.parts.get(part)
    ]
    about = "estimate, not exact: " + "; ".join(seen.estimate) if seen.estimate else ""
    said = [
        f"{path}: {verdict} on {gpu.name}",
        f"  {seen.micro_batch} rows of {seen.length} tokens a device; the peak is in the {seen.phase} pass, "
        f"at {seen.at}",
        *rows,
        f"  {'allocated':<16}{seen.allocated / GIB:>8.2f} GiB",
        f"  {'reserved':<16}{held.peak / GIB:>8.2f} GiB  of {usable / GIB:.2f} GiB usable "
        f"({gpu.memory_bytes / GIB:.0f} GiB less "
        + ("the system's share)" if gpu.unified else f"{CONTEXT_BYTES / GIB:.2f} GiB of CUDA context")
        + ("" if gpu.unified else " and the desktop's)" if gpu.laptop else ")"),
    ]
    if verdict == TIGHT:
        said.append(
            "  set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: what is allocated fits, what is reserved does not"
        )
    return [*said, *([f"  {about}"] if about else []), *(f"  {note}" for note in seen.notes)]


def as_json(path: str, gpu: Gpu, seen: Trace, held: Reserved, verdict: str) -> dict[str, Any]:
    """The same for tools; bytes are bytes."""
    return {
        "recipe": path,
        "gpu": gpu.name,
        "verdict": verdict,
        "usable_bytes": usable_bytes(gpu),
        "allocated_bytes": seen.allocated,
        "reserved_bytes": held.peak,
        "parts": dict(seen.parts),
        "phases": dict(seen.phases),
        "at": seen.at,
        "length": seen.length,
        "micro_batch": seen.micro_batch,
        "estimate": list(seen.estimate),
        "notes": list(seen.notes),
        "seconds": seen.seconds,
    }
