"""CPU seconds of a training step: hf_recipes against a bare loop, plain Trainer and SFTTrainer as `trl sft` sets it up.

All train the same model from the same weights on the same rows in the same order, with the same optimizer, schedule and
clipping; their losses must be equal to 1e-4 first. Each is a process of its own with one thread; rounds alternate. A
step's seconds are process time between the ends of two steps; the first steps are left out. Intervals are of the ratio
of medians, by bootstrap over the steps. Writes benchmarks/results/step.json.

    python benchmarks/step.py
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/step.json"
STEPS, SKIPPED, ROWS, LENGTH, BATCH, VOCABULARY = 12, 3, 64, 256, 4, 16_000
CASES: dict[str, dict[str, Any]] = {
    "GPT from scratch": {"task": "causal-lm", "lora": False, "learned": 1.0, "steps": STEPS},
    "LoRA, half of the tokens learned": {"task": "causal-lm", "lora": True, "learned": 0.5, "steps": STEPS},
    "MiniLM, text classification": {"task": "text-classification", "steps": 23},
    "MiniLM, token classification": {"task": "token-classification", "steps": 23},
}
MINILM = {"vocab_size": 30_522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
          "intermediate_size": 1536, "num_labels": 3, "hidden_dropout_prob": 0.0,
          "attention_probs_dropout_prob": 0.0}  # fmt: skip
SENTENCES, SENTENCES_A_BATCH, LONGEST = 512, 8, 64
TRAINING = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "seed": 0,
    "train_sampling_strategy": "sequential",
    "disable_tqdm": True,
}
SFT = {"bf16": False, "activation_checkpointing": False, "max_length": LENGTH, "packing": False}


def rows(case: dict[str, Any]) -> dict[str, list]:
    """Tokens in which each is likely to be followed by the next number, so that there is something to learn. Of
    classifiers: sentences of spread lengths, whose labels are in their tokens."""
    draw, found = random.Random(0), []
    if case["task"] != "causal-lm":
        for _ in range(SENTENCES):
            length = max(3, min(LONGEST, round(draw.lognormvariate(math.log(16), 0.6))))
            found.append([draw.randrange(1000, 30_000) for _ in range(length)])
        tags = case["task"] == "token-classification"
        return {"input_ids": found, "labels": [[i % 3 for i in row] if tags else row[0] % 3 for row in found]}
    learned = case["learned"]
    for _ in range(ROWS):
        ids = [draw.randrange(3, VOCABULARY)]
        while len(ids) < LENGTH:
            ids.append(ids[-1] % (VOCABULARY - 4) + 4 if draw.random() < 0.7 else draw.randrange(3, VOCABULARY))
        found.append(ids)
    given = round(LENGTH * (1 - learned))
    return {"input_ids": found, "labels": [[-100] * given + ids[given:] for ids in found]}


def save_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=1, eos_token_id=0, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w0", bos_token="w1", pad_token="w0").save_pretrained(
        folder
    )


def training_of(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    batch = BATCH if case["task"] == "causal-lm" else SENTENCES_A_BATCH
    given = {"output_dir": str(folder / "out"), "max_steps": case["steps"], "per_device_train_batch_size": batch}
    return {**given, **TRAINING, "learning_rate": 1e-3 if case["task"] == "causal-lm" else 1e-4}


def collator_of(folder: Path, case: dict[str, Any]) -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    kinds = {"text-classification": "DataCollatorWithPadding", "causal-lm": "DataCollatorForSeq2Seq"}
    return getattr(transformers, kinds.get(case["task"], "DataCollatorForTokenClassification"))(tokenizer)


def model_of(folder: Path, case: dict[str, Any]) -> Any:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    if case["task"] != "causal-lm":
        kind = "Sequence" if case["task"] == "text-classification" else "Token"
        auto = getattr(transformers, f"BertFor{kind}Classification")
        torch.manual_seed(0)
        return auto(transformers.BertConfig(**MINILM))
    lora = case["lora"]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))


class Clock:
    """Process time at the end of each step, and the losses."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def watch(self) -> None:
        """Follows every Trainer of this process."""
        from transformers.trainer_callback import CallbackHandler

        on_step_end, on_log = CallbackHandler.on_step_end, CallbackHandler.on_log

        def end(handler: Any, args: Any, state: Any, control: Any) -> Any:
            found = on_step_end(handler, args, state, control)
            self.ends.append(time.process_time())
            return found

        def log(handler: Any, args: Any, state: Any, control: Any, logs: dict, **kwargs: Any) -> Any:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))
            return on_log(handler, args, state, control, logs, **kwargs)

        CallbackHandler.on_step_end, CallbackHandler.on_log = end, log


def bare(folder: Path, case: dict[str, Any], clock: Clock) -> None:
    import torch

    model, data, collator = model_of(folder, case), rows(case), collator_of(folder, case)
    given = training_of(folder, case)
    batch, count = given["per_device_train_batch_size"], len(data["input_ids"])
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given["learning_rate"], weight_decay=0.0, fused=True)
    model.train()
    more = {"use_cache": False} if case["task"] == "causal-lm" else {}
    for step in range(case["steps"]):
        some = [(step * batch + i) % count for i in range(batch)]
        inputs = collator([{name: data[name][i] for name in data} for i in some])
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        loss = model(**inputs, **more).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.ends.append(time.process_time())


def plain_trainer(folder: Path, case: dict[str, Any], clock: Clock) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    clock.watch()
    args = TrainingArguments(**training_of(folder, case))
    data, collator = Dataset.from_dict(rows(case)), collator_of(folder, case)
    Trainer(model=model_of(folder, case), args=args, train_dataset=data, data_collator=collator).train()


