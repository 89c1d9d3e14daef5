"""Kills, corruption and full disks: does a run survive, and does the resumed run end in the straight one's bits?

    python benchmarks/torture.py                 all of it, into benchmarks/results/torture.json (minutes on 2 cores)
    python benchmarks/torture.py --kills 12      a short one, printed only

Everything is real: runs of hf_recipes.run on small models, SIGKILL, files damaged on disk, a tmpfs that fills up. This
process imports torch once and forks each run, so that a start costs no import. Four ways to choose a kill's moment:

    any         a moment drawn evenly over the run's whole time
    saving      up to 30 ms after a staging folder appears
    rotating    up to 10 ms after a checkpoint is put in place, or is being removed
    operation   just before the N-th operation on a file or folder after the first save began (open, rename, remove,
                mkdir, rmdir, fsync)

`python benchmarks/tables.py` makes docs/torture.md of the record.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/torture.json"
STEPS, SAVES = 15, 2
WAYS = ("any", "saving", "rotating", "operation")
COMMON = {
    "output_dir": "out",
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 3,
    "save_steps": SAVES,
    "save_total_limit": 2,
    "disable_tqdm": True,
}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}
TWO = "Trainer: 2 processes (gloo)"  # killed both at once, or one of them alone
RUNS: dict[str, dict[str, Any]] = {
    "Trainer: dropout, evaluation, best model": {
        "task": "text-classification",
        "TrainingArguments": {
            **COMMON,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
        },
    },
    "Trainer: length groups, 8-bit Adam": {
        "task": "text-classification",
        "TrainingArguments": {**COMMON, "train_sampling_strategy": "group_by_length", "optim": "adamw_bnb_8bit"},
    },
    "SFTTrainer: LoRA, packing": {
        "task": "chat",
        "LoraConfig": LORA,
        "SFTConfig": {**COMMON, "packing": True, "max_length": 32},
    },
    "SFTTrainer: persistent workers": {
        "task": "chat",
        "SFTConfig": {**COMMON, "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    },
    TWO: {
        "task": "text-classification",
        "TrainingArguments": {**COMMON, "per_device_train_batch_size": 1, "use_cpu": True},
    },
}


# --- runs in forked processes ----------------------------------------------------------------------------------------


def start(work: Callable[[], object], log: str = "child.log") -> int:
    """Forks a process (its own group, its output in a file) that does `work`; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is shared by forks: one that is killed inside would keep it for all
        work()
        code = 0
    except BaseException as problem:
        os.write(2, f"\n{type(problem).__name__}: {problem}\n".encode())
    finally:
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit status (negative: the signal) of a process of ours, None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return None if not done else -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill(child: int, *, alone: bool = False) -> int:
    """SIGKILL to the process and its loader workers; the exit status, -9 unless it had ended by itself.

    `alone`: to rank 1 only; rank 0 notices (gloo's connection is gone) and has 20 s to end by itself.
    """
    if alone and Path("rank1.pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(Path("rank1.pid").read_text(encoding="utf-8")), signal.SIGKILL)
        for _ in range(2000):
            status = ended(child)
            if status is not None:
                return status
            time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(child, signal.SIGKILL)
    _, code = os.waitpid(child, 0)
    return -os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code)


def sweep(child: int) -> None:
    """Whoever is left of the group of a process that has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def in_ranks(processes: int, work: Callable[[], object]) -> None:
    """`work` in this process and, as rank 1, in a fork of it; their group is this process's."""
    if processes == 1:
        work()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    other = os.fork()
    rank = 0 if other else 1
    os.environ.update({name: str(word) for name, word in {**words, "RANK": rank, "LOCAL_RANK": rank}.items()})
    if rank:
        Path("rank1.pid").write_text(str(os.getpid()), encoding="utf-8")
        try:
            work()
        except BaseException as problem:
            os.write(2, f"\nrank 1: {type(problem).__name__}: {problem}\n".encode())
        finally:
            os._exit(0)
    work()
    os.waitpid(other, 0)


def train(*, resume: bool, die_at_operation: int = 0) -> None:
    """In the child: a run, which notes each save that it was told is done, and may die at an operation on a file."""
    in_ranks(2 if Path("two").exists() else 1, lambda: train_rank(resume, die_at_operation))


