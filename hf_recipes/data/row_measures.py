"""Lengths of prepared rows, and what a batch of them wastes. Imports neither torch nor transformers."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

AT_ONCE = 1000  # rows
SORTED_BATCHES = (
    50  # batches that group_by_length sorts together (5.23 trainer_pt_utils.py, get_length_grouped_indices)
)
SEED = 0


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """`tokens` of each row; `learned`: label tokens of each row, those within `max_length` in `kept`."""

    tokens: np.ndarray
    learned: np.ndarray
    kept: np.ndarray

    @property
    def lost(self) -> float:
        """Share of the label tokens that are beyond max_length."""
        return 1 - self.kept.sum() / max(1, self.learned.sum())

    @property
    def rows_cut(self) -> int:
        return int((self.learned > self.kept).sum())

    @property
    def rows_without_label(self) -> int:
        """Rows whose label tokens are all beyond max_length."""
        return int(((self.learned > 0) & (self.kept == 0)).sum())

    def length_for(self, share: float) -> int:
        """The length that leaves this share of the rows uncut."""
        return int(np.quantile(self.tokens, share, method="inverted_cdf"))


def measure_rows(rows: Dataset, max_length: int) -> RowLengths:
    """Of rows that are not cut. Labels of a whole row count as one token, which is never cut off."""
    import pyarrow as pa
    import pyarrow.compute as compute

    tokens, learned, kept = [], [], []
    for batch in rows.select_columns(["input_ids", "labels"]).with_format("arrow").iter(AT_ONCE):
        lengths = compute.list_value_length(batch["input_ids"]).to_numpy().astype(np.int64)
        tokens.append(lengths)
        labels = batch["labels"].combine_chunks()
        if not pa.types.is_list(labels.type) or pa.types.is_floating(labels.type.value_type):
            learned.append(np.ones_like(lengths))
            kept.append(np.ones_like(lengths))  # of the whole row: a row that is cut keeps it
            continue
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(owner)) - np.repeat(lengths.cumsum() - lengths, lengths)
        has_label = labels.flatten().to_numpy(zero_copy_only=False) != -100
        learned.append(np.bincount(owner, has_label, len(lengths)).astype(np.int64))
        kept.append(np.bincount(owner, has_label & (place < max_length), len(lengths)).astype(np.int64))
    return RowLengths(tokens=np.concatenate(tokens), learned=np.concatenate(learned), kept=np.concatenate(kept))


def padding_share(lengths: np.ndarray, batch: int, *, grouped: bool) -> float:
    """Share of a batch's tokens that are padding, rows drawn at random; `grouped`: sorted within 50 batches, as
    train_sampling_strategy: group_by_length does."""
    order = np.array(random.Random(SEED).sample(range(len(lengths)), len(lengths)))
    drawn = lengths[order]
    if grouped:
        some = SORTED_BATCHES * batch
        drawn = np.concatenate([np.sort(drawn[i : i + some])[::-1] for i in range(0, len(drawn), some)])
    padded = sum(drawn[i : i + batch].max() * len(drawn[i : i + batch]) for i in range(0, len(drawn), batch))
    return float(1 - drawn.sum() / padded)


def packed_share(lengths: np.ndarray, max_length: int) -> float:
    """Share of the tokens of packed rows that are padding: best fit, the longest first, as TRL's bfd."""
    free: list[int] = []  # sorted spaces of the rows that are open, each size once
    count: Counter[int] = Counter()
    rows = 0
    for length, many in sorted(Counter(np.minimum(lengths, max_length).tolist()).items(), reverse=True):
        for _ in range(many):
            at = bisect_left(free, length)
            if at < len(free):
                space = free[at]
                count[space] -= 1
                if not count[space]:
                    free.pop(at)
            else:
                space, rows = max_length, rows + 1
            rest = space - length
            if rest:
                if not count[rest]:
                    insort(free, rest)
                count[rest] += 1
    return float(1 - np.minimum(lengths, max_length).sum() / (rows * max_length))


def histogram(lengths: np.ndarray, bins: int = 10) -> list[tuple[int, int, int]]:
    """(from, to, rows) of about equal steps, from the shortest to the longest."""
    low, high = int(lengths.min()), int(lengths.max())
    step = max(1, -(-(high - low + 1) // bins))
    edges: Sequence[int] = range(low, high + 1, step)
    return [
        (edge, min(edge + step - 1, high), int(((lengths >= edge) & (lengths < edge + step)).sum())) for edge in edges
    ]
