"""The sums behind compare are scikit-learn's, seqeval's and a direct computation's; its tests are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from seqeval.metrics import f1_score as span_f1_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score

from hf_recipes.compare import measures, statistics
from hf_recipes.compare.intervals import interval_of_groups
from hf_recipes.evaluation.scores import read_scores, score_batches, write_scores

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def _saved(folder: Path, task: str, predictions: object, label_ids: object, names: tuple[str, ...], n: int):
    ids = [f"{i:032x}" for i in range(n)]
    batches = score_batches(task, ids=ids, predictions=predictions, label_ids=label_ids)
    scheme = "IOB2" if task == "token-classification" else ""
    write_scores(folder / "scores.parquet", task, batches, label_names=names, scheme=scheme)
    return read_scores(folder / "scores.parquet")


def _number(measure: measures.Measure, scores: object) -> float:
    return float(measure.value(measure.rows(scores).sum(axis=0)))


@pytest.mark.parametrize("seed", range(8))
def test_a_classifiers_metrics_are_scikit_learns(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, labels = int(rng.integers(1, 60)), int(rng.integers(2, 6))
    gold = rng.integers(0, max(1, labels - seed % 2), n)  # the last label may be absent from the split
    logits = rng.normal(size=(n, labels)) + 2 * np.eye(labels)[gold]
    predicted = logits.argmax(axis=1)
    scores = _saved(tmp_path, "text-classification", logits, gold, tuple(map(str, range(labels))), n)
    assert _number(measures.ACCURACY, scores) == pytest.approx(accuracy_score(gold, predicted))
    for measure, average in ((measures.F1, "macro"), (measures.F1_MICRO, "micro"), (measures.F1_WEIGHTED, "weighted")):
        expected = f1_score(gold, predicted, average=average, zero_division=0)
        assert _number(measure, scores) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
def test_a_taggers_spans_are_seqevals_in_both_modes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, length = int(rng.integers(2, 20)), 9
    gold = rng.choice(len(TAGS), size=(n, length), p=(0.4, 0.2, 0.15, 0.15, 0.1))
    predicted = np.where(rng.random((n, length)) < 0.8, gold, rng.integers(0, len(TAGS), (n, length)))
    for row, kept in enumerate(rng.integers(1, length + 1, n)):
        gold[row, kept:] = -100  # padding
    rows = np.ones((n, 2))
    scores = _saved(tmp_path, "token-classification", (predicted, rows), gold, TAGS, n)
    kept = gold != -100
    names = [[[TAGS[t] for t in row[keep]] for row, keep in zip(ids, kept, strict=True)] for ids in (gold, predicted)]
    assert _number(measures.SPAN_F1, scores) == pytest.approx(span_f1_score(*names, zero_division=0))
    strict = span_f1_score(*names, mode="strict", scheme=IOB2, zero_division=0)
    assert _number(measures.SPAN_F1_STRICT, scores) == pytest.approx(strict)
    assert _number(measures.ACCURACY, scores) == pytest.approx(accuracy_score(gold[kept], predicted[kept]))
    assert _number(measures.F1, scores) == pytest.approx(
        f1_score(gold[kept], predicted[kept], average="macro", zero_division=0)
    )


def test_perplexity_and_bits_per_byte_are_the_direct_computation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.gamma(3, 20, 50), rng.integers(1, 90, 50)], axis=1)
    n_bytes = rng.integers(50, 400, 50)
    batches = score_batches("causal-lm", ids=[str(i) for i in range(50)], predictions=rows, n_bytes=n_bytes)
    write_scores(tmp_path / "scores.parquet", "causal-lm", batches)
    scores = read_scores(tmp_path / "scores.parquet")
    assert _number(measures.PERPLEXITY, scores) == pytest.approx(np.exp(rows[:, 0].sum() / rows[:, 1].sum()))
    assert _number(measures.BITS_PER_BYTE, scores) == pytest.approx(rows[:, 0].sum() / np.log(2) / n_bytes.sum())


def test_equal_rows_drawn_together_are_the_same_bootstrap_as_rows_drawn_alone() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random(400) < 0.7).astype(float)
    rows = np.stack([right, np.ones(400)], axis=1)
    together = measures.ratio(statistics.bootstrap(rows, 20_000, 0))
    alone = measures.ratio(statistics.bootstrap(rows + 1e-9, 20_000, 0))  # real numbers are not collapsed
    exact = np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert together.std() == pytest.approx(exact, rel=0.03) and alone.std() == pytest.approx(exact, rel=0.03)


def test_the_bootstrap_of_many_real_rows_has_the_spread_that_theory_gives() -> None:
    rng = np.random.default_rng(2)
    n = 60_000
    rows = np.stack([1000 + rng.normal(0, 3, n), np.ones(n)], axis=1)
    draws = measures.ratio(statistics.bootstrap(rows, 1000, 0))  # n x 1000 draws: by Poisson weights
    assert draws.mean() == pytest.approx(rows[:, 0].mean(), abs=0.01)
    assert draws.std() == pytest.approx(3 / np.sqrt(n), rel=0.1)


def test_the_bootstrap_t_interval_of_a_mean_is_students() -> None:
    rng = np.random.default_rng(3)
    tokens = np.ones(200)
    first = np.stack([rng.normal(2, 0.3, 200), tokens], axis=1)
    second = np.stack([first[:, 0] + rng.normal(0.05, 0.2, 200), tokens], axis=1)
    found, _ = statistics.studentised(first, second, measures.bits, measures.per_bit, 20_000, 0)
    apart = (second[:, 0] - first[:, 0]) / np.log(2)
    reach = 1.972 * apart.std(ddof=1) / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((apart.mean() - reach, apart.mean() + reach), abs=0.05 * reach)


def test_mcnemar_is_the_exact_binomial_and_holm_the_textbooks() -> None:
    first = np.array([True] * 30 + [False] * 10 + [True] * 60)
    second = np.array([False] * 30 + [True] * 10 + [True] * 60)
    assert statistics.mcnemar(first, second) == pytest.approx(binomtest(30, 40, 0.5).pvalue)
    assert statistics.mcnemar(first, first) == 1.0
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_randomisation_of_accuracy_agrees_with_mcnemar_and_of_equal_runs_is_one() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random(300) < 0.8, rng.random(300) < 0.87
    rows = [np.stack([run, np.ones(300)], axis=1).astype(float) for run in (first, second)]
    p = statistics.randomisation(rows[0], rows[1], measures.ratio, 20_000, 0)
    assert p == pytest.approx(statistics.mcnemar(first, second), abs=0.01)
    assert statistics.randomisation(rows[0], rows[0], measures.ratio) == 1.0


def test_a_seed_gives_the_same_numbers_again() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(3000, 2))
    for n in (200, 3000):
        first, again, other = (statistics.bootstrap(rows[:n], 200, seed) for seed in (7, 7, 8))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_seeds_of_one_recipe_against_seeds_of_the_same_one_seldom_differ() -> None:
    rng = np.random.default_rng(6)
    rejected = 0
    for trial in range(200):
        hard = rng.random(200)
        groups = []
        for _ in range(2):
            runs = []
            for _ in range(3):
                chance = 0.8 + rng.normal(0, 0.02)  # what the seed does
                draw = np.where(rng.random(200) < 0.7, hard, rng.random(200))
                runs.append(np.stack([draw < chance, np.ones(200)], axis=1).astype(float))
            groups.append(runs)
        _, p, _ = interval_of_groups(measures.ACCURACY, groups[0], groups[1], 300, trial)
        rejected += p < 0.05
    assert rejected <= 18  # 5 % of 200, with three standard errors


def test_the_committed_simulation_keeps_what_was_promised(root: Path) -> None:
    found = json.loads((root / "benchmarks/results/comparison.json").read_text(encoding="utf-8"))
    assert found["pairs"] == 10_000 and len(found["cases"]) == 4
    for case in found["cases"].values():
        assert 0.93 <= case["no difference"]["coverage"] <= 0.97 and 0.93 <= case["a difference"]["coverage"] <= 0.97
        assert 0.04 <= case["no difference"]["rejected"] <= 0.06


def test_the_committed_simulation_of_few_examples_and_of_seeds_keeps_what_was_promised(root: Path) -> None:
    found = json.loads((root / "benchmarks/results/comparison.json").read_text(encoding="utf-8"))
    few, seeds = found["few"], found["seeds"]
    assert {row["examples"] for row in few["rows"]} == {5, 10, 20, 50} and few["draws"] == 2_000
    assert min(row[key] for row in few["rows"] for key in ("one_run", "coverage_of_difference")) >= 0.93
    assert len(seeds["rows"]) == 27 and seeds["draws"] == 3_000
    for row in seeds["rows"]:
        assert 0.94 <= row["coverage"] <= (0.985 if row["seeds"] == 2 else 0.98)
