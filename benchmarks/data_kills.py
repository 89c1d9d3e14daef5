"""Streams and preparations that are killed at random: the same rows in the same order.

    python benchmarks/data_kills.py                     # 140 kills of streams, 80 of preparations
    python benchmarks/data_kills.py --streams 20 --preparations 0        # a try; not recorded

A stream is `hf-recipes run` of a small model with `dataset.streaming: true`, killed by SIGKILL at a random moment, at a
file operation, inside saving, inside the rotation of checkpoints or at its end, up to six times in a row, resumed, and
left to its end (the machinery of benchmarks/torture). Every batch that any of its sessions learned from has a digest,
written before it is learned from: the batches, the weights and the losses must be those of the run that nobody killed.

A preparation is `hf-recipes prepare`, killed one to four times in a row (at a random moment, after some of its parts,
while it writes the rows), and started again: every file of the rows must have the bytes that an uninterrupted one
wrote. Its units have 1,000 bytes instead of 8 MB, so that there are many.

Every start is a fork of this process, which has imported torch once. Writes benchmarks/results/data_kills.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/data_kills.json"
STREAMS, PREPARATIONS = 140, 80
SEED, UNIT, IN_A_ROW = 1, 1_000, 4
WAYS = ("any moment", "among parts", "writing rows")
PREPARED = {  # name -> task, processes, share of the kills
    "text, 1 process": ("causal-lm", 1, 0.3),
    "text, 2 processes": ("causal-lm", 2, 0.3),
    "chat, 1 process": ("chat", 1, 0.3),
    "chat, 2 processes": ("chat", 2, 0.1),
}
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from torture import chains, look, processes, record, streams  # noqa: E402


def kill_streams(kills: int) -> dict[str, Any]:
    found = {}
    for number, (name, run) in enumerate(streams.RUNS.items()):
        share = kills // len(streams.RUNS) + (number < kills % len(streams.RUNS))
        if share:
            found[name] = chains.in_scratch(
                run,
                lambda name=name, share=share: chains.interrupt_kind(name, share, 0, SEED, mix=(1, 0)),
                prepare=streams.prepare,
            )
            one = found[name]
            print(name, {key: one[key] for key in ("kills", "resumes", "ends", "equal_ends", "seconds")}, flush=True)
    return found


# preparations ---------------------------------------------------------------------------------------------------------


def write_data(folder: Path, task: str, count: int) -> None:
    from tests.support.tiny_models import CHATML, TEXTS, bpe, write_rows

    bpe(chat=CHATML).save_pretrained(folder / "tokenizer")
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(1200)]
    turns = [[{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text}] for text in texts]
    rows = [{"messages": turn} for turn in turns] if task == "chat" else [{"text": text} for text in texts]
    write_rows(folder / "train.jsonl", rows[40:])
    write_rows(folder / "validation.jsonl", rows[:40])
    arguments = {"output_dir": "out", "max_steps": 1}
    recipe = {
        "task": task,
        "model": {"config": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64}},
        "tokenizer": {"pretrained_model_name_or_path": "tokenizer"},
        "disable_guards": ["end_token", "overlap", "truncation"],
        "dataset": {
            "path": "json", "data_files": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "cache_dir": "cache", "num_proc": count,
        },
        **({"SFTConfig": arguments} if task == "chat" else {"TrainingArguments": arguments}),
    }  # fmt: skip
    if task == "chat":
        recipe["SFTConfig"] |= {"dataset_num_proc": recipe["dataset"].pop("num_proc"), "max_length": 64}
    else:
        recipe["dataset"]["max_length"] = 32
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def prepare_rows() -> None:
    from hf_recipes.cli import main
    from hf_recipes.data.tokens import source

    source.UNIT = UNIT
    main(["prepare", "recipe.yaml"])


def rows_made() -> dict[str, str]:
    """Each file of prepared rows -> its digest; of the index all but the inodes and times of the files."""
    found = {}
    for path in sorted(Path("cache/hf_recipes").glob("*/rows/*")):
        content = path.read_bytes()
        if path.name == "index.json":
            index = json.loads(content)
            content = json.dumps([index[key] for key in ("dtype", "rows", "tokens", "counts", "files")]).encode()
        found[str(path)] = hashlib.sha256(content).hexdigest()
    return found


def kill_once(draw: random.Random, seconds: float) -> str:
    """Starts a preparation and kills it: at any moment, after some of its parts, or while it writes the rows. The way
    it was killed; "" if it was at its end before."""
    way, moment, more, pause = draw.choice(WAYS), draw.uniform(0, seconds), draw.randint(1, 30), draw.uniform(0, 0.01)
    before, began = count_parts(), time.monotonic()
    child = processes.start(prepare_rows)
    while processes.ended(child) is None:
        if (
            (way == "any moment" and time.monotonic() - began > moment)
            or (way == "among parts" and count_parts() >= before + more)
            or (way == "writing rows" and any(Path("cache").glob("hf_recipes/*/rows.part")))
        ):
            time.sleep(pause)
            return way if processes.kill(child) == -signal.SIGKILL else ""
        time.sleep(0.0005)
    return ""


def count_parts() -> int:
    return sum(1 for _ in Path("cache").glob("hf_recipes/*/parts-*/*.npz"))


def kill_preparations(name: str, kills: int) -> dict[str, Any]:
    """In a folder with the data. Kills of one preparation in a row find what the one before left."""
    draw, killed, ends, equal, continued = random.Random(f"{SEED}/{name}"), Counter[str](), 0, 0, 0
    failures: list[dict[str, Any]] = []
    began = time.monotonic()
    if processes.wait(processes.start(prepare_rows)) != 0:
        raise SystemExit(look.tail())
    seconds, straight = time.monotonic() - began, rows_made()
    while killed.total() < kills:
        shutil.rmtree("cache")
        for _ in range(draw.randint(1, IN_A_ROW)):
            way = kill_once(draw, seconds)
            if not way:
                break
            killed[way] += 1
            continued += count_parts() > 0
        status = processes.wait(processes.start(prepare_rows))
        ends += 1
        equal += (same := status == 0 and rows_made() == straight)
        if not same:
            failures.append({"ended": status, "log": look.tail()})
    return {
        "kills": killed, "with_parts": continued, "ends": ends, "equal_ends": equal, "failures": failures,
        "straight_seconds": seconds, "seconds": time.monotonic() - began,
    }  # fmt: skip


def kill_all_preparations(kills: int) -> dict[str, Any]:
    found, home = {}, Path.cwd()
    for name, (task, count, share) in PREPARED.items():
        if not kills:
            break
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            try:
                if processes.wait(processes.start(lambda task=task, count=count: write_data(Path(), task, count))) != 0:
                    raise SystemExit(look.tail())
                found[name] = kill_preparations(name, round(share * kills))
            finally:
                os.chdir(home)
        print(name, found[name], flush=True)
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--streams", type=int, help="kills of streams; with it nothing is recorded")
    words.add_argument("--preparations", type=int, help="as --streams")
    given = words.parse_args()
    short = given.streams is not None or given.preparations is not None
    processes.preload()
    found = {
        **record.provenance(),
        "seed": SEED,
        "streams": kill_streams((given.streams or 0) if short else STREAMS),
        "preparations": kill_all_preparations((given.preparations or 0) if short else PREPARATIONS),
    }
    failures = [
        one for group in ("streams", "preparations") for run in found[group].values() for one in run["failures"]
    ]
    if not short:
        record.write(found, RESULT)
    if failures:
        print(json.dumps(failures, indent=1))
        sys.exit(1)


if __name__ == "__main__":
    main()
