"""One recipe on one process, DDP, FSDP2 and ZeRO: the same losses, ends, checkpoints; and kills of sharded runs.

    python benchmarks/sharded.py launches    launches x (scratch, pretrained, LoRA) x (Trainer, SFTTrainer)
    python benchmarks/sharded.py worlds      20 changes of the number of processes in the middle of a run
    python benchmarks/sharded.py kills       100 kills of one rank or of all, of an FSDP2 run; "ZeRO-2 40": another's

Each writes its part of benchmarks/results/sharded.json; `python benchmarks/tables.py` makes the tables of it. Two CPU
processes with gloo; accelerate's gate for FSDP is opened as in the tests (tests/support/sharded_ranks.py).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/sharded.json"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from torture import chains, kinds, processes, record  # noqa: E402

from tests.support import forks  # noqa: E402
from tests.support.forks import run_forked, run_ranks  # noqa: E402
from tests.support.sharded_ranks import run_fsdp, run_zero  # noqa: E402

STEPS, ROWS = 20, 37  # 37 rows of 4 a step: the last step of an epoch has one
COMMON = {
    "max_steps": STEPS,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_steps": 5,
    "load_best_model_at_end": True,
    "max_grad_norm": 0.5,
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 1,
}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SCRATCH = {"config": {"model_type": "llama", "num_key_value_heads": 1, "max_position_embeddings": 64, **SHAPE}}
PRETRAINED = {"pretrained_model_name_or_path": "model"}
LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
MODELS: dict[str, dict[str, Any]] = {
    "from scratch": {"model": SCRATCH, "BpeTrainer": {"vocab_size": 340}},
    "pretrained": {"model": PRETRAINED},
    "LoRA": {"model": PRETRAINED, "LoraConfig": LORA},
    "pretrained, bf16": {"model": PRETRAINED, "arguments": {"bf16": True}},
    "QLoRA": {"model": PRETRAINED, "LoraConfig": LORA, "BitsAndBytesConfig": {"load_in_4bit": True}},
}
TRAINERS = {"Trainer": "TrainingArguments", "SFTTrainer": "SFTConfig"}
Launch = Callable[[list[str], str], tuple[int, str]]


def _main(words: list[str]) -> None:
    from hf_recipes.cli import main

    main(words)


ONE = "1 process"
# Name -> processes, and what runs `hf-recipes WORDS` in them; its second argument is the name of a log.
LAUNCHES: dict[str, tuple[int, Launch]] = {
    ONE: (1, lambda words, log: run_forked(words, None)),
    "DDP": (2, lambda words, log: run_ranks(lambda rank: _main(words), output=log)),
    "FSDP2": (2, lambda words, log: run_fsdp(lambda rank: _main(words), output=log)),
    "ZeRO-2": (2, lambda words, log: run_zero(lambda rank: _main(words), 2, output=log)),
    "ZeRO-3": (2, lambda words, log: run_zero(lambda rank: _main(words), 3, output=log)),
}


def write_recipe(kind: str, trainer: str) -> str:
    section = TRAINERS[trainer]
    model = dict(MODELS[kind])
    arguments: dict[str, Any] = COMMON | model.pop("arguments", {})
    dataset: dict[str, Any] = {"path": "json", "data_files": {"train": "rows.jsonl", "validation": "rows.jsonl"}}
    if section == "SFTConfig":
        arguments |= {"max_length": 24, "packing": False}
    else:
        dataset["max_length"] = 24
    recipe = {"task": "causal-lm", "dataset": dataset, "disable_guards": ["overlap", "truncation"], **model}
    recipe |= {section: arguments, "EarlyStoppingCallback": {"early_stopping_patience": 3}}
    recipe |= {"sample_prompts": ["the sea"], "global_batch_size": 4}
    path = f"{kind}-{trainer}.yaml".replace(" ", "-").replace(",", "")
    Path(path).write_text(json.dumps(recipe), encoding="utf-8")
    return path


def prepare() -> None:
    """A small pretrained model and rows, in the working directory."""
    from tests.support.tiny_models import TEXTS, bpe, save_llama, write_rows

    save_llama("model", bpe())
    write_rows("rows.jsonl", [{"text": " ".join(TEXTS[n % 4].split()[n % 3 :])} for n in range(ROWS)])


def start(launch: str, path: str, trainer: str, out: str, *words: str) -> str:
    """Output of a run. Raises SystemExit for one that fails."""
    code, output = LAUNCHES[launch][1](
        ["run", path, f"{TRAINERS[trainer]}.output_dir={out}", *words], f"{out}-{len(words)}.log"
    )
    if code:
        raise SystemExit(f"{launch}, {path} ended with {code}:\n{output[-3000:]}")
    return output


def read(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "record.json").read_text(encoding="utf-8"))
    return found


def losses(out: str) -> list[float]:
    return [entry["loss"] for entry in read(out)["log_history"] if "loss" in entry]


def largest_relative(ours: list[float], theirs: list[float]) -> float:
    if len(ours) != len(theirs):
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def compare_weights(out: str, other: str) -> float:
    from safetensors.torch import load_file

    pairs = [
        {key: value for path in sorted(Path(folder).glob("*.safetensors")) for key, value in load_file(path).items()}
        for folder in (out, other)
    ]
    if pairs[0].keys() != pairs[1].keys():
        return float("inf")
    return max(float((pairs[0][key] - pairs[1][key]).abs().max()) for key in pairs[0])


def compare_logits(out: str, other: str) -> float:
    """Of both models as plain transformers (or peft) loads them."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(folder)(rows).logits for folder in (out, other))
    return float((ours - theirs).abs().max())


