"""A signal anywhere in a run: the resumed run is the straight one, bit for bit, the evaluation that was due included."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_recipes.cli import main
from hf_recipes.training import trainer
from tests.support.forks import fork
from tests.support.killed_runs import final_state

RECIPE = """
task: text-classification
model:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
BpeTrainer: {vocab_size: 300}
dataset: {path: json, data_files: {train: rows.jsonl, validation: val.jsonl}, max_length: 16}
EarlyStoppingCallback: {early_stopping_patience: 4}
TrainingArguments:
  output_dir: out
  per_device_train_batch_size: 4
  per_device_eval_batch_size: 4
  learning_rate: 4e-3
  lr_scheduler_type: reduce_lr_on_plateau
  lr_scheduler_kwargs: {patience: 0, factor: 0.5}
  logging_steps: 1
  disable_tqdm: true
  num_train_epochs: 2.4
  load_best_model_at_end: true
  metric_for_best_model: eval_loss
"""
STEPS = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 2, "save_total_limit": 1}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
MIXED = {"eval_strategy": "epoch", "save_strategy": "best", "logging_strategy": "epoch"}


class SignalAt(TrainerCallback):
    """A signal at the `count`-th call of an event."""

    def __init__(self, event: str, count: int, number: int) -> None:
        self.left = count

        def receive(*_: Any, **__: Any) -> None:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), number)

        setattr(self, event, receive)


def run_with_signal(words: list[str], event: str | None, count: int, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Exit status and output of `hf-recipes run` in a forked process."""

    def work() -> None:
        if event is not None:
            upstreams = trainer.callbacks
            trainer.callbacks = lambda *args: [*upstreams(*args), SignalAt(event, count, number)]
        main(["run", *words])

    log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = fork(work, log)
    os.close(log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, Path("run.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], tuple[list[str], Any]]]:
    """The words of a run, and its end without a signal; each is made once."""
    home, made = Path.cwd(), {}
    folder = tmp_path_factory.mktemp("signals")
    rows = [{"text": f"{word} day {i} {i * 7 % 5}", "label": word} for i in range(10) for word in ("good", "bad")]
    for name, part in {
        "rows.jsonl": rows,
        "val.jsonl": [{**row, "text": row["text"] + " too"} for row in rows[3:17]],
    }.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "r.yaml").write_text(RECIPE)
    os.chdir(folder)

    def make(settings: dict[str, Any]) -> tuple[list[str], Any]:
        words = ["r.yaml", *(f"TrainingArguments.{key}={value}" for key, value in settings.items())]
        key = json.dumps(settings)
        if key not in made:
            shutil.rmtree("out", ignore_errors=True)
            code, output = run_with_signal(words, None, 0)
            assert code == 0, output[-3000:]
            made[key] = (final_state(), json.loads(Path("out/record.json").read_text())["best"] if False else None)
        shutil.rmtree("out", ignore_errors=True)
        return words, made[key]

    yield make
    os.chdir(home)


def assert_equal_after(straight: Any, settings: dict[str, Any], event: str, count: int, number: int) -> None:
    words, (end, _) = straight(settings)
    code, output = run_with_signal(words, event, count, number)
    assert code == 128 + number, output[-3000:]
    assert "Traceback" not in output
    resumed = ["--resume"] if list(Path("out").glob("checkpoint-*")) else []
    code, output = run_with_signal([*words, *resumed], None, 0)
    assert code == 0, output[-3000:]
    assert final_state() == end


@pytest.mark.parametrize(
    ("settings", "event", "count"),
    [
        (STEPS, "on_pre_optimizer_step", 3),
        (STEPS, "on_prediction_step", 10),
        (STEPS, "on_evaluate", 3),
        (STEPS, "on_save", 2),
        (STEPS, "on_step_end", 5),
        (EPOCHS, "on_step_end", 5),
        (EPOCHS, "on_prediction_step", 2),
        (EPOCHS, "on_step_end", 7),
        (MIXED, "on_prediction_step", 6),
        (MIXED, "on_epoch_end", 1),
        (MIXED, "on_step_end", 12),
    ],
)
def test_a_signal_in_the_work_after_a_step(straight: Any, settings: dict[str, Any], event: str, count: int) -> None:
    assert_equal_after(straight, settings, event, count, signal.SIGTERM)
