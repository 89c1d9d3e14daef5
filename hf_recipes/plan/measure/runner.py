"""`hf-recipes lab`: the cells one after another, prediction first, each measured in a process of its own; records.

A call ends after its minutes and the next one continues: a cell that has a record is left out. Predictions are made
ahead on the other cores; cells share the GPU where it has room, but those that are timed have it alone.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import Gpu, find_gpu, recognise_gpu
from hf_recipes.common.files import put
from hf_recipes.common.text import GIB, format_bytes
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.plan.fit.verdict import CPU, FITS, TIGHT, Fit, cpu_as_gpu, custom_gpu
from hf_recipes.plan.measure.matrix import AS_IT_IS, Cell, list_cells
from hf_recipes.plan.measure.predictions import predict_cells, predicted, versions
from hf_recipes.plan.measure.scheduler import Scheduler
from hf_recipes.plan.measure.worker import Child, measure_recipe, read_gpu_facts, start_child, stop_child
from hf_recipes.recipe.recipe import Recipe

OUTPUT = "recipes/results/lab"
PREDICTED = ".predicted"  # of the file of predictions that are not measured yet
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
    target.mkdir(parents=True, exist_ok=True)
    if predict is not None:
        gpu = find_gpu(predict)
        path, known = _file(target, gpu.title, PREDICTED), {}
    else:
        gpu, path = _present_gpu(target, cpu, say)
        known = {record["cell"]: record for record in _lines(_file(target, gpu.title, PREDICTED))}
    _drop_partial_line(path)
    waiting = [cell for cell in every if cell.name not in _recorded(path)]
    say(f"{len(every)} cells, {len(every) - len(waiting)} of them recorded already in {path}")
    cores = os.cpu_count() or 1
    coming = predict_cells(waiting, gpu, known, cores if predict is not None else cores // 2)
    room = Scheduler(gpu.seen_bytes if cores >= CORES and not cpu else 0)
    done = 0
    try:
        for cell, record in coming:
            if time.monotonic() > over and done:
                break
            if predict is not None or "predicted" not in record:
                done += _append_record(record, path, say)
                continue
            alone = not room.room or (cell.variant == AS_IT_IS and cell.gib is None)
            work = partial(_measured, cell, {**record, "alone": alone}, gpu, max(30.0, over - time.monotonic()))
            for found in room.add(work, record["needed_bytes"], alone=alone):
                done += _append_record(found, path, say)
        for found in room.wait():
            done += _append_record(found, path, say)
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
    return {record["cell"] for record in _lines(path) if "cell" in record}


def _present_gpu(target: Path, cpu: bool, say: Callable[[str], None]) -> tuple[Gpu, Path]:
    """The GPU and its file, which begins with its calibration."""
    if cpu:
        return cpu_as_gpu(), _file(target, CPU)
    for path in target.glob("*.jsonl"):
        facts = next((one for one in _lines(path) if one.get("kind") == "card"), None)
        if facts is not None and facts["name"] == _name():
            break
    else:
        facts = {"kind": "card", "date": datetime.date.today().isoformat(), "versions": versions(), **read_gpu_facts()}
        if "name" not in facts:
            raise PlanError.at(
                "hf-recipes lab",
                f"the GPU could not be calibrated: {facts.get('outcome')}",
                "check that no other program uses it",
            )
        path = _file(target, facts["name"])
        path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    say(f"GPU: {facts['name']}, context {format_bytes(facts['context_bytes'])}, calibration in {path}")
    known = recognise_gpu(facts["name"], facts["total_bytes"])
    capability = facts["capability"][0], facts["capability"][1]
    gpu = known or custom_gpu(facts["name"], facts["total_bytes"], capability, "the lab")
    return replace(gpu, visible_bytes=facts["total_bytes"]), path


def _name() -> str:
    """Of the present GPU; "" without one; read_gpu_facts then raises."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def _measured(cell: Cell, record: dict[str, Any], gpu: Gpu, seconds: float, child: Child | None) -> dict[str, Any]:
    """The record with its measurement, in a process of its own. What plan calls tight gets the setting that it
    advises."""
    fraction = None if cell.gib is None else min(1.0, cell.gib * GIB / gpu.seen_bytes)
    expandable = record["predicted"]["verdict"] == TIGHT
    if expandable:
        stop_child(child)
        child = start_child(expandable=True)
    try:
        found = measure_recipe(cell.recipe, cpu=gpu.name == CPU, fraction=fraction, seconds=seconds, child=child)
    except RecipeError as problem:
        return {**record, "refused": str(problem)}
    if not record["alone"]:  # the others' memory is counted in these
        found = {name: value for name, value in found.items() if name not in ("context_bytes", "device_bytes")}
    return {**record, "expandable": expandable, "measured": found}


