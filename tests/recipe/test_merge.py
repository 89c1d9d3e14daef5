"""What a recipe extends and the arguments that override it: one recipe, and errors where they are written."""

from __future__ import annotations

import pytest

from hf_recipes.recipe.read import read_recipe
from tests.support.recipe_files import TRANSFORMERS, VALID, changed, errors_of


def test_old_keys_are_translated_each_with_its_line(here):
    recipe = read_recipe(here(changed(line11="  warmup_ratio: 0.06", line12="  evaluation_strategy: no")))
    assert recipe.training["warmup_steps"] == 0.06 and recipe.training["eval_strategy"] == "no"
    assert "warmup_ratio" not in recipe.training
    assert recipe.location("TrainingArguments.warmup_steps") == "a.yaml:11"
    assert [line.partition(" (")[0] for line in recipe.translations] == [
        "a.yaml:11: warmup_ratio: 0.06 -> warmup_steps: 0.06",
        "a.yaml:12: evaluation_strategy: 'no' -> eval_strategy: 'no'",
    ] or len(recipe.translations) == 2


def test_a_new_key_of_a_child_wins_over_the_old_one_of_its_parent(here):
    here(changed(line11="  warmup_ratio: 0.06"), "old.yaml")
    recipe = read_recipe(here("extends: old.yaml\nTrainingArguments: {warmup_steps: 100}\n"))
    assert recipe.training["warmup_steps"] == 100
    assert read_recipe("old.yaml", ["TrainingArguments.warmup_steps=7"]).training["warmup_steps"] == 7
    assert read_recipe("old.yaml", ["TrainingArguments.warmup_ratio=0.5"]).training["warmup_steps"] == 0.5


def test_a_child_is_merged_deeply_over_its_parent_and_lists_replace(here):
    here(VALID, "base/parent.yaml")
    here("extends: parent.yaml\nTrainingArguments: {seed: 1}\n", "base/middle.yaml")
    child = here(
        "extends: base/middle.yaml\nTrainingArguments:\n  learning_rate: 1.0e-4\nmetrics: [f1]\n", "child.yaml"
    )
    recipe = read_recipe(child, ["TrainingArguments.seed=2"])
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.training["seed"] == 2
    assert recipe.training["per_device_train_batch_size"] == 64
    assert recipe.sections["metrics"] == ["f1"]
    assert "extends" not in recipe.sections
    assert recipe.location("TrainingArguments.learning_rate") == "child.yaml:3"
    assert recipe.location("TrainingArguments.per_device_train_batch_size") == "base/parent.yaml:12"
    assert recipe.location("TrainingArguments.seed") == "argument 'TrainingArguments.seed=2'"


def test_a_null_section_takes_the_parents_away(here):
    here(VALID + "LoraConfig: {r: 8}\n", "parent.yaml")
    text = "extends: parent.yaml\ntask: causal-lm\nLoraConfig:\nTrainingArguments: null\nSFTConfig: {seed: 3}\n"
    recipe = read_recipe(
        here(text + "dataset: {label_column: null, path: text}\nmetrics: [perplexity]\n", "child.yaml")
    )
    assert recipe.trainer == "SFTConfig"
    assert "LoraConfig" not in recipe.sections
    assert recipe.training["output_dir"] == "runs/child"
    assert "LoraConfig" not in read_recipe("parent.yaml", ["LoraConfig=null"]).sections
    assert "LoraConfig" not in read_recipe(here(VALID), ["LoraConfig=null"]).sections


def test_a_null_source_of_the_model_makes_room_for_another(here):
    here(VALID, "parent.yaml")
    text = "extends: parent.yaml\nmodel: {pretrained_model_name_or_path: null, config: {model_type: bert}}\n"
    recipe = read_recipe(here(text + "tokenizer: {pretrained_model_name_or_path: bert-base-uncased}\n", "child.yaml"))
    assert recipe.section("model") == {"config": {"model_type": "bert"}}


def test_a_child_with_the_other_trainer_learns_how_to_take_the_parents_away(here):
    here(VALID, "parent.yaml")
    path = here("extends: parent.yaml\nSFTConfig: {max_length: 8}\n", "child.yaml")
    [error] = [f for f in errors_of(path) if "keep one" in f]
    assert error == (
        "child.yaml:2: the recipe has SFTConfig here and TrainingArguments (parent.yaml:9); "
        "keep one of them: `TrainingArguments: null` in this file takes the parent's away"
    )
    [error] = [f for f in errors_of("parent.yaml", "SFTConfig.max_length=8") if "keep one" in f]
    assert error == (
        "argument 'SFTConfig.max_length=8': the recipe has SFTConfig here and TrainingArguments (parent.yaml:9); "
        "keep one of them: the argument 'TrainingArguments=null' takes the other away"
    )


def test_an_error_of_the_parent_is_reported_there_unless_the_child_fixes_it(here):
    here(changed(line11="  learning_rate: abc", line12="  sed: 1"), "parent.yaml")
    path = here("extends: parent.yaml\nTrainingArguments: {seeed: 2}\n", "child.yaml")
    assert errors_of(path) == [
        f"child.yaml:2: TrainingArguments has no 'seeed' ({TRANSFORMERS}); did you mean 'seed'?",
        "parent.yaml:11: TrainingArguments.learning_rate is 'abc' (string); it must be a number, such as 5e-05",
        f"parent.yaml:12: TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?",
    ]
    here(changed(line11="  learning_rate: abc"), "parent.yaml")
    assert read_recipe(here("extends: parent.yaml\nTrainingArguments: {learning_rate: 1}\n", "child.yaml"))


