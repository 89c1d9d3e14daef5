"""Files of path: json that are not rows: what is wrong with them, and the key that reads them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from hf_recipes.common.text import first_line
from hf_recipes.data.files import open_file

if TYPE_CHECKING:
    from datasets import Dataset

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
                    json.loads(line + lines.read())
                    return None
                if text:
                    json.loads(text)
    except json.JSONDecodeError as problem:
        return f"{name}:{number + problem.lineno - 1} is not JSON: {problem.msg} (column {problem.colno})"
    except (ValueError, RecursionError, OSError) as problem:
        return f"{name}:{number or 1} is not JSON: {first_line(problem)}"
    return None
