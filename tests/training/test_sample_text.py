"""Text samples during training: their errors are reported before training, and none of them ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments:
  output_dir: out
  max_steps: 1
  eval_on_start: true
  save_strategy: "no"
"""


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE.format(root=root))


def test_a_prompt_and_an_answer_beyond_the_models_length_are_cut_and_reported(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ("the sea " * 30).strip()
    run(recipe, [f"sample_prompts=[{long}, Captain]", "GenerationConfig={max_new_tokens: 500}"])
    printed = capsys.readouterr().out
    assert "sample prompt 'the sea the sea the sea the sea the s...': only its last 16 of " in printed
    assert " tokens are read; the model has 32 positions" in printed
    assert "new tokens, not 500: the model has 32 positions" in printed
    assert f"sample at step 1: {long!r} -> " in printed
    assert "failed" not in printed
    assert json.loads(Path("out/record.json").read_text())["status"] == "finished"


def test_a_prompt_without_a_token_is_refused_before_training(recipe: str) -> None:
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["sample_prompts=['']"])
    assert str(caught.value) == (
        "argument \"sample_prompts=['']\": the sample prompt '' gives no token to continue; write some text"
    )
    assert json.loads(Path("out/record.json").read_text())["stage"] == "model"


def test_what_generation_refuses_is_refused_before_training(recipe: str) -> None:
    words = "GenerationConfig={num_return_sequences: 3, max_new_tokens: 2}"
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["sample_prompts=[Captain]", words])
    assert str(caught.value) == (
        f"argument {words!r}: GenerationConfig refuses: Greedy methods (do_sample != True) without beam search do not "
        "support `num_return_sequences` different than 1 (got 3)."
    )


def test_every_sequence_that_was_asked_for_is_shown(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "GenerationConfig={num_return_sequences: 3, max_new_tokens: 2, do_sample: true}"
    run(recipe, ["sample_prompts=[Captain]", words])
    assert capsys.readouterr().out.count("sample at step 1: 'Captain' -> ") == 3


def test_a_sample_that_fails_costs_no_run(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    # transformers wants a tokenizer beside stop_strings, and says so in generate() only
    run(recipe, ["sample_prompts=[Captain]", "GenerationConfig={stop_strings: ['.']}"])
    printed = capsys.readouterr().out
    assert "sample at step 0: 'Captain' failed: There are one or more stop strings" in printed
    assert json.loads(Path("out/record.json").read_text())["status"] == "finished"
