"""What each field of the installed classes does to plan's answer: counted, without effect on memory, or refused.

The one place for it: short_run.py builds the traced run from this table, and tests/plan/trace/test_field_effects.py
holds the table to the installed classes (each field once, no stale name) and to what traces do. `traced` is what the
short run has in the field's place: the recipe's own value (UNCHANGED), nothing (LEFT_OUT), or a value of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.rules.device import optimizer_package

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

COUNTED, NO_EFFECT, REFUSED = "counted", "no effect on memory", "refused by plan"
UNCHANGED, LEFT_OUT = "unchanged", "left out"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One field. `why` says what is done instead of passing the value on, or why it is refused."""

    kind: str  # COUNTED, NO_EFFECT or REFUSED (when it is set to something other than null, false or "")
    why: str = ""
    fix: str = ""  # of a refusal
    traced: Any = UNCHANGED
    estimate: str = ""  # where it is set, the answer is an estimate for this reason
    newer: bool = False  # not in the oldest supported version of its package
    fine: tuple[Any, ...] = (None, False, "")  # values that are not refused and make no estimate


Table = Mapping[str, Effect]


def _each(names: str, effect: Effect) -> dict[str, Effect]:
    return dict.fromkeys(names.split(), effect)


def _counted(names: str, why: str = "", **more: Any) -> dict[str, Effect]:
    return _each(names, Effect(kind=COUNTED, why=why, **more))


def _nothing(names: str, why: str = "", **more: Any) -> dict[str, Effect]:
    return _each(names, Effect(kind=NO_EFFECT, why=why, **more))


def _refused(names: str, why: str, fix: str, **more: Any) -> dict[str, Effect]:
    return _each(names, Effect(kind=REFUSED, why=why, fix=fix, traced=LEFT_OUT, **more))


TOPOLOGY = "the accelerate file decides how a run is spread over GPUs"
METRICS = "run refuses it: the metrics are of the complete evaluation and need no logits"

