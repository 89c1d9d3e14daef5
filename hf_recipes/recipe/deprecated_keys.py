"""The table of keys that upstream dropped or renamed: one row a key. Imports the standard library only.

It is complete for TrainingArguments of transformers 4.40 to 4.57: the 34 keys that any of those eighteen releases
had and 5.23 has not (read from their sources, like the optimizer names, SFTConfig of trl 0.9 to 1.0 and LoraConfig of
peft 0.1 to 0.17). `recipe/upgrade.py` applies it: a translation is a visible line, what cannot be translated is an
error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.common.text import as_yaml

TRAINING = ("TrainingArguments", "SFTConfig")
V5 = "gone between transformers 4.57 and 5.23"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What becomes of one old key: the keys to set (".key" in its own section, else from the top), or why not."""

    sets: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    refused: str = ""  # an error instead of a translation
    fix: str = ""
    overrides: bool = False  # transformers 4 let the old key win over what the new key says


Rule = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], "Step | None"]  # (value, its section, all sections)


@dataclass(frozen=True, kw_only=True)
class Upgrade:
    """One old key. Without `rule` it is renamed to the only `new` key, or dropped if there is none."""

    sections: tuple[str, ...]  # "" is the top of the recipe
    old: str
    new: tuple[str, ...] = ()  # every key that may be written, as in Step.sets
    when: str = V5
    note: str = ""
    inert: tuple[Any, ...] = ()  # values that did nothing in transformers 4: the key is dropped
    values: Mapping[Any, Any] = field(default_factory=dict)  # the key stays, these of its values are gone
    rule: Rule | None = None
    since: tuple[str, tuple[int, ...]] | None = None  # translate only where this package has the new key
    before: tuple[str, tuple[int, ...]] | None = None  # translate only where this package has not the key yet


def _warmup_ratio(value: Any, section: Mapping[str, Any], _: Mapping[str, Any]) -> Step:
    steps = section.get("warmup_steps")
    if isinstance(steps, (int, float)) and steps > 0:  # 4.57 training_args.py:2556
        return Step(note=f"warmup_steps: {as_yaml(steps)} wins, as it did in transformers 4")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value <= 1:
            return Step(refused=f"warmup_ratio must be in [0, 1], got {as_yaml(value)}", fix="write warmup_steps")
        if value == 1:  # 1.0 would be one step: 5.23 training_args.py:2154
            note = "a value below 1 is a share of all steps; 1.0 would be one step"
            return Step(sets={".warmup_steps": 0.999999999}, note=note, overrides=True)
    return Step(sets={".warmup_steps": value}, note="a value below 1 is a share of all steps", overrides=True)


def _fp16_opt_level(value: Any, section: Mapping[str, Any], sections: Mapping[str, Any]) -> Step:
    level = str(value).upper()
    if level not in ("O0", "O1", "O2", "O3"):
        return Step(refused=f"fp16_opt_level is one of O0, O1, O2, O3, not {as_yaml(value)}", fix="write fp16: true")
    fp16 = section.get("fp16")
    complete = "task" in sections and "extends" not in sections  # else a parent may say fp16: true
    if fp16 is False or (fp16 is None and complete):
        return Step(note="without fp16: true it had no effect")
    if level == "O1":
        return Step(note="O1 is what fp16: true does: autocast with loss scaling")
    apex = "apex" in (section.get("half_precision_backend"), section.get("fp16_backend"))
    was = "transformers 4 read it only with half_precision_backend: apex, so fp16: true alone gives the old run"
    was = "" if apex else f"; {was}"
    if level == "O0":
        return Step(sets={".fp16": False}, overrides=True, note=f"O0 is pure fp32{was}")
    bf16 = "; where the GPU has bf16, bf16: true is recommended"
    what = "fp16 weights and gradients, fp32 master weights, dynamic loss scaling"
    if level == "O3":  # measured: NaN within 25 steps
        what = f"O3 is pure fp16, whose Adam turns to NaN; this is O2: {what}"
    return Step(sets={"master_weights": True}, note=what + was + bf16)


def _adafactor(value: Any, section: Mapping[str, Any], _: Mapping[str, Any]) -> Step:
    return Step(sets={".optim": "adafactor"})


def _min_num_params(value: Any, _: Mapping[str, Any], __: Mapping[str, Any]) -> Step:
    # 4.57 chose the size-based policy by itself; 5.23 reads min_num_params only under it
    sets = {".fsdp_config.min_num_params": value, ".fsdp_config.auto_wrap_policy": "SIZE_BASED_WRAP"}
    return Step(sets=sets)


