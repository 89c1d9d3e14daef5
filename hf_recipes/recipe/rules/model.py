"""The model, its adapter, its quantisation and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_recipes.common.text import nearest
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.model_facts import known_config
from hf_recipes.recipe.rules.rule import Rule, has_section, number_of, report_key, strings_in

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

# Modules that LoRA can adapt, by the last part of their names; a test holds them to the installed architectures.
_LLAMA = (
    "embed_tokens",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
    "score",
)
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": (
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
        "query",
        "key",
        "value",
        "dense",
        "classifier",
    ),
    "distilbert": (
        "word_embeddings",
        "position_embeddings",
        "q_lin",
        "k_lin",
        "v_lin",
        "out_lin",
        "lin1",
        "lin2",
        "pre_classifier",
        "classifier",
    ),
    "gemma3_text": _LLAMA,
    "gpt2": ("wte", "wpe", "c_attn", "c_proj", "c_fc", "lm_head", "score", "classifier"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi": ("embed_tokens", "q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head", "score"),
    "qwen2": _LLAMA,
}
ONLY_4BIT = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
ONLY_8BIT = ("llm_int8_threshold", "llm_int8_has_fp16_weight")


def sections_of_the_task(recipe: Recipe) -> Iterator[Diagnostic]:
    """What the task does not use: the other trainer, keys for generating text."""
    from hf_recipes.catalog.tasks import TASKS

    task = TASKS[recipe.task]
    if recipe.trainer not in task.trainers:
        what = f"task {task.name} is not trained with {recipe.trainer}"
        yield report_key(recipe, recipe.trainer, what, f"use {' or '.join(task.trainers)}")
    for name in ("sample_prompts", "GenerationConfig"):
        if has_section(recipe, name) and not task.generates:
            yield report_key(recipe, name, f"task {task.name} generates no text: {name} has no effect", "leave it out")
    given = recipe.get("metrics")
    answered = task.name == "chat" and isinstance(given, list) and set(strings_in(given)) - set(task.metrics)
    used = recipe.get("sample_prompts") or answered
    if has_section(recipe, "GenerationConfig") and task.generates and not used:
        what = "GenerationConfig has no effect: it is for sample_prompts, and there are none"
        yield report_key(recipe, "GenerationConfig", what, "write sample_prompts, or leave it out")


def adapter_of_the_task(recipe: Recipe) -> Iterator[Diagnostic]:
    """peft: the task type decides which head is trained beside the adapter; SEQ_CLS and TOKEN_CLS train theirs."""
    from hf_recipes.catalog.tasks import TASKS

    task = TASKS[recipe.task]
    kind = recipe.get("LoraConfig.task_type")
    if isinstance(kind, str) and kind != task.peft_task_type:
        what = f"LoraConfig.task_type: {kind} contradicts task: {task.name}"
        yield report_key(recipe, "LoraConfig.task_type", what, f"leave it out: it is {task.peft_task_type}")
    if recipe.get("LoraConfig.inference_mode") is True:
        what = "LoraConfig.inference_mode: true freezes the adapter: nothing would be trained"
        yield report_key(recipe, "LoraConfig.inference_mode", what, "leave it out")


def adapter_on_the_head(recipe: Recipe) -> Iterator[Diagnostic]:
    """trl sft_trainer.py:1070: "Applying a PEFT adapter to `lm_head` is not supported": its head is fused."""
    targets = strings_in(recipe.get("LoraConfig.target_modules"))
    if recipe.trainer == "SFTConfig" and any(name.rpartition(".")[2] == "lm_head" for name in targets):
        what = "LoraConfig.target_modules has lm_head, which SFTTrainer reads without its adapter"
        yield report_key(recipe, "LoraConfig.target_modules", what, "take it out, or write modules_to_save: [lm_head]")


def _unknown_targets(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(targets that the architecture has not, all targets); two empty lists where no table has it."""
    given = recipe.get("LoraConfig.target_modules")
    known = LORA_TARGETS.get(str(known_config(recipe).get("model_type")))
    if not isinstance(given, list) or known is None:  # a string is `all-linear` or a regular expression
        return [], []
    targets = strings_in(given)
    return [name for name in targets if name.rpartition(".")[2] not in known], targets


