"""Callbacks around the work after a step, and one that ends a training with a checkpoint at a step."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_recipes.training.signals import Listener
from hf_recipes.training.step_work import StepWork


class FollowSteps(TrainerCallback):
    """Tells `StepWork` where the loop is, and leaves an evaluation on a signal."""

    def __init__(self, work: StepWork, listener: Listener, trainer: Any) -> None:
        self.work, self.listener, self.trainer = work, listener, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.work.end_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.work.end_epoch()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation between steps is not finished, and is made on resumption. (Several ranks finish it.)"""
        if self.listener.received and self.listener.training and args.world_size == 1:
            self.work.leave_evaluation(self.trainer)


class StopAtStep(TrainerCallback):
    """Ends a training with a checkpoint after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True
