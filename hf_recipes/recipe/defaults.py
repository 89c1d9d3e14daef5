"""What is chosen for the user, each choice with its reason, printed and written into the resolved recipe.

A choice is made only where the recipe is silent, or where the device cannot do what it says and upstream would
quietly do something else. Reading the resolved recipe back leaves nothing to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS, task_of
from hf_recipes.common.text import as_yaml
from hf_recipes.recipe.global_batch import derive_accumulation
from hf_recipes.recipe.model_facts import model_facts
from hf_recipes.recipe.recipe import CHOSEN
from hf_recipes.recipe.schema.installed import fields

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

Choice = tuple[str, Any, str]  # dotted key, value, reason
NEW_HEADS = ("classifier", "pre_classifier", "score")  # what classifiers of transformers call theirs
DEFAULT_LENGTH = {"causal-lm": 1024, "chat": 1024, "text-classification": 512, "token-classification": 512}


def choose(recipe: Recipe, device: Device) -> tuple[Recipe, list[str]]:
    """The recipe with every default that we or the device chose, and a line for each: `key: value (reason)`."""
    lines = []
    for rule in (_places, _batch, _precision, _trainer, _adapter, _quantisation):
        for dotted, value, reason in list(rule(recipe, device)):
            recipe = recipe.with_values({dotted: value}, CHOSEN + reason)
            lines.append(f"{dotted}: {as_yaml(value)} ({reason})")
    return recipe, lines


# What every run would print and nobody changes: in the record, the report and the model card.
UNREMARKABLE = (
    "model.dtype", "metrics", "LoraConfig.task_type",
    *(
        f"{section}.{key}"
        for section in ("TrainingArguments", "SFTConfig")
        for key in ("output_dir", "logging_nan_inf_filter", "include_num_input_tokens_seen", "dataloader_pin_memory",
                    "activation_checkpointing")
    ),
)  # fmt: skip


def shown_choices(recipe: Recipe, lines: Sequence[str]) -> list[str]:
    """The choices that a user wants to see: those that replace a value of `recipe`, and the remarkable ones."""
    keys = [line.partition(": ")[0] for line in lines]
    return [
        line for key, line in zip(keys, lines, strict=True) if key not in UNREMARKABLE or recipe.get(key) is not None
    ]


def choose_length(recipe: Recipe, positions: int | None, tokenizer_length: int) -> tuple[Recipe, int, list[str]]:
    """The length that rows are cut to: the recipe's, else the shortest of the model's positions, the tokenizer's
    model_max_length and the task's usual length. Returns it in tokens. A length the model cannot hold is the
    caller's to refuse. `SFTConfig.max_length: null` stays: rows are cut where the model ends, nowhere else."""
    dotted = recipe.max_length_key
    given = recipe.get(dotted)
    if isinstance(given, int):
        return recipe, given, []
    reach = min(positions or tokenizer_length, tokenizer_length)
    if recipe.trainer == "SFTConfig" and "max_length" in recipe.training:
        shown = f"rows are cut at {reach}, where the model or its tokenizer ends" if reach < 2**31 else "no row is cut"
        return recipe, reach, [f"{dotted}: null ({shown})"]
    length = min(DEFAULT_LENGTH[recipe.task], reach)
    reason = "SFTConfig's default" if recipe.trainer == "SFTConfig" else "none is given"
    if length == reach:
        reason = f"as long as the model and its tokenizer reach; {reason}"
    # Its location is the section's, where the user would write it: an error about a chosen length has to name a line.
    return recipe.with_values({dotted: length}, recipe.location(dotted)), length, [f"{dotted}: {length} ({reason})"]


def _places(recipe: Recipe, device: Device) -> Iterator[Choice]:
    section = recipe.trainer
    if not recipe.training.get("output_dir"):
        yield f"{section}.output_dir", f"runs/{Path(recipe.path).stem}", "the recipe's name"
    if device.kind == "cpu" and device.processes > 1 and not recipe.training.get("use_cpu"):
        reason = f"{device.processes} processes without an accelerator; else each would act as if it were the only one"
        yield f"{section}.use_cpu", True, reason
    elif device.kind == "cpu" and recipe.training.get("bf16") and not recipe.training.get("use_cpu"):
        yield f"{section}.use_cpu", True, "without it TrainingArguments refuses bf16 on a CPU"


def _batch(recipe: Recipe, device: Device) -> Iterator[Choice]:
    derived = derive_accumulation(recipe, device.processes)
    if derived is not None:
        yield derived


