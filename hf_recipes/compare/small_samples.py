"""Intervals of few examples, and of shares near 0 and 1, where resampling alone gives too narrow ones: six of six right
would be "1 (1 to 1)". How often they are right: docs/methods/statistics.md.
"""

from __future__ import annotations

import numpy as np

from hf_recipes.compare.statistics import LEVEL, Array, Interval, Value, interval

FEW = 100  # examples, below which an interval is made here
FEWEST = 5  # examples, below which a difference has no interval: the simulation begins there
RARE = 10  # examples right, or wrong, below which a share's is
DIFFERENT = 20  # examples on which two runs differ, below which a difference's is
POISSON = 3.5  # examples right, or wrong, below which the limit on their side is Poisson's
LEAST = 0.25  # of an example: what is known at least of a label that occurs


def has_few(value: float, examples: int) -> bool:
    """Whether a share of so many examples needs `wilson`."""
    return bool(examples < FEW or min(value, 1 - value) * examples < RARE)


def differ_on_few(runs: list[Array]) -> bool:
    """Whether the runs' rows (N, m) differ on too few examples for the bootstrap of their difference."""
    differ = np.zeros(len(runs[0]), bool)
    for run in runs[1:]:
        differ |= (run != runs[0]).any(axis=1)
    return len(differ) < FEW or int(differ.sum()) < DIFFERENT


# one run's share ----------------------------------------------------------------------------------------------------


def wilson(value: float, units: Array, draws: Array, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), at the effective number of examples (Korn & Graubard 1998),
    with Poisson's limit for the rarest.

    units: (N, L), how many things of each of L labels an example has (spans, tags); draws: the share of resamples.
    Examples of one thing each are counted, and the interval is the binomial's. Else the effective number is that whose
    binomial variance the bootstrap's is, and Student's t takes the normal's place. Where all resamples are alike the
    bootstrap knows nothing: then Kish's number for uneven examples and labels (Kish 1965) stands in.
    """
    from scipy.special import ndtri, stdtrit

    n, share = len(units), (1 + level) / 2
    if not np.isfinite(value) or not units.any():
        return Interval(value=value, low=float("nan"), high=float("nan"), error=float("nan"))
    counted = units.shape[1] == 1 and bool((units == 1).all())
    size = float(n) if counted else _effective_examples(value, units, draws)
    z = float(ndtri(share) if counted else stdtrit(max(n - 1, 1), share))
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * float(np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2)))
    low = 0.0 if value == 0 else max(0.0, min(middle - reach, _poisson_limit(value, size, level)))
    high = 1.0 if value == 1 else min(1.0, max(middle + reach, 1 - _poisson_limit(1 - value, size, level)))
    return Interval(value=value, low=low, high=high, error=reach / float(ndtri(share)))


def _poisson_limit(share: float, size: float, level: float) -> float:
    """The lower limit of a share of one to three: Wilson's is too high for the rarest (Brown, Cai & DasGupta 2001)."""
    from scipy.special import gammaincinv

    count = share * size
    return float(gammaincinv(count, 1 - level)) / size if 0 < count < min(POISSON, size / 2) else 1.0


def _effective_examples(value: float, units: Array, draws: Array) -> float:
    n = len(units)
    draws = draws[np.isfinite(draws)]
    variance = float(draws.var()) * n / max(n - 1, 1) if len(draws) else 0.0
    of_label = units[:, units.any(axis=0)]
    total = of_label.sum(axis=0)
    if variance < 1e-12 or not 0 < value < 1:
        return max(1.0, _over_labels(total**2 / (of_label**2).sum(axis=0)))
    return max(1.0, min(value * (1 - value) / variance, _over_labels(total)))


def _over_labels(sizes: Array) -> float:
    """The effective size of a mean over labels that have these sizes each."""
    return float(len(sizes) ** 2 / (1 / np.maximum(sizes, LEAST)).sum())


# a difference of two runs' shares -----------------------------------------------------------------------------------


