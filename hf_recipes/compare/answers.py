"""Exact match, ROUGE and BLEU as functions of sums over examples; see compare/measures.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_recipes.evaluation.metrics.generated import ORDER, ROUGE
from hf_recipes.evaluation.scores import Scores

__all__ = ["ROUGE", "bleu", "bleu_rows", "has_column", "share_rows"]

Array = np.ndarray


def has_column(every: Sequence[Scores], name: str) -> bool:
    """Whether all evaluations asked for the metric."""
    return all(name in scores.table.column_names for scores in every)


def share_rows(name: str) -> Callable[[Scores], Array]:
    """(N, 2): an example's value, and 1."""

    def rows(scores: Scores) -> Array:
        values = scores.table[name].to_numpy(zero_copy_only=False).astype(float)
        return np.stack([values, np.ones(len(values))], axis=1)

    return rows


def bleu_rows(scores: Scores) -> Array:
    """(N, 2 * ORDER + 2): sacrebleu's counts of each example."""
    return np.array(scores.table["bleu"].to_pylist(), float).reshape(-1, 2 * ORDER + 2)


def bleu(sums: Array) -> Array:
    """sums (..., 2 * ORDER + 2) of [matches, n-grams, length, reference's length] -> BLEU, 0 to 100, as sacrebleu's
    corpus_score computes it: exponential smoothing, brevity penalty."""
    matches, total = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    length, wanted = sums[..., -2], sums[..., -1]
    smoothing = 2.0 ** np.cumsum(matches == 0, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(matches > 0, matches, 1 / smoothing) / total
        brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        found: Array = 100 * brevity * np.exp(np.log(share).mean(axis=-1))
    nothing = (total == 0).any(axis=-1) | (matches == 0).all(axis=-1) | (length == 0)
    return np.where(nothing, 0.0, found)
