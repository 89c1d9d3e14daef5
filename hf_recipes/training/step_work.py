"""What follows a step (a log line, an evaluation, a checkpoint) is done once, also where a signal comes in between.

Upstream does it after each step, and once more after an epoch's last one. A run that is asked to end saves a checkpoint
at once and leaves the evaluation: the checkpoint's progress.json says that it is due, and the resumed run makes it
first, with the random state of the moment, and then the save that followed it. So early stopping, reduce_lr_on_plateau
and the best model come out as in the straight run. A checkpoint that the straight run would not have written is marked
as extra: it never becomes the best one.

`StepWork` needs no Trainer: training/overrides.py calls it, and a test gives it any object with the members of
`WorkingTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from hf_recipes.training.signals import Stopped
from hf_recipes.training.step_guard import StepGuard
from hf_recipes.training.window import RandomState, read_random_state, restore_random_state

STEP, EPOCH, DONE = "step", "epoch", "done"  # whose work is being done
KEY = "work"  # in progress.json


class WorkingTrainer(Protocol):
    """What `StepWork` reads of a trainer, and what it asks of it."""

    args: Any
    state: Any
    control: Any
    callback_handler: Any

    def save_extra_checkpoint(self) -> None: ...


class StepWork:
    """The work after a step. `guard`: on whose signal all ranks agreed; None for upstream's own loop."""

    def __init__(self, guard: StepGuard | None = None) -> None:
        self.guard = guard
        self.stage = DONE
        self.saved_step = -1  # of the last checkpoint that the straight run writes as well
        self._saved = (-1, DONE)  # step and stage of the last checkpoint of all
        self.random_state: RandomState | None = None  # after the work that was due; of a resumed run's first step
        self._due: dict[str, Any] | None = None
        self._last: tuple[Any, Any] = (None, None)  # gradient norm and learning rate of the step
        self._before: RandomState | None = None  # an evaluation

    # --- in a run ----------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        self.stage = DONE

    def end_step(self) -> None:
        self.stage, self._due = STEP, None

    def end_epoch(self) -> None:
        self.stage, self._due = EPOCH, None

    def run(
        self, trainer: WorkingTrainer, upstream: Callable[[], None], grad_norm: Any, learning_rate: float | None
    ) -> None:
        """`upstream`: its _maybe_log_save_evaluate, which does what trainer.control asks for."""
        guard, control = self.guard, trainer.control
        if guard is None:
            upstream()
            return
        if grad_norm is not None:
            self._last = (grad_norm, learning_rate)
        if trainer.args.world_size == 1:
            guard.stop_signal = guard.requested_signal(trainer.args)
        if guard.stop_signal and self.stage == EPOCH:
            _ask_for(control, evaluate=False, save=False, log=False)  # due, if the epoch is over
            self.stage = STEP
            self._stop(trainer)
            return
        evaluates, saves = control.should_evaluate, control.should_save
        if guard.stop_signal and evaluates:
            _ask_for(control, evaluate=False, save=False, log=control.should_log)
            upstream()
            self._due = {"save": bool(saves)}
            self._stop(trainer)
            return
        self._before = read_random_state(trainer.args.device) if evaluates else None
        upstream()
        self._before = None
        saved = self._saved == (trainer.state.global_step, self.stage)
        if not guard.stop_signal and (evaluates or saved or trainer.args.world_size == 1):
            guard.stop_signal = guard.requested_signal(trainer.args)
        if guard.stop_signal:
            self._stop(trainer)

    def _stop(self, trainer: WorkingTrainer) -> None:
        """Saves what is not saved, and ends training."""
        now = (trainer.state.global_step, self.stage)
        if self._saved != now or self._due is not None:
            trainer.save_extra_checkpoint()
        trainer.control.should_training_stop = True

    def leave_evaluation(self, trainer: WorkingTrainer) -> None:
        """In the middle of an evaluation that is due again: saves the step before it. Raises Stopped."""
        assert self.guard is not None and self.guard.listener is not None
        signal = self.guard.listener.received
        if self._before is not None and trainer.state.global_step:
            restore_random_state(self._before, trainer.args.device)
            self._due = {"save": bool(trainer.control.should_save)}
            trainer.save_extra_checkpoint()
        raise Stopped(signal)

    def state_dict(self, *, extra: bool, step: int) -> dict[str, Any]:
        """What a checkpoint's progress.json keeps."""
        self._saved = (step, self.stage)
        if not extra:
            self.saved_step = step
        norm, rate = self._last
        norm = float(norm.item() if torch.is_tensor(norm) else norm) if norm is not None else None
        is_extra = extra and self.saved_step != step
        return {KEY: {"stage": self.stage, "due": self._due, "extra": is_extra, "norm": norm, "rate": rate}}

    # --- in a resumed run, before its first step ---------------------------------------------------------------------

    def finish(
        self,
        trainer: WorkingTrainer,
        progress: Mapping[str, Any],
        work: Callable[[Any, Any], None],
        load_random_state: Callable[[], None],
        *,
        epoch_is_over: Callable[[], bool],
    ) -> None:
        """The work that the interrupted run had not done. `work(grad_norm, learning_rate)`: calls `run`."""
        found = progress.get(KEY) or {}
        if not found or not trainer.state.global_step or found["stage"] == DONE:
            return
        is_step = found["stage"] == STEP
        if not found["extra"]:
            self.saved_step = trainer.state.global_step
        if not found["due"] and not (is_step and epoch_is_over()):
            return
        load_random_state()
        self.stage, self._last = found["stage"], (found["norm"], found["rate"])
        control = trainer.control
        if found["due"]:
            _ask_for(control, evaluate=True, save=found["due"]["save"], log=False)
            work(*self._last)
        if is_step and not self._is_stopped() and (epoch_is_over() or trainer.control.should_training_stop):
            _ask_for(trainer.control, evaluate=False, save=False, log=False)
            trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
            work(*self._last)
        _ask_for(trainer.control, evaluate=False, save=False, log=False)
        self.random_state = read_random_state(trainer.args.device)

    def _is_stopped(self) -> bool:
        return self.guard is not None and bool(self.guard.stop_signal)


def _ask_for(control: Any, *, evaluate: bool, save: bool, log: bool) -> None:
    control.should_evaluate, control.should_save, control.should_log = evaluate, save, log
