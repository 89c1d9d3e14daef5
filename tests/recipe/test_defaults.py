"""What is chosen for the user is said with its reason; the resolved recipe leaves nothing to choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.common.device import Device
from hf_recipes.recipe.defaults import choose, choose_length
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import dump_recipe

CPU = Device(kind="cpu", name="a CPU", bf16=True)
TWO_CPUS = Device(kind="cpu", name="a CPU", bf16=True, processes=2)
AMPERE = Device(kind="cuda", name="RTX 3070", count=1, capability=(8, 6), bf16=True)
TURING = Device(kind="cuda", name="T4", count=1, capability=(7, 5))
MPS = Device(kind="mps", name="Apple GPU (MPS)", count=1, bf16=True)
LORA = "LoraConfig: {target_modules: all-linear}\n"
FOUR_BIT = "BitsAndBytesConfig: {load_in_4bit: true}\n"
Write = Callable[..., str]


def recipe(task: str, words: str = "", model: str = "", more: str = "") -> str:
    section = "SFTConfig" if task == "chat" else "TrainingArguments"
    return (
        f"task: {task}\nmodel: {{pretrained_model_name_or_path: owner/model{model}}}\n"
        f"dataset: {{path: json, data_files: a.jsonl}}\n{section}: {{learning_rate: 1e-4{words}}}\n{more}"
    )


def chosen(write_recipe: Write, device: Device, *arguments: str, **words: str) -> list[str]:
    return choose(read_recipe(write_recipe(recipe(*arguments, **words))), device)[1]


def test_a_bare_recipe_on_a_cpu_says_every_choice(write_recipe: Write) -> None:
    assert chosen(write_recipe, CPU, "text-classification") == [
        "model.dtype: float32 (none is stated; from_pretrained would take the checkpoint's)",
        "TrainingArguments.logging_nan_inf_filter: false (upstream's default logs a NaN loss as 0.0)",
        "TrainingArguments.include_num_input_tokens_seen: non_padding (so that tokens per second are logged)",
        "TrainingArguments.dataloader_pin_memory: false (only CUDA copies from pinned memory)",
        "metrics: [f1, accuracy] (the task's own)",
    ]


def test_qlora_on_a_card_says_nf4_the_compute_type_and_the_task_type(write_recipe: Write) -> None:
    lines = chosen(write_recipe, AMPERE, "chat", more=LORA + FOUR_BIT)
    assert "LoraConfig.task_type: CAUSAL_LM (task: chat)" in lines
    assert lines[-2:] == [
        "BitsAndBytesConfig.bnb_4bit_quant_type: nf4 (bitsandbytes' own default is fp4)",
        "BitsAndBytesConfig.bnb_4bit_compute_dtype: bfloat16 (the fast one on this cuda)",
    ]
    assert chosen(write_recipe, TURING, "chat", more=LORA + FOUR_BIT)[-1] == (
        "BitsAndBytesConfig.bnb_4bit_compute_dtype: float16 (the fast one on this cuda)"
    )


def test_what_the_recipe_says_of_quantisation_stays(write_recipe: Write) -> None:
    said = "BitsAndBytesConfig: {load_in_4bit: true, bnb_4bit_quant_type: fp4, bnb_4bit_compute_dtype: float32}\n"
    assert not [line for line in chosen(write_recipe, AMPERE, "chat", more=LORA + said) if line.startswith("Bits")]


def test_a_classifiers_head_gets_neither_adapter_nor_four_bits(write_recipe: Write) -> None:
    lines = chosen(write_recipe, AMPERE, "token-classification", more=LORA + FOUR_BIT)
    heads = "[classifier, pre_classifier, score]"
    assert f"LoraConfig.exclude_modules: {heads} (a new head is trained in full, without an adapter)" in lines
    assert f"BitsAndBytesConfig.llm_int8_skip_modules: {heads} (a new head is trained, so not quantised)" in lines


@pytest.mark.parametrize(
    ("device", "words", "line"),
    [
        (
            CPU,
            ", fp16: true",
            "TrainingArguments.fp16: false (a CPU trains in fp32 whatever fp16 is set to: accelerate ignores it there)",
        ),
        (
            CPU,
            ", bf16: true",
            "TrainingArguments.use_cpu: true (without it TrainingArguments refuses bf16 on a CPU)",
        ),
        (
            TWO_CPUS,
            "",
            "TrainingArguments.use_cpu: true "
            "(2 processes without an accelerator; else each would act as if it were the only one)",
        ),
        (
            MPS,
            ", tf32: true",
            "TrainingArguments.tf32: null (tf32 needs a CUDA GPU since Ampere; TrainingArguments would refuse it here)",
        ),
        (
            MPS,
            ", torch_compile: true",
            "TrainingArguments.torch_compile: false (inductor has no MPS back end that trains)",
        ),
    ],
)
def test_what_the_device_cannot_do_is_turned_off_aloud(
    write_recipe: Write, device: Device, words: str, line: str
) -> None:
    assert line in chosen(write_recipe, device, "text-classification", words)


def test_a_card_keeps_what_it_can_do(write_recipe: Write) -> None:
    lines = chosen(write_recipe, AMPERE, "text-classification", ", fp16: true, tf32: true, torch_compile: true")
    assert not [line for line in lines if "fp16" in line or "tf32" in line or "compile" in line or "pin" in line]


@pytest.mark.parametrize("device", [CPU, TWO_CPUS, AMPERE, TURING, MPS], ids=lambda device: device.name)
@pytest.mark.parametrize("task", ["causal-lm", "chat", "text-classification", "token-classification"])
def test_the_resolved_recipe_reads_back_and_leaves_nothing_to_choose(
    folder: Path, write_recipe: Write, device: Device, task: str
) -> None:
    quantised = LORA + FOUR_BIT
    for words, more in (("", ""), (", bf16: true", LORA), (", fp16: true, tf32: true", ""), ("", quantised)):
        resolved, lines = choose(read_recipe(write_recipe(recipe(task, words, more=more))), device)
        resolved = choose_length(resolved, 128, 10**30)[0]
        assert lines
        back = read_recipe(write_recipe(dump_recipe(resolved), "resolved.yaml"))
        assert back.sections == resolved.sections
        assert choose(back, device) == (back, [])
        assert choose_length(back, 128, 10**30) == (back, 128, [])


@pytest.mark.parametrize(
    ("task", "positions", "tokenizer", "line"),
    [
        ("causal-lm", 2048, 10**30, "dataset.max_length: 1024 (none is given)"),
        ("causal-lm", None, 10**30, "dataset.max_length: 1024 (none is given)"),
        (
            "text-classification",
            512,
            128,
            "dataset.max_length: 128 (as long as the model and its tokenizer reach; none is given)",
        ),
        ("text-classification", 8192, 8192, "dataset.max_length: 512 (none is given)"),
        ("chat", 4096, 10**30, "SFTConfig.max_length: 1024 (SFTConfig's default)"),
        (
            "chat",
            256,
            10**30,
            "SFTConfig.max_length: 256 (as long as the model and its tokenizer reach; SFTConfig's default)",
        ),
    ],
)
def test_the_length_is_the_shortest_of_task_model_and_tokenizer(
    write_recipe: Write, task: str, positions: int | None, tokenizer: int, line: str
) -> None:
    found, length, lines = choose_length(read_recipe(write_recipe(recipe(task))), positions, tokenizer)
    assert lines == [line]
    assert length == found.get(line.partition(":")[0])


def test_a_given_length_and_a_length_of_null_stay_as_they_are(write_recipe: Write) -> None:
    given = read_recipe(write_recipe(recipe("chat", ", max_length: 77")))
    assert choose_length(given, 64, 64) == (given, 77, [])  # too long: refused elsewhere
    null = read_recipe(write_recipe(recipe("chat", ", max_length: null, padding_free: true")))
    line = "SFTConfig.max_length: null (rows are cut at 64, where the model or its tokenizer ends)"
    assert choose_length(null, 64, 10**30) == (null, 64, [line])
    assert choose_length(null, None, 10**30)[2] == ["SFTConfig.max_length: null (no row is cut)"]
