"""What an evaluation costs beside its forward passes, and its memory: sorted by length, and in the data's order.

    python benchmarks/evaluation.py            # about 5 minutes on one core; writes the record
    python benchmarks/tables.py                # the table of docs/speed.md

MiniLM's shape with random weights, on rows whose lengths are spread as those of sentences: a log-normal with median 16
tokens, cut at 128. `forward passes` are the same sorted batches through the model alone, collated. Each data set is a
process; time is CPU time of one thread, in rounds that turn the order of the ways around; memory is by how much the
evaluations of hf_recipes raise the peak of resident memory over one batch of the longest rows. The losses are compared.
Writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/evaluation.json"
BATCH, LONGEST, VOCABULARY = 32, 128, 30_522
ROWS = {"text-classification": (400, 1_200)}
WAYS = ("forward passes", "hf_recipes", "Trainer, data's order")
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
         "intermediate_size": 1536, "num_labels": 3}  # fmt: skip


def data(task: str, rows: int) -> Any:
    import numpy as np
    from datasets import Dataset

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(16), 0.7, size=rows).astype(int), 3, LONGEST)
    ids = [draw.integers(1000, VOCABULARY, size=length).tolist() for length in lengths]
    tags = task == "token-classification"
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [[i % 3 for i in row] if tags else row[0] % 3 for row in ids]}
    )


def build(task: str, way: str, rows: Any, folder: str) -> Any:
    """The trainer of a way."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    from hf_recipes.evaluation.compute_metrics import (
        RecordingMetrics,
        classification_compute_metrics,
        keep_logits,
        tags_and_rows,
        token_compute_metrics,
    )
    from hf_recipes.training.overrides import trainer_class

    torch.manual_seed(0)
    tags = task == "token-classification"
    auto = transformers.BertForTokenClassification if tags else transformers.BertForSequenceClassification
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)}, unk_token="w1"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0")
    collator = transformers.DataCollatorForTokenClassification if tags else transformers.DataCollatorWithPadding
    compute = (token_compute_metrics if tags else classification_compute_metrics)(["accuracy"], ("a", "b", "c"))
    kind = trainer_class(transformers.Trainer) if way == "hf_recipes" else transformers.Trainer
    return kind(
        model=auto(transformers.BertConfig(**SHAPE)).eval(),
        args=transformers.TrainingArguments(
            output_dir=folder, per_device_eval_batch_size=BATCH, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        eval_dataset=rows,
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=RecordingMetrics(compute=compute),
        preprocess_logits_for_metrics=tags_and_rows if tags else keep_logits,
    )


def evaluate(trainer: Any, way: str, rows: Any) -> float | None:
    """Its loss; None for the forward passes alone."""
    import torch

    from hf_recipes.evaluation.length_order import longest_first

    if way != "forward passes":
        return float(trainer.evaluate()["eval_loss"])
    order = longest_first(rows)
    assert order is not None
    with torch.no_grad():
        for first in range(0, len(rows), BATCH):
            trainer.model(**trainer.data_collator([rows[i] for i in order[first : first + BATCH]]))
    return None


def measure(task: str, count: int, rounds: int) -> list[dict[str, Any]]:
    """The cells of one data set."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows = data(task, count)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: build(task, way, rows, folder) for way in WAYS}
        for trainer in trainers.values():  # memory is taken, kernels are chosen
            trainer.model(input_ids=torch.ones(BATCH, LONGEST, dtype=torch.long))
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        losses, peak_bytes = {}, 0
        for number in range(rounds):
            for way in WAYS[:: 1 if number % 2 == 0 else -1]:
                before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
                losses[way] = evaluate(trainers[way], way, rows)
                found[way].append(time.process_time() - start)
                if way == "hf_recipes":
                    peak_bytes += 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    apart = abs((losses["hf_recipes"] or 0) - (losses[WAYS[-1]] or 0))
    assert apart < 1e-5, f"the losses differ by {apart}"
    cells = []
    for way in WAYS:
        ratios = [one / base for one, base in zip(found[way], found["forward passes"], strict=True)]
        cells.append(
            {
                "task": task,
                "rows": count,
                "way": way,
                "seconds": statistics.median(found[way]),
                "of_forward": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "peak_bytes": peak_bytes if way == "hf_recipes" else None,
            }
        )
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given.rounds)))
        return
    cells = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for task, sizes in ROWS.items():
        for count in sizes:
            command = [sys.executable, __file__, "--one", task, str(count), "--rounds", str(given.rounds)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            cells += json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(cells[-3:], indent=1), flush=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
        "batch": BATCH,
        "rounds": given.rounds,
        "cells": cells,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
