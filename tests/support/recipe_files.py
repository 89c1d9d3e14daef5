"""A valid recipe, changed line by line, and the errors of what comes out."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe

VALID = """\
task: text-classification
model:
  pretrained_model_name_or_path: bert-base-uncased
dataset:
  path: json
  data_files: {train: data/train.jsonl, validation: data/validation.jsonl}
  text_column: text
  label_column: label
TrainingArguments:
  output_dir: runs/a
  learning_rate: 2e-5
  per_device_train_batch_size: 64
  dataloader_num_workers: 4
metrics: [f1, accuracy]
"""


def errors_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    return [str(error) for error in caught.value.errors]


def changed(**lines):
    """The valid recipe with lines replaced ("line12='  seed: 1'"), counted from 1."""
    rows = VALID.splitlines()
    for name, text in lines.items():
        rows[int(name.removeprefix("line")) - 1] = text
    return "\n".join(rows) + "\n"


TRANSFORMERS = f"transformers {version('transformers')}"
