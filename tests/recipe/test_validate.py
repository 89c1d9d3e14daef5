"""Every key and value is checked against the installed upstream: each error has its line and how to fix it."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.schema import installed as schema
from hf_recipes.recipe.validate import fix_of_key
from tests.support.recipe_files import TRANSFORMERS, VALID, changed, errors_of


def test_a_misspelled_key_is_refused_with_its_line_and_the_nearest_name(here):
    text = VALID.replace("text-classification", "chat").replace("TrainingArguments", "SFTConfig")
    path = here(text.replace("  dataloader_num_workers: 4", "  max_lenght: 512"))
    [error] = [f for f in errors_of(path) if "max_lenght" in f]
    assert error == f"a.yaml:13: SFTConfig has no 'max_lenght' (trl {version('trl')}); did you mean 'max_length'?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("per_device_train_batch_size: 8.5", "is 8.5 (number); it must be an integer, such as 8"),
        ("per_device_train_batch_size: 8.0", "is 8.0 (number); write 8"),
        ("per_device_train_batch_size: [8]", "is [8] (list); write 8 without the brackets"),
        ("per_device_train_batch_size: -4", "is -4; it must be at least 1"),
        ("per_device_train_batch_size: 0", "is 0; it must be at least 1"),
        ('per_device_train_batch_size: "4"', "is '4' (string); write 4 without quotes"),
        ("per_device_train_batch_size: true", "is true (boolean); it must be an integer, such as 8"),
        ("per_device_train_batch_size: {a: 1}", "is {a: 1} (mapping); it must be an integer, such as 8"),
        (
            "per_device_train_batch_size:",
            "is null; it must be an integer; leave the key out for upstream's default",
        ),
        ("learning_rate: abc", "is 'abc' (string); it must be a number, such as 5e-05"),
        ("learning_rate: '1e-4'", "is '1e-4' (string); write 1e-4 without quotes"),
        ("learning_rate: -1", "is -1; it must be at least 0"),
        ("learning_rate: .nan", "is nan; it must be a finite number"),
        ("learning_rate: 1e999", "is inf; it must be a finite number"),
        ("fp16: 'true'", "is 'true' (string); write true"),
        ("fp16: yes", "is 'yes' (string); write true"),
        ("fp16: 1", "is 1 (integer); it must be true or false"),
        ("run_name: 2024", "is 2024 (integer); it must be a string: quote it"),
        ("lr_scheduler_type: cosin", "is 'cosin'; did you mean 'cosine'?"),
        ("optim: adamw_bnb_8bits", "is 'adamw_bnb_8bits'; did you mean 'adamw_bnb_8bit'?"),
        ("eval_strategy: epochs", "is 'epochs'; did you mean 'epoch'?"),
        ("eval_strategy: zzz", "is 'zzz'; it must be one of 'no', 'steps', 'epoch'"),
        (
            "train_sampling_strategy: lenght",
            "is 'lenght'; it must be one of 'random', 'sequential', 'group_by_length', ",
        ),
        ("report_to: [tensorbord]", "holds 'tensorbord'; did you mean 'tensorboard'?"),
        ("report_to: [1]", "holds 1 (integer) as item 1; it must be a string or a list of strings"),
        ("save_steps: 2.5", "is 2.5; it must be above 0, and whole above 1"),
        (
            "max_steps: 0",
            "is 0; leave it out to train num_train_epochs, or write do_train: false to evaluate only",
        ),
        ("lr_scheduler_kwargs: min_lr", "is 'min_lr' (string); it must be a mapping"),
        ("adam_beta2: 1", "is 1; it must be at least 0 and below 1"),
        ("seed: -1", "is -1; it must be at least 0 and at most 4294967295"),
    ],
)
def test_a_wrong_value_is_refused_with_its_fix(here, line, message):
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
def test_what_upstream_takes_is_accepted(here, line):
    name, _, _ = line.partition(":")
    recipe = read_recipe(here(changed(line13=f"  {line}", line11="")))
    assert name in recipe.training


def test_a_key_that_stands_in_the_wrong_section_is_reported_with_its_section(here):
    path = here(
        changed(line11="  lora_alpha: 3", line12="  max_lenght: 5", line13="  packing: true") + "learning_rate: 1\n"
    )
    assert errors_of(path) == [
        f"a.yaml:11: TrainingArguments has no 'lora_alpha' ({TRANSFORMERS}); it is a key of LoraConfig",
        f"a.yaml:12: TrainingArguments has no 'max_lenght' ({TRANSFORMERS}); did you mean 'max_length' of dataset?",
        f"a.yaml:13: TrainingArguments has no 'packing' ({TRANSFORMERS}); it is a key of SFTConfig",
        "a.yaml:15: a recipe has no 'learning_rate'; it is a key of TrainingArguments: write it there",
    ]


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("LoraConfig", "rank", "r"),
        ("LoraConfig", "dropout", "lora_dropout"),
        ("EarlyStoppingCallback", "patience", "early_stopping_patience"),
        ("BitsAndBytesConfig", "compute_dtype", "bnb_4bit_compute_dtype"),
    ],
)
def test_the_short_name_of_a_key_is_read_as_the_key(section, key, meant):
    assert fix_of_key(section, key, schema.fields(section)) == f"did you mean {meant!r}?"


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
        "a.yaml:15: duplicate key 'metrics'; it is already on line 14: keep one of them",
        "a.yaml:18: duplicate key 'r'; it is already on line 17: keep one of them",
        "a.yaml:19: duplicate key 'r'; it is already on line 17: keep one of them",
    ]


def test_both_trainers_or_neither_is_an_error(here):
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


def test_a_task_is_needed_and_must_be_a_known_one(here):
    tasks = "causal-lm, chat, text-classification, token-classification"
    assert errors_of(here(changed(line1=""))) == [f"a.yaml: the recipe has no task; write `task:` with one of {tasks}"]
    assert errors_of(here(changed(line1="task: text-clasification"))) == [
        "a.yaml:1: there is no task 'text-clasification'; did you mean 'text-classification'?"
    ]
    assert errors_of(here(changed(line1="task: [chat]"))) == ["a.yaml:1: there is no task [chat]; did you mean 'chat'?"]


def test_a_section_that_is_empty_or_no_mapping_is_an_error(here):
    assert errors_of(here(VALID + "LoraConfig:\n")) == [
        "a.yaml:15: LoraConfig is empty; write `LoraConfig: {}` for upstream's defaults, or leave the section out"
    ]
    assert errors_of(here(VALID + "LoraConfig: 8\n")) == [
        "a.yaml:15: LoraConfig is 8 (integer); it must be a mapping: the keyword arguments of LoraConfig"
    ]


def test_keys_of_this_package_are_checked_too(here):
    path = here(changed(line14="metrics: f1") + "master_weights: 1\nsample_prompts: [1]\n")
    assert errors_of(path)[:3] == [
        "a.yaml:14: metrics is 'f1' (string); it must be a list of strings",
        "a.yaml:15: master_weights is 1 (integer); it must be true or false",
        "a.yaml:16: sample_prompts holds 1 (integer) as item 1; it must be a list of strings",
    ]


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


def test_fields_of_the_models_config_are_checked_by_its_class(here):
    text = changed(line3="  pretrained_model_name_or_path: bert-base-uncased\n  num_hidden_layers: 2.5")
    assert errors_of(here(text)) == [
        "a.yaml:4: model.num_hidden_layers is 2.5 (number); it must be an integer, such as 12"
    ]
    text = changed(
        line3="  pretrained_model_name_or_path: bert-base-uncased\n  hidden_dropout_probb: 0.1\n  num_labels: 3"
    )
    assert errors_of(here(text)) == [
        f"a.yaml:4: model.hidden_dropout_probb is not a known key ({TRANSFORMERS}); did you mean 'hidden_dropout_prob'?"
    ]


def test_a_local_config_json_gives_the_fields_of_the_config(here):
    here('{"model_type": "llama", "num_hidden_layers": 2}', "model/config.json")
    text = changed(line3="  pretrained_model_name_or_path: ./model\n  rms_norm_eps: 0.1\n  n_layer: 3")
    [warning] = read_recipe(here(text)).warnings
    assert str(warning).startswith(f"a.yaml:5: model.n_layer is not a known key ({TRANSFORMERS}); ")
    assert errors_of(here(changed(line3="  pretrained_model_name_or_path: ./model\n  rms_norm_eps: big"))) == [
        "a.yaml:4: model.rms_norm_eps is 'big' (string); it must be a number, such as 1e-06"
    ]


def test_a_config_json_that_is_not_json_is_a_warning_and_no_crash(here):
    here("[1, 2", "model/config.json")
    text = changed(line3="  pretrained_model_name_or_path: ./model\n  n_layer: 3")
    assert str(read_recipe(here(text)).warnings[0]).startswith("a.yaml:3: ./model/config.json is not JSON (")


def test_an_inline_config_is_checked(here):
    tail = "tokenizer: {pretrained_model_name_or_path: gpt2}\n"
    config = "  config:\n    model_type: gpt2\n    n_layer: two\n    n_lyer: 2"
    assert errors_of(here(changed(line3=config) + tail)) == [
        "a.yaml:5: model.config.n_layer is 'two' (string); it must be an integer, such as 12",
        f"a.yaml:6: GPT2Config has no 'n_lyer' ({TRANSFORMERS}); did you mean 'n_layer'?",
    ]
    recipe = read_recipe(here(changed(line3=config.replace("two", "2").replace("n_lyer", "my_own")) + tail))
    assert list(map(str, recipe.warnings)) == [
        f"a.yaml:6: GPT2Config has no 'my_own' ({TRANSFORMERS}); the config keeps it, and no layer reads it"
    ]
    assert errors_of(here(changed(line3="  config: {model_type: gptt2}") + tail)) == [
        f"a.yaml:3: model.config.model_type is 'gptt2', which {TRANSFORMERS} does not have; did you mean 'gpt2'?"
    ]
    assert errors_of(here(changed(line3="  config: {n_layer: 2}") + tail)) == [
        "a.yaml:3: model.config has no model_type; write the name of an architecture, such as gpt2"
    ]


def test_keys_of_the_builder_are_known_and_others_are_warned_about(here):
    text = changed(line5="  path: csv\n  sep: ;\n  skiprows: 1\n  text_colum: body\n  data_dir: a")
    assert errors_of(here(text)) == [
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
        (
            "test_size: 0",
            "dataset.test_size is 0; give a validation split, or leave it out for 0.1",
        ),
        ("test_size: 1.5", "dataset.test_size is 1.5; it must be above 0, and whole above 1"),
        ("max_length: -5", "dataset.max_length is -5; it must be at least 1"),
        ("seed: '1'", "dataset.seed is '1' (string); write 1 without quotes"),
        ("streaming: maybe", "dataset.streaming is 'maybe' (string); it must be true or false"),
    ],
)
def test_values_of_the_dataset_are_checked(here, line, message):
    assert errors_of(here(changed(line7=f"  {line}"))) == [f"a.yaml:7: {message}"]


def test_the_columns_of_a_conll_file_have_names(here):
    data = "dataset: {path: text, format: conll, data_files: a.txt, column_names: [tokens, tags], delimiter: '|'}"
    text = (
        "task: token-classification\nmodel: {pretrained_model_name_or_path: bert-base-cased}\n"
        f"{data}\nTrainingArguments: {{output_dir: out}}\n"
    )
    assert not [w for w in read_recipe(here(text)).warnings if "is not a known key" in str(w)]
    plain = here(text.replace("format: conll, ", ""))
    with pytest.raises(RecipeError) as refused:
        read_recipe(plain)
    assert [str(error).partition("; ")[2] for error in refused.value.errors] == [
        "leave it out: the reader of text files takes no such key"
    ] * 2


@pytest.mark.parametrize("key", ["shuffle: false", "train_size: 0.5", "no_such_key: 1"])
def test_a_key_that_the_reader_of_files_would_refuse_is_an_error(here, key):
    text = "task: causal-lm\nmodel: {config: {model_type: gpt2}}\nBpeTrainer: {vocab_size: 300}\n"
    with pytest.raises(RecipeError, match="leave it out: the reader of json files takes no such key"):
        read_recipe(here(f"{text}dataset: {{path: json, data_files: a.jsonl, {key}}}\nTrainingArguments: {{}}\n"))


def test_keys_of_the_tokenizer_are_checked(here):
    assert errors_of(here(VALID + "tokenizer: {padding_side: left, padding_sid: left, do_lower_case: true}\n")) == [
        f"a.yaml:15: tokenizer.padding_sid is not a known key ({TRANSFORMERS}); did you mean 'padding_side'?"
    ]
    assert errors_of(here(VALID + "tokenizer: {padding_side: lefft, model_max_length: '8'}\n")) == [
        "a.yaml:15: tokenizer.padding_side is 'lefft'; did you mean 'left'?",
        "a.yaml:15: tokenizer.model_max_length is '8' (string); write 8 without quotes",
    ]


def test_a_quoted_number_is_an_error_where_upstream_takes_a_number_or_a_string(here):
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


@pytest.mark.parametrize(
    ("argument", "place"),
    [
        (f"on_nonfinite={SECRET}", "argument 'on_nonfinite=...'"),
        (f"{SECRET}=1", "argument '...'"),
        (f"TrainingArguments.run_name=768{SECRET}", "argument 'TrainingArguments.run_name=...'"),
    ],
)
def test_a_token_in_an_argument_is_never_shown(here, argument, place):
    here(VALID)
    assert errors_of("a.yaml", argument) == [f"{place}: a token in a recipe is refused; set HF_TOKEN instead"]


@pytest.mark.parametrize(
    "text",
    [
        f"task: chat\non_nonfinite: {SECRET}\n",
        f"task: {SECRET}\n",
        f"extends: {SECRET}\n",
        f"{SECRET}: 1\n",
        f"TrainingArguments: {SECRET}\n",
        f"TrainingArguments: {{{SECRET}: 1}}\n",
        f"TrainingArguments: {{seed: 768{SECRET}}}\n",
        f"TrainingArguments: {{run_name: &a {SECRET}, x: *a}}\n",
        f"a: *{SECRET}\n",
        f"a: !{SECRET} 1\n",
        f"{SECRET}: 1\n{SECRET}: 2\n",
        f'x: "hf_\\u0061{SECRET[4:]}"\nmetrics: ["hf_\\u0061{SECRET[4:]}"]\n',
        f"metrics: [{SECRET}]\nresume_despite: {SECRET}\n",
        f"model: {{{SECRET}: {{a: 1}}}}\nLoraConfig: {{rank_pattern: {{{SECRET}: 1}}}}\n",
        f"%{SECRET} x\n---\na: [\n",
        f"a: {SECRET}: {SECRET}\n",
    ],
)
def test_a_token_is_refused_wherever_it_stands_and_never_shown(here, text):
    found = "\n".join(errors_of(here(text)))
    assert SECRET[4:24] not in found and SECRET[-20:] not in found


def test_keys_of_trackers_and_clouds_are_refused_with_where_they_belong(here):
    lines = ["  run_name: wandb_api_key=0123456789abcdef0123456789abcdef01234567", f"  hub_model_id: ghp_{'A1' * 18}"]
    found = errors_of(here(changed(line14="metrics: [f1]\nGenerationConfig:\n" + "\n".join(lines))))
    assert [error for error in found if "in a recipe is refused" in error] == [
        "a.yaml:16: GenerationConfig.run_name: a key or password in a recipe is refused; "
        "set it in the environment instead: upstream reads it there",
        "a.yaml:17: GenerationConfig.hub_model_id: a GitHub token in a recipe is refused; "
        "set it in the environment instead: upstream reads it there",
    ]


OUTPUT_DIR = "TrainingArguments.output_dir"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a" * 300, f"{OUTPUT_DIR} has a name of more than 255 bytes, the most that a file may have; shorten it"),
        ("é/" * 2000, f"{OUTPUT_DIR} is longer than a path may be; shorten it"),
        ('"a\\0b"', "a string holds a NUL character; delete it"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused(here, path, message):
    assert errors_of(here(changed(line10=f"  output_dir: {path}"))) == [f"a.yaml:10: {message}"]