def sft_trainer(folder: Path, case: dict[str, Any], clock: Clock) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock.watch()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    args = SFTConfig(**training_of(folder, case), **SFT)
    data = Dataset.from_dict(rows(case))
    model = model_of(folder, case)
    SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train()


def ours(folder: Path, case: dict[str, Any], clock: Clock, section: str) -> None:
    """What `hf-recipes run` builds, with its guards, retries and checks of each step."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from hf_recipes.data.prepared import Prepared, SplitStats
    from hf_recipes.recipe.read import read_recipe
    from hf_recipes.training import trainer as training
    from hf_recipes.training.signals import Listener
    from hf_recipes.training.step_timer import StepTimer

    clock.watch()
    given = {**training_of(folder, case), **(SFT if section == "SFTConfig" else {})}
    path = folder / "recipe.yaml"
    recipe = {
        "task": case["task"],
        "model": {"pretrained_model_name_or_path": str(folder / "model")},
        "dataset": {"path": "json", "data_files": "unused.jsonl"},
        section: given,
    }
    path.write_text(json.dumps(recipe), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    data = Dataset.from_dict(rows(case))
    stats = SplitStats(rows=len(data), tokens=sum(map(len, data["input_ids"])), longest=LENGTH)
    prepared = Prepared(
        train=data, evals={"eval": data}, collator=collator_of(folder, case), config={}, label_names=(),
        stats={"train": stats, "eval": stats}, ids={}, row_bytes={}, sources={}, notes=(),
    )  # fmt: skip
    read = read_recipe(str(path))
    args = training.build_arguments(read)
    with Listener(print).listening() as listener:
        session = training.Session(
            listener=listener,
            run_facts=lambda _: {},
            timer=StepTimer(print, None),
            sessions=lambda *_: [],
            after_first_step=lambda: None,
            until=None,
        )
        built = training.build_trainer(
            read, args, model_of(folder, case), tokenizer, prepared, lambda _: {}, None, print, session
        )
        built.train()


KINDS: dict[str, Callable[[Path, dict[str, Any], Clock], None]] = {
    "bare loop": bare,
    "Trainer": plain_trainer,
    "hf_recipes, TrainingArguments": lambda *given: ours(*given, "TrainingArguments"),
    "SFTTrainer": sft_trainer,
    "hf_recipes, SFTConfig": lambda *given: ours(*given, "SFTConfig"),
}


def measure_here(kind: str, case: str, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    clock = Clock()
    KINDS[kind](folder, CASES[case], clock)
    seconds = [b - a for a, b in zip(clock.ends[SKIPPED - 1 :], clock.ends[SKIPPED:], strict=False)]
    print(json.dumps({"seconds": seconds, "losses": clock.losses}))


def interval(of: list[float], base: list[float]) -> list[float]:
    """95 % of the ratio of medians."""
    draw = random.Random(0)
    found = sorted(
        statistics.median(draw.choices(of, k=len(of))) / statistics.median(draw.choices(base, k=len(base)))
        for _ in range(2000)
    )
    return [found[50], found[1949]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--case", action="append", choices=list(CASES), help="only these; the others stay in the record"
    )
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure_here(given.measure[0], given.measure[1], Path(given.measure[2]))
        return
    earlier = json.loads(RESULT.read_text(encoding="utf-8"))["cases"] if RESULT.is_file() else {}
    cases: dict[str, Any] = {name: earlier[name] for name in CASES if given.case and name in earlier}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        for case in given.case or CASES:
            kinds = [kind for kind in KINDS if "SFT" not in kind or CASES[case]["task"] == "causal-lm"]
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            losses: dict[str, list[float]] = {}
            for number in range(given.rounds):
                for kind in kinds[:: 1 if number % 2 == 0 else -1]:
                    command = [sys.executable, __file__, "--measure", kind, case, name]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise SystemExit(f"{kind}: {done.stdout}\n{done.stderr}")
                    found = json.loads(done.stdout.splitlines()[-1])
                    seconds[kind] += found["seconds"]
                    losses[kind] = found["losses"]
                    print(case, kind, statistics.median(found["seconds"]), found["losses"][:2], flush=True)
            largest = max(
                abs(one - other) for kind in kinds for one, other in zip(losses[kind], losses["bare loop"], strict=True)
            )
            assert largest < 1e-4, f"{case}: the losses differ by {largest}: {losses}"
            cases[case] = {
                "largest_difference_of_loss": largest,
                "kinds": {
                    kind: {
                        "seconds": statistics.median(some),
                        "of_bare": statistics.median(some) / statistics.median(seconds["bare loop"]),
                        "interval": interval(some, seconds["bare loop"]),
                        "steps": len(some),
                    }
                    for kind, some in seconds.items()
                },
            }
            if "SFTTrainer" in kinds:
                pair = seconds["SFTTrainer"], seconds["hf_recipes, SFTConfig"]
                cases[case]["sft_faster"] = {
                    "times": statistics.median(pair[0]) / statistics.median(pair[1]),
                    "interval": interval(*pair),
                }
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")},
        "shape": {"layers": 4, "width": 256, "vocabulary": VOCABULARY, "batch": BATCH, "length": LENGTH},
        "sentences": {"batch": SENTENCES_A_BATCH, "median": 16, "longest": LONGEST},
        "cases": {name: cases[name] for name in CASES if name in cases},
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
