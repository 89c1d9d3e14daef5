"""Ids of rows by their content, and the fingerprint of a split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def example_ids(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """One id an example: blake2b, 128 bits, of its content (keys sorted), so equal in every run, order and machine.

    Give the raw columns (text, label), not token ids, to compare runs with other tokenizers. The second
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
    """Values that JSON does not have: arrays, bytes, dates."""
    if isinstance(value, bytes):
        return value.hex()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def row_ids(rows: Dataset, columns: Sequence[str]) -> list[str]:
    """One stable id a row, of the named columns' content (see example_ids)."""
    batches = rows.select_columns(list(columns)).iter(1000)  # row by row would take three times as long
    return example_ids(
        dict(zip(batch, values, strict=True)) for batch in batches for values in zip(*batch.values(), strict=True)
    )


def fingerprint(rows: Dataset, columns: Sequence[str], limit: int = 200_000) -> str:
    """BLAKE2b-128 over the row count and the row ids, in order; beyond `limit` rows over every n-th row, which the
    prefix of the result says ("every 7th:...")."""
    step = -(-rows.num_rows // limit)
    chosen = rows if step == 1 else rows.select(range(0, rows.num_rows, step))
    digest = blake2b(str(rows.num_rows).encode(), digest_size=16)
    for row_id in row_ids(chosen, columns):
        digest.update(row_id.encode())
    return ("" if step == 1 else f"every {step}th:") + digest.hexdigest()
