"""Our metrics are scikit-learn's, seqeval's and a direct sum's, offline, as functions and as evaluate modules."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import sklearn.metrics

from hf_recipes.catalog.metrics import METRICS
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation import metrics

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize("seed", range(20))
def test_f1_and_accuracy_are_scikit_learns_on_padded_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = rng.choice(9, size=rng.integers(1, 9), replace=False)  # some of nine labels are absent from the split
    gold = rng.choice([*present, -100], size=(rng.integers(1, 30), rng.integers(1, 9)))
    gold[0, 0] = present[0]
    predicted = rng.integers(0, 9, size=gold.shape)
    kept = gold != -100
    wanted = {
        f"f1{name}": sklearn.metrics.f1_score(gold[kept], predicted[kept], average=average, zero_division=0)
        for name, average in (("", "macro"), ("_micro", "micro"), ("_weighted", "weighted"))
    }
    assert metrics.compute("f1", predictions=predicted, references=gold) == pytest.approx(wanted, rel=1e-12)
    wanted = {"accuracy": sklearn.metrics.accuracy_score(gold[kept], predicted[kept])}
    assert metrics.compute("accuracy", predictions=predicted, references=gold) == pytest.approx(wanted, rel=1e-12)


def test_macro_f1_leaves_out_a_label_of_the_model_that_nobody_saw_and_counts_one_wrongly_predicted() -> None:
    assert metrics.compute("f1", predictions=[0, 1, 1], references=[0, 1, 1])["f1"] == 1.0  # a third label is unseen
    assert metrics.compute("f1", predictions=[0, 1, 2], references=[0, 1, 1])["f1"] == pytest.approx(
        (1 + 2 / 3 + 0) / 3
    )


@pytest.mark.parametrize("seed", range(20))
def test_span_f1_is_seqevals_in_both_modes_on_valid_and_invalid_sequences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = [list(rng.choice(TAGS, size=size)) for size in rng.integers(1, 12, size=15)]
    predicted = [[tag if rng.random() < 0.7 else str(rng.choice(TAGS)) for tag in row] for row in gold]
    found = metrics.compute("span_f1", predictions=predicted, references=gold, scheme="IOB2")
    strict = {"mode": "strict", "scheme": seqeval.scheme.IOB2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found == pytest.approx(
            {
                "span_f1": seqeval.metrics.f1_score(gold, predicted),
                "span_precision": seqeval.metrics.precision_score(gold, predicted),
                "span_recall": seqeval.metrics.recall_score(gold, predicted),
                "span_f1_strict": seqeval.metrics.f1_score(gold, predicted, **strict),
            },
            rel=1e-12,
        )


def test_span_f1_reads_the_scheme_off_the_prefixes() -> None:
    for tags in (["B-A", "I-A", "O"], ["B-A", "E-A", "S-B"], ["B-A", "L-A", "U-B"]):
        assert metrics.compute("span_f1", predictions=[tags], references=[tags])["span_f1_strict"] == 1.0
    spans = {"predictions": [["U-A", "U-A", "O"]], "references": [["U-A", "O", "U-A"]]}  # adjacent ones are two
    assert set(metrics.compute("span_f1", **spans).values()) == {0.5}
    # I-A without a B-A is a span for conlleval's mode and none for the strict one
    found = metrics.compute("span_f1", predictions=[["I-A", "O", "O"]], references=[["B-A", "O", "O"]])
    assert (found["span_f1"], found["span_f1_strict"]) == (1.0, 0.0)


def test_no_span_at_all_scores_zero_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.compute("span_f1", predictions=[["O", "O"]], references=[["O", "O"]])
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("seed", range(10))
def test_perplexity_and_bits_per_byte_are_sums_over_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, size=rng.integers(2, 40))
    tokens[0] = 3
    nll = rng.random(len(tokens)) * tokens * 5
    rows = np.stack([nll, tokens], axis=1)
    assert metrics.compute("perplexity", predictions=rows)["perplexity"] == pytest.approx(
        math.exp(math.fsum(nll) / tokens.sum()), rel=1e-12
    )
    assert metrics.compute("bits_per_byte", predictions=rows, total_bytes=777)["bits_per_byte"] == pytest.approx(
        math.fsum(nll) / math.log(2) / 777, rel=1e-12
    )


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    assert metrics.compute("perplexity", predictions=[[1e6, 1]])["perplexity"] == math.inf


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("f1", {"predictions": [], "references": []}, "metric f1: no label is left to score; "),
        ("accuracy", {"predictions": [1], "references": [-100]}, "metric accuracy: no label is left to score; "),
        ("span_f1", {"predictions": [[]], "references": [[]]}, "metric span_f1: no tag is left to score; "),
        ("perplexity", {"predictions": []}, "metric perplexity: no token is left to score; "),
        (
            "bits_per_byte",
            {"predictions": [[0, 0]], "total_bytes": 1},
            "metric bits_per_byte: no token is left to score; ",
        ),
    ],
)
def test_an_empty_split_is_refused_with_the_metrics_name(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        metrics.compute(name, **inputs)
    assert str(refused.value) == message + "is the split empty, or every label -100?"


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        (
            "f1",
            {"predictions": [1, 2], "references": [1]},
            "metric f1: predictions have shape (2,), references (1,)",
        ),
        (
            "span_f1",
            {"predictions": [["O"]], "references": [["O", "O"]]},
            "metric span_f1: predictions and references differ in length",
        ),
        (
            "span_f1",
            {"predictions": [["NOUN"]], "references": [["O"]]},
            "metric span_f1: the tag 'NOUN' has no prefix such as 'B-'; use accuracy for tags without spans",
        ),
        (
            "span_f1",
            {"predictions": [["B-A", "E-A"]], "references": [["B-A", "L-A"]]},
            "metric span_f1: the tags' prefixes B, E, L do not belong to one scheme (IO, IOB1, IOB2, IOE1, IOE2, "
            "IOBES, BILOU, BMES)",
        ),
        (
            "bits_per_byte",
            {"predictions": [[1.0, 1]], "total_bytes": 0},
            "metric bits_per_byte: the evaluated text has 0 bytes",
        ),
    ],
)
def test_inputs_that_cannot_be_scored_are_refused(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        metrics.compute(name, **inputs)
    assert str(refused.value) == message


INPUTS: dict[str, dict[str, Any]] = {
    "f1": {"predictions": [0, 1, 1, 5], "references": [0, 1, -100, 1]},
    "accuracy": {"predictions": [0, 1, 1, 5], "references": [0, 1, -100, 1]},
    "span_f1": {"predictions": [["B-A", "O"], ["O"]], "references": [["B-A", "B-A"], ["O"]]},
    "mse": {"predictions": [0.5, 1.0, 2.5], "references": [1.0, 1.5, 2.0]},
    "pearsonr": {"predictions": [0.5, 1.0, 2.5], "references": [1.0, 1.5, 2.0]},
    "spearmanr": {"predictions": [0.5, 1.0, 2.5], "references": [1.0, 2.0, 2.0]},
    "perplexity": {"predictions": [[1.5, 2], [3.25, 4]]},
    "bits_per_byte": {"predictions": [[1.5, 2], [3.25, 4]], "total_bytes": 11},
}


def test_every_metric_loads_as_an_evaluate_module_offline_and_equals_its_function(tmp_path: Any) -> None:
    """In a process of its own: HF_HUB_OFFLINE is read at import, and a fresh HF_HOME has nothing cached."""
    import os

    script = """
import importlib, json, sys
from hf_recipes.catalog.metrics import METRICS
from hf_recipes.evaluation import metrics
found = {}
for name, inputs in json.loads(sys.argv[1]).items():
    entry = METRICS[name]
    used_directly = getattr(importlib.import_module(entry.module), entry.class_name)()
    found[name] = [m.compute(**inputs) for m in (metrics.load(name), used_directly)]
print(json.dumps(found))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(INPUTS)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == set(METRICS)
    for name, (loaded, direct) in found.items():
        wanted = metrics.compute(name, **INPUTS[name])
        assert loaded == direct == wanted
        assert tuple(wanted) == METRICS[name].keys  # the table names what is computed


def test_importing_the_metrics_imports_nothing_heavy() -> None:
    script = """
import sys, hf_recipes.evaluation.metrics, hf_recipes.evaluation.scores
print(sorted({"torch", "evaluate", "sklearn", "pyarrow"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
