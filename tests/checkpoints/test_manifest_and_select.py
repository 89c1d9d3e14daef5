"""A manifest detects every change of a checkpoint's files; the latest complete checkpoint is the one that is chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_recipes.checkpoints import manifest, select
from hf_recipes.checkpoints.folders import PROGRESS, TRAINER_STATE

FACTS = {"step": 4, "run": "abc", "saved": "2026-01-01T00:00:00+00:00", "state": ["optimizer"], "world_size": 1}


def _upstreams(folder: Path, step: int) -> Path:
    """A checkpoint as upstream's Trainer writes it."""
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(3), "b": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"x": 1}, folder / name)
    (folder / TRAINER_STATE).write_text(json.dumps({"global_step": step}))
    return folder


def _ours(folder: Path, step: int, **facts: Any) -> Path:
    """The same with a manifest."""
    _upstreams(folder, step)
    (folder / "inner").mkdir()
    (folder / "inner/notes.txt").write_text("deeper")
    manifest.write_manifest(folder, {**FACTS, "step": step, **facts}, manifest.flush_files(folder))
    return folder


# the manifest -------------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_back_as_it_was_written_and_knows_every_file(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4)
    body = manifest.read_manifest(folder)
    assert body is not None
    assert {name: body[name] for name in FACTS} == FACTS
    assert (body["schema"], body["hash"]) == (1, "xxh3_128")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(body["files"]) == files - {"manifest.json"} and "inner/notes.txt" in files
    assert body["files"]["inner/notes.txt"]["bytes"] == 6
    assert manifest.total_bytes(body) == sum((folder / name).stat().st_size for name in body["files"])
    assert list(manifest.find_errors(folder, body)) == []


def test_a_digest_is_of_the_whole_file_however_long_it_is(tmp_path: Path) -> None:
    import xxhash

    content = bytes(range(256)) * (2**15)  # two pieces of 4 MiB
    (tmp_path / "long").write_bytes(content)
    assert manifest.compute_digest(tmp_path / "long") == xxhash.xxh3_128(content).hexdigest()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "error", "by_size"),
    [
        (_flip, "inner/notes.txt has other content than was written", False),
        (_append, "inner/notes.txt has 7 of 6 bytes", True),
        (lambda path: path.write_bytes(b""), "inner/notes.txt has 0 of 6 bytes", True),
        (Path.unlink, "inner/notes.txt is missing", True),
    ],
)
def test_every_damage_of_a_file_is_found_by_its_name(
    tmp_path: Path, damage: Callable[[Path], Any], error: str, by_size: bool
) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4)
    damage(folder / "inner/notes.txt")
    body = manifest.read_manifest(folder)
    assert body is not None
    assert list(manifest.find_errors(folder, body)) == [error]
    assert list(manifest.find_errors(folder, body, hashes=False)) == ([error] if by_size else [])
    assert select.find_errors(folder) == [error]


def test_a_folder_in_a_files_place_and_a_file_in_a_folders_place_are_found(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4)
    body = manifest.read_manifest(folder)
    assert body is not None
    body["files"]["inner"] = {"bytes": (folder / "inner").stat().st_size, "digest": ""}  # a folder of the right size
    assert [error.split()[0] for error in manifest.find_errors(folder, body)] == ["inner"]
    body["files"] = {"inner/notes.txt/more": {"bytes": 1, "digest": ""}}
    assert list(manifest.find_errors(folder, body)) == ["inner/notes.txt/more cannot be read (Not a directory)"]


def test_digests_of_another_algorithm_are_not_compared(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4)
    _flip(folder / "inner/notes.txt")
    body = manifest.read_manifest(folder)
    assert body is not None
    assert list(manifest.find_errors(folder, {**body, "hash": "sha256"})) == []


