"""How much slower than its roofline a GPU is: from runs that recorded both, and from the lab's cells.

Records of this GPU count, else those of its generation, else there is a range that is called a guess. Imports neither
torch nor transformers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hf_recipes.catalog.gpus import Gpu, known_gpus
from hf_recipes.errors import RecordError
from hf_recipes.plan.lab_record import PREDICTED, read_cells
from hf_recipes.plan.time.roofline import FORMULA, roofline_seconds
from hf_recipes.record import DeviceFacts, ForecastFacts, RunRecord
from hf_recipes.record.file import read_record

# measured / roofline without any record: wider than what an H100's records show (0.9 to 1.7), since other GPUs stand
# in other machines
GUESS = (0.8, 3.0)
SPREAD = 1.15  # a record's ratio is assumed within this factor for another recipe
SAME_GENERATION = 1.3  # and for another GPU of its generation
RUNS = ("runs/*/record.json", "recipes/results/*.json")
CELLS = "recipes/results/lab/*.jsonl"


def find_slowdown(gpu: Gpu, records: Sequence[RunRecord]) -> tuple[float, float, str]:
    """(low, high) factors on the roofline, and their basis."""
    same_gpu, generation = [], []
    for record in records:
        ratio, device = measured_ratio(record.forecast), record.device
        if ratio is None:
            continue
        if device.name == gpu.title:
            same_gpu.append(ratio)
        elif device.capability and gpu.capability and device.capability[0] == gpu.capability[0]:
            generation.append(ratio)
    for ratios, wide, of in ((same_gpu, SPREAD, "this GPU"), (generation, SPREAD * SAME_GENERATION, "its generation")):
        if ratios:
            basis = f"from {len(ratios)} record{'s' * (len(ratios) > 1)} of {of}"
            return min(ratios) / wide, max(ratios) * wide, basis
    return *GUESS, "a roofline guess: no record of such a GPU"


def measured_ratio(forecast: ForecastFacts) -> float | None:
    """Measured / roofline seconds of a step, where both are there by the present formula."""
    expected, measured = forecast.step_seconds, forecast.measured_step_seconds
    if forecast.formula != FORMULA or not expected or not measured or expected <= 0 or measured <= 0:
        return None
    return measured / expected


def read_timed_records() -> list[RunRecord]:
    """Records below the working directory that have a forecast and the measured time, the lab's among them."""
    found: list[RunRecord] = []
    for pattern in RUNS:
        for path in sorted(Path().glob(pattern)):
            with contextlib.suppress(RecordError):
                record = read_record(path)
                if measured_ratio(record.forecast) is not None:
                    found.append(record)
    for path in sorted(Path().glob(CELLS)):
        if not path.stem.endswith(PREDICTED):
            with contextlib.suppress(RecordError):
                found += read_lab_timings(path)
    return found


def read_lab_timings(path: Path) -> list[RunRecord]:
    """The lab's cells as such records. A recipe's fastest cell counts: others beside it can only slow it."""
    fastest: dict[tuple[str, str | None], RunRecord] = {}
    for cell in read_cells(path):
        predicted, measured, gpu = cell.predicted, cell.measured, known_gpus().get(cell.gpu)
        if gpu is None or predicted is None or measured is None or not measured.finished or not measured.step_seconds:
            continue
        micro_batch, update = (roofline_seconds(predicted.work[name], gpu) for name in ("micro-batch", "optimizer"))
        if micro_batch is None or update is None or measured.micro_batches is None:
            continue
        forecast = ForecastFacts(
            step_seconds=measured.micro_batches * micro_batch + update,
            measured_step_seconds=measured.step_seconds,
            formula=FORMULA,
        )
        key = cell.recipe, cell.variant
        before, ratio = measured_ratio(fastest[key].forecast) if key in fastest else None, measured_ratio(forecast)
        if before is None or (ratio is not None and ratio < before):
            device = DeviceFacts(kind="cuda", name=gpu.title, capability=gpu.capability)
            fastest[key] = RunRecord(task="lab", device=device, forecast=forecast)
    return list(fastest.values())
