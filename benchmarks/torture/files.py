"""Damaged files and full disks: what a resumed run does with a checkpoint that is not what it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from torture.child import Session, train
from torture.look import differences, result
from torture.processes import start, wait


def damaged_files() -> list[dict[str, Any]]:
    """Each file of the newest checkpoint truncated, emptied, removed, one bit flipped: what a resumption then does."""
    from hf_recipes.checkpoints import select

    if wait(start(lambda: train(Session()))) != 0:
        raise SystemExit(Path("child.log").read_text()[-3000:])
    straight = result()
    os.rename("out", "whole")
    newest = max(Path("whole").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2])).name
    found = []
    for name in sorted(path.name for path in Path("whole", newest).iterdir()):
        for damage in ("truncated", "emptied", "removed", "flipped"):
            shutil.rmtree("out", ignore_errors=True)
            shutil.copytree("whole", "out", ignore=shutil.ignore_patterns("record.json"))
            path = Path("out", newest, name)
            content = path.read_bytes()
            middle = len(content) // 2
            if damage == "removed":
                path.unlink()
            elif damage == "flipped":
                path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            else:
                path.write_bytes(content[:middle] if damage == "truncated" else b"")
            why = "; ".join(select.find_errors(Path("out", newest)))
            Path("child.log").unlink(missing_ok=True)
            status = wait(start(lambda: train(Session(resume=True))))
            said = Path("child.log").read_text(encoding="utf-8", errors="replace")
            passed = f"skipped {newest}: {name} " in said
            found.append(
                {
                    "file": name,
                    "damage": damage,
                    "why": why,
                    "passed_over_by_name": passed,
                    "resumed": status == 0,
                    "equal_end": status == 0 and not differences(result(), straight),
                }
            )
    shutil.rmtree("out")
    shutil.rmtree("whole")
    return found


# --- disks -----------------------------------------------------------------------------------------------------------


def full_disk(megabytes: int, *, look_before: bool) -> dict[str, Any]:
    """A run into a tmpfs that it fills. `look_before=False`: the check for room is off, the writers meet the end."""
    from hf_recipes.checkpoints import disk_space, folders, select

    Path("disk").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", "disk"], check=True)
    try:
        Path("child.log").unlink(missing_ok=True)
        words = [
            "TrainingArguments.output_dir=disk/out",
            "TrainingArguments.save_total_limit=null",
            "TrainingArguments.max_steps=400",
            "TrainingArguments.eval_strategy=no",
            "TrainingArguments.load_best_model_at_end=false",
        ]

        def work() -> None:
            from hf_recipes.pipeline.run import run

            if not look_before:
                disk_space.find_shortage = lambda folder, needed: None
            run("recipe.yaml", words)

        status = wait(start(work))
        said = Path("child.log").read_text(encoding="utf-8").strip().splitlines()[-1]
        found = folders.list_checkpoints(Path("disk/out"))
        record = json.loads(Path("disk/out/record.json").read_text(encoding="utf-8"))
        return {
            "megabytes": megabytes,
            "look_before": look_before,
            "exit": status,
            "message": said.removeprefix("RecipeError: "),
            "checkpoints": len(found),
            "half": sum(bool(select.find_errors(path)) for path in found),
            "leftovers": len(folders.list_leftovers(Path("disk/out"))),
            "record_status": record["status"],
        }
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)
