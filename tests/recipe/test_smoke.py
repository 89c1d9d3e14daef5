"""`run --smoke`: two real steps of any recipe, offline, in seconds; only the printed replacements differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.catalog.presets import PRESETS
from hf_recipes.data.generated import generate_splits
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.smoke import shrink
from tests.support.tiny_models import bpe, save_llama

Write = Callable[..., str]
BIG = """
task: chat
model: {pretrained_model_name_or_path: microsoft/phi-2, dtype: bfloat16}
dataset: {path: json, data_files: data/none.jsonl}
BitsAndBytesConfig: {load_in_4bit: true, bnb_4bit_compute_dtype: bfloat16, bnb_4bit_use_double_quant: true}
LoraConfig: {r: 8, lora_dropout: 0.05, target_modules: all-linear}
SFTConfig:
  output_dir: runs/big
  learning_rate: 2e-4
  num_train_epochs: 3
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 8
  max_length: 2048
  bf16: true
  tf32: true
  dataloader_num_workers: 8
  eval_strategy: steps
  eval_steps: 500
  lr_scheduler_type: cosine
  push_to_hub: true
  report_to: [tensorboard]
"""


def test_a_qlora_recipe_trains_two_quantised_steps(write_recipe: Write) -> None:
    record = json.loads(run(write_recipe(BIG), smoke=True).read_text())
    assert (record["status"], record["steps"], record["model"]["class"]) == ("finished", 2, "PhiForCausalLM")
    assert record["recipe"]["sections"]["BitsAndBytesConfig"] == {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_type": "nf4",
    }
    assert Path("runs/big-smoke/adapter_model.safetensors").is_file()
    assert not Path("runs/big").exists()


def test_every_replacement_is_printed_and_the_rest_is_the_recipes(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(BIG))
    small, lines = shrink(recipe)
    assert lines == [
        "model: two narrow phi layers (of microsoft/phi-2), random weights",
        "bnb_4bit_compute_dtype: float32",
        "tokenizer: a BPE of 384 tokens of the generated rows",
        "dataset: generated rows",
        "SFTConfig.max_length: 32",
        "per_device_train_batch_size: 2",
        "per_device_eval_batch_size: 2",
        "gradient_accumulation_steps: 2",
        "max_steps: 2",
        "dataloader_num_workers: 1",
        "use_cpu: true",
        "tf32: none",
        "report_to: none",
        "push_to_hub: false",
        "bf16: false",
        "output_dir: runs/big-smoke",
    ]
    kept = ("learning_rate", "lr_scheduler_type", "eval_strategy", "num_train_epochs")
    assert {name: small.training[name] for name in kept} == {name: recipe.training[name] for name in kept}
    assert small.section("LoraConfig") == recipe.section("LoraConfig")
    assert small.training["eval_steps"] == 1


def test_a_tests_own_precision_is_kept_where_it_is_asked_for(write_recipe: Write) -> None:
    small, lines = shrink(read_recipe(write_recipe(BIG)), keep_precision=True)
    assert (small.get("model.dtype"), small.training["bf16"]) == ("bfloat16", True)
    assert small.get("BitsAndBytesConfig.bnb_4bit_compute_dtype") == "bfloat16"
    assert "bf16: false" not in lines


def of_model(write_recipe: Write, model: str, task: str = "causal-lm") -> Recipe:
    return read_recipe(
        write_recipe(
            f"task: {task}\nmodel: {{{model}}}\ndataset: {{path: json, data_files: none.jsonl}}\n"
            f"TrainingArguments: {{output_dir: out}}\n"
            + ("" if "pretrained" in model else "BpeTrainer: {vocab_size: 9999}\n")
        )
    )


@pytest.mark.parametrize(
    ("model", "task", "found"),
    [
        ("preset: gemma-270m", "causal-lm", ("gemma3_text", "of the preset")),
        ("config: {model_type: gpt_neox}", "causal-lm", ("gpt_neox", "as the recipe says")),
        ("pretrained_model_name_or_path: gpt2", "causal-lm", ("gpt2", "of gpt2")),
        ("pretrained_model_name_or_path: ./model", "causal-lm", ("llama", "of ./model/config.json")),
        ("config: ./model/config.json", "causal-lm", ("llama", "of ./model/config.json")),
        (
            "pretrained_model_name_or_path: owner/unheard",
            "causal-lm",
            ("llama", "a guess: the architecture of owner/unheard is not known offline"),
        ),
        (
            "pretrained_model_name_or_path: owner/unheard",
            "text-classification",
            ("bert", "a guess: the architecture of owner/unheard is not known offline"),
        ),
    ],
)
def test_the_narrow_model_is_of_the_recipes_class(
    folder: Path, write_recipe: Write, model: str, task: str, found: tuple[str, str]
) -> None:
    save_llama(folder / "model", bpe())
    small, lines = shrink(of_model(write_recipe, model, task))
    assert small.get("model.config.model_type") == found[0]
    assert lines[0] == f"model: two narrow {found[0]} layers ({found[1]}), random weights"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_fields_that_are_no_width_stay_the_recipes(write_recipe: Write, preset: str) -> None:
    field = "attention_dropout" if "gemma" in preset else "attn_pdrop"
    small, _ = shrink(of_model(write_recipe, f"preset: {preset}, {field}: 0.25"))
    assert small.get(f"model.config.{field}") == 0.25


@pytest.mark.parametrize(
    ("task", "dataset", "columns"),
    [
        ("causal-lm", "text_column: body", {"body"}),
        ("causal-lm", "input_ids_column: ids", {"text", "ids"}),
        ("chat", "", {"messages"}),
        ("chat", "prompt_column: q, completion_column: a", {"q", "a"}),
        ("text-classification", "text_column: body, label_column: kind", {"body", "kind"}),
        ("token-classification", "tokens_column: words", {"words", "tags"}),
    ],
)
def test_generated_rows_have_the_recipes_columns_and_train(
    write_recipe: Write, task: str, dataset: str, columns: set[str]
) -> None:
    section = "SFTConfig" if task == "chat" else "TrainingArguments"
    text = f"task: {task}\nmodel: {{pretrained_model_name_or_path: owner/unheard}}\n"
    text += f"dataset: {{path: owner/rows{', ' if dataset else ''}{dataset}}}\n{section}: {{output_dir: out}}\n"
    path = write_recipe(text)
    splits = generate_splits(shrink(read_recipe(path))[0])
    assert set(splits.train.column_names) == columns
    assert splits.train[0] == generate_splits(shrink(read_recipe(path))[0]).train[0]
    record = json.loads(run(path, smoke=True).read_text())
    assert (record["status"], record["steps"]) == ("finished", 2)
    assert set(record["metrics"]) == {"before", "eval", "test"}


FOR_A_GPU = """
task: chat
model:
  pretrained_model_name_or_path: mistralai/Mistral-7B-v0.1
  attn_implementation: flash_attention_2
