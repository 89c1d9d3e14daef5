"""The row of the user's file behind a row of a split: `test_size` shuffles the rows that it splits off.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from hf_recipes.data.files import file_names, open_file
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_recipes.recipe.recipe import Recipe

ROW = "hf_recipes: row"  # a temporary column: no user's column has this name
NAMED = re.compile(r"\brow (\d+) of the (train|eval) split\b")  # as every error of a row names it


@dataclass(frozen=True, kw_only=True)
class Origins:
    """How the rows were split. The numbers are drawn again when an error needs them, as they were drawn first."""

    rows: Dataset
    options: dict[str, Any]  # of Dataset.train_test_split
    file: str  # the one file of the rows; "" for several, and for a data set that is no file
    section: Mapping[str, Any]  # `dataset` of the recipe

    @cached_property
    def numbers(self) -> DatasetDict:
        return number_rows(self.rows, self.options["stratify_by_column"]).train_test_split(**self.options)

    def name_row(self, split: str, row: int) -> str:
        """ "row 5 of data/a.jsonl (line 6)"; rows are counted from 0, lines from 1 as editors do it."""
        found = int(self.numbers["test" if split == "eval" else "train"][row][ROW])
        line = _line_of(self.file, found, self.section) if self.file else 0
        return f"row {found} of {self.file or 'the data'}{f' (line {line})' if line else ''}"


def number_rows(rows: Dataset, by: str | None) -> Dataset:
    """The numbers of the rows, beside the column to stratify by as a ClassLabel, which upstream needs."""
    from datasets import ClassLabel, Dataset

    if by is None:
        return Dataset.from_dict({ROW: range(rows.num_rows)})
    one = rows.select_columns([by])
    one = one if isinstance(rows.features[by], ClassLabel) else one.class_encode_column(by)
    return one.add_column(ROW, range(rows.num_rows))


def one_file(recipe: Recipe) -> str:
    """The train split's file, where it is one on this machine."""
    found = file_names(recipe.get("dataset.data_files"), key="").items()
    names = [name for key, name in found if key.startswith(".train") or not key.startswith(".")]
    name = os.path.join(recipe.get("dataset.data_dir") or "", names[0]) if len(names) == 1 else ""
    return name if os.path.isfile(name) else ""


@contextmanager
def naming_rows_of_files(origins: Origins | None) -> Iterator[None]:
    """Errors of rows name the row of the user's file."""
    try:
        yield
    except DataError as problem:
        if origins is None:
            raise
        told = [replace(one, message=_rename(one.message, origins)) for one in problem.errors]
        raise type(problem)(told, problem.beside) from problem


def _rename(message: str, origins: Origins) -> str:
    return NAMED.sub(lambda found: origins.name_row(found[2], int(found[1])), message)


def _line_of(file: str, row: int, section: Mapping[str, Any]) -> int:
    """The line at which a row of a CSV or JSON Lines file begins; 0 where rows are no lines."""
    encoding = str(section.get("encoding") or "utf-8-sig")
    with open_file(file) as content:
        lines = (line.decode(encoding, errors="replace") for line in content)
        if section.get("path") == "csv" and not any(key in section for key in ("skiprows", "header", "comment")):
            header = not (section.get("column_names") or section.get("names"))
            return next(
                islice(_csv_lines(lines, section.get("delimiter") or section.get("sep") or ","), row + header, None), 0
            )
        if section.get("path") == "json" and not section.get("field"):
            full = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            first = next(full, (0, ""))
            if not first[1].lstrip().startswith("[") and first[1].rstrip().endswith("}"):
                return first[0] if row == 0 else next(islice(full, row - 1, None), (0, ""))[0]
    return 0


def _csv_lines(lines: Iterator[str], delimiter: str) -> Iterator[int]:
    """The first line of each row that is not empty."""
    reader = csv.reader(lines, delimiter=delimiter)
    begin = 1
    for cells in reader:
        if cells:
            yield begin
        begin = reader.line_num + 1
