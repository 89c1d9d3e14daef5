"""The lab's cells on a full GPU: each recipe as its record has it, planned again by the code as it is now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hf_recipes.catalog.gpus import find_gpu
from hf_recipes.plan import replay_trace, trace_recipe
from hf_recipes.plan.fit.verdict import tracer_arguments
from hf_recipes.plan.lab_record import LabRecord, read_records
from hf_recipes.recipe.recipe import Recipe

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "results" / "lab"
# Measured before plan was corrected by what they showed; the others were predicted first.
CORRECTED = (
    "gemma-270m-conservative--as-it-is",
    "gemma-270m-optimized--as-it-is",
    "gpt-300m-4xa100--as-it-is",
    "gpt-medium-wikitext103--as-it-is",
    "phi2-a10g-low--as-it-is",
)


def rows() -> Iterator[LabRecord]:
    """Cells that finished, each recipe's on the full GPU."""
    for cell in read_records(FOLDER):
        if cell.gib is None and cell.measured is not None and cell.measured.finished:
            yield cell


def peak(cell: LabRecord) -> tuple[int, int]:
    """(allocated, reserved) bytes of this cell, predicted."""
    recipe = Recipe(path=cell.recipe, sections=dict(cell.sections or {}), locations={})
    found = replay_trace(trace_recipe(recipe, **tracer_arguments(find_gpu(cell.gpu))))
    return found.allocated, found.peak


def name(cell: LabRecord) -> str:
    note = ", corrected plan" if cell.cell in CORRECTED else ""
    return f"{str(cell.cell).removesuffix('--as-it-is')} ({cell.gpu}{note})"
