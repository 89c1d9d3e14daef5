"""How much faster, from pairs of trials. Pure.

Two settings take turns, A B B A A B, so that a machine that grows slower or busier slows both. Each pair gives one
ratio of speeds; the interval is Student's over the logarithms of the pairs' ratios. Steps of one trial share their
moment's noise, so they are not counted as if each were a measurement of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
SLOWER = 1 / 1.1  # of both of the first two pairs: the others are not worth their time


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Some steps of one setting. Lists have a value a timed step; `losses` and `first_losses` are logged values."""

    seconds: tuple[float, ...]
    tokens: tuple[int, ...]  # without padding
    losses: tuple[float, ...] = ()  # as the recipe logs them
    first_losses: tuple[float, ...] = ()  # of the first steps without dropout, where they were asked for
    waiting: float = 0.0  # seconds waiting for the data loader, of all steps
    start_seconds: float = 0.0  # model, trainer and the steps that are not timed
    peak_bytes: int | None = None  # on a GPU
    attention: str | None = None
    flops_per_token: float | None = None
    peak_flops: float | None = None  # of the GPU in this precision, where it is known

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / sum(self.seconds)

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> float | None:
        if self.flops_per_token is None or not self.peak_flops:
            return None
        return self.tokens_per_second * self.flops_per_token / self.peak_flops


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Times as fast as before, with its 95 % interval; None where there are too few pairs for one."""

    times: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def faster(self) -> bool:
        return self.low is not None and self.low > 1

    @property
    def slower(self) -> bool:
        return self.high is not None and self.high < 1

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.times:.2f} times as fast in {self.pairs} pair{'s' * (self.pairs > 1)}"
        return f"{self.times:.2f} times as fast ({self.low:.2f} to {self.high:.2f}, {self.pairs} pairs)"


def order_of(pairs: int) -> list[tuple[bool, bool]]:
    """For each pair, which comes first and second: False is A, True is B."""
    return [(False, True) if number % 2 == 0 else (True, False) for number in range(pairs)]


def ratio_of(before: Trial, after: Trial, *, same_rows: bool) -> float:
    """How many times as fast `after` is. Steps on the same rows are paired, and the median taken; else totals count."""
    if same_rows and len(before.seconds) == len(after.seconds):
        steps = zip(before.seconds, after.seconds, before.tokens, after.tokens, strict=True)
        return statistics.median((a / tokens_a) / (b / tokens_b) for a, b, tokens_a, tokens_b in steps)
    return after.tokens_per_second / before.tokens_per_second


def gain_of(ratios: Sequence[float]) -> Gain:
    """Of the pairs' ratios."""
    logs = [math.log(one) for one in ratios]
    mean, reach = statistics.fmean(logs), _reach(logs)
    if reach is None:
        return Gain(times=math.exp(mean), low=None, high=None, pairs=len(logs))
    return Gain(times=math.exp(mean), low=math.exp(mean - reach), high=math.exp(mean + reach), pairs=len(logs))


def is_hopeless(ratios: Sequence[float]) -> bool:
    """Whether two pairs were clearly slower: more of them would change nothing."""
    return len(ratios) == 2 and max(ratios) < SLOWER


def loss_rises(pairs: Sequence[tuple[Trial, Trial]]) -> bool:
    """Whether the mean loss of the trials is higher afterwards, beyond their noise."""
    apart = [
        statistics.fmean(after.losses) - statistics.fmean(before.losses)
        for before, after in pairs
        if before.losses and after.losses
    ]
    reach = _reach(apart)
    return reach is not None and statistics.fmean(apart) - reach > 0


def losses_differ(before: Sequence[float], after: Sequence[float], tolerance: float) -> float | None:
    """The largest relative difference of two trials' first losses, where it is beyond `tolerance`; else None."""
    apart = [abs(a - b) / max(abs(a), 1e-6) for a, b in zip(before, after, strict=True)]
    largest = max((each if math.isfinite(each) else math.inf for each in apart), default=math.inf)
    return largest if largest > tolerance else None


def _reach(values: Sequence[float]) -> float | None:
    """Half of the interval of a mean; None for fewer than three values."""
    if len(values) < 3:
        return None
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
