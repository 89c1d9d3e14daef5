"""Builds the model of a recipe: pretrained or from scratch, with LoRA or DoRA, quantized or not.

No code of a Hub repository is run: `trust_remote_code` stays False, and weights are safetensors only.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.device import sharding
from hf_recipes.common.text import first_line, nearest
from hf_recipes.data.row_checks import report_unless_disabled
from hf_recipes.data.tokens.encode import count_ids
from hf_recipes.errors import ModelError
from hf_recipes.models.added_tokens import complete_output_layer, fit_vocabulary, train_new_rows
from hf_recipes.models.config import from_scratch, load_error
from hf_recipes.recipe.schema.own_keys import SOURCES

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe


@contextmanager
def complete_on_each_process() -> Iterator[None]:
    """Under ZeRO-3 transformers would spread the weights while it draws or loads them: other random numbers than every
    other launch draws. Here each process has the complete model in its CPU memory until DeepSpeed spreads it."""
    if "deepspeed" not in sharding():
        yield
        return
    from transformers.integrations import deepspeed

    spread = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = spread


@complete_on_each_process()
def build_model(
    recipe: Recipe, config: Any, tokenizer: Any, fields: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """The model that Trainer gets: weights loaded or drawn (seeded), adapter added. `fields`: what the data decides
    (num_labels, ...). Raises ModelError for weights that do not load."""
    import torch
    import transformers

    from hf_recipes.evaluation.exact import fix_loss_type

    auto = getattr(transformers, TASKS[recipe.task].auto_class)
    arguments = {k: v for k, v in recipe.section("model").items() if k not in SOURCES}
    dtype = arguments.get("dtype", "auto")
    arguments["dtype"] = "auto" if dtype == "auto" else getattr(torch, dtype)
    stated = recipe.get("model.num_labels")
    if stated is not None and stated != fields.get("num_labels", stated):
        what = f"model.num_labels is {stated}, and there are {fields['num_labels']} labels"
        raise ModelError.at(recipe.location("model.num_labels"), what, "leave it out")
    for name in ("id2label", "label2id"):
        arguments.pop(name, None)  # `fields` has them, as numbers and text
    transformers.set_seed(recipe.training.get("seed", 42))
    if not from_scratch(recipe):
        model, new = _pretrained(recipe, auto, recipe.section("model")[SOURCES[0]], {**arguments, **fields}, say)
        check_weights(recipe, model, new, say)
    elif recipe.section("BitsAndBytesConfig"):  # of a smoke run: weights are quantized when they are loaded
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            build_from_config(recipe, auto, config, tokenizer, fields, arguments).save_pretrained(folder)
            model, new = _pretrained(recipe, auto, folder, arguments, say)
    else:
        model, new = build_from_config(recipe, auto, config, tokenizer, fields, arguments), []
    rows = fit_vocabulary(model, tokenizer, say)
    line = fix_loss_type(model)
    if line:
        say(line)
    return add_adapter(recipe, model, new, say, rows) if "LoraConfig" in recipe.sections else model


def add_adapter(recipe: Recipe, model: Any, new: list[str], say: Callable[[str], None], rows: range = range(0)) -> Any:
    """The model with its adapter; `new`: the names of weights that the checkpoint lacks, `rows`: those of the embedding
    that it lacks. Raises ModelError where there is nothing to adapt."""
    from peft import LoraConfig, get_peft_model

    arguments = dict(recipe.section("LoraConfig"))
    targets = arguments.get("target_modules")
    named = targets if isinstance(targets, list) else []
    parts = [name for name, _ in model.named_modules()]
    unknown = [t for t in named if not any(name == t or name.endswith(f".{t}") for name in parts)]
    location = recipe.location("LoraConfig.target_modules")
    if unknown:
        what = f"LoraConfig.target_modules: {type(model).__name__} has no {', '.join(unknown)}"
        if unknown == named:
            raise ModelError.at(location, what, _suggest_targets(model, unknown[0]))
        say(f"{what}: left out")
    # peft trains a new `classifier` or `score` itself; any other new layer of the head would stay random and frozen.
    parts_of_head = {name.rpartition(".")[0] for name in new if not {"classifier", "score"} & set(name.split("."))}
    if parts_of_head and not TASKS[recipe.task].generates:
        arguments["modules_to_save"] = sorted({*(arguments.get("modules_to_save") or ()), *parts_of_head})
        say(f"fully trained, besides the adapter: {', '.join(sorted(parts_of_head))} (new, not pretrained)")
    for name in arguments.get("modules_to_save") or ():  # peft trains those that it finds and ignores the rest
        if not any(part == name or part.endswith(f".{name}") for part in parts):
            what = f"LoraConfig.modules_to_save: {type(model).__name__} has no {name!r}"
            names = sorted({part.rpartition(".")[2] for part in parts if part} - {str(i) for i in range(1000)})
            near = nearest(name, names)
            fix = f"did you mean {near!r}?" if near else f"it has {', '.join(names)}"
            raise ModelError.at(recipe.location("LoraConfig.modules_to_save"), what, fix)
    arguments |= train_new_rows(recipe, model, arguments, rows, say)
    try:
        model = get_peft_model(model, LoraConfig(**arguments))
    except (ValueError, TypeError) as problem:
        text = str(problem)  # peft's table lacks this architecture, or a pattern matches nothing
        if targets is None or "No modules" in text or "not found" in text:
            raise ModelError.at(
                location, f"peft rejects it: {first_line(problem)}", _suggest_targets(model, str(targets))
            ) from problem
        raise ModelError.at(recipe.location("LoraConfig"), f"peft rejects it: {first_line(problem)}") from problem
    complete_output_layer(model)
    if "BitsAndBytesConfig" in recipe.sections:
        # Trainer does this only for models that it does not know to be wrapped (transformers#42489).
        model.enable_input_require_grads()
    return model


def _suggest_targets(model: Any, near_to: str) -> str:
    """The names that target_modules may have, the nearest first."""
    kinds = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
    names = sorted({n.rpartition(".")[2] for n, part in model.named_modules() if type(part).__name__ in kinds})
    near = nearest(near_to, names)
    return (f"did you mean {near!r}? " if near else "") + f"it has {', '.join(names)}; or write all-linear"


def build_from_config(
    recipe: Recipe, auto: Any, config: Any, tokenizer: Any, fields: Mapping[str, Any], arguments: dict
) -> Any:
    """A model with random weights. Raises ModelError for a config that no model of the task can have."""
    import torch

    if getattr(config.get_text_config(), "vocab_size", None) is None:
        what = (
            f"no model can be built from this config: {type(config).__name__} has no vocabulary, so it cannot read text"
        )
        raise ModelError.at(recipe.location("model"), what, f"use an architecture that {auto.__name__} knows")
    if config.get_text_config().vocab_size != count_ids(tokenizer):
        config.get_text_config().vocab_size = count_ids(tokenizer)  # a preset's vocabulary follows the tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(config, name, getattr(tokenizer, name))
    for name, value in fields.items():
        setattr(config, name, value)
    dtype = torch.float32 if arguments["dtype"] == "auto" else arguments["dtype"]
    attention = {k: v for k, v in arguments.items() if k == "attn_implementation"}
    try:
        return auto.from_config(config, dtype=dtype, **attention)
    except (ValueError, ImportError) as problem:
        raise ModelError.at(recipe.location("model"), f"no model can be built from this config: {problem}") from problem


def _pretrained(recipe: Recipe, auto: Any, name: str, arguments: dict[str, Any], say: Callable[[str], None]) -> Any:
    """(model, names of its weights that the checkpoint lacks)."""
    if recipe.section("BitsAndBytesConfig"):
        from transformers import BitsAndBytesConfig

        # Older releases load ahead of the quantizer in four threads: how many originals lie on the GPU at once is a
        # race then, and so is what stays reserved (core_model_loading.py).
        os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
        arguments["quantization_config"] = BitsAndBytesConfig(**recipe.section("BitsAndBytesConfig"))
        arguments.setdefault("device_map", _one_device(recipe))
    location = recipe.location(f"model.{SOURCES[0]}")
    try:
        with _without_report():
            loaded = auto.from_pretrained(name, output_loading_info=True, **{"trust_remote_code": False, **arguments})
    except Exception as problem:  # a stranger's file: upstream may raise anything
        if "ignore_mismatched_sizes" in str(problem):
            what = f"the model {name!r} has weights of other shapes than its config with this recipe's fields"
            fix = "for a head with new labels write model.ignore_mismatched_sizes: true"
            raise ModelError.at(location, what, fix) from problem
        raise load_error(location, "model", name, problem) from problem
    model, info = loaded
    for part in model.modules():
        # bitsandbytes 0.50.2 nn/modules.py:617: on such a CPU an evaluation repacks 4-bit weights for a kernel without
        # a backward, and the training after it gets no gradient through them.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    new = sorted(info["missing_keys"])
    if new:
        say(f"newly initialized, not pretrained: {_shorten(new)}")
    if info["unexpected_keys"]:
        say(f"in the checkpoint, and not in this model: {_shorten(sorted(info['unexpected_keys']))}")
    return model, new


@contextmanager
def _without_report() -> Iterator[None]:
    """Upstream prints a table of missing and unexpected weights; the notes of a run have the same in a line each."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _one_device(recipe: Recipe) -> dict[str, Any]:
    """Quantized weights are placed at loading: the whole model on this rank's device."""
    import torch

    if recipe.training.get("use_cpu") or not torch.cuda.is_available():
        return {"": "mps" if torch.backends.mps.is_available() and not recipe.training.get("use_cpu") else "cpu"}
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def parameter_counts(model: Any) -> tuple[int, int]:
    """(all, trainable) parameters; a quantized weight counts the values it holds, a tied one once."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(total), int(trainable)
    total = sum(p.numel() for p in model.parameters())
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_weights(recipe: Recipe, model: Any, new: Sequence[str], say: Callable[[str], None]) -> None:
    """Raises ModelError for weights that the checkpoint lacks and that are not a new head. `new`: their names."""
    base = f"{getattr(model, 'base_model_prefix', '') or '?'}."
    heads_are_new = not TASKS[recipe.task].generates
    untrained = [
        name
        for name in new
        if not (heads_are_new and (not name.startswith(base) or any(part in name for part in NEW_PARTS)))
    ]
    if not untrained:
        return
    what = f"weights outside the new head are not in the checkpoint and would start untrained: {_shorten(untrained)}"
    location = recipe.location("model.pretrained_model_name_or_path")
    errors = list(
        report_unless_disabled(
            recipe, "untrained", location, what, f"is it a checkpoint of {type(model).__name__}?", say
        )
    )
    if errors:
        raise ModelError(errors)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


NEW_PARTS = ("pooler", "position_ids")  # of an encoder: pretrained or not, depending on the checkpoint's own task
