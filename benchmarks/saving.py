"""What a checkpoint that is whole or not there costs over upstream's, on the same disk.

    python benchmarks/saving.py        into benchmarks/results/saving.json (minutes)

In each round the same trainer saves the same state: (a) upstream's way, in place; (b) upstream's way, then every file
and folder flushed; (c) ours: staged, flushed, hashed, renamed; (d) ours without the hashes. The order changes from
round to round, and before each save what earlier ones wrote is flushed. Reported: medians of the rounds' ratios c / b
and d / b; (a) says what the flush itself costs; the hashes' own time is taken apart, on one thread.

`python benchmarks/tables.py` puts the figures into docs/torture.md.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/saving.json"
SIZES = {  # of a GPT-2: name -> (layers, width, vocabulary, rounds)
    "small": (4, 256, 4096, 40),
    "medium": (8, 512, 32768, 24),
    "large": (12, 1024, 32768, 12),
}


def trainer(folder: Path, layers: int, width: int, vocabulary: int) -> Any:
    """A trainer after one step: its optimizer has states."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from hf_recipes.training.overrides import trainer_class

    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, vocab_size=vocabulary, n_positions=64)
    rows = [{"input_ids": torch.arange(16), "labels": torch.arange(16)}] * 4
    args = TrainingArguments(
        output_dir=str(folder), max_steps=1, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True
    )
    found = trainer_class(Trainer)(model=GPT2LMHeadModel(config), args=args, train_dataset=rows)
    found.train()
    return found


def flush_all(folder: Path) -> None:
    from hf_recipes.checkpoints import manifest

    for path in sorted(folder.rglob("*")):
        manifest.flush_to_disk(path)
    manifest.flush_to_disk(folder)
    manifest.flush_to_disk(folder.parent)


def measure(name: str, scratch: Path) -> dict[str, Any]:
    import torch
    from transformers import Trainer

    from hf_recipes.checkpoints import manifest

    layers, width, vocabulary, rounds = SIZES[name]
    ours = trainer(scratch, layers, width, vocabulary)
    target = scratch / "checkpoint-1"
    real = manifest.compute_digest

    def plain() -> None:
        Trainer._save_checkpoint(ours, ours.model, None)

    def flushed() -> None:
        plain()
        flush_all(target)

    def staged() -> None:
        ours._save_checkpoint(ours.model, None)

    def unhashed() -> None:
        manifest.compute_digest = lambda path: ""
        try:
            staged()
        finally:
            manifest.compute_digest = real

    arms: dict[str, Callable[[], None]] = {"a": plain, "b": flushed, "c": staged, "d": unhashed}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    hashing: list[float] = []
    size = 0
    for i in range(rounds + 1):
        order = list(arms)[i % 4 :] + list(arms)[: i % 4]
        for arm in order if i % 8 < 4 else reversed(order):
            shutil.rmtree(target, ignore_errors=True)
            os.sync()
            began = time.perf_counter()
            arms[arm]()
            taken = time.perf_counter() - began
            if i:  # the first round warms up
                seconds[arm].append(taken)
            if arm == "c":
                size = sum(path.stat().st_size for path in target.iterdir())
                began = time.perf_counter()
                for path in sorted(target.iterdir()):
                    real(path)
                hashing.append(time.perf_counter() - began)
    return {
        "bytes": size,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "median_seconds": {arm: statistics.median(taken) for arm, taken in seconds.items()},
        "ratio_to_flushed": {arm: _ratio(seconds[arm], seconds["b"]) for arm in ("a", "c", "d")},
        "hash_seconds": statistics.median(hashing[1:]),
    }


def _ratio(taken: list[float], base: list[float]) -> dict[str, float]:
    """The median of the rounds' ratios and its 95 % interval by order statistics."""
    ratios = sorted(a / b for a, b in zip(taken, base, strict=True))
    reach = round(0.98 * len(ratios) ** 0.5)  # 1.96 / 2 standard deviations of the number below the median
    middle = len(ratios) // 2
    low, high = ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]
    return {"median": statistics.median(ratios), "low": low, "high": high}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from hf_recipes.common.environment import current_commit, package_version, timestamp

    found: dict[str, Any] = {"sizes": {}}
    for name in SIZES:
        with tempfile.TemporaryDirectory(prefix="saving-", dir=ROOT) as scratch:
            found["sizes"][name] = measure(name, Path(scratch))
        print(name, json.dumps(found["sizes"][name]), flush=True)
    versions = {name: package_version(name) for name in ("hf_recipes", "torch", "transformers")}
    found |= {"versions": versions, "commit": current_commit(), "when": timestamp(), "cores": os.cpu_count()}
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
