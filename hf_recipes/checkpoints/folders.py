"""Checkpoint folders in output_dir: naming, putting in place, removing, rotation, and what a dead run left. Light.

Names that begin with a dot are no checkpoints to anybody, upstream included: `.staging-checkpoint-N` is being written,
`.removing-checkpoint-N` is being removed. A folder is put in place and taken away by one rename each.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_recipes.checkpoints import manifest

PROGRESS = "progress.json"  # in every checkpoint of ours: what upstream keeps in memory only (continuing.py)

STAGING, REMOVING = ".staging-", ".removing-"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def name(step: int) -> str:
    return f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    found = CHECKPOINT.fullmatch(folder.name)
    return int(found[1]) if found else -1


def checkpoints(output_dir: Path) -> list[Path]:
    """Every checkpoint folder, whole or not, newest first: of the run that saved last, then by step."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if step_of(path) >= 0 and path.is_dir()]
    told = {path: _run_and_time(path) for path in found}
    known = [fact for fact in told.values() if fact is not None]
    newest, _ = max(known, key=lambda fact: fact[1], default=("", ""))
    facts = {path: fact or (newest, "") for path, fact in told.items()}  # a damaged one is looked at in its turn
    last: dict[str, str] = {}
    for run, saved in facts.values():
        last[run] = max(saved, last.get(run, ""))
    return sorted(found, key=lambda path: (last[facts[path][0]], step_of(path)), reverse=True)


def _run_and_time(folder: Path) -> tuple[str, str] | None:
    """A run's id and a text that sorts by time. One of upstream's is of the run "", saved before; None for one of ours
    whose manifest is damaged or gone."""
    try:
        body = manifest.read(folder)
    except manifest.Damaged:
        return None
    if body is not None:
        return str(body["run"]), str(body["saved"])
    return None if is_ours(folder) else ("", "")


def is_ours(folder: Path) -> bool:
    """Whether hf_recipes wrote the checkpoint, by a file that upstream's have not."""
    return (folder / PROGRESS).is_file()


def put_in_place(staging: Path, final: Path) -> None:
    """One rename, flushed. What stood at `final` (another run's, or a broken one) goes first. Raises OSError."""
    if final.exists():
        _take_away(final)
    os.replace(staging, final)
    manifest.flush(final.parent)


def _take_away(folder: Path) -> Path:
    going = folder.parent / f"{REMOVING}{folder.name}"
    shutil.rmtree(going, ignore_errors=True)
    os.replace(folder, going)
    return going


def remove(folder: Path) -> None:
    """Never half there: renamed first. A file that cannot be removed now is removed at the next start."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_take_away(folder), ignore_errors=True)


def rotate(output_dir: Path, limit: int | None, keep: Iterable[str]) -> list[str]:
    """Removes all but `limit` checkpoints, oldest first, never one of `keep` (names) and never the newest whole one.

    Returns the names of those removed. As upstream, more than `limit` stay where `keep` holds more.
    """
    for going in output_dir.glob(f"{REMOVING}*"):
        shutil.rmtree(going, ignore_errors=True)
    if limit is None or limit <= 0:
        return []
    found = checkpoints(output_dir)
    kept = set(keep)
    newest = next((path.name for path in found if whole(path)), None)
    kept |= {newest} if newest else set()
    removed: list[str] = []
    for path in reversed(found):
        if len(found) - len(removed) <= max(limit, len(kept)):
            break
        if path.name not in kept:
            remove(path)
            removed.append(path.name)
    return removed


def whole(folder: Path) -> bool:
    """Whether the manifest is there and its files have their sizes."""
    try:
        body = manifest.read(folder)
    except manifest.Damaged:
        return False
    return body is not None and not any(manifest.errors(folder, body, hashes=False))


def leftovers(output_dir: Path) -> list[Path]:
    """What a run that died while it saved or rotated left."""
    if not output_dir.is_dir():
        return []
    return sorted(path for path in output_dir.iterdir() if path.name.startswith((STAGING, REMOVING)))


def clean(output_dir: Path) -> list[str]:
    """Removes the leftovers of a dead run and returns a line for each.

    A staging folder whose every file is there and has its digest was killed just before its rename: it is put in place.
    """
    lines = []
    for path in leftovers(output_dir):
        final = path.parent / path.name.removeprefix(STAGING)
        if path.name.startswith(STAGING) and step_of(final) >= 0 and not final.exists() and proven(path):
            put_in_place(path, final)
            lines.append(f"{final.name} was whole but not yet in place when its run died: it is now")
            continue
        shutil.rmtree(path, ignore_errors=True)
        lines.append(f"removed {path.name}, which a run left that died over it")
    return lines


def proven(folder: Path) -> bool:
    try:
        body = manifest.read(folder)
    except manifest.Damaged:
        return False
    return body is not None and not any(manifest.errors(folder, body))


def shown(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
