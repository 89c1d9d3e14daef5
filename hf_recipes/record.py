"""record.json: what one run was and did, with provenance. Written at the end of every run, also of one that failed.

Keys (all may be null): schema, status ("running" never stays: finished | stopped | out of memory | failed), where,
task, recipe {path, text, sections, upstream_defaults}, choices, translations, notes, model, tokenizer, data, batch,
steps, epochs, time, tokens_per_second, memory, metrics {before, eval, test}, scores, intervals {split: {metric:
value, low, high}}, log_history, versions, commit, device, seed, started, ended, out_of_memory [steps from which on
micro-batches were made in pieces], guards {skipped_steps, rolled_back}. Bytes are bytes, seconds are seconds; a
number that is not finite is the text "nan" or "inf", since JSON has none.
"""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.common.files import put

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

SCHEMA = 1
NAME = "record.json"
FAILED = "record-failed.json"  # of a run that never began, in the folder of one that ended well
BEGINNING = ("start", "data", "model")  # where nothing has been trained yet
PACKAGES = (
    "hf_recipes",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "tokenizers",
    "safetensors",
    "scikit-learn",
    "seqeval",
    "numpy",
)


def opening(recipe: Recipe, device: Device, choices: list[str]) -> dict[str, Any]:
    """What is known of a run when it starts."""
    return {
        "schema": SCHEMA,
        "status": "failed",  # until the end is reached
        "where": "start",
        "task": recipe.task,
        "recipe": described(recipe),
        "choices": list(choices),
        "translations": list(recipe.translations),
        "notes": [],
        "versions": {**{name: _version(name) for name in PACKAGES}, "python": sys.version.split()[0]},
        "commit": commit(),
        "device": {k: v for k, v in asdict(device).items() if k != "processes"},
        "started": now(),
    }


def described(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as text and as values."""
    from hf_recipes.recipe.recipe import dump_recipe

    return {"path": recipe.path, "text": dump_recipe(recipe), "sections": recipe.sections}


def _version(name: str) -> str | None:
    if name == "hf_recipes":  # it runs from a copy of the repository, too
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the working directory's repository, with "+" if the tree differs from it; None outside one."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def memory(device: Device) -> dict[str, int | None]:
    """Peaks of this process since its start, in bytes."""
    import resource

    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    found: dict[str, int | None] = {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
    }
    if device.kind == "cuda":
        import torch

        found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return found


def name_for(folder: Path, record: Mapping[str, Any]) -> str:
    """record.json; record-failed.json where that would replace the record of the finished run whose model lies here."""
    if record["status"] == "finished" or record["where"] not in BEGINNING:
        return NAME
    try:
        earlier = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return NAME
    return FAILED if isinstance(earlier, dict) and earlier.get("status") == "finished" else NAME


def tells_of_another_rank(folder: Path, since: float) -> bool:
    """Whether another process of this run (begun at `since`) has said already that it ran out of memory."""
    path = folder / NAME
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_mtime >= since else {}
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("status") == "out of memory"


def write(folder: Path, record: Mapping[str, Any], name: str = NAME) -> Path:
    """Writes the record whole or not at all."""
    return put(folder / name, json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """JSON's own types; what is none of them becomes its text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
