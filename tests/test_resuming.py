"""Resuming: what stands in the way is one message with its mend, before the data are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.run import run

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 4, save_steps: 2}}
"""
PLACE = "argument '--resume': "
OLDER = "; resume from an older one with resume_from_checkpoint: PATH, or start without it"


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE.format(root=root))


def refusal(recipe: str, *words: str) -> str:
    with pytest.raises(RecipeError) as caught:
        run(recipe, words, resume=True)
    return str(caught.value)


def test_a_run_that_has_all_its_steps_is_not_given_one_more(recipe: str) -> None:
    run(recipe)
    assert refusal(recipe) == (
        f"{PLACE}'out/checkpoint-4' has made 4 steps and the recipe says 4: nothing is left to train; "
        "raise TrainingArguments.max_steps; to evaluate it, write do_train: false and "
        "model.pretrained_model_name_or_path: out/checkpoint-4"
    )
    run(recipe, ["TrainingArguments.max_steps=6"], resume=True)
    assert json.loads(Path("out/record.json").read_text())["steps"] == 6


def test_upstream_still_makes_a_step_too_many_when_it_resumes_at_the_end(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day that this fails, refuse_a_finished_one may go."""
    run(recipe)
    monkeypatch.setattr("hf_recipes.resuming.refuse_a_finished_one", lambda *_: None)
    run(recipe, resume=True)
    assert json.loads(Path("out/record.json").read_text())["steps"] == 5


def test_a_checkpoint_that_was_cut_off_is_refused_by_file(recipe: str) -> None:
    run(recipe)
    shutil.copytree("out/checkpoint-4", "whole")
    last = Path("out/checkpoint-4")
    (last / "trainer_state.json").write_text("{")
    assert refusal(recipe) == (
        f"{PLACE}'out/checkpoint-4/trainer_state.json' cannot be read (Expecting property name enclosed in double "
        f"quotes: line 1 column 2 (char 1)): it was cut off while it was written{OLDER}"
    )
    shutil.copy("whole/trainer_state.json", last)
    (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:100])
    assert refusal(recipe) == f"{PLACE}'out/checkpoint-4/optimizer.pt' is not whole{OLDER}"
    (last / "optimizer.pt").unlink()
    assert refusal(recipe) == (
        f"{PLACE}'out/checkpoint-4' has no optimizer.pt: the run would go on with a fresh one, "
        f"and upstream would not say so{OLDER}"
    )


def test_a_checkpoint_that_is_not_there_is_told_before_the_data_are_read(recipe: str) -> None:
    assert refusal(recipe, "dataset.text_column=nowhere") == (
        f"{PLACE}there is no checkpoint in 'out' to resume from; start without it"
    )
    assert json.loads(Path("out/record.json").read_text())["where"] == "start"
