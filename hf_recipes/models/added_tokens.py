"""Tokens that a recipe adds to a model's own: their rows in the embedding and in the output layer, and how an adapter
trains and saves them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes.data.tokens.encode import count_ids
from hf_recipes.errors import ModelError

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

TRAINED = "trainable_token_indices"


def fit_vocabulary(model: Any, tokenizer: Any, say: Callable[[str], None]) -> range:
    """Gives every token a row of the embedding, and of the output layer. Returns the new rows."""
    rows = model.get_input_embeddings().weight.shape[0]
    count = count_ids(tokenizer)
    if count > rows:
        model.resize_token_embeddings(count)
        say(f"embedding: {rows} -> {count} rows, as many as the tokenizer has tokens")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return range(rows, count)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The embedding or the output layer; `path` is its place in the model."""

    path: str
    weight: Any

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def named(self, key: str) -> bool:
        """Whether a key of LoraConfig is this layer, as peft compares them."""
        return self.path == key or self.path.endswith(f".{key}")


def train_new_rows(
    recipe: Recipe, model: Any, arguments: Mapping[str, Any], rows: range, say: Callable[[str], None]
) -> dict[str, Any]:
    """What LoraConfig needs beside `arguments` so that the new rows learn and are saved with the adapter.

    An adapter leaves the embedding as it is: new rows would stay random, and another loading would draw other ones.
    Those that no key of the recipe trains are added to `trainable_token_indices`. Raises ModelError where only one of
    two layers that share their weight is in `modules_to_save`.
    """
    if not rows:
        return {}
    layers = _layers(model)
    tied = len(layers) > 1 and layers[0].weight is layers[1].weight
    left = [layer for layer in layers if not _is_trained(layer, arguments)]
    if tied and (arguments.get("ensure_weight_tying") or len(left) == 2):
        left = left[:1] if len(left) == 2 else []  # peft gives the output layer what the embedding learns
    elif tied and left:
        other = next(layer for layer in layers if layer is not left[0])
        what = f"{layers[0].name} and {layers[1].name} share their weight, and only {other.name} is trained: the rows"
        what += f" of {len(rows)} new tokens in {left[0].name} would stay random"
        fix = f"write modules_to_save: [{layers[0].name}, {layers[1].name}], or ensure_weight_tying: true"
        raise ModelError.at(recipe.location("LoraConfig"), what, fix)
    if not left:
        return {}
    given = arguments.get(TRAINED)
    if given is not None and not isinstance(given, Mapping):
        given = {layers[0].name: list(given)}
    found = dict(given or {})
    for layer in left:
        key = next((key for key in found if layer.named(key)), layer.name)
        found[key] = sorted({*found.get(key, ()), *rows})
    if found == given:
        return {}
    shown = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    say(f"LoraConfig.{TRAINED}: with the new tokens' rows of {' and '.join(layer.name for layer in left)} ({shown})")
    return {TRAINED: found}


def _layers(model: Any) -> list[_Layer]:
    """The embedding, and the output layer where the model has one."""
    paths = {id(part): path for path, part in model.named_modules()}
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [_Layer(path=paths[id(part)], weight=part.weight) for part in parts if part is not None]


def _is_trained(layer: _Layer, arguments: Mapping[str, Any]) -> bool:
    """Whether `modules_to_save` or `target_modules` has this layer."""
    targets = arguments.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear" and re.fullmatch(targets, layer.path):
        return True
    listed = targets if isinstance(targets, list) else []
    return any(layer.named(key) for key in [*listed, *(arguments.get("modules_to_save") or ())])


def complete_output_layer(model: Any) -> None:
    """TRL reads the bias of the output layer, which peft 0.21's wrapper of single rows does not pass on."""
    layer = model.get_output_embeddings()
    inner = getattr(layer, "original_module", None)
    if inner is not None and not hasattr(layer, "bias"):
        layer.register_parameter("bias", getattr(inner, "bias", None))
