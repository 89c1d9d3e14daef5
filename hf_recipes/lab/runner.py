"""`hf-recipes lab`: the cells one after another, prediction first, each measured in a process of its own; records.

A call ends after its minutes and the next one goes on: a cell whose record is there is passed over.
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_recipes import records
from hf_recipes.errors import RecipeError
from hf_recipes.gpus import Gpu
from hf_recipes.lab.cells import Cell, cells
from hf_recipes.lab.child import card_facts, measure
from hf_recipes.plan.verdict import CPU, FITS, Judged, cpu_card, custom_card, examine
from hf_recipes.recipe import Recipe

GIB = 2**30
OUTPUT = "recipes/results/lab"
CARD = "card.json"  # the calibration, beside the cells' records


def lab(
    *, folder: str, output: str, minutes: float, cpu: bool, dry: bool, say: Callable[[str], None]
) -> tuple[int, int]:
    """(cells measured now, cells left). Raises RecipeError where there is no card and no `cpu`."""
    began, target = time.monotonic(), Path(output)
    every = cells(folder, cpu=cpu)
    waiting = [cell for cell in every if not (target / f"{cell.name}.json").exists()]
    say(f"{len(every)} cells, {len(every) - len(waiting)} of them measured already in {output}")
    if dry:
        for cell in waiting:
            say(f"  {cell.name}")
        return 0, len(waiting)
    target.mkdir(parents=True, exist_ok=True)
    gpu, total = _present(target, cpu, say)
    done = 0
    for cell in waiting:
        if time.monotonic() - began > 60 * minutes * 0.9 and done:
            break
        left = 60 * minutes - (time.monotonic() - began)
        record = _measured(cell, gpu, total, max(30.0, left))
        (target / f"{cell.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        say(f"  {cell.name}: {told(record)}")
        done += 1
    say(summary(read(target)))
    return done, len(waiting) - done


def _present(target: Path, cpu: bool, say: Callable[[str], None]) -> tuple[Gpu, int]:
    """The card, calibrated once a folder, and its bytes."""
    if cpu:
        gpu = cpu_card()
        return gpu, gpu.memory_bytes
    path = target / CARD
    if path.exists():
        facts = json.loads(path.read_text(encoding="utf-8"))
    else:
        facts = card_facts()
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    say(f"card: {facts['name']}, context {facts['context_bytes'] / 2**20:.0f} MiB, calibration in {path}")
    capability = facts["capability"][0], facts["capability"][1]
    return custom_card(facts["name"], facts["total_bytes"], capability, "the lab"), facts["total_bytes"]


def _measured(cell: Cell, gpu: Gpu, total: int, seconds: float) -> dict[str, Any]:
    usable = None if cell.gib is None else cell.gib * GIB
    record: dict[str, Any] = {"kind": "lab", "cell": cell.name, "recipe": cell.recipe.path, "variant": cell.variant}
    record |= {"gpu": gpu.name, "capability": list(gpu.capability) if gpu.capability else None, "gib": cell.gib}
    record |= {"sections": cell.recipe.sections, "date": datetime.date.today().isoformat()}
    record["versions"] = {name: records._version(name) for name in records.PACKAGES}
    fraction = None if usable is None else min(1.0, usable / total)
    try:
        judged = examine(cell.recipe, gpu, usable=usable)
        record["predicted"] = predicted(judged)
        record |= {"length": judged.seen.length, "micro_batch": judged.seen.micro_batch}
        record["accumulation"] = judged.seen.accumulation
        record["measured"] = measure(cell.recipe, cpu=gpu.name == CPU, fraction=fraction, seconds=seconds)
    except RecipeError as problem:
        record["refused"] = str(problem)
    return record


def predicted(judged: Judged) -> dict[str, Any]:
    """What a record keeps of a prediction."""
    seen = judged.seen
    work = {name: asdict(one) for name, one in seen.work.items()}
    found = {"verdict": judged.verdict, "allocated_bytes": seen.allocated, "reserved_bytes": judged.held.peak}
    return {**found, "phases": dict(seen.phases), "work": work, "estimate": list(seen.estimate)}


def measured_record(recipe: Recipe, judged: Judged, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of `plan --measure`."""
    record: dict[str, Any] = {"kind": "measure", "recipe": recipe.path, "gpu": judged.gpu.name}
    record |= {"capability": list(judged.gpu.capability) if judged.gpu.capability else None}
    record |= {"sections": recipe.sections, "date": datetime.date.today().isoformat(), "length": judged.seen.length}
    record |= {"micro_batch": judged.seen.micro_batch, "accumulation": judged.seen.accumulation}
    record["versions"] = {name: records._version(name) for name in records.PACKAGES}
    return {**record, "predicted": predicted(judged), "measured": dict(found)}


def told(record: Mapping[str, Any]) -> str:
    """One line: predicted beside measured."""
    if "refused" in record:
        return f"refused: {record['refused']}"
    there, said = record["measured"], record["predicted"]
    if there.get("outcome") != "finished":
        return f"plan said {said['verdict']}; it ended: {there.get('outcome')}"
    parts = []
    for name in ("allocated_bytes", "reserved_bytes"):
        if there.get(name):
            error = said[name] / there[name] - 1
            title = name.partition("_")[0]
            parts.append(f"{title} {said[name]:,} predicted, {there[name]:,} measured ({error:+.2%})")
    if there.get("step_seconds"):
        parts.append(f"{there['step_seconds']:.3g} s a step")
    return "; ".join(parts)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder."""
    paths = [path for path in sorted(folder.glob("*.json")) if path.name != CARD]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def errors(found: Iterable[Mapping[str, Any]], name: str = "reserved_bytes") -> list[float]:
    """predicted / measured - 1 of the cells that ended."""
    return [
        record["predicted"][name] / record["measured"][name] - 1
        for record in found
        if record.get("measured", {}).get("outcome") == "finished" and record["measured"].get(name)
    ]


def false_fits(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Cells that were called "fits" and ran out of memory."""
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
    parts.append(f"called fits and out of memory: {', '.join(wrong) if wrong else 'none'}")
    return "; ".join(parts)
