"""A second run into one output_dir neither mixes with the first one's files nor loses what no run wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.errors import DivergedError, RecipeError
from hf_recipes.pipeline.output_dir import find_foreign_files
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import dump_recipe

RECIPE = """
# mine
task: text-classification
disable_guards: [overlap]
model:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
BpeTrainer: {vocab_size: 300}
dataset: {path: json, data_files: {train: rows.jsonl, validation: rows.jsonl, test: rows.jsonl}, max_length: 16}
TrainingArguments: {output_dir: out, max_steps: 1, save_strategy: "no"}
"""
ADAPTER = ["LoraConfig={r: 2, target_modules: [query]}", "TrainingArguments.learning_rate=1e-3"]


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., str]) -> str:
    rows = [{"text": f"{word} day {i}", "label": word} for i in range(8) for word in ("good", "bad")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(RECIPE)


def refusal(recipe: str, *words: str) -> str:
    with pytest.raises(RecipeError) as caught:
        run(recipe, words)
    return str(caught.value)


def test_an_adapter_and_a_full_model_do_not_share_a_folder(recipe: str) -> None:
    run(recipe)
    assert refusal(recipe, *ADAPTER) == (
        "recipe.yaml:9: output_dir 'out' has model.safetensors of another run, and this one writes an adapter: "
        "both would be pushed; choose another output_dir"
    )
    run(recipe, [*ADAPTER, "TrainingArguments.output_dir=adapter"])
    assert refusal(recipe, "TrainingArguments.output_dir=adapter") == (
        "argument 'TrainingArguments.output_dir=adapter': output_dir 'adapter' has adapter_model.safetensors of "
        "another run, and this one writes a full model: both would be pushed; choose another output_dir"
    )


def test_an_evaluation_does_not_take_the_place_of_a_trainings_record(recipe: str) -> None:
    run(recipe)
    assert refusal(recipe, "TrainingArguments.do_train=false") == (
        "recipe.yaml:9: output_dir 'out' has model.safetensors of another run, and this evaluation would replace "
        "its record; choose another output_dir"
    )


def test_an_evaluation_says_that_nothing_was_trained_and_offers_no_model(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, ["TrainingArguments.do_train=false"])
    printed = capsys.readouterr().out
    assert "steps      none (do_train: false): the model is evaluated as it is" in printed
    assert "\nevaluated; nothing was trained\n" in printed
    assert "hf-recipes push" not in printed
    assert {path.name for path in Path("out").iterdir()} == {
        "recipe.yaml",
        "record.json",
        "scores.parquet",
        "scores-test.parquet",
        "examples.parquet",
        "examples-test.parquet",
        "report.md",
        "report.html",
        "report-plots",
    }
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["steps"], record["planned_steps"]) == ("finished", 0, 0)
    assert not [name for name in record["metrics"]["eval"] if "preparation" in name]


def test_a_failed_attempt_leaves_the_finished_runs_record(recipe: str) -> None:
    run(recipe)
    before = Path("out/record.json").read_text()
    assert refusal(recipe, "dataset.label_column=mood") == (
        "argument 'dataset.label_column=mood': the data has no column 'mood' (it has text, label); "
        "name it with dataset.label_column"
    )
    assert Path("out/record.json").read_text() == before
    failed = json.loads(Path("out/record-failed.json").read_text())
    assert (failed["status"], failed["stage"]) == ("failed", "data")


def test_scores_of_a_test_split_that_is_gone_do_not_stay(recipe: str) -> None:
    run(recipe)
    assert Path("out/scores-test.parquet").exists()
    run(recipe, ["dataset.split={train: train, validation: validation}"])
    assert not Path("out/scores-test.parquet").exists()


def test_a_recipe_and_a_readme_of_the_users_are_not_written_over(recipe: str) -> None:
    Path("README.md").write_text("# My project\n")
    assert refusal(recipe, "TrainingArguments.output_dir=.") == (
        "argument 'TrainingArguments.output_dir=.': output_dir '.' has the recipe itself, and the resolved recipe "
        "would be written over it; choose another output_dir, or give the recipe another name\n"
        "argument 'TrainingArguments.output_dir=.': output_dir '.' has a README.md that no run wrote: "
        "the model card would replace it; choose another output_dir"
    )
    assert Path("recipe.yaml").read_text() == RECIPE
    assert Path("README.md").read_text() == "# My project\n"


def test_the_command_that_pushes_can_be_pasted_whatever_the_folder_is_called(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, ["TrainingArguments.output_dir=mein lauf/ü 1"])
    assert "next     hf-recipes push 'mein lauf/ü 1' --repo YOU/1    put it on the Hub" in capsys.readouterr().out


def test_a_run_that_diverged_says_so(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DivergedError):
        run(recipe, ["TrainingArguments.learning_rate=1e30", "TrainingArguments.max_steps=4", "on_nonfinite=skip"])
    assert "warning: the run diverged: " in capsys.readouterr().out


def test_a_run_does_not_begin_in_a_checkpoint_of_another_run(recipe: str) -> None:
    Path("out").mkdir()
    Path("out/recipe.yaml").write_text("task: chat\n")
    assert refusal(recipe, "TrainingArguments.output_dir=out/checkpoint-1") == (
        "argument 'TrainingArguments.output_dir=out/checkpoint-1': output_dir 'out/checkpoint-1' is a checkpoint's "
        "place in the folder of another run; choose another output_dir"
    )
    assert not Path("out/checkpoint-1").exists()


def test_dropping_the_only_batch_is_refused_before_training(recipe: str) -> None:
    words = ["TrainingArguments.dataloader_drop_last=true", "TrainingArguments.per_device_train_batch_size=17"]
    assert refusal(recipe, *words) == (
        f"argument '{words[0]}': dataloader_drop_last: true leaves nothing to train on: 16 rows make no batch of 17; "
        "leave it out, or take a smaller per_device_train_batch_size"
    )


def test_the_planned_steps_are_those_that_are_made_when_the_last_batch_is_dropped(recipe: str) -> None:
    words = "max_steps=-1 num_train_epochs=2.5 per_device_train_batch_size=5 gradient_accumulation_steps=2"
    run(recipe, [f"TrainingArguments.{word}" for word in (*words.split(), "dataloader_drop_last=true")])
    record = json.loads(Path("out/record.json").read_text())
    assert record["steps"] == record["planned_steps"] == 5


def test_what_an_optimizer_refuses_is_one_message_at_its_key(recipe: str) -> None:
    words = ["TrainingArguments.optim=sgd", "TrainingArguments.optim_args='momentum=abc'"]
    assert refusal(recipe, *words) == (
        "argument \"TrainingArguments.optim_args='momentum=abc'\": optim_args is refused by the trainer: "
        "could not convert string to float: 'abc'"
    )


def test_a_missing_package_is_reported_once(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(recipe, "TrainingArguments.optim=schedule_free_adamw")
    assert told == (
        "argument 'TrainingArguments.optim=schedule_free_adamw': optim: schedule_free_adamw needs schedulefree, "
        "which is not installed here; pip install schedulefree"
    )
    assert "schedulefree" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "report.md", "report.html", "record.json"])
def test_a_run_that_dies_while_it_writes_a_file_leaves_the_complete_one_and_can_be_started_again(
    recipe: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe)
    before = Path("out", name).read_text()
    write = Path.write_text

    def dies(self: Path, text: str, *args: Any, **words: Any) -> int:
        if self.name.startswith(name):
            write(self, text[: len(text) // 2])
            raise KeyboardInterrupt  # whatever comes next is not written
        return write(self, text, *args, **words)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", dies)
        run(recipe)
    assert Path("out", name).read_text() == before
    run(recipe)


def test_a_run_that_dies_between_pefts_model_card_and_its_own_can_be_started_again(recipe: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    words = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    small = AutoModelForCausalLM.from_config(LlamaConfig(**words, vocab_size=20))
    get_peft_model(small, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(tmp_path)
    theirs = (tmp_path / "README.md").read_text()
    for text in (theirs, ""):
        Path("out").mkdir(exist_ok=True)
        Path("out/README.md").write_text(text)
        run(recipe)
        assert "Made with hf_recipes" in Path("out/README.md").read_text()
    Path("out/README.md").write_text(theirs.replace("[More Information Needed]", "Mine."))
    assert "has a README.md that no run wrote" in refusal(recipe)


def test_the_recipe_that_an_older_version_left_in_its_folder_can_be_run_again_there(recipe: str) -> None:
    Path("out").mkdir()
    old = dump_recipe(read_recipe(recipe)).replace("disable_guards", "train_despite")
    assert "train_despite" in old
    Path("out/recipe.yaml").write_text(old)
    assert list(find_foreign_files(read_recipe("out/recipe.yaml"), Path("out"))) == []


@pytest.mark.parametrize("name", ["record.json", "report.html", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_training(name: str, recipe: str) -> None:
    Path("out", name).mkdir(parents=True)
    what = f"output_dir 'out' has a folder {name}, where the run writes a file; move it away"
    assert what in refusal(recipe)
    assert [path.name for path in Path("out").iterdir() if path.is_file() and path.name != ".lock"] == []
