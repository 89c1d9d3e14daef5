"""`hf-recipes <verb>`: nothing but parsing. A verb imports what it needs when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from hf_recipes import __version__
from hf_recipes.errors import RecipeError

USER_ERROR = 2
SORTS = ("age", "name", "status", "task", "model", "metric", "memory", "speed")  # of commands/runs.py


class Verbs(click.Group):
    """Names the nearest verb for a misspelled one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.commands, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(self.commands)}"
            ctx.fail(f"hf-recipes has no verb {args[0]!r}; {fix}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hf-recipes")
def verbs() -> None:
    """Fine-tuning from one YAML file whose sections are the keyword arguments of the upstream classes they name."""


@verbs.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option("--smoke", is_flag=True, help="Two real steps on a CPU with a narrow model and generated rows.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in output_dir.")
@click.option("--restart", default=0, type=click.IntRange(min=0), metavar="N", help="Start again after a crash.")
@click.option("--no-plan", is_flag=True, help="Do not ask plan first whether it fits the card.")
def run(recipe: str, overrides: tuple[str, ...], smoke: bool, resume: bool, restart: int, no_plan: bool) -> None:
    """Train what RECIPE says; evaluate, record, and push if it says so."""
    from hf_recipes.commands.run import command

    command(recipe, overrides, smoke=smoke, resume=resume, restart=restart, plan_first=not no_plan)


