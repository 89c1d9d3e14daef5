"""The model's config: from a checkpoint, a preset or the recipe; its name and its longest input."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.presets import PRESETS
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import first_line, nearest
from hf_recipes.common.write_failures import find_cache_failure
from hf_recipes.errors import ModelError
from hf_recipes.models.files import check_folder, find_problem
from hf_recipes.recipe.schema.own_keys import SOURCES

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe


# Architectures whose table of positions starts after the padding token's id: RoBERTa reads 512 tokens with 514 rows.
OFFSET_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


def from_scratch(recipe: Recipe) -> bool:
    """Whether the weights start random (a preset or a config) rather than pretrained."""
    return "pretrained_model_name_or_path" not in recipe.section("model")


def model_name(recipe: Recipe) -> str:
    """The pretrained name, else the preset, else the config's model_type: for records and model cards."""
    model = recipe.section("model")
    config = model.get("config")
    kind = config.get("model_type", "config") if isinstance(config, Mapping) else config
    return str(model.get("pretrained_model_name_or_path") or model.get("preset") or kind)


def load_error(location: str, what: str, name: Any, problem: Exception) -> ModelError:
    """One message for a name that from_pretrained cannot load: a missing folder, a Hub that cannot be reached.

    Raises `problem` itself where it is no problem of the name: memory that ran out, a cache that cannot be written.
    """
    no_memory = isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"  # torch's
    if no_memory or find_cache_failure(problem) is not None:
        raise problem
    name = str(name)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not os.path.exists(name):
        folder = os.path.dirname(name.rstrip("/"))
        others = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        near = nearest(os.path.basename(name.rstrip("/")), others)
        fix = "paths are relative to the working directory"
        if near:
            fix = f"did you mean {os.path.join(folder, near)!r}?"
        return ModelError.at(location, f"there is no {what} folder {name!r} here", fix)
    files = ("tokenizer.json", "tokenizer_config.json") if what == "tokenizer" else ("config.json",)
    if os.path.isdir(name) and not any(os.path.isfile(os.path.join(name, file)) for file in files):
        fix = "name another one in the tokenizer section" if what == "tokenizer" else "is it a model's folder?"
        return ModelError.at(location, f"the folder {name!r} has no {what} ({files[0]} is missing)", fix)
    wrong, fix = find_problem(name, problem)
    if wrong:
        return ModelError.at(location, f"the {what} {name!r} cannot be loaded: {wrong}", fix)
    if type(problem).__name__ == "SafetensorError":
        fix = "the file is damaged: copy or download it again"
    elif "unexpected keyword argument" in str(problem):
        fix = f"remove that argument from the {what} section"
    elif os.path.isdir(name):
        fix = f"was the folder written by save_pretrained of a {what}?"
    else:
        fix = "check the name; offline, only a local folder or a model already in the Hub cache loads"
    return ModelError.at(location, f"the {what} {name!r} cannot be loaded: {first_line(problem)}", fix)


def build_config(recipe: Recipe) -> Any:
    """The model's config with the recipe's fields, before any weight is touched."""
    from transformers import AutoConfig

    model = recipe.section("model")
    if "pretrained_model_name_or_path" in model:
        name = model["pretrained_model_name_or_path"]
        arguments = {k: model[k] for k in ("revision", "subfolder", "cache_dir", "gguf_file") if k in model}
        location = recipe.location("model.pretrained_model_name_or_path")
        check_folder(location, "model", str(name))
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **arguments)
        except Exception as problem:  # a stranger's file: upstream may raise anything
            raise load_error(location, "model", name, problem) from problem
        check_architecture(recipe, config, location)
        return config
    if "preset" in model:
        fields = dict(PRESETS[model["preset"]].config)
    elif isinstance(model["config"], Mapping):
        fields = dict(model["config"])
    else:
        check_folder(recipe.location("model.config"), "config", str(model["config"]))
        try:
            fields = AutoConfig.from_pretrained(model["config"], trust_remote_code=False).to_dict()
        except Exception as problem:  # as above
            raise load_error(recipe.location("model.config"), "config", model["config"], problem) from problem
    fields.update(config_fields(recipe))
    try:
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (ValueError, TypeError, KeyError) as problem:
        raise ModelError.at(recipe.location("model"), f"no model can be built from this config: {problem}") from problem
    check_architecture(recipe, config, recipe.location("model"))
    return config


def check_architecture(recipe: Recipe, config: Any, location: str) -> None:
    """Raises ModelError for an architecture that cannot do the task: upstream has no class of it for the task, or has
    one that would see the tokens that it is to predict."""
    from transformers.models.auto import modeling_auto

    task, kind = TASKS[recipe.task], str(config.model_type)
    classes = {name: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in CLASSES.values()}
    name = CLASSES[task.auto_class]
    decodes = kind in classes["CAUSAL_LM"]
    encodes = kind in classes["MASKED_LM"]
    what = "an encoder-decoder" if config.is_encoder_decoder else "an encoder" if encodes else "a decoder" * decodes
    if kind not in classes[name]:
        if not (what or kind in classes["SEQUENCE_CLASSIFICATION"] or kind in classes["TOKEN_CLASSIFICATION"]):
            return  # of images or sound, or unknown: upstream's message says more
        others = [one for one, other in TASKS.items() if kind in classes[CLASSES[other.auto_class]] and one != "chat"]
        line = f"a {kind} model{f' ({what})' if what else ''} cannot do task {task.name}: transformers has no "
        fix = f"it can do {', '.join(others)}" if others else NEEDED[name]
        raise ModelError.at(location, f"{line}{task.auto_class} of it", f"{fix}; or take another architecture")
    sees_all = encodes and not config.is_encoder_decoder
    if (
        name == "CAUSAL_LM"
        and sees_all
        and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False))
    ):
        line = f"a {kind} model is an encoder: it sees the tokens that task {task.name} has it predict"
        raise ModelError.at(location, line, f"{NEEDED[name]}, or another task")


# Auto class -> the middle of the name of transformers' table of its classes.
CLASSES = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForMaskedLM": "MASKED_LM",
    "AutoModelForSequenceClassification": "SEQUENCE_CLASSIFICATION",
    "AutoModelForTokenClassification": "TOKEN_CLASSIFICATION",
}
NEEDED = {
    "CAUSAL_LM": "take a decoder, such as llama, qwen3 or gpt2",
    "SEQUENCE_CLASSIFICATION": "take an encoder, such as bert, roberta or modernbert",
    "TOKEN_CLASSIFICATION": "take an encoder, such as bert, roberta or modernbert",
}


def config_fields(recipe: Recipe) -> dict[str, Any]:
    """Keys of the `model` section that are fields of the model's config, when it starts from scratch."""
    loading = {"dtype", "attn_implementation", "revision", "trust_remote_code", "low_cpu_mem_usage", "device_map"}
    return {k: v for k, v in recipe.section("model").items() if k not in SOURCES and k not in loading}


def longest_input(config: Any) -> int | None:
    """Positions that the model has; None if they are not a table of fixed size."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (text.pad_token_id or 0) - 1 if text.model_type in OFFSET_POSITIONS else positions
