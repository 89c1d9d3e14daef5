"""What an evaluation costs beside its forward passes, and its memory: sorted by length, and in the data's order.

    python benchmarks/evaluation.py            # about 4 minutes of a core; writes the record
    python benchmarks/tables.py                # the table of docs/speed.md

MiniLM's shape with random weights (causal-lm: the Llama of step.py), on rows whose lengths are spread as those of
sentences: a log-normal with median 16 tokens, cut at 128. `forward passes` are the same sorted batches through the
model alone, collated. The ways take turns batch by batch (benchmarks/turns.py), sorting and metrics included.
The losses are compared. Memory is measured in a process of its own: by how much evaluations of hf_recipes, of more and
more rows, raise the peak of resident memory over one batch of the longest rows. Writes
benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
from benchmarks.turns import Turn, sum_interval, take_turns  # noqa: E402

RECORD = ROOT / "benchmarks/results/evaluation.json"
BATCH, LONGEST, VOCABULARY = 32, 128, 30_522
TASKS = ("text-classification", "token-classification", "causal-lm")
ROWS, REPEATS = 320, 2
COUNTS = (ROWS, ROWS, 4 * ROWS, 8 * ROWS)  # of the evaluations whose memory is measured; the first imports things
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
    if task == "causal-lm":
        ids = [[i % 16_000 for i in row] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": ids})
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
        lm_compute_metrics,
        tags_and_rows,
        token_compute_metrics,
    )
    from hf_recipes.training.overrides import trainer_class

    torch.manual_seed(0)
    kind = trainer_class(transformers.Trainer) if way == "hf_recipes" else transformers.Trainer
    args = transformers.TrainingArguments(
        output_dir=folder, per_device_eval_batch_size=BATCH, use_cpu=True, report_to="none", disable_tqdm=True
    )
    if task == "causal-lm":
        from benchmarks.step import save_model

        save_model(Path(folder, "model"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder, "model"))
        return kind(
            model=transformers.AutoModelForCausalLM.from_pretrained(Path(folder, "model"), dtype=torch.float32).eval(),
            args=args,
            eval_dataset=rows,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
            # Upstream's metrics would need all logits: it gives the loss alone.
            compute_metrics=RecordingMetrics(compute=lm_compute_metrics()) if way == "hf_recipes" else None,
        )
    tags = task == "token-classification"
    auto = transformers.BertForTokenClassification if tags else transformers.BertForSequenceClassification
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)}, unk_token="w1"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0")
    collator = transformers.DataCollatorForTokenClassification if tags else transformers.DataCollatorWithPadding
    compute = (token_compute_metrics if tags else classification_compute_metrics)(["accuracy"], ("a", "b", "c"))
    return kind(
        model=auto(transformers.BertConfig(**SHAPE)).eval(),
        args=args,
        eval_dataset=rows,
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=RecordingMetrics(compute=compute),
        preprocess_logits_for_metrics=tags_and_rows if tags else keep_logits,
    )


def watch_trainers(turns: dict[str, Turn]) -> None:
    """Every evaluation of this process ends its batches in the turn of its thread."""
    from transformers.trainer_callback import CallbackHandler

    upstream = CallbackHandler.on_prediction_step

    def end(handler: Any, args: Any, state: Any, control: Any) -> Any:
        found = upstream(handler, args, state, control)
        turns[threading.current_thread().name].end_step()
        return found

    CallbackHandler.on_prediction_step = end


def evaluate(trainer: Any, turn: Turn) -> None:
    for _ in range(REPEATS):
        turn.losses.append(float(trainer.evaluate()["eval_loss"]))


def forward_passes(trainer: Any, rows: Any, turn: Turn) -> None:
    import torch

    from hf_recipes.evaluation.length_order import longest_first

    order = longest_first(rows)
    assert order is not None
    for _ in range(REPEATS):
        with torch.no_grad():
            for first in range(0, len(rows), BATCH):
                trainer.model(**trainer.data_collator([rows[i] for i in order[first : first + BATCH]]))
                turn.end_step()


def use_longest(trainer: Any) -> None:
    """Memory is taken, kernels are chosen."""
    import torch

    ids = torch.ones(BATCH, LONGEST, dtype=torch.long)
    with torch.no_grad():
        trainer.model(input_ids=ids, attention_mask=ids)


def measure(task: str) -> list[dict[str, Any]]:
    """The cells of one task."""
    rows = data(task, ROWS)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: build(task, way, rows, folder) for way in WAYS}
        for trainer in trainers.values():
            use_longest(trainer)
        loops = {way: partial(evaluate, trainers[way]) for way in WAYS[1:]}
        loops = {WAYS[0]: partial(forward_passes, trainers[WAYS[0]], rows), **loops}
        turns = take_turns(loops, REPEATS * -(-ROWS // BATCH), counted=1, ready=watch_trainers)
    if task != "causal-lm":  # upstream's is a mean of batch means there
        apart = abs(turns["hf_recipes"].losses[-1] - turns[WAYS[-1]].losses[-1])
        assert apart < 1e-5, f"the losses differ by {apart}"
    cells = []
    for way, turn in turns.items():
        ratio, interval = sum_interval(turn.seconds, turns[WAYS[0]].seconds)
        seconds = sum(turn.seconds) / REPEATS
        cells.append(
            {"task": task, "rows": ROWS, "way": way, "seconds": seconds, "of_forward": ratio, "interval": interval}
        )
    return cells


def measure_memory(task: str) -> list[int]:
    """Bytes above one batch of the longest rows: after each evaluation of COUNTS but the first."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(task, "hf_recipes", data(task, ROWS), folder)
        use_longest(trainer)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for count in COUNTS:
            trainer.evaluate(data(task, count))
            found.append(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        print(json.dumps({"time": measure, "memory": measure_memory}[given.one[0]](given.one[1])))
        return
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    cells, memory = [], {}
    for task in TASKS:
        answers = []
        for what in ("time", "memory"):
            command = [sys.executable, __file__, "--one", what, task]
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            answers.append(json.loads(done.stdout.splitlines()[-1]))
            print(task, json.dumps(answers[-1], indent=1), flush=True)
        cells += answers[0]
        memory[task] = answers[1]
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
        "batch": BATCH,
        "cells": cells,
        "memory": {"rows": COUNTS[1:], "bytes": memory},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
