"""The table of docs/methods/plan.md of what two real FSDP2 processes hold, from results/rank_peaks.json."""

from __future__ import annotations

import json
from pathlib import Path

RESULT = Path(__file__).resolve().parent / "results/rank_peaks.json"


def blocks() -> dict[str, str]:
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    most = max(abs(row["planned"] - min(row["ranks"])) for row in rows)
    lines = [
        f"In {len(rows)} cases the largest difference is {most:,} bytes.",
        "",
        "| case | rank 0 holds, bytes | rank 1 holds | plan | plan less real | one process |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        first, second = row["ranks"]
        less = row["planned"] - min(row["ranks"])
        lines.append(
            f"| {row['case']} | {first:,} | {second:,} | {row['planned']:,} | {less:+,} | {row['one_process']:,} |"
        )
    return {"rank_peaks": "\n".join(lines)}