def _fsdp(value: Any, section: Mapping[str, Any], _: Mapping[str, Any]) -> Step | None:
    if not isinstance(value, (str, list)):
        return None
    items = value.split() if isinstance(value, str) else [str(item) for item in value]
    if not items:
        return Step(sets={".fsdp": False}, overrides=True, note="an empty value meant off")
    sets: dict[str, Any] = {".fsdp": True}
    for item in items:
        if item in ("full_shard", "shard_grad_op"):
            sets[".fsdp_config.reshard_after_forward"] = item == "full_shard"
        elif item == "offload":
            sets[".fsdp_config.cpu_offload"] = True
        elif item != "auto_wrap":  # which is the default now
            fix = "use full_shard or shard_grad_op, best in the accelerate file"
            return Step(refused=f"fsdp: '{item}' is unknown to FSDP2, the only FSDP of transformers 5", fix=fix)
    return Step(sets=sets, overrides=True, note="fsdp_config holds the rest")


def _debug(_: Any, section: Mapping[str, Any], __: Mapping[str, Any]) -> Step:
    debug = section.get("debug") or ""
    names = [str(name) for name in (debug if isinstance(debug, list) else str(debug).split())]
    return Step(sets={".debug": " ".join(dict.fromkeys([*names, "tpu_metrics_debug"]))}, overrides=True)


def _include_inputs(_: Any, section: Mapping[str, Any], __: Mapping[str, Any]) -> Step:
    given = section.get("include_for_metrics")
    names = [*given, "inputs"] if isinstance(given, list) else ["inputs"]
    return Step(sets={".include_for_metrics": list(dict.fromkeys(names))}, overrides=True)


def _tokens_per_second(_: Any, section: Mapping[str, Any], __: Mapping[str, Any]) -> Step:
    counted = section.get("include_num_input_tokens_seen")
    if counted not in (None, False, "no"):
        return Step(note=f"include_num_input_tokens_seen: {as_yaml(counted)} logs it")
    return Step(sets={".include_num_input_tokens_seen": "all"}, note="logs train_tokens_per_second")


def _hub_model_id(value: Any, section: Mapping[str, Any], _: Mapping[str, Any]) -> Step:
    organization = section.get("push_to_hub_organization")
    return Step(sets={".hub_model_id": f"{organization}/{value}" if organization else value})


def _hub_organization(value: Any, section: Mapping[str, Any], _: Mapping[str, Any]) -> Step:
    if section.get("push_to_hub_model_id"):
        return Step(note="it is part of hub_model_id now")
    name = os.path.basename(os.path.normpath(str(section.get("output_dir") or "trainer_output")))
    return Step(sets={".hub_model_id": f"{value}/{name}"}, note="named after output_dir, as in transformers 4")


def _token(value: Any, _: Mapping[str, Any], __: Mapping[str, Any]) -> Step:
    if value is True:
        return Step(note="the stored login is used anyway")
    what = "a token does not belong in a recipe, which is saved, shared and pushed"
    return Step(refused=what, fix="take it out and set the environment variable HF_TOKEN")


def _exported(variable: str) -> Rule:
    return lambda value, _section, _all: Step(note=f"set it in the environment: export {variable}={value}")


def _tp_size(value: Any, _: Mapping[str, Any], __: Mapping[str, Any]) -> Step:
    fix = "put parallelism_config with tp_size into the accelerate file"
    return Step(refused=f"tp_size: {as_yaml(value)} is gone between transformers 4.51 and 4.52", fix=fix)


def _foreign_weights(kind: str) -> Rule:
    fix = f"convert it once with transformers 4 (from_pretrained(..., {kind}=True), then save_pretrained)"
    return lambda value, _section, _all: Step(refused=f"transformers 5 no longer reads {kind} checkpoints", fix=fix)


def _row(old: str, *new: str, **more: Any) -> Upgrade:
    return Upgrade(sections=TRAINING, old=old, new=new, **more)


def _sft(old: str, *new: str, **more: Any) -> Upgrade:
    return Upgrade(sections=("SFTConfig",), old=old, new=new, **more)


def _lora(old: str, *new: str, **more: Any) -> Upgrade:
    return Upgrade(sections=("LoraConfig",), old=old, new=new, **more)


