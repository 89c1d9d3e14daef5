"""Resamples of many runs at once. Which examples are drawn, and which are exchanged, does not depend on the run: with
many runs it is drawn once for all, and one matrix product gives the sums of every run. The distribution is that of
statistics.py, where each pair of runs has draws of its own; that is faster for few runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hf_recipes.compare.statistics import Array

Kind = TypeVar("Kind", bound=Hashable)

MANY = 50  # runs, from which on draws are shared
BATCH = 128  # runs whose sums are held at a time
CELLS = 2**24  # draws that are held at a time; also the largest whole number that single precision has


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Of one run: (resamples, m) sums of its rows over examples drawn with replacement, and what those sums gain
    where each example's rows are exchanged with the first run's with probability 1/2."""

    sums: Array
    moved: Array


def draw_shared(kinds: Mapping[Kind, Sequence[Array]], resamples: int, seed: int) -> dict[Kind, list[Drawn]]:
    """`kinds`: by the kind of rows, the rows (N, m) of each run, the first run first. A kind whose sums single
    precision could not hold is left out."""
    kept = {kind: runs for kind, runs in kinds.items() if _are_counts(runs)}
    if not kept:
        return {}
    every, apart = _Columns(), _Columns()
    places = {kind: [(every.add(run), apart.add(run - runs[0])) for run in runs] for kind, runs in kept.items()}
    sums, moved = _multiply(every.stack(), apart.stack(), resamples, seed)
    return {
        kind: [Drawn(sums=sums[first].T, moved=moved[second].T) for first, second in of_runs]
        for kind, of_runs in places.items()
    }


def _are_counts(runs: Sequence[Array]) -> bool:
    largest = max(float(np.abs(run).max(initial=0.0)) for run in runs)
    return len(runs[0]) * largest < CELLS and all(np.array_equal(run, np.round(run)) for run in runs)


class _Columns:
    """Columns of rows, each once: the gold labels of all runs are the same."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def add(self, rows: Array) -> list[int]:
        columns = np.ascontiguousarray(rows.T, np.float32)
        return [self._places.setdefault(column.tobytes(), len(self._places)) for column in columns]

    def stack(self) -> Array:
        return np.stack([np.frombuffer(column, np.float32) for column in self._places])


def _multiply(every: Array, apart: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """Two times (columns, N) to (columns, resamples)."""
    n = every.shape[1]
    drawing, exchanging = np.random.default_rng([seed, 2]), np.random.default_rng([seed, 3])
    sums, moved = (np.empty((len(part), resamples), np.float32) for part in (every, apart))
    step = max(1, CELLS // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = drawing.integers(0, n, size=(size, n)) + (np.arange(size) * n)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float32)
        np.matmul(every, weights.T, out=sums[:, start : start + size])
        bits = exchanging.integers(0, 256, size=(size, -(-n // 8)), dtype=np.uint8)
        signs = np.unpackbits(bits, axis=1)[:, :n].astype(np.float32)
        np.matmul(apart, signs.T, out=moved[:, start : start + size])
    return sums, moved
