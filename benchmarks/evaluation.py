"""What an evaluation costs beside its forward passes, and its memory: sorted by length, and in the data's order.

    python benchmarks/evaluation.py            # about 5 minutes on one core; writes the record
    python benchmarks/tables.py                # the table of docs/speed.md

MiniLM's shape with random weights, on rows whose lengths are spread as those of sentences: a log-normal with median 16
tokens, cut at 128. `forward passes` are the same sorted batches through the model alone, collated. Each way is a
process of its own; time is CPU time of one thread, in rounds that turn the order around; memory is the peak of resident
memory during the evaluation over that of one batch of the longest rows. Writes benchmarks/results/evaluation.json.
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
ROWS = {"text-classification": (500, 2_000), "token-classification": (1_000,)}
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


def measure(task: str, way: str, rows: int) -> dict[str, Any]:
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
    from hf_recipes.evaluation.length_order import longest_first
    from hf_recipes.training.overrides import trainer_class

    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    tags = task == "token-classification"
    auto = transformers.BertForTokenClassification if tags else transformers.BertForSequenceClassification
    model, rows_of_data = auto(transformers.BertConfig(**SHAPE)).eval(), data(task, rows)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)}, unk_token="w1"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0")
    collator = (transformers.DataCollatorForTokenClassification if tags else transformers.DataCollatorWithPadding)(
        tokenizer
    )
    labels = ("a", "b", "c")
    compute = (token_compute_metrics if tags else classification_compute_metrics)(["accuracy"], labels)
    with tempfile.TemporaryDirectory() as folder:
        upstream = transformers.Trainer
        trainer = (trainer_class(upstream) if way == "hf_recipes" else upstream)(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder, per_device_eval_batch_size=BATCH, use_cpu=True, report_to="none", disable_tqdm=True
            ),
            eval_dataset=rows_of_data,
            data_collator=collator,
            processing_class=tokenizer,
            compute_metrics=RecordingMetrics(compute=compute),
            preprocess_logits_for_metrics=tags_and_rows if tags else keep_logits,
        )
        model(input_ids=torch.ones(BATCH, LONGEST, dtype=torch.long))  # memory is taken, kernels are chosen
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        loss = None
        if way == "forward passes":
            order = longest_first(rows_of_data)
            assert order is not None
            with torch.no_grad():
                for first in range(0, rows, BATCH):
                    model(**collator([rows_of_data[i] for i in order[first : first + BATCH]]))
        else:
            loss = trainer.evaluate()["eval_loss"]
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "peak_bytes": peak * 1024, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], given.one[1], int(given.one[2]))))
        return
    cells = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for task, sizes in ROWS.items():
        for rows in sizes:
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for number in range(given.rounds):
                for way in WAYS[:: 1 if number % 2 == 0 else -1]:
                    command = [sys.executable, __file__, "--one", task, way, str(rows)]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
                    print(task, rows, way, found[way][-1], flush=True)
            apart = abs(found["hf_recipes"][0]["loss"] - found["Trainer, data's order"][0]["loss"])
            assert apart < 1e-5, f"the losses differ by {apart}"
            for way in WAYS:
                ratios = [
                    one["seconds"] / base["seconds"] for one, base in zip(found[way], found[WAYS[0]], strict=True)
                ]
                cells.append(
                    {
                        "task": task,
                        "rows": rows,
                        "way": way,
                        "seconds": statistics.median(one["seconds"] for one in found[way]),
                        "of_forward": statistics.median(ratios),
                        "range": [min(ratios), max(ratios)],
                        "peak_bytes": statistics.median(one["peak_bytes"] for one in found[way]),
                    }
                )
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
