"""Reading a recipe: what a user writes, what comes back, and every fault with its line, what it is, and the mend."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import version

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.recipe import Recipe, dump_recipe, read_recipe

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


def faults_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    return [str(fault) for fault in caught.value.faults]


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
    assert recipe.place("TrainingArguments.learning_rate") == "a.yaml:11"
    assert recipe.place("dataset.data_files.train") == "a.yaml:6"
    assert recipe.place("TrainingArguments.seed") == "a.yaml:9"
    assert recipe.place("LoraConfig.r") == "a.yaml"
    assert recipe.translations == () and recipe.doubts == ()


def test_yaml_is_read_as_1_2(here):
    recipe = read_recipe(
        here(VALID + "sample_prompts: [no, on, 2020-01-01, '1e-4']\n"), ["TrainingArguments.run_name=off"]
    )
    assert recipe.sections["sample_prompts"] == ["no", "on", "2020-01-01", "1e-4"]
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
    assert other.place("metrics") == "b.yaml:14"


def test_reading_a_recipe_imports_nothing_heavy(here):
    here(VALID)
    code = """
        import sys
        from hf_recipes.recipe import dump_recipe, read_recipe
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
    [fault] = [f for f in faults_of(path) if "max_lenght" in f]
    assert fault == f"a.yaml:13: SFTConfig has no 'max_lenght' (trl {version('trl')}); did you mean 'max_length'?"


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
    [fault] = faults_of(here(changed(line13=f"  {line}", line11="", line12="")))
    assert fault.startswith(f"a.yaml:13: TrainingArguments.{name} {message}")


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
        "lr_scheduler_kwargs: {min_lr_rate: 0.1}",
        "include_num_input_tokens_seen: non_padding",
        "max_steps: -1",
        "fsdp_config: {min_num_params: 1}",
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
    assert faults_of(path) == [
        f"a.yaml:11: TrainingArguments has no 'lora_alpha' ({TRANSFORMERS}); it is a word of LoraConfig",
        f"a.yaml:12: TrainingArguments has no 'max_lenght' ({TRANSFORMERS}); did you mean 'max_length' of dataset?",
        f"a.yaml:13: TrainingArguments has no 'packing' ({TRANSFORMERS}); it is a word of SFTConfig",
        "a.yaml:15: a recipe has no 'learning_rate'; it is a word of TrainingArguments: write it there",
    ]


def test_an_unknown_section_is_refused_with_the_nearest(here):
    assert faults_of(here(VALID.replace("TrainingArguments:", "TrainingArgument:"))) == [
        "a.yaml:9: a recipe has no 'TrainingArgument'; did you mean 'TrainingArguments'?"
    ]
    assert faults_of(here(VALID + "lora_config: {r: 1}\n")) == [
        "a.yaml:15: a recipe has no 'lora_config'; did you mean 'LoraConfig'?"
    ]


def test_all_duplicate_keys_are_reported_with_the_line_of_the_first(here):
    text = VALID + "metrics: [f1]\nLoraConfig:\n  r: 1\n  r: 2\n  r: 3\n"
    assert faults_of(here(text)) == [
        "a.yaml:15: duplicate key 'metrics'; it stands on line 14 already: keep one of them",
        "a.yaml:18: duplicate key 'r'; it stands on line 17 already: keep one of them",
        "a.yaml:19: duplicate key 'r'; it stands on line 17 already: keep one of them",
    ]


def test_both_trainers_or_neither_is_a_fault(here):
    both = faults_of(here(VALID + "SFTConfig: {}\n"))
    assert both == [
        "a.yaml:15: the recipe has SFTConfig here and TrainingArguments (a.yaml:9); "
        "keep one of them: TrainingArguments for Trainer, SFTConfig for SFTTrainer"
    ]
    neither = faults_of(
        here("task: chat\nmodel: {preset: gpt-small}\ntokenizer: {pretrained_model_name_or_path: gpt2}\n")
    )
    assert neither == [
        "a.yaml: the recipe has neither TrainingArguments nor SFTConfig; "
        "write TrainingArguments (Trainer) or SFTConfig (SFTTrainer)",
        "a.yaml: the recipe has no dataset; write `dataset:` with load_dataset's words, such as path: json",
    ]


