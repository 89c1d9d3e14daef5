"""The columns of local data files, by their first rows: `check` compares them with the recipe.

Only the standard library is imported, and pyarrow for parquet files. What is unclear is left to the run, which reads
every row: None.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.other_tools import PREFERENCE_COLUMNS
from hf_recipes.common.text import nearest
from hf_recipes.data.files import COMPRESSED, file_names
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.schema.own_keys import FILE_BUILDERS

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

ROWS, BYTES = 20, 2**18  # that are read of a file
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, csv.Error, RecursionError)
SHAPES = ("skiprows", "header", "usecols", "index_col", "comment", "dialect")  # what they make is left to the run
ROWS_BELOW = re.compile(r'"([^"\\]+)"\s*:\s*\[\s*(?=\{)')  # a key of one object that holds rows
DELIMITERS = {",": ",", ";": ";", "\t": "\\t", "|": "|"}
NAMED = {"text-classification": ("text_column", "label_column"), "causal-lm": ("text_column",)}


def column_errors(recipe: Recipe, broken: Collection[str] = ()) -> list[Diagnostic]:
    """An error for each column that the recipe names, or its task needs, and that a local file lacks.

    `broken`: dotted keys that have an error already.
    """
    errors: list[Diagnostic] = []
    for file in _local_files(recipe):
        columns = columns_of(file, recipe)
        if columns is None:
            continue
        errors += _missing(recipe, file, columns, broken)
        preferences = [name for name in PREFERENCE_COLUMNS if name in columns]
        if len(preferences) == 2 and not any(name in columns for name in ("messages", "completion")):
            what = f"{file} has preferences ({' and '.join(preferences)}): methods for them are not offered here"
            fix = "TRL has them: trl dpo --config FILE"
            errors.append(Diagnostic(location=recipe.location("dataset.data_files"), message=what, fix=fix))
        if errors:
            break  # the other files of a recipe have the same columns
    return errors


def _missing(recipe: Recipe, file: str, columns: list[str], broken: Collection[str]) -> Iterator[Diagnostic]:
    from hf_recipes.catalog.tasks import TASKS

    given, task = recipe.section("dataset"), TASKS[recipe.task]
    needed = NAMED.get(recipe.task, ())
    alternative = any(given.get(key) or task.columns[key] in columns for key in task.columns if key not in needed)
    wanted = {key: task.columns[key] for key in needed if not alternative}
    wanted |= {key: name for key, name in given.items() if key in task.columns or key == "stratify_by_column"}
    for key, name in wanted.items():
        if f"dataset.{key}" in broken or not isinstance(name, str) or name in columns:
            continue
        near = nearest(name, columns)
        fix = f"did you mean {near!r}?" if near else f"name it with dataset.{key}"
        if len(columns) == 1 and (delimiter := _other_delimiter(columns[0], name)):
            fix = f'write delimiter: "{delimiter}" in dataset'
        elif name in (inner := _columns_below(file, given, columns)):
            fix = f"its rows are below {inner[name]!r}: write field: {inner[name]} in dataset"
        elif given.get("path") == "csv" and not set(given) & {"column_names", "names"}:
            names = [task.columns[key] for key in needed]
            if not near and not set(names) & set(columns):
                fix += f"; for files without a header: column_names: [{', '.join(names)}]"
        shown = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
        what = f"{file} has no column {name!r} (it has {shown})"
        yield Diagnostic(location=recipe.location(f"dataset.{key}"), message=what, fix=fix)


def _other_delimiter(header: str, name: str) -> str:
    """The delimiter that would make a column of this name out of one column's name."""
    return next((shown for mark, shown in DELIMITERS.items() if name in header.split(mark)), "")


