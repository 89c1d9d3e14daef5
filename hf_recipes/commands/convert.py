"""`hf-recipes convert`: the recipe that a file of another tool asks for. Imports neither torch nor transformers."""

from __future__ import annotations

import os

from hf_recipes.common.files import put_output
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.convert import convert_file, recipe_text


def command(path: str, tool: str, output: str | None) -> list[str]:
    """Writes the recipe, and returns a line for each key of the file: what it became, or why it became nothing.

    Raises RecipeError where no recipe can be made, and for an `output` that is there already and was not named.
    """
    target = output or f"{os.path.splitext(os.path.basename(path))[0]}-recipe.yaml"
    if output is None and os.path.exists(target):
        raise RecipeError.at(target, "is there already", "name another file with --output, or this one to replace it")
    made = convert_file(path, tool)
    try:
        put_output(target, recipe_text(made))
    except OSError as problem:
        raise RecipeError.at(target, f"cannot be written: {problem.strerror}", "name another --output") from None
    width = max((len(key) for key in made.fates), default=0)
    lines = [f"{key:{width}}  {fate}: {line}" for key, (fate, line) in made.fates.items()]
    lines += [f"warning: {warning}" for warning in made.warnings]
    counts = ", ".join(f"{made.count(fate)} {fate}" for fate in ("translated", "left out", "not translated"))
    return [*lines, f"{target}: written from a file of {made.tool} ({counts}); `hf-recipes check {target}`"]
