"""What compare costs, and what per-example scores cost an evaluation: `python benchmarks/compare_cost.py`.

`--many` measures only what many runs cost, and leaves the rest of the file as it is.

Writes benchmarks/results/compare_cost.json: seconds of `hf-recipes compare` (files read, every metric of the task,
10,000 resamples, Markdown, HTML and JSON written) on runs of a thousand to a hundred thousand examples, and the seconds
in which a run of recipes/quickstart.yaml evaluates and writes its scores. The machine's own figures: read the ratios.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.commands.compare import command
from hf_recipes.common.environment import current_commit, package_version, timestamp
from hf_recipes.data.row_ids import example_ids
from hf_recipes.evaluation.scores import score_batches, write_scores
from hf_recipes.record import RunRecord, Status
from hf_recipes.record.file import read_record, write_record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/compare_cost.json"
SCORES = {"eval": "scores.parquet"}
MANY_LISTED, MANY_COMPARED, FEW_COMPARED = 1000, 500, 40
SIZES, RESAMPLES, LABELS = (1_000, 10_000, 100_000), 10_000, 4


def classifier(folder: Path, ids: list[str], right: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(0).integers(0, LABELS, len(ids))
    predicted = np.where(rng.random(len(ids)) < right, gold, rng.integers(0, LABELS, len(ids)))
    logits = np.eye(LABELS)[predicted] * 3 + rng.normal(0, 0.5, (len(ids), LABELS))
    names = [f"label {i}" for i in range(LABELS)]
    batches = score_batches("text-classification", ids=ids, predictions=logits, label_ids=gold)
    write_scores(folder / "scores.parquet", "text-classification", batches, label_names=names)


def language_model(folder: Path, ids: list[str], nats: float, seed: int) -> None:
    shared, rng = np.random.default_rng(0), np.random.default_rng(seed)
    tokens = np.ceil(shared.lognormal(4, 1, len(ids)))
    rows = np.stack([tokens * (nats + shared.normal(0, 0.5, len(ids)) + rng.normal(0, 0.2, len(ids))), tokens], axis=1)
    batches = score_batches("causal-lm", ids=ids, predictions=rows, n_bytes=(4 * tokens).astype(int))
    write_scores(folder / "scores.parquet", "causal-lm", batches)


KINDS = {"text-classification": (classifier, (0.80, 0.82)), "causal-lm": (language_model, (3.0, 2.99))}


def compared() -> list[dict[str, Any]]:
    found = []
    for task, (make, levels) in KINDS.items():
        for size in SIZES:
            ids = example_ids({"row": i} for i in range(size))
            with tempfile.TemporaryDirectory() as scratch:
                runs = []
                for i, level in enumerate(levels):
                    folder = Path(scratch) / f"run-{i}"
                    folder.mkdir()
                    make(folder, ids, level, i + 1)
                    scores = {"eval": "scores.parquet"}
                    write_record(folder, RunRecord(task=task, status=Status.FINISHED, scores=scores))
                    runs.append(str(folder))
                began = time.perf_counter()
                command(runs, resamples=RESAMPLES, output=f"{scratch}/report")
                seconds = time.perf_counter() - began
            found.append({"task": task, "examples": size, "resamples": RESAMPLES, "seconds": seconds})
            print(found[-1], flush=True)
    return found


def scored() -> dict[str, Any]:
    """One evaluation of the quickstart, and its scores, texts and intervals."""
    from hf_recipes.pipeline.run import run

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        words = {"output_dir": scratch, "max_steps": 1, "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no"}
        path = run("recipes/quickstart.yaml", [f"TrainingArguments.{key}={value}" for key, value in words.items()])
        record = read_record(path)
    return {
        "rows": record.data["eval"].rows,
        "evaluation_seconds": record.metrics.of("eval")["eval_runtime"],
        "scores_seconds": record.time.scores_seconds,
    }


def many() -> dict[str, Any]:
    """Seconds of CPU of `runs` over a thousand runs, and of `compare` over hundreds: with shared resamples, and with
    those of each pair (over fewer runs; read the seconds of one)."""
    from hf_recipes.commands.runs import command as list_runs
    from hf_recipes.compare import shared_draws

    ids = example_ids({"row": i} for i in range(SIZES[0]))
    record = read_record(next((ROOT / "recipes/results").glob("quickstart--cpu--*.json")))
    found: dict[str, Any] = {"examples": SIZES[0], "resamples": RESAMPLES}
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        for i in range(MANY_LISTED):
            folder = Path(scratch) / f"run-{i}"
            folder.mkdir()
            write_record(folder, record)
        found["listed"] = {"runs": MANY_LISTED, "seconds": cpu_seconds(lambda: list_runs(scratch))}
        for i in range(MANY_COMPARED):
            folder = Path(scratch) / f"run-{i}"
            classifier(folder, ids, 0.80 + i / 10_000, i + 1)
            write_record(folder, RunRecord(task="text-classification", status=Status.FINISHED, scores=SCORES))
            runs.append(str(folder))
        command(runs[:2], resamples=100)  # imports
        found["compared"] = {"runs": MANY_COMPARED, "seconds": cpu_seconds(lambda: command(runs, resamples=RESAMPLES))}
        limit, shared_draws.MANY = shared_draws.MANY, MANY_COMPARED
        by_pairs = cpu_seconds(lambda: command(runs[:FEW_COMPARED], resamples=RESAMPLES))
        shared_draws.MANY = limit
        found["by_pairs"] = {"runs": FEW_COMPARED, "seconds": by_pairs}
    each = [part["seconds"] / part["runs"] for part in (found["by_pairs"], found["compared"])]
    return {**found, "times_faster": each[0] / each[1]}


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    if "--many" in sys.argv:
        found = json.loads(RESULTS.read_text(encoding="utf-8")) | {"many": many()}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(found["many"])
        return
    found = {"compare": compared(), "scores": scored(), "many": many(), "versions": {"numpy": package_version("numpy")}}
    found |= {"commit": current_commit(), "when": timestamp(), "machine": f"{os.cpu_count()} cores"}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