@pytest.mark.parametrize("text", ["{", "[]", '"text"', '{"files": {}}', '{"seal": "0"}'])
def test_a_manifest_that_was_not_written_so_cannot_be_trusted(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(manifest.ManifestError):
        manifest.read_manifest(tmp_path)


def test_one_changed_value_of_a_manifest_is_detected(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(manifest.ManifestError, match="other content than was written"):
        manifest.read_manifest(folder)
    assert select.find_errors(folder) == ["manifest.json has other content than was written"]


def test_without_a_manifest_there_is_none(tmp_path: Path) -> None:
    assert manifest.read_manifest(tmp_path) is None


# the choice ---------------------------------------------------------------------------------------------------------


def test_the_latest_complete_checkpoint_is_chosen_and_later_ones_are_named_with_their_errors(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16):
        _ours(tmp_path / f"checkpoint-{step}", step)
    _append(tmp_path / "checkpoint-16/optimizer.pt")
    (tmp_path / "checkpoint-12/manifest.json").write_text("{")
    chosen, skipped = select.choose_checkpoint(tmp_path)
    assert chosen is not None
    assert (chosen.path, chosen.step, chosen.run) == (str(tmp_path / "checkpoint-8"), 8, "abc")
    assert [line.partition(":")[0] for line in skipped] == ["checkpoint-16", "checkpoint-12"]
    assert chosen.skipped == tuple(skipped)
    assert "optimizer.pt has " in skipped[0] and "manifest.json cannot be read" in skipped[1]


def test_without_a_complete_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert select.choose_checkpoint(tmp_path) == (None, [])
    _append(_ours(tmp_path / "checkpoint-4", 4) / "scheduler.pt")
    chosen, skipped = select.choose_checkpoint(tmp_path)
    assert chosen is None and len(skipped) == 1


def test_a_checkpoint_of_weights_only_is_complete_for_weights(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4, state=[])
    assert select.find_errors(folder) == [select.WEIGHTS_ONLY]
    assert select.find_errors(folder, without_state=True) == []
    assert select.choose_checkpoint(tmp_path)[0] is None
    assert select.choose_checkpoint(tmp_path, without_state=True)[0] is not None


def test_upstreams_checkpoint_is_resumed_and_has_no_run(tmp_path: Path) -> None:
    folder = _upstreams(tmp_path / "checkpoint-4", 4)
    assert select.find_errors(folder) == []
    chosen, skipped = select.choose_checkpoint(tmp_path)
    assert chosen is not None and skipped == []
    assert (chosen.step, chosen.run, chosen.manifest) == (4, None, None)


OPTIMIZER, SCHEDULER = (f"{name}.pt is missing: upstream would silently resume" for name in ("optimizer", "scheduler"))


@pytest.mark.parametrize(
    ("name", "content", "error", "needs_state"),
    [
        (TRAINER_STATE, None, f"{TRAINER_STATE} is missing", False),
        (TRAINER_STATE, b"{", f"{TRAINER_STATE} cannot be read", False),
        (TRAINER_STATE, b"[1]", f"{TRAINER_STATE} cannot be read (it has no global_step)", False),
        (TRAINER_STATE, b'{"global_step": "4"}', f"{TRAINER_STATE} cannot be read (it has no global_step)", False),
        ("model.safetensors", None, "there are no weights (*.safetensors)", False),
        ("model.safetensors", b"", "model.safetensors is truncated", False),
        ("optimizer.pt", None, OPTIMIZER, True),
        ("optimizer.pt", b"PK", "optimizer.pt is truncated", True),
        ("scheduler.pt", None, SCHEDULER, True),
        ("rng_state.pth", None, "rng_state.pth is missing", True),
        ("rng_state.pth", b"no archive", "rng_state.pth is truncated", True),
    ],
)
def test_upstreams_files_are_looked_at_where_there_is_no_manifest(
    tmp_path: Path, name: str, content: bytes | None, error: str, needs_state: bool
) -> None:
    folder = _upstreams(tmp_path / "checkpoint-4", 4)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    [found] = select.find_errors(folder)
    assert found.startswith(error)
    assert bool(select.find_errors(folder, without_state=True)) is not needs_state


def test_the_random_states_of_several_ranks_are_each_looked_at(tmp_path: Path) -> None:
    folder = _upstreams(tmp_path / "checkpoint-4", 4)
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert select.find_errors(folder) == []
    (folder / "rng_state_1.pth").write_bytes(b"PK")
    assert select.find_errors(folder) == ["rng_state_1.pth is truncated"]


def test_a_safetensors_file_is_complete_if_its_last_tensor_ends_with_it(tmp_path: Path) -> None:
    folder = _upstreams(tmp_path / "checkpoint-4", 4)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x", whole[:5], (2**40).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(content)
        assert select.find_errors(folder) == ["model.safetensors is truncated"]
    save_file({}, path, {"format": "pt"})  # no tensor at all
    assert select.find_errors(folder) == []
    path.write_bytes(whole)
    (folder / "more.safetensors").write_bytes(whole[:-1])
    assert select.find_errors(folder) == ["more.safetensors is truncated"]


def test_every_file_and_folder_is_flushed_and_every_handle_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _upstreams(tmp_path / "checkpoint-4", 4)
    (folder / "inner").mkdir()
    (folder / "inner/notes.txt").write_text("deeper")
    opened, flushed, closed = dict[int, Path](), list[Path](), list[Path]()
    upstreams_open, upstreams_close = os.open, os.close

    def opens(path: Any, *args: Any, **options: Any) -> int:
        handle = upstreams_open(path, *args, **options)
        opened[handle] = Path(path)
        return handle

    def closes(handle: int) -> None:
        closed.append(opened[handle])
        upstreams_close(handle)

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "close", closes)
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(opened[handle]))
    files = manifest.flush_files(folder)
    assert {path.relative_to(folder).as_posix() for path in flushed} == {*files, "inner"}
    flushed.clear()
    body = manifest.write_manifest(folder, FACTS, files)
    assert flushed == [folder / "manifest.json", folder]  # the folder's entry last
    monkeypatch.undo()
    assert len(closed) == len(files) + 3 and body == manifest.read_manifest(folder)


def test_a_checkpoint_of_ours_without_its_manifest_is_not_complete(tmp_path: Path) -> None:
    folder = _ours(tmp_path / "checkpoint-4", 4)
    (folder / PROGRESS).write_text("{}")
    (folder / "manifest.json").unlink()
    assert select.find_errors(folder) == ["manifest.json is missing"]


def test_the_seal_is_of_the_text_as_it_is_written_whatever_its_letters(tmp_path: Path) -> None:
    import xxhash

    body = manifest.write_manifest(tmp_path, {**FACTS, "recipe": {"path": "über.yaml", "a": 1}}, {})
    rest = {key: value for key, value in body.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False)
    assert body["seal"] == xxhash.xxh3_128(text.encode()).hexdigest()
    assert "über" in (tmp_path / "manifest.json").read_text(encoding="utf-8")


def test_weights_of_upstreams_checkpoint_are_checked(tmp_path: Path) -> None:
    (_upstreams(tmp_path / "checkpoint-4", 4) / "model.safetensors").write_bytes(b"")
    assert select.choose_checkpoint(tmp_path)[0] is None
