"""A signal anywhere in a run: the resumed run is the straight one bit for bit, the evaluation that was due included."""

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
from tests.support.tiny_models import write_rows

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
    """A signal at the `count`-th call of an event, to this process or to its whole group."""

    def __init__(self, event: str, count: int, number: int, *, group: bool) -> None:
        self.left = count

        def receive(*_: Any, **__: Any) -> None:
            self.left -= 1
            if not self.left:
                os.kill(0 if group else os.getpid(), number)

        setattr(self, event, receive)


def run_with_signal(
    words: list[str], event: str | None, count: int, number: int = signal.SIGTERM, *, group: bool = False
) -> tuple[int, str]:
    """Exit status and output of `hf-recipes run` in a forked process."""

    def work() -> None:
        os.setsid()
        if event is not None:
            upstreams = trainer.callbacks
            trainer.callbacks = lambda *args: [*upstreams(*args), SignalAt(event, count, number, group=group)]
        main(["run", *words])

    log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = fork(work, log)
    os.close(log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, Path("run.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], tuple[list[str], Any]]]:
    """The words of a run, and its end without a signal; each is made once."""
    home, ends = Path.cwd(), {}
    rows = [{"text": f"{word} day {i} {i * 7 % 5}", "label": word} for i in range(10) for word in ("good", "bad")]
    os.chdir(tmp_path_factory.mktemp("signals"))
    write_rows("rows.jsonl", rows)
    write_rows("val.jsonl", ({**row, "text": f"{row['text']} too"} for row in rows[3:17]))
    Path("r.yaml").write_text(RECIPE)

    def make(settings: dict[str, Any]) -> tuple[list[str], Any]:
        words = ["r.yaml", *(f"TrainingArguments.{key}={value}" for key, value in settings.items())]
        key = json.dumps(settings)
        if key not in ends:
            shutil.rmtree("out", ignore_errors=True)
            code, output = run_with_signal(words, None, 0)
            assert code == 0, output[-3000:]
            ends[key] = final_state()
        shutil.rmtree("out", ignore_errors=True)
        return words, ends[key]

    yield make
    os.chdir(home)


def assert_equal_after(
    straight: Any, settings: dict[str, Any], event: str, count: int, number: int, *, group: bool = False
) -> None:
    words, end = straight(settings)
    code, output = run_with_signal(words, event, count, number, group=group)
    assert code == 128 + number, output[-3000:]
    assert "Traceback" not in output
    code, output = run_with_signal([*words, "--resume"], None, 0)
    assert code == 0, output[-3000:]
    assert final_state() == end


POINTS = [
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
]
WORKERS = {**STEPS, "dataloader_num_workers": 1}
PERSISTENT = {**WORKERS, "dataloader_persistent_workers": True}


def test_a_signal_to_the_whole_group_in_an_evaluation_ends_the_run_not_its_workers_and_loses_nothing(
    straight: Any,
) -> None:
    assert_equal_after(straight, PERSISTENT, "on_prediction_step", 10, signal.SIGTERM, group=True)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "event", "count"), POINTS)
def test_a_signal_in_the_work_after_a_step_or_an_epoch_loses_nothing(
    straight: Any, settings: dict[str, Any], event: str, count: int
) -> None:
    assert_equal_after(straight, settings, event, count, signal.SIGUSR1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_ends_the_run_and_not_its_loaders_workers(straight: Any, number: int) -> None:
    assert_equal_after(straight, WORKERS, "on_step_begin", 4, number, group=True)


@pytest.mark.slow
def test_a_signal_to_the_group_in_the_final_evaluation_is_no_error_of_a_worker(straight: Any) -> None:
    words, _ = straight(PERSISTENT)
    code, output = run_with_signal([*words, *AT_END], "on_prediction_step", 1, group=True)
    assert code == 143, output[-3000:]
    assert "Traceback" not in output and "stopped in evaluation" in output


AT_END = ["TrainingArguments.eval_strategy=no", "TrainingArguments.load_best_model_at_end=false", *(
    "TrainingArguments.lr_scheduler_type=linear", "TrainingArguments.lr_scheduler_kwargs=null",
    "EarlyStoppingCallback=null", "TrainingArguments.metric_for_best_model=null",
)]  # fmt: skip
