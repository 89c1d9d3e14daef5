"""What the objects of a trainer read and set of upstream's, by public names: the members of their Protocols.

training/overrides.py has the overrides that call those objects. Upstream's private members that are used here are
listed in tests/support/upstream_private_points.py, as that file's are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.checkpoints import zero
from hf_recipes.checkpoints.loop_state import LoopState, read_counters
from hf_recipes.checkpoints.saving import CheckpointWriter, describe_lost_weights
from hf_recipes.checkpoints.settings import SCHEDULER, RecipeSettings
from hf_recipes.checkpoints.sharded import save_optimizer
from hf_recipes.evaluation.exact import ExactEvaluation
from hf_recipes.evaluation.length_order import EvaluationOrder
from hf_recipes.training.data_wait import DataWait
from hf_recipes.training.master_weights import MasterWeightsStep
from hf_recipes.training.out_of_memory import OutOfMemoryRetry
from hf_recipes.training.step_guard import StepGuard
from hf_recipes.training.step_work import StepWork
from hf_recipes.training.trackers import read_tracker_folders
from hf_recipes.training.window import StepSums, Window

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_recipes.recipe.recipe import Recipe

    _Trainer = Trainer
else:
    _Trainer = object


@dataclass(frozen=True, kw_only=True)
class TrainerParts:
    """The objects that one trainer's overrides call."""

    recipe: Recipe | None = None  # whose keys an error names; without one upstream's error stays as it is
    guard: StepGuard | None = None  # None: upstream's steps, as plan traces them
    retry: OutOfMemoryRetry = field(default_factory=OutOfMemoryRetry)
    masters: MasterWeightsStep | None = None
    writer: CheckpointWriter = field(default_factory=CheckpointWriter)
    loop: LoopState = field(default_factory=LoopState)
    work: StepWork = field(default_factory=StepWork)
    settings: RecipeSettings = field(default_factory=RecipeSettings)
    evaluation: ExactEvaluation = field(default_factory=ExactEvaluation)
    order: EvaluationOrder = field(default_factory=EvaluationOrder)
    wait: DataWait = field(default_factory=DataWait)


