"""CSV and TSV files: every column is read as text, and what cannot be right is refused before it is trained on.

pandas guesses: the text "null" becomes a missing value, the label 007 the number 7, a row with more fields than the
header shifts its columns, and an unbalanced quote swallows lines. Labels that are all written as numbers are numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes.data.files import open_file
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from hf_recipes.recipe.recipe import Recipe

DELIMITERS = (";", "\t", "|", ",")
MISSING = ("keep_default_na", "na_values", "na_filter")  # the recipe says itself what a missing value is
OWN_TYPES = ("features", "converters", "true_values", "false_values", "thousands", "decimal", "date_format")
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
HEAD = 50  # rows that are read for the columns


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The columns of a CSV file, and what pandas made of its first rows."""

    columns: list[str]
    first: list[str]  # the first row
    shifted: bool  # the rows have more fields than the header


def csv_arguments(recipe: Recipe, arguments: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """`arguments` of load_dataset with every column as text, and only an empty field missing.

    Raises DataError for another delimiter, and for a header that cannot be right.
    """
    found = dict(arguments)
    head = _read_head(files[0], arguments) if files else None
    if head is None or any(key in arguments for key in OWN_TYPES):
        return found
    _check_head(recipe, arguments, files[0], head)
    found["features"] = _texts(head.columns)
    if not any(key in arguments for key in MISSING):
        found["keep_default_na"] = False
    return found


def _texts(columns: Iterable[str]) -> Features:
    from datasets import Features, Value

    return Features({name: Value("string") for name in columns})


def _read_head(name: str, arguments: Mapping[str, Any]) -> _Head | None:
    """None for a file that pandas cannot read: load_dataset will say so."""
    import pandas as pd
    from datasets.packaged_modules.csv.csv import CsvConfig

    fields = CsvConfig.__dataclass_fields__
    given = {key: value for key, value in arguments.items() if key in fields and key not in ("data_files", "data_dir")}
    try:
        options = CsvConfig(**given).pd_read_csv_kwargs
        with open_file(name) as content:
            rows = pd.read_csv(
                content, **{**options, "nrows": HEAD, "chunksize": None, "dtype": str, "keep_default_na": False}
            )
    except Exception:  # readers may raise anything
        return None
    first = [str(value) for value in rows.iloc[0]] if len(rows) else []
    shifted = "index_col" not in arguments and not isinstance(rows.index, pd.RangeIndex)
    return _Head(columns=[str(column) for column in rows.columns], first=first, shifted=shifted)


def _check_head(recipe: Recipe, arguments: Mapping[str, Any], name: str, head: _Head) -> None:
    of_files = recipe.location("dataset.data_files")
    used = str(arguments.get("delimiter") or arguments.get("sep") or ",")
    if len(head.columns) == 1:
        for other in DELIMITERS:
            if other != used and other in head.columns[0]:
                what = f"{name} has one column, {head.columns[0]!r}: its delimiter is {other!r}, not {used!r}"
                raise DataError.at(of_files, what, f"write delimiter: {_shown(other)}")
    named = arguments.get("column_names") or arguments.get("names")
    if named and head.first == [str(column) for column in named]:
        what = f"{name} has a header, and column_names makes it a row"
        raise DataError.at(recipe.location("dataset.column_names"), what, "leave column_names out")
    if head.shifted:
        what = f"the rows of {name} have more fields than its header ({', '.join(head.columns)})"
        fix = f"put texts that hold {used!r} into quotes, complete the header, or write another delimiter"
        raise DataError.at(of_files, what, fix)


def _shown(delimiter: str) -> str:
    return '"\\t"' if delimiter == "\t" else f'"{delimiter}"'


def check_lines(recipe: Recipe, arguments: Mapping[str, Any], files: Sequence[str], rows: int) -> list[str]:
    """Notes on texts that hold line breaks. Raises DataError where an unbalanced quote made rows of several lines.

    `rows`: of all the files. Files with no more lines than that, and those read with `quoting`, are not looked at.
    """
    if "quoting" in arguments or arguments.get("lineterminator") or _is_wide(arguments.get("encoding")):
        return []
    header = 0 if arguments.get("column_names") or arguments.get("names") else len(files)
    if sum(map(_count_lines, files)) - header <= rows:
        return []
    notes: list[str] = []
    limit = csv.field_size_limit(2**31 - 1)  # a document is longer than the 128 KB of Python's default
    try:
        for name in files:
            notes += _check_quotes(recipe, arguments, name)
    except UnicodeError:  # packed in a way that is not opened here
        return []
    finally:
        csv.field_size_limit(limit)
    return notes


def _is_wide(encoding: Any) -> bool:
    return isinstance(encoding, str) and encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16"))


def _count_lines(name: str) -> int:
    """Lines with text in them."""
    with open_file(name) as lines:
        return sum(1 for line in lines if line.strip())


def _check_quotes(recipe: Recipe, arguments: Mapping[str, Any], name: str) -> list[str]:
    delimiter = str(arguments.get("delimiter") or arguments.get("sep") or ",")
    quote = str(arguments.get("quotechar") or '"')
    encoding = arguments.get("encoding") or "utf-8"
    if len(delimiter) != 1 or len(quote) != 1:
        return []
    several = lines_in_them = 0
    with open_file(name) as content, io.TextIOWrapper(content, encoding=encoding, newline="") as text:
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)
        width = 0
        while True:
            begun = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error:
                raise _unbalanced(recipe, name, begun, reader.line_num) from None
            if row is None:
                break
            width = width or len(row)
            count = reader.line_num - begun + 1
            if count > 1:
                whole = sum(line.count(delimiter) == width - 1 for line in lines.last[-count:])
                if whole == count and (count > 2 or delimiter == "\t") and width > 1:
                    raise _unbalanced(recipe, name, begun, reader.line_num)
                several, lines_in_them = several + 1, lines_in_them + count
            lines.last.clear()
    if not several:
        return []
    return [
        f"{name}: {several:,} rows have line breaks in their texts ({lines_in_them:,} lines of the file); if the "
        "quotes there are part of the texts, write quoting: 3"
    ]


