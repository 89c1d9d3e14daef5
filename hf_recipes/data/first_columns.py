"""What the values of a column say: whether the first row is a header, and what kind of label they are.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hf_recipes.data.chat_messages import list_of_text

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
OFTEN = 0.05  # of the rows have the value of the first one, where that is a usual name of a column
FEW = 0.5  # different values per row, at most, of a column of classes
MOST_NAMED = 12  # columns in a message
LONG_NAME = 5  # words: a name of a column has fewer


def lacks_header(first: Sequence[str], rows: Sequence[Sequence[Any]], usual: Collection[str]) -> bool:
    """Whether the first row is data: a value that its column has again, else a number or a sentence where no column has
    a `usual` name."""
    names = [str(name) for name in first]
    if not rows or names == [str(i) for i in range(len(names))] or names in [list(row) for row in rows]:
        return False
    again = [sum(row[i] == name for row in rows) if name else 0 for i, name in enumerate(names)]
    if any(name.strip().lower() in usual for name in names):  # a text may be "text" once; a class is found often
        return max(again) >= max(2, OFTEN * len(rows))
    if any(again):
        return True
    return any(NUMBER.fullmatch(name.strip()) or len(name.split()) >= LONG_NAME for name in names)


def name_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """text for the longest texts, label for the column of few values (else the one of numbers), column_N for others."""
    width = len(rows[0])
    columns = [[row[i] for row in rows if len(row) == width] for i in range(width)]
    sizes = [sum(map(len, values)) for values in columns]
    text = sizes.index(max(sizes))
    few = [i for i, values in enumerate(columns) if i != text and len(set(values)) <= max(2, FEW * len(values))]
    numbers = [i for i, values in enumerate(columns) if i != text and problem_of(values) == "regression"]
    label = next(iter([*few[::-1], *numbers[::-1]]), None)
    return ["text" if i == text else "label" if i == label else f"column_{i + 1}" for i in range(width)]


def problem_of(values: Sequence[Any]) -> str:
    """model.problem_type of these labels: several a row, or fractions; "" for a class a row."""
    given = [value for value in values if value is not None and value != ""]
    if not given:
        return ""
    lists = [list_of_text(value) if isinstance(value, str) and value[:1] == "[" else value for value in given]
    if all(isinstance(one, list) and all(isinstance(name, str | int) for name in one) for one in lists):
        return "multi_label_classification"
    if any(isinstance(value, bool) or not NUMBER.fullmatch(str(value).strip()) for value in given):
        return ""
    return "regression" if any(float(value) % 1 for value in given) else ""


def name_all(columns: Sequence[Any]) -> str:
    """Names of columns for a message: the first ones of many."""
    shown = [str(name) or "a column without a name" for name in columns[:MOST_NAMED]]
    return ", ".join(shown) + (f", and {len(columns) - MOST_NAMED:,} more" if len(columns) > MOST_NAMED else "")


def describe_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """ "id: numbers, tokens: lists of texts, dialog: lists of objects (speaker, text)"."""
    kinds = []
    for name in rows[0]:
        value = next((row[name] for row in rows if row.get(name) not in (None, "", [])), None)
        kinds.append(f"{name}: {_kind(value)}")
    return name_all(kinds)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"lists of {_kind(value[0])}" if value else "lists"
    if isinstance(value, Mapping):
        return f"objects ({name_all(list(value))})"
    return "nothing" if value is None else "texts" if isinstance(value, str) else "numbers"