def _append_record(record: Mapping[str, Any], path: Path, say: Callable[[str], None]) -> int:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    say(f"  {record['cell']}: {describe_record(record)}")
    return 1


def measured_record(recipe: Recipe, fit: Fit, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of `plan --measure`."""
    record: dict[str, Any] = {"kind": "measure", "recipe": recipe.path, "gpu": fit.gpu.name}
    record |= {"capability": list(fit.gpu.capability) if fit.gpu.capability else None}
    record |= {"sections": recipe.sections, "date": datetime.date.today().isoformat(), "length": fit.trace.length}
    record |= {"micro_batch": fit.trace.micro_batch, "accumulation": fit.trace.accumulation}
    return {**record, "versions": versions(), "predicted": predicted(fit), "measured": dict(found)}


def describe_record(record: Mapping[str, Any]) -> str:
    """One line: predicted beside measured."""
    for key in ("refused", "passed_over"):
        if key in record:
            return f"{key.replace('_', ' ')}: {record[key]}"
    prediction = record["predicted"]
    if "measured" not in record:
        return f"predicted: {prediction['verdict']}, {prediction['reserved_bytes']:,} bytes reserved"
    measured = record["measured"]
    if measured.get("outcome") != "finished":
        return f"predicted: {prediction['verdict']}; measured: {measured.get('outcome')}"
    parts = []
    for name in ("allocated_bytes", "reserved_bytes"):
        if measured.get(name):
            error = prediction[name] / measured[name] - 1
            title = name.partition("_")[0]
            parts.append(f"{title} {prediction[name]:,} predicted, {measured[name]:,} measured ({error:+.2%})")
    if measured.get("step_seconds"):
        parts.append(f"{measured['step_seconds']:.3g} s a step")
    return "; ".join(parts)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The cells' records of a folder, of every GPU."""
    paths = [path for path in sorted(folder.glob("*.jsonl")) if not path.stem.endswith(PREDICTED)]
    return [record for path in paths for record in _lines(path) if "cell" in record]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def errors(found: Iterable[Mapping[str, Any]], name: str = "reserved_bytes") -> list[float]:
    """predicted / measured - 1 of the cells that ended."""
    return [
        record["predicted"][name] / record["measured"][name] - 1
        for record in found
        if record.get("measured", {}).get("outcome") == "finished" and record["measured"].get(name)
    ]


def false_fits(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Cells that were predicted to fit and ran out of memory."""
    return [
        str(record["cell"])
        for record in found
        if record.get("predicted", {}).get("verdict") == FITS
        and record.get("measured", {}).get("outcome") == "out of memory"
    ]


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """The errors over the records in one line."""
    parts = []
    for name in ("allocated_bytes", "reserved_bytes"):
        sizes = sorted(map(abs, errors(found, name)))
        if sizes:
            worst = f"median error {statistics.median(sizes):.2%}, worst {sizes[-1]:.2%}"
            parts.append(f"{name.partition('_')[0]}: {len(sizes)} cells, {worst}")
    wrong = false_fits(found)
    parts.append(f"predicted to fit and out of memory: {', '.join(wrong) if wrong else 'none'}")
    return "; ".join(parts)
