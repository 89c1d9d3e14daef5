"""What a run left: its result, and the state of its folder after it died."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torture.child import BATCHES

KEYS = ("loss", "eval_loss", "learning_rate", "grad_norm")
FILES = ("README.md", "report.md", "report.html", "recipe.yaml", "record.json")


def result(folder: str = "out") -> dict[str, str]:
    """What a straight run and a resumed one must have in common, part by part."""
    weights = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        weights.update(path.read_bytes())
    record = json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))
    log = [
        {"step": entry["step"], **{key: entry[key] for key in KEYS if key in entry}} for entry in record["log_history"]
    ]
    parts = {
        "losses": [entry for entry in log if len(entry) > 1],
        "train_loss": record["train_loss"],
        "evaluation": record["metrics"]["eval"]["eval_loss"],
        "steps": record["steps"],
        "tokens": record["tokens"],
        "status": record["status"],
        "files": [name for name in FILES if Path(folder, name).exists()],
    }
    if Path(BATCHES).exists():  # of every session: a batch that one of them read in another place is one line more
        parts["batches"] = sorted(set(Path(BATCHES).read_text(encoding="utf-8").splitlines()))
    return {"weights": weights.hexdigest(), **{name: _digest(value) for name, value in parts.items()}}


def _digest(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else hashlib.sha256(text.encode()).hexdigest()


def differences(found: dict[str, str], straight: dict[str, str]) -> list[str]:
    """The parts that differ, by name."""
    return [name for name in straight if found.get(name) != straight[name]]


def after_an_end() -> dict[str, Any]:
    """The folder as a dead run left it: checkpoints that are half there, and steps lost beyond the last save."""
    from hf_recipes.checkpoints import folders, select

    found = folders.list_checkpoints(Path("out"))
    half = [path.name for path in found if select.find_errors(path)]
    newest = max((folders.step_of(path) for path in found if path.name not in half), default=0)
    saved = Path("saves.log").read_text(encoding="utf-8").split() if Path("saves.log").exists() else []
    return {
        "complete": is_complete(),
        "half": len(half),
        "lost": max(0, (int(saved[-1]) if saved else 0) - newest),
        "staging": len(folders.list_leftovers(Path("out"))),
        "resumable": newest > 0 or any(folders.is_intact(path) for path in folders.list_leftovers(Path("out"))),
    }


def is_complete() -> bool:
    """Whether every step of the run's end was made before it died: nothing is left to resume."""
    from hf_recipes.pipeline.finish import list_left
    from hf_recipes.record import Status
    from hf_recipes.record.file import find_record

    record = find_record(Path("out"))
    return record is not None and record.status == Status.FINISHED and not list_left(Path("out"), record)


def tail(log: str = "child.log", characters: int = 1500) -> str:
    path = Path(log)
    return path.read_text(encoding="utf-8", errors="replace")[-characters:] if path.exists() else ""
