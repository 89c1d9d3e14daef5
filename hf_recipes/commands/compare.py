"""`hf-recipes compare`: runs to a comparison, and the comparison to lines and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from hf_recipes.common.files import put
from hf_recipes.compare import text
from hf_recipes.compare.pairing import WHERE, pair_runs
from hf_recipes.compare.runs import read_runs
from hf_recipes.compare.verdict import Comparison, compare, group_sides
from hf_recipes.errors import OutputDirError, RecipeError


def command(
    paths: Sequence[str],
    *,
    metric: str | None = None,
    split: str = "eval",
    common: bool = False,
    group: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    output: str | None = None,
    as_json: bool = False,
) -> list[str]:
    """What to print. Raises RecipeError for runs that cannot be compared."""
    if len(paths) < 2:
        raise RecipeError.at(WHERE, "a comparison needs two runs or more", "name another run")
    warnings: list[str] = []
    runs = read_runs(paths, lambda error: warnings.append(f"warning: left out: {error}"))
    sides = group_sides(runs, group is not None)
    paired = pair_runs(runs, split=split, common=common, metric=metric)
    found = compare(paired, sides, resamples=resamples, seed=seed)
    written = [] if output is None else write(found, Path(output))
    if as_json:
        for line in warnings:
            click.echo(line, err=True)
        return [json.dumps(text.comparison_to_json(found), indent=1)]
    return [*warnings, *text.describe_comparison(found), *written]


def write(comparison: Comparison, folder: Path) -> list[str]:
    """Writes compare.md, compare.html and compare.json; returns a line for each."""
    from hf_recipes.report import of_comparison, writing

    try:
        written = writing.write_report_files(of_comparison.build_report(comparison), folder, "compare")
        written.append(put(folder / "compare.json", json.dumps(text.comparison_to_json(comparison), indent=1) + "\n"))
    except OSError as problem:
        raise OutputDirError.at(
            "argument '--output'", f"{str(folder)!r} cannot be written ({problem.strerror})", "choose another"
        ) from None
    return ["", *(f"written: {path}" for path in written)]
