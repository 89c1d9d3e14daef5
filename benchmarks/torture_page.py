"""docs/torture.md from benchmarks/results/torture.json and saving.json; called by tables.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = {
    "any": "any moment",
    "saving": "inside saving",
    "rotating": "inside rotation",
    "operation": "at a file operation",
    "ending": "at the end",
}
NOHUP = "\n\nSIGHUP was ignored by every run, as it must be below nohup, with which this program was started."
DAMAGES = ("truncated", "emptied", "removed", "flipped")


def page() -> str:
    found = json.loads((RESULTS / "torture.json").read_text(encoding="utf-8"))
    saving = json.loads((RESULTS / "saving.json").read_text(encoding="utf-8"))
    parts = [_opening(found), _kills(found)]
    parts += [_signals(found)] if found["totals"]["signals"] else []
    parts += [_parents(found)] if found["parents"] else []
    parts += [_failures(found)] if found["totals"]["failures"] else []
    parts += [_files(found), _disks(found), _saving(saving)]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _opening(found: dict[str, Any]) -> str:
    total, versions = found["totals"], found["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "hf_recipes")
    parts, minutes = f"{found['of']} parts at once, each" if found["of"] > 1 else "it", found["seconds"] / 60
    return (
        "<!-- Written by benchmarks/tables.py from benchmarks/results/torture.json and saving.json; do not edit. -->\n"
        "# Kills, signals, damaged files, full disks\n\n"
        f"Runs were killed {total['kills']:,} times by SIGKILL and got {total['signals']:,} signals; they were resumed "
        f"{total['resumes']:,} times. {total['ends']:,} finished, **{total['equal_ends']:,} of them equal to the "
        f"uninterrupted run bit for bit**: weights, every logged loss, train_loss, the final evaluation, steps and "
        f"tokens. Partial checkpoints: {total['half_checkpoints']}. Steps lost beyond the last save: "
        f"{total['steps_lost_beyond_a_save']}. Processes that were left after ten seconds: {total['orphans']}. Second "
        f"runs in the folder of a running one: {total['second_runs']}, refused: {total['second_runs_refused']}. "
        f"Anything else that must not happen: {total['failures']}.\n\n"
        f"{_again(found)}Measured {found['when'][:10]} on {found['machine']}, {named}; CPU only. "
        f"`python benchmarks/torture` repeats {parts} in {minutes:.0f} minutes. How it works: "
        "[resuming.md](resuming.md) and [methods/checkpoints.md](methods/checkpoints.md)."
    )


def _again(found: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for one in found.get("again", ()) for name in one["names"]))
    if not names:
        return ""
    listed = ", ".join(f"{name!r}" for name in names)
    return (
        f"Of these, {listed} were measured a second time: in the first pass the program itself had begun a second run "
        "in a folder whose run had just ended, and had not waited for torchrun's processes.\n\n"
    )


def _kills(found: dict[str, Any]) -> str:
    rows = []
    for name, run in found["runs"].items():
        counts = ("resumes", "half", "lost", "staging")
        resumes, half, lost, staging = (str(run[key]) for key in counts)
        rows.append([name, *(str(run["kills"].get(way, 0)) for way in WAYS), str(sum(run["signals"].values()))])
        rows[-1] += [resumes, f"{run['equal_ends']} of {run['ends']}", half, lost, staging]
    head = ["run", *WAYS.values(), "signals", "resumed", "equal to the uninterrupted run"]
    head += ["partial checkpoints", "steps lost", "staging folders cleaned"]
    return (
        "## What if the process is killed?\n\n"
        f"Runs of about {found['steps']} steps in two and a half epochs, a checkpoint every {found['save_steps']} "
        "steps, two kept, with dropout, shuffling and 2 accumulation steps, where the run's name does not say "
        f'otherwise. A run is interrupted up to six times in a row, each time after it was resumed. "At the end" '
        "is a file operation after training: while the final weights, the evaluation, the record, the model card or "
        "the report are made. Of two processes both are killed at once, or only one.\n\n" + _table(head, rows)
    )


def _signals(found: dict[str, Any]) -> str:
    counts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for run in found["runs"].values():
        counts.update(run["signals"])
        ends.update(run["ended_as"])
    rows = [
        [name, *(str(counts[f"{name}, {target}"]) for target in ("process", "group"))]
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    ]
    return (
        "## What if it gets a signal?\n\n"
        "At any moment: in a step, while data are loaded, in an evaluation, in a save, after training. "
        f"{ends['documented']} runs ended as documented (exit status 128 and the signal's number), and "
        f"{ends['before the run listened']} got it before their training was prepared and ended at once.\n\n"
        + _table(["signal", "to the process", "to its group"], rows)
        + (NOHUP if not any(name.startswith("SIGHUP") for name in counts) else "")
    )


def _parents(found: dict[str, Any]) -> str:
    rows = [
        [name, str(run["parents"]), str(run["orphans"]), f"{run['equal_ends']} of {run['ends']}"]
        for name, run in found["parents"].items()
    ]
    head = ["killed", "times", "processes left after 10 s", "resumed runs equal to the uninterrupted one"]
    return "## What if the launcher or the supervisor is killed?\n\n" + _table(head, rows)


def _failures(found: dict[str, Any]) -> str:
    runs = (*found["runs"].values(), *found["parents"].values())
    failures = [failure for run in runs for failure in run["failures"]]
    rows = [
        [str(failure.get("kind", "")), str(failure.get("chain", "")), failure["what"].strip().splitlines()[-1][:200]]
        for failure in failures
    ]
    how = '`python benchmarks/torture --repeat "RUN:CHAIN"` repeats one.'
    return f"## What went wrong?\n\n{how}\n\n" + _table(["run", "chain", "what happened"], rows)


def _files(found: dict[str, Any]) -> str:
    files: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["files"]:
        files.setdefault(row["file"], {})[row["damage"]] = row
    rows = [[f"`{name}`", *(_outcome(damages[damage]) for damage in DAMAGES)] for name, damages in files.items()]
    equal = sum(row["equal_end"] for row in found["files"])
    passed = sum(row["passed_over_by_name"] for row in found["files"])
    return (
        "## What if a file is damaged?\n\n"
        f"Each file of the latest checkpoint was damaged in turn, {len(found['files'])} times. {passed} checkpoints "
        f"were passed over with the file's name, and the one before was used. {equal} of the "
        f"{len(found['files'])} resumed runs equal the uninterrupted run bit for bit. Damaged checkpoints that a run "
        "resumed from: "
        f"{sum(_wrong(row) for row in found['files'])}.\n\n" + _table(["file", *DAMAGES], rows)
    )


def _wrong(row: dict[str, Any]) -> bool:
    return not row["passed_over_by_name"]


def _outcome(row: dict[str, Any]) -> str:
    word = "passed over" if row["passed_over_by_name"] else "**used**"
    return word + ("" if row["equal_end"] else ", **another result**")


def _disks(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{disk['megabytes']} MB",
            "yes" if disk["look_before"] else "no",
            str(disk["checkpoints"]),
            str(disk["half"]),
            str(disk["leftovers"]),
            disk["record_status"],
        ]
        for disk in found["disks"]
    ]
    head = ["tmpfs", "checked before", "checkpoints", "partial", "left over", "record's status"]
    return (
        "## What if the disk is full?\n\n"
        "A run that keeps every checkpoint fills a tmpfs: once with the check for free space before each save, and "
        "once without it, so that a write fails. Each run ended with a message that names the disk and the latest "
        "complete checkpoint.\n\n" + _table(head, rows)
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
    head = [
        "checkpoint",
        "rounds",
        "upstream",
        "upstream, flushed",
        "ours without checksums",
        "ours",
        "checksums alone",
    ]
    return (
        "## What does a safe save cost?\n\n"
        "The same trainer saves the same state as upstream does, then with every file flushed, then our way. Ours is "
        "the median of the rounds' ratios to the flushed one, with its 95 % interval. Checksums (XXH3-128) are "
        f"computed while the disk writes. {found['cores']} cores, {found['when'][:10]}; `python benchmarks/saving.py` "
        "repeats it.\n\n" + _table(head, rows)
    )


def _percent(ratio: dict[str, float]) -> str:
    middle, low, high = (100 * (ratio[key] - 1) for key in ("median", "low", "high"))
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"
