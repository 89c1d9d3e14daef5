"""CPU seconds of a training step: hf_recipes against a bare loop, plain Trainer and SFTTrainer as `trl sft` sets it up.

All train the same model from the same weights on the same rows in the same order, with the same optimizer, schedule and
clipping; their losses are compared. The loops of a case are in one process with one thread of computation and take
turns step by step (benchmarks/turns.py); the first steps are left out. Beside the time stands how many elements the
operations of one step compute: that is the same on every machine. Writes benchmarks/results/step.json.

    python benchmarks/step.py                  # about 20 minutes of a core
    python benchmarks/step.py --case "GPT from scratch" --pairs 10
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
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from benchmarks.turns import Turn, median_interval, pair_ratios, take_turns  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/step.json"
SKIPPED, ROWS, LENGTH, BATCH, VOCABULARY = 4, 512, 256, 4, 16_000
COMPARED = 12  # first steps whose losses must be equal: later the rounding of other orders of sums has grown
CASES: dict[str, dict[str, Any]] = {
    "GPT from scratch": {"task": "causal-lm", "lora": False, "learned": 1.0, "pairs": 12},
    "LoRA, half of the tokens learned": {"task": "causal-lm", "lora": True, "learned": 0.5, "pairs": 12},
    "MiniLM, text classification": {"task": "text-classification", "pairs": 30},
    "MiniLM, token classification": {"task": "token-classification", "pairs": 30},
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


def steps_of(case: dict[str, Any]) -> int:
    return SKIPPED + 2 * int(case["pairs"])


def training_of(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    batch = BATCH if case["task"] == "causal-lm" else SENTENCES_A_BATCH
    given = {"output_dir": str(folder / "out"), "max_steps": steps_of(case), "per_device_train_batch_size": batch}
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


def watch_trainers(turns: dict[str, Turn]) -> None:
    """Every Trainer of this process ends its steps in the turn of its thread."""
    from transformers.trainer_callback import CallbackHandler

    on_step_end, on_log = CallbackHandler.on_step_end, CallbackHandler.on_log

    def end(handler: Any, args: Any, state: Any, control: Any) -> Any:
        found = on_step_end(handler, args, state, control)
        turns[threading.current_thread().name].end_step()
        return found

    def log(handler: Any, args: Any, state: Any, control: Any, logs: dict, **kwargs: Any) -> Any:
        if "loss" in logs:
            turns[threading.current_thread().name].losses.append(float(logs["loss"]))
        return on_log(handler, args, state, control, logs, **kwargs)

    CallbackHandler.on_step_end, CallbackHandler.on_log = end, log


def bare(folder: Path, case: dict[str, Any], turn: Turn) -> None:
    import torch

    model, data, collator = model_of(folder, case), rows(case), collator_of(folder, case)
    given = training_of(folder, case)
    batch, count = given["per_device_train_batch_size"], len(data["input_ids"])
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given["learning_rate"], weight_decay=0.0, fused=True)
    model.train()
    more = {"use_cache": False} if case["task"] == "causal-lm" else {}
    for step in range(steps_of(case)):
        some = [(step * batch + i) % count for i in range(batch)]
        inputs = collator([{name: data[name][i] for name in data} for i in some])
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        loss = model(**inputs, **more).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turn.losses.append(loss.item())
        turn.end_step()


def plain_trainer(folder: Path, case: dict[str, Any], turn: Turn) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(**training_of(folder, case))
    data, collator = Dataset.from_dict(rows(case)), collator_of(folder, case)
    Trainer(model=model_of(folder, case), args=args, train_dataset=data, data_collator=collator).train()


def sft_trainer(folder: Path, case: dict[str, Any], turn: Turn) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    args = SFTConfig(**training_of(folder, case), **SFT)
    data = Dataset.from_dict(rows(case))
    model = model_of(folder, case)
    SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train()


def ours(folder: Path, case: dict[str, Any], turn: Turn, section: str) -> None:
    """What `hf-recipes run` builds, with its guards, retries and checks of each step."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from hf_recipes.data.prepared import Prepared, SplitStats
    from hf_recipes.recipe.read import read_recipe
    from hf_recipes.training import trainer as training
    from hf_recipes.training.signals import Listener
    from hf_recipes.training.step_timer import StepTimer

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