def adapter_on_nothing(recipe: Recipe) -> Iterator[Diagnostic]:
    """peft: "Target modules {...} not found in the base model", once the model is loaded."""
    unknown, targets = _unknown_targets(recipe)
    if targets and unknown == targets:
        yield _no_such_module(recipe, unknown)


def adapter_on_less(recipe: Recipe) -> Iterator[Diagnostic]:
    """peft adapts what it finds and ignores the rest."""
    unknown, targets = _unknown_targets(recipe)
    if unknown and unknown != targets:
        yield _no_such_module(recipe, unknown)


def _no_such_module(recipe: Recipe, unknown: list[str]) -> Diagnostic:
    kind = str(known_config(recipe)["model_type"])
    known = LORA_TARGETS[kind]
    near = nearest(unknown[0], known)
    fix = f"did you mean {near!r}?" if near else f"it has {', '.join(known)}; or write all-linear"
    what = f"LoraConfig.target_modules: a {kind} has no {', '.join(unknown)}"
    return report_key(recipe, "LoraConfig.target_modules", what, fix)


def quantised_without_adapter(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer_utils.py:133: "You cannot perform fine-tuning on purely quantized models"."""
    if has_section(recipe, "BitsAndBytesConfig") and not has_section(recipe, "LoraConfig"):
        what = "BitsAndBytesConfig without LoraConfig: quantised weights cannot be trained"
        yield report_key(recipe, "BitsAndBytesConfig", what, "add LoraConfig (QLoRA), or leave BitsAndBytesConfig out")


def quantised_from_scratch(recipe: Recipe) -> Iterator[Diagnostic]:
    """from_config takes no quantization_config: there are no weights yet that could be quantised."""
    if recipe.get("model.pretrained_model_name_or_path") is not None:
        return
    for source in ("preset", "config"):
        if has_section(recipe, "BitsAndBytesConfig") and recipe.get(f"model.{source}") is not None:
            what = f"BitsAndBytesConfig with model.{source}: a model from scratch has no weights to quantise"
            yield report_key(recipe, "BitsAndBytesConfig", what, "leave it out")


def quantised_how(recipe: Recipe) -> Iterator[Diagnostic]:
    """utils/quantization_config.py: "only one can be used at the same time"; keys of the other kind are ignored."""
    if not has_section(recipe, "BitsAndBytesConfig"):
        return
    given = recipe.section("BitsAndBytesConfig")
    four, eight = given.get("load_in_4bit") is True, given.get("load_in_8bit") is True
    if four and eight:
        what = "BitsAndBytesConfig has load_in_4bit and load_in_8bit"
        yield report_key(recipe, "BitsAndBytesConfig.load_in_8bit", what, "keep one of them")
    elif not four and not eight:
        what = "BitsAndBytesConfig quantises nothing: neither load_in_4bit nor load_in_8bit is true"
        yield report_key(recipe, "BitsAndBytesConfig", what, "write load_in_4bit: true")
    else:
        kind, other = ("load_in_4bit", "load_in_8bit") if four else ("load_in_8bit", "load_in_4bit")
        for name in ONLY_8BIT if four else ONLY_4BIT:
            if name in given:
                what = f"BitsAndBytesConfig.{name} has no effect with {kind}"
                yield report_key(recipe, f"BitsAndBytesConfig.{name}", what, f"leave it out, or write {other}: true")


def tokenizer_of_the_model(recipe: Recipe) -> Iterator[Diagnostic]:
    """A tokenizer trained on the data is for a model from scratch: pretrained embeddings have other tokens."""
    if not has_section(recipe, "BpeTrainer"):
        return
    if recipe.get("model.pretrained_model_name_or_path") is not None:
        what = "BpeTrainer with a pretrained model: its embeddings belong to its own tokenizer's tokens"
        yield report_key(
            recipe, "BpeTrainer", what, "leave it out, or start from scratch with model.preset or model.config"
        )
    if has_section(recipe, "tokenizer"):
        what = f"BpeTrainer trains a tokenizer, and one is given ({recipe.location('tokenizer')})"
        yield report_key(recipe, "BpeTrainer", what, "keep one of BpeTrainer and tokenizer")


def longer_than_the_model(recipe: Recipe) -> Iterator[Diagnostic]:
    """A table of positions has an end: the index beyond it is an error on the CPU and a crash of the GPU."""
    config = known_config(recipe)
    positions = config.get("n_positions") or config.get("max_position_embeddings")
    dotted = recipe.max_length_key
    length = recipe.get(dotted)
    if type(length) is int and type(positions) is int and length > positions:
        what = f"{dotted}: {length} tokens are more than the model's {positions} positions"
        yield report_key(recipe, dotted, what, f"set {dotted}: {positions} or less")


def vocabulary_of_nothing(recipe: Recipe) -> Iterator[Diagnostic]:
    """Byte-level BPE begins with 256 bytes and the special tokens: a smaller vocabulary learns no merge."""
    size = recipe.get("BpeTrainer.vocab_size")
    if type(size) is int and size <= 257:
        what = f"BpeTrainer.vocab_size: {size} leaves no room beside 256 bytes and the end token"
        yield report_key(recipe, "BpeTrainer.vocab_size", what, "write some thousands")


def adapter_without_a_base(recipe: Recipe) -> Iterator[Diagnostic]:
    """peft saves the adapter alone; random weights stand in no file that it could be loaded onto."""
    pretrained = recipe.get("model.pretrained_model_name_or_path") is not None
    scratch = next((s for s in ("preset", "config") if recipe.get(f"model.{s}") is not None and not pretrained), None)
    if has_section(recipe, "LoraConfig") and scratch:
        what = f"LoraConfig with model.{scratch}: the adapter is saved without the random weights that it belongs to"
        yield report_key(recipe, "LoraConfig", what, "leave LoraConfig out, or start from a pretrained model")


def sampling_at_zero(recipe: Recipe) -> Iterator[Diagnostic]:
    """generation/logits_process.py: "`temperature` (=0.0) has to be a strictly positive float"."""
    given = recipe.section("GenerationConfig")
    if given.get("do_sample") is True and given.get("temperature") == 0:
        what = "GenerationConfig.temperature: 0 cannot be sampled at"
        yield report_key(recipe, "GenerationConfig.temperature", what, "write do_sample: false, which is what it means")


def adapter_that_barely_learns(recipe: Recipe) -> Iterator[Diagnostic]:
    """Upstream's 5e-5 (Trainer) and 2e-5 (SFTTrainer) are for full fine-tuning; adapters want about ten times that."""
    if has_section(recipe, "LoraConfig") and "learning_rate" not in recipe.training:
        rate = number_of(recipe, "learning_rate")
        what = f"LoraConfig with {recipe.trainer}'s default learning_rate ({rate}), which is for full fine-tuning"
        yield report_key(recipe, recipe.trainer, what, "state learning_rate; 2e-4 is usual for LoRA")


ERRORS: tuple[Rule, ...] = (
    sections_of_the_task,
    adapter_of_the_task,
    adapter_on_the_head,
    adapter_on_nothing,
    quantised_without_adapter,
    quantised_from_scratch,
    quantised_how,
    tokenizer_of_the_model,
    longer_than_the_model,
    vocabulary_of_nothing,
    sampling_at_zero,
)
WARNINGS: tuple[Rule, ...] = (adapter_on_less, adapter_without_a_base, adapter_that_barely_learns)
