"""fp16, bf16, the dtype of the weights, Gemma, and O2 (`master_weights`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.model_facts import model_facts
from hf_recipes.recipe.rules.rule import Rule, has_section, is_given, is_true, report_argument, report_key, text_of

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

# hf_recipes.training.master_weights.OPTIMIZERS, which costs an import of torch; a test holds them together
MASTER_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit")
OVERFLOW = "activations of Gemma 2 and 3 pass 65504, the largest fp16 (transformers#39972)"


def gemma_generation(recipe: Recipe) -> str:
    """ "gemma2", "gemma3", ...: by the model_type where a file or a table has it, else by the name; "" for others.

    A Hub id called gemma whose generation the name does not give is "gemma".
    """
    model = recipe.section("model")
    found = model_facts(model).model_type
    if found:
        return found if found.startswith("gemma") else ""
    name = model.get("pretrained_model_name_or_path") or model.get("config")
    if not isinstance(name, str) or "gemma" not in name.lower():
        return ""
    number = re.search(r"gemma[-_]?(\d)n?(?![\db])", name.lower())  # gemma-2b is 2 billion parameters, generation 1
    return f"gemma{number[1]}" if number else "gemma"


def _overflows(recipe: Recipe) -> bool:
    return gemma_generation(recipe).startswith(("gemma2", "gemma3"))


def fp16_with_bf16(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:1785: "At most one of fp16 and bf16 can be True"; the same for full evaluation."""
    for key, other in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if is_true(recipe, key) and is_true(recipe, other):
            yield report_argument(
                recipe, key, f"{key} and {other} are both true", "keep one; bf16 where the GPU has it"
            )


def fp16_for_gemma(recipe: Recipe) -> Iterator[Diagnostic]:
    """transformers#39972, unsloth#4014: gemma3 activations reach ~800,000; fp16 turns them to inf, then NaN."""
    if not _overflows(recipe):
        return
    fix = "write bf16: true (fp32 where the GPU has no bf16)"
    for key in ("fp16", "fp16_full_eval"):
        if is_true(recipe, key):
            yield report_argument(recipe, key, f"{key}: true with a Gemma: {OVERFLOW}", fix)
    for dotted in ("model.dtype", "BitsAndBytesConfig.bnb_4bit_compute_dtype"):
        if recipe.get(dotted) == "float16":
            yield report_key(recipe, dotted, f"{dotted}: float16 with a Gemma: {OVERFLOW}", "write bfloat16 or float32")


def fp16_for_an_unknown_gemma(recipe: Recipe) -> Iterator[Diagnostic]:
    """Gemma 4's evidence is mixed (unsloth#4875 fine, #5055 NaN); a name alone does not give the generation."""
    if gemma_generation(recipe) and not _overflows(recipe) and is_true(recipe, "fp16"):
        yield report_argument(recipe, "fp16", "fp16: true with a Gemma may overflow to NaN", "write bf16: true")


def fp16_scaler_with_bf16_weights(recipe: Recipe) -> Iterator[Diagnostic]:
    """pytorch#127176: `_amp_foreach_non_finite_check_and_unscale_cuda` is not implemented for bf16 gradients."""
    if is_true(recipe, "fp16") and recipe.get("model.dtype") == "bfloat16" and not has_section(recipe, "LoraConfig"):
        what = "fp16: true scales the loss, and torch's scaler cannot unscale the gradients of bfloat16 weights"
        yield report_key(recipe, "model.dtype", what, "write bf16: true instead of fp16: true, or dtype: float32")


