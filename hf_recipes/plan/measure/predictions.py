"""plan's prediction of each cell, before it is measured. No GPU is needed: `lab --predict` makes them elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.common.environment import package_commit, package_versions
from hf_recipes.common.text import GIB
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.verdict import Fit, assess_fit, tracer_arguments
from hf_recipes.plan.lab_record import LabRecord, Prediction
from hf_recipes.plan.measure.matrix import Cell
from hf_recipes.plan.trace.result import Trace
from hf_recipes.plan.trace.worker import iterate_traces

TRACING = 8  # predictions made side by side at most: each takes a core and up to 3 GiB
UNDECIDED = 1.6  # a smaller GPU is tried where the prediction is within this factor of its memory


def predict_cells(
    cells: Sequence[Cell], gpu: Gpu, known: Mapping[str, LabRecord], cores: int
) -> Generator[tuple[Cell, LabRecord]]:
    """Each cell with the record of its prediction, those that are `known` first. A record without a prediction has the
    reason why there is nothing to measure: `refused` or `passed_over`. `cores`: processes that trace side by side at
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
                yield cell, _predict(cell, gpu, trace)
    finally:
        traces.close()


def _predict(cell: Cell, gpu: Gpu, trace: Trace | RecipeError) -> LabRecord:
    record = LabRecord(
        kind="lab",
        cell=cell.name,
        recipe=cell.recipe.path,
        variant=cell.variant,
        gpu=gpu.name,
        gib=cell.gib,
        commit=package_commit(),
    )
    if isinstance(trace, RecipeError):
        return replace(record, refused=str(trace))
    usable = None if cell.gib is None else cell.gib * GIB
    fit = assess_fit(cell.recipe, trace, gpu, usable)
    if usable is not None and not 1 / UNDECIDED < fit.share < UNDECIDED:
        return replace(record, passed_over=f"decided by the prediction: {fit.share:.0%} of {cell.gib} GiB")
    needed = min(fit.reserved.peak, usable or fit.reserved.peak)
    return replace(with_prediction(record, fit), needed_bytes=needed)


def with_prediction(record: LabRecord, fit: Fit) -> LabRecord:
    """The record with what plan predicts, of which recipe, when and with which versions."""
    trace = fit.trace
    predicted = Prediction(
        verdict=fit.verdict,
        asked_bytes=trace.allocated,
        allocated_bytes=fit.reserved.allocated,
        reserved_bytes=fit.reserved.peak,
        phase=trace.phase,
        phases=dict(trace.phases),
        parts=dict(trace.parts),
        work=dict(trace.work),
        attention=dict(trace.attention),
        estimate=list(trace.estimate),
    )
    return replace(
        record,
        date=datetime.date.today().isoformat(),
        commit=package_commit(),
        versions=package_versions(),
        length=trace.length,
        micro_batch=trace.micro_batch,
        accumulation=trace.accumulation,
        sections=fit.recipe.sections,
        predicted=predicted,
    )
