"""`hf-recipes merge`: an adapter into the full-precision weights of its base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hf_recipes.commands.predict import quiet_upstream
from hf_recipes.commands.settings import options_in_fixes, read_settings
from hf_recipes.inference.trained import find_trained


def command(
    run_dir: str,
    *,
    output: str | None = None,
    dtype: str | None = None,
    data: str | None = None,
    base_model: str | None = None,
    cpu: bool = False,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Prints what merging changed and where the model is. Raises RecipeError for what cannot be merged."""
    from hf_recipes.inference.merge import describe_merge, merge

    found = replace(find_trained(run_dir), reading=read_settings(overrides, ("dataset",)).get("dataset", {}))
    quiet_upstream()
    target = output or f"{run_dir.rstrip('/')}-merged"
    with options_in_fixes():
        merged = merge(found, target, dtype=dtype, base_model=base_model, data=data, cpu=cpu, say=say)
    for line in describe_merge(merged):
        say(line)
