"""How long will it take? The trace's work against the card's rates, widened by what records say of such cards. Light.

A roofline: matrix products take the longer of their arithmetic and their traffic, all other kernels their traffic, and
each kernel its launch. Real runs are slower; by how much is learnt from records that kept both (`record["forecast"]`):
of this card, else of its generation, else a guess that says so.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_recipes.gpus import Gpu
from hf_recipes.plan.result import Lengths, Trace, Work
from hf_recipes.plan.short_run import accumulation_of, is_padded
from hf_recipes.recipe import Recipe
from hf_recipes.summary import steps_of

LAUNCH_SECONDS = 5e-6  # of one kernel from eager PyTorch: an assumption, of the order that its profiler shows
DISK_BYTES = 0.5e9  # bytes a second of saving: an assumption
GUESS = (1.2, 3.0)  # measured / roofline where no record says better: 83 % to 33 % of the roofline's rate
SPREAD = 1.25  # a record's ratio is taken to hold within this factor for another recipe
PLACES = ("runs/*/record.json", "recipes/results/*.json")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Seconds of a whole run, as an interval, and what it rests on. `step_seconds` is the bare roofline of a step."""

    low: float
    high: float
    step_seconds: float
    steps: int
    epochs: float
    parts: Mapping[str, float]  # roofline seconds: training, evaluation, saving
    basis: str
    notes: tuple[str, ...] = ()


def roofline(work: Work, gpu: Gpu, *, tf32: bool = False) -> float | None:
    """Seconds of one phase at the card's rates; None where its bandwidth or its rate has no source."""
    full = (gpu.tf32_flops if tf32 else None) or gpu.fp32_flops
    half = gpu.half_flops
    other = work.flops - work.half_flops
    if gpu.bandwidth is None or (other > 0 and full is None) or (work.half_flops > 0 and half is None):
        return None
    products = other / full if full and other > 0 else 0.0
    products += work.half_flops / half if half and work.half_flops else 0.0
    products = max(products, work.matmul_bytes / gpu.bandwidth)
    return products + (work.bytes_moved - work.matmul_bytes) / gpu.bandwidth + work.kernels * LAUNCH_SECONDS


