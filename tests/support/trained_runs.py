"""A small run of each task on the repository's real rows, trained once in a process, for tests of a model in use."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_recipes.pipeline.run import run
from tests.support.tiny_models import CHATML, bpe, save_bert, save_llama, wordpiece, write_rows

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
TASKS = ("text-classification", "token-classification", "chat", "causal-lm")
ARGUMENTS = "{output_dir: out, max_steps: %d, per_device_train_batch_size: 16, learning_rate: 3e-3, seed: 1, save_strategy: 'no', report_to: none%s}"  # noqa: E501


def rows_of(name: str, start: int = 0, count: int = 200) -> list[dict[str, Any]]:
    """Rows of recipes/data/<name>/train.jsonl."""
    with (DATA / name / "train.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, start, start + count)]


def conversations(start: int = 0, count: int = 60) -> list[dict[str, Any]]:
    """Two neighbouring paragraphs of Persuasion as question and answer."""
    text = (DATA / "austen" / "persuasion.txt").read_text(encoding="utf-8")
    parts = [" ".join(part.split()[:8]) for part in text.split("\n\n") if len(part.split()) > 8]
    pairs = itertools.islice(itertools.pairwise(parts), start, start + count)
    return [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in pairs]


def _words(rows: list[dict[str, Any]], key: str) -> list[str]:
    texts = [row[key] if isinstance(row[key], str) else " ".join(row[key]) for row in rows]
    return sorted({word for text in texts for word in text.split()})


def _recipe(task: str, lora: bool) -> str:
    steps = 60 if task == "token-classification" else 12
    arguments = ARGUMENTS % (steps, ", max_length: 128, bf16: false, eos_token: '<|im_end|>'" if task == "chat" else "")
    dataset = "path: json, data_files: {train: train.jsonl, validation: validation.jsonl}"
    if task == "causal-lm":
        dataset = "path: text, data_files: {train: train.txt, validation: validation.txt}, sample_by: paragraph"
    if task != "chat":
        dataset += ", max_length: 64"
    trainer = "SFTConfig" if task == "chat" else "TrainingArguments"
    lines = [f"task: {task}", "model: {pretrained_model_name_or_path: base, dtype: float32}"]
    lines += [f"dataset: {{{dataset}}}", f"{trainer}: {arguments}"]
    if lora:
        lines.append("LoraConfig: {r: 4, lora_alpha: 32, target_modules: all-linear}")
    return "\n".join(lines) + "\n"


def _prepare(task: str) -> None:
    if task == "text-classification":
        rows = rows_of("sentiment")
        save_bert("base", wordpiece(_words(rows, "text")[:800]))
        write_rows("train.jsonl", rows), write_rows("validation.jsonl", rows_of("sentiment", 200, 60))
    elif task == "token-classification":
        rows = rows_of("names")
        save_bert("base", wordpiece(_words(rows, "tokens")[:800]))
        write_rows("train.jsonl", rows), write_rows("validation.jsonl", rows_of("names", 200, 60))
    elif task == "chat":
        rows = conversations()
        texts = [message["content"] for row in rows for message in row["messages"]]
        save_llama("base", bpe(texts, chat=CHATML), positions=128)
        write_rows("train.jsonl", rows), write_rows("validation.jsonl", conversations(60, 20))
    else:
        text = (DATA / "austen" / "persuasion.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        save_llama("base", bpe(text[:400]), positions=128)
        Path("train.txt").write_text("".join(text[:300])), Path("validation.txt").write_text("".join(text[300:360]))


@functools.cache
def folder_of(task: str, *, lora: bool = False) -> Path:
    """The folder of a finished run (`out` in it), its data and its base model (`base`). Nobody writes into `out`."""
    folder = Path(tempfile.mkdtemp(prefix=f"hf-recipes-{task}-"))
    with _inside(folder), contextlib.redirect_stdout(io.StringIO()):
        _prepare(task)
        Path("recipe.yaml").write_text(_recipe(task, lora), encoding="utf-8")
        run("recipe.yaml")
    return folder


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
