"""What a resumed run needs so that it equals an uninterrupted one, where upstream's memory or random numbers get lost.

- Progress that upstream keeps in memory only (the loss since the last log line, SFTTrainer's counters) is in each
  checkpoint's progress.json: logged losses of a resumed run are those of the uninterrupted one.
- train_loss is that of all steps and of all processes. (5.23 divides a session's sum, of one process, by that session's
  steps.) A checkpoint without progress.json gives the losses that were logged; steps after the last one are left out.
- Loaders draw their workers' seeds from a generator of their own, seeded by (seed, epoch): with persistent workers a
  resumed run makes other draws than an uninterrupted one, and an evaluation would change the training's dropout.
- group_by_length shuffles by (seed, epoch), not by whatever the global generator holds (transformers 5.23
  trainer.py:1100 gives the sampler none).
- A run that has all its steps, or stopped early, makes no further step (5.23 makes one, if it resumes inside an epoch).

`LoopState` needs no Trainer: training/overrides.py calls it, and a test gives it any object with the members of
`LoopTrainer`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, nested_gather

from hf_recipes.checkpoints import folders
from hf_recipes.checkpoints.folders import PROGRESS
from hf_recipes.common.worker_signals import WorkerStart, follow_loader

COUNTERS = ("tr_loss", "total_loss", "last_logged")
WORK = {"stage": "done", "due": None, "extra": False, "norm": None, "rate": None}  # training/step_work.py


class LoopTrainer(Protocol):
    """What `LoopState` reads and sets of a trainer: upstream's counters, which it keeps in memory only."""

    args: Any
    state: Any
    callback_handler: Any
    total_loss: Any  # up to the last log line, over all steps
    last_logged_step: Any
    sft_tokens: Any  # SFTTrainer's count of trained tokens; None for Trainer

    @property
    def running_loss(self) -> Any: ...  # a tensor: this rank's, since the last log line

    @property
    def sft_metrics(self) -> Any: ...  # SFTTrainer's metrics since the last log line; None for Trainer


class SeededLengthGroups(torch.utils.data.Sampler[int]):
    """LengthGroupedSampler whose order is that of (seed, epoch), on every rank and after every resumption."""

    def __init__(self, inner: LengthGroupedSampler, seed: int) -> None:
        self.inner, self.seed, self.epoch = inner, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[int]:
        self.inner.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.inner)


