"""The table of docs/data.md, from the record of benchmarks/data_kills.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    return {"data_kills": _kills(json.loads((RESULTS / "data_kills.json").read_text(encoding="utf-8")))}


def _kills(found: dict[str, Any]) -> str:
    rows, kills, ends, equal = [], 0, 0, 0
    for group, title in (("streams", "stream"), ("preparations", "preparation")):
        for name, one in found[group].items():
            killed = sum(one["kills"].values())
            rows.append([f"{title}, {name}", str(killed), f"{one['equal_ends']} of {one['ends']}"])
            kills, ends, equal = kills + killed, ends + one["ends"], equal + one["equal_ends"]
    head = ["what was killed", "SIGKILLs", "ends equal to the uninterrupted one"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if name != "hf_recipes")
    return (
        f"{kills} kills, {equal} of {ends} ends equal bit for bit: of streams every batch that any session learned "
        "from, the weights, the losses and the evaluation; of preparations every file of rows.\n\n"
        f"{table}\n\n{found['machine']}; {versions}; {found['when'][:10]}. "
        "`python benchmarks/data_kills.py` repeats it."
    )
