"""The tables of docs/methods/plan.md about model types, from benchmarks/results/plan_models.json."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results/plan_models.json"
LONGEST = 160  # characters of a reason


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    rows: list[dict[str, Any]] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    return {"plan_models": "\n\n".join([_summary(rows), _states(rows), _reasons(rows)])}


def _summary(rows: list[dict[str, Any]]) -> str:
    cells = [cell for row in rows for cell in row["kinds"].values()]
    count = {state: sum(cell["state"] == state for cell in cells) for state in ("planned", "estimate", "refused")}
    longest = max(cell["seconds"] for cell in cells)
    truths = [one for row in rows for one in row["truth"].values() if _is_known(one)]
    near = sum(abs(_difference(one)) <= 4096 for one in truths)
    types = sum(any(map(_is_known, row["truth"].values())) for row in rows)
    return (
        f"{len(rows)} model types, {len(cells)} cells: {count['planned']} planned, {count['estimate']} planned with a "
        f"marked estimate, {count['refused']} refused; the longest took {longest:.0f} s. On a CPU, {types} types with "
        f"real tensors: {near} of {len(truths)} peaks are within 4 KiB of what real tensors hold."
    )


def _is_known(truth: dict[str, Any]) -> bool:
    return all("bytes" in truth[name] for name in ("planned", "real"))


def _difference(truth: dict[str, Any]) -> int:
    return int(truth["planned"]["bytes"] - truth["real"]["bytes"])


def _states(rows: list[dict[str, Any]]) -> str:
    kinds = list(rows[0]["kinds"])
    truths = list(rows[0]["truth"])
    head = ["model type", *kinds, *(f"CPU, {kind}: plan less real, bytes" for kind in truths)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        states = [row["kinds"][kind]["state"] for kind in kinds]
        found = [row["truth"][kind] for kind in truths]
        lines.append([row["type"], *states, *(f"{_difference(one):,}" if _is_known(one) else "" for one in found)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _reasons(rows: list[dict[str, Any]]) -> str:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for kind, cell in row["kinds"].items():
            if cell["state"] == "refused":
                run = "run fails too" if cell["run"]["state"] == "refused" else "run trains on a CPU"
                found[cell["why"], run].append(f"{row['type']} ({kind})")
    lines = [["refused", "why", "run"], ["---"] * 3]
    for (why, run), cells in found.items():
        short = why if len(why) <= LONGEST else why[:LONGEST] + " ..."
        lines.append([", ".join(cells), short.replace("|", "\\|").replace("<", "&lt;").replace("\n", " "), run])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