def find_wide_row(name: str, arguments: Mapping[str, Any], width: int, fields: int) -> str:
    """ "data/a.csv:22", where the first row with so many fields begins; "" for a file that is not read here. pandas
    says the number of the row, which is another one behind a text with line breaks."""
    delimiter, quote = arguments.get("delimiter") or arguments.get("sep") or ",", arguments.get("quotechar") or '"'
    encoding = arguments.get("encoding") or "utf-8"
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open_file(name) as content, io.TextIOWrapper(content, encoding=encoding, newline="") as text:
            reader = csv.reader(
                text,
                delimiter=delimiter,
                quotechar=quote,
                quoting=arguments.get("quoting", csv.QUOTE_MINIMAL),
                escapechar=arguments.get("escapechar"),
                doublequote=arguments.get("doublequote", True),
            )
            begun, first = 1, 0
            for row in reader:
                first = first or len(row)
                if first == width and len(row) == fields:
                    return f"{name}:{begun}"
                begun = reader.line_num + 1
    except (OSError, EOFError, ValueError, TypeError, LookupError, csv.Error):
        return ""
    finally:
        csv.field_size_limit(limit)
    return ""


class _Lines:
    """The lines of a text, and those since `last` was emptied."""

    def __init__(self, text: Iterable[str]) -> None:
        self.text, self.last = iter(text), list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.text)
        self.last.append(line)
        return line


def _unbalanced(recipe: Recipe, name: str, begun: int, ended: int) -> DataError:
    what = f"{name}:{begun}: the quote that opens here makes one row of {ended - begun + 1:,} lines"
    fix = "write quoting: 3 (quotes are part of the texts), or close the quote and double those inside it"
    return DataError.at(recipe.location("dataset.data_files"), what, fix)


def with_types(parts: Mapping[str, Dataset], columns: Iterable[str], labels: Iterable[str]) -> dict[str, Dataset]:
    """The columns that are read, empty fields missing; labels as numbers where all splits write them so."""
    from datasets import Value

    found = {}
    for role, part in parts.items():
        texts = [name for name in columns if part.features.get(name) == Value("string")]
        found[role] = _without_empty(part, texts)
    for label in labels:
        having = {role: part for role, part in found.items() if part.features.get(label) == Value("string")}
        values = {value for part in having.values() for value in part.unique(label) if value is not None}
        whole = all(INTEGER.fullmatch(value) for value in values)
        if values and (whole or all(NUMBER.fullmatch(value) for value in values)):
            kind = Value("int64" if whole else "float64")
            found |= {role: part.cast_column(label, kind) for role, part in having.items()}
    return found


def _without_empty(part: Dataset, columns: list[str]) -> Dataset:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = part.data.table if hasattr(part.data, "table") else part.data
    empty = [name for name in columns if pc.any(pc.equal(table[name], "")).as_py()]
    if not empty:
        return part

    def clear(batch: pa.Table) -> pa.Table:
        for name in empty:
            column = pc.if_else(pc.equal(batch[name], ""), pa.scalar(None, batch[name].type), batch[name])
            batch = batch.set_column(batch.column_names.index(name), name, column)
        return batch

    return part.with_format("arrow").map(clear, batched=True, features=part.features).with_format(None)
