"""The record: totals, parts, and how parts are joined."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent.parent / "results/torture.json"
SUMMED = ("chains", "resumes", "ends", "equal_ends", "seconds", "half", "lost", "staging", "orphans")
SUMMED += ("second_runs", "second_runs_refused", "parents")


def totals(found: dict[str, Any]) -> dict[str, Any]:
    """The counts that must come out."""
    runs = [*found["runs"].values(), *found["parents"].values()]

    def total(name: str) -> Any:
        return sum(run.get(name, 0) for run in runs)

    kills = sum(sum(run.get("kills", {}).values()) for run in runs) + total("parents")
    return {
        "kills": kills,
        "signals": sum(sum(run.get("signals", {}).values()) for run in runs),
        "resumes": total("resumes"),
        "ends": total("ends"),
        "equal_ends": total("equal_ends"),
        "half_checkpoints": total("half"),
        "steps_lost_beyond_a_save": total("lost"),
        "staging_folders_left": total("staging"),
        "orphans": total("orphans"),
        "second_runs": total("second_runs"),
        "second_runs_refused": total("second_runs_refused"),
        "failures": sum(len(run["failures"]) for run in runs),
        "seconds_lost": sum(run["seconds"] - run["ends"] * run["straight_seconds"] for run in found["runs"].values()),
    }


def provenance() -> dict[str, Any]:
    from hf_recipes.common.environment import current_commit, package_version, timestamp

    return {
        "versions": {name: package_version(name) for name in ("hf_recipes", "torch", "transformers", "trl", "peft")},
        "commit": current_commit(),
        "when": timestamp(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
    }


def merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of the parts. Raises SystemExit for parts that are not of one code, or not all of them."""
    for name in ("commit", "versions", "seed", "of"):
        if len({json.dumps(part[name], sort_keys=True) for part in parts}) > 1:
            raise SystemExit(f"the parts differ in {name}: {[part[name] for part in parts]}")
    numbers = sorted(part["part"] for part in parts)
    if numbers != list(range(1, parts[0]["of"] + 1)):
        raise SystemExit(f"parts {numbers} are not 1 to {parts[0]['of']}, once each")
    found = {**parts[0], "runs": {}, "parents": {}, "files": [], "disks": []}
    for group in ("runs", "parents"):
        for name in dict.fromkeys(name for part in parts for name in part[group]):
            found[group][name] = _join([part[group][name] for part in parts if name in part[group]])
    for name in ("files", "disks"):
        found[name] = [row for part in parts for row in part[name]]
    found["again"] = [one for part in parts for one in part.get("again", ())]
    found["seconds"] = max(part["seconds"] for part in parts)
    del found["part"]
    found["totals"] = totals(found)
    return found


def _join(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {name: sum(run[name] for run in runs) for name in SUMMED if name in runs[0]}
    for name in ("kills", "signals", "ended_as"):
        if name in runs[0]:
            found[name] = dict(sum((Counter(run[name]) for run in runs), Counter()))
    found["failures"] = [failure for run in runs for failure in run["failures"]]
    if "straight" in runs[0]:
        found["straight_seconds"] = max(run["straight_seconds"] for run in runs)
        if any(run["straight"] != runs[0]["straight"] for run in runs):
            found["failures"].append({"what": "the straight runs of the parts differ"})
    return found


def write(found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
