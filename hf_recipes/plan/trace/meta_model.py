"""The recipe's model without its weights: models/build.py's own steps under torch.device("meta").

Shapes come from the recipe (a preset, an inline config), a local config.json, or presets.SHAPES for names on the Hub.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_recipes.catalog.presets import SHAPES
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import ModelError
from hf_recipes.models import build
from hf_recipes.models.config import config_fields, from_scratch
from hf_recipes.recipe.model_facts import model_facts
from hf_recipes.recipe.schema.own_keys import SOURCES

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

LAYERDROP = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # attributes of upstream's decoders and encoders
BLOCK, BLOCKS = 64, 256  # bitsandbytes' nf4 block of values, and of absmax values under double quantisation


def config_values(recipe: Recipe) -> dict[str, Any]:
    """The fields of the model's config, model_type among them. Raises ModelError for a name whose shape is unknown
    here."""
    model = recipe.section("model")
    facts = model_facts(model)
    if facts.model_type:
        return {**facts.config, **config_fields(recipe)}
    dotted = "config" if isinstance(model.get("config"), str) else "pretrained_model_name_or_path"
    name = str(model[dotted])
    cached = _cached(name)
    if cached is not None:
        return {**cached, **config_fields(recipe)}
    what = f"the shape of {name!r} is not known without the Hub"
    fix = "add model.config=PATH, its config.json (plan reads nothing else), or name a local folder"
    near = difflib.get_close_matches(name, SHAPES, n=3, cutoff=0.75)
    if near:
        fix += f"; known here: {', '.join(near)}"
    raise ModelError.at(recipe.location(f"model.{dotted}"), what, fix)


def _cached(name: str) -> dict[str, Any] | None:
    """config.json of a model that is already in the Hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a Hub id
        return None
    return json.loads(Path(found).read_text(encoding="utf-8")) if isinstance(found, str) else None


def build_config(recipe: Recipe) -> Any:
    """The config object. Raises ModelError for fields that make none."""
    from transformers import AutoConfig

    values = config_values(recipe)
    for stray in ("architectures", "transformers_version", "torch_dtype", "_name_or_path", "quantization_config"):
        values.pop(stray, None)
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (ValueError, TypeError, KeyError) as problem:
        raise ModelError.at(recipe.location("model"), f"no model can be built from this config: {problem}") from problem


def vocabulary_size(recipe: Recipe, config: Any) -> int:
    """Rows of the embedding: the BpeTrainer's size, a local tokenizer's, else the config's."""
    trained = recipe.section("BpeTrainer").get("vocab_size")
    if trained is not None:
        return int(trained)
    if "BpeTrainer" in recipe.sections:
        return 30000  # tokenizers' default
    if from_scratch(recipe):
        path = Path(str(recipe.get("tokenizer.pretrained_model_name_or_path", ""))) / "tokenizer.json"
        if path.is_file():
            return _tokens(path)
    return int(config.get_text_config().vocab_size)


def _tokens(path: Path) -> int:
    values = json.loads(path.read_text(encoding="utf-8"))
    ids = {entry["id"] for entry in values.get("added_tokens") or ()}
    vocab = values.get("model", {}).get("vocab") or {}
    return len(ids | (set(vocab.values()) if isinstance(vocab, dict) else set(range(len(vocab)))))


def meta_model(
    recipe: Recipe, config: Any, tokenizer: Any, fields: Mapping[str, Any], device: str, say: Callable[[str], None]
) -> Any:
    """The model that Trainer gets, as models.build_model makes it, on `device` ("meta", or "cpu" for a real one)."""
    import transformers

    from hf_recipes.evaluation.exact import fix_loss_type

    auto = getattr(transformers, TASKS[recipe.task].auto_class)
    values = {k: v for k, v in recipe.section("model").items() if k not in SOURCES}
    dtype = values.get("dtype", "auto")
    values["dtype"] = _dtype_of(config) if dtype == "auto" else getattr(torch, dtype)
    transformers.set_seed(recipe.training.get("seed", 42))
    with torch.device(device):
        model = build.build_from_config(recipe, auto, config, tokenizer, fields, values)
        if recipe.section("BitsAndBytesConfig"):
            quantize_model(model, recipe.section("BitsAndBytesConfig"))
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        fix_loss_type(model)
        if "LoraConfig" in recipe.sections:
            model = build.add_adapter(recipe, model, [] if from_scratch(recipe) else _new(model), say)
    keep_every_layer(model)
    model.train()
    return model


