"""What a model type cannot do, as far as upstream's sources tell. Imports neither torch nor transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.model_facts import model_facts
from hf_recipes.recipe.rules.rule import Rule, has_section, is_given, report_argument, report_key, strings_in

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
LINE = r"^    supports_gradient_checkpointing\s*=\s*True"
# Model types whose code reads or writes a layer's own weight: it cannot be bitsandbytes' (bitsandbytes 0.50.2).
NOT_QUANTISED = {
    "rwkv": "its output layers are rescaled in place",
    "xlnet": "its attention multiplies with weights of its own",
}
# Model types with a linear layer that returns more than its product -> the layer.
TUPLES = {"llama4_text": "router"}


def checkpointing_of_the_model(recipe: Recipe) -> Iterator[Diagnostic]:
    """modeling_utils.gradient_checkpointing_enable: "does not support gradient checkpointing"."""
    kind = model_facts(recipe.section("model")).model_type
    if not kind or supports_checkpointing(kind) is not False:
        return
    for key in CHECKPOINTING:
        if is_given(recipe, key):
            what = f"{key}: the model type {kind} does not support it"
            yield report_argument(recipe, key, what, "leave it out")


@lru_cache
def supports_checkpointing(model_type: str) -> bool | None:
    """By the class's own line in the installed transformers, None where its file is not found."""
    spec = find_spec("transformers")
    if spec is None or not spec.origin:
        return None
    models = Path(spec.origin).parent / "models"
    for name in (model_type.replace("-", "_"), model_type.removesuffix("_text")):
        path = models / name / f"modeling_{name}.py"
        if path.is_file():
            found = re.search(
                r"^    supports_gradient_checkpointing\s*=\s*(\w+)", path.read_text("utf-8"), re.MULTILINE
            )
            return found is not None and found[1] == "True"
    return None


def quantisation_of_the_model(recipe: Recipe) -> Iterator[Diagnostic]:
    """`run` would end in bitsandbytes or in the model's own code, after loading."""
    kind = model_facts(recipe.section("model")).model_type
    if kind in NOT_QUANTISED and has_section(recipe, "BitsAndBytesConfig"):
        what = f"BitsAndBytesConfig: the model type {kind} cannot be quantised: {NOT_QUANTISED[kind]}"
        yield report_key(recipe, "BitsAndBytesConfig", what, "leave it out")


def layers_that_return_a_tuple(recipe: Recipe) -> Iterator[Diagnostic]:
    """peft adds its product to a layer's output, and bitsandbytes takes the layer's place: neither has a tuple."""
    layer = TUPLES.get(model_facts(recipe.section("model")).model_type or "")
    if layer is None:
        return
    adapter, quantised = recipe.section("LoraConfig"), recipe.section("BitsAndBytesConfig")
    targets = strings_in(adapter.get("target_modules"))
    excluded = layer in strings_in(adapter.get("exclude_modules"))
    if (layer in targets or "all-linear" in targets) and not excluded:
        what = f"LoraConfig.target_modules: {layer} returns a tuple, which LoRA cannot add to"
        fix = f"write exclude_modules: [{layer}]" if "all-linear" in targets else f"leave {layer} out"
        yield report_key(recipe, "LoraConfig.target_modules", what, fix)
    skipped = strings_in(quantised.get("llm_int8_skip_modules"))
    if has_section(recipe, "BitsAndBytesConfig") and layer not in skipped:
        what = f"BitsAndBytesConfig: {layer} returns a tuple, which a quantised layer does not"
        yield report_key(recipe, "BitsAndBytesConfig", what, f"write llm_int8_skip_modules: [{layer}, lm_head]")


ERRORS: tuple[Rule, ...] = (checkpointing_of_the_model, quantisation_of_the_model, layers_that_return_a_tuple)
WARNINGS: tuple[Rule, ...] = ()
