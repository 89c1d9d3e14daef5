"""`hf-recipes merge`: an adapter into the full-precision weights of its base model."""

from __future__ import annotations

from collections.abc import Callable

from hf_recipes.commands.predict import quiet_upstream
from hf_recipes.inference.trained import find_trained


def command(
    run_dir: str,
    *,
    output: str | None = None,
    dtype: str | None = None,
    data: str | None = None,
    base_model: str | None = None,
    cpu: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Prints what merging changed and where the model is. Raises RecipeError for what cannot be merged."""
    from hf_recipes.inference.merge import describe_merge, merge

    found = find_trained(run_dir)
    quiet_upstream()
    target = output or f"{run_dir.rstrip('/')}-merged"
    for line in describe_merge(merge(found, target, dtype=dtype, base_model=base_model, data=data, cpu=cpu, say=say)):
        say(line)
