"""How much slower than its roofline a GPU is: from runs that recorded both, and from the lab's cells.

Records of this GPU count, else those of its generation, else there is a range that is called a guess. Imports neither
torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import Gpu, known_gpus
from hf_recipes.plan.lab_record import PREDICTED, read_cells
from hf_recipes.plan.time.roofline import FORMULA, roofline_seconds

# measured / roofline without any record: wider than what an H100's records show (0.9 to 1.7), since other GPUs stand
# in other machines
GUESS = (0.8, 3.0)
SPREAD = 1.15  # a record's ratio is assumed within this factor for another recipe
SAME_GENERATION = 1.3  # and for another GPU of its generation
RUNS = ("runs/*/record.json", "recipes/results/*.json")
CELLS = "recipes/results/lab/*.jsonl"

Record = Mapping[str, Any]


def find_slowdown(gpu: Gpu, records: Sequence[Record]) -> tuple[float, float, str]:
    """(low, high) factors on the roofline, and their basis."""
    same_gpu, generation = [], []
    for record in records:
        ratio, device = measured_ratio(record), record.get("device") or {}
        if ratio is None:
            continue
        if device.get("name") == gpu.title:
            same_gpu.append(ratio)
        elif device.get("capability") and gpu.capability and device["capability"][0] == gpu.capability[0]:
            generation.append(ratio)
    for ratios, wide, of in ((same_gpu, SPREAD, "this GPU"), (generation, SPREAD * SAME_GENERATION, "its generation")):
        if ratios:
            basis = f"from {len(ratios)} record{'s' * (len(ratios) > 1)} of {of}"
            return min(ratios) / wide, max(ratios) * wide, basis
    return *GUESS, "a roofline guess: no record of such a GPU"


def measured_ratio(record: Record) -> float | None:
    """Measured / roofline seconds of a step, of a record that has both by the present formula."""
    timing = record.get("forecast")
    if not isinstance(timing, Mapping) or timing.get("formula") != FORMULA:
        return None
    predicted, measured = timing.get("step_seconds"), timing.get("measured_step_seconds")
    if (
        not isinstance(predicted, int | float)
        or not isinstance(measured, int | float)
        or predicted <= 0
        or measured <= 0
    ):
        return None
    return measured / predicted


def read_timed_records() -> list[Record]:
    """Records below the working directory that have a forecast and the measured time, the lab's among them."""
    found: list[Record] = []
    for pattern in RUNS:
        for path in sorted(Path().glob(pattern)):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(record, dict) and measured_ratio(record) is not None:
                found.append(record)
    for path in sorted(Path().glob(CELLS)):
        if not path.stem.endswith(PREDICTED):
            found += read_lab_timings(path)
    return found


def read_lab_timings(path: Path) -> list[Record]:
    """The lab's cells as such records. A recipe's fastest cell counts: others beside it can only slow it."""
    fastest: dict[tuple[str, str | None], Record] = {}
    for cell in read_cells(path):
        predicted, measured, gpu = cell.predicted, cell.measured, known_gpus().get(cell.gpu)
        if gpu is None or predicted is None or measured is None or not measured.finished or not measured.step_seconds:
            continue
        micro_batch, update = (roofline_seconds(predicted.work[name], gpu) for name in ("micro-batch", "optimizer"))
        if micro_batch is None or update is None or measured.micro_batches is None:
            continue
        least = measured.micro_batches * micro_batch + update
        timing = {"step_seconds": least, "measured_step_seconds": measured.step_seconds, "formula": FORMULA}
        record = {"forecast": timing, "device": {"name": gpu.title, "capability": gpu.capability}}
        key = cell.recipe, cell.variant
        before = measured_ratio(fastest[key]) if key in fastest else None
        if before is None or measured.step_seconds / least < before:
            fastest[key] = record
    return list(fastest.values())
