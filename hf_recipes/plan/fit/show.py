"""A verdict for a reader: the table with its bars, JSON for tools, an SVG for a report. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from hf_recipes.catalog.gpus import DESKTOP_BYTES, UNIFIED_SHARE, context_bytes
from hf_recipes.common.text import amount
from hf_recipes.plan.fit.verdict import CPU, TIGHT, Judged
from hf_recipes.plan.trace.result import PARTS

WIDTH = 40  # characters of the longest bar
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#edc948", "#9c755f", "#ff9da7", "#bab0ac")
EXPANDABLE = (
    "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: what is allocated fits, what is reserved hardly or not"
)
NAMED = 3  # of the tensors that the peak is made of


def rows(judged: Judged) -> list[tuple[str, int]]:
    """Where the card's bytes are at the peak: the parts of what is allocated, the allocator's slack, the context, the
    desktop's or the system's share; and what is free (negative where it does not fit). They sum to the card's memory.
    """
    gpu, seen, held = judged.gpu, judged.seen, judged.held
    found = [(part, seen.parts.get(part, 0)) for part in (*PARTS, *(p for p in seen.parts if p not in PARTS))]
    found.append(("allocator's slack", held.peak - seen.allocated))
    hidden = gpu.memory_bytes - gpu.seen_bytes
    kept = gpu.seen_bytes - judged.usable
    if hidden:
        found.append(("not shown to torch", hidden))
    if gpu.name == CPU:
        found.append(("the process itself", kept))
    elif gpu.unified:
        found.append(("the system's share", kept))
    elif gpu.laptop:
        found += [("CUDA context", kept - DESKTOP_BYTES), ("the desktop's", DESKTOP_BYTES)]
    elif kept:
        found.append(("CUDA context", kept))
    found = [(name, size) for name, size in found if size]
    return [*found, ("free", judged.usable - held.peak)]


def lines(judged: Judged) -> list[str]:
    """The verdict, where the bytes of the peak are, and what was assumed."""
    seen, gpu = judged.seen, judged.gpu
    table = rows(judged)
    widest = max(size for name, size in table if name != "free")
    said = [
        f"{judged.recipe.path}: {judged.verdict} on {gpu.name}",
        f"  {_counted(seen.micro_batch, 'row')} of {seen.length} tokens a device, {seen.eval_batch} in evaluation; "
        f"the peak is in the {seen.phase} pass,",
        f"  at {seen.at}",
    ]
    for name, size in table:
        bar = "" if name == "free" else "#" * round(WIDTH * size / widest)
        said.append(f"  {name:<20}{amount(size):>12}  {bar}".rstrip())
    said += [
        f"  {'allocated':<20}{amount(seen.allocated):>12}",
        f"  {'reserved':<20}{amount(judged.held.peak):>12}  {judged.share:.0%} of {amount(judged.usable)} usable "
        f"({_less(judged)})",
    ]
    if judged.verdict == TIGHT:
        said.append(f"  {EXPANDABLE}")
    said += [f"  largest: {text}" for text in _largest(judged)]
    if seen.estimate:
        said.append("  estimate, not exact: " + "; ".join(seen.estimate))
    return [*said, *(f"  {note}" for note in seen.notes)]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _less(judged: Judged) -> str:
    """What the card's memory is less by, in words."""
    gpu = judged.gpu
    hidden = gpu.memory_bytes - gpu.seen_bytes
    kept = gpu.seen_bytes - judged.usable
    whole = f"{amount(gpu.memory_bytes)} less"
    if hidden:
        whole += f" {amount(hidden)} that the driver does not show to torch,"
    if gpu.name == CPU:
        return f"{whole} what Python with its imports takes"
    if gpu.unified:
        return f"{whole} the system's share of {UNIFIED_SHARE:.0%}"
    if gpu.laptop:
        return f"{whole} {amount(context_bytes(gpu))} of CUDA context and {amount(DESKTOP_BYTES)} of the desktop's"
    return f"{whole} {amount(kept)} of CUDA context"


def _largest(judged: Judged) -> Iterator[str]:
    """The largest tensors at the peak that are no weights or states: what a smaller batch would cut."""
    moving = [one for one in judged.seen.largest if one.part not in ("weights", "gradients", "optimizer")]
    for one in moving[:NAMED]:
        times = f"{one.count} x " if one.count > 1 else ""
        tensor = f"{one.dtype} {'x'.join(map(str, one.shape))} ".lstrip()
        yield f"{times}{tensor}({one.part}), {amount(one.bytes)}, at {one.where}"


def as_json(judged: Judged) -> dict[str, Any]:
    """The same for tools; bytes are bytes."""
    seen = judged.seen
    return {
        "recipe": judged.recipe.path,
        "gpu": judged.gpu.name,
        "verdict": judged.verdict,
        "usable_bytes": judged.usable,
        "card_bytes": judged.gpu.memory_bytes,
        "allocated_bytes": seen.allocated,
        "reserved_bytes": judged.held.peak,
        "parts": dict(seen.parts),
        "card": dict(rows(judged)),
        "phases": dict(seen.phases),
        "phase": seen.phase,
        "at": seen.at,
        "largest": [
            {"part": one.part, "where": one.where, "shape": list(one.shape), "dtype": one.dtype, "bytes": one.bytes}
            for one in seen.largest
        ],
        "length": seen.length,
        "micro_batch": seen.micro_batch,
        "eval_batch": seen.eval_batch,
        "accumulation": seen.accumulation,
        "parameters": seen.parameters,
        "trainable": seen.trainable,
        "attention": dict(seen.attention),
        "estimate": list(seen.estimate),
        "notes": list(seen.notes),
        "seconds": seen.seconds,
    }


def svg(judged: Judged) -> str:
    """The GPU's memory at the peak as an SVG chart."""
    title = f"{judged.recipe.path}: {judged.verdict} on {judged.gpu.name}"
    return memory_chart(title, rows(judged), judged.gpu.memory_bytes)


def memory_chart(title: str, parts: Iterable[tuple[str, int]], memory_bytes: int) -> str:
    """The memory as one bar from left to right, a colour a part, with a legend; a red line where the GPU's memory ends.
    `parts`: names and bytes, as `rows` gives them. Self-contained, readable in light and dark."""
    table = [(name, size) for name, size in parts if name != "free" and size > 0]
    needed = sum(size for _, size in table)
    scale = 700 / max(needed, memory_bytes)
    left, bars, legend = 10.0, [], []
    for index, (name, size) in enumerate(table):
        colour = COLOURS[index % len(COLOURS)]
        width = size * scale
        bars.append(f'<rect x="{left:.1f}" y="34" width="{width:.1f}" height="36" fill="{colour}"/>')
        x, y = 10 + 240 * (index % 3), 96 + 20 * (index // 3)
        legend.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        legend.append(f'<text x="{x + 18}" y="{y}">{escape(name)}: {amount(size)}</text>')
        left += width
    edge = 10 + memory_bytes * scale
    height = 110 + 20 * ((len(table) - 1) // 3)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 {height}" font-family="sans-serif"',
            ' font-size="13">',
            "<style>text { fill: #222 } @media (prefers-color-scheme: dark) { text { fill: #ddd } }</style>",
            f'<text x="10" y="20">{escape(title)}</text>',
            f'<rect x="10" y="34" width="{memory_bytes * scale:.1f}" height="36" fill="#8884"/>',
            *bars,
            f'<line x1="{edge:.1f}" x2="{edge:.1f}" y1="30" y2="74" stroke="#c00" stroke-width="2"/>',
            *legend,
            "</svg>",
            "",
        ]
    )