def _columns_below(file: str, given: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """Column -> the key of the file's one object that holds its rows; {} for a file of rows."""
    if given.get("path") != "json" or given.get("field") is not None:
        return {}
    found: dict[str, str] = {}
    try:
        for at in ROWS_BELOW.finditer(text := _beginning(file, given)):
            if at[1] in columns:
                found |= dict.fromkeys(json.JSONDecoder().raw_decode(text, at.end())[0], at[1])
                break
    except UNREADABLE:
        pass
    return found


def _local_files(recipe: Recipe) -> Iterator[str]:
    """The first file of each entry of data_files that is on this machine."""
    given = recipe.section("dataset")
    path, folder = given.get("path"), given.get("data_dir") or ""
    if not isinstance(path, str) or not isinstance(folder, str):
        return
    base = os.path.join("" if path in FILE_BUILDERS else path, folder)
    for name in dict.fromkeys(file_names(given.get("data_files")).values()):
        full = os.path.join(base, name)
        found = full if os.path.isfile(full) else next(iter(sorted(glob.glob(full, recursive=True))), "")
        if found and os.path.isfile(found):
            yield found


def columns_of(file: str, recipe: Recipe) -> list[str] | None:
    """Names of a file's columns, in their order; None where its first rows do not show them."""
    given = recipe.section("dataset")
    path = given.get("path")
    kind = str(path) if path in FILE_BUILDERS else _kind(file)
    try:
        if kind == "parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(file).names)
        if kind == "csv":
            return _csv_columns(_beginning(file, given), given)
        if kind == "json":
            return _json_columns(_beginning(file, given), given)
    except UNREADABLE:
        return None
    return None


def _kind(file: str) -> str:
    name = file.removesuffix(".gz")
    kinds = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    return kinds.get(os.path.splitext(name)[1], "")


def _beginning(file: str, given: Mapping[str, Any]) -> str:
    """The text at the file's beginning, in complete lines where it has some; decompressed as `datasets` does it."""
    with open(file, "rb") as raw:
        begin = raw.read(6)
    opener = next((opener for magic, opener in COMPRESSED.items() if begin.startswith(magic)), open)
    with opener(file, "rb") as content:
        data = content.read(BYTES)
    if len(data) == BYTES and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
    encoding = str(given.get("encoding") or "utf-8")
    try:
        return data.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise ValueError(encoding) from None


def _csv_columns(text: str, given: Mapping[str, Any]) -> list[str] | None:
    names = given.get("column_names") or given.get("names")
    if isinstance(names, list):
        return [str(name) for name in names]
    if any(key in given for key in SHAPES):
        return None
    delimiter = given.get("delimiter") or given.get("sep") or ","
    quote = given.get("quotechar") or '"'
    if not (isinstance(delimiter, str) and len(delimiter) == 1 and isinstance(quote, str) and len(quote) == 1):
        return None
    escape, double = given.get("escapechar"), given.get("doublequote") is not False
    if escape is not None and not (isinstance(escape, str) and len(escape) == 1):
        return None
    file = io.StringIO(text)
    if given.get("quoting") == csv.QUOTE_NONE:
        rows = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, escapechar=escape)
    else:
        rows = csv.reader(file, delimiter=delimiter, quotechar=quote, escapechar=escape, doublequote=double)
    return next((row for row in rows if row), None)


def _json_columns(text: str, given: Mapping[str, Any]) -> list[str] | None:
    if given.get("field") is not None:
        rows = json.loads(text).get(given["field"])  # a file that is longer than its beginning is left to the run
        return list(dict.fromkeys(name for row in rows[:ROWS] for name in row)) if _are_rows(rows) else None
    found: dict[str, None] = {}
    for row in _json_rows(text):
        if not isinstance(row, dict):
            return None
        found |= dict.fromkeys(row)
    return list(found) or None


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows[:ROWS])


def _json_rows(text: str) -> Iterator[Any]:
    """The first rows: of one document that is a list, or of a document on each line."""
    decoder, at = json.JSONDecoder(), 0
    text = text.lstrip()
    if not text.startswith("["):
        lines = [line for line in text.splitlines()[:ROWS] if line.strip()]
        below = ROWS_BELOW.search(text)
        try:
            yield json.loads(lines[0]) if lines else {}
        except ValueError:  # one object over several lines
            if below is None:
                raise
            yield {below[1]: None}
            return
        yield from map(json.loads, lines[1:])
        return
    at = 1
    for _ in range(ROWS):
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if at >= len(text) or text[at] == "]":
            return
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError:  # cut off where the beginning ends
            return
        yield row
