"""A tracker that hangs or fails never ends or holds up a training."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_recipes.training.trackers import LimitedTracker


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
