"""Ids of rows by their content, and the fingerprint of a split."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any


def example_ids(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """One id an example: blake2b, 128 bits, of its content (keys sorted), so equal in every run, order and machine.

    Give the raw columns (text, label), not token ids, where runs with other tokenizers shall be compared. The second
    and later copy of an example is counted into its id: ids are unique, whatever the order of the copies.
    """
    seen: Counter[str] = Counter()
    ids = []
    for example in examples:
        content = json.dumps(example, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
        name = blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        copies, seen[name] = seen[name], seen[name] + 1
        ids.append(blake2b(f"{name} copy {copies}".encode(), digest_size=16).hexdigest() if copies else name)
    return ids


def _plain(value: Any) -> Any:
    """Columns hold more than JSON knows: arrays, bytes, dates."""
    if isinstance(value, bytes):
        return value.hex()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def row_ids(rows: Dataset, columns: list[str]) -> list[str]:
    """One stable id a row, of the named columns' content (scores.example_ids)."""
    pass  # NumPy; `check` looks for data files without it

    return example_ids(rows.select_columns(columns))


def fingerprint(rows: Dataset, columns: list[str], limit: int = 200_000) -> str:
    """BLAKE2b-128 over the row count and the row ids, in order; beyond `limit` rows over every n-th row, which the
    result's prefix says ("every 7th:...")."""
    step = -(-rows.num_rows // limit)
    chosen = rows if step == 1 else rows.select(range(0, rows.num_rows, step))
    digest = hashlib.blake2b(str(rows.num_rows).encode(), digest_size=16)
    for row_id in row_ids(chosen, columns):
        digest.update(row_id.encode())
    return ("" if step == 1 else f"every {step}th:") + digest.hexdigest()
