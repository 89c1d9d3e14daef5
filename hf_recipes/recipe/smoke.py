"""`run --smoke`: two real steps of a recipe on a CPU, offline, in seconds. What is not in this list stays as it is:

model        two narrow layers of the same class, random weights (no pretrained ones)
tokenizer    a byte-level BPE of 384 tokens trained on the generated rows, with its own end and pad token
adapter      the layers and token ids that the narrow model has; where its class is a guess, the modules too
dataset      generated rows with the recipe's columns
length       at most 32 tokens; at most 2 rows a device, 2 accumulation steps, 2 steps; one process's share
device       use_cpu, no tf32, no torch_compile, fp32 (unless `keep_precision`); the attention, kernels and
             optimizer of a CPU, where the recipe's need a GPU or a package that is not here
places       output_dir gets "-smoke"; nothing is pushed, reported or resumed; at most 4 generated tokens a sample
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.recipe.global_batch import KEY, accumulation_of
from hf_recipes.recipe.model_facts import known_config, model_facts
from hf_recipes.recipe.recipe import GENERATED
from hf_recipes.recipe.rules.device import optimizer_package
from hf_recipes.recipe.schema.installed import config_fields

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

LOCATION = "argument '--smoke'"
STEPS, ROWS, LENGTH, ACCUMULATION = 2, 2, 32, 2
VOCABULARY = 384
DECIDED = ("vocab_size", "layer_types", "num_labels", "id2label", "label2id")  # by the narrow model, or the rows
CPU_ATTENTION = ("eager", "sdpa")
CPU_OPTIMIZER = "adamw_torch"
CPU_PACKAGES = ("bitsandbytes",)  # whose optimizers run on a CPU
OF_A_GPU = ("attn_implementation", "use_kernels", "experts_implementation", "device_map")
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "norm", "lm_head")
BERT = ("query", "key", "value", "dense", "embeddings", "word_embeddings", "LayerNorm", "pooler", "classifier")
OF_GUESS = {True: ("llama", LLAMA), False: ("bert", BERT)}  # whether the task generates -> a class, its modules' names
OF_SIZE = ("layers_to_transform", "layer_replication")  # of LoraConfig: numbers of layers
WIDTH = {  # every layer's input is a multiple of 64: bitsandbytes quantises in blocks of that many weights
    **dict.fromkeys(("hidden_size", "n_embd", "dim", "d_model"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 16,
    "query_pre_attn_scalar": 32,
    "embedding_size": 64,
}


def shrink(recipe: Recipe, *, keep_precision: bool = False) -> tuple[Recipe, list[str]]:
    """The recipe with the replacements of this module's docstring, and one line for each."""
    section, training, lines = recipe.trainer, recipe.training, []
    values: dict[str, Any] = {}

    def replace(dotted: str, value: Any, line: str) -> None:
        values[dotted] = value
        lines.append(line)

    replace("model", *_tiny_model(recipe, keep_precision))
    dropped = ["tokenizer", KEY, *([] if keep_precision else ["master_weights"])]
    if recipe.get("BitsAndBytesConfig.load_in_4bit") and not keep_precision:
        replace("BitsAndBytesConfig.bnb_4bit_compute_dtype", "float32", "bnb_4bit_compute_dtype: float32")
    replace("BpeTrainer", {"vocab_size": VOCABULARY}, f"tokenizer: a BPE of {VOCABULARY} tokens of the generated rows")
    for name, value in _narrow_adapter(recipe).items():
        replace(f"LoraConfig.{name}", value, f"{name}: {'none' if value is None else value}")
    for name in ("eos_token", "pad_token"):  # of the real vocabulary
        if training.get(name) is not None:
            replace(f"{section}.{name}", None, f"{name}: the BPE's (not {training[name]})")
    if isinstance(recipe.get("class_weights"), list):  # of labels that generated rows do not have
        replace("class_weights", "balanced", "class_weights: balanced")
    replace("dataset", {**_columns(recipe), "path": GENERATED + recipe.task}, "dataset: generated rows")
    dotted = recipe.max_length_key
    length = recipe.get(dotted)
    short = min(length, LENGTH) if isinstance(length, int) else LENGTH
    if section == "SFTConfig" and training.get("padding_free") and not training.get("packing"):
        values[dotted] = None  # TRL takes no max_length there; the generated rows are short
    else:
        replace(dotted, short, f"{dotted}: {short}")
    sizes = {
        "per_device_train_batch_size": min(training.get("per_device_train_batch_size", 8), ROWS),
        "per_device_eval_batch_size": min(training.get("per_device_eval_batch_size", 8), ROWS),
        "gradient_accumulation_steps": min(accumulation_of(recipe), ACCUMULATION),
        "max_steps": STEPS,
    }
    if training.get("dataloader_num_workers"):
        sizes["dataloader_num_workers"] = 1
    for name, value in sizes.items():
        replace(f"{section}.{name}", value, f"{name}: {value}")
    for name in ("logging_steps", "eval_steps", "save_steps"):
        if name in training:
            values[f"{section}.{name}"] = 1
    off: dict[str, Any] = {"use_cpu": True, "tf32": None, "torch_compile": False, "report_to": "none"}
    off |= {"push_to_hub": False, "resume_from_checkpoint": None, "use_liger_kernel": False}
    off |= {"torch_compile_backend": None, "torch_compile_mode": None, "activation_offloading": False}
    if not keep_precision:
        off |= {"fp16": False, "bf16": False, "fp16_full_eval": False, "bf16_full_eval": False}
    for name, value in off.items():
        if training.get(name) != value and (name in training or name in ("use_cpu", "bf16")):
            replace(f"{section}.{name}", value, f"{name}: {'none' if value is None else str(value).lower()}")
    if "optim" in training and not _runs_here(str(training["optim"])):
        replace(f"{section}.optim", CPU_OPTIMIZER, f"optim: {CPU_OPTIMIZER} (not {training['optim']})")
    output = f"{training.get('output_dir') or 'runs/' + Path(recipe.path).stem}-smoke"
    replace(f"{section}.output_dir", output, f"output_dir: {output}")
    if recipe.get("sample_prompts"):
        values["GenerationConfig.max_new_tokens"] = 4
    for name in dropped:
        if name in recipe.sections:
            lines.append(f"without {name}")
    small = recipe.with_values(values, LOCATION)
    sections = {name: value for name, value in small.sections.items() if name not in dropped}
    return type(recipe)(
        path=recipe.path,
        sections=sections,
        locations=small.locations,
        translations=recipe.translations,
        warnings=recipe.warnings,
    ), lines