KINDS: dict[str, Callable[[Path, dict[str, Any], Turn], None]] = {
    "bare loop": bare,
    "Trainer": plain_trainer,
    "hf_recipes, TrainingArguments": lambda *given: ours(*given, "TrainingArguments"),
    "SFTTrainer": sft_trainer,
    "hf_recipes, SFTConfig": lambda *given: ours(*given, "SFTConfig"),
}


def measure_here(name: str, pairs: int) -> dict[str, Any]:
    """A case, all of whose loops take turns in this process."""
    import torch

    torch.set_num_threads(1)
    case = {**CASES[name], "pairs": pairs}
    kinds = [kind for kind in KINDS if "SFT" not in kind or case["task"] == "causal-lm"]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder, "model"))
        loops = {}
        for kind in kinds:
            own = Path(folder, kind)
            own.mkdir()
            (own / "model").symlink_to(Path(folder, "model"))
            loops[kind] = partial(KINDS[kind], own, case)
        turns = take_turns(loops, steps_of(case), counted=SKIPPED - 1, ready=watch_trainers)
    bare_losses = turns["bare loop"].losses[:COMPARED]
    apart = max(abs(a - b) for turn in turns.values() for a, b in zip(turn.losses, bare_losses, strict=False))
    assert apart < 1e-4, f"{name}: the losses differ by {apart}"
    seconds = {kind: turn.seconds[SKIPPED : steps_of(case)] for kind, turn in turns.items()}
    found: dict[str, Any] = {"pairs": pairs, "largest_difference_of_loss": apart, "kinds": {}}
    for kind, some in seconds.items():
        ratio, interval = median_interval(pair_ratios(some, seconds["bare loop"]))
        found["kinds"][kind] = {
            "seconds": statistics.median(some),
            "of_bare": ratio,
            "interval": interval,
            "of_bare_in_all": sum(some) / sum(seconds["bare loop"]),
            "elements_of_bare": turns[kind].count.elements / turns["bare loop"].count.elements,
        }
    if "SFTTrainer" in kinds:
        pair = pair_ratios(seconds["SFTTrainer"], seconds["hf_recipes, SFTConfig"])
        found["sft_faster"] = dict(zip(("times", "interval"), median_interval(pair), strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, help="of rounds, instead of the case's own number")
    parser.add_argument(
        "--case", action="append", choices=list(CASES), help="only these; the others stay in the record"
    )
    parser.add_argument("--dry", action="store_true", help="print, and leave the record as it is")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        found = measure_here(given.measure, given.pairs or CASES[given.measure]["pairs"])
        print(json.dumps(found))
        return
    earlier = json.loads(RESULT.read_text(encoding="utf-8"))["cases"] if RESULT.is_file() else {}
    cases: dict[str, Any] = {name: earlier[name] for name in CASES if given.case and name in earlier}
    # One heap for all threads: else each loop would have its own, of another shape than a program's.
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    for case in given.case or CASES:
        command = [sys.executable, __file__, "--measure", case, *(["--pairs", str(given.pairs)] if given.pairs else [])]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case}: {done.stdout}\n{done.stderr}")
        cases[case] = json.loads(done.stdout.splitlines()[-1])
        print(case, json.dumps(cases[case], indent=1), flush=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")},
        "shape": {"layers": 4, "width": 256, "vocabulary": VOCABULARY, "batch": BATCH, "length": LENGTH},
        "sentences": {"batch": SENTENCES_A_BATCH, "median": 16, "longest": LONGEST},
        "cases": {name: cases[name] for name in CASES if name in cases},
    }
    if not given.dry:
        RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
