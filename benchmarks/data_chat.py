"""How long chat rows take from a file to stored tokens with their loss mask, against bare rendering and tokenizing.

The bare side reads each line with `json`, renders it with the tokenizer's apply_chat_template and tokenizes a thousand
texts at a time, with neither mask nor file; on two cores each process does half of the rows. `python benchmarks/data.py
--chat` measures it as it does text, and writes benchmarks/results/data_chat.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
LENGTH = 4096
ROWS = {"plain": 120_000, "tools": 20_000}
TEMPLATES = {
    "plain": "a question and an answer, ChatML with {% generation %}",
    "tools": "several turns with tools, TRL's Qwen3",
}


def write_rows(kind: str, path: Path, folder: Path) -> None:
    """The rows, a validation file of 20, and the tokenizer with the kind's template."""
    from chat_speed import plain_rows, template_of, tokenizer, tool_rows

    lines = [json.dumps(row) + "\n" for row in {"plain": plain_rows, "tools": tool_rows}[kind](ROWS[kind])]
    path.write_text("".join(lines), encoding="utf-8")
    (folder / "validation.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
    tokenizer(template_of(kind)).save_pretrained(folder / "tokenizer")


def bare(path: Path, folder: Path, processes: int) -> Callable[[], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    count = sum(1 for _ in path.open(encoding="utf-8"))

    def count_tokens(begin: int, stop: int) -> int:
        tokens = 0
        with path.open(encoding="utf-8") as file:
            lines = islice(file, begin, stop)
            while texts := [_render(tokenizer, json.loads(line)) for line in islice(lines, 1000)]:
                tokens += sum(map(len, tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)))
        return tokens

    def work() -> int:
        if processes == 1:
            return count_tokens(0, count)
        from multiprocessing import get_context

        with get_context("fork").Pool(processes) as pool:
            found = [pool.apply_async(_call, (i,)) for i in range(processes)]
            tokens = sum(one.get() for one in found)
            pool.close()
            pool.join()  # their CPU seconds count
        return tokens

    bounds = [count * i // processes for i in range(processes + 1)]
    _calls[:] = [lambda i=i: count_tokens(bounds[i], bounds[i + 1]) for i in range(processes)]
    return work


_calls: list[Callable[[], int]] = []


def _call(i: int) -> int:
    """In a forked process, which has the same list."""
    return _calls[i]()


def _render(tokenizer: Any, row: dict[str, Any]) -> str:
    return str(tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False))


def ours(path: Path, folder: Path, processes: int) -> Callable[[], int]:
    import datasets  # noqa: F401
    import trl.chat_template_utils  # noqa: F401
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq  # noqa: F401

    from hf_recipes.data import chat
    from hf_recipes.data.splits import load_splits
    from hf_recipes.recipe.read import read_recipe

    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(
        f"task: chat\nmodel: {{pretrained_model_name_or_path: {folder}}}\ndataset: {{path: json, data_files: "
        f"{{train: {path}, validation: {folder}/validation.jsonl}}}}\n"
        f"SFTConfig: {{output_dir: out, max_length: {LENGTH}, dataset_num_proc: {processes}}}\n",
        encoding="utf-8",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    recipe = read_recipe(str(recipe_file))

    def work() -> int:
        return chat.prepare(load_splits(recipe), tokenizer, recipe, LENGTH).stats["train"].tokens

    return work


KINDS: dict[str, Callable[[Path, Path], Callable[[], int]]] = {
    "chat: bare, 1 process": lambda path, folder: bare(path, folder, 1),
    "chat: bare, 2 processes": lambda path, folder: bare(path, folder, 2),
    "chat: hf_recipes, 1 process": lambda path, folder: ours(path, folder, 1),
    "chat: hf_recipes, 2 processes": lambda path, folder: ours(path, folder, 2),
}


def measure_kinds(measure: Callable[[str, Path, Path], dict[str, Any]], folder: Path, kinds: Sequence[str]) -> Any:
    found = {}
    for kind in kinds:
        here = folder / kind
        os.makedirs(here)
        path = here / "rows.jsonl"
        write_rows(kind, path, here)
        rows = {}
        for name in KINDS:
            rows[name.removeprefix("chat: ")] = measure(name, path, here)
            print(kind, name, rows[name.removeprefix("chat: ")], flush=True)
        found[kind] = {"rows": ROWS[kind], "template": TEMPLATES[kind], "ways": rows}
        path.unlink()
    return found