dataset: {path: json, data_files: {train: data/train.jsonl, validation: data/validation.jsonl}}
SFTConfig:
  output_dir: runs/out
  learning_rate: 1e-3
  optim: adamw_torch_8bit
  use_liger_kernel: true
  activation_offloading: true
  torch_compile_backend: inductor
"""


def test_what_a_cpu_cannot_do_is_replaced_and_printed(write_recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(run(write_recipe(FOR_A_GPU), smoke=True).read_text())
    assert (record["status"], record["steps"]) == ("finished", 2)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("smoke run")]
    for part in (
        "its attention on a CPU is sdpa or eager, not flash_attention_2",
        "optim: adamw_torch (not adamw_torch_8bit)",
        "use_liger_kernel: false",
        "activation_offloading: false",
        "torch_compile_backend: none",
    ):
        assert part in line
    kernel = read_recipe(write_recipe(FOR_A_GPU), ["model.attn_implementation=kernels-community/flash-attn2"])
    assert "attn_implementation" not in json.dumps(shrink(kernel)[0].sections["model"])


NOT_OF_THE_NARROW_MODEL = """
task: chat
model: {pretrained_model_name_or_path: %s}
dataset: {path: json, data_files: {train: data/train.jsonl, validation: data/validation.jsonl}}
LoraConfig: {%s}
SFTConfig: {output_dir: out, learning_rate: 1e-3, eos_token: <|im_end|>}
"""


@pytest.mark.parametrize(
    ("model", "adapter", "replaced"),
    [
        (
            "owner/unheard",
            "target_modules: [query_key_value], modules_to_save: [embed_out, lm_head]",
            {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        ),
        ("owner/unheard", "target_modules: '.*query_key_value'", {"target_modules": "all-linear"}),
        ("owner/unheard", "target_modules: [q_proj, v_proj]", {"target_modules": ["q_proj", "v_proj"]}),
        (
            "Qwen/Qwen2.5-0.5B",
            "target_modules: [q_proj], layers_to_transform: [20, 21], trainable_token_indices: [151644]",
            {"target_modules": ["q_proj"], "layers_to_transform": None, "trainable_token_indices": [1, 2]},
        ),
    ],
)
def test_what_the_narrow_model_and_its_tokenizer_lack_is_replaced(
    write_recipe: Write, capsys: pytest.CaptureFixture[str], model: str, adapter: str, replaced: dict
) -> None:
    record = json.loads(run(write_recipe(NOT_OF_THE_NARROW_MODEL % (model, adapter)), smoke=True).read_text())
    assert (record["status"], record["steps"]) == ("finished", 2)
    ran = record["recipe"]["sections"]["LoraConfig"]
    assert {name: ran.get(name) for name in replaced} == replaced
    assert "eos_token: the BPE's (not <|im_end|>)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("config: {model_type: qwen2}", None),
        ("config: {model_type: qwen3, use_sliding_window: true}", ["sliding_attention", "full_attention"]),
        ("config: {model_type: gemma3_text}", ["sliding_attention", "full_attention"]),
    ],
)
def test_only_a_model_with_windows_gets_a_layer_with_one(
    write_recipe: Write, model: str, kinds: list[str] | None
) -> None:
    small, _ = shrink(of_model(write_recipe, model))
    assert small.get("model.config.layer_types") == kinds
