"""An epoch whose last rows fill no batch on every process: its steps are those of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_recipes.cli import main
from hf_recipes.training.even_ranks import FilledUp, WithEmptyRow
from tests.support.forks import run_forked, run_ranks
from tests.support.tiny_models import TEXTS, write_rows

TEXT = """
task: {task}
model: {{config: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
         num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 64}}}}
BpeTrainer: {{vocab_size: 340}}
disable_guards: [overlap]
dataset:
  path: json
  data_files: {{train: rows.jsonl, validation: rows.jsonl}}
  {length}
{section}:
  output_dir: out
  num_train_epochs: 2
  per_device_train_batch_size: 2
  learning_rate: 1e-2
  logging_steps: 1
  save_strategy: "no"
  use_cpu: true
  {more}
"""
KINDS = {
    "Trainer": {"task": "causal-lm", "section": "TrainingArguments", "length": "max_length: 16", "more": ""},
    "classification": {
        "task": "text-classification", "section": "TrainingArguments", "length": "max_length: 16", "more": "",
    },
    "SFTTrainer": {
        "task": "causal-lm", "section": "SFTConfig", "length": "", "more": "max_length: 16\n  packing: false",
    },
}  # fmt: skip


def test_a_row_without_labels_stands_behind_the_last() -> None:
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3], "labels": [3]}])
    filled = WithEmptyRow(rows)
    assert len(filled) == 2 and filled[1] == rows[1]
    assert filled[2] == {"input_ids": [1, 2], "labels": [-100, -100]}
    assert filled.__getitems__([1, 2, 0]) == [rows[1], filled[2], rows[0]]
    classes = WithEmptyRow(Dataset.from_list([{"input_ids": [1], "labels": 1}]))
    assert classes[1]["labels"] == -100


def test_indices_are_filled_up_to_a_multiple() -> None:
    sampler = FilledUp([4, 2, 0, 3, 1], empty=5, multiple=4)
    assert list(sampler) == [4, 2, 0, 3, 1, 5, 5, 5] and len(sampler) == 8
    assert list(FilledUp([1, 0], empty=2, multiple=2)) == [1, 0]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("classification", 11),
        pytest.param("classification", 9, marks=pytest.mark.slow),
        pytest.param("Trainer", 12, marks=pytest.mark.slow),
        pytest.param("SFTTrainer", 9, marks=pytest.mark.slow),
    ],
)
def test_an_incomplete_last_batch_is_learned_from_once(
    kind: str, rows: int, folder: Path, write_recipe: Callable[..., str]
) -> None:
    values = KINDS[kind]
    write_rows("rows.jsonl", [{"text": TEXTS[n % 4][n % 3 :], "label": n % 2} for n in range(rows)])
    recipe = write_recipe(TEXT.format(**values))
    section = values["section"]
    one = ["run", recipe, f"{section}.output_dir=one", f"{section}.gradient_accumulation_steps=2"]
    code, output = run_forked(one, None)
    assert code == 0, output[-3000:]
    code, output = run_ranks(lambda rank: main(["run", recipe]))
    assert code == 0, output[-3000:]
    ours, theirs = (json.loads(Path(out, "record.json").read_text()) for out in ("out", "one"))
    blocks = theirs["data"]["train"]["rows"]
    assert blocks % 4
    assert ours["steps"] == theirs["steps"] == 2 * -(-blocks // 4)
    assert _losses(ours) == pytest.approx(_losses(theirs), rel=1e-5)


def _losses(record: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in record["log_history"] if "loss" in entry]
