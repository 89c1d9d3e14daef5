"""`hf-recipes run`: the pipeline in this process, or under a supervisor that starts it again after a crash."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


def command(
    recipe: str, overrides: Sequence[str], *, smoke: bool, resume: bool, restart: int, plan_first: bool
) -> None:
    """Trains what the recipe says. `restart`: how often a crashed run is started again; 0 runs it in this process.

    Raises RecipeError for what the user can fix; with `restart`, ends the process with the last run's exit status.
    """
    if restart:
        from hf_recipes.commands.restart import supervise

        flags = {"--smoke": smoke, "--resume": resume, "--no-plan": not plan_first}
        sys.exit(supervise(recipe, overrides, [flag for flag, on in flags.items() if on], restart, say=click.echo))
    from hf_recipes.common.parent_watch import watch_parent
    from hf_recipes.pipeline.run import run

    watch_parent()
    run(recipe, overrides, smoke=smoke, resume=resume, planned=plan_first)