def fp16_weights_without_masters(recipe: Recipe) -> Iterator[Diagnostic]:
    """torch/amp/grad_scaler.py: "Attempting to unscale FP16 gradients."; without a scaler Adam turns to NaN at once."""
    if (
        recipe.get("model.dtype") != "float16"
        or has_section(recipe, "LoraConfig")
        or recipe.get("master_weights") is True
    ):
        return
    if is_true(recipe, "fp16"):
        what = "dtype: float16 with fp16: true: torch refuses to unscale fp16 gradients"
    else:
        what = "dtype: float16 trains fp16 weights without fp32 masters: Adam turns to NaN"
    fix = "write dtype: float32 (autocast), or master_weights: true with fp16: true (O2)"
    yield report_key(recipe, "model.dtype", what, fix)


def fp16_adapters_without_scaling(recipe: Recipe) -> Iterator[Diagnostic]:
    """fp16 activations without a loss scale: small gradients vanish below 6e-8. fp16: true adds the scaler."""
    if recipe.get("model.dtype") == "float16" and has_section(recipe, "LoraConfig") and not is_true(recipe, "fp16"):
        what = "dtype: float16 without fp16: true trains without loss scaling: small gradients vanish"
        yield report_key(recipe, "model.dtype", what, "write fp16: true beside it, or dtype: bfloat16")


def fp16_with_the_checkpoints_dtype(recipe: Recipe) -> Iterator[Diagnostic]:
    """transformers 5 loads "auto" as the checkpoint is; a 16-bit one breaks the scaler (see the two rules above)."""
    if recipe.get("model.dtype") == "auto" and is_true(recipe, "fp16") and not has_section(recipe, "LoraConfig"):
        what = "dtype: auto with fp16: true fails at step 1 if the checkpoint is in 16 bits"
        yield report_key(recipe, "model.dtype", what, "write dtype: float32")


def masters_and_what_refuses_them(recipe: Recipe) -> Iterator[Diagnostic]:
    """`master_weights` is ours (hf_recipes/training/master_weights.py): each refusal with its reason."""
    if recipe.get("master_weights") is not True:
        return
    where = "master_weights"
    if not is_true(recipe, "fp16"):
        fix = "write fp16: true beside it, or leave master_weights out"
        yield report_key(recipe, where, "master_weights is the O2 of fp16, and fp16 is not true", fix)
    if has_section(recipe, "LoraConfig"):
        what = "master_weights with LoraConfig: the adapter's weights are fp32 already, the base is frozen"
        yield report_key(recipe, where, what, "leave master_weights out, and fp16: true is enough")
    if has_section(recipe, "BitsAndBytesConfig"):
        what = "master_weights with BitsAndBytesConfig: quantised weights are not trained, so they have no masters"
        yield report_key(recipe, where, what, "leave master_weights out")
    if gemma_generation(recipe):
        yield report_key(recipe, where, f"master_weights with a Gemma: {OVERFLOW}", "write bf16: true instead")
    for key in ("fsdp", "deepspeed"):
        if is_given(recipe, key):
            what = f"master_weights with {key}: it needs complete fp32 copies, {key} shards them"
            yield report_key(recipe, where, what, "write bf16: true instead")
    optim = text_of(recipe, "optim")
    if "optim" in recipe.training and optim and optim not in MASTER_OPTIMIZERS:
        what = f"master_weights with optim: {optim}: only {', '.join(MASTER_OPTIMIZERS)} are tested on fp32 masters"
        yield report_argument(recipe, "optim", what, "use one of them")
    dtype = recipe.get("model.dtype")
    if dtype not in (None, "float16", "float32"):  # loaded in either, the model is cast to float16
        what = f"master_weights with dtype: {dtype}: the model's own weights are float16 then"
        yield report_key(recipe, "model.dtype", what, "write dtype: float32, or leave it out")


ERRORS: tuple[Rule, ...] = (
    fp16_with_bf16,
    fp16_for_gemma,
    fp16_scaler_with_bf16_weights,
    fp16_weights_without_masters,
    masters_and_what_refuses_them,
)
WARNINGS: tuple[Rule, ...] = (
    fp16_for_an_unknown_gemma,
    fp16_adapters_without_scaling,
    fp16_with_the_checkpoints_dtype,
)
