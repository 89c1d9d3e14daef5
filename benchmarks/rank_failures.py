"""One of two processes is killed, frozen or out of memory: how long the run takes to end, its status and its message.

    python benchmarks/rank_failures.py            all; or only those whose "launch, what" contains the given words

Two CPU processes under `accelerate launch` with a file of accelerate_configs/ (tests/support/launch_files.py says what
is changed in it). Each failure comes in step 3. Writes benchmarks/results/rank_failures.json; `python
benchmarks/tables.py` makes the table of docs/launching.md of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/rank_failures.json"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from tests.support.launch_files import start  # noqa: E402

LAUNCHES = {"DDP": "multi_gpu", "FSDP2": "fsdp2", "ZeRO-2": "deepspeed_zero2", "ZeRO-3": "deepspeed_zero3"}
# What happens -> the rank that it happens to.
FAILURES = {
    "killed (SIGKILL)": 1,
    "frozen (SIGSTOP)": 1,
    "rank 0 frozen (SIGSTOP)": 0,
    "out of memory in the forward": 1,
    "out of memory in the backward": 1,
}
STEP = 3
EVENT = "event"  # when it happened
RECIPE = {
    "task": "causal-lm",
    "model": {"pretrained_model_name_or_path": "model"},
    "dataset": {"path": "json", "data_files": {"train": "rows.jsonl"}, "max_length": 24},
    "disable_guards": ["truncation"],
    "TrainingArguments": {
        "output_dir": "out",
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


def child(what: str) -> None:
    """One rank: `hf-recipes run recipe.json`, in which `what` happens."""
    from transformers.trainer_callback import DefaultFlowCallback

    from hf_recipes.cli import main
    from tests.support.limited_memory import limited_memory
    from tests.support.sharded_ranks import open_gate, use_gloo_alone

    fails = int(os.environ["RANK"]) == FAILURES[what]
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        use_gloo_alone()
    open_gate()

    def begin_step(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if fails and state.global_step == STEP - 1:
            Path(EVENT).write_text(str(time.time()), encoding="utf-8")
            if "SIG" in what:
                os.kill(os.getpid(), signal.SIGKILL if "SIGKILL" in what else signal.SIGSTOP)

    DefaultFlowCallback.on_step_begin = begin_step
    memory: Any = contextlib.nullcontext()
    if fails and "memory" in what:
        memory = limited_memory(what.rpartition(" ")[2], 2, from_call=STEP)
    with memory:
        main(["run", "recipe.json"])


def measure(launch: str, what: str, model: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rank-failures-") as scratch:
        folder = Path(scratch)
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(RECIPE), encoding="utf-8")
        status, output = start(LAUNCHES[launch], folder, ["child", what], module="benchmarks.rank_failures")
        ended = time.time()
        began = float((folder / EVENT).read_text(encoding="utf-8"))
        record = json.loads((folder / "out/record.json").read_text(encoding="utf-8"))
        lines = [re.sub(r"^\[rank \d+\] ", "", line) for line in output.splitlines()]
        errors = [line for line in lines if line.startswith(("error:", "out of memory"))]
        row = {"launch": launch, "what": what, "status": status, "record": record["status"]}
        row |= {"seconds": ended - began, "message": errors[0] if errors else "", "left": _left(folder)}
        row["checkpoints"] = sorted(path.name for path in (folder / "out").glob("checkpoint-*"))
        if not errors and status:
            print(output[-3000:])
        return row


def _left(folder: Path) -> int:
    """Processes of the launch that still run."""
    import psutil

    left = 0
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            left += one.cwd() == str(folder)
    return left


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["child"]:
        child(words[1])
        return
    import fcntl

    from torture import record

    from tests.support.tiny_models import TEXTS, bpe, save_llama, write_rows

    with tempfile.TemporaryDirectory(prefix="rank-failures-") as scratch:
        save_llama(f"{scratch}/model", bpe())
        write_rows(f"{scratch}/rows.jsonl", [{"text": TEXTS[n % 4]} for n in range(48)])
        for launch in LAUNCHES:
            for what in FAILURES:
                if " ".join(words) not in f"{launch}, {what}":
                    continue
                row = measure(launch, what, Path(scratch))
                print(row, flush=True)
                with open(RESULT, "a+", encoding="utf-8") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.seek(0)
                    rows = json.loads(file.read() or '{"rows": []}')["rows"]
                    rows = [one for one in rows if (one["launch"], one["what"]) != (launch, what)] + [row]
                    rows.sort(key=lambda one: (list(LAUNCHES).index(one["launch"]), list(FAILURES).index(one["what"])))
                    file.truncate(0)
                    file.write(json.dumps({**record.provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
