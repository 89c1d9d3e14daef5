"""What `hf-recipes inspect` says of rows whose faults are known: `python benchmarks/inspect_rows.py`, a minute.

Rows of what is shipped (recipes/data): reviews, tagged sentences, and paragraphs of novels as text and as conversations
(a paragraph, and the next as its answer). Into the paragraphs copies are planted: exact ones, and ones with one word
replaced. Seconds are of CPU, imports included; `bare` imports datasets and transformers, loads the same rows and calls
the tokenizer on their texts. Writes benchmarks/results/inspect_rows.json, of which docs/speed.md is made.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "recipes" / "data"
RECORD = ROOT / "benchmarks" / "results" / "inspect_rows.json"
PLANTED, LONG = 100, 40  # copies of each kind; words of a text that is copied with one word changed
CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MODEL = "{model_type: gpt2, n_embd: 64, n_layer: 1, n_head: 2}"
ENCODER = "{model_type: distilbert, dim: 64, hidden_dim: 128, n_layers: 1, n_heads: 2}"
BARE = """
import json, sys
import datasets, transformers
rows = datasets.load_dataset("json", data_files={"train": sys.argv[1]}, cache_dir=sys.argv[2])["train"]
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=sys.argv[3])
texts = [" ".join(map(str, row.values())) for row in rows]
tokenizer(texts)
"""


def paragraphs() -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in sorted((DATA / "austen").glob("*.txt"))]
    found = [" ".join(one.split()) for text in texts for one in re.split(r"\n\s*\n", text)]
    return list(dict.fromkeys(one for one in found if len(one.split()) >= LONG))


def planted(texts: Sequence[str], draw: random.Random) -> list[str]:
    """The texts, PLANTED of them again, and PLANTED others with one word replaced, in any order."""
    chosen = draw.sample(range(len(texts)), 2 * PLANTED)
    near = []
    for number in chosen[PLANTED:]:
        words = texts[number].split()
        words[draw.randrange(len(words))] = "zebra"
        near.append(" ".join(words))
    rows = [*texts, *(texts[number] for number in chosen[:PLANTED]), *near]
    draw.shuffle(rows)
    return rows


def write(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path) -> dict[str, str]:
    """Name of a case -> its recipe; the data lie in `folder`."""
    draw = random.Random(0)
    texts = paragraphs()
    write(folder / "paragraphs.jsonl", [{"text": one} for one in planted(texts[:2500], draw)])
    write(folder / "held-out.jsonl", [{"text": one} for one in texts[2500:2700]])
    talks = [(one, texts[i + 1]) for i, one in enumerate(texts[:2000])]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in talks
    ]
    write(folder / "talks.jsonl", rows[:1800])
    write(folder / "talks-held-out.jsonl", rows[1800:])
    (folder / "chatml.jinja").write_text(CHATML, encoding="utf-8")

    def recipe(
        task: str, config: str, train: Path, validation: Path, *, section: str = "TrainingArguments", more: str
    ) -> str:
        files = f"{{train: {train}, validation: {validation}}}"
        length = "" if section == "SFTConfig" else ", max_length: 128"
        return (
            f"task: {task}\nmodel: {{config: {config}}}\nBpeTrainer: {{vocab_size: 8000}}\n"
            f"dataset: {{path: json, data_files: {files}{length}}}\n"
            f"{section}: {{output_dir: out, per_device_train_batch_size: 16, use_cpu: true{more}}}\n"
        )

    chat = f", max_length: 512, chat_template_path: {folder / 'chatml.jinja'}, bf16: false"
    return {
        "causal-lm, paragraphs": recipe(
            "causal-lm", MODEL, folder / "paragraphs.jsonl", folder / "held-out.jsonl", more=""
        ),
        "chat, a paragraph and the next": recipe(
            "chat", MODEL, folder / "talks.jsonl", folder / "talks-held-out.jsonl", section="SFTConfig", more=chat
        ),
        "text-classification, reviews": recipe(
            "text-classification",
            ENCODER,
            DATA / "sentiment" / "train.jsonl",
            DATA / "sentiment" / "validation.jsonl",
            more="",
        ),
        "token-classification, sentences": recipe(
            "token-classification",
            ENCODER,
            DATA / "names" / "train.jsonl",
            DATA / "names" / "validation.jsonl",
            more="",
        ),
    }


def run(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """(seconds of CPU, what it printed)."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, **settings, "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):  # 1: there are findings
        raise SystemExit(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def tokenizer_file(folder: Path) -> Path:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(folder / "paragraphs.jsonl")], vocab_size=8000)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def main() -> None:
    cases = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes = make(folder)
        tokenizer = tokenizer_file(folder)
        for title, text in recipes.items():
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
            seconds, printed = run([sys.executable, "-m", "hf_recipes", "inspect", "recipe.yaml", "--json"], folder)
            train = re.search(r"train: ([^,}]+)", text)
            assert train
            bare, _ = run([sys.executable, "-c", BARE, train[1], str(folder / "bare"), str(tokenizer)], folder)
            found = json.loads(printed)
            cases[title] = {
                **{key: found[key] for key in ("max_length", "splits", "padding", "near")},
                "findings": len(found["findings"]),
                "seconds": seconds,
                "bare_seconds": bare,
            }
            print(title, json.dumps(cases[title])[:600], flush=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "versions": {one: version(one) for one in ("datasets", "transformers", "tokenizers", "datasketch")},
        "planted": {"causal-lm, paragraphs": PLANTED},
        "cases": cases,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