class LoopState:
    """The training loop's memory of one call of train(): what it resumed from, and the progress to restore."""

    def __init__(self) -> None:
        self.resumed: str | None = None  # the checkpoint of this call of train()
        self.uncounted = 0  # steps before it whose loss nobody kept
        self._progress: dict[str, Any] | None = None  # its progress, until it is restored
        self._groups: SeededLengthGroups | None = None

    def begin_training(self, resume_from_checkpoint: Any) -> None:
        self.resumed = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        self._progress = (read_progress(self.resumed) or {}) if self.resumed else None
        self.uncounted = 0

    @property
    def tracker_folders(self) -> dict[str, str]:
        """Of the run that is resumed (training/trackers.py)."""
        found = (self._progress or {}).get("trackers")
        return {key: str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def take_progress(self) -> dict[str, Any] | None:
        """The checkpoint's progress, {} if it has none; once per call of train(), None afterwards."""
        found, self._progress = self._progress, None
        return found

    def restore_logged_losses(self, trainer: LoopTrainer) -> None:
        """The sum of the losses up to the last log line, from a checkpoint without progress."""
        last = 0
        for entry in trainer.state.log_history:
            if "loss" in entry and math.isfinite(entry["loss"]):
                trainer.total_loss += entry["loss"] * (entry["step"] - last)
            last = entry["step"] if "loss" in entry else last
        self.uncounted = trainer.state.global_step - last

    def mean_loss(self, trainer: LoopTrainer) -> float:
        """Of all steps of the run, when its last losses are added to the sum."""
        return float(trainer.total_loss / max(trainer.state.global_step - self.uncounted, 1))

    def find_best_checkpoint(self, trainer: LoopTrainer) -> None:
        """Upstream forgets the best checkpoint of a run whose folder was moved."""
        state = trainer.state
        if self.resumed and state.best_global_step and state.best_model_checkpoint is None:
            best = Path(str(trainer.args.output_dir)) / folders.checkpoint_name(state.best_global_step)
            there = best.is_dir() and not folders.is_extra(folders.read_progress(best))
            state.best_model_checkpoint = str(best) if there else None

    def is_finished(self, trainer: LoopTrainer) -> bool:
        """Whether a resumed run has all its steps, or had stopped early."""
        if not self.resumed:
            return False
        return trainer.state.global_step >= trainer.state.max_steps or any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def seed_epoch(self, loader: Any, args: Any, epoch: int) -> None:
        self.seed_loader(loader, args, epoch)
        if self._groups is not None:
            self._groups.set_epoch(epoch)

    def seed_loader(self, loader: Any, args: Any, epoch: int = 0) -> Any:
        generator = torch.Generator().manual_seed(_data_seed(args) + epoch)
        for part in (loader, getattr(loader, "base_dataloader", None)):
            if isinstance(part, torch.utils.data.DataLoader):
                part.generator = generator
                follow_loader(part)
                if part.num_workers and not isinstance(part.worker_init_fn, WorkerStart):
                    part.worker_init_fn = WorkerStart(then=part.worker_init_fn)
        return loader

    def seed_sampler(self, sampler: Any, args: Any) -> Any:
        if isinstance(sampler, LengthGroupedSampler):
            sampler = self._groups = SeededLengthGroups(sampler, _data_seed(args))
        return sampler


def _data_seed(args: Any) -> int:
    return int(args.data_seed if args.data_seed is not None else args.seed)


def read_counters(trainer: LoopTrainer) -> dict[str, Any]:
    """What progress.json keeps of upstream's memory. Every rank must call it: each has its own part of the loss."""
    losses = nested_gather(trainer.running_loss.detach(), trainer.args.parallel_mode)
    found: dict[str, Any] = {
        "tr_loss": [float(loss) for loss in losses.reshape(-1)],
        "total_loss": trainer.total_loss,
        "last_logged": trainer.last_logged_step,
    }
    if trainer.sft_tokens is not None:
        found["sft_tokens"] = trainer.sft_tokens
        found["sft_metrics"] = {name: list(values) for name, values in trainer.sft_metrics.items()}
    return found


def average_running_loss(trainer: LoopTrainer) -> None:
    """The loss since the last log line, of all processes. Every rank must call it."""
    if trainer.args.world_size > 1:
        losses = nested_gather(trainer.running_loss.detach(), trainer.args.parallel_mode)
        trainer.running_loss.fill_(float(losses.mean()))


def restore_counters(trainer: LoopTrainer, found: Mapping[str, Any]) -> None:
    """The inverse of `read_counters`, after upstream has set its counters to 0."""
    losses = found["tr_loss"]
    same = len(losses) == trainer.args.world_size  # else each process has the mean, as a log line shows it
    trainer.running_loss.fill_(losses[trainer.args.process_index] if same else sum(losses) / len(losses))
    trainer.last_logged_step = found["last_logged"]
    trainer.total_loss = found["total_loss"]
    if trainer.sft_tokens is not None and "sft_tokens" in found:
        trainer.sft_tokens = found["sft_tokens"]
        trainer.sft_metrics.update(found["sft_metrics"])


def read_progress(checkpoint: str | None) -> dict[str, Any] | None:
    """progress.json of a checkpoint; None where it has none (upstream wrote it)."""
    path = os.path.join(checkpoint or "", PROGRESS)
    if checkpoint is None or not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as text:
        found: Any = json.load(text)
    work = found.get("work", WORK) if isinstance(found, dict) else None
    if not isinstance(work, dict) or not {*COUNTERS} <= found.keys() or not WORK.keys() <= work.keys():
        raise ValueError("it is no progress of a run")
    progress: dict[str, Any] = found
    return progress