TRAINING: Table = {
    **_counted("per_device_train_batch_size per_device_eval_batch_size optim optim_args optim_target_modules"),
    **_counted("weight_decay", "some optimizers add it in a tensor of its own"),
    **_counted("gradient_accumulation_steps", "two micro-batches of a step at most: their peak is that of all"),
    **_counted("label_smoothing_factor use_cache neftune_noise_alpha"),
    **_counted(
        "use_liger_kernel liger_kernel_config",
        traced=LEFT_OUT,
        estimate="use_liger_kernel: counted without Liger's kernels, which take less: an upper bound",
    ),
    **_counted("bf16"),
    **_counted("fp16", "traced as a GPU's autocast with its loss scaler"),
    **_counted(
        "bf16_full_eval fp16_full_eval",
        "Trainer casts the model for evaluations outside of training: the last one is traced so",
        traced=LEFT_OUT,
    ),
    **_counted("activation_checkpointing activation_checkpointing_kwargs", newer=True),
    **_counted("gradient_checkpointing gradient_checkpointing_kwargs"),
    **_counted("torch_empty_cache_steps", "an event for the allocator: it changes what is reserved"),
    **_counted("include_num_input_tokens_seen", "a number a batch"),
    **_counted("logging_nan_inf_filter", "two numbers a step"),
    **_counted("average_tokens_across_devices", "a number a step"),
    **_counted("max_grad_norm", "clipping's norms are computed at 0, too; only their use changes"),
    **_counted(
        "torch_compile torch_compile_backend torch_compile_mode",
        traced=LEFT_OUT,
        estimate="torch_compile is not modelled: this is eager's peak, an upper bound unless its autotuning needs more",
    ),
    **_counted(
        "full_determinism",
        traced=LEFT_OUT,
        estimate="full_determinism's kernels are not modelled: attention's and embedding's backward take more memory",
    ),
    **_counted("ddp_bucket_cap_mb", "by the rule for several processes (parallel.py)", traced=LEFT_OUT),
    # What evaluations store of a row stays on the GPU until they end, or until eval_accumulation_steps batches.
    **_counted("eval_accumulation_steps", "what an evaluation stores of each row is in a note", traced=LEFT_OUT),
    **_nothing("output_dir", "a temporary folder", traced=LEFT_OUT),
    **_nothing("max_steps num_train_epochs", "two steps are traced", traced=LEFT_OUT),
    **_nothing("learning_rate warmup_steps adam_beta1 adam_beta2 adam_epsilon seed data_seed"),
    **_nothing(
        "lr_scheduler_type lr_scheduler_kwargs", "numbers on the CPU; some want evaluations", traced=LEFT_OUT
    ),
    **_nothing("tf32", "a mode of the GPU's multiplication; a CPU refuses it", traced=LEFT_OUT),
    **_nothing("auto_find_batch_size", "the batch as it is written is planned; check refuses it"),
    **_nothing("logging_strategy", "nothing is logged", traced="no"),
    **_nothing("logging_steps log_on_each_node log_level log_level_replica"),
    **_nothing("logging_first_step", traced=False),
    **_nothing("disable_tqdm", traced=True),
    **_nothing("report_to", traced="none"),
    **_nothing("run_name project trackio_space_id trackio_bucket_id trackio_static_space_id"),
    **_nothing("eval_strategy", "a run always evaluates at its end, so an evaluation is always traced", traced="no"),
    **_nothing("eval_steps eval_delay", "evaluation comes after the steps", traced=LEFT_OUT),
    **_nothing("eval_on_start", "as any evaluation, before the optimizer has states", traced=LEFT_OUT),
    **_nothing("eval_use_gather_object include_for_metrics", "no built-in metric reads more", traced=LEFT_OUT),
    **_nothing("save_strategy", "saving is traced by itself", traced="no"),
    **_nothing("save_steps save_total_limit save_only_model save_on_each_node"),
    **_nothing("enable_jit_checkpoint restore_callback_states_from_checkpoint", "files", traced=LEFT_OUT),
    **_nothing("load_best_model_at_end", "files to weights that are there", traced=False),
    **_nothing("metric_for_best_model greater_is_better"),
    **_nothing("push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision"),
    **_nothing("resume_from_checkpoint", "the optimizer's states are read where they would be made", traced=LEFT_OUT),
    **_nothing("ignore_data_skip do_train do_eval do_predict"),
    **_nothing("use_cpu", "the trace runs on one", traced=True),
    **_nothing("accelerator_config", "how rows are dealt to processes", traced=LEFT_OUT),
    **_nothing("dataloader_num_workers", "the CPU's memory", traced=0),
    **_nothing("dataloader_pin_memory", "the CPU's memory", traced=False),
    **_nothing(
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context",
        "the CPU's memory",
        traced=LEFT_OUT,
    ),
    **_nothing("dataloader_in_order dataloader_drop_last remove_unused_columns label_names length_column_name"),
    **_nothing("train_sampling_strategy", "a batch of the longest rows is traced, whenever it comes", traced=LEFT_OUT),
    **_nothing("ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph", "small", traced=LEFT_OUT),
    **_nothing("ddp_backend ddp_timeout local_rank", "one process is traced", traced=LEFT_OUT),
    **_nothing("skip_memory_metrics", "it asks the allocator, no more", traced=True),
    **_refused("fsdp fsdp_config", TOPOLOGY, "leave it out and plan --config_file accelerate_configs/fsdp2.yaml"),
    **_refused("deepspeed", TOPOLOGY, "leave it out and plan --config_file accelerate_configs/deepspeed_zero3.yaml"),
    **_refused("parallelism_config", "tensor and context parallelism are not modelled", "plan it without"),
    **_refused("prediction_loss_only", METRICS, "leave it out"),
    **_refused("batch_eval_metrics", METRICS, "leave it out"),
    **_refused("eval_do_concat_batches", METRICS, "leave it out", fine=(None, True)),
    **_refused("debug", "it reads the numbers of every layer, and plan has none", "leave it out for the plan"),
}  # fmt: skip

SFT: Table = {
    **TRAINING,
    **_counted("max_length packing packing_strategy padding_free pad_to_multiple_of loss_type router_aux_loss_coef"),
    **_nothing("dataset_text_field dataset_kwargs dataset_num_proc eval_packing", "rows stand in for the data"),
    **_nothing("model_init_kwargs", "the model section has the model's arguments", traced=LEFT_OUT),
    **_nothing("chat_template_path eos_token pad_token", "a tokenizer stands in", traced=LEFT_OUT),
    **_nothing("truncation_mode shuffle_dataset", "the longest rows are traced"),
    **_nothing(
        "completion_only_loss assistant_only_loss", "every position is counted as labelled, the most that can be",
        traced=LEFT_OUT,
    ),
    **_counted(
        "activation_offloading",
        traced=LEFT_OUT,
        estimate="activation_offloading: counted as if nothing were sent to the CPU: an upper bound",
    ),
    **_refused("trust_remote_code", "code from the Hub is not run", "leave it out"),
}  # fmt: skip

