"""LoopState without a Trainer: what a resumed loop continues with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.training_args import ParallelMode

from hf_recipes.checkpoints.loop_state import LoopState, SeededLengthGroups, read_counters, restore_counters

PROGRESS = {"tr_loss": [0.5], "total_loss": 9.5, "last_logged": 2, "pieces": [2, 1]}


class FakeTrainer:
    """The members of LoopTrainer."""

    def __init__(self, *, sft: bool = False, folder: Path = Path("out"), processes: int = 1) -> None:
        self.args = SimpleNamespace(
            world_size=processes,
            process_index=processes - 1,
            parallel_mode=ParallelMode.NOT_PARALLEL,
            output_dir=folder,
            seed=1,
            data_seed=None,
        )
        self.state = SimpleNamespace(global_step=3, max_steps=10, best_global_step=0, best_model_checkpoint=None)
        self.callback_handler = SimpleNamespace(callbacks=[object()])
        self.running_loss, self.total_loss, self.last_logged_step = torch.tensor(0.0), 0.0, 0
        self.sft_tokens: Any = 0 if sft else None
        self.sft_metrics: Any = {} if sft else None


def checkpoint(folder: Path, progress: Any = None) -> str:
    saved = folder / "checkpoint-3"
    saved.mkdir()
    if progress is not None:
        (saved / "progress.json").write_text(json.dumps(progress))
    return str(saved)


def test_progress_is_taken_once_and_only_from_a_checkpoint_that_has_some(folder: Path) -> None:
    loop = LoopState()
    for nothing, progress in ((None, None), (True, None), (checkpoint(folder), {})):
        loop.begin_training(nothing)
        assert loop.take_progress() == progress
    assert loop.resumed == str(folder / "checkpoint-3")  # upstream's
    (folder / "checkpoint-3/progress.json").write_text(json.dumps(PROGRESS))
    loop.begin_training(str(folder / "checkpoint-3"))
    assert loop.take_progress() == PROGRESS
    assert loop.take_progress() is None
    loop.begin_training(None)
    assert loop.resumed is None


@pytest.mark.parametrize("sft", [False, True])
def test_counters_come_back_as_they_were(sft: bool) -> None:
    trainer = FakeTrainer(sft=sft)
    trainer.running_loss.fill_(1.25)
    trainer.total_loss, trainer.last_logged_step = 7.5, 2
    if sft:
        trainer.sft_tokens, trainer.sft_metrics["entropy"] = 99, [0.5, 0.25]
    saved = json.loads(json.dumps(read_counters(trainer)))
    again = FakeTrainer(sft=sft)
    restore_counters(again, saved)
    assert (again.running_loss.item(), again.total_loss, again.last_logged_step) == (1.25, 7.5, 2)
    assert (again.sft_tokens, again.sft_metrics) == (trainer.sft_tokens, trainer.sft_metrics)


def test_each_rank_takes_its_own_part_of_the_loss_and_the_mean_if_their_number_changed() -> None:
    saved = {"tr_loss": [1.0, 2.0], "total_loss": 3.0, "last_logged": 2}
    trainer = FakeTrainer(processes=2)
    restore_counters(trainer, saved)
    assert (trainer.running_loss.item(), trainer.last_logged_step) == (2.0, 2)
    alone = FakeTrainer()
    restore_counters(alone, saved)
    assert (alone.running_loss.item(), alone.last_logged_step, alone.total_loss) == (1.5, 2, 3.0)


def test_the_training_loss_is_that_of_all_steps_whose_loss_is_known() -> None:
    loop, trainer = LoopState(), FakeTrainer()
    trainer.state.global_step, trainer.total_loss = 4, 0.0
    trainer.state.log_history = [{"loss": 9.0, "step": 2}, {"eval_loss": 1.0, "step": 2}, {"loss": 8.0, "step": 3}]
    loop.restore_logged_losses(trainer)
    assert (trainer.total_loss, loop.uncounted) == (2 * 9.0 + 8.0, 1)
    trainer.state.global_step, trainer.total_loss = 6, trainer.total_loss + 7.0 + 6.0
    assert loop.mean_loss(trainer) == (2 * 9.0 + 8.0 + 7.0 + 6.0) / 5


def test_a_resumed_run_is_finished_with_all_its_steps_or_after_stopping_early() -> None:
    loop, trainer = LoopState(), FakeTrainer()
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    trainer.callback_handler.callbacks.append(stopping)
    trainer.state.global_step = 10
    assert not loop.is_finished(trainer)  # it was not resumed: upstream's own affair
    loop.resumed = "checkpoint-3"
    assert loop.is_finished(trainer)
    trainer.state.global_step = 9
    assert not loop.is_finished(trainer)
    stopping.early_stopping_patience_counter = 2
    assert loop.is_finished(trainer)


def test_the_best_checkpoint_of_a_moved_run_is_found_under_its_new_folder(folder: Path) -> None:
    loop, trainer = LoopState(), FakeTrainer(folder=folder)
    trainer.state.best_global_step = 3
    best = checkpoint(folder)
    loop.find_best_checkpoint(trainer)
    assert trainer.state.best_model_checkpoint is None
    loop.resumed = best
    loop.find_best_checkpoint(trainer)
    assert trainer.state.best_model_checkpoint == best
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 5, None
    loop.find_best_checkpoint(trainer)
    assert trainer.state.best_model_checkpoint is None


def test_loaders_and_length_groups_draw_by_seed_and_epoch() -> None:
    args, loop = SimpleNamespace(seed=1, data_seed=None), LoopState()
    rows = [{"input_ids": list(range(1 + i % 7))} for i in range(40)]
    inner = LengthGroupedSampler(4, dataset=rows)
    groups = loop.seed_sampler(inner, args)
    assert isinstance(groups, SeededLengthGroups) and len(groups) == 40
    plain = torch.utils.data.SequentialSampler(rows)
    assert loop.seed_sampler(plain, args) is plain
    loader = torch.utils.data.DataLoader(rows)
    wrapper = SimpleNamespace(base_dataloader=loader)
    orders = []
    for epoch in (0, 1, 0):
        torch.manual_seed(epoch + 100)
        loop.seed_epoch(wrapper, args, epoch)
        orders.append(list(groups))
        assert loader.generator.initial_seed() == 1 + epoch
    assert orders[0] == orders[2] != orders[1]
    assert loop.seed_loader(loader, SimpleNamespace(seed=1, data_seed=7)) is loader
    assert loader.generator.initial_seed() == 7
