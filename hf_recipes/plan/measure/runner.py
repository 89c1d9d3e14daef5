"""`hf-recipes lab`: the cells one after another, prediction first, each measured in a process of its own; records.

A call ends after its minutes and the next one continues: a cell that has a record is left out. Predictions are made
ahead on the other cores; cells share the GPU where it has room, but those that are timed have it alone.
"""

from __future__ import annotations

import datetime
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hf_recipes.catalog.gpus import Gpu, find_gpu, recognise_gpu
from hf_recipes.common.environment import package_versions
from hf_recipes.common.files import put
from hf_recipes.common.run_lock import make_folder
from hf_recipes.common.text import GIB, format_bytes
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.plan.fit.verdict import CPU, FITS, TIGHT, Fit, cpu_as_gpu, custom_gpu
from hf_recipes.plan.lab_record import (
    OUT_OF_MEMORY,
    PREDICTED,
    Calibration,
    LabRecord,
    Measurement,
    append_line,
    read_calibration,
    read_cells,
    read_records,
)
from hf_recipes.plan.measure.matrix import AS_IT_IS, Cell, list_cells
from hf_recipes.plan.measure.predictions import predict_cells, with_prediction
from hf_recipes.plan.measure.scheduler import Scheduler
from hf_recipes.plan.measure.worker import Child, measure_recipe, read_gpu_facts, start_child, stop_child

SIZES = ("allocated_bytes", "reserved_bytes")
CORES = 8  # of a machine on which cells run side by side


