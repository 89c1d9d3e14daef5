"""Which checkpoint a run resumes from: the latest complete one, and why later ones were skipped.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, manifest
from hf_recipes.checkpoints.folders import TRAINER_STATE
from hf_recipes.common import tensor_values

LOADED = (".pt", ".pth", ".bin", ".safetensors")  # what upstream loads wherever it finds it
PARTS = ("optimizer.pt", "scheduler.pt")  # besides the random state, of one name or several
STATE: dict[str, Callable[[Any], bool]] = {  # of trainer_state.json, what is read of it here and upstream
    "global_step": lambda value: 0 <= value < 2**40,
    "max_steps": lambda value: isinstance(value, int),
    "epoch": lambda value: value is None or isinstance(value, int | float),
    "num_input_tokens_seen": lambda value: isinstance(value, int) and 0 <= value < 2**63,
    "log_history": lambda value: (
        isinstance(value, list) and all(isinstance(one, dict) and "step" in one for one in value)
    ),
    "stateful_callbacks": lambda value: value is None or isinstance(value, dict),
    "best_global_step": lambda value: value is None or isinstance(value, int),
    "best_model_checkpoint": lambda value: value is None or isinstance(value, str),
}
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
        return str(self.manifest.get("run", "")) if self.manifest else None


def choose_checkpoint(
    output_dir: Path,
    *,
    without_state: bool = False,
    run: str | None = None,
    leave_out: Container[str] = (),
) -> tuple[ResumePoint | None, list[str]]:
    """The latest complete checkpoint of `output_dir` (None if there is none), of a run if one is named, none of
    `leave_out` (paths); the later ones, each with its errors."""
    skipped: list[str] = []
    for folder in folders.list_checkpoints(output_dir):
        if (run is not None and folders.run_of(folder) not in (run, None)) or str(folder) in leave_out:
            continue
        errors = find_errors(folder, without_state=without_state)
        if not errors:
            body = manifest.read_manifest(folder)
            return ResumePoint(path=str(folder), manifest=body, skipped=tuple(skipped)), skipped
        skipped.append(f"{folder.name}: {'; '.join(errors)}")
    return None, skipped


def find_errors(folder: Path, *, without_state: bool = False, values: bool = False) -> list[str]:
    """What is wrong with a checkpoint, each error with its file's name; empty if it is complete and can be used.

    By its manifest, every size and every digest; without one by what upstream reads when it resumes. Then what is in
    the files: no code, and numbers that are finite (read again with `values`, and where nobody looked when they were
    saved). `without_state`: weights alone are enough.
    """
    try:
        body = manifest.read_manifest(folder)
    except manifest.ManifestError as problem:
        return [str(problem)]
    if body is None and folders.is_ours(folder):
        return [f"{manifest.MANIFEST} is missing"]
    if body is None:
        errors = list(_check_upstreams_files(folder, without_state=without_state))
    else:
        errors = [*manifest.find_errors(folder, body), *_find_strays(folder, body)]
        errors += [] if errors else _check_state(folder, body)
        if body.get("ruined"):
            errors.append(f"its weights were ruined: {body['ruined']}")
        if not body.get("state") and not without_state:
            errors.append(WEIGHTS_ONLY)
    if errors:
        return errors
    errors = list(_find_code(folder)) if values or not without_state else []
    if not errors and (values or body is None or not body.get("finite")):
        errors = list(_find_not_finite(folder, weights_only=without_state and not values))
    return errors


def _find_strays(folder: Path, body: Mapping[str, Any]) -> Iterator[str]:
    """Files that upstream would load and that the run did not write."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in LOADED and name not in body["files"]:
            yield f"{name} was not written with the checkpoint"


def _check_state(folder: Path, body: Mapping[str, Any]) -> Iterator[str]:
    try:
        step = read_trainer_state(str(folder))["global_step"]
        if step != body.get("step", step):
            yield f"{TRAINER_STATE} is of step {step}, {manifest.MANIFEST} of step {body['step']}"
    except FileNotFoundError:
        pass  # the manifest's errors say so, if it was there
    except (OSError, ValueError) as problem:
        yield f"{TRAINER_STATE} cannot be read ({problem})"


def _find_code(folder: Path) -> Iterator[str]:
    for path in sorted((*folder.rglob("*.pt"), *folder.rglob("*.pth"))):
        error = tensor_values.find_error_in_torch_file(path)
        if error:
            yield error


def _find_not_finite(folder: Path, *, weights_only: bool) -> Iterator[str]:
    shards = folder / folders.OPTIMIZER_SHARDS
    for path in (*sorted(folder.rglob("*.safetensors")), folder / "optimizer.pt"):
        if not path.is_file() or (weights_only and (path.suffix == ".pt" or path.parent == shards)):
            continue
        try:
            if path.suffix == ".safetensors":
                lost = tensor_values.describe_lost(*tensor_values.count_in_safetensors(path))
            else:
                found = tensor_values.count_in_torch_file(path)
                lost = f"{found:,} numbers are not finite" if found else ""
        except (OSError, ValueError) as problem:
            yield f"{path.name} cannot be read ({problem})"
            continue
        if lost:
            yield f"{lost} ({path.name})"


def _check_upstreams_files(folder: Path, *, without_state: bool) -> Iterator[str]:
    try:
        read_trainer_state(str(folder))
    except FileNotFoundError:
        yield f"{TRAINER_STATE} is missing"
    except (OSError, ValueError) as problem:
        yield f"{TRAINER_STATE} cannot be read ({problem})"
    if any(folder.glob("pytorch_model_fsdp_*")):
        yield "its weights are in upstream's own shards: `accelerate merge-weights` makes safetensors of them"
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
    """The header's last offset is the file's end."""
    try:
        tensors, start = tensor_values.read_safetensors_header(path)
    except (OSError, ValueError):
        return False
    return path.stat().st_size == start + max((one["data_offsets"][1] for one in tensors.values()), default=0)


def read_trainer_state(checkpoint: str) -> dict[str, Any]:
    """trainer_state.json. Raises OSError and ValueError."""
    path = Path(checkpoint, TRAINER_STATE)
    if path.exists() and not tensor_values.is_regular_file(path):
        raise ValueError("it is no file")
    with open(path, encoding="utf-8") as text:
        try:
            state = json.load(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        raise ValueError("it has no global_step")
    odd = next((key for key, right in STATE.items() if key in state and not right(state[key])), None)
    if odd is not None:
        raise ValueError(f"it has no usable {odd}")
    return state
