"""Keys of other tools whose value must be translated, too: one function each, in one table a tool.

What only changes its name is a row of catalog/other_tools.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_recipes.catalog.other_tools import LENGTH, TRAINER
from hf_recipes.common.text import as_yaml
from hf_recipes.recipe.convert_data import (
    Outcome,
    Rule,
    axolotl_data,
    axolotl_pretraining,
    axolotl_tests,
    factory_data,
    factory_most,
    handbook_mixer,
    handbook_mixture,
    in_the_split,
    set_if_true,
    set_key,
    trl_data,
    validation_share,
)
from hf_recipes.recipe.foreign_keys import preference_method

# one value ----------------------------------------------------------------------------------------------------------


def _per_epoch(kind: str) -> Rule:
    """axolotl: so many evaluations (saves) an epoch; here a share of all steps, or each epoch."""

    def rule(given: Any, values: Mapping[str, Any]) -> Outcome:
        if not given:
            return set_key(f"{TRAINER}.{kind}_strategy", "no")
        if given == 1:
            return set_key(f"{TRAINER}.{kind}_strategy", "epoch")
        epochs = values.get("num_epochs") or 1
        share = round(1 / (given * epochs), 6)
        return Outcome(sets={f"{TRAINER}.{kind}_strategy": "steps", f"{TRAINER}.{kind}_steps": share})

    return rule


def _bf16(given: Any, _: Mapping[str, Any]) -> Outcome:
    if given == "auto":
        return Outcome(needless="SFTConfig has it where the GPU can")
    if given == "full":
        return Outcome(sets={f"{TRAINER}.bf16": True, "model.dtype": "bfloat16"})
    return set_key(f"{TRAINER}.bf16", bool(given))


def _auto(key: str) -> Rule:
    def rule(given: Any, _: Mapping[str, Any]) -> Outcome:
        return Outcome(needless="the device decides") if given == "auto" else set_key(f"{TRAINER}.{key}", given)

    return rule


def _checkpointing(given: Any, _: Mapping[str, Any]) -> Outcome:
    key = f"{TRAINER}.activation_checkpointing"
    if isinstance(given, str):  # offload, unsloth: where the activations are kept
        return Outcome(sets={key: True}, but=f"{given}: activations stay on the GPU")
    return set_key(key, bool(given))


def _scheduler(given: Any, values: Mapping[str, Any]) -> Outcome:
    if values.get("cosine_min_lr_ratio") and given == "cosine":
        return set_key(f"{TRAINER}.lr_scheduler_type", "cosine_with_min_lr")
    return set_key(f"{TRAINER}.lr_scheduler_type", given)


def _least_rate(given: Any, values: Mapping[str, Any]) -> Outcome:
    if values.get("lr_scheduler", "cosine") != "cosine" or not given:
        return Outcome(needless="it is for cosine alone")
    sets = {
        f"{TRAINER}.lr_scheduler_type": "cosine_with_min_lr",
        f"{TRAINER}.lr_scheduler_kwargs": {"min_lr_rate": given},
    }
    return Outcome(sets=sets)


def _adapter(given: Any, _: Mapping[str, Any]) -> Outcome:
    if given not in ("lora", "qlora"):
        return Outcome(lost=f"{as_yaml(given)} is no method of LoraConfig")
    return set_key("LoraConfig", {})


def _special_tokens(given: Any, _: Mapping[str, Any]) -> Outcome:
    if not isinstance(given, dict):
        return Outcome(lost="it is no mapping of names and tokens")
    known = ("pad_token", "eos_token", "bos_token", "unk_token")
    sets = {f"tokenizer.{name}": token for name, token in given.items() if name in known and token}
    lost = [name for name in given if name not in known]
    return Outcome(sets=sets, but=", ".join(lost)) if sets else Outcome(lost=f"no token that a tokenizer has: {lost}")


def _plugins(given: Any, _: Mapping[str, Any]) -> Outcome:
    names = [str(one).rpartition(".")[2] for one in (given if isinstance(given, list) else [given])]
    others = [name for name in names if name not in ("LigerPlugin", "CutCrossEntropyPlugin")]
    sets = {f"{TRAINER}.use_liger_kernel": True} if "LigerPlugin" in names else {}
    if others:
        return Outcome(sets=sets, lost="" if sets else f"{', '.join(others)}", but=", ".join(others) if sets else "")
    return Outcome(sets=sets) if sets else Outcome(needless="SFTTrainer computes the loss in chunks by itself")


def _liger(name: str) -> Rule:
    return lambda given, _: set_key(f"{TRAINER}.liger_kernel_config", {name: bool(given)})


def _reporter(name: str) -> Rule:
    return lambda given, _: set_key(f"{TRAINER}.report_to", name) if given else Outcome(needless="nothing is reported")


def _project(given: Any, _: Mapping[str, Any]) -> Outcome:
    return Outcome(sets={f"{TRAINER}.report_to": "wandb"}, but=f"export WANDB_PROJECT={given}")


def _attention(name: str) -> Rule:
    return set_if_true("model.attn_implementation", name)


def _peft(given: Any, _: Mapping[str, Any]) -> Outcome:
    return set_key("LoraConfig", {}) if given else Outcome(needless="false: every weight is trained")


def _commas(dotted: str, all_of: str = "") -> Rule:
    """LLaMA-Factory: names in one text, or "all"."""

    def rule(given: Any, _: Mapping[str, Any]) -> Outcome:
        if all_of and given == "all":
            return set_key(dotted, all_of)
        return set_key(dotted, [part.strip() for part in given.split(",")] if isinstance(given, str) else given)

    return rule


def _finetuning(given: Any, _: Mapping[str, Any]) -> Outcome:
    if given == "full":
        return Outcome(needless="a run without LoraConfig trains every weight")
    return set_key("LoraConfig", {}) if given == "lora" else Outcome(lost=f"{given} is no method of this package")


def _stage(given: Any, _: Mapping[str, Any]) -> Outcome:
    return set_key("task", "causal-lm" if given == "pt" else "chat")


def _bits(given: Any, values: Mapping[str, Any]) -> Outcome:
    if given not in (4, 8) or values.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
        return Outcome(lost="bitsandbytes quantises to 4 or 8 bits")
    if given == 8:
        return set_key("BitsAndBytesConfig.load_in_8bit", True)
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": values.get("quantization_type", "nf4")}
    return set_key("BitsAndBytesConfig", {**nf4, "bnb_4bit_use_double_quant": values.get("double_quantization", True)})


def _flash(given: Any, _: Mapping[str, Any]) -> Outcome:
    names = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager"}
    return (
        set_key("model.attn_implementation", names[given]) if given in names else Outcome(needless="upstream decides")
    )


def _pissa(given: Any, values: Mapping[str, Any]) -> Outcome:
    if not given:
        return Outcome(needless="false: nothing is asked for")
    rounds = values.get("pissa_iter", 16)
    return set_key("LoraConfig.init_lora_weights", "pissa" if rounds == -1 else f"pissa_niter_{rounds}")


RULES: Mapping[str, Mapping[str, Rule]] = {
    "TRL": {
        "dataset_name": trl_data,
        "dataset_mixture": handbook_mixture,
        "dataset_mixer": handbook_mixer,
        "dataset_train_split": in_the_split,
        "dataset_test_split": in_the_split,
        "dataset_splits": in_the_split,
        "use_peft": _peft,
        "dataset_text_field": lambda given, _: Outcome(sets={"task": "causal-lm", "dataset.text_column": given}),
        "lora_target_modules": lambda given, _: set_key(
            "LoraConfig.target_modules", "all-linear" if given in ("all-linear", ["all-linear"]) else given
        ),
    },
    "axolotl": {
        "datasets": axolotl_data,
        "pretraining_dataset": axolotl_pretraining,
        "test_datasets": axolotl_tests,
        "val_set_size": validation_share,
        "adapter": _adapter,
        "lora_target_linear": set_if_true("LoraConfig.target_modules", "all-linear"),
        "special_tokens": _special_tokens,
        "bf16": _bf16,
        "fp16": _auto("fp16"),
        "tf32": _auto("tf32"),
        "float16": set_if_true("model.dtype", "float16"),
        "bfloat16": set_if_true("model.dtype", "bfloat16"),
        "flash_attention": _attention("flash_attention_2"),
        "sdp_attention": _attention("sdpa"),
        "eager_attention": _attention("eager"),
        "flex_attention": _attention("flex_attention"),
        "gradient_checkpointing": _checkpointing,
        "lr_scheduler": _scheduler,
        "cosine_min_lr_ratio": _least_rate,
        "evals_per_epoch": _per_epoch("eval"),
        "saves_per_epoch": _per_epoch("save"),
        "group_by_length": set_if_true(f"{TRAINER}.train_sampling_strategy", "group_by_length"),
        "plugins": _plugins,
        "liger_rope": _liger("rope"),
        "liger_rms_norm": _liger("rms_norm"),
        "liger_layer_norm": _liger("layer_norm"),
        "liger_glu_activation": _liger("swiglu"),
        "wandb_project": _project,
        "use_wandb": _reporter("wandb"),
        "use_tensorboard": _reporter("tensorboard"),
        "use_mlflow": _reporter("mlflow"),
        "use_swanlab": _reporter("swanlab"),
        "hub_model_id": lambda given, _: Outcome(
            sets={f"{TRAINER}.hub_model_id": given, f"{TRAINER}.push_to_hub": True}
        ),
        "trust_remote_code": lambda given, _: Outcome(
            lost="code from the Hub is not run" if given else "", needless="" if given else "it never is"
        ),
    },
    "LLaMA-Factory": {
        "stage": _stage,
        "finetuning_type": _finetuning,
        "dataset": factory_data,
        "eval_dataset": lambda given, _: Outcome(lost="name its file in dataset.data_files.validation"),
        "dataset_dir": lambda given, _: Outcome(needless="it stands in dataset.data_files"),
        "max_samples": factory_most,
        "val_size": validation_share,
        "lora_target": _commas("LoraConfig.target_modules", "all-linear"),
        "additional_target": _commas("LoraConfig.modules_to_save"),
        "new_special_tokens": _commas("tokenizer.extra_special_tokens"),
        "quantization_bit": _bits,
        "quantization_type": lambda given, _: Outcome(needless="it stands in BitsAndBytesConfig"),
        "double_quantization": lambda given, _: Outcome(needless="it stands in BitsAndBytesConfig"),
        "flash_attn": _flash,
        "pure_bf16": set_if_true("model.dtype", "bfloat16"),
        "pissa_init": _pissa,
        "pissa_iter": lambda given, _: Outcome(needless="it stands in LoraConfig.init_lora_weights"),
        "neat_packing": set_if_true(f"{TRAINER}.packing", True),
        "disable_gradient_checkpointing": lambda given, _: set_key(f"{TRAINER}.activation_checkpointing", not given),
        "use_reentrant_gc": lambda given, _: set_key(
            f"{TRAINER}.activation_checkpointing_kwargs", {"use_reentrant": bool(given)}
        ),
    },
}


# the file -----------------------------------------------------------------------------------------------------------


def preferences(tool: str, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what is wrong, how to fix it) for a file of a method that learns from preferences or rewards."""
    method = values.get("rl") if tool == "axolotl" else values.get("stage") if tool == "LLaMA-Factory" else None
    if values.get("reward_model") or values.get("process_reward_model") or method == "rm":
        method = "reward"
    if tool == "TRL" and ("beta" in values or "max_prompt_length" in values or "orpo" in str(values.get("output_dir"))):
        method = "dpo"
    if not isinstance(method, str) or method in ("sft", "pt"):
        return None
    known = preference_method(method)
    if known is not None:
        return known
    return f"{method}: methods that learn from preferences or rewards are not offered here", "TRL has some of them"