def test_a_parent_that_is_missing_is_reported_at_the_line_of_extends_beside_the_childs_own_errors(here):
    here(VALID, "base.yaml")
    path = here("TrainingArguments:\n  sed: 1\nextends: bsae.yaml\n")
    assert errors_of(path) == [
        f"a.yaml:2: TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?",
        "a.yaml:3: extends bsae.yaml: no such file; did you mean 'base.yaml'?",
    ]


def test_a_circle_of_parents_is_reported_and_does_not_hang(here):
    here("extends: c.yaml\n", "b.yaml")
    here("\nextends: a.yaml\n", "c.yaml")
    assert errors_of(here("extends: ./b.yaml\n")) == [
        "c.yaml:2: extends a.yaml, which leads back to itself; remove one of these `extends`"
    ]
    assert errors_of(here("extends: s.yaml\n", "s.yaml")) == [
        "s.yaml:1: extends s.yaml, which leads back to itself; remove one of these `extends`"
    ]


def test_extends_names_one_file(here):
    assert errors_of(here("extends: [b.yaml]\n")) == [
        "a.yaml:1: extends is [b.yaml] (list); it must be the path of one recipe, relative to this file"
    ]


def test_arguments_win_and_are_read_as_yaml(here):
    overrides = [
        "TrainingArguments.learning_rate=1e-4",
        "TrainingArguments.eval_strategy=no",
        "TrainingArguments.report_to=[tensorboard]",
        "dataset.data_files.train=b.jsonl",
        "LoraConfig={r: 4, target_modules: all-linear}",
        "LoraConfig.rank_pattern={layer.0: 4}",
        "task=text-classification",
        "TrainingArguments.run_name=",
    ]
    recipe = read_recipe(here(VALID), overrides)
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.training["eval_strategy"] == "no"
    assert recipe.training["report_to"] == ["tensorboard"]
    assert recipe.training["run_name"] is None
    assert recipe.section("dataset")["data_files"] == {"train": "b.jsonl", "validation": "data/validation.jsonl"}
    assert recipe.section("LoraConfig") == {"r": 4, "target_modules": "all-linear", "rank_pattern": {"layer.0": 4}}
    assert recipe.get("LoraConfig.rank_pattern.layer.0") == 4
    assert recipe.location("TrainingArguments.learning_rate") == "argument 'TrainingArguments.learning_rate=1e-4'"
    assert recipe.location("TrainingArguments") == "a.yaml:9"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "TrainingArguments.learning_rate=abc",
            "TrainingArguments.learning_rate is 'abc' (string); it must be a number, such as 5e-05",
        ),
        ("TrainingArguments.sed=1", f"TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?"),
        ("TrainingArgument.seed=1", "a recipe has no 'TrainingArgument'; did you mean 'TrainingArguments'?"),
        ("learning_rate=1", "a recipe has no 'learning_rate'; it is a key of TrainingArguments: write it there"),
        ("smoke", "a setting is written Section.key=value; such as TrainingArguments.seed=1"),
        ("metrics", "a setting is written Section.key=value; did you mean 'metrics=...'?"),
        ("Loraconfig", "a setting is written Section.key=value; did you mean 'LoraConfig.key=...'?"),
        ("--smok", "this is no setting; write options before the recipe, and settings as Section.key=value"),
        ("TrainingArguments.=1", "the key after the dot is missing; write TrainingArguments.key=value"),
        ("metrics.f1=1", "metrics has no keys; write metrics=value"),
        (
            "extends=b.yaml",
            "extends belongs in a recipe, not in an argument; give the recipe that extends the other one",
        ),
        ("LoraConfig=8", "LoraConfig is 8 (integer); it must be a mapping: the keyword arguments of LoraConfig"),
        (
            "metrics=[f1",
            "is not YAML: expected ',' or ']', but got '<stream end>'; "
            "check the indentation, the quotes and the brackets here and on the line above",
        ),
    ],
)
def test_a_wrong_argument_is_refused_with_itself_as_the_location(here, argument, message):
    assert errors_of(here(VALID), argument) == [f"argument {argument!r}: {message}"]


def test_errors_of_the_file_and_of_the_arguments_are_reported_together(here):
    assert errors_of(here(changed(line11="  sed: 1")), "TrainingArguments.seed=x", "foo") == [
        f"a.yaml:11: TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?",
        "argument 'foo': a setting is written Section.key=value; such as TrainingArguments.seed=1",
        "argument 'TrainingArguments.seed=x': "
        "TrainingArguments.seed is 'x' (string); it must be an integer, such as 42",
    ]


def test_an_argument_that_is_not_yaml_is_one_error(here):
    assert errors_of(here(VALID), "TrainingArguments.seed=[1") == [
        "argument 'TrainingArguments.seed=[1': is not YAML: expected ',' or ']', but got '<stream end>'; "
        "check the indentation, the quotes and the brackets here and on the line above"
    ]
