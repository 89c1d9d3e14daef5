"""Rows that are nearly the same text: MinHash candidates (datasketch), then the exact share of common word groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from hf_recipes.data.prepared import Source

PACKAGE = "datasketch"
WORDS = 3  # of a group
SIMILAR = 0.8  # share of the groups of two texts that both have
PERMUTATIONS = 128


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """`rows`: searched; `within`: of these, rows that repeat an earlier row of their split; `between`: rows that repeat
    a row of the train split. `example`: (split and row, split and row) of the first that was found."""

    rows: Mapping[str, int]
    within: Mapping[str, int]
    between: Mapping[str, int]
    example: tuple[str, str] | None = None


def can_search() -> bool:
    return find_spec(PACKAGE) is not None


def find_near_duplicates(sources: Mapping[str, Source], labels: int, limit: int) -> NearDuplicates:
    """Searches the first `limit` rows of each split. `labels`: columns at the end of each source that are no text."""
    from datasketch import MinHash, MinHashLSH

    trained = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS)
    groups: dict[tuple[str, int], frozenset[str]] = {}
    within, between, searched, example = {}, {}, {}, None
    for split, source in sources.items():
        part = source.rows.select_columns(list(source.columns[: len(source.columns) - labels]))
        part = part.select(range(min(limit, part.num_rows)))
        own = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS) if split != "train" else trained
        searched[split], within[split], between[split] = part.num_rows, 0, 0
        for row, values in enumerate(part):
            words = word_groups(" ".join(map(str, values.values())))
            if not words:
                continue
            sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=crc32)
            sketch.update_batch([one.encode() for one in words])
            name = (split, row)

            def similar(index: Any, words: frozenset[str] = words, sketch: Any = sketch) -> tuple[str, int] | None:
                return next((one for one in index.query(sketch) if overlap(words, groups[one]) >= SIMILAR), None)

            other = similar(own)
            within[split] += other is not None
            if split != "train" and (train := similar(trained)) is not None:
                between[split] += 1
                other = train
            if other is not None and example is None:
                example = (_name(name), _name(other))
            groups[name] = words
            own.insert(name, sketch)
    return NearDuplicates(rows=searched, within=within, between=between, example=example)


def word_groups(text: str) -> frozenset[str]:
    """Groups of three words that follow each other; of a shorter text, every word."""
    words: Sequence[str] = re.findall(r"\w+", text.lower())
    if len(words) < WORDS:
        return frozenset(words)
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))


def overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def _name(row: tuple[str, int]) -> str:
    return f"{row[0]} row {row[1]}"
