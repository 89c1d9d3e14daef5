"""`hf-recipes check` tells everything at once, and `upgrade --dry-run` prints the new text alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from hf_recipes.cli import commands
from hf_recipes.commands.check import check
from hf_recipes.errors import LaunchError, ModelError, PlanError, RecipeError
from hf_recipes.pipeline.launch_checks import find_environment_errors
from hf_recipes.plan.fit.parallel import read_layout
from hf_recipes.plan.trace.meta_model import config_values
from hf_recipes.recipe.read import read_recipe
from tests.support.recipe_files import TRANSFORMERS, VALID, changed

ELEVEN = """\
task: text-classification
model:
  pretrained_model_name_or_pth: bert-base-uncased
  revison: main
  dtpye: float32
  atn_implementation: sdpa
dataset:
  path: csv
  data_files: {train: x.csv}
  text_colum: review
  test_sise: 0.1
  delimitr: ";"
  colum_names: null
  label_column: star
  delimiter: ";"
TrainingArguments: {output_dir: runs/x}
metrics: [f2]
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "a.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def found(text: str, *overrides: str) -> list[str]:
    lines, _ = check(write(text), overrides)
    return lines


def test_typos_a_wrong_metric_and_a_wrong_column_are_all_told_at_once_without_torch():
    write("review;stars\ngood;1\n", "x.csv")
    write(ELEVEN)
    code = "import sys; from hf_recipes.cli import main; sys.argv = ['', 'check', 'a.yaml']\ntry: main()\nfinally: "
    code += "print(sorted({'torch', 'pandas', 'datasets', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 2 and lines[-2:] == ["a.yaml: 10 errors", "[]"], done.stdout + done.stderr
    assert [line.split(": ")[1] for line in lines[:-2]] == [f"a.yaml:{n}" for n in (3, 4, 5, 6, 10, 11, 12, 13, 14, 17)]
    assert lines[8] == "error: a.yaml:14: x.csv has no column 'star' (it has review, stars); did you mean 'stars'?"
    assert lines[0] == (
        f"error: a.yaml:3: model.pretrained_model_name_or_pth is not a known key ({TRANSFORMERS}); "
        "did you mean 'pretrained_model_name_or_path'?"
    )


def test_an_error_hides_no_warning_and_strict_makes_them_errors():
    text = changed(line13="  learning_rat: 1\n  do_predict: true") + "tokenizer: {my_own_key: 1}\n"
    write('{"text": "a", "label": "b"}\n', "rows.jsonl")
    text = text.replace("data/train.jsonl", "rows.jsonl").replace("data/validation.jsonl", "none.jsonl")
    lines = found(text)
    assert [line.partition(": ")[0] for line in lines[:-1]] == ["error", "warning", "warning", "warning"]
    assert lines[-1] == "a.yaml: 1 error and 3 warnings"
    fine = text.replace("  learning_rat: 1\n", "")
    assert check(write(fine))[1] == 0
    lines, errors = check(write(fine), strict=True)
    assert errors == 3 and lines[-1] == "a.yaml: 3 errors"
    assert CliRunner().invoke(commands, ["check", "--strict", "a.yaml"]).exit_code == 2


def test_a_task_that_is_none_hides_no_unknown_key_of_the_dataset():
    lines = found(changed(line1="task: zzz", line7="  txt_column: text"))
    assert any("did you mean 'text_column'?" in line for line in lines)
    assert any("there is no task 'zzz'" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "rows", "dataset", "columns"),
    [
        ("x.csv", "body,label\na,b\n", "path: csv", "body, label"),
        ("x.csv", "\ufeffbody,label\r\na,b\r\n", "path: csv", "body, label"),
        ("x.tsv", "body\tlabel\na\tb\n", 'path: csv\n  delimiter: "\\t"', "body, label"),
        ("x.csv", 'body,label\n"a,b\n', "path: csv\n  quoting: 3", "body, label"),
        ("x.csv", "body,label\na\\,c,b\n", 'path: csv\n  escapechar: "\\\\"', "body, label"),
        ("x.jsonl", '{"body": "a"}\n{"body": "b", "label": 1}\n', "path: json", "body, label"),
        ("x.json", '[\n {"body": "a", "label": 1},\n {"body": "b"}\n]', "path: json", "body, label"),
    ],
)
def test_the_columns_of_a_local_file_are_compared_by_its_first_rows(name, rows, dataset, columns):
    write(rows, name)
    text = changed(line5=f"  {dataset}", line6=f"  data_files: {name}")
    lines = [line for line in found(text) if "no column" in line]
    at = 7 + dataset.count("\n")
    assert lines == [
        f"error: a.yaml:{at}: {name} has no column 'text' (it has {columns}); name it with dataset.text_column"
    ]


