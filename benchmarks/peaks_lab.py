"""The lab's cells on a whole GPU: each recipe as its record has it, planned again by the code as it is now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import find_gpu
from hf_recipes.plan import replay_trace, trace_recipe
from hf_recipes.plan.fit.verdict import tracer_arguments
from hf_recipes.recipe.recipe import Recipe

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "results" / "lab"
# Measured before plan was mended by what they showed; the others were predicted first.
TAUGHT = (
    "gemma-270m-conservative--as-it-is",
    "gemma-270m-optimized--as-it-is",
    "gpt-300m-4xa100--as-it-is",
    "gpt-medium-wikitext103--as-it-is",
    "phi2-a10g-low--as-it-is",
)


def rows() -> Iterator[dict[str, Any]]:
    """Cells that ended, each recipe's on the whole GPU."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            cell = json.loads(line)
            if cell.get("gib") is None and cell.get("measured", {}).get("outcome") == "finished":
                yield cell


def peak(cell: dict[str, Any]) -> tuple[int, int]:
    """(allocated, reserved) bytes of this cell, predicted."""
    recipe = Recipe(path=cell["recipe"], sections=cell["sections"], locations={})
    held = replay_trace(trace_recipe(recipe, **tracer_arguments(find_gpu(cell["gpu"]))))
    return held.allocated, held.peak


def name(cell: dict[str, Any]) -> str:
    taught = ", taught plan" if cell["cell"] in TAUGHT else ""
    return f"{cell['cell'].removesuffix('--as-it-is')} ({cell['gpu']}{taught})"
