"""`hf-recipes run`: the pipeline in this process, or under a supervisor that starts it again after a crash."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


def command(
    recipe: str,
    overrides: Sequence[str],
    *,
    smoke: bool,
    resume: bool,
    restart: int,
    plan_first: bool,
    log_file: str | None = None,
    quiet: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Trains what the recipe says. `restart`: how often a crashed run is started again; 0 runs it in this process.
    `log_file`: what is printed, appended there; `quiet`: nothing but errors is printed;
    `trust_remote_code`: of metrics from the Hub.

    Raises RecipeError for what the user can fix; with `restart`, ends the process with the last run's exit status.
    """
    if restart:
        from hf_recipes.commands.restart import supervise

        flags = {"--smoke": smoke, "--resume": resume, "--no-plan": not plan_first, "--quiet": quiet,
                 "--trust-remote-code": trust_remote_code}  # fmt: skip
        given = [flag for flag, on in flags.items() if on] + (["--log-file", log_file] if log_file else [])
        sys.exit(supervise(recipe, overrides, given, restart, say=click.echo))
    from hf_recipes.common.device import rank
    from hf_recipes.common.log_file import printing_to
    from hf_recipes.common.parent_watch import watch_parent
    from hf_recipes.pipeline.run import run

    watch_parent()
    with printing_to(log_file if rank() == 0 else None, quiet=quiet):
        run(recipe, overrides, smoke=smoke, resume=resume, planned=plan_first, trusted=trust_remote_code)
