"""Files of path: json that are not rows: what is wrong with them, and the key that reads them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_recipes.common.text import first_line
from hf_recipes.data.files import open_file

if TYPE_CHECKING:
    from datasets import Dataset

FIRST_PART = 10 << 20  # bytes by which `datasets` decides what a column holds
SHOWN = 40
KINDS: dict[Any, str] = {str: "text", bool: "truth value", int | float: "number", list: "list", dict: "object"}
AS_LINES = "write one object a line; in pandas: to_json(..., orient='records', lines=True)"


def find_other_shape(rows: Dataset, needed: Collection[str], task: str) -> tuple[str, str] | None:
    """(what, fix) for rows that are each a file of one object; None for other rows."""
    from datasets import List

    needed, features = set(needed), rows.features
    nested = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    if len(nested) == len(features) and all(set(kind) and all(map(str.isdigit, kind)) for kind in nested.values()):
        return f"holds one object of columns ({', '.join(nested)}) with a value for each row number", AS_LINES
    if nested and len(nested) == len(features) and any(needed & set(kind) for kind in nested.values()):
        return "holds one object with a name for each row, not a list of rows", AS_LINES
    if {"columns", "index", "data"} == set(features):
        return "holds columns, index and data (pandas' orient='split')", AS_LINES
    if task != "token-classification" and any(isinstance(features.get(name), List) for name in needed & LISTED):
        return "holds one object of columns, each a list", AS_LINES
    if needed & set(features):
        return None
    for name, kind in features.items():
        inner = getattr(kind, "feature", None)
        if isinstance(inner, dict) or "Json" in str(inner):
            return f"holds one object, and its rows are below {name!r}", f"write field: {name}"
    return None


LISTED = {"text", "prompt", "completion", "instruction", "output"}  # columns that hold no lists


def find_bad_line(name: str) -> str | None:
    """ "data/a.jsonl:2 is not JSON: Expecting ',' delimiter (column 13)"; None for a file that Python's json reads."""
    number = 0
    try:
        with open_file(name) as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if number == 1 and (text.startswith(b"[") or text == b"{"):  # one document, not one a line
                    others = lines.read()
                    if others.strip() and all(map(_is_json, (text, *others.splitlines()))):
                        return None  # a list a line
                    json.loads(line + others)
                    return None
                row = json.loads(text) if text else None
                if b"\\ud" in text.lower() and (half := _half_a_pair(row)):
                    return f"{name}:{number} has {half}, half of a surrogate pair, which is no character"
    except json.JSONDecodeError as problem:
        return f"{name}:{number + problem.lineno - 1} is not JSON: {problem.msg} (column {problem.colno})"
    except (ValueError, RecursionError, OSError) as problem:
        return f"{name}:{number or 1} is not JSON: {first_line(problem)}"
    return None


def _is_json(line: bytes) -> bool:
    try:
        return not line.strip() or json.loads(line) is not None
    except ValueError:
        return False


def _half_a_pair(row: Any) -> str:
    """The first lone surrogate as JSON writes it: Python's json takes it, Arrow does not."""
    found = re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False))
    return json.dumps(found[0])[1:-1] if found else ""


def find_other_row(name: str, texts: Collection[str], columns: Sequence[str] | None = None) -> tuple[str, str] | None:
    """(what, fix) of the first row with something else than a text in a column of `texts`, with a value of another kind
    than the rows before it, or with a column that is not in `columns` (where those are known). None for other rows, and
    for a file that is not read here."""
    kinds = dict.fromkeys(texts, "text")
    try:
        for place, row in _rows(name):
            if not isinstance(row, dict):
                return f"{place} is not a JSON object", "write each row as an object with its columns"
            extra = [key for key in row if columns is not None and key not in columns]
            if extra:
                what = f"{place} has a column {extra[0]!r} that the first rows lack"
                return f"{what} (they have {', '.join(columns or ())})", "give all rows the same columns"
            for column, value in row.items():
                kind = next((word for one, word in KINDS.items() if isinstance(value, one)), None)
                if kind is not None and kinds.setdefault(column, kind) != kind:
                    shown = json.dumps(value, ensure_ascii=False)
                    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."
                    what = (
                        f"{place} has {shown} in the column {column!r}, a {kind}, where others have a {kinds[column]}"
                    )
                    return what, f"write all of them as a {kinds[column]}"
    except (ValueError, AttributeError, RecursionError, OSError, EOFError):
        return None
    return None


def find_bad_row(name: str) -> tuple[str, str] | None:
    """(what, fix) of the first row that is no object, or that has a key twice; None for other rows, and for a file that
    is not read here."""
    try:
        for place, row in _rows(name, _Pairs):
            if not isinstance(row, _Pairs):
                return f"{place} is not a JSON object", "write each row as an object with its columns"
            twice = _find_twice(row)
            if twice is not None:
                return f"{place} has the key {twice!r} twice", "leave one of them out, or rename it"
    except (ValueError, AttributeError, RecursionError, OSError, EOFError):
        return None
    return None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written."""


def _find_twice(value: Any) -> str | None:
    if isinstance(value, _Pairs):
        names = [name for name, _ in value]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        return twice if twice is not None else next(filter(None, (_find_twice(one) for _, one in value)), None)
    return next(filter(None, map(_find_twice, value)), None) if isinstance(value, list) else None


def find_row(name: str, row: Mapping[str, Any]) -> str:
    """ "data/a.jsonl:2", where that row stands; "" for a row that is not found, and for a file that is not read here.
    A column that the line lacks is None in the row."""
    wanted = {column: value for column, value in row.items() if value is not None}
    try:
        for place, found in _rows(name):
            if isinstance(found, dict) and {k: v for k, v in found.items() if v is not None} == wanted:
                return place
    except (ValueError, AttributeError, RecursionError, OSError, EOFError):
        return ""
    return ""


def find_encoded_text(
    rows: Dataset, columns: Collection[str], files: Sequence[str], first_part: int
) -> tuple[str, str] | None:
    """(what, fix) where `datasets` read texts as JSON, with their quotes: 5.2 json.py does it to all texts of a part of
    a file, behind its `first_part` (bytes), in which one row has a value of another kind."""
    import pyarrow.compute as pc
    from datasets import Value

    large = [name for name in files if os.path.getsize(name) > first_part or not name.endswith((".json", ".jsonl"))]
    texts = [name for name in columns if rows.features.get(name) == Value("string")]
    if not large or not any(_any_quoted(pc, rows.data.column(name)) for name in texts):
        return None
    return next(filter(None, (find_other_row(name, texts) for name in large)), None)


def _any_quoted(pc: Any, column: Any) -> bool:
    quoted = pc.and_(pc.starts_with(column, '"'), pc.ends_with(column, '"'))
    return bool(pc.any(quoted).as_py())


def _rows(name: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Iterator[tuple[str, Any]]:
    """("data/a.jsonl:2", or "row 1 of data/a.json" of a list; the row). `pairs`: what an object becomes."""
    read = partial(json.loads, object_pairs_hook=pairs)
    with open_file(name) as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if number == 1 and text.startswith(b"["):
                yield from ((f"row {i} of {name}", row) for i, row in enumerate(read(line + lines.read())))
            elif text:
                yield f"{name}:{number}", read(text)
