"""What plan says of each cell, before it is measured. No card is needed: `lab --predict` makes them elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.common.environment import package_versions
from hf_recipes.common.text import GIB
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.verdict import Judged, device_words, judge
from hf_recipes.plan.measure.matrix import Cell
from hf_recipes.plan.trace.result import Trace
from hf_recipes.plan.trace.worker import trace_each

TRACING = 8  # predictions made side by side at most: each takes a core and up to 3 GiB
IN_DOUBT = 1.6  # a smaller card is tried where the prediction is within this factor of its memory


def predictions(
    cells: Sequence[Cell], gpu: Gpu, known: Mapping[str, dict[str, Any]], cores: int
) -> Generator[tuple[Cell, dict[str, Any]]]:
    """Each cell with the record of its prediction, those that are `known` first. A record without "predicted" says why
    there is nothing to measure: "refused" or "passed_over". `cores`: processes that trace side by side at most."""
    for cell in cells:
        if cell.name in known:
            yield cell, known[cell.name]
    others = [cell for cell in cells if cell.name not in known]
    settings = [list(same) for _, same in groupby(others, key=lambda cell: (cell.recipe.path, cell.variant))]
    workers = max(1, min(TRACING, cores, len(settings)))
    traces = trace_each([same[0].recipe for same in settings], workers=workers, **device_words(gpu))
    try:
        for same, seen in zip(settings, traces, strict=True):
            for cell in same:
                yield cell, _record(cell, gpu, seen)
    finally:
        traces.close()


def _record(cell: Cell, gpu: Gpu, seen: Trace | RecipeError) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "lab", "cell": cell.name, "recipe": cell.recipe.path, "variant": cell.variant}
    record |= {"gpu": gpu.name, "gib": cell.gib}
    if isinstance(seen, RecipeError):
        return {**record, "refused": str(seen)}
    usable = None if cell.gib is None else cell.gib * GIB
    judged = judge(cell.recipe, seen, gpu, usable)
    if usable is not None and not 1 / IN_DOUBT < judged.share < IN_DOUBT:
        return {**record, "passed_over": f"nobody doubts it: {judged.share:.0%} of {cell.gib} GiB"}
    record |= {"date": datetime.date.today().isoformat(), "versions": package_versions(), "length": seen.length}
    record |= {"micro_batch": seen.micro_batch, "accumulation": seen.accumulation, "sections": cell.recipe.sections}
    needed = min(judged.held.peak, usable or judged.held.peak)
    return {**record, "needed_bytes": needed, "predicted": predicted(judged)}


def predicted(judged: Judged) -> dict[str, Any]:
    """What a record keeps of a prediction. `allocated_bytes` is in whole blocks, as torch counts them, `asked_bytes` is
    what tensors take; `work` is of the roofline."""
    seen = judged.seen
    work = {name: asdict(one) for name, one in seen.work.items()}
    found: dict[str, Any] = {"verdict": judged.verdict, "asked_bytes": seen.allocated}
    found |= {"allocated_bytes": judged.held.allocated, "reserved_bytes": judged.held.peak}
    found |= {"phase": seen.phase, "phases": dict(seen.phases), "parts": dict(seen.parts)}
    return {**found, "work": work, "attention": dict(seen.attention), "estimate": list(seen.estimate)}
