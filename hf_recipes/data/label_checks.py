"""Labels that contradict each other: warnings before training, each with a count and an example.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_recipes.common.text import format_value

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.row_origins import Origins

COMPARED = 200_000  # rows in which repeated ones are searched
LONGEST = 10_000  # labels among which similar ones are searched


def warn_of_labels(
    location: str,
    counts: Mapping[str, int],
    parts: Mapping[str, Dataset],
    inputs: Sequence[str],
    label: str,
    origins: Origins | None,
) -> tuple[str, ...]:
    """`counts`: of the train split; `inputs`: columns of what is labelled; `label`: the column of its label;
    `origins`: of rows that `test_size` split off, which are named as rows of their file."""
    lines = [*_similar_labels(counts)]
    for split, part in parts.items():
        name = partial(origins.name_row, split) if origins and split in ("train", "eval") else _name_row
        lines += _repeated_rows(split, part, inputs, label, name)
    return tuple(f"warning: {location}: {line}" for line in lines)


def _similar_labels(counts: Mapping[str, int]) -> Iterator[str]:
    """Labels that differ only by case or blanks: two classes that were meant to be one."""
    alike: dict[str, list[str]] = {}
    for name in list(counts)[:LONGEST]:
        alike.setdefault("".join(name.split()).casefold(), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return
    shown = ", ".join(f"{name!r} ({counts[name]:,})" for name in groups[0])
    several = f"; {len(groups) - 1:,} more such groups" if len(groups) > 1 else ""
    yield f"labels differ only by case or blanks, and are classes of their own: {shown}{several}"


def _name_row(row: int) -> str:
    return f"row {row}"


def _repeated_rows(
    split: str, part: Dataset, inputs: Sequence[str], label: str, name: Callable[[int], str]
) -> Iterator[str]:
    """Rows that stand there twice, and inputs that stand under several labels."""
    seen: dict[Any, dict[Any, int]] = {}  # input -> label -> its first row
    repeated, torn = 0, 0
    repeat = conflict = ""
    part = part.select(range(min(part.num_rows, COMPARED)))
    row = 0
    for batch in part.select_columns([*inputs, label]).iter(10_000):
        texts = zip(*(batch[name] for name in inputs), strict=True)
        for text, value in zip(texts, batch[label], strict=True):
            found = _hashable(value)
            labels = seen.setdefault(_hashable(text), {})
            if found in labels:
                repeated += 1
                repeat = repeat or f"{name(row)} is {name(labels[found])}, {_show(text)}"
            elif labels:
                torn += len(labels) == 1
                other, first = next(iter(labels.items()))
                conflict = conflict or (
                    f"{_show(text)} is {format_value(_plain(other))} in {name(first)} "
                    f"and {format_value(_plain(found))} in {name(row)}"
                )
            labels.setdefault(found, row)
            row += 1
    if repeated:
        yield f"{split}: {repeated:,} of {part.num_rows:,} rows repeat an earlier one exactly, such as: {repeat}"
    if torn:
        yield f"{split}: {torn:,} texts stand under more than one label, such as: {conflict}"


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return tuple(sorted(value.items())) if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _show(text: tuple[Any, ...]) -> str:
    """The input in a few characters; words joined."""
    parts = [" ".join(map(str, one)) if isinstance(one, list | tuple) else str(one) for one in text]
    return format_value(" | ".join(parts))
