"""Checkpoint folders: their order, what is removed, and what a killed run left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, manifest


def ours(folder: Path, step: int, *, run: str = "r", saved: str = "", state: Any = ("optimizer",)) -> Path:
    """A small checkpoint as CheckpointWriter leaves it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"12345")
    (path / folders.PROGRESS).write_text("{}")
    (path / folders.TRAINER_STATE).write_text(json.dumps({"global_step": step}))
    facts = {"run": run, "saved": saved or f"2026-01-01T00:{step:02}", "state": list(state)}
    manifest.write_manifest(path, facts, manifest.flush_files(path))
    return path


def test_the_run_that_saved_last_comes_first_whatever_its_steps(folder: Path) -> None:
    ours(folder, 30, run="old", saved="2026-01-01")
    ours(folder, 10, run="new", saved="2026-01-03")
    ours(folder, 20, run="new", saved="2026-01-02")
    (folder / "checkpoint-99").mkdir()  # upstream's
    (folder / "checkpoint-x").mkdir()
    (folder / "checkpoint-50").write_text("a file")
    assert [path.name for path in folders.list_checkpoints(folder)] == [
        *("checkpoint-20", "checkpoint-10", "checkpoint-30", "checkpoint-99")
    ]


def test_the_latest_run_is_told_by_its_session_and_not_by_a_clock(folder: Path) -> None:
    for step, run, session, saved in ((100, "old", 3, "2030"), (2, "new", 4, "2001"), (4, "new", 4, "2000")):
        path = ours(folder, step, run=run, saved=saved)
        body = manifest.read_manifest(path)
        assert body is not None
        manifest.write_manifest(path, {**body, "session": session}, body["files"])
        os.utime(path, (step, step))
    assert [path.name for path in folders.list_checkpoints(folder)] == [
        "checkpoint-4",
        "checkpoint-2",
        "checkpoint-100",
    ]
    assert folders.next_session(folder) == 5
    assert [folders.run_of(path) for path in folders.list_checkpoints(folder)] == ["new", "new", "old"]
    assert folders.latest_complete(folder, "old") == folder / "checkpoint-100"
    assert folders.remove_old_checkpoints(folder, 1, [], "new") == ["checkpoint-2"]  # none of another run


def test_a_complete_checkpoint_has_its_sizes_and_an_intact_one_its_digests(folder: Path) -> None:
    path = ours(folder, 2)
    assert folders.is_complete(path) and folders.is_intact(path)
    (path / "weights").write_bytes(b"12346")
    assert folders.is_complete(path) and not folders.is_intact(path)
    (path / "weights").write_bytes(b"1234")
    assert not folders.is_complete(path)
    for damaged in ("{", None):
        (path / manifest.MANIFEST).unlink() if damaged is None else (path / manifest.MANIFEST).write_text(damaged)
        assert not folders.is_complete(path) and not folders.is_intact(path)


def test_the_latest_complete_checkpoint_is_never_removed(folder: Path) -> None:
    for step in (2, 4, 6):
        ours(folder, step)
    (folder / "checkpoint-6/weights").unlink()
    assert folders.remove_old_checkpoints(folder, 1, ["checkpoint-6"], "r") == ["checkpoint-2"]
    assert folders.latest_complete(folder) == folder / "checkpoint-4"
    assert folders.remove_old_checkpoints(folder, 0, [], "r") == []


def test_leftovers_are_removed_and_a_complete_staging_folder_is_put_in_place(folder: Path) -> None:
    shutil.move(ours(folder, 2), folder / ".staging-checkpoint-2")
    shutil.move(ours(folder, 4), folder / ".staging-checkpoint-4")
    (folder / ".staging-checkpoint-4/weights").write_bytes(b"1234x")  # its size is right
    ours(folder, 6)
    shutil.copytree(folder / "checkpoint-6", folder / ".staging-checkpoint-6")
    (folder / ".staging-model").mkdir()
    (folder / ".removing-checkpoint-1").mkdir()
    assert folders.clean_leftovers(folder) == [
        "removed .removing-checkpoint-1, left by a run that was killed",
        "checkpoint-2 was complete but not yet in place when its run was killed: it is now",
        "removed .staging-checkpoint-4, left by a run that was killed",
        "removed .staging-checkpoint-6, left by a run that was killed",
        "removed .staging-model, left by a run that was killed",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-6"]
    assert folders.clean_leftovers(folder / "missing") == []
