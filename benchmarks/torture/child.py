"""What happens inside a run's process: it may die at an operation on a file, or have another clock."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.processes import in_ranks

BATCHES = "batches.log"  # where it is, each batch that is learned from gets a line with its digest
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "fsync")


@dataclass(frozen=True, kw_only=True)
class Session:
    """One start of a run. `dies_at`: an operation on a file in the run's folder, counted from the first save, or with
    `ending` from the save of the final model (0: none). `clock`: seconds by which the machine's clock is wrong."""

    resume: bool = False
    dies_at: int = 0
    ending: bool = False
    clock: int = 0
    arguments: tuple[str, ...] = ()


def train(session: Session) -> None:
    """`hf-recipes run`, which notes each save that is done."""
    in_ranks(2 if Path("two").exists() else 1, lambda: train_rank(session))


def train_rank(session: Session) -> None:
    from hf_recipes.checkpoints import folders
    from hf_recipes.cli import main
    from tests.support.sharded_ranks import shard

    if Path("two").exists() and Path("two").read_text(encoding="utf-8"):
        shard(Path("two").read_text(encoding="utf-8"))
    put = folders.put_in_place

    def noted(staging: Path, final: Path) -> None:
        put(staging, final)
        with open("saves.log", "a", encoding="utf-8") as log:
            log.write(f"{folders.step_of(final)}\n")

    folders.put_in_place = noted
    if Path(BATCHES).exists():
        note_batches()
    if session.clock:
        shift_clock(session.clock)
    count = watch_operations(session) if os.environ.get("RANK", "0") == "0" else {}
    try:
        main(["run", "recipe.yaml", *session.arguments, *(["--resume"] if session.resume else [])])
    finally:
        if count:
            saves = len(Path("saves.log").read_text(encoding="utf-8").split()) if Path("saves.log").exists() else 0
            Path("operations.json").write_text(json.dumps({**count, "saves": saves}), encoding="utf-8")


def note_batches() -> None:
    """Step, number within the step and digest, written before the batch is learned from: a killed step has its line."""
    from hf_recipes.training.overrides import Overrides

    learn, last = Overrides.training_step, [-1, 0]

    def training_step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        step = self.state.global_step
        last[:] = [step, last[1] + 1 if last[0] == step else 0]
        digest = hashlib.sha256()
        for name in ("input_ids", "labels"):
            digest.update(f"{tuple(inputs[name].shape)}".encode() + inputs[name].cpu().numpy().tobytes())
        with open(BATCHES, "a", encoding="utf-8") as log:
            log.write(f"{step} {last[1]} {digest.hexdigest()}\n")
        return learn(self, model, inputs, *more)

    Overrides.training_step = training_step  # type: ignore[method-assign]


def watch_operations(session: Session) -> dict[str, int]:
    """Counts a run's operations on files, all of them and those after its training, and dies at one of them."""
    from hf_recipes.checkpoints import folders, manifest, saving

    count, began = {"operation": 0, "ending": 0}, {"operation": False, "ending": False}
    dies_in = "ending" if session.ending else "operation"

    def operation(event: str, words: tuple[Any, ...]) -> None:
        if event in OPERATIONS and words and "out" in str(words[0]):
            began["operation"] = began["operation"] or folders.STAGING in str(words[0])
            for name in count:
                count[name] += began[name]
            if session.dies_at and count[dies_in] == session.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(work: Callable[..., Any], before: Callable[..., None]) -> Callable[..., Any]:
        def both(*words: Any, **more: Any) -> Any:
            before(*words)
            return work(*words, **more)

        return both

    def begin(*words: Any) -> None:
        began["ending"] = True

    manifest.flush_to_disk = counted(manifest.flush_to_disk, lambda *words: operation("fsync", words))  # no audit event
    saving.CheckpointWriter.save_final = counted(saving.CheckpointWriter.save_final, begin)  # type: ignore[method-assign]
    sys.addaudithook(operation)
    return count


def shift_clock(seconds: int) -> None:
    """Wall time only: what measures time spent does not change when a clock is set."""
    real, date = time.time, datetime.datetime

    class Shifted(date):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return date.now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real() + seconds
    datetime.datetime = Shifted  # type: ignore[misc]
