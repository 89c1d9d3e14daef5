"""A recipe with global_batch_size on one process and on two is one run, and a checkpoint of one continues on two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from tests.support.forks import run_ranks

TEXT = """
task: causal-lm
model:
  config: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 1, max_position_embeddings: 64}}
BpeTrainer: {{vocab_size: 384}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  sample_by: paragraph
  split: {{train: "train[:6%]"}}
  max_length: 32
global_batch_size: 8
TrainingArguments:
  output_dir: one
  use_cpu: true
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 1e-3
  logging_steps: 1
  save_steps: 2
"""


def _losses(folder: Path, name: str) -> list[float]:
    record = json.loads((folder / name / "record.json").read_text())
    return [entry["loss"] for entry in record["log_history"] if "loss" in entry]


def test_two_processes_make_the_same_steps_and_continue_the_checkpoint_of_one(
    root: Path, folder: Path, write_recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(TEXT.format(root=root))
    run(recipe)
    batch = "batch      2 per device x 1 device x 4 accumulation = 8 sequences, as global_batch_size asks, about "
    assert " ".join(batch.split()) in " ".join(capsys.readouterr().out.split())
    resumed = ["TrainingArguments.resume_from_checkpoint=one/checkpoint-2", "TrainingArguments.output_dir=two"]
    code, output = run_ranks(lambda rank: main(["run", recipe, *resumed, "resume_allow=[processes]"]))
    assert code == 0, output[-3000:]
    assert "gradient_accumulation_steps: 2 (global_batch_size: 8 = 2 per device x 2 x 2)" in output
    assert "2 per device x 2 devices x 2 accumulation = 8 sequences, as global_batch_size asks, about " in " ".join(
        output.split()
    )
    assert "of another recipe" not in output and "gradient_accumulation_steps was" not in output
    assert len(_losses(folder, "one")) == 4
    assert _losses(folder, "two") == pytest.approx(_losses(folder, "one"), rel=1e-5)
    again = read_recipe(str(folder / "two/recipe.yaml"))
    assert again.get("global_batch_size") == 8 and "gradient_accumulation_steps" not in again.training