@verbs.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--set", "overrides", multiple=True, metavar="Section.key=value", help="An override, as `run` takes it.")
def check(recipes: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Refuse a wrong recipe in under a second: every fault at once, each with its line and its mend."""
    from hf_recipes.commands.check import check as judge

    errors = 0
    for path in recipes:
        lines, found = judge(path, overrides)
        errors += found
        for line in lines:
            click.echo(line)
    if errors:
        sys.exit(USER_ERROR)


@verbs.command()
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Print the new text instead of writing it.")
def upgrade(recipe: str, dry_run: bool) -> None:
    """Rewrite RECIPE's dropped keys in today's words; comments and order are kept."""
    from hf_recipes.commands.check import upgrade_file

    for line in upgrade_file(recipe, dry_run=dry_run):
        click.echo(line)


@verbs.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option("--gpu", default=None, metavar="NAME", help="A card of hf_recipes/catalog/gpus.py, such as rtx-3070.")
@click.option("--memory", default=None, metavar="8GiB", help="Or a card of this memory.")
@click.option("--compute-capability", "capability", default=None, metavar="8.9", help="With --memory; 8.6 if absent.")
@click.option("--cpu", is_flag=True, help="Plan a run on this machine's CPU.")
@click.option("--smoke", is_flag=True, help="Plan what `run --smoke` runs.")
@click.option("--length", default=None, type=click.IntRange(min=1), help="Tokens of the longest row.")
@click.option("--read-data/--no-data", default=None, help="Read the data for its longest row: always; never.")
@click.option("--measure", is_flag=True, help="Run the steps for real on this machine's card (or --cpu), and compare.")
@click.option("--processes", default=None, type=click.IntRange(min=1), help="Cards that train together (DDP).")
@click.option("--config_file", default=None, metavar="FILE", help="accelerate's own: DDP, FSDP or DeepSpeed.")
@click.option("--price", default=None, type=click.FloatRange(min=0), help="Of an hour on the card: the run's cost.")
@click.option("--search", is_flag=True, help="The largest micro-batch that fits, for each of several lengths.")
@click.option("--write", default=None, metavar="FILE", help="Write the recipe that --search recommends, comments kept.")
@click.option("--advice/--no-advice", "with_advice", default=True, help="Look for changes that fit where it does not.")
@click.option("--svg", default=None, metavar="FILE", help="Draw the card's memory.")
@click.option("--json", "as_json", is_flag=True, help="For tools.")
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool, **words: Any) -> None:
    """Peak GPU memory and time of RECIPE on a card, without a GPU or weights; exit status 1 if it does not fit."""
    from hf_recipes.commands.plan import command

    lines, fits = command(recipe, overrides, as_json=as_json, **words)
    click.echo("\n".join(lines))
    if not fits:
        sys.exit(1)


@verbs.command()
@click.option("--recipes", "folder", default="recipes", metavar="DIR", help="Whose recipes are the matrix.")
@click.option("--output", default="recipes/results/lab", metavar="DIR", help="Where the records go.")
@click.option("--minutes", default=9.0, type=click.FloatRange(min=0.1), help="Of this call; the next one goes on.")
@click.option("--cpu", is_flag=True, help="A tiny matrix on this machine's CPU.")
@click.option("--dry", is_flag=True, help="List the cells.")
@click.option("--predict", metavar="GPU", help="Make predictions alone, for a card that is not here (h100).")
def lab(**words: Any) -> None:
    """Measure recipes on this machine's card beside plan's predictions, and keep records."""
    from hf_recipes.plan.measure.runner import lab as work

    work(**words, say=click.echo)


@verbs.command()
def schema() -> None:
    """Print the JSON Schema of the installed versions, so that an editor completes and marks keys."""
    import json

    from hf_recipes.recipe.schema.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=1, ensure_ascii=False))


@verbs.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN_A RUN_B...")
@click.option("--metric", default=None, metavar="NAME", help="Only this one; the task's own if absent.")
@click.option("--split", default="eval", type=click.Choice(["eval", "test"]), help="The evaluation that is compared.")
@click.option("--common", is_flag=True, help="Over the examples that all runs have, where their data differ.")
@click.option("--group", default=None, type=click.Choice(["recipe"]), help="Compare recipes over their seeds.")
@click.option("--resamples", default=10_000, type=click.IntRange(min=100), help="Of the bootstrap and of the test.")
@click.option("--seed", default=0, help="Of the resampling: the same seed gives the same numbers.")
@click.option("--output", default=None, metavar="DIR", help="Write compare.md, compare.html and compare.json there.")
@click.option("--json", "as_json", is_flag=True, help="For tools.")
def compare(runs: tuple[str, ...], **words: Any) -> None:
    """Is RUN_B better than RUN_A? Paired statistics on their examples; "cannot tell" is an answer."""
    from hf_recipes.commands.compare import command

    click.echo("\n".join(command(runs, **words)))


@verbs.command()
@click.argument("folder", default="runs", metavar="[DIR]")
@click.option("--sort", default="age", type=click.Choice(SORTS), help="Best, smallest or newest first.")
@click.option("--json", "as_json", is_flag=True, help="For tools.")
def runs(folder: str, sort: str, as_json: bool) -> None:
    """List the runs in DIR: status, metric with its interval, peak memory, tokens a second, age."""
    from hf_recipes.commands.runs import command

    click.echo("\n".join(command(folder, sort=sort, as_json=as_json)))


@verbs.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option("--set", "sets", multiple=True, required=True, metavar="Section.key=a,b", help="Values of the grid.")
@click.option("--seeds", default=1, type=click.IntRange(min=1), help="Runs of each, counted up from the recipe's seed.")
@click.option("--output", default=None, metavar="DIR", help="Of the runs and the report; output_dir-sweep if absent.")
@click.option("--config_file", default=None, metavar="FILE", help="accelerate's own, for every run.")
@click.option("--dry-run", is_flag=True, help="List the runs and what is left of them.")
def sweep(recipe: str, overrides: tuple[str, ...], **words: Any) -> None:
    """Run RECIPE with every combination of values, one after another, and compare. The same command goes on."""
    from hf_recipes.commands.sweep import sweep as work

    if not work(recipe, overrides, say=click.echo, **words):
        sys.exit(1)


@verbs.command()
@click.argument("run_dir")
@click.option("--steps", default=0, type=click.IntRange(min=0), help="Replay at least so many of the last steps.")
@click.option("--no-replay", is_flag=True, help="Look at the files only.")
def verify(run_dir: str, steps: int, no_replay: bool) -> None:
    """Are a run's checkpoints as they were written, and do its last steps come out the same again? Else status 1."""
    from hf_recipes.commands.verify import verify as judge

    if not judge(run_dir, steps=steps, replay=not no_replay, say=click.echo):
        sys.exit(1)


@verbs.command()
@click.argument("run_dir")
@click.option("--repo", default=None, metavar="ORG/NAME", help="Default: hub_model_id, else the folder's name.")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
def push(run_dir: str, repo: str | None, private: bool) -> None:
    """Put a finished run on the Hub: adapter or model, tokenizer, card, record."""
    from hf_recipes.hub.push import push_command

    click.echo(push_command(run_dir, repo, private))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a verb. What the user can mend is shown without a traceback and ends with exit code 2."""
    import os

    prefix = f"[rank {os.environ['RANK']}] " if os.environ.get("RANK", "0") != "0" else ""
    try:
        verbs.main(args=None if arguments is None else list(arguments), prog_name="hf-recipes", standalone_mode=False)
    except RecipeError as error:
        for each in error.errors:
            click.echo(f"{prefix}error: {each}", err=True)
        sys.exit(USER_ERROR)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as problem:
        click.echo(f"{prefix}stopped", err=True)
        # click makes an Abort of every KeyboardInterrupt; guards/signals.Stopped knows its signal, else it is Ctrl-C
        sys.exit(128 + getattr(problem.__cause__ or problem, "number", 2))


if __name__ == "__main__":
    main()
