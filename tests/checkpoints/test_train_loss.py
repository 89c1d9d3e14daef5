"""`train_loss` of a resumed run is that of all its steps and of all its processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.cli import main
from tests.support.forks import run_ranks

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments:
  {{output_dir: out, max_steps: 5, save_steps: 3, logging_steps: 1, use_cpu: true, per_device_train_batch_size: 1}}
"""


SECTION = "TrainingArguments."


@pytest.fixture
def record(root: Path, write_recipe: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """The record of a run of two processes with these words."""
    recipe = write_recipe(RECIPE.format(root=root))

    def launch(*words: str) -> dict[str, Any]:
        ended, output = run_ranks(lambda rank: main(["run", recipe, *words]))
        assert ended == 0, output[-3000:]
        found: dict[str, Any] = json.loads(Path("out/record.json").read_text())
        shutil.rmtree("out/checkpoint-5")
        Path("out/record.json").unlink()
        return found

    return launch


def losses_of(record: dict[str, Any]) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in record["log_history"] if "loss" in entry}


def test_two_processes_report_the_loss_of_both_and_of_all_steps(record: Callable[..., dict[str, Any]]) -> None:
    straight = record()
    assert straight["train_loss"] == pytest.approx(sum(losses_of(straight).values()) / 5, abs=1e-6)
    resumed = record("--resume", f"{SECTION}logging_steps=4")  # the last loss is in no log line
    assert list(losses_of(resumed)) == [1, 2, 3, 4]
    assert resumed["train_loss"] == pytest.approx(straight["train_loss"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_take_up_a_changed_rate_and_report_the_loss_of_all_steps(
    record: Callable[..., dict[str, Any]],
) -> None:
    record()
    changed = record("--resume", f"{SECTION}learning_rate=0.01", "resume_allow=[recipe]")
    rates = [entry["learning_rate"] for entry in changed["log_history"] if "loss" in entry]
    assert rates[3:] == pytest.approx([0.01 * 2 / 5, 0.01 / 5])
    assert changed["train_loss"] == pytest.approx(sum(losses_of(changed).values()) / 5, abs=1e-6)
