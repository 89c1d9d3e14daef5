"""Which checkpoint a run goes on from: the newest whole one, and why the others were passed over. Light."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, manifest

STATE = "trainer_state.json"
PARTS = ("optimizer.pt", "scheduler.pt")  # besides the random state, of one name or several
NO_STATE = "it holds weights only (save_only_model), no optimizer, no schedule and no random state"
UNPROVEN = "it has no manifest (hf_recipes did not write it): complete as far as upstream's files tell"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A checkpoint to go on from."""

    path: str
    manifest: dict[str, Any] | None  # None: upstream wrote it
    passed: tuple[str, ...] = ()  # "checkpoint-20: optimizer.pt is missing", newest first

    @property
    def step(self) -> int:
        return int(state_of(self.path)["global_step"])

    @property
    def run(self) -> str | None:
        return str(self.manifest["run"]) if self.manifest else None


def choose(output_dir: Path, *, without_state: bool = False, sharded: bool = False) -> tuple[Chosen | None, list[str]]:
    """The newest whole checkpoint of `output_dir` (None if there is none), and those that are not, each with why."""
    passed: list[str] = []
    for folder in folders.checkpoints(output_dir):
        wrong = judge(folder, without_state=without_state, sharded=sharded)
        if not wrong:
            return Chosen(path=str(folder), manifest=manifest.read(folder), passed=tuple(passed)), passed
        passed.append(f"{folder.name}: {'; '.join(wrong)}")
    return None, passed


def judge(folder: Path, *, without_state: bool = False, sharded: bool = False) -> list[str]:
    """What is wrong with a checkpoint, each fault with its file's name; empty if it is whole.

    By its manifest, every size and every digest; without one by what upstream reads when it resumes. `without_state`:
    weights alone will do. `sharded`: FSDP and DeepSpeed have files of their own, which are not looked at.
    """
    try:
        body = manifest.read(folder)
    except manifest.Damaged as problem:
        return [str(problem)]
    if body is None and folders.is_ours(folder):
        return [f"{manifest.NAME} is missing"]
    if body is None:
        return list(_by_upstreams_files(folder, without_state=without_state, sharded=sharded))
    wrong = list(manifest.errors(folder, body))
    if not body["state"] and not without_state:
        wrong.append(NO_STATE)
    return wrong


def _by_upstreams_files(folder: Path, *, without_state: bool, sharded: bool) -> Iterator[str]:
    try:
        state_of(str(folder))
    except FileNotFoundError:
        yield f"{STATE} is missing"
    except (OSError, ValueError) as problem:
        yield f"{STATE} cannot be read ({problem})"
    if sharded:
        return
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        yield "there are no weights (*.safetensors)"
    for path in weights:
        if not _is_whole_safetensors(path):
            yield f"{path.name} is cut off"
    if without_state:
        return
    for name in PARTS:
        if not (folder / name).is_file():
            yield f"{name} is missing: the run would go on with a fresh one, and upstream would not say so"
    random_states = sorted(folder.glob("rng_state*.pth"))
    if not random_states:
        yield "rng_state.pth is missing"
    for path in [*(folder / name for name in PARTS), *random_states]:
        if path.is_file() and not zipfile.is_zipfile(path):  # torch.save's format
            yield f"{path.name} is cut off"


def _is_whole_safetensors(path: Path) -> bool:
    """The header's last offset is the file's end (8 bytes of the header's length, the header, the tensors)."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:
                return False
            header = json.loads(file.read(length))
        end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return path.stat().st_size == 8 + length + end


def state_of(checkpoint: str) -> dict[str, Any]:
    """trainer_state.json. Raises OSError and ValueError."""
    with open(os.path.join(checkpoint, STATE), encoding="utf-8") as text:
        state = json.load(text)
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        raise ValueError("it holds no global_step")
    return state
