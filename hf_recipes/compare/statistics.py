"""Intervals and tests on paired rows of sums. Deterministic for a seed; float64; no loop over resamples.

A metric of a run is value(sum of its rows). The examples are resampled together for both runs (they are paired). Rows
that are equal are drawn as one multinomial, which is the same distribution and costs nothing; rows of real numbers are
weighted by Poisson(1), which is the bootstrap of many examples (Chamandy et al., Estimating uncertainty for massive
data streams, 2012).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Value = Callable[[Array], Array]

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
CELLS = 2**27  # numbers that are held at a time
FEW = 5_000_000  # index draws up to which real-valued rows are resampled one by one


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its confidence interval; `error` is the standard error."""

    value: float
    low: float
    high: float
    error: float


def bootstrap(rows: Array, resamples: int, seed: int) -> Array:
    """(resamples, m): sums of `rows` (N, m) over N examples drawn with replacement."""
    rng = np.random.default_rng(seed)
    distinct, counts = _distinct(rows)
    n = len(rows)
    if distinct is not None and counts is not None:
        step = max(1, CELLS // max(1, len(counts)) // 8)
        parts = [
            rng.multinomial(n, counts / n, size=min(step, resamples - start)) @ distinct
            for start in range(0, resamples, step)
        ]
        return np.concatenate(parts)
    if n * resamples <= FEW * 10:
        return np.concatenate([weights.astype(float) @ rows for weights in _draw_weights(n, resamples, seed)])
    return _weighted(rows, resamples, rng, _poisson_table())


@functools.lru_cache(maxsize=1)
def _draw_weights(n: int, resamples: int, seed: int) -> tuple[Array, ...]:
    """How often each of n examples is drawn, in parts of (some resamples, n): the same for every run."""
    rng, step, parts = np.random.default_rng(seed), max(1, FEW // n), []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, n, size=(size, n)) + (np.arange(size) * n)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(weights.astype(np.uint16))
    return tuple(parts)


def swapped(first: Array, second: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """((resamples, m), (resamples, m)): sums of both runs where each example's rows are exchanged with probability 1/2,
    which is what no difference between the runs would look like."""
    rng = np.random.default_rng(seed)
    apart = second - first
    apart = apart[(apart != 0).any(axis=1)]
    if not len(apart):
        moved = np.zeros((resamples, first.shape[1]))
    else:
        distinct, counts = _distinct(apart)
        if distinct is not None and counts is not None:
            step = max(1, CELLS // len(counts) // 8)
            moved = np.concatenate(
                [
                    rng.binomial(counts, 0.5, size=(min(step, resamples - start), len(counts))) @ distinct
                    for start in range(0, resamples, step)
                ]
            )
        else:
            moved = _weighted(apart, resamples, rng, np.array([0, 1], np.uint8))
    return first.sum(axis=0) + moved, second.sum(axis=0) - moved


def _distinct(rows: Array) -> tuple[Array, Array] | tuple[None, None]:
    """Rows that differ, and how often each occurs; None where hardly any are equal."""
    if not np.array_equal(rows, np.round(rows)):  # real numbers: no two are equal
        return None, None
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    return (distinct, counts) if len(counts) <= max(4096, len(rows) // 8) else (None, None)


def _poisson_table() -> Array:
    """65,536 equally likely values of a Poisson(1)."""
    from scipy.stats import poisson

    found: Array = poisson.ppf((np.arange(65536) + 0.5) / 65536, 1.0).astype(np.uint8)
    return found


def _weighted(rows: Array, resamples: int, rng: np.random.Generator, table: Array) -> Array:
    """Sums of rows weighted by independent draws from `table` (its length a power of two). The rows are centred, so
    that single precision inside a product is enough; the centre's share is added in double."""
    n = len(rows)
    centre = rows.mean(axis=0)
    near = (rows - centre).astype(np.float32)
    near = np.concatenate([near, np.ones((n, 1), np.float32)], axis=1)
    step = max(1, CELLS // n // 4)
    found = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if len(table) == 2:
            drawn = np.unpackbits(rng.integers(0, 256, size=(size, -(-n // 8)), dtype=np.uint8), axis=1)[:, :n]
        else:
            drawn = table[rng.integers(0, len(table), size=(size, n), dtype=np.uint16)]
        sums = (drawn.astype(np.float32) @ near).astype(float)
        found.append(sums[:, :-1] + sums[:, -1:] * centre)
    return np.concatenate(found)


# intervals and tests ------------------------------------------------------------------------------------------------


def interval(value: float, draws: Array, level: float = LEVEL) -> Interval:
    """The percentile interval of finite draws around `value`."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(value=value, low=float("nan"), high=float("nan"), error=float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), error=float(draws.std()))


def studentised(
    first: Array, second: Array, value: Value, slope: Value, resamples: int, seed: int, level: float = LEVEL
) -> tuple[Interval, Array]:
    """The bootstrap-t interval of value(second) - value(first), for values of the ratio of two sums, which percentiles
    hold too narrow where a few long documents weigh most (Efron & Tibshirani 1993, ch. 12).

    first, second: (N, 2), numerator and denominator an example; slope: the derivative of `value` by the ratio, given
    sums (..., 2). Each resample is measured in its own standard error (the delta method's, from second moments).
    Returns the interval and the resampled sums (resamples, 4) of both runs.
    """
    both = np.concatenate([first, second], axis=1)
    pairs = [(i, j) for i in range(4) for j in range(i, 4)]
    moments = np.stack([both[:, i] * both[:, j] for i, j in pairs], axis=1)
    whole = np.concatenate([both, moments], axis=1)
    difference, error = _difference(whole.sum(axis=0)[None], value, slope, pairs)
    sums = bootstrap(whole, resamples, seed)
    draws, errors = _difference(sums, value, slope, pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (draws - difference) / errors
    t = t[np.isfinite(t)]
    if not len(t) or not error[0] > 0:
        return interval(float(difference[0]), draws, level), sums[:, :4]
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    middle = float(difference[0])
    spread = float(draws[np.isfinite(draws)].std())
    found = Interval(value=middle, low=middle - high * error[0], high=middle - low * error[0], error=spread)
    return found, sums[:, :4]


def _difference(sums: Array, value: Value, slope: Value, pairs: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """(R,) differences and their standard errors, of sums (R, 4 + 10): the columns, then their products."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gradient = []
        for sign, start in ((-1.0, 0), (1.0, 2)):
            part = sums[:, start : start + 2]
            steep = sign * slope(part) / part[:, 1]
            gradient += [steep, -steep * part[:, 0] / part[:, 1]]
        variance = sum(
            (1 if i == j else 2) * gradient[i] * gradient[j] * sums[:, 4 + k] for k, (i, j) in enumerate(pairs)
        )
        return value(sums[:, 2:4]) - value(sums[:, 0:2]), np.sqrt(np.maximum(variance, 0.0))


def randomisation(
    first: Array,
    second: Array,
    value: Value,
    resamples: int = RESAMPLES,
    seed: int = 0,
    moved: Array | None = None,
) -> float:
    """Two-sided p-value of no difference by approximate randomisation (Noreen 1989; Yeh 2000). `moved`: what the first
    run's sums gain in each resample, if that is drawn already."""
    seen = abs(float(value(second.sum(axis=0)) - value(first.sum(axis=0))))
    if moved is None:
        a, b = swapped(first, second, resamples, seed)
    else:
        a, b = first.sum(axis=0) + moved, second.sum(axis=0) - moved
    with np.errstate(invalid="ignore"):
        drawn = np.abs(value(b) - value(a))
    at_least = int((drawn >= seen * (1 - 1e-9) - 1e-15).sum())
    return (at_least + 1) / (resamples + 1)


def mcnemar(first: Array, second: Array) -> float:
    """Exact two-sided McNemar test of two runs' correctness (N,) bool: the binomial of the examples that differ."""
    from scipy.stats import binomtest

    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for their number, in their order."""
    order = np.argsort(values)
    found, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, values[index] * (len(values) - rank)))
        found[index] = highest
    return found


@functools.lru_cache(maxsize=1000)
def _reach(freedom: float, level: float, power: float) -> float:
    from scipy.stats import norm, t

    quantile = norm.ppf if np.isinf(freedom) else lambda share: t.ppf(share, freedom)
    return float(quantile((1 + level) / 2) + quantile(power))


def detectable(error: float, freedom: float = np.inf, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest difference that a two-sided test at this standard error finds with this power; `freedom`: degrees of
    Student's t."""
    return _reach(freedom, level, power) * error


def grouped(
    covariance: Array, means: tuple[Array, Array], freedom: float, level: float = LEVEL
) -> tuple[Interval, float, float]:
    """Difference of two recipes' mean metric over their seeds, for other examples and other seeds.

    covariance: (runs, runs), of the runs' metrics where the examples that all share are resampled, the first recipe's
    runs first; means: the metric of each run, a recipe each; freedom: the degrees of the examples. Needs two runs in
    each group. The variance is two-way (Owen 2007; Cameron, Gelbach & Miller 2011): that of the examples plus that of
    the seeds less their interaction, which is in both. A seed that adds nothing adds 0, not less. The interval is
    Student's, with Satterthwaite's degrees of freedom (1946), since three seeds know little of their own spread.
    Returns the interval, the two-sided p-value of no difference, and the degrees of freedom.
    """
    from scipy.stats import t

    contrast = np.concatenate([np.full(len(runs), sign / len(runs)) for sign, runs in zip((-1, 1), means, strict=True)])
    examples = max(0.0, float(contrast @ covariance @ contrast))
    total, spread, start = examples, examples**2 / freedom, 0
    for group in means:
        count = len(group)
        part = covariance[start : start + count, start : start + count]
        start += count
        seeds = float(group.var(ddof=1)) / count
        interaction = max(0.0, float(np.trace(part)) * count - float(part.sum())) / (count - 1) / count**2
        if seeds > interaction:
            total += seeds - interaction
            spread += (seeds**2 + interaction**2 / freedom) / (count - 1)
    difference = float(means[1].mean() - means[0].mean())
    error = total**0.5
    if error == 0:
        return Interval(value=difference, low=difference, high=difference, error=0.0), float(difference == 0), np.inf
    degrees = total**2 / spread
    reach = float(t.ppf((1 + level) / 2, degrees)) * error
    p = float(2 * t.sf(abs(difference) / error, degrees))
    return Interval(value=difference, low=difference - reach, high=difference + reach, error=error), p, degrees