def _model(old: str, *new: str, **more: Any) -> Upgrade:
    return Upgrade(sections=("model",), old=old, new=new, **more)


BNB_OPTIONS = (  # 4.57 modeling_utils.py:4819 handed these on with load_in_4bit or load_in_8bit
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
)
OWN = "renamed in hf_recipes 0.1"
CHECKPOINTING = "deprecated since transformers 5.23, gone in 6"
UPGRADES: tuple[Upgrade, ...] = (
    _row("evaluation_strategy", ".eval_strategy", when="gone between transformers 4.50 and 4.51"),
    _row("warmup_ratio", ".warmup_steps", rule=_warmup_ratio),
    _row(
        "group_by_length",
        ".train_sampling_strategy",
        inert=(False,),
        rule=lambda *_: Step(sets={".train_sampling_strategy": "group_by_length"}),
    ),
    _row("fp16_opt_level", "master_weights", ".fp16", rule=_fp16_opt_level),
    _row("fp16_backend", note="torch.amp is the only backend"),
    _row("half_precision_backend", note="torch.amp is the only backend"),
    _row("no_cuda", ".use_cpu", inert=(False,)),
    _row("use_mps_device", note="an Apple GPU is used wherever there is one"),
    _row("use_ipex", when="gone between transformers 4.56 and 4.57", note="torch has what it added"),
    _row("per_gpu_train_batch_size", ".per_device_train_batch_size", inert=(None,)),
    _row("per_gpu_eval_batch_size", ".per_device_eval_batch_size", inert=(None,)),
    _row("overwrite_output_dir", note="Trainer never read it; resume_from_checkpoint: true resumes"),
    _row("logging_dir", inert=(None,), rule=_exported("TENSORBOARD_LOGGING_DIR")),
    _row("save_safetensors", note="weights are always saved as safetensors"),
    _row("adafactor", ".optim", inert=(False,), rule=_adafactor),
    _row("torchdynamo", ".torch_compile_backend", inert=(None,), note="it turns torch_compile on"),
    _row(
        "jit_mode_eval",
        ".torch_compile",
        inert=(False,),
        note="upstream's replacement; it compiles training too",
    ),
    _row("include_inputs_for_metrics", ".include_for_metrics", inert=(False,), rule=_include_inputs),
    _row(
        "include_tokens_per_second",
        ".include_num_input_tokens_seen",
        inert=(False, None),
        rule=_tokens_per_second,
    ),
    _row(
        "dispatch_batches",
        ".accelerator_config.dispatch_batches",
        when="gone between transformers 4.50 and 4.51",
        inert=(None,),
    ),
    _row(
        "split_batches",
        ".accelerator_config.split_batches",
        when="gone between transformers 4.50 and 4.51",
        inert=(None, False),
    ),
    _row(
        "fsdp_min_num_params",
        ".fsdp_config.min_num_params",
        ".fsdp_config.auto_wrap_policy",
        inert=(0, None),
        rule=_min_num_params,
    ),
    _row(
        "fsdp_transformer_layer_cls_to_wrap",
        ".fsdp_config.transformer_layer_cls_to_wrap",
        inert=(None,),
    ),
    _row("tpu_metrics_debug", ".debug", inert=(False,), rule=_debug),
    _row("tpu_num_cores", inert=(None,), rule=_exported("TPU_NUM_CORES")),
    _row("push_to_hub_model_id", ".hub_model_id", inert=(None,), rule=_hub_model_id),
    _row("push_to_hub_organization", ".hub_model_id", inert=(None,), rule=_hub_organization),
    _row("push_to_hub_token", inert=(None,), rule=_token),
    _row("ray_scope", inert=("last", None), rule=_exported("RAY_SCOPE")),
    _row("use_legacy_prediction_loop", note="there is one evaluation loop"),
    _row("past_index", note="past states are no longer carried between steps"),
    _row("mp_parameters", note="it was SageMaker's and is no longer read"),
    _row("_n_gpu", note="it is counted, not set"),
    _row("tp_size", inert=(None, 0, 1), when="gone between transformers 4.51 and 4.52", rule=_tp_size),
    # values that are gone
    _row(
        "optim",
        ".optim",
        values={"adamw_hf": "adamw_torch"},
        when="gone between transformers 4.49 and 4.50",
        note="torch's AdamW replaces transformers' own",
    ),
    _row("optim", ".optim", values={"adamw_apex_fused": "adamw_torch_fused"}, note="torch has a fused AdamW"),
    _row(
        "fsdp",
        ".fsdp",
        ".fsdp_config.reshard_after_forward",
        ".fsdp_config.cpu_offload",
        when="strings and lists are deprecated in transformers 5",
        rule=_fsdp,
    ),
    # still accepted, with a FutureWarning (5.23 training_args.py:1541); only 5.23 has the new names
    _row(
        "gradient_checkpointing",
        ".activation_checkpointing",
        when=CHECKPOINTING,
        since=("transformers", (5, 23)),
    ),
    _row(
        "gradient_checkpointing_kwargs",
        ".activation_checkpointing_kwargs",
        when=CHECKPOINTING,
        since=("transformers", (5, 23)),
    ),
    # and the other way: a recipe of today on a transformers that has the old names alone
    _row(
        "activation_checkpointing",
        ".gradient_checkpointing",
        when="new in transformers 5.23",
        before=("transformers", (5, 23)),
    ),
    _row(
        "activation_checkpointing_kwargs",
        ".gradient_checkpointing_kwargs",
        when="new in transformers 5.23",
        before=("transformers", (5, 23)),
    ),
    # trl
    _sft("max_seq_length", ".max_length", when="gone between trl 0.19 and 0.20"),
    _sft("use_liger", ".use_liger_kernel", when="gone between trl 0.17 and 0.18"),
    _sft("dataset_batch_size", when="gone between trl 0.17 and 0.18", note="it only sized the tokenizing batches"),
    _sft("num_of_sequences", when="gone between trl 0.17 and 0.18", note="packing fills max_length by itself"),
    _sft("chars_per_token", when="gone between trl 0.17 and 0.18", note="packing counts real tokens"),
    _sft(
        "packing_strategy",
        ".packing_strategy",
        values={"bfd-requeue": "bfd_split"},
        when="renamed in trl 1, gone in 2.0",
    ),
    _sft(
        "loss_type",
        ".loss_type",
        values={"chunked_nll": "nll"},
        when="deprecated in trl 1, gone in 2.0",
        note="nll is computed in chunks by itself",
    ),
    # peft
    _lora("alpha", ".lora_alpha", when="peft's LoraConfig calls it lora_alpha"),
    _lora("dropout", ".lora_dropout", when="peft's LoraConfig calls it lora_dropout"),
    _lora("enable_lora", when="gone between peft 0.1 and 0.3", note="every part of a fused projection is adapted"),
    _lora("merge_weights", when="gone between peft 0.1 and 0.3", note="merge_and_unload() merges after training"),
    # from_pretrained (4.57 modeling_utils.py:4621-4666)
    _model("torch_dtype", ".dtype", when="deprecated since transformers 4.56"),
    _model("load_in_4bit", "BitsAndBytesConfig.load_in_4bit", inert=(False, None)),
    _model("load_in_8bit", "BitsAndBytesConfig.load_in_8bit", inert=(False, None)),
    *(_model(key, f"BitsAndBytesConfig.{key}", note="from_pretrained passed it on") for key in BNB_OPTIONS),
    _model(
        "use_flash_attention_2",
        ".attn_implementation",
        when="gone between transformers 4.52 and 4.53",
        inert=(False, None),
        rule=lambda *_: Step(sets={".attn_implementation": "flash_attention_2"}),
    ),
    _model("from_tf", inert=(False, None), rule=_foreign_weights("from_tf")),
    _model("from_flax", inert=(False, None), rule=_foreign_weights("from_flax")),
    _model("low_cpu_mem_usage", note="every load is"),
    _model("_fast_init", note="every load is"),
    _model("offload_state_dict", note="weights are read one by one"),
    _model("mirror", note="HF_ENDPOINT names another server"),
    _model("resume_download", note="downloads resume by themselves"),
    Upgrade(sections=("model", "tokenizer", "dataset"), old="use_auth_token", inert=(False, None), rule=_token),
    Upgrade(sections=("tokenizer",), old="use_fast", note="tokenizers are always the fast ones"),
    # keys of this package, at the top of a recipe
    Upgrade(sections=("",), old="train_despite", new=("disable_guards",), when=OWN),
    Upgrade(sections=("",), old="resume_despite", new=("resume_allow",), when=OWN),
)
OLD_TOP = tuple(row.old for row in UPGRADES if "" in row.sections)
