"""How long a step really takes, and the time that is left by that: printed once, and again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hf_recipes.common.text import format_duration

WARM_UP = 3  # first steps of a session: kernels are chosen and memory is taken
FIRST_REPORT = 20  # steps after which the time left is printed
CHANGE = 0.10  # of the time that is left: then it is printed again


class StepTimer(TrainerCallback):
    """Seconds of optimizer steps without evaluation and saving; costs two reads of a clock per step."""

    def __init__(
        self, say: Callable[[str], None], forecast: tuple[float, float] | None = None, *, bar: bool = False
    ) -> None:
        """`forecast`: plan's seconds for all steps of the run; `bar`: one shows the time left already."""
        self.say, self.forecast, self.bar = say, forecast, bar
        self.steps, self.seconds = 0, 0.0
        self.began = 0.0
        self._training_since: float | None = None
        self._evaluating_since: float | None = None
        self.seen = 0
        self.reported_step_seconds: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """The mean after the warm-up; None before."""
        return self.seconds / self.steps if self.steps else None

    @property
    def training_seconds(self) -> float:
        """Since training began, evaluations included."""
        return 0.0 if self._training_since is None else time.perf_counter() - self._training_since

    @property
    def evaluating_seconds(self) -> float:
        """Of the evaluation that is under way; 0 between evaluations."""
        return 0.0 if self._evaluating_since is None else time.perf_counter() - self._evaluating_since

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training_since = time.perf_counter()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._evaluating_since is None:
            self._evaluating_since = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._evaluating_since = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen += 1
        if self.seen <= WARM_UP:
            return
        self.steps += 1
        self.seconds += time.perf_counter() - self.began
        if self.seen >= FIRST_REPORT and state.is_world_process_zero:
            self._report(state)

    def _report(self, state: Any) -> None:
        mean, before = self.seconds / self.steps, self.reported_step_seconds
        left = state.max_steps - state.global_step
        if left <= 0 or (before is not None and abs(mean / before - 1) <= CHANGE):
            return
        plan = ""
        if self.forecast is not None:
            plan = (
                f" (plan's estimate: {format_duration(self.forecast[0])} to {format_duration(self.forecast[1])} in all)"
            )
        silent = self.bar and self.forecast is None  # the bar says as much
        if not silent and (before is None or left * mean > 60):
            self.say(f"forecast: {format_duration(left * mean)} of training left, {mean:.3g} s per step{plan}")
        self.reported_step_seconds = mean


class AfterEvaluation(TrainerCallback):
    """Calls after each evaluation during training."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call, self._training = call, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._training and state.is_world_process_zero:
            self._call()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training = False


class AfterFirstStep(TrainerCallback):
    """Calls once, when a session has made its first step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._call is not None and state.is_world_process_zero:
            self._call()
        self._call = None
