"""`hf-recipes <command>`: only parsing. A command imports what it needs when it is called."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from hf_recipes import __version__
from hf_recipes.commands import of_runs
from hf_recipes.commands.arguments import LAUNCH_FILE, PATH, PATH_TO_WRITE, RECIPE, Number, check_text, whole
from hf_recipes.common.output import lost_output, protect_output
from hf_recipes.errors import RecipeError

BEGAN = time.monotonic() - time.process_time()  # of a process whose entry this is: Python's start counts
USER_ERROR = 2
TOOLS = ("TRL", "axolotl", "LLaMA-Factory")  # of catalog/other_tools.py


class Commands(click.Group):
    """Names the nearest command for a misspelled one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from hf_recipes.common.text import nearest

            near = nearest(args[0], self.commands)
            fix = f"did you mean {near!r}?" if near else f"the commands are {', '.join(self.commands)}"
            ctx.fail(f"hf-recipes has no command {args[0]!r}; {fix}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hf-recipes")
def commands() -> None:
    """Fine-tune a model from one YAML file whose sections are the keyword arguments of transformers, trl and peft."""


@commands.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option("--smoke", is_flag=True, help="Run two real steps on the CPU with a narrow model and generated rows.")
@click.option("--resume", is_flag=True, help="Resume from the latest complete checkpoint, if there is one.")
@click.option("--restart", default=0, type=whole(0, 10_000), metavar="N", help="Restart up to N times after a crash.")
@click.option("--no-plan", is_flag=True, help="Skip the check that the run fits the GPU's memory.")
@click.option("--log-file", default=None, type=PATH, metavar="FILE", help="Append what is printed to this file.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Load metrics of the recipe from the Hub: programs that run here."
)
def run(recipe: str, overrides: tuple[str, ...], no_plan: bool, **options: Any) -> None:
    """Train RECIPE, evaluate, write the record. Push if the recipe asks for it."""
    from hf_recipes.commands.run import command

    command(recipe, overrides, plan_first=not no_plan, **options)


@commands.command()
@click.argument("recipes", nargs=-1, required=True, type=RECIPE, metavar="RECIPE...")
@click.option("--set", "overrides", multiple=True, metavar="Section.key=value", help="Override one value, as in `run`.")
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
def check(recipes: tuple[str, ...], overrides: tuple[str, ...], strict: bool) -> None:
    """Show every error and warning in RECIPE, with its line and its fix. Takes under a second, needs no GPU."""
    from hf_recipes.commands.check import check as check_recipe
    from hf_recipes.common.secrets import mask_secrets

    errors = 0
    for path in recipes:
        lines, count = check_recipe(path, overrides, strict=strict)
        errors += count
        for line in lines:
            click.echo(mask_secrets(line))
    if errors:
        sys.exit(USER_ERROR)


@commands.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
def prepare(recipe: str, overrides: tuple[str, ...]) -> None:
    """Tokenize the data of RECIPE and store the rows, which its run then finds. Needs no GPU; can be continued."""
    from hf_recipes.commands.prepare import command

    command(recipe, overrides, say=click.echo)


