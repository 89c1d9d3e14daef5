"""A verdict for a reader: the table with its bars, JSON for tools, an SVG for a report.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from hf_recipes.catalog.gpus import DESKTOP_BYTES, UNIFIED_SHARE, context_range, usable_bytes
from hf_recipes.common.text import format_bytes
from hf_recipes.plan.fit.verdict import CPU, OUT, TIGHT, Fit
from hf_recipes.plan.trace.result import PARTS

WIDTH = 40  # characters of the longest bar
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#edc948", "#9c755f", "#ff9da7", "#bab0ac")
EXPANDABLE = (
    "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: what is allocated fits, what is reserved hardly or not"
)
NAMED = 3  # of the tensors that the peak is made of


def rows(fit: Fit) -> list[tuple[str, int]]:
    """Where the GPU's bytes are at the peak: the parts of what is allocated, the allocator's slack, the context, the
    desktop's or the system's share; and what is free (negative where it does not fit). They sum to the GPU's memory.
    """
    gpu, trace, reserved = fit.gpu, fit.trace, fit.reserved
    found = [(part, trace.parts.get(part, 0)) for part in (*PARTS, *(p for p in trace.parts if p not in PARTS))]
    found.append(("allocator's slack", reserved.peak - trace.allocated))
    hidden = gpu.memory_bytes - gpu.seen_bytes
    overhead = gpu.seen_bytes - fit.usable
    if hidden:
        found.append(("not shown to torch", hidden))
    if gpu.name == CPU:
        found.append(("the process itself", overhead))
    elif gpu.unified:
        found.append(("the system's share", overhead))
    else:
        desktop, nccl = _beside_the_context(fit)
        found += [("CUDA context", overhead - desktop - nccl), ("the desktop's", desktop), ("NCCL", nccl)]
    found = [(name, size) for name, size in found if size]
    return [*found, ("free", fit.usable - reserved.peak)]


def _beside_the_context(fit: Fit) -> tuple[int, int]:
    """Bytes of a desktop and of NCCL in what is not usable; free bytes that a driver reports are without NCCL's."""
    desktop = DESKTOP_BYTES if fit.gpu.laptop else 0
    counted = fit.usable == usable_bytes(fit.gpu) - fit.layout.nccl_bytes
    return desktop, fit.layout.nccl_bytes if counted else 0


def headline(fit: Fit) -> str:
    """ "fits: 4.25 of 7.31 GiB on rtx-3070 (recipes/rtx3070.yaml)": the answer in one line."""
    answer = "does not fit" if fit.verdict == OUT else fit.verdict
    return f"{answer}: {_of(fit.reserved.peak, fit.usable)} on {fit.gpu.name} ({fit.recipe.path})"


def _of(needed: int, usable: int) -> str:
    """ "4.25 of 7.31 GiB": the unit once where both have it."""
    first, last = format_bytes(needed), format_bytes(usable)
    number, _, unit = first.partition(" ")
    return f"{number if last.endswith(f' {unit}') else first} of {last}"


def format_plan(fit: Fit) -> list[str]:
    """The verdict, where the bytes of the peak are, and what was assumed."""
    trace, table = fit.trace, rows(fit)
    widest = max(size for name, size in table if name != "free")
    lines = [
        headline(fit),
        f"  {_counted(trace.micro_batch, 'row')} of {trace.length} tokens a device, {trace.eval_batch} in evaluation; "
        f"the peak is in the {trace.phase} pass,",
        f"  at {trace.at}",
    ]
    for name, size in table:
        bar = "" if name == "free" else "#" * round(WIDTH * size / widest)
        lines.append(f"  {name:<20}{format_bytes(size):>12}  {bar}".rstrip())
    lines += [
        f"  {'allocated':<20}{format_bytes(trace.allocated):>12}",
        f"  {'reserved':<20}{format_bytes(fit.reserved.peak):>12}  "
        f"{fit.share:.0%} of {format_bytes(fit.usable)} usable ({_describe_usable(fit)})",
    ]
    if fit.verdict == TIGHT and fit.gpu.name != CPU:
        lines.append(f"  {EXPANDABLE}")
    lines += [f"  largest: {text}" for text in _describe_largest(fit)]
    if trace.estimate:
        lines.append("  estimate, not exact: " + "; ".join(trace.estimate))
    return [*lines, *(f"  {note}" for note in trace.notes)]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _describe_usable(fit: Fit) -> str:
    """Why less than the GPU's memory is usable."""
    gpu = fit.gpu
    hidden = gpu.memory_bytes - gpu.seen_bytes
    overhead = gpu.seen_bytes - fit.usable
    text = f"{format_bytes(gpu.memory_bytes)} less"
    if hidden:
        text += f" {format_bytes(hidden)} that the driver does not show to torch,"
    if gpu.name == CPU:
        return f"{text} what Python with its imports takes"
    if gpu.unified:
        return f"{text} the system's share of {UNIFIED_SHARE:.0%}"
    least, most = context_range(gpu)
    desktop, nccl = _beside_the_context(fit)
    overhead -= desktop + nccl
    # Free bytes that a driver reports are without the context as it is.
    assumed = f" (assumed, {format_bytes(least)} at least)" if least < most == overhead else ""
    rest = f" and {format_bytes(desktop)} of the desktop's" if desktop else ""
    rest += f" and at most {format_bytes(nccl)} of NCCL's" if nccl else ""
    return f"{text} {format_bytes(overhead)} of CUDA context{assumed}{rest}"


