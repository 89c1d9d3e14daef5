"""The commands that are given a run's folder: only parsing, as in cli.py, which adds them to `hf-recipes`."""

from __future__ import annotations

import sys
from typing import Any

import click

from hf_recipes.commands.arguments import PATH, whole

SORTS = ("age", "name", "status", "task", "model", "metric", "memory", "speed")  # of commands/runs.py


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN_A RUN_B...")
@click.option("--metric", default=None, metavar="NAME", help="Compare this metric only; default: the task's metrics.")
@click.option(
    "--split", default="eval", type=click.Choice(["eval", "test"]), help="The split whose evaluation is compared."
)
@click.option("--common", is_flag=True, help="Use only the examples that all runs have, where their data differ.")
@click.option("--group", default=None, type=click.Choice(["recipe"]), help="Compare recipes over their seeds.")
@click.option("--resamples", default=10_000, type=whole(100, 10**6), help="Resamples of the bootstrap and of the test.")
@click.option(
    "--seed", default=0, type=whole(0, 2**32 - 1), help="Seed of the resampling; the same seed gives the same numbers."
)
@click.option(
    "--output", default=None, type=PATH, metavar="DIR", help="Write compare.md, compare.html and compare.json there."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(runs: tuple[str, ...], **options: Any) -> None:
    """Test whether RUN_B is better than RUN_A. Paired statistics over the same examples; "cannot tell" is an answer."""
    from hf_recipes.commands.compare import command

    click.echo("\n".join(command(runs, **options)))


@click.command()
@click.argument("folder", default="runs", type=PATH, metavar="[DIR]")
@click.option(
    "--sort", default="age", type=click.Choice(SORTS), help="Sort by this column: best, smallest or newest first."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", default=None, type=PATH, metavar="FILE", help="Write a page of all runs: filter, sort, curves.")
def runs(folder: str, **options: Any) -> None:
    """List the runs in DIR. Status, metric with its interval, peak memory, tokens per second, age."""
    from hf_recipes.commands.runs import command

    click.echo("\n".join(command(folder, **options)))


@click.command()
@click.argument("run_dir", type=PATH, metavar="RUN")
@click.option("--data", required=True, type=PATH, metavar="FILE", help="A data file, a data set's folder or Hub id.")
@click.option("--output", default=None, type=PATH, metavar="DIR", help="Default: RUN/evaluations/NAME_OF_FILE.")
@click.option("--batch-size", default=None, type=whole(1, 100_000), help="Default: the run's own.")
@click.option("--base-model", default=None, metavar="PATH", help="Base model of an adapter, where the run's is gone.")
@click.option("--task", default=None, metavar="TASK", help="Of a model folder whose task is not known.")
@click.option("--cpu", is_flag=True, help="Compute on the CPU.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Also this: exact_match, rouge, bleu (chat), or an evaluate module: its folder or Hub id.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run the code of a metric of the Hub.")
@click.option("--set", "overrides", multiple=True, metavar="dataset.key=value", help="How the file is read.")
def evaluate(run_dir: str, data: str, **options: Any) -> None:
    """Evaluate the model of RUN on other data. Writes a record and per-example scores that `compare` reads."""
    from hf_recipes.commands.evaluate import command

    command(run_dir, data, **options, say=click.echo)


@click.command()
@click.argument("run_dir", type=PATH, metavar="RUN")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--file", default=None, type=PATH, metavar="FILE", help="Rows of a .txt, .jsonl, .csv or .parquet file.")
@click.option("--output", default=None, type=PATH, metavar="FILE", help="Write the JSON lines there.")
@click.option("--batch-size", default=32, type=whole(1, 100_000), help="Rows that are computed together.")
@click.option("--max-new-tokens", default=None, type=whole(1, 10**6), help="The longest continuation, in tokens.")
@click.option(
    "--set", "overrides", multiple=True, metavar="Section.key=value",
    help="GenerationConfig: how text is generated; dataset: how --file is read.",
)  # fmt: skip
@click.option("--base-model", default=None, metavar="PATH", help="Base model of an adapter, where the run's is gone.")
@click.option("--task", default=None, metavar="TASK", help="Of a model folder whose task is not known.")
@click.option("--cpu", is_flag=True, help="Compute on the CPU.")
def predict(run_dir: str, texts: tuple[str, ...], **options: Any) -> None:
    """Print what the model of RUN says of each text, as JSON lines. Texts are arguments, lines of stdin, or --file.

    Labels with probabilities, entities with their characters, or continuations.
    """
    from hf_recipes.commands.predict import command

    command(run_dir, texts, **options)


@click.command()
@click.argument("run_dir", type=PATH, metavar="RUN")
@click.option("--system", default=None, metavar="TEXT", help="A system prompt.")
@click.option("--beside", default=None, type=click.Choice(["base"]), help="Print the base model's answer, too.")
@click.option("--max-new-tokens", default=None, type=whole(1, 10**6), help="The longest answer, in tokens.")
@click.option("--set", "overrides", multiple=True, metavar="GenerationConfig.key=value", help="How text is generated.")
@click.option("--base-model", default=None, metavar="PATH", help="Base model of an adapter, where the run's is gone.")
@click.option("--task", default=None, metavar="TASK", help="Of a model folder whose task is not known.")
@click.option("--cpu", is_flag=True, help="Compute on the CPU.")
def chat(run_dir: str, **options: Any) -> None:
    """Talk to the model of RUN. Prompts are rendered by the template that it was trained with."""
    from hf_recipes.commands.chat import command

    command(run_dir, **options)


@click.command()
@click.argument("run_dir", type=PATH, metavar="RUN")
@click.option("--output", default=None, type=PATH, metavar="DIR", help="Default: RUN-merged.")
@click.option("--dtype", default=None, type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights.")
@click.option("--data", default=None, type=PATH, metavar="FILE", help="Evaluate before and after on these rows.")
@click.option("--base-model", default=None, metavar="PATH", help="Base model of an adapter, where the run's is gone.")
@click.option("--cpu", is_flag=True, help="Compute on the CPU.")
def merge(run_dir: str, **options: Any) -> None:
    """Add the adapter of RUN to its base model's full-precision weights. Reads the result back and compares."""
    from hf_recipes.commands.merge import command

    command(run_dir, **options, say=click.echo)


@click.command()
@click.argument("run_dir", type=PATH)
@click.option("--steps", default=0, type=whole(0, 10**9), help="Replay at least this many of the last steps.")
@click.option("--no-replay", is_flag=True, help="Check the files only.")
def verify(run_dir: str, steps: int, no_replay: bool) -> None:
    """Check a run's checkpoints, and replay its last steps. Exit status 1 if a file or a number differs."""
    from hf_recipes.commands.verify import verify as verify_run

    if not verify_run(run_dir, steps=steps, replay=not no_replay, say=click.echo):
        sys.exit(1)


@click.command()
@click.argument("run_dir", type=PATH)
@click.option(
    "--repo", default=None, metavar="ORG/NAME", help="Repository name; default: hub_model_id, else the folder's name."
)
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option("--diverged", is_flag=True, help="Push a run that diverged, too.")
@click.option(
    "--base-model", default=None, metavar="ORG/NAME", help="Hub id of the base model, if the run names only its folder."
)
def push(run_dir: str, repo: str | None, private: bool, diverged: bool, base_model: str | None) -> None:
    """Upload a finished run to the Hub. Adapter or model, tokenizer, model card, record."""
    from hf_recipes.hub.push import push_command

    click.echo(push_command(run_dir, repo, private, diverged, base_model))


COMMANDS = (compare, runs, evaluate, predict, chat, merge, verify, push)
