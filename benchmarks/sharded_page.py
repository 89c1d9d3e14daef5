"""The table of docs/launching.md about sharded runs, from benchmarks/results/sharded.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results/sharded.json"


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    parts = [_launches(found["launches"]), *([_kills(found["kills"]["found"])] if "kills" in found else [])]
    parts += [_worlds(found["worlds"]["found"])] if "worlds" in found else []
    return {"sharded": "\n\n".join(parts)}


def _worlds(part: dict[str, Any]) -> str:
    kinds = ", ".join(sorted(set(part["sequence"])))
    return (
        f"Runs were continued by another launch {part['changes']} times, drawn from {kinds}: losses against one "
        f"process without a break within {part['losses']:.0e}, weights of the last run within {part['weights']:.0e}."
    )


def _kills(part: dict[str, Any]) -> str:
    chain = part["chain"]
    return (
        f"An FSDP2 run of two processes was killed {part['kills']} times (one process or both; in a step, a save, a "
        f"rotation, at the end) and resumed {chain['resumes']} times: {chain['equal_ends']} of {chain['ends']} ends "
        f"equal the uninterrupted run bit for bit, partial checkpoints: {chain['half']}, steps lost beyond a save: "
        f"{chain['lost']}, processes left after ten seconds: {chain['orphans']}, other failures: "
        f"{len(chain['failures'])}."
    )


def _launches(part: dict[str, Any]) -> str:
    head = ["launch", "model", "trainer", "steps", "losses", "evaluation", "weights", "logits", "same best checkpoint"]
    lines = [head, ["---"] * len(head)]
    for row in part["found"]:
        numbers = [f"{row[key]:.0e}" if row[key] else "0" for key in ("losses", "evaluation", "weights", "logits")]
        best = "yes" if row["best"] else "no"
        lines.append([row["launch"], row["model"], row["trainer"], str(row["steps"]), *numbers, best])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{table}\n\n{_source(part)}"


def _source(part: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items() if name != "hf_recipes")
    return f"({part['machine']}; {versions}; [record](../benchmarks/results/sharded.json))"
