"""Which checkpoint is chosen, what makes one incomplete, and what the manifest notices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_recipes.checkpoints import folders, manifest, select


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


def upstreams(folder: Path, step: int) -> Path:
    """A small checkpoint as upstream leaves it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"a": torch.ones(3)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, path / name)
    (path / folders.TRAINER_STATE).write_text(json.dumps({"global_step": step}))
    return path


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_latest_complete_checkpoint_is_chosen_and_later_ones_are_skipped_with_their_errors(folder: Path) -> None:
    for step in (2, 4, 6, 10):
        ours(folder, step)
    (folder / "checkpoint-10/weights").write_bytes(b"1234")
    (folder / "checkpoint-6/weights").write_bytes(b"12346")
    chosen, skipped = select.choose_checkpoint(folder)
    assert skipped == [
        "checkpoint-10: weights has 4 of 5 bytes",
        "checkpoint-6: weights has other content than was written",
    ]
    assert chosen is not None and chosen.skipped == tuple(skipped)
    assert (chosen.path, chosen.step, chosen.run) == (str(folder / "checkpoint-4"), 4, "r")


def test_nothing_is_chosen_from_an_empty_or_missing_folder_or_one_of_damaged_checkpoints(folder: Path) -> None:
    assert select.choose_checkpoint(folder) == (None, [])
    assert select.choose_checkpoint(folder / "missing") == (None, [])
    (ours(folder, 2) / "weights").unlink()
    assert select.choose_checkpoint(folder) == (None, ["checkpoint-2: weights is missing"])


def test_the_run_that_saved_last_comes_first_whatever_its_steps(folder: Path) -> None:
    ours(folder, 30, run="old", saved="2026-01-01")
    ours(folder, 10, run="new", saved="2026-01-03")
    ours(folder, 20, run="new", saved="2026-01-02")
    upstreams(folder, 99)
    (folder / "checkpoint-x").mkdir()
    (folder / "checkpoint-50").write_text("a file")
    assert [path.name for path in folders.list_checkpoints(folder)] == [
        *("checkpoint-20", "checkpoint-10", "checkpoint-30", "checkpoint-99")
    ]


def test_weights_alone_are_enough_only_if_that_is_allowed(folder: Path) -> None:
    path = ours(folder, 2, state=())
    assert select.find_errors(path) == [select.WEIGHTS_ONLY]
    assert select.find_errors(path, without_state=True) == []
    assert select.choose_checkpoint(folder, without_state=True)[0] is not None


# --- what is wrong with one ------------------------------------------------------------------------------------------


def test_a_checkpoint_of_ours_without_its_manifest_is_incomplete(folder: Path) -> None:
    path = ours(folder, 2)
    (path / manifest.MANIFEST).unlink()
    assert select.find_errors(path) == ["manifest.json is missing"]
    assert not folders.is_complete(path) and not folders.is_intact(path)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("trainer_state.json", None, "trainer_state.json is missing"),
        ("trainer_state.json", b"[]", "trainer_state.json cannot be read (it has no global_step)"),
        ("trainer_state.json", b'{"global_step": "2"}', "trainer_state.json cannot be read (it has no global_step)"),
        ("model.safetensors", None, "there are no weights (*.safetensors)"),
        ("model.safetensors", b"", "model.safetensors is truncated"),
        ("model.safetensors", b"\xff" * 64, "model.safetensors is truncated"),
        ("optimizer.pt", None, "optimizer.pt is missing: upstream would silently resume with a new one"),
        ("scheduler.pt", None, "scheduler.pt is missing: upstream would silently resume with a new one"),
        ("scheduler.pt", b"x", "scheduler.pt is truncated"),
        ("rng_state.pth", None, "rng_state.pth is missing"),
        ("rng_state.pth", b"x", "rng_state.pth is truncated"),
    ],
)
def test_a_checkpoint_of_upstream_is_checked_by_the_files_that_upstream_reads(
    folder: Path, name: str, content: bytes | None, error: str
) -> None:
    path = upstreams(folder, 2)
    assert select.find_errors(path) == []
    (path / name).unlink() if content is None else (path / name).write_bytes(content)
    assert select.find_errors(path) == [error]
    alone = name in ("trainer_state.json", "model.safetensors")
    assert select.find_errors(path, without_state=True) == ([error] if alone else [])
    assert select.find_errors(path, sharded=True) == ([error] if name == "trainer_state.json" else [])


