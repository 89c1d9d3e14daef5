"""Correlations and errors of predicted scores, as sums over examples.

A correlation is no ratio of two sums, so each example gets its share of it: rows [z, 1] whose mean is atanh(r), where
z = atanh(r) + influence / (1 - r^2) and the influence of an example is the derivative of the correlation by the
example's weight (the infinitesimal jackknife; Efron & Tibshirani 1993, ch. 21). tanh of the mean is the correlation
itself, means of resampled rows spread as correlations of resampled examples do, and no run's interval leaves [-1, 1]
(Fisher 1921).
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
LARGEST = 1 - 1e-12  # atanh(1) is infinite


def squared_errors(gold: Array, predicted: Array) -> Array:
    """(N, 2): [squared error, 1]."""
    return np.stack([(predicted - gold) ** 2, np.ones(len(gold))], axis=1)


def pearson_rows(gold: Array, predicted: Array) -> Array:
    """(N, 2), see the module; NaN where either side is constant."""
    x, y = _standardise(gold), _standardise(predicted)
    r = float(np.mean(x * y))
    return _rows(r, x * y - r * (x**2 + y**2) / 2)


def spearman_rows(gold: Array, predicted: Array) -> Array:
    """(N, 2): Pearson's correlation of the ranks. An example also moves the ranks of the others, and that is in its
    influence."""
    u, v = _ranks(gold), _ranks(predicted)
    r = float(np.mean(_standardise(u) * _standardise(v)))
    products = [(u, v), (u, u), (v, v)]
    sides = [(gold, predicted), (gold, gold), (predicted, predicted)]
    with np.errstate(divide="ignore", invalid="ignore"):
        # a: mean product of the ranks less that of independence; its influence has a share for each side's ranks
        a, b, c = (float(np.mean(first * second)) - 0.25 for first, second in products)
        of_a, of_b, of_c = (
            first * second + _above(one, second) + _above(other, first) - 3 * (value + 0.25)
            for (first, second), (one, other), value in zip(products, sides, (a, b, c), strict=True)
        )
        influence = of_a / np.sqrt(b * c) - r / 2 * (of_b / b + of_c / c)
    return _rows(r, influence)


def tanh_of_mean(sums: Array) -> Array:
    """sums (..., 2) of the rows above -> the correlation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.tanh(sums[..., 0] / sums[..., 1])
    return found


def tanh_slope(sums: Array) -> Array:
    """The derivative of `tanh_of_mean` by the ratio."""
    found: Array = 1 - tanh_of_mean(sums) ** 2
    return found


def _rows(r: float, influence: Array) -> Array:
    inside = float(np.clip(r, -LARGEST, LARGEST))
    share = influence / (1 - inside**2) if abs(r) < LARGEST else np.zeros(len(influence))
    return np.stack([np.arctanh(inside) + share, np.ones(len(influence))], axis=1)


def _standardise(values: Array) -> Array:
    spread = values.std()
    found: Array = (values - values.mean()) / (spread if spread > 0 else np.nan)
    return found


def _ranks(values: Array) -> Array:
    """The share of examples below, ties at half: (N,), mean 1/2."""
    from scipy.stats import rankdata

    found: Array = (rankdata(values) - 0.5) / len(values)
    return found


def _above(values: Array, weights: Array) -> Array:
    """(N,): for each example the mean of the weights of those above it, ties at half."""
    order = np.argsort(values, kind="stable")
    cumulated = np.concatenate([[0.0], np.cumsum(weights[order])])
    first = np.searchsorted(values[order], values, side="left")
    last = np.searchsorted(values[order], values, side="right")
    total = cumulated[-1]
    found: Array = ((total - cumulated[last]) + (total - cumulated[first])) / 2 / len(values)
    return found