class TrainerMembers(_Trainer):
    """The base of `Overrides`; upstream's trainer comes behind both."""

    parts: TrainerParts
    window: Window
    _metrics: Any  # SFTTrainer's
    _total_train_tokens: int  # SFTTrainer's

    @property
    def is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def saved_model(self) -> Any:
        """The model that save_pretrained is called on; its tensors may be spread over the processes."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def plain_model(self) -> Any:
        """The unwrapped model; None where its weights are spread over processes, and cannot be read here."""
        return None if self.is_sharded else self.accelerator.unwrap_model(self.model)

    @property
    def is_loss_scaled(self) -> bool:
        """Whether overflowing gradients are skipped by loss scaling: GradScaler's or master_weights'."""
        masters = self.parts.masters
        return self.accelerator.scaler is not None or (masters is not None and masters.optimizer is not None)

    @property
    def loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else math.inf

    @property
    def running_loss(self) -> torch.Tensor:
        return self._tr_loss

    @property
    def total_loss(self) -> float:
        return self._total_loss_scalar

    @total_loss.setter
    def total_loss(self, value: float) -> None:
        self._total_loss_scalar = value

    @property
    def last_logged_step(self) -> int:
        return self._globalstep_last_logged

    @last_logged_step.setter
    def last_logged_step(self, value: int) -> None:
        self._globalstep_last_logged = value

    @property
    def sft_metrics(self) -> Any:
        """SFTTrainer's, since the last log line; None for Trainer."""
        return self._metrics["train"] if hasattr(self, "_total_train_tokens") else None

    @property
    def sft_tokens(self) -> int | None:
        return getattr(self, "_total_train_tokens", None)

    @sft_tokens.setter
    def sft_tokens(self, value: int) -> None:
        self._total_train_tokens = value

    def run_forward(self, batch: Any) -> None:
        inputs = {key: value for key, value in self._prepare_inputs(dict(batch)).items() if key != "labels"}
        with torch.no_grad(), self.compute_loss_context_manager():
            self.plain_model()(**inputs)

    def read_other_batches(self) -> list[Any]:
        """Of the first rows, and of those in the middle; none where rows cannot be read at will."""
        loader = self.callback_handler.train_dataloader
        try:
            rows = len(loader.dataset)
            size = min(self.args.per_device_train_batch_size, rows)
            starts = (0, (rows - size) // 2)
            return [loader.collate_fn([loader.dataset[start + i] for i in range(size)]) for start in starts]
        except (AttributeError, TypeError, KeyError, IndexError):  # a stream
            return []

    def settings_view(self) -> Any:
        """What RecipeSettings reads and sets: this trainer, under DeepSpeed with an optimizer of complete tensors."""
        if not self.is_deepspeed_enabled:
            return self
        return SimpleNamespace(
            args=self.args,
            state=self.state,
            callback_handler=self.callback_handler,
            lr_scheduler=self.lr_scheduler,
            optimizer=zero.WholeOptimizer(self.model_wrapped),
        )

    def load_weights_and_optimizer(self, checkpoint: str) -> None:
        self._load_from_checkpoint(checkpoint)
        with self.parts.settings.held(self.settings_view()):
            self._load_optimizer_and_scheduler(checkpoint)

    def save_training_state(self, folder: str) -> None:
        if self.is_sharded:
            if self.is_fsdp_enabled:
                save_optimizer(self.optimizer, Path(folder), self.args.process_index)
            else:
                zero.save_optimizer(self.model_wrapped, Path(folder))
            if self.args.should_save:
                schedule: Any = self.lr_scheduler
                torch.save(schedule.state_dict(), Path(folder, SCHEDULER))
        else:
            self._save_optimizer_and_scheduler(folder)
        self._save_scaler(folder)
        self._save_rng_state(folder)

    def write_checkpoint(self, trial: Any = None, *, extra: bool = True) -> bool:
        """Whether it was written. `extra`: the straight run would not write it."""
        return self.parts.writer.save(self, Path(self._get_output_dir(trial)), self._read_progress(extra=extra))

    @property
    def run_id(self) -> str:
        return str(self.parts.writer.facts(self.args).get("run", ""))

    def describe_divergence(self) -> str:
        """Why the trained model is worth nothing; "" where it is not. Every rank must call it."""
        guard, steps = self.parts.guard, self.state.global_step
        lost = describe_lost_weights(self)
        without = guard.count_without_effect(steps) if guard is not None else 0
        if not lost and steps and without > steps / 2:
            lost = f"{without} of {steps} steps were skipped, since they were not finite"
        return lost

    def save_final_model(self) -> None:
        """Raises OutputDirError for a full disk."""
        self.parts.writer.save_final(self)

    def remove_all_but_best(self) -> None:
        self.parts.writer.remove_all_but_best(self)

    def load_final_model(self, steps: int, epochs: float | None) -> None:
        """The inverse of `save_final_model`: the model as a session left it that made all steps."""
        self._load_from_checkpoint(str(self.args.output_dir))
        self.state.global_step, self.state.epoch = steps, epochs or 0.0

    def _read_progress(self, *, extra: bool) -> dict[str, Any]:
        """Every rank must call it."""
        work = self.parts.work.state_dict(extra=extra, step=self.state.global_step)
        guard = self.parts.guard.state_dict() if self.parts.guard is not None else {}
        trackers = read_tracker_folders(self.callback_handler.callbacks, Path(str(self.args.output_dir)))
        own = {**guard, **work, "trackers": trackers}
        return {**read_counters(self), **self.parts.retry.state_dict(), **own}

    def _read_sums(self) -> StepSums:
        metrics = self.sft_metrics
        return StepSums(
            loss=self._tr_loss.clone(),
            tokens_seen=self.state.num_input_tokens_seen,
            flos=self.current_flos,
            sft_metric_lengths=None if metrics is None else {name: len(values) for name, values in metrics.items()},
            sft_tokens=self.sft_tokens,
        )

    def restore_sums(self, sums: StepSums) -> None:
        self._tr_loss.copy_(sums.loss)
        self.state.num_input_tokens_seen, self.current_flos = sums.tokens_seen, sums.flos
        if sums.sft_metric_lengths is not None and sums.sft_tokens is not None:
            for name, values in self.sft_metrics.items():
                del values[sums.sft_metric_lengths.get(name, 0) :]
            self.sft_tokens = sums.sft_tokens
