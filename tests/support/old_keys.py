"""Old keys, what becomes of them, and the translation of a section."""

from hf_recipes.recipe.deprecated_keys import UPGRADES as EVERY
from hf_recipes.recipe.document import Document
from hf_recipes.recipe.upgrade import upgrade_document

UPGRADES = tuple(row for row in EVERY if row.before is None)  # the others are for an older package than the tests'


V5 = "gone between transformers 4.57 and 5.23"


def translate(sections, locations):
    """(sections, locations, lines, errors) of a document after translation."""
    new = upgrade_document(Document(values=sections, locations=locations))
    return new.values, new.locations, list(new.translations), list(new.errors)


def upgraded(section="TrainingArguments", more=None, **arguments):
    """The sections after translation, and the lines."""
    sections = {"task": "causal-lm", section: arguments, **(more or {})}
    places = {"task": "a.yaml:1", section: "a.yaml:2"}
    places |= {f"{section}.{key}": f"a.yaml:{line}" for line, key in enumerate(arguments, 3)}
    new, _, lines, errors = translate(sections, places)
    assert not errors, errors
    return new, lines


def refused(section="TrainingArguments", **arguments):
    places = {f"{section}.{key}": f"a.yaml:{line}" for line, key in enumerate(arguments, 3)}
    new, _, lines, errors = translate({"task": "causal-lm", section: arguments}, places)
    return new, lines, [str(error) for error in errors]


# key, old value, what becomes of it in its section
SAMPLES = [
    ("evaluation_strategy", "steps", {"eval_strategy": "steps"}),
    ("warmup_ratio", 0.06, {"warmup_steps": 0.06}),
    ("group_by_length", True, {"train_sampling_strategy": "group_by_length"}),
    ("group_by_length", False, {}),
    ("fp16_backend", "auto", {}),
    ("half_precision_backend", "cpu_amp", {}),
    ("no_cuda", True, {"use_cpu": True}),
    ("no_cuda", False, {}),
    ("use_mps_device", True, {}),
    ("use_ipex", True, {}),
    ("per_gpu_train_batch_size", 4, {"per_device_train_batch_size": 4}),
    ("per_gpu_eval_batch_size", 4, {"per_device_eval_batch_size": 4}),
    ("overwrite_output_dir", True, {}),
    ("logging_dir", "logs", {}),
    ("save_safetensors", False, {}),
    ("adafactor", True, {"optim": "adafactor"}),
    ("torchdynamo", "inductor", {"torch_compile_backend": "inductor"}),
    ("jit_mode_eval", True, {"torch_compile": True}),
    ("include_inputs_for_metrics", True, {"include_for_metrics": ["inputs"]}),
    ("include_tokens_per_second", True, {"include_num_input_tokens_seen": "all"}),
    ("dispatch_batches", False, {"accelerator_config": {"dispatch_batches": False}}),
    ("split_batches", True, {"accelerator_config": {"split_batches": True}}),
    ("fsdp_min_num_params", 100, {"fsdp_config": {"min_num_params": 100, "auto_wrap_policy": "SIZE_BASED_WRAP"}}),
    ("fsdp_transformer_layer_cls_to_wrap", "Block", {"fsdp_config": {"transformer_layer_cls_to_wrap": "Block"}}),
    ("tpu_metrics_debug", True, {"debug": "tpu_metrics_debug"}),
    ("tpu_num_cores", 8, {}),
    ("push_to_hub_model_id", "name", {"hub_model_id": "name"}),
    ("push_to_hub_organization", "org", {"hub_model_id": "org/trainer_output"}),
    ("ray_scope", "all", {}),
    ("use_legacy_prediction_loop", True, {}),
    ("past_index", 1, {}),
    ("mp_parameters", "", {}),
    ("_n_gpu", 2, {}),
    ("tp_size", 1, {}),
    ("optim", "adamw_hf", {"optim": "adamw_torch"}),
    ("optim", "adamw_apex_fused", {"optim": "adamw_torch_fused"}),
    ("gradient_checkpointing", True, {"activation_checkpointing": True}),
    (
        "gradient_checkpointing_kwargs",
        {"use_reentrant": False},
        {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    ),
]
