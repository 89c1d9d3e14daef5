"""Runs whose rows are streamed, for benchmarks/data_kills.py: other files, shares, passes, workers and tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from torture.child import BATCHES
from torture.kinds import COMMON

ROWS = {"a": 130, "b": 110, "short": 9, "validation": 12}  # a and b: more than a run reads; short: several passes
MIXED = {"probabilities": [0.7, 0.3], "stopping_strategy": "all_exhausted", "buffer_size": 20}

# Name -> task, files of the train split, keys of `dataset`, arguments.
RUNS: dict[str, tuple[str, list[str], dict[str, Any], dict[str, Any]]] = {
    "text: two files, a buffer of 20 rows": ("causal-lm", ["a", "b"], {"buffer_size": 20}, {}),
    "text: a mixture, a loader's worker reads ahead": ("causal-lm", ["a", "b"], MIXED, {"dataloader_num_workers": 1}),
    "text: several passes over a short file": ("causal-lm", ["short"], {}, {"per_device_train_batch_size": 4}),
    "chat: a mixture, several passes, a loader's worker": (
        "chat", ["a", "short"], MIXED, {"dataloader_num_workers": 1, "per_device_train_batch_size": 8}
    ),
}  # fmt: skip


def prepare(folder: Path, run: tuple[str, list[str], dict[str, Any], dict[str, Any]]) -> None:
    """A small Llama with random weights, its tokenizer, the rows, and the recipe."""
    from tests.support.tiny_models import CHATML, TEXTS, bpe, save_llama, write_rows

    task, names, keys, arguments = run
    draw = random.Random(0)
    save_llama(folder / "model", bpe(chat=CHATML))
    for name, count in ROWS.items():
        texts = [" ".join(draw.choice(TEXTS).split()[: draw.randint(1, 9)]) + f" {name} {i}" for i in range(count)]
        turns = [[{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text}] for text in texts]
        rows = [{"messages": turn} for turn in turns] if task == "chat" else [{"text": text} for text in texts]
        write_rows(folder / f"{name}.jsonl", rows)
    files = {"train": [f"{name}.jsonl" for name in names], "validation": "validation.jsonl"}
    section = "SFTConfig" if task == "chat" else "TrainingArguments"
    length = {"max_length": 32} if task == "chat" else {}
    recipe = {
        "task": task,
        "model": {"pretrained_model_name_or_path": "model", "attention_dropout": 0.1},
        "disable_guards": ["overlap", "truncation", "end_token"],
        "dataset": {"path": "json", "data_files": files, "streaming": True, **keys}
        | ({} if task == "chat" else {"max_length": 16}),
        section: {**COMMON, **length, **arguments},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    (folder / BATCHES).touch()