def finish(tool: str, values: Mapping[str, Any], sections: dict[str, Any]) -> None:
    """What a tool takes for granted and a recipe must say, and the order of the sections."""
    if tool == "LLaMA-Factory" and "finetuning_type" not in values:
        sections.setdefault("LoraConfig", {})  # its default
    adapter = "LoraConfig" in sections and _adapted(tool, values)
    if not adapter:
        sections.pop("LoraConfig", None)
        sections.pop("BitsAndBytesConfig", None)
    lora = sections.get("LoraConfig")
    if lora is not None and tool == "LLaMA-Factory":
        lora.setdefault("r", 8)
        lora.setdefault("lora_alpha", 2 * lora["r"])
        lora.setdefault("target_modules", "all-linear")
    if lora is not None and tool == "axolotl" and (sections.get("BitsAndBytesConfig") or {}).get("load_in_4bit"):
        for key, value in (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_use_double_quant", True)):
            sections["BitsAndBytesConfig"].setdefault(key, value)
    quantised = sections.get("BitsAndBytesConfig")
    if quantised is not None:
        for key in ("load_in_4bit", "load_in_8bit"):
            if quantised.get(key) is False:
                del quantised[key]
        if not (quantised.get("load_in_4bit") or quantised.get("load_in_8bit")):
            del sections["BitsAndBytesConfig"]
    sections.setdefault("task", "chat")
    trainer = sections.setdefault("SFTConfig", {})
    if tool == "axolotl":
        trainer.setdefault("report_to", "none")
    if tool == "LLaMA-Factory":
        trainer.setdefault(LENGTH.partition(".")[2], 2048)
    order: Sequence[str] = ("task", "model", "tokenizer", "dataset", "BitsAndBytesConfig", "LoraConfig", "SFTConfig")
    ordered = {name: sections[name] for name in (*order, *sections) if name in sections}
    sections.clear()
    sections.update(ordered)


def _adapted(tool: str, values: Mapping[str, Any]) -> bool:
    if tool == "TRL":
        return values.get("use_peft") is True
    return (
        values.get("adapter") in ("lora", "qlora")
        if tool == "axolotl"
        else values.get("finetuning_type", "lora") == "lora"
    )
