"""docs/torture.md from benchmarks/results/torture.json and saving.json; called by tables.py."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = {
    "any": "any moment",
    "saving": "inside saving",
    "rotating": "inside rotation",
    "operation": "at a file operation",
}
DAMAGES = ("truncated", "emptied", "removed", "flipped")


def page() -> str:
    found = json.loads((RESULTS / "torture.json").read_text(encoding="utf-8"))
    saving = json.loads((RESULTS / "saving.json").read_text(encoding="utf-8"))
    parts = [_opening(found), _kills(found), _files(found), _disks(found), _saving(saving)]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _opening(found: dict[str, Any]) -> str:
    total, versions = found["totals"], found["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "hf_recipes")
    return (
        "<!-- Written by benchmarks/tables.py from benchmarks/results/torture.json and saving.json; do not edit. -->\n"
        "# What a run survives\n\n"
        f"{total['kills']} runs were killed by SIGKILL; {total['resumes']} were resumed, {total['ends']} came to their "
        f"end, **{total['equal_ends']} of them with the straight run's bits**: weights, every logged loss, train_loss "
        f"and the final evaluation. Checkpoints found half there: {total['half_checkpoints']}. Steps lost beyond the "
        f"last save: {total['steps_lost_beyond_a_save']}. Time spent beyond the straight runs' own: "
        f"{total['seconds_lost']:.0f} s, {total['seconds_lost'] / total['kills']:.1f} s a kill (steps made again and "
        "starts).\n\n"
        f"Measured {found['when'][:10]} on {found['machine']}, {named}; CPU only, nothing ran on a GPU. "
        f"`python benchmarks/torture.py` repeats it, in {found['seconds'] / 60:.0f} minutes. How it works: "
        "[resuming.md](resuming.md)."
    )


def _kills(found: dict[str, Any]) -> str:
    rows = []
    for name, run in found["runs"].items():
        ways = Counter(hit["way"] for hit in run["kills"])
        rows.append(
            [
                name,
                *(str(ways[way]) for way in WAYS),
                str(run["resumes"]),
                f"{run['equal_ends']} of {run['ends']}",
                str(sum(len(hit["half"]) for hit in run["kills"])),
                str(sum(hit["lost_beyond_the_save"] for hit in run["kills"])),
                str(sum(hit["staging"] for hit in run["kills"])),
            ]
        )
    head = [
        "run",
        *WAYS.values(),
        "resumed",
        "bit-equal ends",
        "half checkpoints",
        "steps lost",
        "staging left, cleaned",
    ]
    return (
        "## Kills\n\n"
        f"Runs of {found['steps']} steps in two and a half epochs, a checkpoint every {found['save_steps']} steps, two "
        "kept, dropout, shuffling, 2 accumulation steps. A run is killed up to four times in a row, each time after a "
        "resumption. Of two processes both are killed at once, or one alone.\n\n" + _table(head, rows)
    )


def _files(found: dict[str, Any]) -> str:
    files: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["files"]:
        files.setdefault(row["file"], {})[row["damage"]] = row
    rows = [[f"`{name}`", *(_outcome(damages[damage]) for damage in DAMAGES)] for name, damages in files.items()]
    equal = sum(row["equal_end"] for row in found["files"])
    passed = sum(row["passed_over_by_name"] for row in found["files"])
    return (
        "## Damaged files\n\n"
        f"Each file of the newest checkpoint in turn, {len(found['files'])} damages: {passed} checkpoints were passed "
        f"over with the file's name and the one before was taken. {equal} of the {len(found['files'])} resumed runs "
        "ended in the straight run's bits. Damaged checkpoints that a run went on from: "
        f"{sum(_wrong(row) for row in found['files'])}.\n\n" + _table(["file", *DAMAGES], rows)
    )


def _wrong(row: dict[str, Any]) -> bool:
    return not row["passed_over_by_name"]


def _outcome(row: dict[str, Any]) -> str:
    word = "passed over" if row["passed_over_by_name"] else "**taken**"
    return word + ("" if row["equal_end"] else ", **another end**")


def _disks(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{disk['megabytes']} MB",
            "yes" if disk["look_before"] else "no",
            str(disk["checkpoints"]),
            str(disk["half"]),
            str(disk["leftovers"]),
            disk["record_status"],
            "`" + re.sub(r"^.*?the disk", "the disk", disk["message"]) + "`",
        ]
        for disk in found["disks"]
    ]
    head = ["tmpfs", "looked before", "checkpoints", "half there", "left over", "record", "message"]
    return (
        "## Full disks\n\n"
        "A tmpfs is filled by a run that keeps every checkpoint; once with the look for room before each save, once "
        "without, so that the writers themselves meet the end.\n\n" + _table(head, rows)
    )


def _saving(found: dict[str, Any]) -> str:
    rows = []
    for size in found["sizes"].values():
        ratio, seconds = size["ratio_to_flushed"], size["median_seconds"]
        rows.append(
            [
                f"{size['bytes'] / 2**20:,.0f} MiB",
                str(size["rounds"]),
                f"{seconds['a'] * 1000:,.0f} ms",
                f"{seconds['b'] * 1000:,.0f} ms",
                *(_percent(ratio[arm]) for arm in ("d", "c")),
                f"{size['hash_seconds'] * 1000:,.0f} ms",
            ]
        )
    head = ["checkpoint", "rounds", "upstream", "upstream, flushed", "ours without hashes", "ours", "hashes alone"]
    return (
        "## What whole checkpoints cost\n\n"
        "The same trainer saves the same state upstream's way, then with every file flushed, then ours. Ours is the "
        "median of the rounds' ratios to the flushed one, with its 95 % interval. Hashes (XXH3-128) are taken while "
        f"the disk writes. {found['cores']} cores, {found['when'][:10]}; `python benchmarks/saving.py` repeats it.\n\n"
        + _table(head, rows)
    )


def _percent(ratio: dict[str, float]) -> str:
    middle, low, high = (100 * (ratio[key] - 1) for key in ("median", "low", "high"))
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"
