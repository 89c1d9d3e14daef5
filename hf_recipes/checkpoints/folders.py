"""Checkpoint folders in output_dir: naming, putting in place, removing, rotation, and what a killed run left.

Names that begin with a dot are no checkpoints to anybody, upstream included: `.staging-checkpoint-N` is being written,
`.removing-checkpoint-N` is being removed. A folder is put in place and taken away by one rename each. Imports neither
torch nor transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import manifest

TRAINER_STATE = "trainer_state.json"  # upstream's
PROGRESS = "progress.json"  # in every checkpoint: what upstream keeps in memory only (loop_state.py)

OPTIMIZER_SHARDS = "optimizer_shards"  # a folder in a checkpoint of FSDP2 (sharded.py)
NEVER = (-1, "")  # before every session
STAGING, REMOVING = ".staging-", ".removing-"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    found = CHECKPOINT.fullmatch(folder.name)
    return int(found[1]) if found else -1


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Every checkpoint folder, complete or not, latest first: of the run whose session began last, then by step.

    Sessions are counted in the manifests (`next_session`): no clock is asked. Manifests of earlier versions have no
    count; among them the time of the save decides.
    """
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if step_of(path) >= 0 and path.is_dir()]
    read = {path: _read_order(path) for path in found}
    known = [fact for fact in read.values() if fact is not None]
    latest, _ = max(known, key=lambda fact: fact[1], default=("", NEVER))
    facts = {path: fact or (latest, NEVER) for path, fact in read.items()}  # a damaged one takes its turn by its step
    last: dict[str, tuple[int, str]] = {}
    for run, saved in facts.values():
        last[run] = max(saved, last.get(run, NEVER))
    return sorted(found, key=lambda path: (last[facts[path][0]], step_of(path)), reverse=True)


def _read_order(folder: Path) -> tuple[str, tuple[int, str]] | None:
    """A run's id, its session's number and the time of the save. A checkpoint of upstream is of the run "", saved
    before; None for one of this package whose manifest is damaged or gone."""
    try:
        body = manifest.read_manifest(folder)
    except manifest.ManifestError:
        return None
    if body is not None:
        return body.get("run", ""), (body.get("session", 0), body.get("saved", ""))
    return None if is_ours(folder) else ("", NEVER)


def run_of(folder: Path) -> str | None:
    """The id of the run that wrote a checkpoint; None where its manifest does not tell."""
    fact = _read_order(folder)
    return fact[0] if fact else None


def next_session(output_dir: Path) -> int:
    """Above that of every checkpoint in the folder."""
    facts = (_read_order(path) for path in list_checkpoints(output_dir))
    return max((fact[1][0] for fact in facts if fact), default=0) + 1


def is_ours(folder: Path) -> bool:
    """Whether hf_recipes wrote the checkpoint, by a file that upstream's have not."""
    return (folder / PROGRESS).is_file()


def read_progress(folder: Path) -> dict[str, Any]:
    """progress.json of a checkpoint; {} where it has none (upstream wrote it) or it cannot be read."""
    try:
        found = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_extra(progress: Mapping[str, Any]) -> bool:
    """Whether the straight run would not have written a checkpoint, by its progress.json: a signal or a guard did."""
    work = progress.get("work")
    return isinstance(work, dict) and bool(work.get("extra"))


def put_in_place(staging: Path, final: Path) -> None:
    """One rename, flushed. What stood at `final` (another run's, or a broken one) goes first. Raises OSError."""
    if final.exists():
        _rename_for_removal(final)
    os.replace(staging, final)
    manifest.flush_to_disk(final.parent)


def _rename_for_removal(folder: Path) -> Path:
    going = folder.parent / f"{REMOVING}{folder.name}"
    shutil.rmtree(going, ignore_errors=True)
    os.replace(folder, going)
    return going


def remove_checkpoint(folder: Path) -> None:
    """Renamed first, so that no half-removed checkpoint is left. What cannot be removed now is at the next start."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_rename_for_removal(folder), ignore_errors=True)


def remove_old_checkpoints(output_dir: Path, limit: int | None, keep: Iterable[str], run: str) -> list[str]:
    """Removes all but `limit` checkpoints of a run, oldest first, never one of `keep` (names), never the latest
    complete one, and none of another run.

    Returns the names of those removed. As upstream, more than `limit` stay where `keep` holds more.
    """
    for going in output_dir.glob(f"{REMOVING}*"):
        shutil.rmtree(going, ignore_errors=True)
    if limit is None or limit <= 0:
        return []
    found = [path for path in list_checkpoints(output_dir) if run_of(path) in (run, None)]
    kept = set(keep)
    latest = latest_complete(output_dir, run)
    kept |= {latest.name} if latest else set()
    removed: list[str] = []
    for path in reversed(found):
        if len(found) - len(removed) <= max(limit, len(kept)):
            break
        if path.name not in kept:
            remove_checkpoint(path)
            removed.append(path.name)
    return removed


def is_complete(folder: Path) -> bool:
    """Whether the manifest is there and its files have their sizes."""
    try:
        body = manifest.read_manifest(folder)
    except manifest.ManifestError:
        return False
    return body is not None and not any(manifest.find_errors(folder, body, hashes=False))


def latest_complete(output_dir: Path, run: str | None = None) -> Path | None:
    """The latest complete checkpoint (of a run); None if there is none."""
    found = (path for path in list_checkpoints(output_dir) if run is None or run_of(path) == run)
    return next((path for path in found if is_complete(path)), None)


def list_leftovers(output_dir: Path) -> list[Path]:
    """What a run left that was killed while it saved or removed a checkpoint."""
    if not output_dir.is_dir():
        return []
    return sorted(path for path in output_dir.iterdir() if path.name.startswith((STAGING, REMOVING)))


def clean_leftovers(output_dir: Path) -> list[str]:
    """Removes the leftovers of a killed run and returns a line for each.

    A staging folder whose every file is there and has its digest was killed just before its rename: it is put in place.
    """
    lines = []
    for path in list_leftovers(output_dir):
        final = path.parent / path.name.removeprefix(STAGING)
        if path.name.startswith(STAGING) and step_of(final) >= 0 and not final.exists() and is_intact(path):
            put_in_place(path, final)
            lines.append(f"{final.name} was complete but not yet in place when its run was killed: it is now")
            continue
        shutil.rmtree(path, ignore_errors=True)
        lines.append(f"removed {path.name}, left by a run that was killed")
    return lines


def is_intact(folder: Path) -> bool:
    """Whether the manifest is there and its files have their sizes and digests."""
    try:
        body = manifest.read_manifest(folder)
    except manifest.ManifestError:
        return False
    return body is not None and not any(manifest.find_errors(folder, body))