def keep_every_layer(model: nn.Module) -> None:
    """Layerdrop leaves layers out by chance: the peak is that of a step that keeps all."""
    for module in model.modules():
        for name in LAYERDROP:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _dtype_of(config: Any) -> torch.dtype:
    found = getattr(config, "dtype", None)
    if isinstance(found, str):
        found = getattr(torch, found)
    return found if isinstance(found, torch.dtype) else torch.float32


def _new(model: Any) -> list[str]:
    """Weights that no checkpoint of the bare model has: those of a classifier's head."""
    prefix = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(prefix)]


# quantised ----------------------------------------------------------------------------------------------------------


def quantize_model(model: Any, values: Mapping[str, Any]) -> None:
    """What from_pretrained with a BitsAndBytesConfig leaves: upstream's quantizer picks the layers, and each weight
    becomes its packed halves of bytes, or its bytes, with their scales, empty."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    settings = BitsAndBytesConfig(**values)
    kind = "bitsandbytes_4bit" if settings.load_in_4bit else "bitsandbytes_8bit"
    quantizer = AUTO_QUANTIZER_MAPPING[kind](settings, pre_quantized=False)
    # GPT-2's layers are Conv1D, which bitsandbytes takes as well.
    layers = [(name, getattr(part, "weight", None)) for name, part in model.named_modules()]
    dtypes = {name: weight.dtype for name, weight in layers if isinstance(weight, torch.Tensor)}
    quantizer.preprocess_model(model, dtype=None, device_map={"": 0})
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    for name, part in model.named_modules():
        if type(part).__name__ == "Linear4bit":
            _pack(part, settings, dtypes[name])
        elif type(part).__name__ == "Linear8bitLt":
            _pack_bytes(part, dtypes[name])


def _pack_bytes(part: Any, dtype: torch.dtype) -> None:
    """bitsandbytes/nn/modules.py, Int8Params._quantize: a byte a value, and a scale a row."""
    import bitsandbytes

    rows, columns = part.out_features, part.in_features
    values = torch.zeros(rows, columns, dtype=torch.int8)
    part.weight = bitsandbytes.nn.Int8Params(
        values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=torch.zeros(rows)
    )
    if part.bias is not None:
        part.bias = nn.Parameter(torch.zeros(rows, dtype=dtype), requires_grad=False)


def _pack(part: Any, settings: Any, dtype: torch.dtype) -> None:
    import bitsandbytes
    from bitsandbytes.functional import QuantState

    rows, columns = part.out_features, part.in_features
    values = rows * columns
    blocks = -(-values // BLOCK)
    storage = settings.bnb_4bit_quant_storage  # the dtype that the packed halves of bytes are given
    fields: dict[str, Any] = {"shape": torch.Size((rows, columns)), "code": torch.zeros(16), "blocksize": BLOCK}
    fields |= {"quant_type": settings.bnb_4bit_quant_type, "dtype": dtype}
    if settings.bnb_4bit_use_double_quant:
        nested = QuantState(
            absmax=torch.zeros(-(-blocks // BLOCKS)), code=torch.zeros(256), blocksize=BLOCKS, dtype=torch.float32
        )
        fields |= {"absmax": torch.zeros(blocks, dtype=torch.uint8), "offset": torch.zeros(()), "state2": nested}
    else:
        fields["absmax"] = torch.zeros(blocks)
    state = QuantState(**fields)
    part.weight = bitsandbytes.nn.Params4bit(
        torch.zeros((values + 1) // (2 * storage.itemsize), 1, dtype=storage),
        requires_grad=False,
        quant_state=state,
        compress_statistics=settings.bnb_4bit_use_double_quant,
        quant_type=settings.bnb_4bit_quant_type,
        quant_storage=storage,
        bnb_quantized=True,
        module=part,
    )
    part.quant_state = state
    if part.bias is not None:  # upstream makes it without data, whatever the device
        part.bias = nn.Parameter(torch.zeros(rows, dtype=dtype), requires_grad=False)


def tensors_before_training(model: Any) -> list[torch.Tensor]:
    """Everything that is in memory before the first step: parameters, buffers, scales of quantised weights."""
    found: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    for holder in (*model.parameters(), *model.modules()):  # FSDP leaves a layer's scales to the layer
        state = getattr(holder, "quant_state", None)
        for level in (state, getattr(state, "state2", None)):
            parts = (getattr(level, name, None) for name in ("absmax", "code", "offset"))
            found += [part for part in parts if isinstance(part, torch.Tensor)]
        scales = getattr(holder, "SCB", None)  # of 8 bit
        found += [scales] if isinstance(scales, torch.Tensor) else []
    return found
