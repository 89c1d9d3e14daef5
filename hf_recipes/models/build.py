"""A recipe to a tokenizer, a config and a model: pretrained or from scratch, with LoRA, DoRA or quantised.

Nothing of a Hub repository's code is run: `trust_remote_code` stays False and weights are safetensors or nothing.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import first_line
from hf_recipes.data.row_checks import insist
from hf_recipes.errors import RecipeError
from hf_recipes.models.config import from_scratch, unloadable
from hf_recipes.recipe.schema.own_keys import SOURCES

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe


def build_model(
    recipe: Recipe, config: Any, tokenizer: Any, fields: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """The model that Trainer gets: weights loaded or drawn (seeded), adapter put on. `fields` are what the data decides
    (num_labels, ...). Raises RecipeError for weights that do not load."""
    import torch
    import transformers

    from hf_recipes.evaluation.exact import fix_loss_type

    auto = getattr(transformers, TASKS[recipe.task].auto_class)
    words = {k: v for k, v in recipe.section("model").items() if k not in SOURCES}
    words["dtype"] = getattr(torch, words["dtype"]) if words.get("dtype", "auto") != "auto" else "auto"
    stated = recipe.get("model.num_labels")
    if stated is not None and stated != fields.get("num_labels", stated):
        what = f"model.num_labels is {stated}, and the train split has {fields['num_labels']} labels"
        raise RecipeError.at(recipe.location("model.num_labels"), what, "leave it out")
    for name in ("problem_type", "id2label", "label2id"):
        stated = recipe.get(f"model.{name}")
        if stated is not None and name in fields and stated != fields[name]:
            what = (
                f"model.{name} is decided by the data here ({TASKS[recipe.task].name}), and the recipe says otherwise"
            )
            raise RecipeError.at(recipe.location(f"model.{name}"), what, "leave it out")
    transformers.set_seed(recipe.training.get("seed", 42))
    if not from_scratch(recipe):
        model, new = _pretrained(recipe, auto, recipe.section("model")[SOURCES[0]], {**words, **fields}, say)
        refuse_weights(recipe, model, new, say)
    elif recipe.section("BitsAndBytesConfig"):  # a smoke run's: weights are quantised when they are loaded
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _fresh(recipe, auto, config, tokenizer, fields, words).save_pretrained(folder)
            model, new = _pretrained(recipe, auto, folder, words, say)
    else:
        model, new = _fresh(recipe, auto, config, tokenizer, fields, words), []
    _fit_vocabulary(recipe, model, tokenizer, say)
    line = fix_loss_type(model)
    if line:
        say(line)
    return _adapted(recipe, model, new, say) if "LoraConfig" in recipe.sections else model


def _adapted(recipe: Recipe, model: Any, new: list[str], say: Callable[[str], None]) -> Any:
    """The model with its adapter; `new` are the names of weights that no checkpoint gave. Raises RecipeError where
    there is nothing to adapt."""
    from peft import LoraConfig, get_peft_model

    words = dict(recipe.section("LoraConfig"))
    targets = words.get("target_modules")
    named = targets if isinstance(targets, list) else []
    parts = [name for name, _ in model.named_modules()]
    strange = [t for t in named if not any(name == t or name.endswith(f".{t}") for name in parts)]
    where = recipe.location("LoraConfig.target_modules")
    if strange:
        what = f"LoraConfig.target_modules: {type(model).__name__} has no {', '.join(strange)}"
        if strange == named:
            raise RecipeError.at(where, what, _adaptable(model, strange[0]))
        say(f"{what}: left out")
    # peft trains a new `classifier` or `score` itself; another new layer of the head would stay random and frozen.
    parts_of_head = {name.rpartition(".")[0] for name in new if not {"classifier", "score"} & set(name.split("."))}
    if parts_of_head and not TASKS[recipe.task].generates:
        words["modules_to_save"] = sorted({*(words.get("modules_to_save") or ()), *parts_of_head})
        say(f"trained whole, beside the adapter: {', '.join(sorted(parts_of_head))} (new, not pretrained)")
    for name in words.get("modules_to_save") or ():  # peft trains those that it finds, and says nothing of the rest
        if not any(part == name or part.endswith(f".{name}") for part in parts):
            what = f"LoraConfig.modules_to_save: {type(model).__name__} has no {name!r}"
            names = sorted({part.rpartition(".")[2] for part in parts if part} - {str(i) for i in range(1000)})
            near = difflib.get_close_matches(name, names, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise RecipeError.at(recipe.location("LoraConfig.modules_to_save"), what, fix)
    try:
        model = get_peft_model(model, LoraConfig(**words))
    except (ValueError, TypeError) as problem:
        told = str(problem)  # peft's table has not this architecture, or a pattern fits nothing
        if targets is None or "No modules" in told or "not found" in told:
            raise RecipeError.at(
                where, f"peft refuses: {first_line(problem)}", _adaptable(model, str(targets))
            ) from problem
        raise RecipeError.at(recipe.location("LoraConfig"), f"peft refuses: {first_line(problem)}") from problem
    if "BitsAndBytesConfig" in recipe.sections:
        # Trainer does this itself only for models that it does not know to be wrapped (transformers#42489).
        model.enable_input_require_grads()
    return model


def _adaptable(model: Any, near_to: str) -> str:
    """The names that an adapter could take, the nearest first."""
    kinds = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
    names = sorted({n.rpartition(".")[2] for n, part in model.named_modules() if type(part).__name__ in kinds})
    near = difflib.get_close_matches(near_to, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"it has {', '.join(names)}; or write all-linear"


def _fresh(recipe: Recipe, auto: Any, config: Any, tokenizer: Any, fields: Mapping[str, Any], words: dict) -> Any:
    import torch

    if getattr(config.get_text_config(), "vocab_size", None) is None:
        what = f"no model can be made of this config: {type(config).__name__} has no vocabulary, so it reads no text"
        raise RecipeError.at(recipe.location("model"), what, f"take an architecture that {auto.__name__} knows")
    if config.get_text_config().vocab_size != len(tokenizer):
        config.get_text_config().vocab_size = len(tokenizer)  # a preset's vocabulary follows the tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(config, name, getattr(tokenizer, name))
    for name, value in fields.items():
        setattr(config, name, value)
    dtype = torch.float32 if words["dtype"] == "auto" else words["dtype"]
    attention = {"attn_implementation": words["attn_implementation"]} if "attn_implementation" in words else {}
    try:
        return auto.from_config(config, dtype=dtype, **attention)
    except (ValueError, ImportError) as problem:
        raise RecipeError.at(recipe.location("model"), f"no model can be made of this config: {problem}") from problem


def _pretrained(recipe: Recipe, auto: Any, name: str, words: dict[str, Any], say: Callable[[str], None]) -> Any:
    """(model, names of its weights that the checkpoint has not)."""
    from safetensors import SafetensorError

    if recipe.section("BitsAndBytesConfig"):
        from transformers import BitsAndBytesConfig

        words["quantization_config"] = BitsAndBytesConfig(**recipe.section("BitsAndBytesConfig"))
        words.setdefault("device_map", _one_device(recipe))
    where = recipe.location(f"model.{SOURCES[0]}")
    try:
        model, info = auto.from_pretrained(name, output_loading_info=True, **words)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, SafetensorError) as problem:
        if "ignore_mismatched_sizes" in str(problem):
            what = f"the model {name!r} has weights of other shapes than its config with this recipe's fields"
            fix = "for a head with new labels write model.ignore_mismatched_sizes: true"
            raise RecipeError.at(where, what, fix) from problem
        raise unloadable(where, "model", name, problem) from problem
    for part in model.modules():
        # bitsandbytes 0.50.2 nn/modules.py:617: on such a CPU an evaluation repacks 4-bit weights for a kernel without
        # a backward, and the training that goes on after it gets no gradient through them.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    fresh = sorted(info["missing_keys"])
    if fresh:
        more = f" and {len(fresh) - 3} more" if len(fresh) > 3 else ""
        say(f"newly initialised, not pretrained: {', '.join(fresh[:3])}{more}")
    return model, fresh


def _one_device(recipe: Recipe) -> dict[str, Any]:
    """Quantised weights are placed at loading: the whole model on this rank's device."""
    import torch

    if recipe.training.get("use_cpu") or not torch.cuda.is_available():
        return {"": "mps" if torch.backends.mps.is_available() and not recipe.training.get("use_cpu") else "cpu"}
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def _fit_vocabulary(recipe: Recipe, model: Any, tokenizer: Any, say: Callable[[str], None]) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        if "LoraConfig" in recipe.sections:
            what = f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows"
            raise RecipeError.at(
                recipe.location("tokenizer"), what, "take the model's own tokenizer: an adapter adds no rows"
            )
        model.resize_token_embeddings(len(tokenizer))
        say(f"embedding: {rows} -> {len(tokenizer)} rows, as many as the tokenizer has tokens")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def parameter_counts(model: Any) -> tuple[int, int]:
    """(all, trainable) parameters; a quantised weight counts what it stands for, a tied one once."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(total), int(trainable)
    total = sum(p.numel() for p in model.parameters())
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


def refuse_weights(recipe: Recipe, model: Any, fresh: Sequence[str], say: Callable[[str], None]) -> None:
    """Raises RecipeError for weights that no checkpoint gave and that are no new head. `fresh`: their names."""
    base = f"{getattr(model, 'base_model_prefix', '') or '?'}."
    heads_are_new = not TASKS[recipe.task].generates
    strange = [
        name
        for name in fresh
        if not (heads_are_new and (not name.startswith(base) or any(part in name for part in NEW_PARTS)))
    ]
    if not strange:
        return
    more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
    what = f"weights that are no new head begin untrained: the checkpoint has no {', '.join(strange[:3])}{more}"
    where = recipe.location("model.pretrained_model_name_or_path")
    errors = list(insist(recipe, "untrained", where, what, f"is it a checkpoint of {type(model).__name__}?", say))
    if errors:
        raise RecipeError(errors)


NEW_PARTS = ("pooler", "position_ids")  # of an encoder: pretrained or not, by the checkpoint's own task
