"""The tables of docs/speed.md, from the records of benchmarks/data.py, step.py, evaluation.py and startup.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MB = 10**6


def blocks() -> dict[str, str]:
    """Name of a block -> its text."""
    pages = {
        "data_speed": ("data", _data),
        "data_reads": ("data", _reads),
        "data_chat": ("data_chat", _chat),
        "step_speed": ("step", _steps),
        "evaluation_speed": ("evaluation", _evaluation),
        "startup_speed": ("startup", _startup),
        "data_wait": ("first_run", _waits),
    }
    return {
        block: page(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        for block, (name, page) in pages.items()
        if (RESULTS / f"{name}.json").is_file()
    }


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
                    _beside(bare, row, int(kind.removesuffix(" processes")[-1]) if kind.endswith("processes") else 1),
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
        "times its speed on free cores",
        "memory",
        "disk, bytes a token of the text",
        "tokens kept",
    ]
    return _table(head, rows) + f"\n\n{_machine(found)}."


def _beside(bare: dict[str, Any], row: dict[str, Any], processes: int) -> str:
    """How many times as fast as the bare tokenizer where each process has a core: what the first process does comes
    before and after what the others do side by side."""
    own = row.get("own_cpu_seconds", row["cpu_seconds"])
    return f"{bare['cpu_seconds'] / (own + (row['cpu_seconds'] - own) / processes):.2f}"


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
            of_bare, elements = f"{row['of_bare']:.2f} ({low:.2f} to {high:.2f})", _share(row.get("elements_of_bare"))
            rows.append([case, kind, f"{row['seconds']:.3g} s", of_bare, elements])
        how = f"{one['pairs']} pairs of rounds" if "pairs" in one else "measured in processes of their own"
        apart = f"{how}; the largest difference of a loss is {one['largest_difference_of_loss']:.0e}"
        if "sft_faster" not in one:
            lines.append(f"{case}: {apart}.")
            continue
        low, high = one["sft_faster"]["interval"]
        lines.append(
            f"{case}: SFTConfig here is {one['sft_faster']['times']:.2f} times as fast as SFTTrainer "
            f"({low:.2f} to {high:.2f}); {apart}."
        )
    shape = found["shape"]
    size = (
        f"A Llama of {shape['layers']} x {shape['width']}, vocabulary {shape['vocabulary']:,}, {shape['batch']} x "
        f"{shape['length']} tokens. {_machine(found)}."
    )
    if "sentences" in found:
        sentences = found["sentences"]
        size += (
            f" MiniLM's shape without dropout, {sentences['batch']} sentences of {sentences['median']} tokens in the "
            f"median, {sentences['longest']} at most."
        )
    head = ["case", "trained by", "CPU time of a step", "of the bare loop (95%)", "elements computed, of the bare loop"]
    return _table(head, rows) + "\n\n" + "\n".join([*lines, size])


def _share(of_bare: float | None) -> str:
    """Of a record that has none: "-"."""
    return "-" if of_bare is None else f"{of_bare:.4f}"


def _evaluation(found: dict[str, Any]) -> str:
    rows = []
    for one in found["cells"]:
        low, high = one["interval"]
        rows.append(
            [
                f"{one['task']}, {one['rows']:,} rows",
                one["way"],
                f"{one['seconds']:.1f} s",
                f"{one['of_forward']:.2f} ({low:.2f} to {high:.2f})",
            ]
        )
    head = ["rows", "evaluated by", "CPU time", "of the forward passes (95%)"]
    counts = ", ".join(f"{rows:,}" for rows in found["memory"]["rows"])
    more = "; ".join(
        f"{task} {', '.join(f'{size / MB:.0f}' for size in sizes)} MB"
        for task, sizes in found["memory"]["bytes"].items()
    )
    memory = f"Memory beyond one batch of the longest rows, after {counts} rows: {more}."
    size = f"MiniLM's shape (causal-lm: the Llama of the steps), batches of {found['batch']}."
    return _table(head, rows) + f"\n\n{memory} {size} {_machine(found)}."


def _startup(found: dict[str, Any]) -> str:
    rows = []
    for name, one in found["starts"].items():
        low, high = one["range"]
        seconds = f"{one['seconds']:.1f} s" + (f" ({low:.1f} to {high:.1f})" if low < high else "")
        rows.append([name, seconds, f"{one['of_bare']:.2f}", str(one["data_files_opened"])])
    head = ["start", "CPU time to the first step", "of the bare script", "opens of data files"]
    once = all(one["range"][0] == one["range"][1] for one in found["starts"].values())
    rounds = "One round of each. " if once else ""
    return _table(head, rows) + f"\n\n`{found['recipe']}`. {rounds}{_machine(found)}."


def _waits(found: dict[str, Any]) -> str:
    """What the first run of each file says of itself at its end."""
    rows = []
    for name, steps in found["files"].items():
        run = next(step["output"] for step in steps if "waiting for data" in step["output"])
        task = re.search(r"^task +(\S+)", run, re.MULTILINE)
        seconds = re.search(r"([\d.]+) s per step", run)
        tokens = re.search(r"about ([\d,]+)\s+tokens a step", run)
        share = re.search(r"([\d.]+%) of the time waiting for data", run)
        assert task and seconds and tokens and share, name
        rows.append([f"`{name}`: {task[1]}", f"{float(seconds[1]):.2g} s", tokens[1], share[1]])
    table = _table(["run", "a step", "tokens of a step", "of the training time waiting for data"], rows)
    return f"{table}\n\n{found['machine']}, Python {found['python']}; the runs of [First run](first-run.md)."


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['machine']}; {versions}; {found['date']}"
