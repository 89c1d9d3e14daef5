"""What a trace's error means for the user: the recipe's line that causes it where `run` ends with it, too; else that
plan cannot follow the model. `run` is asked: a narrow copy of the model is trained for two steps on this CPU.

Runs in the tracing child.
"""

from __future__ import annotations

import os
import re
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_recipes.common.text import first_line
from hf_recipes.errors import Diagnostic

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

# What upstream says of a model that cannot do what the recipe asks -> the keys that ask for it, and how to fix it.
REFUSALS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        r"does not support (activation|gradient) checkpointing",
        ("gradient_checkpointing", "activation_checkpointing"),
        "remove gradient_checkpointing",
    ),
    (r"`flex_attention` does not support `dropout`", ("model.attn_implementation",), "write attn_implementation: sdpa"),
    (r"Unsupported dtype (BFloat16|Half)", ("bf16", "fp16", "model.dtype"), "train in float32: leave it out"),
)
# What is left out, one after the other, until the narrow copy trains.
SUSPECTS = ("BitsAndBytesConfig", "LoraConfig")
WORDS = 4  # an error of fewer words is no sentence


def explain(recipe: Recipe, problem: BaseException) -> Diagnostic:
    """One error at the line of the key that causes it."""
    text = first_line(problem)
    for pattern, keys, fix in REFUSALS:
        if re.search(pattern, text):
            dotted = [key if "." in key else f"{recipe.trainer}.{key}" for key in keys]
            stated = [key for key in dotted if recipe.get(key) not in (None, False)]
            location = recipe.location((stated or dotted)[0])
            return Diagnostic(location=location, message=f"transformers rejects it: {text.rstrip('.')}", fix=fix)
    failed = _narrow_run(recipe)
    if failed is None:
        what = f"plan cannot follow this model: {describe(problem)}"
        return Diagnostic(location=recipe.path, message=what, fix="`hf-recipes run --no-plan` trains without a plan")
    for section in SUSPECTS:
        if section in recipe.sections and _narrow_run(_without(recipe, section)) is None:
            what = f"this model cannot be trained with {section}: {describe(failed)}; `run` ends there, too"
            return Diagnostic(location=recipe.location(section), message=what, fix=f"leave {section} out")
    what = f"this model cannot be trained so: {describe(failed)}; `run` ends there, too"
    return Diagnostic(location=recipe.location("model"), message=what, fix="take another model, or fewer settings")


def describe(problem: BaseException) -> str:
    """What an error says if it is a sentence, and where it was raised."""
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if "hf_recipes" not in frame.filename]
    place = f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else "no place is known"
    text = first_line(problem).rstrip(".") if str(problem).strip() else ""
    known = isinstance(problem, KeyError) or len(text.split()) < WORDS
    return f"an error of {place}" if known else f"{text} ({place})"


def _narrow_run(recipe: Recipe) -> BaseException | None:
    """What two real steps of a narrow copy end with, None where they train."""
    from hf_recipes.plan.trace.trace import trace_here
    from hf_recipes.recipe.smoke import shrink

    try:
        small, _ = shrink(recipe, keep_precision=True)
        trace_here(small, cpu=True, real=True, evaluation=False)
    except Exception as problem:  # whatever it is, the run would end with it
        return problem
    return None


def _without(recipe: Recipe, section: str) -> Recipe:
    """An adapter's quantised weights go with it: they cannot be trained."""
    gone = {"LoraConfig": ("LoraConfig", "BitsAndBytesConfig")}.get(section, (section,))
    return replace(recipe, sections={name: value for name, value in recipe.sections.items() if name not in gone})