def train_rank(resume: bool, die_at_operation: int) -> None:
    from hf_recipes.checkpoints import folders, manifest
    from hf_recipes.pipeline.run import run

    put = folders.put_in_place

    def noted(staging: Path, final: Path) -> None:
        put(staging, final)
        with open("saves.log", "a", encoding="utf-8") as log:
            log.write(f"{folders.step_of(final)}\n")

    folders.put_in_place = noted
    if die_at_operation and os.environ.get("RANK", "0") == "0":
        count, saving = [0], [False]

        def operation(event: str, words: tuple[Any, ...]) -> None:
            if event in OPERATIONS and words and "out" in str(words[0]):
                saving[0] = saving[0] or folders.STAGING in str(words[0])
                count[0] += saving[0]
                if count[0] == die_at_operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        flush = manifest.flush_to_disk
        manifest.flush_to_disk = lambda path: (operation("fsync", (path,)), flush(path))[1]  # no audit event of its own
        sys.addaudithook(operation)
    run("recipe.yaml", resume=resume)


OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "fsync")


# --- what is looked at -----------------------------------------------------------------------------------------------


def weights(folder: str = "out") -> str:
    """Digest of the final weights and of every logged loss."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.read_bytes())
    record = json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))
    losses = [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in record["log_history"]]
    digest.update(json.dumps([losses, record["train_loss"], record["metrics"]["eval"]["eval_loss"]]).encode())
    return digest.hexdigest()


def after_a_kill() -> dict[str, Any]:
    """The folder as a dead run left it: checkpoints that are half there, and steps lost beyond the last save."""
    from hf_recipes.checkpoints import folders, select

    found = folders.list_checkpoints(Path("out"))
    half = [path.name for path in found if select.find_errors(path)]
    newest = max((folders.step_of(path) for path in found if path.name not in half), default=0)
    saved = Path("saves.log").read_text(encoding="utf-8").split() if Path("saves.log").exists() else []
    return {
        "half": half,
        "lost_beyond_the_save": max(0, (int(saved[-1]) if saved else 0) - newest),
        "staging": len(folders.list_leftovers(Path("out"))),
        "resumable": newest > 0 or any(folders.is_intact(path) for path in folders.list_leftovers(Path("out"))),
    }


def had_finished() -> bool:
    path = Path("out/record.json")
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["status"] == "finished"


def one_kill(way: str, draw: random.Random, seconds: float, *, resume: bool, started: float) -> dict[str, Any] | None:
    """Starts a run and kills it; None if it was at its end before the moment came."""
    two = Path("two").exists()
    alone = two and draw.random() < 0.5
    operations = draw.randint(1, 160) if way == "operation" else 0
    child = start(lambda: train(resume=resume, die_at_operation=operations))
    moment = started + draw.uniform(0, seconds) if way == "any" else None
    wait = draw.uniform(0, 0.03 if way == "saving" else 0.01)
    skip = draw.randint(0, 5)  # appearances that are let pass, so that not always the first save is hit
    seen: set[str] = set()
    while (status := ended(child)) is None:
        now = time.monotonic()
        names = {path.name for path in Path("out").iterdir()} if Path("out").is_dir() else set()
        if way == "any" and moment is not None and now >= moment:
            status = kill(child, alone=alone)
            break
        marks = {
            name for name in names if name.startswith(".staging-" if way == "saving" else (".removing-", "checkpoint-"))
        }
        if way in ("saving", "rotating") and marks - seen:
            if skip:
                skip -= 1
                seen |= marks
            else:
                time.sleep(wait)
                status = kill(child, alone=alone)
                break
        time.sleep(0.0005)
    if status == 0:
        return None
    sweep(child)
    if status != -signal.SIGKILL and not two:
        raise SystemExit(f"a run failed by itself ({status}):\n{Path('child.log').read_text()[-3000:]}")
    return {"way": way, **after_a_kill()}


def kills_of(name: str, count: int, seed: int) -> dict[str, Any]:
    """`count` kills of one kind of run, in chains of up to four before a run may reach its end."""
    draw = random.Random(seed)
    began = time.monotonic()
    child = start(lambda: train(resume=False))
    while (status := ended(child)) is None:
        time.sleep(0.01)
    if status:
        raise SystemExit(Path("child.log").read_text()[-3000:])
    seconds, straight = time.monotonic() - began, weights()
    shutil.rmtree("out")
    Path("saves.log").unlink()
    found: dict[str, Any] = {"straight_seconds": seconds, "kills": [], "ends": 0, "equal_ends": 0, "resumes": 0}
    while len(found["kills"]) < count:
        chain = min(draw.randint(1, 4), count - len(found["kills"]))
        resumable, finished = False, False
        for _ in range(chain):
            way = WAYS[len(found["kills"]) % len(WAYS)]
            hit = one_kill(way, draw, seconds, resume=resumable, started=time.monotonic())
            found["resumes"] += resumable
            if hit is None:
                finished = True
                break
            found["kills"].append(hit)
            resumable, finished = hit["resumable"], had_finished()
            if finished:  # killed between its record and its end: nothing is left to resume
                break
        if not finished:
            child = start(lambda again=resumable: train(resume=again))
            while (status := ended(child)) is None:
                time.sleep(0.005)
            found["resumes"] += resumable
            if status:
                raise SystemExit(f"{name}: a resumed run failed:\n{Path('child.log').read_text()[-3000:]}")
        found["ends"] += 1
        found["equal_ends"] += weights() == straight
        shutil.rmtree("out")
        Path("saves.log").unlink(missing_ok=True)
    found["seconds"] = time.monotonic() - began
    return found


# --- files -----------------------------------------------------------------------------------------------------------


def damaged_files() -> list[dict[str, Any]]:
    """Each file of the newest checkpoint truncated, emptied, removed, one bit flipped: what a resumption then does."""
    from hf_recipes.checkpoints import select

    child = start(lambda: train(resume=False))
    while (status := ended(child)) is None:
        time.sleep(0.01)
    if status:
        raise SystemExit(Path("child.log").read_text()[-3000:])
    straight = weights()
    os.rename("out", "whole")
    newest = max(Path("whole").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2])).name
    found = []
    for name in sorted(path.name for path in Path("whole", newest).iterdir()):
        for damage in ("truncated", "emptied", "removed", "flipped"):
            shutil.rmtree("out", ignore_errors=True)
            shutil.copytree("whole", "out", ignore=shutil.ignore_patterns("record.json"))
            path = Path("out", newest, name)
            content = path.read_bytes()
            middle = len(content) // 2
            if damage == "removed":
                path.unlink()
            elif damage == "flipped":
                path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            else:
                path.write_bytes(content[:middle] if damage == "truncated" else b"")
            why = "; ".join(select.find_errors(Path("out", newest)))
            Path("child.log").unlink(missing_ok=True)
            child = start(lambda: train(resume=True))
            while (status := ended(child)) is None:
                time.sleep(0.005)
            said = Path("child.log").read_text(encoding="utf-8", errors="replace")
            passed = f"skipped {newest}: {name} " in said
            found.append(
                {
                    "file": name,
                    "damage": damage,
                    "why": why,
                    "passed_over_by_name": passed,
                    "resumed": status == 0,
                    "equal_end": status == 0 and weights() == straight,
                }
            )
    shutil.rmtree("out")
    shutil.rmtree("whole")
    return found


# --- disks -----------------------------------------------------------------------------------------------------------


def full_disk(megabytes: int, *, look_before: bool) -> dict[str, Any]:
    """A run into a tmpfs that it fills. `look_before=False`: the check for room is off, the writers meet the end."""
    from hf_recipes.checkpoints import disk_space, folders, select

    Path("disk").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", "disk"], check=True)
    try:
        Path("child.log").unlink(missing_ok=True)
        words = [
            "TrainingArguments.output_dir=disk/out",
            "TrainingArguments.save_total_limit=null",
            "TrainingArguments.max_steps=400",
            "TrainingArguments.eval_strategy=no",
            "TrainingArguments.load_best_model_at_end=false",
        ]

        def work() -> None:
            from hf_recipes.pipeline.run import run

            if not look_before:
                disk_space.find_shortage = lambda folder, needed: None
            run("recipe.yaml", words)

        child = start(work)
        while (status := ended(child)) is None:
            time.sleep(0.01)
        said = Path("child.log").read_text(encoding="utf-8").strip().splitlines()[-1]
        found = folders.list_checkpoints(Path("disk/out"))
        record = json.loads(Path("disk/out/record.json").read_text(encoding="utf-8"))
        return {
            "megabytes": megabytes,
            "look_before": look_before,
            "exit": status,
            "message": said.removeprefix("RecipeError: "),
            "checkpoints": len(found),
            "half": sum(bool(select.find_errors(path)) for path in found),
            "leftovers": len(folders.list_leftovers(Path("disk/out"))),
            "record_status": record["status"],
        }
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)


# --- the benchmark ---------------------------------------------------------------------------------------------------


def prepare(folder: Path, run: dict[str, Any]) -> None:
    """A small model with random weights, its tokenizer, 21 rows, and the recipe."""
    from tests.support.tiny_models import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows

    texts = [" ".join(TEXTS[i % 4].split()[: 3 + i % 7]) for i in range(21)]
    if run["task"] == "chat":
        save_llama(folder / "model", bpe(chat=CHATML))
        turns = [[("user", text[:9]), ("assistant", text)] for text in texts]
        rows = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
        words = {"attention_dropout": 0.1}
    else:
        save_bert(folder / "model", wordpiece(sorted({word for text in texts for word in text.split()})))
        rows = [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts)]
        words = {"hidden_dropout_prob": 0.1}
    write_rows(folder / "rows.jsonl", rows)
    files = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    model = {"pretrained_model_name_or_path": "model", **words}
    words = {"disable_guards": ["overlap", "truncation", "end_token"], "dataset": {"path": "json", "data_files": files}}
    recipe = {**run, "model": model, **words}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML


def preload() -> None:
    """What a run imports, once; no tensor is computed in this process, so that forks find no threads."""
    import bitsandbytes  # noqa: F401
    import datasets
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401

    import hf_recipes.data.chat
    import hf_recipes.data.text_classification
    import hf_recipes.pipeline.run
    import hf_recipes.training.trainer

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    assert hf_recipes.pipeline.run and hf_recipes.data.chat
    assert hf_recipes.data.text_classification and hf_recipes.training.trainer


def torture(kills: int, seed: int, *, disks: bool, files: bool) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    preload()
    runs: dict[str, Any] = {}
    corrupted: list[dict[str, Any]] = []
    full: list[dict[str, Any]] = []
    home = Path.cwd()
    for i, (name, run) in enumerate(RUNS.items()):
        share = kills // len(RUNS) + (i < kills % len(RUNS))
        with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
            try:
                prepare_in_child(Path(scratch), run)
                os.chdir(scratch)
                if name == TWO:
                    Path("two").touch()
                if share:
                    runs[name] = kills_of(name, share, seed + i)
                    print(f"{name}: {share} kills in {runs[name]['seconds']:.0f} s", flush=True)
                if files and i == 0:
                    corrupted = damaged_files()
                    print(f"{len(corrupted)} damaged files", flush=True)
                if disks and i == 0:
                    full = [full_disk(50, look_before=True), full_disk(50, look_before=False)]
                    print(f"{len(full)} full disks", flush=True)
            finally:
                os.chdir(home)
    return {"runs": runs, "files": corrupted, "disks": full, "steps": STEPS, "save_steps": SAVES, "seed": seed}


def prepare_in_child(folder: Path, run: dict[str, Any]) -> None:
    """Weights are made in a fork of its own: this process must not start torch's threads."""
    child = start(lambda: prepare(folder, run), str(folder / "child.log"))
    while (status := ended(child)) is None:
        time.sleep(0.01)
    if status:
        raise SystemExit((folder / "child.log").read_text())