def test_tabs_that_are_read_with_quoting_3_still_need_their_delimiter():
    write('text\tlabel\n"a\tb\n', "x.tsv")
    lines = found(changed(line5="  path: csv\n  quoting: 3", line6="  data_files: x.tsv"))
    assert lines[0] == (
        "error: a.yaml:8: x.tsv has no column 'text' (it has text\tlabel); write delimiter: \"\\t\" in dataset"
    )


def test_the_columns_of_a_parquet_file_are_read_from_its_footer():
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "labels": [1]}), "x.parquet")
    text = changed(line5="  path: parquet", line6="  data_files: x.parquet")
    assert [line for line in found(text) if "no column" in line] == [
        "error: a.yaml:8: x.parquet has no column 'label' (it has text, labels); did you mean 'labels'?"
    ]


@pytest.mark.parametrize(
    ("name", "rows", "dataset"),
    [
        ("x.csv", "a,b\n1,2\n", "path: csv\n  column_names: [text, label]"),
        ("x.csv", "a,b\n1,2\n", "path: csv\n  skiprows: 1"),
        ("x.json", '{"rows": [{"text": "a", "label": 1}]}', "path: json\n  field: rows"),
        ("x.json", '{\n "text": {"0": "a"},\n "label": {"0": 1}\n}', "path: json"),
        ("x.csv", "text,label\nb\xff,c\n", "path: csv"),
    ],
)
def test_what_the_first_rows_do_not_show_is_left_to_the_run(name, rows, dataset):
    Path(name).write_bytes(rows.encode("latin-1"))
    text = changed(line5=f"  {dataset}", line6=f"  data_files: {name}")
    assert not [line for line in found(text) if "column" in line]


def test_another_delimiter_is_named_where_the_header_shows_it():
    write("text;label\na;b\n", "x.csv")
    lines = found(changed(line5="  path: csv", line6="  data_files: x.csv"))
    assert "x.csv has no column 'text' (it has text;label); write delimiter: \";\" in dataset" in "\n".join(lines)


@pytest.mark.parametrize(
    "rows",
    [
        '{"version": 1, "data": [{"text": "a", "label": 1}]}',
        '{\n "version": 1,\n "data": [\n  {"text": "a", "label": 1},\n  {"text": "b", "label": 0}\n ]\n}\n',
        '{\n "data": [\n' + '  {"text": "a", "label": 1},\n' * 20_000 + '  {"text": "b", "label": 0}\n ]\n}\n',
    ],
    ids=["one line", "several lines", "longer than what is read"],
)
def test_rows_below_a_key_of_one_object_are_named_with_the_key(rows):
    write(rows, "x.json")
    lines = "\n".join(found(changed(line5="  path: json", line6="  data_files: x.json")))
    assert "x.json has no column 'text' (it has" in lines
    assert "its rows are below 'data': write field: data in dataset" in lines
    right = found(changed(line5="  path: json\n  field: data", line6="  data_files: x.json"))
    assert not [line for line in right if "column" in line]


def test_the_rows_below_a_field_are_compared_too():
    write('{"data": [{"body": "a", "label": 1}]}', "x.json")
    lines = "\n".join(found(changed(line5="  path: json\n  field: data", line6="  data_files: x.json")))
    assert "x.json has no column 'text' (it has body, label)" in lines


def test_a_file_without_a_header_is_named_with_the_key_that_gives_one():
    write("a fine play,pos\na dull book,neg\n", "x.csv")
    lines = "\n".join(found(changed(line5="  path: csv", line6="  data_files: x.csv")))
    assert "name it with dataset.text_column; for files without a header: column_names: [text, label]" in lines