def _precision(recipe: Recipe, device: Device) -> Iterator[Choice]:
    section, training = recipe.trainer, recipe.training
    on_cpu = device.kind == "cpu"
    if "dtype" not in recipe.section("model"):
        if recipe.get("master_weights"):
            yield "model.dtype", "float16", "master_weights: fp16 parameters; the fp32 masters are the optimizer's"
        elif recipe.section("BitsAndBytesConfig"):
            halves = device.bf16 and not on_cpu and model_facts(recipe.section("model")).model_type != "fnet"
            dtype = "bfloat16" if halves else "float32"  # FNet's Fourier transform: rules/device.py
            yield "model.dtype", dtype, "of what is not quantised; none is stated"
        else:
            yield "model.dtype", "float32", "none is stated; from_pretrained would take the checkpoint's"
    if training.get("fp16") and on_cpu and not recipe.get("master_weights"):
        yield f"{section}.fp16", False, "a CPU trains in fp32 whatever fp16 is set to: accelerate ignores it there"
    if section == "SFTConfig" and "bf16" not in training:
        if on_cpu:
            yield f"{section}.bf16", False, "SFTConfig would turn it on, and a CPU without AMX is ~8 times slower in it"
        elif recipe.get("master_weights") or training.get("fp16"):
            yield f"{section}.bf16", False, "fp16 is on"
        else:
            yes = device.bf16
            reason = "SFTConfig's default" if yes else "SFTConfig would turn it on, and this GPU has no bf16 units"
            yield f"{section}.bf16", yes, reason
    if training.get("tf32") and device.kind != "cuda":
        yield f"{section}.tf32", None, "tf32 needs a CUDA GPU since Ampere; TrainingArguments would refuse it here"
    if training.get("torch_compile") and device.kind == "mps":
        yield f"{section}.torch_compile", False, "inductor has no MPS back end that trains"


def _trainer(recipe: Recipe, device: Device) -> Iterator[Choice]:
    section, training = recipe.trainer, recipe.training
    if "logging_nan_inf_filter" not in training:
        yield f"{section}.logging_nan_inf_filter", False, "upstream's default logs a NaN loss as 0.0"
    if "include_num_input_tokens_seen" not in training:
        yield f"{section}.include_num_input_tokens_seen", "non_padding", "so that tokens per second are logged"
    if "dataloader_pin_memory" not in training and device.kind != "cuda":
        yield f"{section}.dataloader_pin_memory", False, "only CUDA copies from pinned memory"
    if (
        section == "SFTConfig"
        and "activation_checkpointing" in fields(section)
        and "activation_checkpointing" not in training
    ):
        yield f"{section}.activation_checkpointing", True, "SFTConfig's default, under its new name"
    if "metrics" not in recipe.sections:
        yield "metrics", list(task_of(recipe).default_metrics), "the task's own"


def _adapter(recipe: Recipe, device: Device) -> Iterator[Choice]:
    if "LoraConfig" in recipe.sections and "task_type" not in recipe.section("LoraConfig"):
        yield "LoraConfig.task_type", TASKS[recipe.task].peft_task_type, f"task: {recipe.task}"
    given = recipe.section("LoraConfig")
    everywhere = given.get("target_modules") == "all-linear" and not TASKS[recipe.task].generates
    if everywhere and "exclude_modules" not in given:  # peft 0.21 trips over the head of a token classifier
        yield "LoraConfig.exclude_modules", list(NEW_HEADS), "a new head is trained in full, without an adapter"


def _quantisation(recipe: Recipe, device: Device) -> Iterator[Choice]:
    given = recipe.section("BitsAndBytesConfig")
    if given and not TASKS[recipe.task].generates and "llm_int8_skip_modules" not in given:
        yield "BitsAndBytesConfig.llm_int8_skip_modules", list(NEW_HEADS), "a new head is trained, so not quantised"
    if given.get("load_in_4bit"):
        if "bnb_4bit_quant_type" not in given:
            yield "BitsAndBytesConfig.bnb_4bit_quant_type", "nf4", "bitsandbytes' own default is fp4"
        if "bnb_4bit_compute_dtype" not in given:
            dtype = "float32" if device.kind == "cpu" else "bfloat16" if device.bf16 else "float16"
            yield "BitsAndBytesConfig.bnb_4bit_compute_dtype", dtype, f"the fast one on this {device.kind}"
