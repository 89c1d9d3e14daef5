"""What evaluating a causal LM costs in memory and time: upstream's ways against evaluation/exact.py, measured.

    python benchmarks/evaluation_memory.py            # about 3 minutes on one core; prints a table, writes the record
    python benchmarks/evaluation_memory.py --table    # only the table, from the record

A one-layer Llama with a big vocabulary and a tiny hidden size: nearly all is logits. Each way runs in a process of its
own; memory is the peak of resident memory during Trainer.evaluate() over that before it, time is CPU time. `loss only`
is Trainer without compute_metrics, so without perplexity; `rows` is Trainer with preprocess_logits_for_metrics to
[nll_sum, n_tokens]; `logits` is Trainer with compute_metrics alone. Writes benchmarks/results/evaluation_memory.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parent / "results" / "evaluation_memory.json"
ROWS, LENGTH, BATCH = 16, 128, 4
VOCABULARIES = (32768, 131072)
WAYS = ("loss only", "rows", "logits", "exact")


def measure(way: str, vocabulary: int) -> dict[str, float]:
    """Peak bytes over the start, CPU seconds and the loss of one evaluation."""
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from hf_recipes.evaluation.compute_metrics import lm_compute_metrics
    from hf_recipes.training.overrides import trainer_class

    def rows(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        scores = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none"
        ).double()
        return torch.stack([scores.sum(1), (labels[:, 1:] != -100).sum(1).double()], dim=1)

    def from_logits(prediction: Any) -> dict[str, float]:
        return {"kept_bytes": float(prediction.predictions.nbytes)}

    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape))
    ids = np.random.default_rng(0).integers(0, vocabulary, size=(ROWS, LENGTH)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    words: dict[str, Any] = {
        "loss only": {},
        "rows": {"compute_metrics": lm_compute_metrics(), "preprocess_logits_for_metrics": rows},
        "logits": {"compute_metrics": from_logits},
        "exact": {"compute_metrics": lm_compute_metrics()},
    }[way]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_eval_batch_size=BATCH, use_cpu=True, report_to="none", disable_tqdm=True
        )
        trainer = (trainer_class(Trainer) if way == "exact" else Trainer)(
            model=model, args=arguments, eval_dataset=data, **words
        )
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        found = trainer.evaluate()
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"peak_bytes": peak * 1024, "cpu_seconds": round(seconds, 2), "loss": found["eval_loss"]}


def table(record: dict[str, Any]) -> str:
    lines = ["| vocabulary | way | peak memory, MiB | CPU s | perplexity |", "|---|---|---|---|---|"]
    says = {"loss only": "no", "rows": "yes", "logits": "could", "exact": "exact"}
    for entry in record["measured"]:
        peak = entry["peak_bytes"] / 2**20
        lines.append(
            f"| {entry['vocabulary']} | {entry['way']} | {peak:.0f} | {entry['cpu_seconds']} | {says[entry['way']]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    if not arguments.table:
        import torch
        import transformers

        measured = []
        for vocabulary in VOCABULARIES:
            for way in WAYS:
                command = [sys.executable, __file__, "--one", way, str(vocabulary)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                measured.append({"vocabulary": vocabulary, "way": way, **found})
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()} CPU, 1 thread",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "rows": ROWS,
            "tokens_per_row": LENGTH,
            "batch": BATCH,
        }
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps({**about, "measured": measured}, indent=1) + "\n")
    print(table(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