def run_lab(
    *,
    folder: str,
    output: str,
    minutes: float,
    cpu: bool,
    dry: bool,
    say: Callable[[str], None],
    predict: str | None = None,
) -> tuple[int, int]:
    """(cells recorded now, cells left). `predict`: the name of a GPU for which predictions are made here, without
    measuring. Raises PlanError where there is no GPU and neither `cpu` nor `predict`."""
    every, target = list_cells(folder, cpu=cpu), Path(output)
    if dry:
        for path in sorted(target.glob("*.jsonl")):
            say(f"{path}: {len(_recorded(path))} of {len(every)} cells")
        for cell in every:
            say(f"  {cell.name}")
        return 0, len(every)
    over = time.monotonic() + 60 * minutes * 0.95
    make_folder(target, "argument '--output'")
    if predict is not None:
        gpu = find_gpu(predict)
        path, known = _file(target, gpu.title, PREDICTED), dict[str, LabRecord]()
    else:
        gpu, path = _present_gpu(target, cpu, say)
        known = {str(record.cell): record for record in read_cells(_file(target, gpu.title, PREDICTED))}
    _drop_partial_line(path)
    recorded = _recorded(path)
    if predict is not None:  # a cell that was measured there already needs no prediction
        recorded = recorded | _recorded(_file(target, gpu.title))
    waiting = [cell for cell in every if cell.name not in recorded]
    say(f"{len(every)} cells, {len(every) - len(waiting)} of them recorded already in {path}")
    cores = os.cpu_count() or 1
    coming = predict_cells(waiting, gpu, known, cores if predict is not None else cores // 2)
    room = Scheduler(gpu.seen_bytes if cores >= CORES and not cpu else 0)
    done = 0
    try:
        for cell, record in coming:
            if time.monotonic() > over and done:
                break
            if predict is not None or record.predicted is None or record.needed_bytes is None:
                done += _append(record, path, say)
                continue
            alone = not room.room or (cell.variant == AS_IT_IS and cell.gib is None)
            work = partial(_measured, cell, replace(record, alone=alone), gpu, max(30.0, over - time.monotonic()))
            for found in room.add(work, record.needed_bytes, alone=alone):
                done += _append(found, path, say)
        for found in room.wait():
            done += _append(found, path, say)
    finally:
        coming.close()
        room.close()
    if predict is None:
        say(summary(read_records(target)))
    return done, len(waiting) - done


def _file(target: Path, title: str, kind: str = "") -> Path:
    return target / f"{re.sub(r'[^a-z0-9]+', '-', title.lower())}{kind}.jsonl"


def _drop_partial_line(path: Path) -> None:
    """Removes the incomplete line that a killed call left."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        put(path, text[: text.rfind("\n") + 1])


def _recorded(path: Path) -> set[str]:
    return {str(record.cell) for record in read_cells(path)}


def _present_gpu(target: Path, cpu: bool, say: Callable[[str], None]) -> tuple[Gpu, Path]:
    """The GPU and its file, which begins with its calibration."""
    if cpu:
        return cpu_as_gpu(), _file(target, CPU)
    for path in target.glob("*.jsonl"):
        facts = read_calibration(path)
        if facts is not None and facts.name == _name():
            break
    else:
        answer = read_gpu_facts()
        if "name" not in answer:
            problem = f"the GPU could not be calibrated: {answer.get('outcome')}"
            raise PlanError.at("hf-recipes lab", problem, "check that no other program uses it")
        today = datetime.date.today().isoformat()
        facts = Calibration.from_dict({"date": today, "versions": package_versions(), **answer})
        path = _file(target, facts.name)
        append_line(path, facts)
    say(f"GPU: {facts.name}, context {format_bytes(facts.context_bytes)}, calibration in {path}")
    known = recognise_gpu(facts.name, facts.total_bytes)
    capability = facts.capability[0], facts.capability[1]
    gpu = known or custom_gpu(facts.name, facts.total_bytes, capability, "the lab")
    return replace(gpu, visible_bytes=facts.total_bytes), path


def _name() -> str:
    """Of the present GPU; "" without one; read_gpu_facts then raises."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def _measured(cell: Cell, record: LabRecord, gpu: Gpu, seconds: float, child: Child | None) -> LabRecord:
    """The record with its measurement, in a process of its own. What is tight gets the setting that plan advises."""
    fraction = None if cell.gib is None else min(1.0, cell.gib * GIB / gpu.seen_bytes)
    expandable = record.predicted is not None and record.predicted.verdict == TIGHT
    if expandable:
        stop_child(child)
        child = start_child(expandable=True)
    try:
        found = measure_recipe(cell.recipe, cpu=gpu.name == CPU, fraction=fraction, seconds=seconds, child=child)
    except RecipeError as problem:
        return replace(record, refused=str(problem))
    if not record.alone:  # the others' memory is counted in these
        found = replace(found, context_bytes=None, device_bytes=None)
    return replace(record, expandable=expandable, measured=found)


def _append(record: LabRecord, path: Path, say: Callable[[str], None]) -> int:
    append_line(path, record)
    say(f"  {record.cell}: {describe_record(record)}")
    return 1


def measured_record(fit: Fit, measured: Measurement) -> LabRecord:
    """The record of `plan --measure`."""
    capability = None if fit.gpu.capability is None else list(fit.gpu.capability)
    record = LabRecord(kind="measure", recipe=fit.recipe.path, gpu=fit.gpu.name, capability=capability)
    return replace(with_prediction(record, fit), measured=measured)


def describe_record(record: LabRecord) -> str:
    """One line: predicted beside measured."""
    predicted, measured = record.predicted, record.measured
    if record.refused is not None:
        return f"refused: {record.refused}"
    if predicted is None:
        return f"not measured: {record.passed_over}"
    if measured is None:
        return f"predicted: {predicted.verdict}, {predicted.reserved_bytes:,} bytes reserved"
    if not measured.finished:
        return f"predicted: {predicted.verdict}; measured: {measured.outcome}"
    parts = []
    for name in SIZES:
        error = record.error_of(name)
        if error is not None:
            sizes = f"{getattr(predicted, name):,} predicted, {getattr(measured, name):,} measured"
            parts.append(f"{name.partition('_')[0]} {sizes} ({error:+.2%})")
    if measured.step_seconds:
        parts.append(f"{measured.step_seconds:.3g} s a step")
    return "; ".join(parts)


def errors(found: Iterable[LabRecord], name: str = "reserved_bytes") -> list[float]:
    """predicted / measured - 1 of the cells that finished."""
    every = (record.error_of(name) for record in found)
    return [error for error in every if error is not None]


def false_fits(found: Iterable[LabRecord]) -> list[str]:
    """Cells that were predicted to fit and ran out of memory."""
    return [
        str(record.cell)
        for record in found
        if record.predicted is not None
        and record.predicted.verdict == FITS
        and record.measured is not None
        and record.measured.outcome == OUT_OF_MEMORY
    ]


def summary(found: Sequence[LabRecord]) -> str:
    """The errors over the records in one line."""
    parts = []
    for name in SIZES:
        sizes = sorted(map(abs, errors(found, name)))
        if sizes:
            worst = f"median error {statistics.median(sizes):.2%}, worst {sizes[-1]:.2%}"
            parts.append(f"{name.partition('_')[0]}: {len(sizes)} cells, {worst}")
    wrong = false_fits(found)
    parts.append(f"predicted to fit and out of memory: {', '.join(wrong) if wrong else 'none'}")
    return "; ".join(parts)
