"""The table of docs/launching.md about sharded runs, from benchmarks/results/sharded.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

IN_FP32 = ("from scratch", "pretrained", "LoRA")  # models of sharded.py
RESULTS = Path(__file__).resolve().parent / "results"


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    found: dict[str, Any] = json.loads((RESULTS / "sharded.json").read_text(encoding="utf-8"))
    parts = [_launches(found["launches"]), *map(_kills, found.get("kills", {}).get("found", []))]
    parts += [_worlds(found["worlds"]["found"])] if "worlds" in found else []
    failures = json.loads((RESULTS / "rank_failures.json").read_text(encoding="utf-8"))
    return {"sharded": "\n\n".join(parts), "rank_failures": _failures(failures)}


def summary() -> dict[str, str]:
    """README's block."""
    found: dict[str, Any] = json.loads((RESULTS / "sharded.json").read_text(encoding="utf-8"))
    rows = [row for row in found["launches"]["found"] if row["model"] in IN_FP32]
    launches = ", ".join(dict.fromkeys(row["launch"] for row in rows))
    losses, evaluation = (max(row[key] for row in rows) for key in ("losses", "evaluation"))
    kills = found["kills"]["found"]
    killed, ends, equal = (
        sum(one["kills"] for one in kills),
        *(sum(one["chain"][key] for one in kills) for key in ("ends", "equal_ends")),
    )
    text = (
        f"{launches} on two CPU processes give the losses of one process within {losses:.0e}, its evaluation within "
        f"{evaluation:.0e} (relative, fp32; {', '.join(IN_FP32)}; Trainer and SFTTrainer), end with a complete model, "
        f"and resume each other's checkpoints. Sharded runs were killed {killed} times: {equal} of {ends} ends equal "
        f"the uninterrupted run bit for bit. None of this has run on several real GPUs: "
        f"[what was measured, and the state of each launch](docs/launching.md#what-works-today)."
    )
    return {"sharded_summary": text}


def _failures(found: dict[str, Any]) -> str:
    head = ["launch", "what happens to one process", "seconds until all have ended", "the run", "message"]
    lines = [head, ["---"] * len(head)]
    for row in found["rows"]:
        seconds = f"{row['seconds']:.0f}" if row["status"] else ""
        message = row["message"].removeprefix("error: ").partition(";")[0].replace("|", "\\|")
        message = re.sub(r"\(process \d+ on [^)]*\)", "(process N on HOST)", message)
        state = f"{row['record']}, exit status {row['status']}" if row["status"] else row["record"]
        lines.append([row["launch"], row["what"], seconds, state, message])
    return _table(lines) + "\n\n" + _source(found, "rank_failures.json")


def _worlds(part: dict[str, Any]) -> str:
    kinds = ", ".join(sorted(set(part["sequence"])))
    return (
        f"Runs were continued by another launch {part['changes']} times, drawn from {kinds}: losses against one "
        f"process without a break within {part['losses']:.0e}, weights of the last run within {part['weights']:.0e}."
    )


def _kills(part: dict[str, Any]) -> str:
    chain = part["chain"]
    return (
        f"A run of two processes with {part['launch']} was killed {part['kills']} times (one process or both; in a "
        f"step, a save, a rotation, at the end) and resumed {chain['resumes']} times: {chain['equal_ends']} of "
        f"{chain['ends']} ends equal the uninterrupted run bit for bit, partial checkpoints: {chain['half']}, steps "
        f"lost beyond a save: {chain['lost']}, processes left after ten seconds: {chain['orphans']}, other failures: "
        f"{len(chain['failures'])}."
    )


def _launches(part: dict[str, Any]) -> str:
    head = ["launch", "model", "trainer", "steps", "losses", "evaluation", "weights", "logits", "same best checkpoint"]
    lines = [head, ["---"] * len(head)]
    for row in part["found"]:
        numbers = [f"{row[key]:.0e}" if row[key] else "0" for key in ("losses", "evaluation", "weights", "logits")]
        best = "yes" if row["best"] else "no"
        lines.append([row["launch"], row["model"], row["trainer"], str(row["steps"]), *numbers, best])
    return f"{_table(lines)}\n\n{_source(part, 'sharded.json')}"


def _table(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _source(part: dict[str, Any], name: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items() if name != "hf_recipes")
    return f"({part['machine']}; {versions}; [record](../benchmarks/results/{name}))"