def add_pseudo_examples(draws: Array, right: Array, wrong: Array, sides: tuple[int, int], seed: int) -> Array:
    """Resampled sums (R, columns) with one example that only the first side gets right and one that only the second
    does: Laplace's adjustment for paired shares (Bonett & Price 2012), drawn as the Bayesian bootstrap weighs examples
    (Rubin 1981). right, wrong: (L, m), an example of each label; sides: the runs of each, whose columns follow.
    """
    first = np.tile(np.concatenate([right, wrong]), (1, sides[0]))
    second = np.tile(np.concatenate([wrong, right]), (1, sides[1]))
    weights = np.random.default_rng([seed, 1]).standard_gamma(1 / len(right), size=(len(draws), 2 * len(right)))
    added: Array = draws + weights @ np.concatenate([first, second], axis=1)
    return added


def interval_around(value: float, draws: Array, level: float = LEVEL) -> Interval:
    """The percentile interval, which holds the value itself: pseudo-examples draw it towards no difference."""
    found = interval(value, draws, level)
    return Interval(value=value, low=min(found.low, value), high=max(found.high, value), error=found.error)


# losses: ratios of two sums -----------------------------------------------------------------------------------------


def jackknife(rows: Array, value: Value, level: float = LEVEL) -> Interval:
    """The interval of value(sum of rows), rows (N, 2), by leaving out one example at a time (Tukey 1958): Student's t
    of the ratio, with the degrees of freedom that examples of uneven length leave (Kish 1965)."""
    from scipy.special import stdtrit

    middle = float(value(rows.sum(axis=0)))
    if len(rows) < 2:
        return Interval(value=middle, low=float("nan"), high=float("nan"), error=float("nan"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _without_each(rows)
        ratio = rows[:, 0].sum() / rows[:, 1].sum()
        reach = float(stdtrit(freedom_of(rows), (1 + level) / 2)) * _jackknife_error(ratios[:, 0] / ratios[:, 1])
        low, high = (float(value(np.array([ratio + sign * reach, 1.0]))) for sign in (-1, 1))
        error = _jackknife_error(value(ratios))
    return Interval(value=middle, low=low, high=high, error=error)


def jackknife_of_logarithm(rows: Array, level: float = LEVEL) -> Interval:
    """As `jackknife`, of a mean of values that are never negative, rows (N, 2) of [value, 1]: on the logarithm's scale,
    where their skewness does least harm (squared errors have a chi-square's)."""
    mean = float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1e-300))
    if not mean > 0:
        return Interval(value=mean, low=mean, high=mean, error=0.0)
    shares = np.stack([np.log(mean) + (rows[:, 0] - mean) / mean, rows[:, 1]], axis=1)
    return jackknife(shares, lambda sums: np.exp(sums[..., 0] / sums[..., 1]), level)


def jackknife_difference(first: Array, second: Array, value: Value, level: float = LEVEL) -> Interval:
    """As `jackknife`, of value(second) - value(first)."""
    from scipy.special import stdtrit

    middle = float(value(second.sum(axis=0)) - value(first.sum(axis=0)))
    if len(first) < 2:
        return Interval(value=middle, low=float("nan"), high=float("nan"), error=float("nan"))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = _jackknife_error(value(_without_each(second)) - value(_without_each(first)))
    reach = float(stdtrit(freedom_of(first), (1 + level) / 2)) * error
    return Interval(value=middle, low=middle - reach, high=middle + reach, error=error)


def freedom_of(rows: Array) -> float:
    """Degrees of freedom of a ratio of sums over examples of uneven length: Kish's effective number less one."""
    lengths = rows[:, 1]
    return max(1.0, float(lengths.sum() ** 2 / max((lengths**2).sum(), 1e-300)) - 1)


def _without_each(rows: Array) -> Array:
    found: Array = rows.sum(axis=0) - rows
    return found


def _jackknife_error(values: Array) -> float:
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))
