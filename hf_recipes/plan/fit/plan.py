"""`hf-recipes plan`, top to bottom: recipe and GPU to a verdict, with the length of the recipe's data.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.common.device import Device
from hf_recipes.common.text import format_bytes
from hf_recipes.data.files import file_names
from hf_recipes.data.splits import file_errors
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit import verdict
from hf_recipes.plan.fit.parallel import SINGLE, Layout
from hf_recipes.plan.fit.verdict import Fit
from hf_recipes.plan.trace import worker
from hf_recipes.plan.trace.result import Lengths
from hf_recipes.recipe.defaults import choose
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.rules.device import gpu_errors
from hf_recipes.recipe.schema.own_keys import FILE_BUILDERS

READ_BYTES = 64 * 2**20  # local data up to this size is read without --read-data: some seconds


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe planned. `lengths`: None where the data was not read; `length_note` then says why."""

    fit: Fit
    lengths: Lengths | None
    length_note: str


def plan_recipe(
    recipe: Recipe,
    gpu: Gpu,
    *,
    length: int | None = None,
    read_data: bool | None = None,
    usable: int | None = None,
    layout: Layout = SINGLE,
) -> Plan:
    """The verdict of a recipe on a GPU. Raises RecipeError for what `run` or the tracer refuses.

    length: tokens of the longest row, else the longest that the data has; read_data: None reads what is local and
    small, False nothing, True whatever its size; usable: free bytes of the GPU, where its driver reports them.
    """
    lengths, note = (None, "") if read_data is False else read_lengths(recipe, insist=bool(read_data))
    if length is not None:
        note = f"length: {length} (asked for)"
    elif lengths is not None and is_limited_by_single_rows(recipe):
        length, note = lengths.longest, describe_lengths(lengths)
    refuse_unsupported(recipe, gpu)
    fit = verdict.check_fit(recipe, gpu, length=length, usable=usable, layout=layout)
    return Plan(fit=fit, lengths=lengths, length_note=note)


def refuse_unsupported(recipe: Recipe, gpu: Gpu) -> None:
    """As `run` would on that GPU: bf16 on a T4, an 8-bit optimizer on an Apple GPU. Raises RecipeError."""
    found = gpu_errors(choose(recipe, planned_device(gpu))[0], planned_device(gpu))
    if found:
        raise RecipeError(found)


def planned_device(gpu: Gpu) -> Device:
    """The device that a run on this GPU would see."""
    if gpu.name == verdict.CPU:
        return Device(kind="cpu", name="CPU", bf16=True)
    if gpu.unified:
        return Device(kind="mps", name=gpu.title, count=1, bf16=True)
    capability = gpu.capability or verdict.DEFAULT_CAPABILITY
    return Device(kind="cuda", name=gpu.title, count=1, capability=capability, bf16=capability >= (8, 0))


def is_limited_by_single_rows(recipe: Recipe) -> bool:
    """Whether the longest row of the data is the longest of a batch: neither blocks of text nor packed rows are."""
    if recipe.trainer == "TrainingArguments":
        return recipe.task != "causal-lm"
    return not recipe.training.get("packing") and not recipe.training.get("padding_free")


def describe_lengths(lengths: Lengths) -> str:
    """ "length: 61, the longest of 2,992 rows (median 14; ...)": what the data shows."""
    long = percentile(lengths, 0.99)
    rows = lengths.rows + lengths.eval_rows
    line = f"length: {lengths.longest} tokens, the longest of {rows:,} rows (median {percentile(lengths, 0.5)}"
    line += f", 99 of 100 within {long})"
    if lengths.cut > 0.01 * lengths.rows:
        line += f"; {lengths.cut / lengths.rows:.0%} of the rows are as long as the limit: they are cut there"
    return line


def percentile(lengths: Lengths, share: float) -> int:
    """Tokens within which this share of the train rows lies."""
    seen = 0
    for tokens, rows in lengths.rows_by_length:
        seen += rows
        if seen >= share * lengths.rows:
            return tokens
    return lengths.longest


def read_lengths(recipe: Recipe, *, insist: bool = False) -> tuple[Lengths | None, str]:
    """The lengths of the recipe's own data, or None and why it was not read. `insist`: whatever its size, and an error
    of the data is raised."""
    small, why = _is_readable(recipe)
    if not small and not insist:
        return None, why
    try:
        return worker.measure_lengths(recipe), ""
    except RecipeError as problem:
        if insist:
            raise
        return None, f"length: max_length, since the data was not read ({problem.errors[0].message})"


def _is_readable(recipe: Recipe) -> tuple[bool, str]:
    path = recipe.get("dataset.path")
    if not isinstance(path, str) or recipe.is_generated:
        return False, ""
    if path not in FILE_BUILDERS and not os.path.isdir(path):
        return False, f"length: max_length, since the data ({path}) is not on this machine"
    errors = file_errors(recipe)
    if errors:
        return False, f"length: max_length, since the data was not read ({errors[0].message})"
    base = os.path.join("" if path in FILE_BUILDERS else path, recipe.get("dataset.data_dir") or "")
    files = [os.path.join(base, name) for name in file_names(recipe.get("dataset.data_files")).values()]
    size = sum(os.path.getsize(name) for name in files if os.path.isfile(name))
    if size > READ_BYTES:
        return False, f"length: max_length, since {format_bytes(size)} of data are read only with --read-data"
    return True, ""