def _describe_largest(fit: Fit) -> Iterator[str]:
    """The largest tensors at the peak that are no weights or states: what a smaller batch would cut."""
    moving = [one for one in fit.trace.largest if one.part not in ("weights", "gradients", "optimizer")]
    for one in moving[:NAMED]:
        times = f"{one.count} x " if one.count > 1 else ""
        tensor = f"{one.dtype} {'x'.join(map(str, one.shape))} ".lstrip()
        yield f"{times}{tensor}({one.part}), {format_bytes(one.bytes)}, at {one.where}"


def as_json(fit: Fit) -> dict[str, Any]:
    """The same for tools; bytes are bytes."""
    trace = fit.trace
    return {
        "recipe": fit.recipe.path,
        "gpu": fit.gpu.name,
        "verdict": fit.verdict,
        "usable_bytes": fit.usable,
        "card_bytes": fit.gpu.memory_bytes,
        "allocated_bytes": trace.allocated,
        "reserved_bytes": fit.reserved.peak,
        "reserved_range_bytes": list(fit.reserved_range),
        "parts": dict(trace.parts),
        "card": dict(rows(fit)),
        "phases": dict(trace.phases),
        "phase": trace.phase,
        "at": trace.at,
        "largest": [
            {"part": one.part, "where": one.where, "shape": list(one.shape), "dtype": one.dtype, "bytes": one.bytes}
            for one in trace.largest
        ],
        "length": trace.length,
        "micro_batch": trace.micro_batch,
        "eval_batch": trace.eval_batch,
        "accumulation": trace.accumulation,
        "parameters": trace.parameters,
        "trainable": trace.trainable,
        "attention": dict(trace.attention),
        "estimate": list(trace.estimate),
        "notes": list(trace.notes),
        "seconds": trace.seconds,
    }


# color-scheme: a browser that shows the file by itself gives it a dark background, too
TEXT_STYLE = """\
<style>:root { color-scheme: light dark } text { fill: #222 } \
@media (prefers-color-scheme: dark) { text { fill: #ddd } }</style>"""


def svg(fit: Fit) -> str:
    """The GPU's memory at the peak as an SVG chart."""
    return memory_chart(headline(fit), rows(fit), fit.gpu.memory_bytes)


def memory_chart(title: str, parts: Iterable[tuple[str, int]], memory_bytes: int) -> str:
    """The memory as one bar from left to right, a colour a part, with a legend; a labelled line where the GPU's memory
    ends. `parts`: names and bytes, as `rows` gives them. Self-contained, readable in light and dark."""
    table = [(name, size) for name, size in parts if name != "free" and size > 0]
    needed = sum(size for _, size in table)
    scale = 700 / max(needed, memory_bytes)
    left, bars, legend = 10.0, [], []
    for index, (name, size) in enumerate(table):
        colour = COLOURS[index % len(COLOURS)]
        width = size * scale
        bars.append(f'<rect x="{left:.1f}" y="34" width="{width:.1f}" height="36" fill="{colour}"/>')
        x, y = 10 + 240 * (index % 3), 116 + 20 * (index // 3)
        legend.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        legend.append(f'<text x="{x + 18}" y="{y}">{escape(name)}: {format_bytes(size)}</text>')
        left += width
    edge = 10 + memory_bytes * scale
    height = 130 + 20 * ((len(table) - 1) // 3)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 {height}" font-family="sans-serif"',
            ' font-size="13">',
            TEXT_STYLE,
            f'<text x="10" y="20">{escape(title)}</text>',
            f'<rect x="10" y="34" width="{memory_bytes * scale:.1f}" height="36" fill="#8884"/>',
            *bars,
            f'<line x1="{edge:.1f}" x2="{edge:.1f}" y1="30" y2="78" stroke="#c00" stroke-width="2"/>',
            f'<text x="{edge:.1f}" y="92" text-anchor="end">limit: {format_bytes(memory_bytes)}</text>',
            *legend,
            "</svg>",
            "",
        ]
    )
