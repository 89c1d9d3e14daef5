"""Several labels, scores, pairs of texts and weighted classes: trained, scored, compared, reported and loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_recipes.compare.pairing import pair_runs
from hf_recipes.compare.runs import read_runs
from hf_recipes.compare.verdict import compare, group_sides
from hf_recipes.evaluation.scores import read_scores
from hf_recipes.inference.classify import classify_texts
from hf_recipes.inference.trained import find_trained, load_trained
from hf_recipes.pipeline.run import run
from tests.support.tiny_models import wordpiece, write_rows

WORDS = ("sea", "house", "light", "water", "long", "good", "new", "old", "day", "time", "man", "small")
TOPICS = {"sea": "nature", "light": "nature", "house": "home", "old": "age", "new": "age"}
RECIPE = """
task: text-classification
model:
  config: {{model_type: bert, hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
    max_position_embeddings: 64}}
  problem_type: {kind}
tokenizer: {{pretrained_model_name_or_path: tokenizer}}
dataset: {{path: json, data_files: {{train: train.jsonl, validation: validation.jsonl}}{columns}}}
TrainingArguments: {{output_dir: first, max_steps: {steps}, per_device_train_batch_size: 16, learning_rate: 5e-3,
  report_to: none, save_strategy: "no", disable_tqdm: true}}
disable_guards: [overlap]
{more}
"""


def texts(count: int) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [[WORDS[i] for i in rng.choice(len(WORDS), 4, replace=False)] for _ in range(count)]


def topics_of(words: list[str]) -> list[str]:
    return sorted({TOPICS[word] for word in words if word in TOPICS})


def score_of(words: list[str]) -> float:
    return round(sum(WORDS.index(word) for word in words) / 10, 2)


@pytest.fixture
def two_runs(folder: Path, write_recipe: Callable[[str], str]) -> Callable[..., list[dict[str, Any]]]:
    """Trains a recipe with two seeds; returns both records. The second run trains for a few steps only."""

    def make(rows: list[dict], kind: str, columns: str = "", more: str = "", steps: int = 40) -> list[dict[str, Any]]:
        wordpiece(WORDS).save_pretrained("tokenizer")
        write_rows("train.jsonl", rows[:96])
        write_rows("validation.jsonl", rows[96:])
        recipe = write_recipe(RECIPE.format(kind=kind, columns=columns, more=more, steps=steps))
        second = ["TrainingArguments.output_dir=second", "TrainingArguments.max_steps=2", "TrainingArguments.seed=1"]
        return [json.loads(run(recipe, words).read_text()) for words in ([], second)]

    return make


def verdicts() -> dict[str, str]:
    """Of the second run against the first, which trained longer, by metric."""
    paired = pair_runs(read_runs(["first", "second"]))
    found = compare(paired, group_sides(paired.runs, False), resamples=400)
    return {one.metric: one.verdict for one in found.findings[0]}


def test_several_labels_a_text_are_trained_scored_and_loaded_again(two_runs: Callable) -> None:
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import pipeline

    rows = [{"text": " ".join(words), "label": topics_of(words)} for words in texts(160)]
    record, other = two_runs(
        rows, "multi_label_classification", more="threshold: 0.4\nclass_weights: balanced", steps=80
    )
    found, scores = record["metrics"]["eval"], read_scores("first/scores.parquet")
    assert scores.task == "multi-label-classification"
    probabilities = np.array(scores.table["probabilities"].to_pylist())
    gold = np.zeros_like(probabilities, dtype=int)
    for row, labels in zip(gold, scores.table["gold"].to_pylist(), strict=True):
        row[labels] = 1
    predicted = (probabilities >= 0.4).astype(int)
    for key, average in (("f1", "macro"), ("f1_micro", "micro"), ("f1_weighted", "weighted")):
        assert found[f"eval_{key}"] == pytest.approx(
            f1_score(gold, predicted, average=average, zero_division=0), abs=1e-9
        )
    assert found["eval_accuracy"] == pytest.approx(accuracy_score(gold, predicted), abs=1e-9)
    assert found["eval_f1"] > other["metrics"]["eval"]["eval_f1"]
    assert verdicts().keys() == {"f1", "accuracy", "f1_micro", "f1_weighted"}
    assert scores.label_names == ("age", "home", "nature")

    trained = load_trained(find_trained("first"))
    said = list(classify_texts(trained, rows[96:], 8))
    assert [one["labels"] for one in said] == [
        [name for name, there in zip(scores.label_names, row, strict=True) if there] for row in predicted
    ]  # by the recipe's threshold, as the scores

    config = json.loads(Path("first/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    loaded = pipeline("text-classification", model="first", top_k=None)
    given = {one["label"]: one["score"] for one in loaded("sea house")[0]}
    assert set(given) == {"age", "home", "nature"} and abs(sum(given.values()) - 1) > 1e-3  # sigmoids, not a softmax
    assert "| age |" in Path("first/report.md").read_text()


@pytest.mark.slow
def test_scores_are_learned_by_regression_and_equal_scipys(two_runs: Callable) -> None:
    from scipy import stats
    from transformers import AutoModelForSequenceClassification

    rows = [{"text": " ".join(words), "label": score_of(words)} for words in texts(160)]
    record, other = two_runs(rows, "regression", steps=60)
    found, table = record["metrics"]["eval"], read_scores("first/scores.parquet").table
    gold, predicted = table["gold"].to_numpy(), table["predicted"].to_numpy()
    assert found["eval_mse"] == pytest.approx(float(np.mean((gold - predicted) ** 2)), rel=1e-9)
    assert found["eval_loss"] == found["eval_mse"]
    assert found["eval_pearsonr"] == pytest.approx(stats.pearsonr(gold, predicted).statistic, abs=1e-9)
    assert found["eval_spearmanr"] == pytest.approx(stats.spearmanr(gold, predicted).statistic, abs=1e-9)
    assert found["eval_mse"] < other["metrics"]["eval"]["eval_mse"]
    assert verdicts()["mse"] == "worse"
    intervals = record["intervals"]["eval"]
    for name in ("mse", "pearsonr", "spearmanr"):
        assert intervals[name]["low"] < found[f"eval_{name}"] < intervals[name]["high"]
    assert AutoModelForSequenceClassification.from_pretrained("first").config.num_labels == 1


@pytest.mark.slow
def test_a_pair_of_texts_is_read_as_one_input_and_both_count(two_runs: Callable) -> None:
    words = texts(160)
    rows = [
        {"first": one[0], "second": (one[0] if i % 2 else one[1]), "label": "same" if i % 2 else "other"}
        for i, one in enumerate(words)
    ]
    record, _ = two_runs(
        rows, "single_label_classification", ", text_column: first, text_pair_column: second",
        "class_weights: [1, 2]", steps=2,
    )  # fmt: skip
    assert record["data"]["train"]["longest"] == 5  # [CLS] a [SEP] b [SEP]
    line = next(line for line in record["notes"] if line.startswith("class_weights"))
    assert line == "class_weights: other 1, same 2 (in the training loss; evaluations are not weighted)"


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs of texts", "weighted classes"])
def test_metrics_of_real_texts_are_scikit_learns(root: Path, folder: Path, kind: str) -> None:
    """As benchmarks/problem_types.py records it for all kinds, here of runs of a few steps."""
    from benchmarks import problem_types

    found = problem_types.measure(kind, long=3, short=1)
    assert found["largest_difference"] < 1e-9
    assert {"f1", "accuracy"} <= found["verdicts"].keys()
