"""The tables of docs/data.md, from the records of benchmarks/data_kills.py and inspect_rows.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    pages = {"data_kills": _kills, "inspect_rows": _inspected}
    return {
        name: page(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))) for name, page in pages.items()
    }


def _inspected(found: dict[str, Any]) -> str:
    rows = []
    for name, one in found["cases"].items():
        train, padding = one["splits"]["train"], one["padding"] or {}
        quantiles = train["quantiles"]
        of_batch = (padding.get(kind) for kind in ("random", "grouped", "packed"))
        planted = found["planted"].get(name)
        of = "" if planted is None else f" of {planted}"
        rows.append(
            [
                name,
                f"{train['rows']:,}",
                f"{train['tokens']:,}",
                ", ".join(map(str, quantiles.values())) or "-",
                f"{train['rows_cut']:,} ({train['lost']:.1%})",
                ", ".join("-" if share is None else f"{share:.0%}" for share in of_batch),
                f"{train['repeated']:,}{of}",
                f"{one['near']['within']['train'] - train['repeated']:,}{of}",
                f"{one['seconds']:.1f} s, {one['bare_seconds']:.1f} s",
            ]
        )
    head = [
        "train split", "rows", "tokens", "95, 99, 100 % within", "rows cut (lost of what is learned)",
        "padding: as it is, grouped, packed", "copies", "near copies", "CPU time, that of loading and tokenizing alone",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{table}\n\n{found['machine']}; {versions}; {found['date']}. "
        '"of" means planted: copies, and copies with one word replaced. `python benchmarks/inspect_rows.py` repeats it.'
    )


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
