"""A tracker that hangs or fails never ends or holds up a training; TensorBoard continues a resumed run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_recipes.pipeline.run import run
from hf_recipes.training.trackers import LimitedTracker
from tests.support.killed_runs import run_until_killed


class Tracker(TrainerCallback):
    """Fails or hangs on its first log line."""

    def __init__(self, hangs: bool) -> None:
        self.hangs, self.calls = hangs, 0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.calls += 1
        if self.hangs:
            time.sleep(60)
        raise ConnectionError("no route to host\nmore")


def log(bounded: LimitedTracker) -> None:
    bounded.on_log(TrainingArguments(output_dir="out", report_to=[]), TrainerState(), TrainerControl(), logs={})


def test_a_tracker_that_fails_is_dropped_with_its_reason_and_not_asked_again() -> None:
    said: list[str] = []
    inner = Tracker(hangs=False)
    bounded = LimitedTracker(inner, said.append)
    log(bounded)
    log(bounded)
    assert inner.calls == 1
    assert said == [
        "report_to: Tracker failed: no route to host; the run continues without it, its log is in record.json"
    ]


def test_a_tracker_that_hangs_is_dropped_after_a_few_seconds() -> None:
    said: list[str] = []
    bounded = LimitedTracker(Tracker(hangs=True), said.append, seconds=0.2)
    log(bounded)
    assert bounded.dropped and "did not answer" in said[0]


RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 6, save_steps: 3, logging_steps: 1, report_to: tensorboard}}
"""


def test_tensorboard_continues_the_run_that_is_resumed_without_a_step_twice(
    root: Path, write_recipe: Callable[..., str]
) -> None:
    recipe = write_recipe(RECIPE.format(root=root))
    run_until_killed(recipe, [], 5)
    time.sleep(1)  # TensorBoard orders its files by the second in which they were begun: no real start is that quick
    run(recipe, resume=True)
    (folder,) = Path("out/runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert "train/train_loss" in events.Tags()["scalars"]
