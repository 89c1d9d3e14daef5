"""CheckpointWriter without a Trainer: what is written, what fails, what stays."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.trainer_callback import ExportableState, TrainerState

from hf_recipes.checkpoints import disk_space, folders, manifest, select
from hf_recipes.checkpoints.saving import CheckpointWriter
from hf_recipes.errors import OutputDirError


class Counting(ExportableState):
    """A callback with a state of its own."""

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"count": 3}}


class FakeTrainer:
    """The members of SavingTrainer; its weights are one small file."""

    def __init__(self, folder: Path, **args: Any) -> None:
        values = {"save_only_model": False, "save_total_limit": None, "should_save": True, "process_index": 0}
        ranks = {"world_size": 1, "local_process_index": 0, "device": torch.device("cpu")}
        self.args = SimpleNamespace(output_dir=str(folder), **{**values, **ranks, **args})
        self.state = TrainerState()
        self.control, self.callback_handler = Counting(), SimpleNamespace(callbacks=[Counting(), object()])
        self.accelerator = SimpleNamespace(scaler=None, unwrap_model=lambda model, **_: model)
        self.model: Any = torch.nn.Linear(10, 10)
        self.optimizer: Any = SimpleNamespace(state={0: {"exp_avg": torch.zeros(100), "steps": [torch.zeros(1)]}})
        self.is_sharded = False
        self.weights = b"weights"
        self.problem: Exception | None = None

    def store_flos(self) -> None: ...

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(self.weights)

    def save_training_state(self, folder: str) -> None:
        if self.problem is not None:
            raise self.problem
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"name": name}, Path(folder, name))


def save(writer: CheckpointWriter, trainer: FakeTrainer, step: int) -> Path:
    trainer.state.global_step = step
    folder = Path(trainer.args.output_dir)
    writer.save(trainer, folder, {"total_loss": 1.5})
    return folder / f"checkpoint-{step}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_has_upstreams_files_the_progress_and_a_manifest_of_the_run(folder: Path) -> None:
    asked: list[Any] = []
    writer = CheckpointWriter(facts=lambda args: asked.append(args) or {"run": "abc", "recipe": {"a": 1}})
    trainer = FakeTrainer(folder)
    saved = save(writer, trainer, 4)
    state = ["optimizer.pt", "rng_state.pth", "scheduler.pt"]
    assert names(saved) == sorted(["manifest.json", "model.safetensors", *state, "progress.json", "trainer_state.json"])
    body = manifest.read_manifest(saved)
    assert body is not None and select.find_errors(saved) == []
    assert (body["run"], body["recipe"], body["step"], body["world_size"]) == ("abc", {"a": 1}, 4, 1)
    assert body["state"] == ["optimizer", "scheduler", "rng"]
    assert json.loads((saved / "progress.json").read_text()) == {"total_loss": 1.5}
    states = json.loads((saved / "trainer_state.json").read_text())["stateful_callbacks"]
    assert states == {"Counting": {"args": {}, "attributes": {"count": 3}}}
    save(writer, trainer, 5)
    assert asked == [trainer.args]  # the run's facts are made once
    assert names(folder) == ["checkpoint-4", "checkpoint-5"]


def test_weights_alone_and_a_loss_scaler_are_named_in_the_manifest(folder: Path) -> None:
    trainer = FakeTrainer(folder, save_only_model=True)
    saved = save(CheckpointWriter(), trainer, 1)
    body = manifest.read_manifest(saved)
    assert body is not None and body["state"] == [] and not (saved / "optimizer.pt").exists()
    trainer = FakeTrainer(folder)
    trainer.accelerator.scaler = object()
    body = manifest.read_manifest(save(CheckpointWriter(), trainer, 2))
    assert body is not None and body["state"] == ["optimizer", "scheduler", "scaler", "rng"]


def test_the_best_checkpoint_is_named_as_it_will_be_called_and_is_never_removed(folder: Path) -> None:
    writer, trainer = CheckpointWriter(), FakeTrainer(folder, save_total_limit=1)
    trainer.state.best_global_step = 2
    saved = save(writer, trainer, 2)
    state = json.loads((saved / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(saved)
    save(writer, trainer, 4)
    save(writer, trainer, 6)
    assert names(folder) == ["checkpoint-2", "checkpoint-6"]
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 5, None  # is not there
    save(writer, trainer, 8)
    assert trainer.state.best_model_checkpoint is None
    assert names(folder) == ["checkpoint-8"]


def test_a_checkpoint_of_the_same_step_is_replaced_by_one_rename(folder: Path) -> None:
    writer, trainer = CheckpointWriter(), FakeTrainer(folder)
    save(writer, trainer, 4)
    trainer.weights = b"other"
    assert (save(writer, trainer, 4) / "model.safetensors").read_bytes() == b"other"


def test_a_state_that_is_lost_is_not_written_and_nothing_is_removed_for_it(folder: Path) -> None:
    lines: list[str] = []
    writer, trainer = CheckpointWriter(say=lines.append), FakeTrainer(folder, save_total_limit=1)
    save(writer, trainer, 2)
    with torch.no_grad():
        trainer.model.weight[0, :3] = math.nan
    save(writer, trainer, 4)
    with torch.no_grad():
        trainer.model.weight[0, :3] = 1e30
    save(writer, trainer, 6)
    trainer.model = torch.nn.Linear(10, 10)
    trainer.optimizer.state[0]["exp_avg"][7] = math.inf
    save(writer, trainer, 8)
    assert names(folder) == ["checkpoint-2"]
    assert lines == [
        "warning: checkpoint-4 is not written, since 3 weights are not finite",
        "warning: checkpoint-6 is not written, since 3 weights are above 1e18",
        "warning: checkpoint-8 is not written, since 1 numbers of the optimizer are not finite",
    ]


def test_a_checkpoint_that_the_straight_run_would_not_write_removes_none(folder: Path) -> None:
    writer, trainer = CheckpointWriter(), FakeTrainer(folder, save_total_limit=1)
    save(writer, trainer, 2)
    trainer.state.global_step = 3
    assert writer.save(trainer, folder, {"work": {"extra": True}})
    assert names(folder) == ["checkpoint-2", "checkpoint-3"]
    save(writer, trainer, 4)
    assert names(folder) == ["checkpoint-4"]


def test_a_failure_while_writing_leaves_nothing_and_is_not_reported_as_a_full_disk(folder: Path) -> None:
    writer, trainer = CheckpointWriter(), FakeTrainer(folder)
    save(writer, trainer, 2)
    trainer.problem = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        save(writer, trainer, 4)
    assert names(folder) == ["checkpoint-2"]


def test_a_disk_that_fills_up_is_one_message_with_the_checkpoint_to_continue_from(folder: Path) -> None:
    writer, trainer = CheckpointWriter(location="a.yaml:3"), FakeTrainer(folder)
    trainer.problem = OSError(errno.ENOSPC, "No space left on device")
    what = f"{str(folder / 'checkpoint-4')!r} cannot be written: its disk is full; "
    with pytest.raises(OutputDirError) as caught:
        save(writer, trainer, 4)
    assert str(caught.value) == (
        f"a.yaml:3: {what}there is no earlier checkpoint; make room there; the same command with --resume then "
        "continues from the start"
    )
    trainer.problem = None
    save(writer, trainer, 2)
    trainer.problem = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputDirError) as caught:
        save(writer, trainer, 4)
    assert str(caught.value) == (
        f"a.yaml:3: {what}checkpoint-2 is complete; make room there; the same command with --resume then continues "
        "from checkpoint-2"
    )


def test_the_free_space_is_compared_with_weights_and_states_and_then_with_the_last_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(disk_space, "find_shortage", lambda folder, size: needed.append(size))
    writer, trainer = CheckpointWriter(), FakeTrainer(folder)
    save(writer, trainer, 1)
    assert needed == [4 * (110 + 101)]
    trainer.weights = b"w" * 50000
    save(writer, trainer, 2)
    save(writer, trainer, 3)
    assert 4 * 211 < needed[1] < 50000 < needed[2]
    trainer = FakeTrainer(folder, save_only_model=True)
    trainer.model.get_base_model = lambda: None  # an adapter: only what is trained is saved
    trainer.model.bias.requires_grad_(False)
    save(CheckpointWriter(), trainer, 4)
    assert needed[3] == 4 * 100


def test_a_shortage_is_found_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "find_shortage", lambda folder, size: "it needs 2 MiB and 1 MiB are free")
    with pytest.raises(OutputDirError) as caught:
        save(CheckpointWriter(), FakeTrainer(folder), 4)
    assert ": it needs 2 MiB and 1 MiB are free; there is no earlier checkpoint; " in str(caught.value)
    assert names(folder) == []


def test_another_process_of_this_node_writes_its_random_state_only(folder: Path) -> None:
    trainer = FakeTrainer(folder, should_save=False, local_process_index=1, process_index=1)
    (folder / ".staging-checkpoint-4").mkdir()
    save(CheckpointWriter(), trainer, 4)
    assert names(folder) == [".staging-checkpoint-4"]
    assert "manifest.json" not in names(folder / ".staging-checkpoint-4")


def test_the_final_model_is_put_in_place_file_by_file_and_the_best_checkpoint_stays(folder: Path) -> None:
    writer, trainer = CheckpointWriter(), FakeTrainer(folder, save_total_limit=1)
    for step in (2, 4):
        best = save(writer, trainer, step)
        trainer.state.best_global_step, trainer.state.best_model_checkpoint = step, str(best)
        trainer.args.save_total_limit = None
    trainer.args.save_total_limit, trainer.state.best_model_checkpoint = 1, str(folder / "checkpoint-2")
    (folder / "model.safetensors").write_bytes(b"old")
    writer.save_final(trainer)
    writer.remove_all_but_best(trainer)
    assert names(folder) == ["checkpoint-2", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_upstreams_last_rotation_is_switched_off_for_a_moment(folder: Path) -> None:
    args = FakeTrainer(folder, save_total_limit=1).args
    with pytest.raises(ValueError), CheckpointWriter().keep_last_checkpoint(args):
        assert args.save_total_limit is None
        raise ValueError
    assert args.save_total_limit == 1


def test_a_killed_runs_leftovers_are_no_checkpoints(folder: Path) -> None:
    saved = save(CheckpointWriter(), FakeTrainer(folder), 4)
    os.rename(saved, folder / ".removing-checkpoint-4")
    assert folders.list_checkpoints(folder) == [] and folders.latest_complete(folder) is None
    assert folders.list_leftovers(folder) == [folder / ".removing-checkpoint-4"]
