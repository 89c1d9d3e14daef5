"""A recipe file to a Recipe and back to text; every error at once, each with its line."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import dump_recipe
from tests.support.recipe_files import TRANSFORMERS, VALID, changed, errors_of


def test_a_recipe_reads_as_it_is_written_and_every_key_knows_its_line(here):
    recipe = read_recipe(here(VALID))
    assert recipe.task == "text-classification"
    assert recipe.trainer == "TrainingArguments"
    assert recipe.training["learning_rate"] == 2e-5
    assert recipe.section("dataset")["data_files"]["train"] == "data/train.jsonl"
    assert recipe.section("LoraConfig") == {}
    assert recipe.get("dataset.data_files.validation") == "data/validation.jsonl"
    assert recipe.get("TrainingArguments.seed") is None
    assert recipe.get("TrainingArguments.seed", 42) == 42
    assert recipe.location("TrainingArguments.learning_rate") == "a.yaml:11"
    assert recipe.location("dataset.data_files.train") == "a.yaml:6"
    assert recipe.location("TrainingArguments.seed") == "a.yaml:9"
    assert recipe.location("LoraConfig.r") == "a.yaml"
    assert recipe.translations == () and recipe.warnings == ()


def test_yaml_is_read_as_1_2(here):
    path = here(changed(line13="  label_names: [no, on, 2020-01-01, '1e-4']"))
    recipe = read_recipe(path, ["TrainingArguments.run_name=off"])
    assert recipe.training["label_names"] == ["no", "on", "2020-01-01", "1e-4"]
    assert recipe.training["run_name"] == "off"


def test_without_an_output_dir_the_run_goes_where_the_recipe_is_called(here):
    recipe = read_recipe(here(changed(line10="  seed: 1"), "recipes/my-run.yaml"))
    assert recipe.training["output_dir"] == "runs/my-run"


def test_anchors_aliases_and_merge_keys_are_followed(here):
    text = VALID.replace("  seed: 1", "") + "LoraConfig: &lora {r: 4, target_modules: [query]}\n"
    text = text.replace("TrainingArguments:\n", "TrainingArguments:\n  <<: &base {seed: 7, learning_rate: 1.0}\n")
    recipe = read_recipe(here(text))
    assert recipe.training["seed"] == 7
    assert recipe.training["learning_rate"] == 2e-5, "what stands in the section wins over what is merged"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(here):
    plain = read_recipe(here(VALID))
    other = read_recipe(here(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode(), "b.yaml"))
    assert other.sections == plain.sections
    assert other.location("metrics") == "b.yaml:14"


def test_reading_a_recipe_imports_nothing_heavy(here):
    here(VALID)
    code = """
        import sys
        from hf_recipes.recipe.read import read_recipe
        from hf_recipes.recipe.recipe import dump_recipe
        dump_recipe(read_recipe("a.yaml", ["TrainingArguments.seed=1"]))
        heavy = {"torch", "transformers", "trl", "peft", "datasets", "tokenizers", "numpy", "evaluate"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


TWELVE = """\
task: text-classification
model:
  pretrained_model_name_or_path: bert-base-uncased
  num_hidden_layers: two
dataset:
  path: json
  test_size: 1.5
TrainingArguments:
  per_device_train_batch_size: 8.5
  per_device_eval_batch_size: [8]
  gradient_accumulation_steps: -4
  learning_rate: abc
  lr_scheduler_type: cosin
  optim: adamw_bnb_8bits
  max_lenght: 128
  seed: 1
  seed: 2
  fp16: true
  bf16: true
sample_prompts: [Hello]
Lora_Config: {r: 8}
"""


def test_a_dozen_planted_errors_are_reported_at_once_each_with_its_line(here):
    assert errors_of(here(TWELVE)) == [
        "a.yaml:4: model.num_hidden_layers is 'two' (string); it must be an integer, such as 12",
        "a.yaml:7: dataset.test_size is 1.5; it must be above 0, and whole above 1",
        "a.yaml:9: TrainingArguments.per_device_train_batch_size is 8.5 (number); it must be an integer, such as 8",
        "a.yaml:10: TrainingArguments.per_device_eval_batch_size is [8] (list); write 8 without the brackets",
        "a.yaml:11: TrainingArguments.gradient_accumulation_steps is -4; it must be at least 1",
        "a.yaml:12: TrainingArguments.learning_rate is 'abc' (string); it must be a number, such as 5e-05",
        "a.yaml:13: TrainingArguments.lr_scheduler_type is 'cosin'; did you mean 'cosine'?",
        "a.yaml:14: TrainingArguments.optim is 'adamw_bnb_8bits'; did you mean 'adamw_bnb_8bit'?",
        f"a.yaml:15: TrainingArguments has no 'max_lenght' ({TRANSFORMERS}); did you mean 'max_length' of dataset?",
        "a.yaml:17: duplicate key 'seed'; it is already on line 16: keep one of them",
        "a.yaml:18: fp16 and bf16 are both true; keep one; bf16 where the GPU has it",
        "a.yaml:20: task text-classification generates no text: sample_prompts has no effect; leave it out",
        "a.yaml:21: a recipe has no 'Lora_Config'; did you mean 'LoraConfig'?",
    ]


def test_early_errors_do_not_hide_those_that_need_a_valid_recipe(here):
    text = VALID.replace("task: text-classification", "task: text-clasification") + "SFTConfig: {}\nLoraConfig: [1]\n"
    text = text.replace("  dataloader_num_workers: 4", "  fp16: true\n  bf16: true\n  dataloader_prefetch_factor: 2")
    told = "\n".join(errors_of(here(text)))
    for line in (1, 13, 15, 17, 18):
        assert f"a.yaml:{line}: " in told, told
    text = changed(line13="  eval_strategy: stepss\n  load_best_model_at_end: true")
    assert errors_of(here(text)) == ["a.yaml:13: TrainingArguments.eval_strategy is 'stepss'; did you mean 'steps'?"]


def test_a_dumped_recipe_reads_back_to_equal_sections(here):
    text = VALID + "LoraConfig: {r: 4, target_modules: [query], rank_pattern: {a.0: 2}}\n"
    recipe = read_recipe(here(text))
    values = {
        "TrainingArguments.learning_rate": 1e-4,
        "TrainingArguments.weight_decay": 1e-05,
        "TrainingArguments.adam_epsilon": 1e22,
        "TrainingArguments.run_name": "no",
        "TrainingArguments.hub_model_id": "1e-4",
        "TrainingArguments.project": "line one\nline two: 'x' \"y\" # z\n\n  é \U0001f600 \t end ",
        "TrainingArguments.data_seed": None,
        "TrainingArguments.label_names": [
            "",
            "null",
            "~",
            "true",
            "0o17",
            "=",
            "<<",
            "- a",
            "2020-01-01",
            "x: y",
            "1_0",
        ],
        "model.num_labels": 3,
        "model.id2label": {0: "neg", 1: "pos"},
    }
    changed_recipe = recipe.with_values(values, "this test")
    dumped = dump_recipe(changed_recipe)
    again = read_recipe(here(dumped, "b.yaml"))
    assert again.sections == changed_recipe.sections
    assert list(again.sections) == [line.rstrip(":").split(":")[0] for line in dumped.splitlines() if line[0].isalpha()]
    assert "&" not in dumped.replace("'&'", "") and dump_recipe(again) == dumped


def test_with_values_returns_a_new_recipe_and_leaves_the_old_one(here):
    recipe = read_recipe(here(VALID))
    new = recipe.with_values({"TrainingArguments.use_cpu": True, "GenerationConfig.max_new_tokens": 8}, "our choice")
    assert new.training["use_cpu"] is True and new.section("GenerationConfig") == {"max_new_tokens": 8}
    assert new.location("TrainingArguments.use_cpu") == "our choice"
    assert new.location("TrainingArguments.learning_rate") == "a.yaml:11"
    assert "use_cpu" not in recipe.training and recipe.section("GenerationConfig") == {}


def test_no_mutation_of_a_recipe_makes_the_reader_raise_anything_but_its_own_error(here):
    import random

    random.seed(7)
    base = VALID + "LoraConfig: {r: 4, target_modules: [query]}\nEarlyStoppingCallback: {early_stopping_patience: 2}\n"
    base = base.replace(
        "  dataloader_num_workers: 4", "  eval_strategy: epoch\n  save_strategy: epoch\n  load_best_model_at_end: true"
    )
    lines = base.splitlines()
    values = [
        "",
        "null",
        "[]",
        "{}",
        "[1]",
        "{a: 1}",
        "-1",
        "1e-4",
        "abc",
        "'4'",
        "true",
        ".nan",
        "*a",
        "!x 1",
        "[{a: [b]}]",
        "10e400",
    ]
    read = refused = 0
    for turn in range(500):
        rows = list(lines)
        for _ in range(random.choice([1, 1, 2, 3])):
            n = random.randrange(len(rows))
            action = random.randrange(6)
            key, colon, rest = rows[n].partition(":")
            if action == 0:
                del rows[n]
            elif action == 1:
                rows.insert(n, rows[random.randrange(len(rows))])
            elif action == 2:
                rows[n] = key + colon + " " + random.choice(values)
            elif action == 3 and key.strip():
                at = random.randrange(len(key))
                rows[n] = key[:at] + random.choice("xyz_.:- \t\"'[]{}&*#|>%@`") + key[at + 1 :] + colon + rest
            elif action == 4:
                rows[n] = "  " + rows[n]
            else:
                rows[n] = rows[n].lstrip()
            if not rows:
                break
        path = here("\n".join(rows) + "\n", f"m{turn % 2}.yaml")
        try:
            recipe = read_recipe(
                path, [random.choice(["TrainingArguments.seed=1", "a", "model={}", "LoraConfig=null"])][: turn % 2]
            )
        except RecipeError as error:
            refused += 1
            assert error.errors and all(error.location and error.message for error in error.errors)
            continue
        read += 1
        again = read_recipe(here(dump_recipe(recipe), "again.yaml"))
        assert again.sections == recipe.sections
    assert read > 30 and refused > 100
