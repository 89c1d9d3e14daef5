"""The tables of docs/speed.md, from benchmarks/results/data.json and step.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MB = 10**6


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    names = ("data", "data_chat", "step")
    data, chat, step = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names)
    tables = {"data_speed": _data(data), "data_reads": _reads(data), "data_chat": _chat(chat)}
    return {**tables, "step_speed": _steps(step)}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _data(found: dict[str, Any]) -> str:
    rows = []
    for size, one in found["sizes"].items():
        bare = one["kinds"]["bare tokenizer"]
        most = max(kind["tokens"] for kind in one["kinds"].values())
        for kind, row in one["kinds"].items():
            rows.append(
                [
                    f"{size} MB",
                    kind,
                    f"{one['text_bytes'] / MB / row['cpu_seconds']:.2f}",
                    f"{bare['cpu_seconds'] / row['cpu_seconds']:.2f}",
                    f"{row['peak_bytes'] / MB:,.0f} MB",
                    f"{row['disk_bytes'] / most:.1f}" if row["disk_bytes"] else "-",
                    f"{row['tokens'] / most:.1%}",
                ]
            )
    head = [
        "text",
        "prepared by",
        "MB per CPU second",
        "of the bare tokenizer",
        "memory",
        "disk, bytes a token of the text",
        "tokens kept",
    ]
    return _table(head, rows) + f"\n\n{_machine(found)}."


def _reads(found: dict[str, Any]) -> str:
    times = found["read_microseconds"]
    return (
        f"A random row of {found['max_length']:,} tokens takes {times['index']:.1f} microseconds through the index, "
        f"{times['np.memmap']:.1f} from one flat `np.memmap` of the same ids, and {times['datasets']:.0f} as a row "
        "of `datasets`, which makes Python integers of them."
    )


def _chat(found: dict[str, Any]) -> str:
    rows = []
    for kind in found["kinds"].values():
        for way, row in kind["ways"].items():
            bare = kind["ways"][f"bare, {way.partition(', ')[2]}"]
            rows.append(
                [
                    f"{kind['rows']:,}: {kind['template']}",
                    way,
                    f"{row['cpu_seconds']:.1f} s",
                    f"{row['cpu_seconds'] / bare['cpu_seconds']:.2f}",
                    f"{row['seconds'] / bare['seconds']:.2f}",
                    f"{row['peak_bytes'] / MB:,.0f} MB",
                ]
            )
    head = ["rows", "prepared by", "CPU time", "of bare", "elapsed, of bare", "memory"]
    return _table(head, rows) + f"\n\n{_machine(found)}."


def _steps(found: dict[str, Any]) -> str:
    rows, lines = [], []
    for case, one in found["cases"].items():
        for kind, row in one["kinds"].items():
            low, high = row["interval"]
            rows.append([case, kind, f"{row['seconds']:.2f} s", f"{row['of_bare']:.2f} ({low:.2f} to {high:.2f})"])
        low, high = one["sft_faster"]["interval"]
        lines.append(
            f"{case}: SFTConfig here is {one['sft_faster']['times']:.2f} times as fast as SFTTrainer "
            f"({low:.2f} to {high:.2f}); the largest difference of a loss is {one['largest_difference_of_loss']:.0e}."
        )
    shape = found["shape"]
    size = (
        f"A Llama of {shape['layers']} x {shape['width']}, vocabulary {shape['vocabulary']:,}, {shape['batch']} x "
        f"{shape['length']} tokens. {_machine(found)}."
    )
    return _table(["case", "trained by", "a step", "of the bare loop (95%)"], rows) + "\n\n" + "\n".join([*lines, size])


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['machine']}; {versions}; {found['date']}"
