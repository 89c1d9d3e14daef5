"""From the command to the first step: `hf-recipes run recipes/quickstart-classification.yaml` against a bare script.

    python recipes/data/prepare.py minilm      # once
    python benchmarks/startup.py

The bare script imports what the run imports (torch, transformers' Trainer, datasets, peft's and accelerate's own
imports included), loads the same files, tokenizes them with `map`, loads the same model and begins to train. Both end
where their first step begins. Seconds are of CPU, of the process and its children, one thread; each round has an empty
cache of data sets, and its second run finds what the first one left. An audit hook counts how often the data files are
opened. Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/startup.json"
RECIPE = "recipes/quickstart-classification.yaml"
WATCH = """
import json, os, sys, time
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and isinstance(args[0], str)
                 and "recipes/data/sentiment" in args[0] else None)
def end_at_first_step():
    from transformers.trainer_callback import CallbackHandler
    def begin(handler, args, state, control):
        found = os.times()
        sys.__stdout__.write("\\n" + json.dumps({"seconds": sum(found[:4]), "opened": len(opened)}) + "\\n")
        sys.__stdout__.flush()
        os._exit(0)
    CallbackHandler.on_step_begin = begin
"""
OURS = (
    WATCH
    + f"""
from hf_recipes.cli import main
import hf_recipes.training.trainer as module
build = module.build_trainer
def build_and_watch(*args, **kwargs):
    end_at_first_step()
    return build(*args, **kwargs)
module.build_trainer = build_and_watch
given = {{"output_dir": sys.argv[1] + "/run", "eval_on_start": "false"}}
main(["run", "{RECIPE}", *(f"TrainingArguments.{{name}}={{value}}" for name, value in given.items())])
"""
)
BARE = (
    WATCH
    + """
import accelerate, datasets, peft, torch, transformers
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding,
                          EarlyStoppingCallback, Trainer, TrainingArguments)
end_at_first_step()
files = {name: f"recipes/data/sentiment/{name}.jsonl" for name in ("train", "validation")}
data = datasets.load_dataset("json", data_files=files)
tokenizer = AutoTokenizer.from_pretrained("runs/assets/minilm")
names = sorted(set(data["train"]["label"]))
def prepare(batch):
    labels = [names.index(label) for label in batch["label"]]
    return {**tokenizer(batch["text"], truncation=True, max_length=48), "labels": labels}
data = data.map(prepare, batched=True, remove_columns=data["train"].column_names)
model = AutoModelForSequenceClassification.from_pretrained("runs/assets/minilm", num_labels=len(names))
args = TrainingArguments(output_dir=sys.argv[1] + "/bare", num_train_epochs=1, per_device_train_batch_size=8,
                         per_device_eval_batch_size=64, learning_rate=1e-4, warmup_steps=0.06, weight_decay=0.01,
                         logging_steps=10, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
                         report_to="none")
Trainer(model=model, args=args, train_dataset=data["train"], eval_dataset=data["validation"],
        data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer).train()
"""
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(given.rounds):
        kinds = [("bare script", BARE), ("hf-recipes run", OURS)]
        for kind, program in kinds if number % 2 == 0 else kinds[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
                environment |= {"HF_DATASETS_CACHE": f"{folder}/cache", "TOKENIZERS_PARALLELISM": "false"}
                for run in ("first", "second"):
                    command = [sys.executable, "-c", program, folder]
                    done = subprocess.run(
                        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
                    )
                    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
                    if done.returncode or not lines:
                        raise SystemExit(f"{kind}: {done.stdout}\n{done.stderr}")
                    found.setdefault(f"{kind}, {run}", []).append(json.loads(lines[-1]))
                    print(kind, run, lines[-1], flush=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate", "peft")},
        "recipe": RECIPE,
        "starts": {
            name: {
                "seconds": statistics.median(one["seconds"] for one in some),
                "of_bare": statistics.median(
                    one["seconds"] / base["seconds"]
                    for one, base in zip(some, found[f"bare script, {name.rpartition(', ')[2]}"], strict=True)
                ),
                "range": [min(one["seconds"] for one in some), max(one["seconds"] for one in some)],
                "data_files_opened": int(max(one["opened"] for one in some)),
            }
            for name, some in found.items()
        },
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
