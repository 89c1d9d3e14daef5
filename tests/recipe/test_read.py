"""Reading a recipe: what a user writes, what comes back, and every fault with its line, what it is, and the mend."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import version

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import dump_recipe

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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and a writer of recipes in it: `here(text, name)`."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="a.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(text, encoding="utf-8")
        return name

    return write


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


# a valid recipe -------------------------------------------------------------------------------------------------------


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


def test_anchors_aliases_and_merge_keys_are_taken(here):
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


# faults of keys and values --------------------------------------------------------------------------------------------


def test_a_misspelled_key_is_refused_with_its_line_and_the_nearest_name(here):
    text = VALID.replace("text-classification", "chat").replace("TrainingArguments", "SFTConfig")
    path = here(text.replace("  dataloader_num_workers: 4", "  max_lenght: 512"))
    [error] = [f for f in errors_of(path) if "max_lenght" in f]
    assert error == f"a.yaml:13: SFTConfig has no 'max_lenght' (trl {version('trl')}); did you mean 'max_length'?"


TRANSFORMERS = f"transformers {version('transformers')}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("per_device_train_batch_size: 8.5", "is 8.5 (float); it must be an int, such as 8"),
        ("per_device_train_batch_size: 8.0", "is 8.0 (float); write 8"),
        ("per_device_train_batch_size: [8]", "is [8] (list); write 8 without the brackets"),
        ("per_device_train_batch_size: -4", "is -4; it must be at least 1"),
        ("per_device_train_batch_size: 0", "is 0; it must be at least 1"),
        ('per_device_train_batch_size: "4"', "is '4' (str); write 4 without quotes"),
        ("per_device_train_batch_size: true", "is true (bool); it must be an int, such as 8"),
        ("per_device_train_batch_size: {a: 1}", "is {'a': 1} (mapping); it must be an int, such as 8"),
        (
            "per_device_train_batch_size:",
            "is null; it must be an int; leave the key out for upstream's default",
        ),
        ("learning_rate: abc", "is 'abc' (str); it must be a number, such as 5e-05"),
        ("learning_rate: '1e-4'", "is '1e-4' (str); write 1e-4 without quotes"),
        ("learning_rate: 0", "is 0; it must be above 0"),
        ("learning_rate: .nan", "is nan; it must be a finite number"),
        ("learning_rate: 1e999", "is inf; it must be a finite number"),
        ("fp16: 'true'", "is 'true' (str); write true"),
        ("fp16: yes", "is 'yes' (str); write true"),
        ("fp16: 1", "is 1 (int); it must be true or false"),
        ("run_name: 2024", "is 2024 (int); it must be a string: quote it"),
        ("lr_scheduler_type: cosin", "is 'cosin'; did you mean 'cosine'?"),
        ("optim: adamw_bnb_8bits", "is 'adamw_bnb_8bits'; did you mean 'adamw_bnb_8bit'?"),
        ("eval_strategy: epochs", "is 'epochs'; did you mean 'epoch'?"),
        ("eval_strategy: zzz", "is 'zzz'; it must be one of 'no', 'steps', 'epoch'"),
        (
            "train_sampling_strategy: lenght",
            "is 'lenght'; it must be one of 'random', 'sequential', 'group_by_length', ",
        ),
        ("report_to: [tensorbord]", "holds 'tensorbord'; did you mean 'tensorboard'?"),
        ("report_to: [1]", "holds 1 (int) as item 1; it must be a string or a list of str"),
        ("save_steps: 2.5", "is 2.5; it must be above 0, and whole above 1"),
        ("max_steps: 0", "is 0; it must be at least 1, or -1"),
        ("lr_scheduler_kwargs: min_lr", "is 'min_lr' (str); it must be a mapping"),
        ("adam_beta2: 1", "is 1; it must be at least 0 and below 1"),
        ("seed: -1", "is -1; it must be at least 0 and at most 4294967295"),
    ],
)
def test_a_wrong_value_is_refused_with_the_mend(here, line, message):
    name = line.partition(":")[0]
    [error] = errors_of(here(changed(line13=f"  {line}", line11="", line12="")))
    assert error.startswith(f"a.yaml:13: TrainingArguments.{name} {message}")


@pytest.mark.parametrize(
    "line",
    [
        "resume_from_checkpoint: true",
        "resume_from_checkpoint: runs/a/checkpoint-5",
        "learning_rate: 1",
        "warmup_steps: 0.06",
        "save_steps: 0.1",
        "save_total_limit: null",
        "report_to: all",
        "report_to: [tensorboard, wandb]",
        "lr_scheduler_kwargs: {min_lr_rate: 0.1}\n  lr_scheduler_type: cosine_with_min_lr",
        "include_num_input_tokens_seen: non_padding",
        "max_steps: -1",
        "debug: [underflow_overflow]",
        "torch_compile_backend: inductor",
    ],
)
def test_what_upstream_takes_is_taken(here, line):
    name, _, _ = line.partition(":")
    recipe = read_recipe(here(changed(line13=f"  {line}", line11="")))
    assert name in recipe.training


def test_a_key_that_stands_in_the_wrong_section_is_told_where_it_belongs(here):
    path = here(
        changed(line11="  lora_alpha: 3", line12="  max_lenght: 5", line13="  packing: true") + "learning_rate: 1\n"
    )
    assert errors_of(path) == [
        f"a.yaml:11: TrainingArguments has no 'lora_alpha' ({TRANSFORMERS}); it is a key of LoraConfig",
        f"a.yaml:12: TrainingArguments has no 'max_lenght' ({TRANSFORMERS}); did you mean 'max_length' of dataset?",
        f"a.yaml:13: TrainingArguments has no 'packing' ({TRANSFORMERS}); it is a key of SFTConfig",
        "a.yaml:15: a recipe has no 'learning_rate'; it is a key of TrainingArguments: write it there",
    ]


def test_an_unknown_section_is_refused_with_the_nearest(here):
    assert errors_of(here(VALID.replace("TrainingArguments:", "TrainingArgument:"))) == [
        "a.yaml:9: a recipe has no 'TrainingArgument'; did you mean 'TrainingArguments'?"
    ]
    assert errors_of(here(VALID + "lora_config: {r: 1}\n")) == [
        "a.yaml:15: a recipe has no 'lora_config'; did you mean 'LoraConfig'?"
    ]


def test_all_duplicate_keys_are_reported_with_the_line_of_the_first(here):
    text = VALID + "metrics: [f1]\nLoraConfig:\n  r: 1\n  r: 2\n  r: 3\n"
    assert errors_of(here(text)) == [
        "a.yaml:15: duplicate key 'metrics'; it stands on line 14 already: keep one of them",
        "a.yaml:18: duplicate key 'r'; it stands on line 17 already: keep one of them",
        "a.yaml:19: duplicate key 'r'; it stands on line 17 already: keep one of them",
    ]


def test_both_trainers_or_neither_is_a_fault(here):
    both = errors_of(here(VALID + "SFTConfig: {}\n"))
    assert both == [
        "a.yaml:15: the recipe has SFTConfig here and TrainingArguments (a.yaml:9); "
        "keep one of them: TrainingArguments for Trainer, SFTConfig for SFTTrainer",
        "a.yaml:15: task text-classification is not trained with SFTConfig; use TrainingArguments",
    ]
    neither = errors_of(
        here("task: chat\nmodel: {preset: gpt-small}\ntokenizer: {pretrained_model_name_or_path: gpt2}\n")
    )
    assert neither == [
        "a.yaml: the recipe has neither TrainingArguments nor SFTConfig; "
        "write TrainingArguments (Trainer) or SFTConfig (SFTTrainer)",
        "a.yaml: the recipe has no dataset; write `dataset:` with load_dataset's arguments, such as path: json",
    ]


def test_a_task_is_needed_and_must_be_one_of_ours(here):
    tasks = "causal-lm, chat, text-classification, token-classification"
    assert errors_of(here(changed(line1=""))) == [f"a.yaml: the recipe has no task; write `task:` with one of {tasks}"]
    assert errors_of(here(changed(line1="task: text-clasification"))) == [
        "a.yaml:1: there is no task 'text-clasification'; did you mean 'text-classification'?"
    ]
    assert errors_of(here(changed(line1="task: [chat]"))) == [
        "a.yaml:1: there is no task ['chat']; did you mean 'chat'?"
    ]


def test_a_section_that_is_empty_or_no_mapping_is_a_fault(here):
    assert errors_of(here(VALID + "LoraConfig:\n")) == [
        "a.yaml:15: LoraConfig is empty; write `LoraConfig: {}` for upstream's defaults, or leave the section out"
    ]
    assert errors_of(here(VALID + "LoraConfig: 8\n")) == [
        "a.yaml:15: LoraConfig is 8 (int); it must be a mapping: the keyword arguments of LoraConfig"
    ]


def test_our_own_words_are_judged_too(here):
    path = here(changed(line14="metrics: f1") + "master_weights: 1\nsample_prompts: [1]\n")
    assert errors_of(path)[:3] == [
        "a.yaml:14: metrics is 'f1' (str); it must be a list of str",
        "a.yaml:15: master_weights is 1 (int); it must be true or false",
        "a.yaml:16: sample_prompts holds 1 (int) as item 1; it must be a list of str",
    ]


# model, tokenizer, dataset --------------------------------------------------------------------------------------------


def test_a_model_comes_from_exactly_one_source(here):
    assert errors_of(here(changed(line3="  dtype: float32"))) == [
        "a.yaml:2: model names no weights and no shape; write one of pretrained_model_name_or_path, preset, config"
    ]
    [error] = errors_of(here(changed(line3="  pretrained_model_name_or_path: a\n  preset: gpt-small")))
    assert error == (
        "a.yaml:4: model has pretrained_model_name_or_path and preset; "
        "keep one of them (`pretrained_model_name_or_path: null` takes a parent's away)"
    )


def test_a_preset_is_known_and_needs_a_tokenizer(here):
    assert errors_of(here(changed(line3="  preset: gpt-smal"))) == [
        "a.yaml:3: there is no preset 'gpt-smal'; did you mean 'gpt-small'?",
        "a.yaml:3: a model from scratch needs a tokenizer; "
        "write `tokenizer:` with pretrained_model_name_or_path, or `BpeTrainer:` to train one on the data",
    ]


def test_fields_of_the_models_config_are_judged_by_its_class(here):
    text = changed(line3="  pretrained_model_name_or_path: bert-base-uncased\n  num_hidden_layers: 2.5")
    assert errors_of(here(text)) == ["a.yaml:4: model.num_hidden_layers is 2.5 (float); it must be an int, such as 12"]
    text = changed(
        line3="  pretrained_model_name_or_path: bert-base-uncased\n  hidden_dropout_probb: 0.1\n  num_labels: 3"
    )
    recipe = read_recipe(here(text))
    assert list(map(str, recipe.warnings)) == [
        f"a.yaml:4: model.hidden_dropout_probb is not a known key ({TRANSFORMERS}); did you mean 'hidden_dropout_prob'?"
    ]


def test_a_local_config_json_tells_the_fields_of_the_config(here):
    here('{"model_type": "llama", "num_hidden_layers": 2}', "model/config.json")
    text = changed(line3="  pretrained_model_name_or_path: ./model\n  rms_norm_eps: 0.1\n  n_layer: 3")
    [warning] = read_recipe(here(text)).warnings
    assert str(warning).startswith(f"a.yaml:5: model.n_layer is not a known key ({TRANSFORMERS}); ")
    assert errors_of(here(changed(line3="  pretrained_model_name_or_path: ./model\n  rms_norm_eps: big"))) == [
        "a.yaml:4: model.rms_norm_eps is 'big' (str); it must be a number, such as 1e-06"
    ]


def test_a_config_json_that_is_none_is_a_doubt_not_a_crash(here):
    here("[1, 2", "model/config.json")
    text = changed(line3="  pretrained_model_name_or_path: ./model\n  n_layer: 3")
    assert str(read_recipe(here(text)).warnings[0]).startswith("a.yaml:3: ./model/config.json is not JSON (")


def test_an_inline_config_is_judged(here):
    tail = "tokenizer: {pretrained_model_name_or_path: gpt2}\n"
    config = "  config:\n    model_type: gpt2\n    n_layer: two\n    n_lyer: 2"
    assert errors_of(here(changed(line3=config) + tail)) == [
        "a.yaml:5: model.config.n_layer is 'two' (str); it must be an int, such as 12"
    ]
    recipe = read_recipe(here(changed(line3=config.replace("two", "2")) + tail))
    assert list(map(str, recipe.warnings)) == [
        f"a.yaml:6: GPT2Config has no 'n_lyer' ({TRANSFORMERS}); did you mean 'n_layer'?"
    ]
    assert errors_of(here(changed(line3="  config: {model_type: gptt2}") + tail)) == [
        f"a.yaml:3: model.config.model_type is 'gptt2', which {TRANSFORMERS} does not have; did you mean 'gpt2'?"
    ]
    assert errors_of(here(changed(line3="  config: {n_layer: 2}") + tail)) == [
        "a.yaml:3: model.config has no model_type; write the name of an architecture, such as gpt2"
    ]


def test_words_of_the_builder_are_known_and_strange_ones_are_doubted(here):
    text = changed(line5="  path: csv\n  sep: ;\n  skiprows: 1\n  text_colum: body\n  data_dir: a")
    recipe = read_recipe(here(text))
    assert list(map(str, recipe.warnings)) == [
        f"a.yaml:8: dataset.text_colum is not a known key (datasets {version('datasets')}); did you mean 'text_column'?"
    ]
    [warning] = read_recipe(here(changed(line5="  path: jsonn"))).warnings
    assert str(warning) == (
        "a.yaml:5: dataset.path is 'jsonn', which is no file format; "
        "did you mean 'json'? otherwise it is looked for on the Hub"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("test_size: 0", "dataset.test_size is 0; it must be above 0, and whole above 1"),
        ("test_size: 1.5", "dataset.test_size is 1.5; it must be above 0, and whole above 1"),
        ("max_length: 0", "dataset.max_length is 0; it must be at least 1"),
        ("seed: '1'", "dataset.seed is '1' (str); write 1 without quotes"),
        ("streaming: maybe", "dataset.streaming is 'maybe' (str); it must be true or false"),
    ],
)
def test_values_of_the_dataset_are_judged(here, line, message):
    assert errors_of(here(changed(line7=f"  {line}"))) == [f"a.yaml:7: {message}"]


def test_words_of_the_tokenizer_are_judged(here):
    recipe = read_recipe(here(VALID + "tokenizer: {padding_side: left, padding_sid: left, do_lower_case: true}\n"))
    assert list(map(str, recipe.warnings)) == [
        f"a.yaml:15: tokenizer.padding_sid is not a known key ({TRANSFORMERS}); did you mean 'padding_side'?"
    ]
    assert errors_of(here(VALID + "tokenizer: {padding_side: lefft, model_max_length: '8'}\n")) == [
        "a.yaml:15: tokenizer.padding_side is 'lefft'; did you mean 'left'?",
        "a.yaml:15: tokenizer.model_max_length is '8' (str); write 8 without quotes",
    ]


def test_a_quoted_number_is_a_fault_where_upstream_takes_a_number_or_a_word(here):
    text = VALID.replace("text-classification", "causal-lm").replace("TrainingArguments", "SFTConfig")
    text = text.replace("  label_column: label\n", "").replace("[f1, accuracy]", "[perplexity]")
    path = here(text.replace("  dataloader_num_workers: 4", "  pad_to_multiple_of: '8'"))
    assert errors_of(path) == ["a.yaml:12: SFTConfig.pad_to_multiple_of is '8'; write 8 without quotes"]


def test_code_from_the_hub_is_refused(here):
    [error] = errors_of(here(changed(line3="  pretrained_model_name_or_path: a\n  trust_remote_code: true")))
    assert error == (
        "a.yaml:4: model.trust_remote_code is refused: code from the Hub is not run; "
        "leave it out: this package loads what transformers has a class for"
    )
    assert read_recipe(here(changed(line3="  pretrained_model_name_or_path: a\n  trust_remote_code: false")))


SECRET = "hf_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("TrainingArguments", "hub_token"),
        ("TrainingArguments", "push_to_hub_token"),
        ("model", "token"),
        ("dataset", "token"),
    ],
)
def test_a_token_is_refused_and_never_shown(here, section, key):
    path = here(VALID.replace(f"{section}:\n", f"{section}:\n  {key}: {SECRET}\n"))
    line = VALID.splitlines().index(f"{section}:") + 2
    assert errors_of(path) == [f"a.yaml:{line}: {section}.{key}: a token in a recipe is refused; set HF_TOKEN instead"]
    assert errors_of(here(VALID), f"{section}.{key}={SECRET}") == [
        f"argument '{section}.{key}=...': a token in a recipe is refused; set HF_TOKEN instead"
    ]


def test_a_token_under_another_name_is_recognised_by_its_shape(here):
    path = here(changed(line7=f"  storage_options: {{headers: [Bearer {SECRET}]}}"))
    [error] = errors_of(path)
    assert SECRET not in error and error.startswith("a.yaml:7: dataset.storage_options.headers")


# old keys -------------------------------------------------------------------------------------------------------------


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


# extends --------------------------------------------------------------------------------------------------------------


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


def test_a_child_with_the_other_trainer_is_told_how_to_take_the_parents_away(here):
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


def test_a_fault_of_the_parent_is_told_in_the_parent_unless_the_child_mends_it(here):
    here(changed(line11="  learning_rate: abc", line12="  sed: 1"), "parent.yaml")
    path = here("extends: parent.yaml\nTrainingArguments: {seeed: 2}\n", "child.yaml")
    assert errors_of(path) == [
        f"child.yaml:2: TrainingArguments has no 'seeed' ({TRANSFORMERS}); did you mean 'seed'?",
        "parent.yaml:11: TrainingArguments.learning_rate is 'abc' (str); it must be a number, such as 5e-05",
        f"parent.yaml:12: TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?",
    ]
    here(changed(line11="  learning_rate: abc"), "parent.yaml")
    assert read_recipe(here("extends: parent.yaml\nTrainingArguments: {learning_rate: 1}\n", "child.yaml"))


def test_a_parent_that_is_missing_is_told_at_the_line_of_extends_beside_the_childs_own_faults(here):
    here(VALID, "base.yaml")
    path = here("TrainingArguments:\n  sed: 1\nextends: bsae.yaml\n")
    assert errors_of(path) == [
        f"a.yaml:2: TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?",
        "a.yaml:3: extends bsae.yaml: no such file; did you mean 'base.yaml'?",
    ]


def test_a_circle_of_parents_is_told_and_does_not_hang(here):
    here("extends: c.yaml\n", "b.yaml")
    here("\nextends: a.yaml\n", "c.yaml")
    assert errors_of(here("extends: ./b.yaml\n")) == [
        "c.yaml:2: extends a.yaml, which leads back to itself; end the circle"
    ]
    assert errors_of(here("extends: s.yaml\n", "s.yaml")) == [
        "s.yaml:1: extends s.yaml, which leads back to itself; end the circle"
    ]


def test_extends_names_one_file(here):
    assert errors_of(here("extends: [b.yaml]\n")) == [
        "a.yaml:1: extends is ['b.yaml'] (list); it must be the path of one recipe, relative to this file"
    ]


# arguments ------------------------------------------------------------------------------------------------------------


def test_arguments_have_the_last_word_and_are_read_as_yaml(here):
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
            "TrainingArguments.learning_rate is 'abc' (str); it must be a number, such as 5e-05",
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
            "extends stands in a recipe, not in an argument; give the recipe that extends the other one",
        ),
        ("LoraConfig=8", "LoraConfig is 8 (int); it must be a mapping: the keyword arguments of LoraConfig"),
        (
            "metrics=[f1",
            "is not YAML: expected ',' or ']', but got '<stream end>'; "
            "check the indentation, the quotes and the brackets here and on the line above",
        ),
    ],
)
def test_a_wrong_argument_is_refused_with_itself_as_the_place(here, argument, message):
    assert errors_of(here(VALID), argument) == [f"argument {argument!r}: {message}"]


def test_faults_of_the_file_and_of_the_arguments_are_told_together(here):
    assert errors_of(here(changed(line11="  sed: 1")), "TrainingArguments.seed=x", "foo") == [
        f"a.yaml:11: TrainingArguments has no 'sed' ({TRANSFORMERS}); did you mean 'seed'?",
        "argument 'foo': a setting is written Section.key=value; such as TrainingArguments.seed=1",
        "argument 'TrainingArguments.seed=x': TrainingArguments.seed is 'x' (str); it must be an int, such as 42",
    ]


# files that are no recipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.yaml: is empty; a recipe begins with 'task:'"),
        (b"# nothing\n", "a.yaml: is empty; a recipe begins with 'task:'"),
        (b"- a\n", "a.yaml: is a list, not a recipe; a recipe is a mapping that begins with 'task:'"),
        (b"hello\n", "a.yaml: is a str, not a recipe; a recipe is a mapping that begins with 'task:'"),
        (b"PK\x03\x04\x00\x00", "a.yaml: is a binary file, not a recipe; give a YAML file"),
        (b"task: chat\nx: caf\xe9\n", "a.yaml:2: is not UTF-8 text (byte 0xe9); save the file as UTF-8"),
        (b"task: chat\nx: \x07\n", "a.yaml:2: holds a control character (U+0007); delete it"),
        (
            b"task: a\n---\ntask: b\n",
            "a.yaml:2: holds a second document ('---'); one recipe is one document: give each its own file",
        ),
        (
            b"task: chat\nmodel:\n\tx: 1\n",
            "a.yaml:3: is not YAML: found character '\\t' that cannot start any token; "
            "check the indentation, the quotes and the brackets here and on the line above",
        ),
        (
            b"a: 1\n" * 2_000_000,
            "a.yaml: has 10.0 MB, and a recipe at most 1 MB; is this a data file? name it under dataset.data_files",
        ),
    ],
    ids=["empty", "comment", "list", "word", "binary", "latin1", "control", "two", "tab", "10MB"],
)
def test_a_file_that_is_no_recipe_is_one_message(here, data, message):
    assert errors_of(here(data)) == [message]


def test_a_missing_file_is_named_with_the_nearest_one(here):
    here(VALID, "recipes/rtx3070.yaml")
    assert errors_of("recipes/rtx3070.yml") == [
        "recipes/rtx3070.yml: no such file; did you mean 'recipes/rtx3070.yaml'?"
    ]
    assert errors_of("recipes/rtx370.yaml") == [
        "recipes/rtx370.yaml: no such file; did you mean 'recipes/rtx3070.yaml'?"
    ]
    assert errors_of("recipes/zzz") == ["recipes/zzz: no such file; see what is in 'recipes'"]
    assert errors_of("nowhere/a.yaml") == ["nowhere/a.yaml: no such file; there is no folder 'nowhere' either"]
    assert errors_of("recipes") == [
        "recipes: is a directory, not a recipe; give one file of it, such as recipes/rtx3070.yaml"
    ]


LIMIT = "a recipe is a page of settings: write the values out, or put the data into a data file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: " + "[" * 5000 + "]" * 5000, "is nested more than 50 deep"),
        ("".join(" " * n + "a:\n" for n in range(60)), "is nested more than 50 deep"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
            ),
            "stands for more than 20000 values",
        ),
        ("task: &t\n  - *t\n", "holds an alias that stands for itself"),
    ],
    ids=["brackets", "mappings", "aliases", "circle"],
)
def test_a_bomb_is_refused_quickly(here, text, message):
    [error] = errors_of(here(text))
    assert error.startswith("a.yaml:") and error.endswith(f": {message}; {LIMIT}")


def test_yaml_tags_are_refused_and_nothing_is_run(here):
    path = here(changed(line10="  output_dir: !!python/object/apply:os.mkdir [owned]", line14="metrics: !mine [f1]"))
    assert errors_of(path) == [
        "a.yaml:10: the YAML tag '!!python/object/apply:os.mkdir' is not supported; write a plain value without a tag",
        "a.yaml:14: the YAML tag '!mine' is not supported; write a plain value without a tag",
    ]
    assert not (here.__closure__[0].cell_contents / "owned").exists()


def test_a_fault_writes_nothing(here, tmp_path):
    here(changed(line11="  sed: 1"))
    errors_of("a.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


# many at once ---------------------------------------------------------------------------------------------------------

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


def test_a_dozen_planted_faults_are_told_in_one_go_each_with_its_line(here):
    assert errors_of(here(TWELVE)) == [
        "a.yaml:4: model.num_hidden_layers is 'two' (str); it must be an int, such as 12",
        "a.yaml:7: dataset.test_size is 1.5; it must be above 0, and whole above 1",
        "a.yaml:9: TrainingArguments.per_device_train_batch_size is 8.5 (float); it must be an int, such as 8",
        "a.yaml:10: TrainingArguments.per_device_eval_batch_size is [8] (list); write 8 without the brackets",
        "a.yaml:11: TrainingArguments.gradient_accumulation_steps is -4; it must be at least 1",
        "a.yaml:12: TrainingArguments.learning_rate is 'abc' (str); it must be a number, such as 5e-05",
        "a.yaml:13: TrainingArguments.lr_scheduler_type is 'cosin'; did you mean 'cosine'?",
        "a.yaml:14: TrainingArguments.optim is 'adamw_bnb_8bits'; did you mean 'adamw_bnb_8bit'?",
        f"a.yaml:15: TrainingArguments has no 'max_lenght' ({TRANSFORMERS}); did you mean 'max_length' of dataset?",
        "a.yaml:17: duplicate key 'seed'; it stands on line 16 already: keep one of them",
        "a.yaml:18: fp16 and bf16 are both true; keep one; bf16 where the GPU has it",
        "a.yaml:20: task text-classification generates no text: sample_prompts has no effect; leave it out",
        "a.yaml:21: a recipe has no 'Lora_Config'; did you mean 'LoraConfig'?",
    ]


def test_faults_told_early_do_not_hide_those_that_need_a_sound_recipe(here):
    text = VALID.replace("task: text-classification", "task: text-clasification") + "SFTConfig: {}\nLoraConfig: [1]\n"
    text = text.replace("  dataloader_num_workers: 4", "  fp16: true\n  bf16: true\n  dataloader_prefetch_factor: 2")
    told = "\n".join(errors_of(here(text)))
    for line in (1, 13, 15, 17, 18):
        assert f"a.yaml:{line}: " in told, told
    text = changed(line13="  eval_strategy: stepss\n  load_best_model_at_end: true")
    assert errors_of(here(text)) == ["a.yaml:13: TrainingArguments.eval_strategy is 'stepss'; did you mean 'steps'?"]


# back to text ---------------------------------------------------------------------------------------------------------


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
