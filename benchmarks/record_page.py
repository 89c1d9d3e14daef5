"""docs/record.md, from the types of hf_recipes/record/ and the comments beside their fields.

python benchmarks/tables.py     writes the page with the other generated ones
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, get_args, get_origin

from hf_recipes import record
from hf_recipes.common.typed_json import fields_of

TITLE = f"""# record.json

Every run writes `record.json` into its `output_dir`, also a run that fails. `hf-recipes runs` and `hf-recipes compare`
read it, and the report, the model card and the tables of this documentation are made from it.

Written by `python benchmarks/tables.py` from the types in `hf_recipes/record/`; a test checks that a run writes no
other key. This is version {record.SCHEMA} of the format (`schema`). Records of earlier versions are read, those of a
newer version are refused. Any value may be null. Bytes are bytes, seconds are seconds, and a number that is not finite
is the text "nan", "inf" or "-inf".

## Read it in Python

```python
from pathlib import Path

from hf_recipes.record.file import read_record

record = read_record(Path("runs/mine/record.json"))
print(record.status, record.metrics.of("eval"))
```

`read_record` raises `RecordError` for a file that is not a record.
"""


def comments() -> dict[str, dict[str, str]]:
    """Class -> field -> the comment on its line."""
    source = inspect.getsource(record)
    lines = source.splitlines()
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
            found[node.name] = {
                one.target.id: lines[(one.end_lineno or 0) - 1].partition("  # ")[2]
                for one in fields
                if isinstance(one.target, ast.Name)
            }
    return found


def inner_types(kind: Any) -> Iterator[Any]:
    """A type and those inside it."""
    yield kind
    for one in get_args(kind):
        yield from inner_types(one)


def shown(kind: Any) -> str:
    """A type for a reader of JSON: "list of text", "object of number"."""
    if get_origin(kind) in (types.UnionType,):
        return " or ".join(shown(one) for one in get_args(kind) if one is not types.NoneType)
    if get_origin(kind) is Mapping:
        inner = get_args(kind)[1]
        return "object" if inner is Any else f"object of {shown(inner)}"
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return f"list of {shown(inner[0])}" if inner[-1] is ... else f"list of {len(inner)} {shown(inner[0])}"
    if dataclasses.is_dataclass(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"  # type: ignore[union-attr]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " \\| ".join(f'"{one.value}"' for one in kind)
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(kind, "any value")


def table(kind: type, notes: Mapping[str, str]) -> str:
    rows = [
        f"| `{key}` | {shown(inner)} | {escape(notes[name])} |" for key, (name, inner, _) in fields_of(kind).items()
    ]
    return "\n".join(["| key | type | meaning |", "| --- | --- | --- |", *rows])


def escape(text: str) -> str:
    return re.sub(r"([|<])", r"\\\1", text)


def parts() -> list[type]:
    """The classes below RunRecord, in the order in which a reader meets them."""
    found: list[type] = []
    for _, inner, _ in fields_of(record.RunRecord).values():
        for one in inner_types(inner):
            if dataclasses.is_dataclass(one) and one not in found:
                found.append(one)  # type: ignore[arg-type]
    return found


def page() -> str:
    """The page's text."""
    notes = comments()
    sections = [TITLE.rstrip(), "## The keys", table(record.RunRecord, notes["RunRecord"])]
    for part in parts():
        sections += [f"## {part.__name__}", str(inspect.getdoc(part)), table(part, notes[part.__name__])]
    return "\n\n".join(sections) + "\n"
