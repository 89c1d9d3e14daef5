"""What a checkpoint's files hold: code is found and never run, lost numbers are counted, and each is one message."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from hf_recipes.checkpoints import folders, manifest, select
from hf_recipes.checkpoints.folders import PROGRESS, TRAINER_STATE
from hf_recipes.common import tensor_values

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_lost_numbers_are_counted_in_every_format(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.randn(300, 7).to(dtype)
    numbers[0, :3], numbers[1, 0] = torch.tensor([NAN, INF, -INF]), 0.0
    large = dtype != torch.float16
    numbers[2, :2] = torch.tensor([1e30, -1e17]) if large else torch.tensor([65504.0, -65504.0])
    path = tmp_path / "model.safetensors"
    save_file({"a": numbers, "ids": torch.arange(9)}, path)
    assert tensor_values.count_in_safetensors(path) == (3, int(large))
    torch.save({"state": {0: {"exp_avg": numbers, "step": torch.tensor(1.0)}}}, tmp_path / "optimizer.pt")
    assert tensor_values.count_in_torch_file(tmp_path / "optimizer.pt") == 3


def checkpoint(folder: Path, *, finite: bool = True, weights: Any = None, state: Any = None) -> Path:
    """As CheckpointWriter leaves it."""
    path = folder / "checkpoint-2"
    path.mkdir()
    save_file({"w": torch.ones(8) if weights is None else weights}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"exp_avg": torch.ones(4) if state is None else state}, path / name)
    (path / PROGRESS).write_text(json.dumps({"tr_loss": [0.0], "total_loss": 0.0, "last_logged": 0}))
    (path / TRAINER_STATE).write_text(json.dumps({"global_step": 2, "log_history": [{"step": 2}]}))
    write(path, finite=finite)
    return path


def write(path: Path, **more: Any) -> None:
    facts = {"run": "r", "session": 1, "saved": "2026", "state": ["optimizer"], "world_size": 1, **more}
    manifest.write_manifest(path, facts, manifest.flush_files(path))


def seal(path: Path, body: Any, text: str | None = None) -> None:
    """A manifest whose seal is right, whatever it says."""
    whole = json.dumps({k: v for k, v in body.items() if k != "seal"}, sort_keys=True, ensure_ascii=False)
    body["seal"] = xxhash.xxh3_128(whole.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(body))


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def with_code(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Code(), 2))
        archive.writestr("archive/version", "3\n")


CODE, NOT_SAVED = "holds code (posix.system), which is not run", "is no file of torch.save"
DEEP = "[" * 100_000 + "]" * 100_000


def tampered(name: str, damage: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        damage(path / name)
        write(path)  # all digests are right

    return change


def manifest_with(**odd: Any) -> Callable[[Path], None]:
    return lambda path: seal(path, {**json.loads((path / "manifest.json").read_text()), **odd})


def text_of(text: str | bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text)


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, -8]}}).encode()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (tampered("optimizer.pt", with_code), f"optimizer.pt {CODE}"),
        (tampered("scheduler.pt", with_code), f"scheduler.pt {CODE}"),
        (tampered("rng_state.pth", with_code), f"rng_state.pth {CODE}"),
        (tampered("scaler.pt", with_code), f"scaler.pt {CODE}"),
        (tampered("optimizer.pt", text_of("garbage")), f"optimizer.pt {NOT_SAVED}"),
        (tampered("optimizer.pt", lambda p: zipfile.ZipFile(p, "w").close()), f"optimizer.pt {NOT_SAVED}"),
        (lambda path: torch.save({}, path / "scaler.pt"), "scaler.pt was not written with the checkpoint"),
        (lambda path: with_code(path / "pytorch_model.bin"), "pytorch_model.bin was not written with the checkpoint"),
        (tampered(TRAINER_STATE, text_of("[]")), "trainer_state.json cannot be read (it has no global_step)"),
        (tampered(TRAINER_STATE, text_of(DEEP)), "trainer_state.json cannot be read (it is nested too deeply)"),
        (tampered(TRAINER_STATE, text_of(b"\xff\xfe{")), "trainer_state.json cannot be read ('utf-8' codec"),
        (tampered(TRAINER_STATE, text_of('{"global_step": 1%s}' % ("0" * 5000))), "trainer_state.json cannot be read"),
        (tampered(TRAINER_STATE, text_of('{"global_step": 2, "log_history": [3]}')), "it has no usable log_history"),
        (tampered("model.safetensors", text_of(b"\xff" * 90)), "model.safetensors cannot be read (its header is too"),
        (
            tampered("model.safetensors", text_of(len(HEADER).to_bytes(8, "little") + HEADER)),
            "model.safetensors cannot be read (its header cannot be read)",
        ),
        (lambda path: make_fifo(path / "manifest.json"), "manifest.json is no file of a checkpoint"),
        (lambda path: (path / "manifest.json").write_text(DEEP), "manifest.json cannot be read (nested too deeply)"),
        (manifest_with(files=["a"]), "manifest.json has no usable files"),
        (manifest_with(files={"../x": {"bytes": 1, "digest": ""}}), "manifest.json has no usable files"),
        (manifest_with(files={"x": {"bytes": NAN, "digest": ""}}), "manifest.json has no usable files"),
        (manifest_with(run=3), "manifest.json has no usable run"),
        (manifest_with(session=10**30), "manifest.json has no usable session"),
        (manifest_with(world_size=NAN), "manifest.json has no usable world_size"),
        (manifest_with(recipe=[]), "manifest.json has no usable recipe"),
        (manifest_with(recipe={"trainer": 3}), "manifest.json has no usable recipe"),
        (manifest_with(step=3), "trainer_state.json is of step 2, manifest.json of step 3"),
    ],
)
def test_a_tampered_checkpoint_is_not_used_and_its_file_is_named(
    folder: Path, change: Callable[[Path], None], error: str
) -> None:
    path = checkpoint(folder)
    change(path)
    found = select.find_errors(path)
    assert any(error in one for one in found), found
    assert select.choose_checkpoint(folder)[0] is None
    folders.list_checkpoints(folder)
    assert not list(folder.rglob("PWNED")) and not Path("PWNED").exists()


@pytest.mark.parametrize(
    ("weights", "state", "error"),
    [
        (torch.tensor([1.0, NAN, INF]), None, "2 weights are not finite (model.safetensors)"),
        (torch.tensor([1.0, 1e30]), None, "1 weights are above 1e18 (model.safetensors)"),
        (None, torch.tensor([INF]), "1 numbers are not finite (optimizer.pt)"),
    ],
)
def test_a_state_that_is_lost_is_not_resumed(folder: Path, weights: Any, state: Any, error: str) -> None:
    path = checkpoint(folder, finite=False, weights=weights, state=state)
    assert select.find_errors(path) == [error]
    write(path, finite=True)  # as verify reads it: every value, whatever the manifest says
    assert select.find_errors(path) == [] and select.find_errors(path, without_state=True, values=True) == [error]


def test_a_checkpoint_whose_next_step_showed_that_it_is_ruined_is_passed_over(folder: Path) -> None:
    path = checkpoint(folder)
    assert select.find_errors(path) == []
    manifest.mark_ruined(path, "the loss of step 3 is not finite")
    assert select.find_errors(path) == ["its weights were ruined: the loss of step 3 is not finite"]
