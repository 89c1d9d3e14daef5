"""Do compare's intervals and tests keep what they promise? `python benchmarks/comparison.py`: pairs of simulated runs.

Writes benchmarks/results/comparison.json. Coverage: how often the 95 % interval holds the true difference, with and
without one. False positives: how often a test at 5 % sees a difference where there is none. Fixed seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.compare import measures, statistics

RESULTS = Path(__file__).resolve().parent / "results" / "comparison.json"
PAIRS, RESAMPLES, SEED = 10_000, 1_000, 0
Array = np.ndarray


def class_rows(gold: Array, predicted: Array, labels: int) -> Array:
    """(N, 3K), as measures._class_rows makes them of a run's scores."""
    n, every, hit = len(gold), np.arange(len(gold)), gold == predicted
    found = np.zeros((n, 3, labels))
    found[every[hit], 0, gold[hit]] = 1
    found[every, 1, predicted] = 1
    found[every, 2, gold] = 1
    return found.reshape(n, 3 * labels)


def classifiers(rng: np.random.Generator, n: int, right: tuple[float, float]) -> tuple[Array, Array]:
    """Two classifiers over four uneven classes that are right with these probabilities and share hard examples."""
    gold = rng.choice(4, size=n, p=(0.4, 0.3, 0.2, 0.1))
    hard = rng.random(n)  # an example that is hard for one is hard for the other
    rows = []
    for chance in right:
        draw = np.where(rng.random(n) < 0.5, hard, rng.random(n))
        predicted = np.where(draw < chance, gold, (gold + rng.integers(1, 4, n)) % 4)
        rows.append(class_rows(gold, predicted, 4))
    return rows[0], rows[1]


def language_models(rng: np.random.Generator, n: int, nats: tuple[float, float]) -> tuple[Array, Array]:
    """Two models over documents of uneven length (lognormal); a document's difficulty is shared."""
    tokens = np.ceil(rng.lognormal(4, 1, n))
    shared = rng.normal(0, 0.5, n)
    rows = [np.stack([tokens * (mean + shared + rng.normal(0, 0.2, n)), tokens], axis=1) for mean in nats]
    return rows[0], rows[1]


CASES: dict[str, tuple[Callable[..., tuple[Array, Array]], int, Any, Any, Any]] = {
    "macro F1, 500 examples": (classifiers, 500, measures.macro_f1, (0.8, 0.8), (0.8, 0.85)),
    "macro F1, 2,000 examples": (classifiers, 2000, measures.macro_f1, (0.9, 0.9), (0.9, 0.92)),
    "perplexity, 300 documents of uneven length": (
        language_models, 300, measures.exponential, (3.0, 3.0), (3.0, 3.03),
    ),
    "perplexity, 1,000 documents of uneven length": (
        language_models, 1000, measures.exponential, (3.0, 3.0), (3.0, 3.02),
    ),
}  # fmt: skip


def simulate(pairs: int = PAIRS, resamples: int = RESAMPLES) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": pairs, "resamples": resamples, "seed": SEED, "cases": {}}
    for name, (make, n, value, null, real) in CASES.items():
        slope = value if value is measures.exponential else None
        began = time.process_time()
        entry: dict[str, Any] = {"examples": n}
        for kind, setting in (("no difference", null), ("a difference", real)):
            rng = np.random.default_rng(SEED)
            truth = _truth(make, setting, value)
            covered = positives = 0
            count = pairs if kind == "no difference" else pairs // 5  # what must be tight is the rate without one
            for pair in range(count):
                a, b = make(rng, n, setting)
                difference = float(value(b.sum(axis=0)) - value(a.sum(axis=0)))
                if slope is not None:
                    interval, _ = statistics.studentised(a, b, value, slope, resamples, pair)
                else:
                    draws = statistics.bootstrap(np.concatenate([a, b], axis=1), resamples, pair)
                    width = a.shape[1]
                    interval = statistics.interval(difference, value(draws[:, width:]) - value(draws[:, :width]))
                covered += bool(interval.low <= truth <= interval.high)
                positives += statistics.randomisation(a, b, value, resamples, pair) < 0.05
            entry[kind] = {"pairs": count, "truth": truth, "coverage": covered / count, "rejected": positives / count}
        entry["seconds"] = round(time.process_time() - began, 1)
        found["cases"][name] = entry
        print(name, entry, flush=True)
    return found


def _truth(make: Any, setting: Any, value: Any) -> float:
    """The difference on two million examples; none where both are made alike."""
    if setting[0] == setting[1]:
        return 0.0
    rng = np.random.default_rng(SEED + 1)
    sums = [np.stack([part.sum(axis=0) for part in make(rng, 200_000, setting)]) for _ in range(10)]
    a, b = np.sum(sums, axis=0)
    return float(value(b) - value(a))


def main() -> None:
    RESULTS.write_text(json.dumps(simulate(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