def test_preferences_are_named_as_not_offered_with_trls_command():
    write('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "x.jsonl")
    text = "task: chat\nmodel: {pretrained_model_name_or_path: gpt2}\ndataset: {path: json, data_files: x.jsonl}\n"
    [error] = [line for line in found(text + "SFTConfig: {output_dir: out}\n") if "error:" in line]
    assert error.endswith("methods for them are not offered here; TRL has them: trl dpo --config FILE")
    for name, command in (("DPOConfig", "trl dpo"), ("GRPOConfig", "trl grpo"), ("RewardConfig", "trl reward")):
        [error] = [line for line in found(text + f"{name}: {{beta: 0.1}}\n") if "error:" in line and name in line]
        assert error.endswith(f"not offered here; TRL has them: {command} --config FILE")
    [error] = [line for line in found(text.replace("chat", "dpo") + "SFTConfig: {output_dir: out}\n") if "dpo:" in line]
    assert error.endswith("TRL has them: trl dpo --config FILE")


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("save_steps: 0", "write save_strategy: 'no' to save nothing but the finished model"),
        ("eval_steps: -1", "write eval_strategy: 'no' to evaluate at the end only"),
        ("logging_steps: 0", "write logging_strategy: 'no'"),
        ("save_total_limit: 0", "leave it out to keep every checkpoint, or write save_strategy: 'no' to keep none"),
        ("eval_strategy: false", "write eval_strategy: 'no'"),
        ("num_train_epochs: 0", "write do_train: false to evaluate only"),
        ("gradient_accumulation_steps: 0", "write 1: a step of one batch"),
        ("bf16: auto", "leave it out: SFTConfig has it where the GPU can"),
    ],
)
def test_a_value_that_means_off_or_auto_gets_the_fix_that_works(line, fix):
    [error] = [each for each in found(changed(line13=f"  {line}")) if each.startswith("error")]
    assert error.endswith(f"; {fix}")
    if fix.startswith("write ") and ": " in fix and "'" in fix:  # what it says is accepted
        read_recipe(write(changed(line13="  " + fix.removeprefix("write ").partition(" to ")[0])))


@pytest.mark.parametrize(
    ("section", "key", "fix"),
    [
        ("LoraConfig", "lora_r", "write r"),
        ("LoraConfig", "lora_rank", "write r"),
        ("LoraConfig", "lora_target", "write target_modules"),
        ("TrainingArguments", "sequence_len", "write max_length in dataset"),
        ("TrainingArguments", "cutoff_len", "write max_length in dataset"),
        ("TrainingArguments", "num_epochs", "write num_train_epochs"),
        ("TrainingArguments", "micro_batch_size", "write per_device_train_batch_size"),
        ("TrainingArguments", "lora_alpha", "it is a key of LoraConfig"),
        ("TrainingArguments", "torch_dtype", "write dtype in model"),
        ("model", "base_model", "write pretrained_model_name_or_path"),
        ("model", "model_name_or_path", "write pretrained_model_name_or_path"),
        ("model", "learning_rate", "it is a key of TrainingArguments and of SFTConfig"),
        ("dataset", "val_set_size", "write test_size"),
        ("", "torch_dtype", "write dtype in model"),
        ("", "max_seq_length", "write max_length in SFTConfig"),
        ("", "learing_rate", "did you mean 'learning_rate' of TrainingArguments?"),
        ("", "plot_loss", "leave it out: every run's report has the plot"),
        ("", "fsdp_version", "it has no counterpart here: how a run is spread over GPUs belongs into the accelerate "
         "file: accelerate_configs/"),
    ],
)  # fmt: skip
def test_a_key_of_another_tool_or_place_is_named_with_the_section_and_key_that_mean_the_same(section, key, fix):
    text = VALID + "LoraConfig: {}\n"
    text = f"{text}{key}: 1\n" if not section else text.replace(f"{section}:", f"{section}:\n  {key}: 1", 1)
    text = text.replace("LoraConfig:\n  lora_r: 1 {}", "LoraConfig: {lora_r: 1}")
    if section == "LoraConfig":
        text = VALID + f"LoraConfig: {{{key}: 1}}\n"
    [error] = [line for line in found(text) if line.startswith("error") and key in line]
    assert error.endswith(f"; {fix}")


