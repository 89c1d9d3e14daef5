"""Throughput of predictions against plain transformers' pipelines, in pairs: `python benchmarks/predict_speed.py`.

For each task the small model and the rows of the tests (tests/support/trained_runs.py), the model loaded once for both,
batches of the same size, one thread. Each pair runs both, in changing order, after one run of each that is not counted.
What is measured is CPU seconds of this process: other programs on the machine then do not count. Writes
benchmarks/results/predict_speed.json: the median of the pairs' ratios, and the smallest and largest.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "predict_speed.json"
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
PAIRS, BATCH, NEW_TOKENS = 9, 32, 16
ROWS = {"text-classification": 400, "token-classification": 400, "causal-lm": 128, "chat": 128}

Both = tuple[Callable[[], list[Any]], Callable[[], list[Any]]]


def inputs_of(task: str, count: int) -> list[Any]:
    from tests.support.trained_runs import conversations, rows_of

    if task == "text-classification":
        return [row["text"] for row in rows_of("sentiment", 0, count)]
    if task == "token-classification":
        return [" ".join(row["tokens"]) for row in rows_of("names", 0, count)]
    asked = [row["messages"][:1] for row in conversations(0, count)]
    return [one[0]["content"] for one in asked] if task == "causal-lm" else asked


def prepare(task: str) -> Both:
    """(ours, the pipeline's) of one task: each predicts all rows."""
    from transformers import pipeline

    from hf_recipes.inference.classify import classify_texts, find_entities
    from hf_recipes.inference.generate import generate
    from hf_recipes.inference.trained import find_trained, load_trained
    from tests.support.trained_runs import folder_of

    os.chdir(folder_of(task))
    trained, rows = load_trained(find_trained("out")), inputs_of(task, ROWS[task])
    named = [{"messages": one} if task == "chat" else {"text": one} for one in rows]
    more: dict[str, Any] = {"model": trained.model, "tokenizer": trained.tokenizer}
    if task == "text-classification":
        pipe = pipeline("text-classification", top_k=None, **more)
        words: dict[str, Any] = {"truncation": True, "max_length": trained.max_length}
        return lambda: list(classify_texts(trained, named, BATCH)), lambda: pipe(rows, batch_size=BATCH, **words)
    if task == "token-classification":
        tags = pipeline("token-classification", aggregation_strategy="first", **more)
        tags.tokenizer.model_max_length = trained.max_length
        return lambda: list(find_entities(trained, named, BATCH)), lambda: tags(rows, batch_size=BATCH)
    trained.tokenizer.padding_side = "left"
    text = pipeline("text-generation", return_full_text=False, **more)
    given = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    return (
        lambda: list(generate(trained, named, BATCH, given)),
        lambda: text(rows, batch_size=BATCH, **given),
    )


def measure(both: Both) -> Iterator[tuple[float, float]]:
    """CPU seconds of each, pair by pair."""
    for run in both:
        run()
    for pair in range(PAIRS):
        seconds = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            began = time.process_time()
            both[which]()
            seconds[which] = time.process_time() - began
        yield seconds[0], seconds[1]


def main() -> None:
    import torch

    from hf_recipes.common.environment import current_commit, package_version, timestamp

    torch.set_num_threads(1)
    here, found = os.getcwd(), []
    for task, count in ROWS.items():
        pairs = list(measure(prepare(task)))
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        rate = count / statistics.median(ours for ours, _ in pairs)
        row = {"task": task, "rows": count, "batch": BATCH, "pairs": PAIRS, "rows_per_cpu_second": rate}
        row |= {"ratio": statistics.median(ratios), "smallest": ratios[0], "largest": ratios[-1]}
        print(f"{task}: {row['ratio']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
        found.append(row)
    os.chdir(here)
    facts = {"when": timestamp(), "commit": current_commit(), "machine": platform.machine(), "threads": 1}
    facts |= {"transformers": package_version("transformers"), "torch": package_version("torch")}
    RESULTS.write_text(json.dumps({**facts, "tasks": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
