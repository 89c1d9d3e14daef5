"""How long a step really takes, and what is left of the run by that: said once, and again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hf_recipes.common.text import format_duration

WARM_UP = 3  # first steps of a session: kernels are chosen and memory is taken
FIRST_WORD = 20  # steps after which the rest is foretold
CHANGE = 0.10  # of the time that is left: then it is said again


class StepClock(TrainerCallback):
    """Seconds of optimizer steps, evaluation and saving left out; costs two readings of a clock a step."""

    def __init__(self, say: Callable[[str], None], told: tuple[float, float] | None = None) -> None:
        """`told`: plan's seconds for the whole run."""
        self.say, self.told = say, told
        self.steps, self.seconds = 0, 0.0
        self.began = 0.0
        self.seen = 0
        self.said_a_step: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """The mean after the warm-up; None before."""
        return self.seconds / self.steps if self.steps else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen += 1
        if self.seen <= WARM_UP:
            return
        self.steps += 1
        self.seconds += time.perf_counter() - self.began
        if self.seen >= FIRST_WORD and state.is_world_process_zero:
            self._tell(state)

    def _tell(self, state: Any) -> None:
        a_step = self.seconds / self.steps
        left = state.max_steps - state.global_step
        if left <= 0 or (self.said_a_step is not None and abs(a_step / self.said_a_step - 1) <= CHANGE):
            return
        told = (
            ""
            if self.told is None
            else f" (plan said {format_duration(self.told[0])} to {format_duration(self.told[1])} in all)"
        )
        if self.said_a_step is None or left * a_step > 60:
            self.say(f"forecast: {format_duration(left * a_step)} of training left, {a_step:.3g} s a step{told}")
        self.said_a_step = a_step