def test_a_file_of_another_tool_is_one_message_beside_its_keys():
    flat = "model_name_or_path: gpt2\ntorch_dtype: bfloat16\nlearning_rate: 1e-4\n"
    lines = found(flat)
    assert lines[0] == "error: a.yaml: is a file of TRL, not a recipe; `hf-recipes convert a.yaml` writes the recipe"
    assert lines[-1] == "a.yaml: 4 errors", "nothing that only follows: no missing task, model, trainer, dataset"
    assert found("compute_environment: LOCAL_MACHINE\nnum_processes: 2\n")[0] == (
        "error: a.yaml: is an accelerate config file, not a recipe; "
        "give it to `accelerate launch --config_file` or to `plan --config_file`"
    )


def test_an_error_about_an_old_key_names_it_and_its_translation_is_printed_beside():
    text = changed(line13="  evaluation_strategy: stepz")
    lines = found(text)
    assert lines[0].startswith("a.yaml:13: evaluation_strategy: stepz -> eval_strategy: stepz")
    assert lines[1] == (
        "error: a.yaml:13: TrainingArguments.eval_strategy is 'stepz' (written as evaluation_strategy); "
        "did you mean 'steps'?"
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe("a.yaml")
    assert caught.value.beside[0] == lines[0]


def test_names_that_the_hub_refuses_are_errors_of_check():
    for dotted in ("TrainingArguments.hub_model_id", "model.pretrained_model_name_or_path", "dataset.path"):
        [error] = [line for line in found(VALID, f"{dotted}=someone/my model") if line.startswith("error")]
        assert "is no name of the Hub" in error
    Path("someone/my model").mkdir(parents=True)
    assert not [line for line in found(VALID, "model.pretrained_model_name_or_path=someone/my model") if "Hub" in line]


def test_a_left_over_world_size_is_refused_with_what_to_unset():
    recipe = read_recipe(write(VALID))
    complete = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    assert find_environment_errors(recipe, complete) == []
    for left in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "0"}):
        [error] = find_environment_errors(recipe, left)
        assert error.fix.startswith("unset WORLD_SIZE RANK LOCAL_RANK, or use: accelerate launch")
        assert all(name in error.message for name in left)
    assert LaunchError(error).exit_status == 2


def test_a_dry_upgrade_prints_the_new_text_alone_on_stdout():
    write(changed(line13="  evaluation_strategy: epoch"))
    done = CliRunner().invoke(commands, ["upgrade", "--dry-run", "a.yaml"])
    assert done.stdout == changed(line13="  eval_strategy: epoch")
    assert "evaluation_strategy: epoch -> eval_strategy: epoch" in done.stderr


def test_a_recipe_given_to_plan_as_an_accelerate_file_is_named_for_what_it_is():
    with pytest.raises(PlanError) as caught:
        read_layout(None, write(VALID))
    assert str(caught.value).startswith("a.yaml: is a recipe, not an accelerate config file; ")


def test_a_shape_stands_beside_the_name_of_a_model_that_the_hub_has(monkeypatch):
    write('{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64}', "config.json")
    text = "task: chat\nmodel: {pretrained_model_name_or_path: some/model}\ndataset: {path: some/rows}\n"
    text += "LoraConfig: {r: 8}\nBitsAndBytesConfig: {load_in_4bit: true}\n"
    text += "SFTConfig: {output_dir: out, learning_rate: 1e-4}\n"
    recipe = read_recipe(write(text), ["model.config=config.json"])
    assert config_values(recipe)["num_hidden_layers"] == 2
    with pytest.raises(ModelError, match=r"add model\.config=PATH"):
        config_values(read_recipe("a.yaml"))
    inline = "model.config={model_type: llama}"
    assert any("model has pretrained_model_name_or_path and config" in line for line in found(text, inline))
