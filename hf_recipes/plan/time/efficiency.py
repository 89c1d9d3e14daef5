"""How much slower than its roofline a card is: learnt from runs that kept both, and from the lab's cells. Light.

Of this card, else of its generation, else a range that says that it is a guess.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import GPUS, Gpu
from hf_recipes.errors import RecordError
from hf_recipes.plan.time.roofline import FORMULA, roofline
from hf_recipes.plan.trace.result import Work
from hf_recipes.record import DeviceFacts, ForecastFacts, RunRecord, read_record

# measured / roofline where no record says better: wider than what an H100's records show (0.9 to 1.7), since other
# cards stand in other machines
GUESS = (0.8, 3.0)
SPREAD = 1.15  # a record's ratio is taken to hold within this factor for another recipe
KIN = 1.3  # and for another card of its generation
RUNS = ("runs/*/record.json", "recipes/results/*.json")
CELLS = "recipes/results/lab/*.jsonl"


def efficiency(gpu: Gpu, records: Sequence[RunRecord]) -> tuple[float, float, str]:
    """(low, high) factors on the roofline, and what they rest on."""
    card, generation = [], []
    for record in records:
        ratio, device = ratio_of(record.forecast), record.device
        if ratio is None:
            continue
        if device.name == gpu.title:
            card.append(ratio)
        elif device.capability and gpu.capability and device.capability[0] == gpu.capability[0]:
            generation.append(ratio)
    for ratios, wide, of in ((card, SPREAD, "this card"), (generation, SPREAD * KIN, "its generation")):
        if ratios:
            basis = f"from {len(ratios)} record{'s' * (len(ratios) > 1)} of {of}"
            return min(ratios) / wide, max(ratios) * wide, basis
    return *GUESS, "a roofline guess: no record of such a card"


def ratio_of(forecast: ForecastFacts) -> float | None:
    """Measured / roofline seconds of a step, where both are there by the present formula."""
    expected, measured = forecast.step_seconds, forecast.measured_step_seconds
    if forecast.formula != FORMULA or not expected or not measured or expected <= 0 or measured <= 0:
        return None
    return measured / expected


def records_here() -> list[RunRecord]:
    """Records below the working directory that have a forecast and the measured time, the lab's among them."""
    found: list[RunRecord] = []
    for pattern in RUNS:
        for path in sorted(Path().glob(pattern)):
            with contextlib.suppress(RecordError):
                record = read_record(path)
                if ratio_of(record.forecast) is not None:
                    found.append(record)
    for path in sorted(Path().glob(CELLS)):
        if not path.stem.endswith(".predicted"):
            found += cells_of(path)
    return found


def cells_of(path: Path) -> list[RunRecord]:
    """The lab's cells as such records. A recipe's fastest cell counts: others beside it can only slow it."""
    fastest: dict[tuple[str, str], RunRecord] = {}
    for cell in _lines(path):
        measured, gpu = cell.get("measured") or {}, GPUS.get(str(cell.get("gpu")))
        if gpu is None or measured.get("outcome") != "finished" or not measured.get("step_seconds"):
            continue
        work = {name: Work(**one) for name, one in cell["predicted"]["work"].items()}
        micro_batch, update = (roofline(work[name], gpu) for name in ("micro-batch", "optimizer"))
        if micro_batch is None or update is None:
            continue
        forecast = ForecastFacts(
            step_seconds=measured["micro_batches"] * micro_batch + update,
            measured_step_seconds=measured["step_seconds"],
            formula=FORMULA,
        )
        key = cell["recipe"], cell["variant"]
        before, ratio = ratio_of(fastest[key].forecast) if key in fastest else None, ratio_of(forecast)
        if before is None or (ratio is not None and ratio < before):
            device = DeviceFacts(kind="cuda", name=gpu.title, capability=gpu.capability)
            fastest[key] = RunRecord(task="lab", device=device, forecast=forecast)
    return list(fastest.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "predicted" in found:
            yield found