def test_a_task_is_needed_and_must_be_one_of_ours(here):
    tasks = "causal-lm, chat, text-classification, token-classification"
    assert faults_of(here(changed(line1=""))) == [f"a.yaml: the recipe has no task; write `task:` with one of {tasks}"]
    assert faults_of(here(changed(line1="task: text-clasification"))) == [
        "a.yaml:1: there is no task 'text-clasification'; did you mean 'text-classification'?"
    ]
    assert faults_of(here(changed(line1="task: [chat]"))) == [
        f"a.yaml:1: there is no task ['chat']; it must be one of {tasks}"
    ]


def test_a_section_that_is_empty_or_no_mapping_is_a_fault(here):
    assert faults_of(here(VALID + "LoraConfig:\n")) == [
        "a.yaml:15: LoraConfig is empty; write `LoraConfig: {}` for upstream's defaults, or leave the section out"
    ]
    assert faults_of(here(VALID + "LoraConfig: 8\n")) == [
        "a.yaml:15: LoraConfig is 8 (int); it must be a mapping: the keyword arguments of LoraConfig"
    ]


def test_our_own_words_are_judged_too(here):
    path = here(changed(line14="metrics: f1") + "master_weights: 1\nsample_prompts: [1]\n")
    assert faults_of(path)[:3] == [
        "a.yaml:14: metrics is 'f1' (str); it must be a list of str",
        "a.yaml:15: master_weights is 1 (int); it must be true or false",
        "a.yaml:16: sample_prompts holds 1 (int) as item 1; it must be a list of str",
    ]


# model, tokenizer, dataset --------------------------------------------------------------------------------------------


def test_a_model_comes_from_exactly_one_source(here):
    assert faults_of(here(changed(line3="  dtype: float32"))) == [
        "a.yaml:2: model names no weights and no shape; write one of pretrained_model_name_or_path, preset, config"
    ]
    [fault] = faults_of(here(changed(line3="  pretrained_model_name_or_path: a\n  preset: gpt-small")))
    assert fault == (
        "a.yaml:4: model has pretrained_model_name_or_path and preset; "
        "keep one of them (`pretrained_model_name_or_path: null` takes a parent's away)"
    )


def test_a_preset_is_known_and_needs_a_tokenizer(here):
    assert faults_of(here(changed(line3="  preset: gpt-smal"))) == [
        "a.yaml:3: there is no preset 'gpt-smal'; did you mean 'gpt-small'?",
        "a.yaml:3: a model from scratch needs a tokenizer; "
        "write `tokenizer:` with pretrained_model_name_or_path, or `BpeTrainer:` to train one on the data",
    ]


def test_fields_of_the_models_config_are_judged_by_its_class(here):
    text = changed(line3="  pretrained_model_name_or_path: bert-base-uncased\n  num_hidden_layers: 2.5")
    assert faults_of(here(text)) == ["a.yaml:4: model.num_hidden_layers is 2.5 (float); it must be an int, such as 12"]
    text = changed(
        line3="  pretrained_model_name_or_path: bert-base-uncased\n  hidden_dropout_probb: 0.1\n  num_labels: 3"
    )
    recipe = read_recipe(here(text))
    assert list(map(str, recipe.doubts)) == [
        f"a.yaml:4: model.hidden_dropout_probb is no word that is known here ({TRANSFORMERS}); "
        "did you mean 'hidden_dropout_prob'?"
    ]


