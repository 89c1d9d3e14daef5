"""Do compare's intervals and tests keep what they promise? `python benchmarks/comparison.py`: pairs of simulated runs.

    python benchmarks/comparison.py                 all of it
    python benchmarks/comparison.py --only few      pairs of runs over 5 to 50 examples
    python benchmarks/comparison.py --only seeds    two recipes over 2 to 5 seeds each
    python benchmarks/comparison.py --only kinds    several labels an example, and scores

Writes benchmarks/results/comparison.json. Coverage: how often the 95 % interval holds the true value, with and without
a difference. False positives: how often a test at 5 % sees a difference where there is none. Fixed seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.compare import correlations, measures, statistics
from hf_recipes.compare.intervals import intervals_of_pair

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


# few examples -------------------------------------------------------------------------------------------------------

EXAMPLES, FEW_DRAWS, FEW_RESAMPLES = (5, 10, 20, 50), 2_000, 400
LEVELS = ((0.5, 0.5), (0.8, 0.8), (0.95, 0.95), (0.8, 0.9))  # of the two runs
MIXES = {2: (0.5, 0.5), 4: (0.4, 0.3, 0.2, 0.1)}  # how often each label occurs


def labelled(labels: int, rng: np.random.Generator, n: int, right: tuple[float, float]) -> tuple[Array, Array]:
    """As `classifiers`, with even or uneven labels."""
    gold = rng.choice(labels, size=n, p=MIXES[labels])
    hard = rng.random(n)
    rows = []
    for chance in right:
        draw = np.where(rng.random(n) < 0.5, hard, rng.random(n))
        rows.append(
            class_rows(gold, np.where(draw < chance, gold, (gold + rng.integers(1, labels, n)) % labels), labels)
        )
    return rows[0], rows[1]


def marked(rng: np.random.Generator, n: int, right: tuple[float, float]) -> tuple[Array, Array]:
    """Right or wrong, one an example: rows of accuracy."""
    a, b = labelled(2, rng, n, right)
    return tuple(np.stack([one[:, :2].sum(axis=1), np.ones(n)], axis=1) for one in (a, b))  # type: ignore[return-value]


def taggers(rng: np.random.Generator, n: int, right: tuple[float, float]) -> tuple[Array, Array]:
    """Two taggers over sentences with one to five spans; a sentence that is hard for one is hard for the other."""
    spans, hard, rows = 1 + rng.binomial(4, 0.4, n), rng.normal(0, 1, n), []
    for chance in right:
        hits = rng.binomial(spans, 1 / (1 + np.exp(-(np.log(chance / (1 - chance)) + hard))))
        rows.append(np.stack([hits, hits + rng.binomial(spans - hits, 0.7), spans], axis=1).astype(float))
    return rows[0], rows[1]


FEW_CASES: dict[str, tuple[measures.Measure, Callable[..., tuple[Array, Array]], tuple[Any, ...]]] = {
    "accuracy": (measures.ACCURACY, marked, LEVELS),
    "macro F1, 2 labels": (measures.F1, lambda *words: labelled(2, *words), LEVELS),
    "macro F1, 4 uneven labels": (measures.F1, lambda *words: labelled(4, *words), LEVELS),
    "span F1": (measures.SPAN_F1, taggers, LEVELS),
    "perplexity": (measures.PERPLEXITY, language_models, ((3.0, 3.0), (3.0, 3.1))),
}


def several_labels(rng: np.random.Generator, n: int, right: tuple[float, float]) -> tuple[Array, Array]:
    """Two runs over examples with any of four labels, some rare; an example that is hard for one is hard for the
    other, with all its labels."""
    gold = rng.random((n, 4)) < np.array(MIXES[4])
    hard, rows = rng.random((n, 1)), []
    for chance in right:
        draw = np.where(rng.random((n, 4)) < 0.5, hard, rng.random((n, 4)))
        predicted = np.where(draw < chance, gold, rng.random((n, 4)) < 0.5)
        rows.append(np.stack([gold & predicted, predicted, gold], axis=1).reshape(n, -1).astype(float))
    return rows[0], rows[1]


def _micro(make: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    def rows(*given: Any) -> tuple[Array, Array]:
        return tuple(one.reshape(len(one), 3, -1).sum(axis=2) for one in make(*given))  # type: ignore[return-value]

    return rows


def _scored(to_rows: Callable[[Array, Array], Array]) -> Callable[..., tuple[Array, Array]]:
    """Two runs that predict a skewed score, with normal errors that share a part."""

    def make(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> tuple[Array, Array]:
        gold, shared = rng.gamma(4.0, 0.5, n), rng.normal(0, 0.3, n)
        a, b = (to_rows(gold, gold + shared + rng.normal(0, spread, n)) for spread in noise)
        return a, b

    return make


NOISES = ((0.5, 0.5), (0.5, 0.6))
KIND_EXAMPLES = (50, 200)
KIND_CASES: dict[str, tuple[measures.Measure, Callable[..., tuple[Array, Array]], tuple[Any, ...]]] = {
    "macro F1, several labels": (measures.F1_OF_ALL, several_labels, LEVELS[1:]),
    "micro F1, several labels": (measures.F1_MICRO, _micro(several_labels), LEVELS[1:]),
    "mean squared error": (measures.MSE, _scored(correlations.squared_errors), NOISES),
    "Pearson's correlation": (measures.PEARSON, _scored(correlations.pearson_rows), NOISES),
    "Spearman's correlation": (measures.SPEARMAN, _scored(correlations.spearman_rows), NOISES),
}


def simulate_kinds(draws: int = FEW_DRAWS // 2, resamples: int = FEW_RESAMPLES) -> dict[str, Any]:
    """As simulate_few, of multi-label and regression runs."""
    return simulate_few(draws, resamples, KIND_CASES, KIND_EXAMPLES)


def simulate_few(
    draws: int = FEW_DRAWS, resamples: int = FEW_RESAMPLES, cases: Any = None, sizes: tuple[int, ...] = EXAMPLES
) -> dict[str, Any]:
    """How often the interval of the first run, and that of the difference, hold the truth."""
    found: dict[str, Any] = {"draws": draws, "resamples": resamples, "seed": SEED, "rows": []}
    for name, (measure, make, levels) in (cases or FEW_CASES).items():
        for level in levels:
            truths = _truths(make, level, measure.value)
            for n in sizes:
                rng, held = np.random.default_rng(SEED), np.zeros(3)
                for draw in range(draws):
                    a, b = make(rng, n, level)
                    ends, apart = intervals_of_pair(measure, a, b, resamples, draw)
                    held += (
                        _holds(ends[0], truths[0]),
                        _holds(apart, truths[1] - truths[0]),
                        not (apart.low <= 0 <= apart.high),
                    )
                entry = {"metric": name, "levels": level, "examples": n, "truth": truths[0]}
                entry |= {"difference": truths[1] - truths[0]}
                keys = ("one_run", "coverage_of_difference", "excludes_zero")
                found["rows"].append(entry | dict(zip(keys, (held / draws).tolist(), strict=True)))
                print(found["rows"][-1], flush=True)
    return found


def _holds(interval: statistics.Interval, truth: float) -> bool:
    return bool(interval.low - 1e-12 <= truth <= interval.high + 1e-12)


def _truths(make: Any, level: Any, value: Any) -> tuple[float, float]:
    """Both runs' values on two million examples."""
    rng = np.random.default_rng(SEED + 1)
    sums = [np.stack([part.sum(axis=0) for part in make(rng, 200_000, level)]) for _ in range(10)]
    a, b = (float(value(one)) for one in np.sum(sums, axis=0))
    return (a, a) if level[0] == level[1] else (a, b)


