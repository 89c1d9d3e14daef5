"""How long will it take? The trace's work at the GPU's rates, widened by what records of such GPUs show.

roofline.py gives the least time; real runs are slower, and efficiency.py knows by how much. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.common.text import format_duration
from hf_recipes.plan.time.efficiency import find_slowdown
from hf_recipes.plan.time.roofline import FORMULA, roofline_seconds
from hf_recipes.plan.trace.result import Lengths, Trace
from hf_recipes.plan.trace.short_run import is_padded
from hf_recipes.recipe.global_batch import accumulation_of
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.record import RunRecord
from hf_recipes.training.steps import count_steps

DISK_BYTES = 0.5e9  # bytes a second of saving: an assumption


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Seconds of a complete run, as an interval, and its basis. `step_seconds` is the roofline of a step alone."""

    low: float
    high: float
    step_seconds: float
    steps: int
    epochs: float
    parts: Mapping[str, float]  # roofline seconds: training, evaluation, saving
    basis: str
    notes: tuple[str, ...] = ()


def forecast_time(
    recipe: Recipe,
    trace: Trace,
    gpu: Gpu,
    *,
    lengths: Lengths | None = None,
    processes: int = 1,
    records: Iterable[RunRecord] = (),
) -> Forecast | str:
    """The run's time, or why there is none in a sentence. `lengths`: of the recipe's data; without them the number of
    rows is not known and only max_steps gives the steps. Pure."""
    steps = _steps(recipe, trace, lengths, processes)
    if steps is None:
        return (
            "time: not forecast, since the number of rows is not known (max_steps, or data on this machine, gives it)"
        )
    tf32 = bool(recipe.training.get("tf32"))
    share, notes = _filled_share(recipe, trace, lengths)
    one = roofline_seconds(trace.work["micro-batch"], gpu, tf32=tf32, share=share)
    update = roofline_seconds(trace.work["optimizer"], gpu, tf32=tf32)
    if one is None or update is None:
        return f"time: not forecast, since {gpu.name}'s rates have no source here"
    step = accumulation_of(recipe) * one + update
    parts = {"training": steps * step}
    evaluation = trace.work.get("evaluation")
    if evaluation is not None and lengths is not None:
        batch = roofline_seconds(evaluation, gpu, tf32=tf32, share=share) or 0.0
        batches = -(-lengths.eval_rows // max(1, trace.eval_batch * processes))
        parts["evaluation"] = _evaluations(recipe, steps) * batches * batch
    parts["saving"] = _saves(recipe, steps) * _saved_bytes(trace) / DISK_BYTES
    low, high, basis = find_slowdown(gpu, list(records))
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


def format_forecast(found: Forecast | str, price: float | None = None) -> str:
    """ "time: 2 h 40 min to 3 h 30 min for 3 epochs (1,200 steps; a roofline guess, no record of such a GPU)"."""
    if isinstance(found, str):
        return found
    span = f"{format_duration(found.low)} to {format_duration(found.high)}"
    what = f"for {found.epochs:.3g} epoch{'' if found.epochs == 1 else 's'}" if found.epochs else "in all"
    cost = "" if price is None else f"; costs {found.low / 3600 * price:,.2f} to {found.high / 3600 * price:,.2f}"
    extra = "".join(f"; {note}" for note in found.notes)
    return f"time: {span} {what} ({found.steps:,} step{'' if found.steps == 1 else 's'}; {found.basis}{extra}){cost}"


def as_json(found: Forecast | str, price: float | None = None) -> dict[str, Any]:
    """For tools and the record; seconds are seconds."""
    if isinstance(found, str):
        return {"seconds": None, "why": found}
    result: dict[str, Any] = {
        "seconds": [found.low, found.high],
        "step_seconds": found.step_seconds,
        "formula": FORMULA,
        "steps": found.steps,
    }
    result |= {"epochs": found.epochs, "parts": dict(found.parts), "basis": found.basis, "notes": list(found.notes)}
    return result if price is None else {**result, "cost": [found.low / 3600 * price, found.high / 3600 * price]}


# counts -------------------------------------------------------------------------------------------------------------


def _arguments(recipe: Recipe, rows: int, processes: int) -> SimpleNamespace:
    training = recipe.training
    return SimpleNamespace(
        max_steps=int(training.get("max_steps") or -1),
        per_device_train_batch_size=rows,
        world_size=processes,
        dataloader_drop_last=bool(training.get("dataloader_drop_last")),
        gradient_accumulation_steps=accumulation_of(recipe),
        num_train_epochs=float(training.get("num_train_epochs") or 3.0),
    )


def _steps(recipe: Recipe, trace: Trace, lengths: Lengths | None, processes: int) -> int | None:
    arguments = _arguments(recipe, trace.micro_batch, processes)
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    if lengths is None:
        return None
    return count_steps(arguments, _packed_rows(recipe, trace, lengths))


def _packed_rows(recipe: Recipe, trace: Trace, lengths: Lengths) -> int:
    """Rows that the trainer sees: packing fills rows up to the length."""
    if recipe.trainer == "SFTConfig" and recipe.training.get("packing"):
        return max(1, math.ceil(lengths.tokens / trace.length))
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


def _saved_bytes(trace: Trace) -> float:
    """Weights that are trained and their optimizer's states; of a model that is fully trained, all weights."""
    weights = trace.parts.get("weights", 0) * (trace.trainable / max(1, trace.parameters))
    return weights + trace.parts.get("optimizer", 0)


def _filled_share(recipe: Recipe, trace: Trace, lengths: Lengths | None) -> tuple[float, list[str]]:
    """The share of the longest batch's tokens that a batch has on average, padding included."""
    if not is_padded(recipe):
        return 1.0, []
    if lengths is None:
        return 1.0, ["every row counted as the longest"]
    below, expected = 0, 0.0
    for tokens, rows in lengths.rows_by_length:
        before, below = below, below + rows
        chance = (below / lengths.rows) ** trace.micro_batch - (before / lengths.rows) ** trace.micro_batch
        expected += tokens * chance
    return min(1.0, expected / max(1, trace.length)), []