def forecast(
    recipe: Recipe,
    seen: Trace,
    gpu: Gpu,
    *,
    lengths: Lengths | None = None,
    processes: int = 1,
    records: Iterable[Mapping[str, Any]] = (),
) -> Forecast | str:
    """The run's time, or why there is none in a sentence. `lengths`: of the recipe's data; without them the number of
    rows is not known and only max_steps gives the steps. Pure."""
    steps = _steps(recipe, seen, lengths, processes)
    if steps is None:
        return (
            "time: not forecast, since the number of rows is not known (max_steps, or data on this machine, gives it)"
        )
    tf32 = bool(recipe.training.get("tf32"))
    one, update = (roofline(seen.work[name], gpu, tf32=tf32) for name in ("micro-batch", "optimizer"))
    if one is None or update is None:
        return f"time: not forecast, since {gpu.name}'s rates have no source here"
    share, notes = _filled(recipe, seen, lengths)
    step = accumulation_of(recipe) * one * share + update
    parts = {"training": steps * step}
    evaluation = seen.work.get("evaluation")
    if evaluation is not None and lengths is not None:
        batch = roofline(evaluation, gpu, tf32=tf32) or 0.0
        batches = -(-lengths.eval_rows // max(1, seen.eval_batch * processes))
        parts["evaluation"] = _evaluations(recipe, steps) * batches * batch * share
    parts["saving"] = _saves(recipe, steps) * _saved_bytes(seen) / DISK_BYTES
    low, high, basis = _efficiency(gpu, list(records))
    total = parts["training"] + parts.get("evaluation", 0.0)
    epochs = steps / max(1, _steps_an_epoch(recipe, lengths, processes)) if lengths is not None else 0.0
    return Forecast(
        low=low * total + parts["saving"],
        high=high * total + parts["saving"],
        step_seconds=step,
        steps=steps,
        epochs=epochs,
        parts=parts,
        basis=basis,
        notes=tuple(notes),
    )


def line(found: Forecast | str, price: float | None = None) -> str:
    """ "time: 2 h 40 min to 3 h 30 min for 3 epochs (1,200 steps; a roofline guess, no record of such a card)"."""
    if isinstance(found, str):
        return found
    span = f"{spoken(found.low)} to {spoken(found.high)}"
    what = f"for {found.epochs:.3g} epoch{'' if found.epochs == 1 else 's'}" if found.epochs else "in all"
    cost = "" if price is None else f"; costs {found.low / 3600 * price:,.2f} to {found.high / 3600 * price:,.2f}"
    extra = "".join(f"; {note}" for note in found.notes)
    return f"time: {span} {what} ({found.steps:,} step{'' if found.steps == 1 else 's'}; {found.basis}{extra}){cost}"


def as_json(found: Forecast | str, price: float | None = None) -> dict[str, Any]:
    """For tools and the record; seconds are seconds."""
    if isinstance(found, str):
        return {"seconds": None, "why": found}
    said: dict[str, Any] = {
        "seconds": [found.low, found.high],
        "step_seconds": found.step_seconds,
        "steps": found.steps,
    }
    said |= {"epochs": found.epochs, "parts": dict(found.parts), "basis": found.basis, "notes": list(found.notes)}
    return said if price is None else {**said, "cost": [found.low / 3600 * price, found.high / 3600 * price]}


def spoken(seconds: float) -> str:
    """ "2 h 40 min", "14 min", "38 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def records_here() -> list[Mapping[str, Any]]:
    """Records below the working directory that kept a forecast beside the truth."""
    found: list[Mapping[str, Any]] = []
    for pattern in PLACES:
        for path in sorted(Path().glob(pattern)):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(record, dict) and ratio_of(record) is not None:
                found.append(record)
    return found


def ratio_of(record: Mapping[str, Any]) -> float | None:
    """Measured / roofline seconds of a step, of a record that has both."""
    kept = record.get("forecast")
    if not isinstance(kept, Mapping):
        return None
    told, truth = kept.get("step_seconds"), kept.get("measured_step_seconds")
    if not isinstance(told, int | float) or not isinstance(truth, int | float) or told <= 0 or truth <= 0:
        return None
    return truth / told


def _efficiency(gpu: Gpu, records: Sequence[Mapping[str, Any]]) -> tuple[float, float, str]:
    """(low, high) factors on the roofline, and what they rest on."""
    card, generation = [], []
    for record in records:
        ratio, device = ratio_of(record), record.get("device") or {}
        if ratio is None:
            continue
        if device.get("name") == gpu.title:
            card.append(ratio)
        elif device.get("capability") and gpu.capability and device["capability"][0] == gpu.capability[0]:
            generation.append(ratio)
    for ratios, of in ((card, "of this card"), (generation, "of its generation")):
        if ratios:
            middle = statistics.geometric_mean(ratios)
            wide = SPREAD * (1.0 if of == "of this card" else 1.3)
            low, high = min(*ratios, middle) / wide, max(*ratios, middle) * wide
            return low, high, f"from {len(ratios)} record{'s' * (len(ratios) > 1)} {of}"
    return *GUESS, "a roofline guess: no record of such a card"


# counts -------------------------------------------------------------------------------------------------------------


def _arguments(recipe: Recipe, seen_rows: int, processes: int) -> SimpleNamespace:
    training = recipe.training
    return SimpleNamespace(
        max_steps=int(training.get("max_steps") or -1),
        per_device_train_batch_size=seen_rows,
        world_size=processes,
        dataloader_drop_last=bool(training.get("dataloader_drop_last")),
        gradient_accumulation_steps=accumulation_of(recipe),
        num_train_epochs=float(training.get("num_train_epochs") or 3.0),
    )


def _steps(recipe: Recipe, seen: Trace, lengths: Lengths | None, processes: int) -> int | None:
    arguments = _arguments(recipe, seen.micro_batch, processes)
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    if lengths is None:
        return None
    return steps_of(arguments, _packed_rows(recipe, seen, lengths))


def _packed_rows(recipe: Recipe, seen: Trace, lengths: Lengths) -> int:
    """Rows that the trainer sees: packing fills rows up to the length."""
    if recipe.trainer == "SFTConfig" and recipe.training.get("packing"):
        return max(1, math.ceil(lengths.tokens / seen.length))
    return lengths.rows


def _steps_an_epoch(recipe: Recipe, lengths: Lengths | None, processes: int) -> float:
    if lengths is None:
        return 0.0
    rows = int(recipe.training.get("per_device_train_batch_size") or 8)
    batch = rows * processes * accumulation_of(recipe)
    packed = lengths.rows
    if recipe.trainer == "SFTConfig" and recipe.training.get("packing"):
        length = int(recipe.training.get("max_length") or 1024)
        packed = max(1, math.ceil(lengths.tokens / length))
    return -(-packed // batch)


def _evaluations(recipe: Recipe, steps: int) -> float:
    """Evaluations of a run: upstream's, and ours at its end."""
    training = recipe.training
    count = 1.0 + bool(training.get("eval_on_start"))
    return count + _events(training, "eval", steps)


def _saves(recipe: Recipe, steps: int) -> float:
    return 1.0 + _events({"save_strategy": "steps", **recipe.training}, "save", steps)


def _events(training: Mapping[str, Any], what: str, steps: int) -> float:
    strategy = str(training.get(f"{what}_strategy", "no"))
    if strategy == "epoch":
        return float(training.get("num_train_epochs") or 3.0)
    if strategy != "steps":
        return 0.0
    every = training.get(f"{what}_steps") or training.get("logging_steps" if what == "eval" else "", 500) or 500
    every = float(every)
    return steps // max(1, round(every * steps if every < 1 else every))


def _saved_bytes(seen: Trace) -> float:
    """Weights that are trained and their optimizer's states; a whole model is saved whole."""
    weights = seen.parts.get("weights", 0) * (seen.trainable / max(1, seen.parameters))
    return weights + seen.parts.get("optimizer", 0)


def _filled(recipe: Recipe, seen: Trace, lengths: Lengths | None) -> tuple[float, list[str]]:
    """The share of the longest batch's tokens that a batch has on average, padding included."""
    if not is_padded(recipe):
        return 1.0, []
    if lengths is None:
        return 1.0, ["every row counted as the longest"]
    below, expected = 0, 0.0
    for tokens, rows in lengths.rows_by_length:
        before, below = below, below + rows
        chance = (below / lengths.rows) ** seen.micro_batch - (before / lengths.rows) ** seen.micro_batch
        expected += tokens * chance
    return min(1.0, expected / max(1, seen.length)), []
