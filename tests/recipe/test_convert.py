"""Files of other tools, as they are, become recipes that pass `check` and smoke."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hf_recipes.catalog.other_tools import TOOLS
from hf_recipes.cli import TOOLS as CHOICES
from hf_recipes.cli import commands
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.convert import LOST, convert_file, recipe_text
from hf_recipes.recipe.read import read_recipe

FILES = sorted((Path(__file__).parent.parent / "data/other_tools").glob("*/*.y*ml"))


def fixture(name: str) -> str:
    [path] = [path for path in FILES if path.name == name]
    return str(path)


def test_there_are_ten_files_of_each_tool():
    assert tuple(TOOLS) == CHOICES
    assert {tool: sum(path.parent.name == tool for path in FILES) for tool in TOOLS} == dict.fromkeys(TOOLS, 10)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_becomes_a_recipe_that_passes_check_and_every_key_is_accounted_for(path, tmp_path, monkeypatch):
    made = convert_file(str(path))
    assert made.tool == path.parent.name
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(recipe_text(made))
    recipe = read_recipe("a.yaml")
    assert recipe.translations == (), "it is written with today's names"
    from hf_recipes.recipe.yaml_reader import read_file

    assert {key for key in made.fates if "[" not in key} == set(read_file(str(path)).values)
    lost = [key for key, (fate, _) in made.fates.items() if fate == LOST]
    assert all(f"#   {key}: " in Path("a.yaml").read_text() for key in lost)


def test_an_axolotl_file_becomes_the_recipe_that_it_asks_for():
    made = convert_file(fixture("llama-3_qlora-1b.yml"))
    assert made.sections == {
        "task": "chat",
        "model": {
            "pretrained_model_name_or_path": "NousResearch/Llama-3.2-1B",
            "attn_implementation": "flash_attention_2",
        },
        "tokenizer": {"pad_token": "<|end_of_text|>"},
        "dataset": {"path": "teknium/GPT4-LLM-Cleaned", "test_size": 0.1},
        "BitsAndBytesConfig": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
        "LoraConfig": {
            "r": 32,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "target_modules": ["gate_proj", "down_proj", "up_proj", "q_proj", "v_proj", "k_proj", "o_proj"],
        },
        "SFTConfig": {
            "output_dir": "./outputs/qlora-out",
            "max_length": 2048,
            "packing": True,
            "gradient_accumulation_steps": 4,
            "per_device_train_batch_size": 2,
            "num_train_epochs": 1,
            "optim": "adamw_bnb_8bit",
            "lr_scheduler_type": "cosine",
            "learning_rate": 0.0002,
            "tf32": False,
            "activation_checkpointing": True,
            "logging_steps": 1,
            "warmup_steps": 0.1,
            "eval_strategy": "steps",
            "eval_steps": 0.25,
            "save_strategy": "epoch",
            "weight_decay": 0.0,
            "report_to": "none",
        },
    }
    assert [key for key, (fate, _) in made.fates.items() if fate == LOST] == [
        "datasets[0].type",
        "loss_watchdog_threshold",
        "loss_watchdog_patience",
    ]


def test_a_llama_factory_file_takes_its_data_from_dataset_info(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    entry = {"file_name": "me.json", "columns": {"prompt": "question", "response": "answer"}}
    Path("data/dataset_info.json").write_text(json.dumps({"identity": entry}))
    made = convert_file(fixture("train_lora_qwen3_lora_sft.yaml"))
    assert made.sections["dataset"] == {
        "path": "json",
        "data_files": "data/me.json",
        "user_template": "{{ question }}",
        "assistant_template": "{{ answer }}",
        "split": {"train": "train[:1000]"},
    }
    assert made.sections["LoraConfig"] == {"r": 8, "target_modules": "all-linear", "lora_alpha": 16}
    assert made.sections["SFTConfig"]["max_length"] == 2048
    assert made.fates["dataset"][1].endswith("not translated: one data set is read: not alpaca_en_demo")


def test_a_flat_trl_file_becomes_the_recipe_that_it_asks_for():
    made = convert_file(fixture("zephyr-7b-beta_sft_config_qlora.yaml"))
    sections = made.sections
    assert sections["model"] == {
        "pretrained_model_name_or_path": "mistralai/Mistral-7B-v0.1",
        "revision": "main",
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
    }
    assert sections["dataset"] == {
        "path": "HuggingFaceH4/ultrachat_200k",
        "split": {"train": "train_sft"},
        "test_size": 1000,
        "seed": 0,
    }
    assert sections["LoraConfig"]["r"] == 16 and sections["BitsAndBytesConfig"] == {"load_in_4bit": True}
    assert (sections["SFTConfig"]["max_length"], sections["SFTConfig"]["warmup_steps"]) == (2048, 0.1)
    assert sections["tokenizer"]["chat_template"].startswith("{% for message in messages %}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: a\nrl: dpo\n", "TRL has them: trl dpo --config FILE"),
        ("model_name_or_path: a\nstage: kto\nfinetuning_type: lora\n", "TRL has them: trl kto --config FILE"),
        ("model_name_or_path: a\nbeta: 0.1\n", "TRL has them: trl dpo --config FILE"),
        ("base_model: a\nreward_model: true\n", "TRL has them: trl reward --config FILE"),
        ("task: chat\nmodel: {}\n", "is a recipe already; `hf-recipes check` looks at it"),
        ("compute_environment: LOCAL_MACHINE\n", "is an accelerate config file"),
        ("a: 1\n", "is no file of TRL, axolotl, LLaMA-Factory by its keys; name its tool with --from"),
        ("base_model: a\n", "no recipe can be made of it: the recipe has no dataset"),
        ("- a\n", "is not a mapping of keys"),
        ("base_model: a\nwandb_name: hf_" + "a1B2" * 9, "a token in a recipe is refused; set HF_TOKEN instead"),
    ],
)
def test_a_file_of_which_no_recipe_can_be_made_is_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yml").write_text(text)
    done = CliRunner().invoke(commands, ["convert", "a.yml"])
    assert isinstance(done.exception, RecipeError) and message in str(done.exception)
    assert "a1B2" not in str(done.exception) and not Path("a-recipe.yaml").exists()


def test_the_command_writes_the_recipe_once_and_tells_what_became_of_each_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yml").write_text(
        "base_model: gpt2\ndatasets: [{path: rows.jsonl, type: alpaca}, {path: b, type: x}]\nadapter: lora\nlora_r: 8\n"
        "lora_target_linear: true\nval_set_size: 0\nlearning_rate: 1e-4\nsequence_len: 512\nnum_epochs: none\nx_y: 1\n"
    )
    done = CliRunner().invoke(commands, ["convert", "a.yml"], catch_exceptions=False)
    lines = dict(line.split(None, 1) for line in done.output.splitlines() if not line.startswith("warning"))
    assert lines["lora_r"] == "translated: LoraConfig.r: 8"
    assert lines["datasets"].endswith("not translated: one data set is read: not b")
    assert lines["val_set_size"].startswith("left out: 0: without a validation split")
    assert lines["x_y"] == "not translated: this package knows no such key"
    assert lines["num_epochs"].startswith("not translated: SFTConfig.num_train_epochs is 'none' (string)")
    assert lines["a-recipe.yaml:"].startswith("written from a file of axolotl (7 translated, 1 left out, 3 not")
    recipe = read_recipe("a-recipe.yaml")
    assert recipe.section("dataset") == {"path": "json", "data_files": "rows.jsonl"}
    with pytest.raises(RecipeError, match="is there already"):
        CliRunner().invoke(commands, ["convert", "a.yml"], catch_exceptions=False)
    assert CliRunner().invoke(commands, ["convert", "a.yml", "--output", "a-recipe.yaml"]).exit_code == 0


SMOKES = """
import os, sys, trl, peft, datasets
from hf_recipes.pipeline.run import run
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            os.chdir(name)
            run('a.yaml', smoke=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_converted_files_smoke(tmp_path):
    """A third of them: 30 take 90 seconds of CPU. One process imports once, and each file gets a copy of it."""
    chosen = FILES[::3]
    names = [path.stem for path in chosen]
    for path in chosen:
        (tmp_path / path.stem).mkdir()
        (tmp_path / path.stem / "a.yaml").write_text(recipe_text(convert_file(str(path))))
    subprocess.run([sys.executable, "-c", SMOKES, *names], cwd=tmp_path, timeout=400, check=True)
    ended = {}
    for name in names:
        for found in (tmp_path / name).glob("**/record.json"):
            record = json.loads(found.read_text())
            ended[name] = (record["status"], record["steps"])
    assert ended == dict.fromkeys(names, ("finished", 2))