def test_one_byte_more_or_less_in_upstreams_weights_is_noticed(folder: Path) -> None:
    path = upstreams(folder, 2) / "model.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"x"):
        path.write_bytes(damaged)
        assert select.find_errors(path.parent) == ["model.safetensors is truncated"]


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_a_manifest_reads_back_and_knows_its_bytes(folder: Path) -> None:
    body = manifest.read_manifest(ours(folder, 2, run="abc"))
    assert body is not None
    assert (body["schema"], body["hash"], body["run"], body["state"]) == (1, "xxh3_128", "abc", ["optimizer"])
    assert set(body["files"]) == {"weights", "progress.json", "trainer_state.json"}
    assert manifest.total_bytes(body) == 5 + 2 + len('{"global_step": 2}')
    assert manifest.read_manifest(folder) is None


@pytest.mark.parametrize("change", [{"run": "other"}, {"seal": "0"}, {"more": 1}, {"hash": "none"}])
def test_a_manifest_that_was_changed_is_an_error(folder: Path, change: dict[str, Any]) -> None:
    path = ours(folder, 2)
    body = json.loads((path / manifest.MANIFEST).read_text())
    (path / manifest.MANIFEST).write_text(json.dumps({**body, **change}))
    with pytest.raises(manifest.ManifestError) as caught:
        manifest.read_manifest(path)
    assert str(caught.value) == "manifest.json has other content than was written"
    assert select.find_errors(path) == [str(caught.value)]


@pytest.mark.parametrize("content", ["{", "[]", "1", ""])
def test_a_manifest_that_cannot_be_read_is_an_error(folder: Path, content: str) -> None:
    path = ours(folder, 2)
    (path / manifest.MANIFEST).write_text(content)
    with pytest.raises(manifest.ManifestError, match=r"^manifest\.json (cannot be read|has other content)"):
        manifest.read_manifest(path)
    assert not folders.is_complete(path)


def test_sizes_alone_do_not_notice_a_changed_byte_and_digests_do(folder: Path) -> None:
    path = ours(folder, 2)
    (path / "weights").write_bytes(b"12346")
    body = manifest.read_manifest(path)
    assert body is not None
    assert list(manifest.find_errors(path, body, hashes=False)) == []
    assert list(manifest.find_errors(path, body)) == ["weights has other content than was written"]
    assert list(manifest.find_errors(path, {**body, "hash": "of tomorrow"})) == []  # an unknown one: sizes
    assert folders.is_complete(path) and not folders.is_intact(path)
    (path / "weights").unlink()
    (path / "weights").mkdir()
    assert [error.partition(" has ")[0] for error in manifest.find_errors(path, body)] == ["weights"]


def test_files_in_folders_are_listed_and_checked(folder: Path) -> None:
    path = folder / "checkpoint-2"
    (path / "inner").mkdir(parents=True)
    (path / "inner/a").write_text("a")
    files = manifest.flush_files(path)
    assert files == {"inner/a": {"bytes": 1, "digest": manifest.compute_digest(path / "inner/a")}}
    body = manifest.write_manifest(path, {}, files)
    assert list(manifest.find_errors(path, body)) == []
    (path / "inner/a").write_text("b")
    assert list(manifest.find_errors(path, body)) == ["inner/a has other content than was written"]


# --- removal and leftovers -------------------------------------------------------------------------------------------


def test_the_latest_complete_checkpoint_is_never_removed(folder: Path) -> None:
    for step in (2, 4, 6):
        ours(folder, step)
    (folder / "checkpoint-6/weights").unlink()
    assert folders.remove_old_checkpoints(folder, 1, ["checkpoint-6"]) == ["checkpoint-2"]
    assert folders.latest_complete(folder) == folder / "checkpoint-4"
    assert folders.remove_old_checkpoints(folder, 0, []) == []


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
