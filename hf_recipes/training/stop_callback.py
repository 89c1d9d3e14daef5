"""Callbacks that end a training with a checkpoint: on a signal, or at a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hf_recipes.training.signals import Stopped
from hf_recipes.training.step_guard import StepGuard


class StopOnSignal(TrainerCallback):
    """Ends a run after the step on which all ranks agreed. `save`: writes a checkpoint of the last step."""

    def __init__(self, guard: StepGuard, save: Callable[[], None]) -> None:
        self.guard, self.save = guard, save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.guard.stop_signal:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # a notice may leave seconds

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation between steps is not finished: the step before it is saved. (Several ranks finish it.)"""
        listener = self.guard.listener
        if listener is not None and listener.received and listener.training and args.world_size == 1:
            if state.global_step:
                self.save()
            raise Stopped(listener.received)


class StopAtStep(TrainerCallback):
    """Ends a training with a checkpoint after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True