@commands.command("inspect")
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option(
    "--near-duplicates", default=5_000, type=whole(0, 10**7), metavar="ROWS", help="Rows of a split to search; 0: none."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_data(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Show lengths, losses, padding and copies in the data of RECIPE. Exit status 1 if something should be changed."""
    from hf_recipes.commands.inspect import command

    if not command(recipe, overrides, **options, say=click.echo):
        sys.exit(1)


@commands.command()
@click.argument("recipe", type=PATH)
@click.option("--dry-run", is_flag=True, help="Print the new text instead of writing it.")
def upgrade(recipe: str, dry_run: bool) -> None:
    """Rewrite old keys in RECIPE to current ones. Comments and order are kept."""
    from hf_recipes.commands.check import upgrade_file

    lines, text = upgrade_file(recipe, dry_run=dry_run)
    for line in lines:
        click.echo(line, err=dry_run)  # what is printed on stdout is the new text alone
    if dry_run:
        click.echo(text, nl=False)


@commands.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option("--minutes", default=2.0, type=Number(min=0.1), help="Try settings for about N minutes; default: 2.")
@click.option(
    "--output", default=None, type=PATH_TO_WRITE, metavar="FILE", help="The recipe to write; default: NAME-tuned.yaml."
)
@click.option("--all", "every", is_flag=True, help="Also packing, length grouping and tf32, which change a step.")
@click.option("--dry-run", is_flag=True, help="List what would be tried.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tune(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Try what could make RECIPE faster on this machine at equal loss, and write the recipe. Comments are kept."""
    from hf_recipes.commands.tune import command

    command(recipe, overrides, **options, say=click.echo)


@commands.command()
@click.argument("file", type=PATH)
@click.option("--from", "tool", default=None, type=click.Choice(TOOLS), help="The file's tool; default: by its keys.")
@click.option(
    "--output", default=None, type=PATH_TO_WRITE, metavar="FILE", help="The recipe to write; default: NAME-recipe.yaml."
)
def convert(file: str, tool: str | None, output: str | None) -> None:
    """Write the recipe that FILE of another tool asks for: TRL and alignment-handbook, axolotl, LLaMA-Factory."""
    from hf_recipes.commands.convert import command

    for line in command(file, tool or "", output):
        click.echo(line)


@commands.command()
@click.argument("recipe", type=RECIPE, required=False)
@click.argument("overrides", nargs=-1, metavar="[RECIPE]... [Section.key=value]...")
@click.option("--gpu", default=None, metavar="NAME", help="A GPU such as rtx-3070; `list` shows all.")
@click.option("--memory", default=None, metavar="8GiB", help="Or any GPU with this much memory.")
@click.option(
    "--compute-capability", "capability", default=None, metavar="8.9", help="Of the GPU given by --memory; default 8.6."
)
@click.option("--cpu", is_flag=True, help="Plan for this machine's CPU.")
@click.option("--smoke", is_flag=True, help="Plan what `run --smoke` runs.")
@click.option("--length", default=None, type=whole(1, 10**8), help="Length of the longest row in tokens.")
@click.option("--read-data/--no-data", default=None, help="Tokenize the data to find its longest row.")
@click.option("--measure", is_flag=True, help="Run real steps on this machine's GPU (or --cpu) and compare.")
@click.option("--processes", default=None, type=whole(1, 10**6), help="Number of GPUs that train together (DDP).")
@click.option(
    "--config_file",
    default=None,
    type=LAUNCH_FILE,
    metavar="FILE",
    help="An accelerate config file: DDP, FSDP or DeepSpeed.",
)
@click.option("--price", default=None, type=Number(min=0), help="GPU price per hour; prints the estimated cost.")
@click.option("--search", is_flag=True, help="Find the largest micro-batch that fits, for several lengths.")
@click.option(
    "--write",
    default=None,
    type=PATH_TO_WRITE,
    metavar="FILE",
    help="Write the recipe that --search recommends; comments are kept.",
)
@click.option("--advice/--no-advice", "with_advice", default=True, help="Look for changes that make it fit.")
@click.option(
    "--seconds",
    default=None,
    type=Number(min=1),
    help="Time limit for --search, or for finding changes that would fit.",
)
@click.option(
    "--svg",
    default=None,
    type=PATH_TO_WRITE,
    metavar="FILE",
    help="Write an SVG chart of memory use; with --search, a map of batch and length.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plan(began: float | None, recipe: str | None, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Predict peak GPU memory and time of RECIPE. Needs no GPU and no weights; exit status 1 if it does not fit."""
    from hf_recipes.commands.plan import command_for_each, list_gpus

    if options["gpu"] == "list":
        click.echo("\n".join(list_gpus()))
        return
    if recipe is None:
        raise click.MissingParameter(param_type="argument", param_hint="'RECIPE'")
    lines, fits = command_for_each(recipe, overrides, as_json=as_json, began=began, **options)
    click.echo("\n".join(lines))
    if not fits:
        sys.exit(1)


@commands.command()
@click.option(
    "--recipes", "folder", default="recipes", type=PATH, metavar="DIR", help="The folder of the recipes to measure."
)
@click.option("--output", default="recipes/results/lab", type=PATH, metavar="DIR", help="The folder for the records.")
@click.option("--minutes", default=9.0, type=Number(min=0.1), help="Stop after N minutes; run again to continue.")
@click.option("--cpu", is_flag=True, help="Measure a few tiny cells on this machine's CPU.")
@click.option("--dry", is_flag=True, help="List the cells and measure nothing.")
@click.option("--predict", metavar="GPU", help="Only predict, for a GPU that is not here (h100).")
@click.option("--speed", is_flag=True, help="Instead try what `tune` tries on shapes of Llama: 1B and 8B, LoRA, QLoRA.")
def lab(speed: bool, **options: Any) -> None:
    """Measure recipes on this GPU and compare with plan. Writes a record for each."""
    if speed:
        from hf_recipes.pipeline.tuning.lab import run_speed

        run_speed(**{name: options[name] for name in ("output", "minutes", "cpu", "dry")}, say=click.echo)
        return
    from hf_recipes.plan.measure.runner import run_lab as measure

    measure(**options, say=click.echo)


@commands.command()
def schema() -> None:
    """Print the JSON Schema of recipes. An editor completes and checks keys with it."""
    import json

    from hf_recipes.recipe.schema.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=1, ensure_ascii=False))


@commands.command()
@click.argument("recipe", type=RECIPE)
@click.argument("overrides", nargs=-1, metavar="[Section.key=value]...")
@click.option("--set", "sets", multiple=True, required=True, metavar="Section.key=a,b", help="A key and its values.")
@click.option("--seeds", default=1, type=whole(1, 10_000), help="Runs per setting, each with the next seed.")
@click.option(
    "--output",
    default=None,
    type=PATH,
    metavar="DIR",
    help="Folder of the runs and the report; default: output_dir-sweep.",
)
@click.option(
    "--config_file", default=None, type=LAUNCH_FILE, metavar="FILE", help="An accelerate config file for every run."
)
@click.option("--dry-run", is_flag=True, help="List the runs and the state of each.")
def sweep(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Run RECIPE with every combination of values, and compare. Run it again to continue."""
    from hf_recipes.commands.sweep import sweep as run_sweep

    if not run_sweep(recipe, overrides, say=click.echo, **options):
        sys.exit(1)


@commands.command()
@click.option(
    "--data", required=True, type=PATH, metavar="FILE", help="A csv, tsv, json, jsonl, parquet, txt or CoNLL."
)
@click.option("--output", default="recipe.yaml", type=PATH, metavar="FILE", help="The recipe; default: recipe.yaml.")
@click.option("--task", default=None, metavar="TASK", help="If the data do not say it.")
@click.option("--model", default=None, metavar="NAME", help="A Hub id, a folder, or scratch; default: a small one.")
@click.option(
    "--gpu", default=None, metavar="NAME", help="Choose a batch that fits it, by plan; default: what is here."
)
@click.option("--yes", is_flag=True, help="Ask nothing.")
def init(data: str, **options: Any) -> None:
    """Write a first recipe for the data in FILE. Looks at the rows, says what it takes them for."""
    from hf_recipes.commands.init import command

    def ask(what: str, answers: Sequence[str]) -> str:
        return str(click.prompt(what, type=click.Choice(list(answers))))

    if not command(data, **options, say=click.echo, ask=ask if sys.stdin.isatty() else None):
        sys.exit(USER_ERROR)


@commands.group(invoke_without_command=True)
@click.option("--presets", is_flag=True, help="List the shapes for `model.preset` instead.")
@click.pass_context
def recipes(context: click.Context, presets: bool) -> None:
    """List the recipes that come with the package, with what was measured. `recipes cp NAME` copies one."""
    if context.invoked_subcommand is None:
        from hf_recipes.commands.recipes import list_presets, list_recipes

        click.echo("\n".join(list_presets() if presets else list_recipes()))


@recipes.command("cp")
@click.argument("name")
@click.argument("target", default=None, required=False, type=PATH, metavar="[FILE]")
def copy_recipe(name: str, target: str | None) -> None:
    """Copy the recipe NAME into FILE, or into this folder, with the data that came with it."""
    from hf_recipes.commands.recipes import copy

    for line in copy(name, target):
        click.echo(line)


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Show versions, GPU, memory, disk, caches and tokens (not their values), and what is wrong with them."""
    from hf_recipes.commands.doctor import command

    lines, wrong = command(as_json=as_json)
    click.echo("\n".join(lines))
    if wrong:
        sys.exit(1)


for command_of_runs in of_runs.COMMANDS:
    commands.add_command(command_of_runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. An error that the user can fix is shown without a traceback; the exit status is then 2."""
    import os
    from importlib.util import find_spec

    prefix = f"[rank {os.environ['RANK']}] " if os.environ.get("RANK", "0") != "0" else ""
    protect_output()
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        for argument in given:
            check_text(argument)
        began = BEGAN if arguments is None else None  # time limits count from there
        commands.main(args=given, prog_name="hf-recipes", standalone_mode=False, obj=began)
        if lost_output() and given[:1] != ["run"]:  # a run is worth more than its log
            sys.exit(USER_ERROR)
    except RecipeError as error:
        from hf_recipes.common.secrets import mask_secrets

        for line in (*error.beside, *(f"error: {each}" for each in error.errors)):
            click.echo(f"{prefix}{mask_secrets(line)}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        from hf_recipes.common.secrets import mask_secrets

        shown: Any = error
        shown.message = mask_secrets(error.message)
        shown.show()
        sys.exit(error.exit_code)
    except ImportError as problem:
        missing = problem.name or ("torch" if "PyTorch" in str(problem) else "")
        if find_spec(missing.partition(".")[0] or "click") is not None:  # it is there: the error is another
            raise
        where = ": https://pytorch.org/get-started has the one for your GPU" if missing == "torch" else ""
        click.echo(f"{prefix}error: {missing} is not installed, and this command needs it{where}", err=True)
        sys.exit(USER_ERROR)
    except (click.Abort, KeyboardInterrupt) as problem:
        if isinstance(problem.__cause__, EOFError):  # click takes it for Ctrl-D at a prompt; here it is a file cut off
            raise problem.__cause__ from None
        click.echo(f"{prefix}stopped", err=True)
        # click makes an Abort of every KeyboardInterrupt; training/signals.Stopped knows its signal, else it is Ctrl-C
        sys.exit(128 + getattr(problem.__cause__ or problem, "number", 2))


if __name__ == "__main__":
    main()