# recipes over seeds -------------------------------------------------------------------------------------------------

GROUP_EXAMPLES, GROUP_SEEDS, EFFECTS = (200, 600, 2000), (2, 3, 5), (0.0, 0.1, 0.3)
GROUP_DRAWS = 3_000
EASE, HARD = 1.5, 1.5  # log-odds of a right answer: their mean, and the spread over examples


def simulate_seeds(draws: int = GROUP_DRAWS) -> dict[str, Any]:
    """Accuracy of two recipes alike. `effect`: the spread of the log-odds over the seeds. The covariance is what a
    bootstrap of the examples converges to."""
    found: dict[str, Any] = {"draws": draws, "seed": SEED, "rows": []}
    for n in GROUP_EXAMPLES:
        for seeds in GROUP_SEEDS:
            for effect in EFFECTS:
                rng, held = np.random.default_rng([SEED, n, seeds, int(10 * effect)]), 0
                for _ in range(draws):
                    odds = EASE + rng.normal(0, HARD, n) + effect * rng.normal(size=(2 * seeds, 1))
                    right = (rng.random((2 * seeds, n)) < 1 / (1 + np.exp(-odds))).astype(float)
                    means = right.mean(axis=1)
                    covariance = np.cov(right, bias=True) / n
                    interval, _, _ = statistics.grouped(covariance, (means[:seeds], means[seeds:]), n - 1)
                    held += _holds(interval, 0.0)
                row = {"examples": n, "seeds": seeds, "effect": effect, "coverage": held / draws}
                found["rows"].append(row)
                print(row, flush=True)
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", choices=("many", "few", "seeds", "kinds"))
    only = words.parse_args().only
    parts = (("many", simulate), ("few", simulate_few), ("seeds", simulate_seeds), ("kinds", simulate_kinds))
    for name, simulation in parts:
        if only in (None, name):
            made = simulation()
            found = json.loads(RESULTS.read_text(encoding="utf-8"))  # other parts may have been made meanwhile
            found |= made if name == "many" else {name: made}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
