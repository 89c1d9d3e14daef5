"""Runs that are killed (SIGKILL, in a process forked from the test's own), and what to compare of a run's end."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_recipes.pipeline.run import run
from hf_recipes.training import trainer
from tests.support.forks import fork


class KillAt(TrainerCallback):
    """A signal, SIGKILL by default, after a step's end, after its log lines and before its checkpoint."""

    def __init__(self, step: int, number: int = signal.SIGKILL) -> None:
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def run_forked(work: Callable[[], object], output: str = "child.log") -> int:
    """Runs `work` in a forked process, its output in a file; returns waitpid's status (the signal, or code << 8)."""
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = fork(work, log)
    os.close(log)
    return os.waitpid(child, 0)[1]


def run_until_killed(
    recipe: str, words: Sequence[str], step: int, *, resume: bool = False, number: int = signal.SIGKILL
) -> None:
    """A run that dies by SIGKILL at a step; any other signal ends it after the next one."""

    def work() -> None:
        upstreams = trainer.callbacks
        trainer.callbacks = lambda *args: [*upstreams(*args), KillAt(step, number)]
        run(recipe, words, resume=resume)

    status = run_forked(work)
    assert status == (signal.SIGKILL if number == signal.SIGKILL else 1 << 8), Path("child.log").read_text()[-3000:]


def final_state(folder: str = "out") -> dict[str, Any]:
    """What a straight run and a resumed one must have in common: weights by their bytes, and every logged figure."""
    record = json.loads(Path(folder, "record.json").read_text())
    weights = sorted(Path(folder).glob("*.safetensors"))
    shown = [
        {k: v for k, v in entry.items() if not k.endswith(("_runtime", "_per_second", "_preparation_time"))}
        for entry in record["log_history"]
    ]
    return {
        "weights": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in weights},
        "log": shown,
        "train_loss": record["train_loss"],
        "steps": record["steps"],
        "tokens": record["tokens"],
        "eval": record["metrics"]["eval"]["eval_loss"],
    }