def _model_type(recipe: Recipe) -> tuple[str, str]:
    """The recipe's model_type as far as it is known offline, and how it was found."""
    model = recipe.section("model")
    facts = model_facts(model)
    if facts.model_type:
        return facts.model_type, facts.source
    name = model.get("pretrained_model_name_or_path") or model.get("config")
    return OF_GUESS[TASKS[recipe.task].generates][0], f"a guess: the architecture of {name} is not known offline"


def _tiny_model(recipe: Recipe, keep_precision: bool) -> tuple[dict[str, Any], str]:
    kind, how = _model_type(recipe)
    known = config_fields(kind) or {}
    fields: dict[str, Any] = {"model_type": kind, **{k: v for k, v in WIDTH.items() if k in known}}
    # One layer of each kind; Qwen's have windows only where its config says so.
    windows = "use_sliding_window" not in known or known_config(recipe).get("use_sliding_window")
    if "layer_types" in known and "sliding_window" in known and windows:
        fields["layer_types"] = ["sliding_attention", "full_attention"]
    model = recipe.section("model")
    rest = {k: v for k, v in model.items() if k in known and k not in (*WIDTH, *DECIDED, *OF_A_GPU)}
    tiny: dict[str, Any] = {"config": {**fields, **rest}}
    attention = model.get("attn_implementation")
    if attention in CPU_ATTENTION:
        tiny["attn_implementation"] = attention
    tiny["dtype"] = model.get("dtype", "float32") if keep_precision else "float32"
    if tiny["dtype"] == "float32" and keep_precision and recipe.get("master_weights"):
        del tiny["dtype"]
    line = f"model: two narrow {kind} layers ({how}), random weights"
    if attention is not None and attention not in CPU_ATTENTION:
        line += f"; its attention on a CPU is sdpa or eager, not {attention}"
    return tiny, line


def _narrow_adapter(recipe: Recipe) -> dict[str, Any]:
    """What the narrow model lacks of the recipe's adapter -> what replaces it."""
    adapter = recipe.section("LoraConfig")
    values: dict[str, Any] = {name: None for name in OF_SIZE if adapter.get(name) is not None}
    if adapter.get("trainable_token_indices") is not None:
        values["trainable_token_indices"] = [1, 2]
    if model_facts(recipe.section("model")).model_type:
        return values
    names = OF_GUESS[TASKS[recipe.task].generates][1]
    targets, saved = adapter.get("target_modules"), adapter.get("modules_to_save")
    fits = targets in (None, "all-linear") or (isinstance(targets, list) and set(targets) <= set(names))
    if not fits:  # a pattern, or names of another class
        values["target_modules"] = "all-linear"
    if isinstance(saved, list) and not set(saved) <= set(names):
        values["modules_to_save"] = [name for name in saved if name in names] or None
    return values


def _runs_here(optim: str) -> bool:
    """Whether an optimizer runs on a CPU with the packages of this machine."""
    package = optimizer_package(optim)
    return package is None or (find_spec(package[0]) is not None and package[0] in CPU_PACKAGES)


def _columns(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.section("dataset").items() if k in TASKS[recipe.task].columns}
