"""`dataset.probabilities`: the files of the train split are data sets of their own, and rows are drawn from them.

datasets.interleave_datasets does it, for tables and streams: each row comes from the n-th entry of `data_files.train`
with the n-th probability, drawn by `dataset.seed`. `stopping_strategy` is upstream's: `first_exhausted` ends with the
first data set that has no row left, `all_exhausted` when all have been read, the short ones several times.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.common.text import first_line
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

DEFAULT_SEED = 42
SOURCE = "hf_recipes: source"  # a temporary column: no user's column has this name
LOOKED_AT = 1_000  # rows of a stream whose sources are counted


def is_mixture(recipe: Recipe) -> bool:
    return recipe.get("dataset.probabilities") is not None


def mix(recipe: Recipe, parts: Sequence[Any], names: Sequence[str]) -> tuple[Any, list[str]]:
    """The rows of all `parts` (tables, or streams), and a line with the share of each. Raises DataError for columns
    that differ, and for a part without a row."""
    import datasets

    location = recipe.location("dataset.probabilities")
    for name, part in zip(names, parts, strict=True):
        if not getattr(part, "num_rows", 1):
            raise DataError.at(
                recipe.location("dataset.data_files"), f"{name} has no rows", "add some, or leave it out"
            )
    columns = [set(part.column_names or next(iter(part.take(1)))) for part in parts]
    common = set.intersection(*columns)
    if any(one != common for one in columns):
        extra = sorted(set.union(*columns) - common)
        what = f"the data sets of the mixture differ in their columns: {', '.join(extra)} is not in all of them"
        raise DataError.at(location, what, "give all the same columns")
    try:
        mixed = datasets.interleave_datasets(
            [_mark(part, number) for number, part in enumerate(parts)],
            probabilities=[float(one) for one in recipe.get("dataset.probabilities")],
            seed=int(recipe.get("dataset.seed", DEFAULT_SEED)),
            stopping_strategy=recipe.get("dataset.stopping_strategy") or "first_exhausted",
        )
    except (ValueError, TypeError) as problem:
        raise DataError.at(location, f"interleave_datasets refuses: {first_line(problem)}") from problem
    table = isinstance(mixed, datasets.Dataset)
    counts = Counter(mixed[SOURCE] if table else (row[SOURCE] for row in itertools.islice(mixed, LOOKED_AT)))
    total = sum(counts.values())
    shares = ", ".join(f"{name} {counts[number] / total:.1%} ({counts[number]:,})" for number, name in enumerate(names))
    of = f"{total:,} rows" if table else f"its first {total:,} rows"
    return mixed.remove_columns(SOURCE), [f"train: a mixture; of {of}: {shares}"]


def _mark(part: Any, number: int) -> Any:
    if hasattr(part, "num_rows"):
        return part.add_column(SOURCE, [number] * part.num_rows)
    return part.map(_with_source, fn_kwargs={"number": number})


def _with_source(row: dict[str, Any], number: int) -> dict[str, Any]:
    return {**row, SOURCE: number}