def test_a_local_config_json_tells_the_fields_of_the_config(here):
    here('{"model_type": "llama", "num_hidden_layers": 2}', "model/config.json")
    text = changed(line3="  pretrained_model_name_or_path: ./model\n  rms_norm_eps: 0.1\n  n_layer: 3")
    [doubt] = read_recipe(here(text)).doubts
    assert str(doubt).startswith(f"a.yaml:5: model.n_layer is no word that is known here ({TRANSFORMERS}); ")
    assert faults_of(here(changed(line3="  pretrained_model_name_or_path: ./model\n  rms_norm_eps: big"))) == [
        "a.yaml:4: model.rms_norm_eps is 'big' (str); it must be a number, such as 1e-06"
    ]


def test_a_config_json_that_is_none_is_a_doubt_not_a_crash(here):
    here("[1, 2", "model/config.json")
    text = changed(line3="  pretrained_model_name_or_path: ./model\n  n_layer: 3")
    assert str(read_recipe(here(text)).doubts[0]).startswith(
        "a.yaml:3: ./model/config.json tells nothing: it is no JSON"
    )


def test_an_inline_config_is_judged(here):
    tail = "tokenizer: {pretrained_model_name_or_path: gpt2}\n"
    config = "  config:\n    model_type: gpt2\n    n_layer: two\n    n_lyer: 2"
    assert faults_of(here(changed(line3=config) + tail)) == [
        "a.yaml:5: model.config.n_layer is 'two' (str); it must be an int, such as 12"
    ]
    recipe = read_recipe(here(changed(line3=config.replace("two", "2")) + tail))
    assert list(map(str, recipe.doubts)) == [
        f"a.yaml:6: GPT2Config has no 'n_lyer' ({TRANSFORMERS}); did you mean 'n_layer'?"
    ]
    assert faults_of(here(changed(line3="  config: {model_type: gptt2}") + tail)) == [
        f"a.yaml:3: model.config.model_type is 'gptt2', which {TRANSFORMERS} does not have; did you mean 'gpt2'?"
    ]
    assert faults_of(here(changed(line3="  config: {n_layer: 2}") + tail)) == [
        "a.yaml:3: model.config has no model_type; write the name of an architecture, such as gpt2"
    ]


def test_words_of_the_builder_are_known_and_strange_ones_are_doubted(here):
    text = changed(line5="  path: csv\n  sep: ;\n  skiprows: 1\n  text_colum: body\n  test_size: 0.1")
    recipe = read_recipe(here(text))
    assert list(map(str, recipe.doubts)) == [
        f"a.yaml:8: dataset.text_colum is no word that is known here (datasets {version('datasets')}); "
        "did you mean 'text_column'?"
    ]
    [doubt] = read_recipe(here(changed(line5="  path: jsonn"))).doubts
    assert str(doubt) == (
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
    assert faults_of(here(changed(line7=f"  {line}"))) == [f"a.yaml:7: {message}"]


def test_code_from_the_hub_is_refused(here):
    [fault] = faults_of(here(changed(line3="  pretrained_model_name_or_path: a\n  trust_remote_code: true")))
    assert fault == (
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
    assert faults_of(path) == [f"a.yaml:{line}: {section}.{key}: a token in a recipe is refused; set HF_TOKEN instead"]
    assert faults_of(here(VALID), f"{section}.{key}={SECRET}") == [
        f"argument '{section}.{key}=...': a token in a recipe is refused; set HF_TOKEN instead"
    ]


def test_a_token_under_another_name_is_recognised_by_its_shape(here):
    path = here(changed(line7=f"  storage_options: {{headers: [Bearer {SECRET}]}}"))
    [fault] = faults_of(path)
    assert SECRET not in fault and fault.startswith("a.yaml:7: dataset.storage_options.headers")


# old keys -------------------------------------------------------------------------------------------------------------


def test_old_keys_are_translated_each_with_its_line(here):
    recipe = read_recipe(here(changed(line11="  warmup_ratio: 0.06", line12="  evaluation_strategy: no")))
    assert recipe.training["warmup_steps"] == 0.06 and recipe.training["eval_strategy"] == "no"
    assert "warmup_ratio" not in recipe.training
    assert recipe.place("TrainingArguments.warmup_steps") == "a.yaml:11"
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