NO_DATA = "its weights are initialised from data or weights, which plan does not have"
LORA: Table = {
    **_counted("r target_modules exclude_modules layers_to_transform layers_pattern rank_pattern modules_to_save"),
    **_counted("lora_dropout bias lora_bias use_dora trainable_token_indices target_parameters layer_replication"),
    **_counted("fan_in_fan_out ensure_weight_tying"),
    **_nothing("lora_alpha use_rslora alpha_pattern", "a factor"),
    **_nothing("task_type", "the recipe's task"),
    **_nothing("peft_type auto_mapping peft_version base_model_name_or_path revision", "peft's own notes"),
    **_nothing("megatron_config megatron_core", "transformers' models have no layers of Megatron's"),
    **_nothing("runtime_config", "ephemeral GPU offload applies to loading"),
    **_nothing("qalora_group_size", "of use_qalora"),
    **_counted(
        "init_lora_weights",
        "gaussian, orthogonal and false are traced; what needs weights or data is traced as true",
        fine=(None, True, False, "gaussian", "orthogonal"),
        estimate="init_lora_weights: the initialisation before training is not traced",
    ),
    **_refused("inference_mode", "an adapter that is not trained trains nothing", "leave it out"),
    **_refused("loftq_config eva_config corda_config lora_ga_config", NO_DATA, "plan it without", fine=(None, {})),
    **_refused(
        "alora_invocation_tokens use_qalora use_bdlora arrow_config",
        "this variant of LoRA is not modelled",
        "plan it without",
    ),
    **_refused(
        "monteclora_config velora_config kasa_config",
        "this variant of LoRA is not modelled",
        "plan it without",
        newer=True,
    ),
}

QUANTISED: Table = {
    **_counted("load_in_4bit bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant"),
    **_counted("bnb_4bit_quant_storage llm_int8_skip_modules llm_int8_threshold"),
    **_counted(
        "load_in_8bit",
        estimate="load_in_8bit: every column of a product is counted as one with outliers: an upper bound",
    ),
    **_refused(
        "llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight", "this kind of 8 bit is not traced", "leave it out"
    ),
}  # fmt: skip

TABLES: Mapping[str, Table] = {
    "TrainingArguments": TRAINING,
    "SFTConfig": SFT,
    "LoraConfig": LORA,
    "BitsAndBytesConfig": QUANTISED,
}


FLEX = "flex_attention: its kernel is counted as the flash kernel, without the mask's blocks"
# Optimizers that stand_in_optimizers.py has a rule for: their packages need not be installed.
STAND_INS = (
    *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw", "lomo", "adalomo", "grokadamw"),
    *("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd", "stable_adamw"),
    *("adamw_torch_8bit", "adamw_torch_4bit"),
)
LAYERWISE = "_layerwise"  # the same rule, in the backward pass


def has_stand_in(optim: str) -> bool:
    """Whether the optimizer's states are counted by a rule, and its own code is not traced."""
    return optim.removesuffix(LAYERWISE) in STAND_INS


def find_refusals(recipe: Recipe) -> list[Diagnostic]:
    """What the recipe sets and plan does not support, each at its line."""
    found = []
    for section, name, effect in _set(recipe):
        if effect.kind == REFUSED:
            what = f"plan does not support {name}: {effect.why}"
            found.append(Diagnostic(location=recipe.location(f"{section}.{name}"), message=what, fix=effect.fix))
    return [*found, *_optimizers(recipe)]


def estimate_reasons(recipe: Recipe) -> tuple[str, ...]:
    """Why an answer about this recipe is an estimate: fields that are set and not modelled to the byte."""
    reasons = [effect.estimate for _, _, effect in _set(recipe) if effect.estimate]
    optim = str(recipe.training.get("optim", ""))
    if has_stand_in(optim):
        what = "is counted by the shapes of its states, its temporaries at their most: an upper bound"
        reasons.append(f"optim: {optim} {what}")
    reasons += [FLEX] if recipe.get("model.attn_implementation") == "flex_attention" else []
    return tuple(dict.fromkeys(reasons))


def traced_arguments(recipe: Recipe) -> dict[str, Any]:
    """The trainer's section as the traced run has it."""
    table = TABLES[recipe.trainer]
    effects = {name: table.get(name, Effect(kind=COUNTED)) for name in (*recipe.training, *table)}
    arguments = {name: value for name, value in recipe.training.items() if effects[name].traced == UNCHANGED}
    return arguments | {n: e.traced for n, e in effects.items() if e.traced not in (UNCHANGED, LEFT_OUT)}


def _set(recipe: Recipe) -> Iterator[tuple[str, str, Effect]]:
    """(section, field, effect) of each field that is set to something that is not `fine`."""
    for section, table in TABLES.items():
        for name, value in recipe.section(section).items():
            effect = table.get(name)
            if effect is not None and not any(value is fine or value == fine for fine in effect.fine):
                yield section, name, effect


def _optimizers(recipe: Recipe) -> Iterator[Diagnostic]:
    """The optimizer's own code is traced, so it has to be installed, but for those that have a rule."""
    optim = str(recipe.training.get("optim", ""))
    package = optimizer_package(optim)
    if not has_stand_in(optim) and package is not None and find_spec(package[0]) is None:
        what = f"plan traces the optimizer's own code, and optim: {optim} needs {package[1]}, which is not installed"
        fix = f"pip install {package[1]}, or plan optim: adamw_torch_fused"
        yield Diagnostic(location=recipe.location(f"{recipe.trainer}.optim"), message=what, fix=fix)
