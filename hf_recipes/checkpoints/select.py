"""Which checkpoint a run resumes from: the latest complete one, and why later ones were skipped.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, manifest
from hf_recipes.checkpoints.folders import TRAINER_STATE

PARTS = ("optimizer.pt", "scheduler.pt")  # besides the random state, of one name or several
WEIGHTS_ONLY = "it has weights only (save_only_model), no optimizer, schedule or random state"
NO_MANIFEST = "it has no manifest (hf_recipes did not write it); upstream's files look complete"


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """A checkpoint to resume from."""

    path: str
    manifest: dict[str, Any] | None  # None: upstream wrote it
    skipped: tuple[str, ...] = ()  # "checkpoint-20: optimizer.pt is missing", latest first

    @property
    def step(self) -> int:
        return int(read_trainer_state(self.path)["global_step"])

    @property
    def run(self) -> str | None:
        return str(self.manifest["run"]) if self.manifest else None


def choose_checkpoint(
    output_dir: Path, *, without_state: bool = False, sharded: bool = False
) -> tuple[ResumePoint | None, list[str]]:
    """The latest complete checkpoint of `output_dir` (None if there is none); the later ones, each with its errors."""
    skipped: list[str] = []
    for folder in folders.list_checkpoints(output_dir):
        errors = find_errors(folder, without_state=without_state, sharded=sharded)
        if not errors:
            body = manifest.read_manifest(folder)
            return ResumePoint(path=str(folder), manifest=body, skipped=tuple(skipped)), skipped
        skipped.append(f"{folder.name}: {'; '.join(errors)}")
    return None, skipped


def find_errors(folder: Path, *, without_state: bool = False, sharded: bool = False) -> list[str]:
    """What is wrong with a checkpoint, each error with its file's name; empty if it is complete.

    By its manifest, every size and every digest; without one by what upstream reads when it resumes. `without_state`:
    weights alone are enough. `sharded`: FSDP and DeepSpeed have files of their own, which are not checked.
    """
    try:
        body = manifest.read_manifest(folder)
    except manifest.ManifestError as problem:
        return [str(problem)]
    if body is None and folders.is_ours(folder):
        return [f"{manifest.MANIFEST} is missing"]
    if body is None:
        return list(_check_upstreams_files(folder, without_state=without_state, sharded=sharded))
    errors = list(manifest.find_errors(folder, body))
    if not body["state"] and not without_state:
        errors.append(WEIGHTS_ONLY)
    return errors


def _check_upstreams_files(folder: Path, *, without_state: bool, sharded: bool) -> Iterator[str]:
    try:
        read_trainer_state(str(folder))
    except FileNotFoundError:
        yield f"{TRAINER_STATE} is missing"
    except (OSError, ValueError) as problem:
        yield f"{TRAINER_STATE} cannot be read ({problem})"
    if sharded:
        return
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        yield "there are no weights (*.safetensors)"
    for path in weights:
        if not _is_complete_safetensors(path):
            yield f"{path.name} is truncated"
    if without_state:
        return
    for name in PARTS:
        if not (folder / name).is_file():
            yield f"{name} is missing: upstream would silently resume with a new one"
    random_states = sorted(folder.glob("rng_state*.pth"))
    if not random_states:
        yield "rng_state.pth is missing"
    for path in [*(folder / name for name in PARTS), *random_states]:
        if path.is_file() and not zipfile.is_zipfile(path):  # torch.save's format
            yield f"{path.name} is truncated"


def _is_complete_safetensors(path: Path) -> bool:
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


def read_trainer_state(checkpoint: str) -> dict[str, Any]:
    """trainer_state.json. Raises OSError and ValueError."""
    with open(os.path.join(checkpoint, TRAINER_STATE), encoding="utf-8") as text:
        state = json.load(text)
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        raise ValueError("it has no global_step")
    return state
