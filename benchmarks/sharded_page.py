"""The tables of docs/launching.md about sharded runs, from benchmarks/results/sharded.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results/sharded.json"


def blocks() -> dict[str, str]:
    """Name of a block -> its text, of the parts that were measured."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return {"sharded": _launches(found["launches"]), "sharded_kills": _kills(found)}


def _launches(part: dict[str, Any]) -> str:
    head = ["launch", "model", "trainer", "steps", "losses", "evaluation", "weights", "logits", "same best checkpoint"]
    lines = [head, ["---"] * len(head)]
    for row in part["found"]:
        numbers = [f"{row[key]:.0e}" if row[key] else "0" for key in ("losses", "evaluation", "weights", "logits")]
        best = "yes" if row["best"] else "no"
        lines.append([row["launch"], row["model"], row["trainer"], str(row["steps"]), *numbers, best])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{table}\n\n{_source(part)}"


def _kills(found: dict[str, Any]) -> str:
    lines = []
    if "worlds" in found:
        worlds = found["worlds"]["found"]
        lines.append(
            f"A run that changed its launch {worlds['changes']} times between one process, DDP and FSDP2: each logged "
            f"loss within {worlds['losses']:.0e} (relative) of the run without a break. {_source(found['worlds'])}"
        )
    if "kills" in found:
        chain = found["kills"]["found"]["chain"]
        lines.append(
            f"FSDP2 on two processes, killed {found['kills']['found']['kills']} times (one rank or both; at any "
            f"moment, in saves, in rotation, at the end): {chain['half']} partial checkpoints, {chain['lost']} steps "
            f"lost beyond a save, {chain['equal_ends']} of {chain['ends']} ends equal to the uninterrupted run bit "
            "for bit. "
            f"{_source(found['kills'])}"
        )
    return "\n\n".join(lines)


def _source(part: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items() if name != "hf_recipes")
    return f"({part['machine']}; {versions}; [record](../benchmarks/results/sharded.json))"
