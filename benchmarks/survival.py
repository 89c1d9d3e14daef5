"""Steps that run out of memory, and what the guards cost.

    python benchmarks/survival.py        into benchmarks/results/survival.json (minutes, on a CPU)

Out of memory: a torch.OutOfMemoryError is injected (tests/support/limited_memory.py) wherever a micro-batch has
more rows than fit; the run's end is compared with a run that had room. Dropout is 0: with dropout a split
step draws other masks.

Cost: the same trainer makes steps with and without the guards (and the notes that a repetition needs) in turn; the
figure is the median of the ratios of neighbouring steps, with a bootstrap interval. One size stands for a step far
shorter than any real one.

`python benchmarks/tables.py` puts the figures into docs/guards.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "benchmarks/results/survival.json"
CASES = {  # name -> (when, rows that fit, the training forward from which on they are so few)
    "forward, first micro-batch": ("forward", 2, 1),
    "forward, micro-batch 3 of 4": ("forward", 1, 11),
    "backward, first micro-batch": ("backward", 2, 1),
    "backward, micro-batch 3 of 4": ("backward", 1, 11),
    "evaluation": ("evaluation", 3, 1),
}
SIZES = {
    "4 layers of 256, 8 x 64 tokens": (4, 256, 8, 64, 120),
    "6 layers of 512, 8 x 128 tokens": (6, 512, 8, 128, 60),
}


def split_steps() -> list[dict[str, Any]]:
    """One row a task and place of the failure."""
    from safetensors.torch import load_file
    from tests.test_out_of_memory import SFT, TRAINER, texts

    from hf_recipes.pipeline.run import run
    from hf_recipes.record.file import read_record
    from tests.support.limited_memory import limited_memory
    from tests.support.tiny_models import CHATML, bpe, save_bert, save_llama, wordpiece, write_rows

    def weights(folder: str) -> dict[str, Any]:
        found: dict[str, Any] = load_file(f"{folder}/model.safetensors")
        return found

    found = []
    for trainer, text in (("Trainer", TRAINER), ("SFTTrainer", SFT)):
        for name in ("model", "room", "out"):
            shutil.rmtree(name, ignore_errors=True)
        if trainer == "Trainer":
            save_bert("model", wordpiece(sorted({word for line in texts() for word in line.split()})))
            write_rows("rows.jsonl", ({"text": t, "label": ("no", "yes")[i % 2]} for i, t in enumerate(texts())))
        else:
            save_llama("model", bpe(chat=CHATML))
            turns = [[{"role": "user", "content": t[:9]}, {"role": "assistant", "content": t}] for t in texts()]
            write_rows("rows.jsonl", ({"messages": messages} for messages in turns))
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            run("recipe.yaml")
        shutil.move("out", "room")
        for place, (when, rows, call) in CASES.items():
            shutil.rmtree("out", ignore_errors=True)
            with limited_memory(when, rows, from_call=call), contextlib.redirect_stdout(io.StringIO()):
                run("recipe.yaml")
            record, room = (read_record(Path(folder, "record.json")) for folder in ("out", "room"))
            a, b = weights("room"), weights("out")
            losses = [one.metrics.of("eval")["eval_loss"] for one in (room, record)]
            found.append(
                {
                    "trainer": trainer,
                    "place": place,
                    "pieces": max((one.pieces for one in record.out_of_memory), default=1),
                    "steps_lost": 6 - (record.steps or 0),
                    "largest_weight_difference": max(float((a[n] - b[n]).abs().max()) for n in a),
                    "eval_loss_difference": abs(losses[0] - losses[1]),
                }
            )
            print(found[-1], flush=True)
    return found


def cost(name: str, folder: Path) -> dict[str, Any]:
    """Ratios of neighbouring steps, with the guards over without."""
    import numpy as np
    import torch
    from scipy.stats import bootstrap
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from hf_recipes.recipe.recipe import Recipe
    from hf_recipes.training.out_of_memory import OutOfMemoryRetry
    from hf_recipes.training.overrides import trainer_class
    from hf_recipes.training.step_guard import StepGuard
    from hf_recipes.training.trainer_members import TrainerParts

    class NoRetry(OutOfMemoryRetry):
        def training_step(self, trainer: Any, window: Any, step: Any, *args: Any) -> Any:
            return step(*args)

    layers, width, rows, length, pairs = SIZES[name]
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, vocab_size=4096, n_positions=length)
    data = [{"input_ids": torch.arange(length), "labels": torch.arange(length)}] * rows
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=2 * pairs + 6,
        per_device_train_batch_size=rows,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    plain = TrainerParts(retry=NoRetry())
    trainer = trainer_class(Trainer)(parts=plain, model=GPT2LMHeadModel(config), args=args, train_dataset=data)
    recipe = Recipe(path="benchmark", sections={"TrainingArguments": {}, "task": "causal-lm"}, locations={})
    guard = StepGuard(recipe=recipe, say=print)
    guard.checked = 2  # its first steps look at more
    guarded = TrainerParts(guard=guard, loop=plain.loop)
    order = np.random.default_rng(0).integers(0, 2, size=2 * pairs + 6)
    taken: list[tuple[bool, float]] = []

    class Turns(TrainerCallback):
        at, on = 0.0, False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.perf_counter()
            taken.append((self.on, now - self.at))
            n = state.global_step
            first = bool(order[n // 2])
            self.on = first if n % 2 == 0 else not first
            trainer.parts = guarded if self.on else plain
            self.at = time.perf_counter()

    trainer.add_callback(Turns())
    trainer.train()
    # step n + 1 is timed at its end: steps 2k + 1 and 2k + 2 are one pair
    found = [dict(taken[n : n + 2]) for n in range(4, 2 * pairs + 4, 2)]
    ratios = np.array([pair[True] / pair[False] for pair in found])
    interval = bootstrap((ratios,), np.median, n_resamples=5000, rng=np.random.default_rng(1)).confidence_interval
    return {
        "size": name,
        "pairs": len(ratios),
        "step_seconds": statistics.median(pair[False] for pair in found),
        "ratio": float(np.median(ratios)),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def main() -> None:
    import torch
    import transformers
    import trl

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            found = {
                "machine": {"cpu_count": os.cpu_count(), "machine": platform.machine()},
                "versions": {m.__name__: m.__version__ for m in (torch, transformers, trl)},
                "cost": [cost(name, Path(scratch) / "cost") for name in SIZES],
                "out_of_memory": split_steps(),
            }
        finally:
            os.chdir(here)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for one in found["cost"]:
        print(one)


if __name__ == "__main__":
    main()