def launches(only: str = "") -> list[dict[str, Any]]:
    """Each launch of each recipe against one process. `only`: recipes whose "model, trainer" contains it."""
    found = []
    for kind in MODELS:
        for trainer in TRAINERS:
            if only not in f"{kind}, {trainer}":
                continue
            path = write_recipe(kind, trainer)
            for n, name in enumerate(LAUNCHES):
                out = f"{n}-{Path(path).stem}"
                start(name, path, trainer, out)
                if name == ONE:
                    base = out
                    continue
                row: dict[str, Any] = {"launch": name, "model": kind, "trainer": trainer, "steps": read(out)["steps"]}
                evaluation = [read(one)["metrics"]["eval"]["eval_loss"] for one in (out, base)]
                row["losses"] = largest_relative(losses(out), losses(base))
                row["evaluation"] = largest_relative(evaluation[:1], evaluation[1:])
                row["weights"], row["logits"] = compare_weights(out, base), compare_logits(out, base)
                row["best"] = _best(out) == _best(base)
                found.append(row)
                print(row, flush=True)
    return found


def _best(out: str) -> Any:
    folder = max(Path(out).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")).get("best_global_step")


def worlds(changes: int, seed: int = 1) -> dict[str, Any]:
    """A run that another launch continues after every few steps, against one process without a break."""
    draw = random.Random(seed)
    path, trainer = write_recipe("pretrained", "Trainer"), "Trainer"
    section = TRAINERS[trainer]
    recipe = json.loads(Path(path).read_text(encoding="utf-8"))
    del recipe["EarlyStoppingCallback"]
    Path(path).write_text(json.dumps(recipe), encoding="utf-8")
    words = {"save_steps": 1, "lr_scheduler_type": "constant", "load_best_model_at_end": "false"}
    save = [f"{section}.{key}={value}" for key, value in words.items()]
    start(ONE, path, trainer, "straight", *save)
    straight, made, worst, sequence = losses("straight"), 0, 0.0, []
    while made < changes:
        shutil.rmtree("out", ignore_errors=True)
        names = [draw.choice(list(LAUNCHES))]
        stops = sorted(draw.sample(range(2, STEPS), min(5, changes - made)))
        for n, stop in enumerate([*stops, STEPS]):
            more = ["--resume"] if n else []
            start(names[-1], path, trainer, "out", *save, f"{section}.max_steps={stop}", *more)
            sequence.append(names[-1])
            names.append(draw.choice([name for name in LAUNCHES if name != names[-1]]))
        made += len(stops)
        worst = max(worst, largest_relative(losses("out"), straight))
        print(f"{made} changes, losses within {worst:.1e}", flush=True)
    return {"changes": made, "losses": worst, "weights": compare_weights("out", "straight"), "sequence": sequence}


def kills(count: int, launch: str, seed: int = 1) -> dict[str, Any]:
    """Kills of one rank or of both of a sharded run; each chain must end in the straight run's bits."""
    name = f"Trainer: 2 processes that share one model ({launch})"

    def work() -> Any:
        Path("two").write_text(launch, encoding="utf-8")
        return chains.interrupt_kind(name, count, 0, seed, mix=(1, 0))

    found = chains.in_scratch(kinds.RUNS[kinds.TWO], work, two=True)
    found = {**found, "kills": dict(found["kills"]), "signals": {}}
    return {"launch": launch, "kills": sum(found["kills"].values()), "chain": found}


def in_scratch(work: Callable[[], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="sharded-") as scratch:
        os.chdir(scratch)
        try:
            if processes.wait(processes.start(prepare)) != 0:
                raise SystemExit(Path("child.log").read_text(encoding="utf-8"))
            return work()
        finally:
            os.chdir(ROOT)


PARTS: dict[str, Callable[[str], Any]] = {
    "launches": lambda only: in_scratch(lambda: launches(only)),
    "worlds": lambda number: in_scratch(lambda: worlds(int(number or 20))),
    "kills": lambda words: kills(int((words.split()[1:] or [100])[0]), (words.split() or ["FSDP2"])[0]),
}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("part", choices=PARTS)
    words.add_argument(
        "only",
        nargs="?",
        default="",
        help='of launches: "LoRA, SFTTrainer"; of kills: "ZeRO-2 40"; of worlds: how many',
    )
    given = words.parse_args()
    processes.preload()
    forks.SECONDS = 3600  # a busy machine is no failure
    began = time.monotonic()
    found = PARTS[given.part](given.only)
    part = {"found": found, "seconds": time.monotonic() - began, **record.provenance()}
    with open(RESULT, "a+", encoding="utf-8") as file:  # several calls may run at a time
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = json.loads(file.read() or "{}")
        if given.part == "kills":
            others = [one for one in known.get("kills", {}).get("found", []) if one["launch"] != found["launch"]]
            part["found"] = sorted([*others, found], key=lambda one: one["launch"])
        if given.part == "launches" and given.part in known:
            ours = [(row["model"], row["trainer"]) for row in found]
            rest = [row for row in known["launches"]["found"] if (row["model"], row["trainer"]) not in ours]
            part["found"] = sorted([*rest, *found], key=lambda row: (row["model"], row["trainer"], row["launch"]))
        file.truncate(0)
        file.write(json.dumps({**known, given.part: part}, indent=1) + "\n")


if __name__ == "__main__":
    main()
