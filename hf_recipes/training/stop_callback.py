"""A run that was asked to end: it saves after the step on which all ranks agreed, and goes no further."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_recipes.training.signals import Stopped


class Ending(TrainerCallback):
    """Acts on the signal that the trainer's guards have read."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.guards.stop:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # a notice may leave seconds

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation between steps is not finished: the step before it is saved. (Several ranks finish it.)"""
        listener = self.trainer.guards.listener
        if listener is not None and listener.received and listener.training and args.world_size == 1:
            if state.global_step:
                self.trainer._save_checkpoint(self.trainer.model)
            raise Stopped(listener.received)
