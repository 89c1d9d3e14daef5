"""plan's prediction of each cell, before it is measured. No GPU is needed: `lab --predict` makes them elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from hf_recipes import record as records
from hf_recipes.catalog.gpus import Gpu
from hf_recipes.common.text import GIB
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.verdict import Fit, assess_fit, tracer_arguments
from hf_recipes.plan.measure.matrix import Cell
from hf_recipes.plan.trace.result import Trace
from hf_recipes.plan.trace.worker import iterate_traces

TRACING = 8  # predictions made side by side at most: each takes a core and up to 3 GiB
UNDECIDED = 1.6  # a smaller GPU is tried where the prediction is within this factor of its memory


def predict_cells(
    cells: Sequence[Cell], gpu: Gpu, known: Mapping[str, dict[str, Any]], cores: int
) -> Generator[tuple[Cell, dict[str, Any]]]:
    """Each cell with the record of its prediction, those that are `known` first. A record without "predicted" has the
    reason why there is nothing to measure: "refused" or "passed_over". `cores`: processes that trace side by side at
    most."""
    for cell in cells:
        if cell.name in known:
            yield cell, known[cell.name]
    others = [cell for cell in cells if cell.name not in known]
    settings = [list(same) for _, same in groupby(others, key=lambda cell: (cell.recipe.path, cell.variant))]
    workers = max(1, min(TRACING, cores, len(settings)))
    traces = iterate_traces([same[0].recipe for same in settings], workers=workers, **tracer_arguments(gpu))
    try:
        for same, trace in zip(settings, traces, strict=True):
            for cell in same:
                yield cell, _record(cell, gpu, trace)
    finally:
        traces.close()


def _record(cell: Cell, gpu: Gpu, trace: Trace | RecipeError) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "lab", "cell": cell.name, "recipe": cell.recipe.path, "variant": cell.variant}
    record |= {"gpu": gpu.name, "gib": cell.gib}
    if isinstance(trace, RecipeError):
        return {**record, "refused": str(trace)}
    usable = None if cell.gib is None else cell.gib * GIB
    fit = assess_fit(cell.recipe, trace, gpu, usable)
    if usable is not None and not 1 / UNDECIDED < fit.share < UNDECIDED:
        return {**record, "passed_over": f"decided by the prediction: {fit.share:.0%} of {cell.gib} GiB"}
    record |= {"date": datetime.date.today().isoformat(), "versions": versions(), "length": trace.length}
    record |= {"micro_batch": trace.micro_batch, "accumulation": trace.accumulation, "sections": cell.recipe.sections}
    needed = min(fit.reserved.peak, usable or fit.reserved.peak)
    return {**record, "needed_bytes": needed, "predicted": predicted(fit)}


def predicted(fit: Fit) -> dict[str, Any]:
    """What a record keeps of a prediction. `allocated_bytes` is in whole blocks, as torch counts them, `asked_bytes` is
    what tensors take; `work` is of the roofline."""
    trace = fit.trace
    work = {name: asdict(one) for name, one in trace.work.items()}
    found: dict[str, Any] = {"verdict": fit.verdict, "asked_bytes": trace.allocated}
    found |= {"allocated_bytes": fit.reserved.allocated, "reserved_bytes": fit.reserved.peak}
    found |= {"phase": trace.phase, "phases": dict(trace.phases), "parts": dict(trace.parts)}
    return {**found, "work": work, "attention": dict(trace.attention), "estimate": list(trace.estimate)}


def versions() -> dict[str, Any]:
    return {name: records._version(name) for name in records.PACKAGES}
