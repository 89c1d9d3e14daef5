"""`hf-recipes inspect`: the numbers of a recipe's rows before its run, and what to change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hf_recipes.commands.predict import quiet_upstream
from hf_recipes.errors import RecipeError

if TYPE_CHECKING:
    from hf_recipes.pipeline.inspection import Inspection, SplitFacts

BAR = 40  # characters


def command(
    path: str,
    overrides: Sequence[str] = (),
    *,
    near_duplicates: int = 5_000,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Prints what was found; False if something should be changed. Raises RecipeError for what would stop the run."""
    from hf_recipes.data.splits import file_errors
    from hf_recipes.recipe.read import read_recipe

    recipe = read_recipe(path, overrides)
    errors = file_errors(recipe)
    if errors:
        raise RecipeError(errors)
    quiet_upstream()
    from hf_recipes.pipeline.inspection import inspect_rows
    from hf_recipes.pipeline.rows import prepare_rows_of, refuse_stream

    notes: list[str] = []
    refuse_stream(recipe)
    found = inspect_rows(prepare_rows_of(recipe, notes.append, check=False), near_duplicates, notes.append)
    if as_json:
        say(json.dumps(_as_json(found), indent=1))
    else:
        for line in describe(found, near_duplicates, colour=sys.stdout.isatty()):
            say(line)
    return not found.findings


def _as_json(found: Inspection) -> dict[str, Any]:
    values = asdict(found)
    for split, facts in found.splits.items():
        values["splits"][split]["lengths"] = None if facts.lengths is None else _histogram(facts)
    return values


def _histogram(facts: SplitFacts) -> list[tuple[int, int, int]]:
    from hf_recipes.data.row_measures import histogram

    assert facts.lengths is not None
    return histogram(facts.lengths)


def describe(found: Inspection, limit: int, *, colour: bool) -> Iterator[str]:
    """The lines that a user reads. `colour`: for a terminal; else what is learned stands in [[ ]]."""
    from hf_recipes.data import near_duplicates

    for split, facts in found.splits.items():
        yield f"{split:<8} {facts.rows:,} rows, {facts.tokens:,} tokens" + (
            f", {facts.repeated:,} of the {facts.compared:,} rows of the data repeat an earlier one"
            if facts.repeated
            else ""
        )
        if facts.quantiles:
            kept = ", ".join(f"{share} of the rows: {length:,}" for share, length in facts.quantiles.items())
            yield f"         length that keeps {kept} (max_length is {found.max_length:,})"
        if facts.rows_cut:
            lost = f", which loses {facts.lost:.1%} of what is learned" if facts.lost else ""
            yield f"         {facts.rows_cut:,} rows are cut{lost}"
    yield f"text     {found.bytes_per_token:.2f} bytes a token"
    if found.padding is not None:
        packed = "" if found.padding.packed is None else f", {found.padding.packed:.1%} packed"
        yield f"padding  {found.padding.random:.1%} of a batch, {found.padding.grouped:.1%} grouped by length{packed}"
    if found.near is not None:
        parts = [f"{split} {count:,} of {found.near.rows[split]:,}" for split, count in found.near.within.items()]
        parts += [f"{split} and train {n:,}" for split, n in found.near.between.items() if split != "train"]
        example = f", such as {found.near.example[0]} and {found.near.example[1]}" if found.near.example else ""
        yield f"near duplicates: {', '.join(parts)}{example}"
    elif limit and not near_duplicates.can_search():
        yield "near duplicates: not searched; pip install 'hf_recipes[inspect]'"
    train = found.splits["train"]
    if train.lengths is not None:
        yield "lengths of the train split, in tokens"
        rows = _histogram(train)
        most = max(count for _, _, count in rows)
        for low, high, count in rows:
            yield f"  {f'{low:,} to {high:,}':>17} {'#' * round(BAR * count / most):<{BAR}} {count:,}"
    for number, runs in enumerate(found.samples):
        yield f"train row {number}; what is learned is {'green' if colour else 'in [[ ]]'}"
        shown = (
            (click.style(text, fg="green") if colour else f"[[{text}]]") if learned else text for learned, text in runs
        )
        yield "  " + "".join(shown).replace("\n", "\n  ")
    for one in found.findings:
        yield f"finding: {one.what}; {one.fix}"
    if not found.findings:
        yield "nothing to change"