def totals(found: dict[str, Any]) -> dict[str, Any]:
    """The counts that the issue asks for."""
    runs = list(found["runs"].values())
    hits = [hit for run in runs for hit in run["kills"]]
    return {
        "kills": len(hits),
        "resumes": sum(run["resumes"] for run in runs),
        "ends": sum(run["ends"] for run in runs),
        "equal_ends": sum(run["equal_ends"] for run in runs),
        "half_checkpoints": sum(len(hit["half"]) for hit in hits),
        "steps_lost_beyond_a_save": sum(hit["lost_beyond_the_save"] for hit in hits),
        "staging_folders_left": sum(hit["staging"] for hit in hits),
        "seconds_lost": sum(run["seconds"] - run["ends"] * run["straight_seconds"] for run in runs),
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--kills", type=int, default=0, help="so many only, without files and disks; not recorded")
    words.add_argument("--seed", type=int, default=1)
    given = words.parse_args()
    began = time.monotonic()
    short = given.kills > 0
    found = torture(given.kills or 200, given.seed, disks=not short, files=not short)
    found["totals"] = totals(found)
    print(json.dumps(found["totals"], indent=1))
    if short:
        return
    from hf_recipes.common.environment import current_commit, package_version, timestamp

    versions = {name: package_version(name) for name in ("hf_recipes", "torch", "transformers", "trl", "peft")}
    found |= {
        "versions": versions,
        "commit": current_commit(),
        "when": timestamp(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "seconds": time.monotonic() - began,
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
