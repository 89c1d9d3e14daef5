"""What a resumed run needs so that it equals the straight one, where upstream's memory or random numbers get lost.

- Progress that upstream keeps in memory only (the loss since the last log line, SFTTrainer's counters) is in each
  checkpoint's progress.json: logged losses of a resumed run are the straight run's, and train_loss is the whole run's.
- Loaders draw their workers' seeds from a generator of ours, seeded by (seed, epoch): with persistent workers a resumed
  run makes other draws than a straight one, and an evaluation would move the training's dropout.
- group_by_length shuffles by (seed, epoch), not by whatever the global generator holds (transformers 5.23
  trainer.py:1100 gives the sampler none).
- A run that has all its steps, or stopped early, makes no step more (5.23 does one, if it resumes inside an epoch).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, nested_gather

from hf_recipes.checkpoints import folders
from hf_recipes.checkpoints.folders import PROGRESS

if TYPE_CHECKING:
    from transformers import Trainer

    _Trainer = Trainer
else:
    _Trainer = object


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


class ContinuingMixin(_Trainer):
    """`class X(CheckpointMixin, ContinuingMixin, Trainer)`."""

    _resumed: str | None = None  # the checkpoint of this call of train()
    _pending: dict[str, Any] | None = None  # its progress, until it is taken up
    _groups: SeededLengthGroups | None = None
    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    _metrics: Any  # SFTTrainer's

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._resumed = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        self._pending = read_progress(self._resumed)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # --- progress ----------------------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of this trainer's memory. Every rank calls it: each has its own part of the loss."""
        losses = nested_gather(self._tr_loss.detach(), self.args.parallel_mode)
        found: dict[str, Any] = {
            "tr_loss": [float(loss) for loss in losses.reshape(-1)],
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        if hasattr(self, "_total_train_tokens"):  # SFTTrainer's
            found["sft_tokens"] = self._total_train_tokens
            found["sft_metrics"] = {name: list(values) for name, values in self._metrics["train"].items()}
        return found

    def _take_up(self) -> None:
        """Once a call of train(), after upstream has set its counters to nought."""
        found, self._pending = self._pending, None
        if not found:
            return
        if len(found["tr_loss"]) == self.args.world_size:
            self._tr_loss.fill_(found["tr_loss"][self.args.process_index])
            self._globalstep_last_logged = found["last_logged"]
        self._total_loss_scalar = found["total_loss"]
        if hasattr(self, "_total_train_tokens") and "sft_tokens" in found:
            self._total_train_tokens = found["sft_tokens"]
            self._metrics["train"].update(found["sft_metrics"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self._resumed:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        if self._resumed and self.state.best_global_step and self.state.best_model_checkpoint is None:
            best = Path(str(self.args.output_dir)) / folders.checkpoint_name(
                self.state.best_global_step
            )  # the run's folder was moved
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._take_up()
        if self._resumed and (self.state.global_step >= self.state.max_steps or self._stopped_early()):
            self.control.should_training_stop = True
            return
        epoch = int(kwargs["epoch"])
        self._seed_loader(kwargs["train_dataloader"], epoch)
        if self._groups is not None:
            self._groups.set_epoch(epoch)
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._take_up()
        return super()._finalize_training(*args, **kwargs)

    def _stopped_early(self) -> bool:
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    # --- random numbers of the loaders -------------------------------------------------------------------------------

    def _data_seed(self) -> int:
        return int(self.args.data_seed if self.args.data_seed is not None else self.args.seed)

    def _seed_loader(self, loader: Any, epoch: int = 0) -> Any:
        generator = torch.Generator().manual_seed(self._data_seed() + epoch)
        for part in (loader, getattr(loader, "base_dataloader", None)):
            if isinstance(part, torch.utils.data.DataLoader):
                part.generator = generator
        return loader

    def get_train_dataloader(self) -> Any:
        return self._seed_loader(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self._seed_loader(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return self._seed_loader(super().get_test_dataloader(test_dataset))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = self._groups = SeededLengthGroups(sampler, self._data_seed())
        return sampler


def read_progress(checkpoint: str | None) -> dict[str, Any] | None:
    """progress.json of a checkpoint; None where it has none (upstream wrote it)."""
    path = os.path.join(checkpoint or "", PROGRESS)
    if checkpoint is None or not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as text:
        found: dict[str, Any] = json.load(text)
    return found
