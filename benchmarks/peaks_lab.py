"""The lab's cells on a whole card: each recipe as its record has it, planned again by the code as it is now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import find
from hf_recipes.plan import reserved, trace
from hf_recipes.plan.fit.verdict import device_words
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


def rows() -> Iterator[dict[str, Any]]:
    """Cells that ended, each recipe's on the whole card."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            cell = json.loads(line)
            if cell.get("gib") is None and cell.get("measured", {}).get("outcome") == "finished":
                yield cell


def peak(cell: dict[str, Any]) -> tuple[int, int]:
    """(allocated, reserved) bytes of this cell, predicted."""
    recipe = Recipe(path=cell["recipe"], sections=cell["sections"], locations={})
    held = reserved(trace(recipe, **device_words(find(cell["gpu"]))))
    return held.allocated, held.peak


def name(cell: dict[str, Any]) -> str:
    note = ", corrected plan" if cell["cell"] in CORRECTED else ""
    return f"{cell['cell'].removesuffix('--as-it-is')} ({cell['gpu']}{note})"
