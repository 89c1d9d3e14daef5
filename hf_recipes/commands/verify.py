"""`hf-recipes verify RUN`: are its checkpoints as written, are their numbers finite, and do its last steps give the
same numbers again?

The replay resumes from an earlier checkpoint in a temporary folder, trains up to a later one, and compares every logged
number of these steps and the bytes of the weights with that checkpoint. On a CPU both must be equal.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, manifest, select
from hf_recipes.common import run_lock
from hf_recipes.common.text import format_bytes
from hf_recipes.errors import CheckpointError
from hf_recipes.recipe.upgrade import upgrade_text

LOGGED = ("loss", "grad_norm", "learning_rate", "eval_loss", "num_input_tokens_seen")
NEAR = 1e-2  # relative: a replay on a GPU may differ by this much, since its kernels add in another order


def verify(folder: str, *, steps: int = 0, replay: bool = True, say: Callable[[str], None] = print) -> bool:
    """Prints a line for each checkpoint and one for the replay; returns whether everything is as written.

    `steps`: at least this many are replayed, from an earlier checkpoint if necessary; 0: between the last two
    checkpoints. Raises CheckpointError for a folder without checkpoints.
    """
    run_dir = Path(folder)
    checkpoints = folders.list_checkpoints(run_dir)
    if not checkpoints:
        raise CheckpointError.at(folder, "there is no checkpoint in it", "name the output_dir of a run that saved some")
    holder = run_lock.find_holder(run_dir)
    if holder is not None:
        say(f"{folder} is in use by {holder}: its checkpoints come and go")
    intact, complete = True, []
    for path in checkpoints:
        errors = select.find_errors(path, without_state=True, values=True)
        if errors and holder is not None and not path.is_dir():
            say(f"{path.name}: removed meanwhile by the run")
            continue
        intact = intact and not errors
        body = None if errors else manifest.read_manifest(path)
        if errors:
            say(f"{path.name}: {'; '.join(errors)}")
        elif body is None:
            say(f"{path.name}: {select.NO_MANIFEST}")
        else:
            size = format_bytes(manifest.total_bytes(body))
            say(f"{path.name}: {len(body['files'])} files, {size}, as written")
            complete.append(path)
    for path in folders.list_leftovers(run_dir) if holder is None else []:
        say(f"{path.name}: left by a run that was killed while writing it; the next run removes it")
    return (_replay_and_compare(run_dir, complete, steps, say) and intact) if replay else intact


def _replay_and_compare(run_dir: Path, complete: list[Path], steps: int, say: Callable[[str], None]) -> bool:
    """`complete`: the latest first."""
    last = complete[0] if complete else None
    wanted = max(steps, 1)
    first = next(
        (path for path in complete[1:] if last and folders.step_of(path) <= folders.step_of(last) - wanted), None
    )
    recipe = run_dir / "recipe.yaml"
    if last is None or first is None or not recipe.is_file():
        apart = f" {steps} steps apart" if steps else ""
        lacks = f"two complete checkpoints{apart}" if recipe.is_file() else "recipe.yaml"
        say(f"not replayed: {run_dir} has no {lacks}")
        return True
    processes = (manifest.read_manifest(last) or {}).get("world_size")
    if processes != 1:
        say(f"not replayed: {processes} processes wrote {last.name}, and this is one process")
        return True
    with tempfile.TemporaryDirectory(prefix="hf-recipes-verify-") as scratch:
        # Of an older version: with the keys of today, so that no line names the copy.
        text, _ = upgrade_text(recipe.read_text(encoding="utf-8"), str(recipe))
        Path(scratch, "recipe.yaml").write_text(text, encoding="utf-8")
        with contextlib.redirect_stdout(_Renamed(sys.stdout, scratch, str(run_dir))):
            again = _train_again(Path(scratch), str(first.absolute()), folders.step_of(last))
        return _compare(last, again, folders.step_of(first), say)


class _Renamed:
    """A stream in whose lines the run's folder stands for that of the copy."""

    def __init__(self, stream: Any, copy: str, run_dir: str) -> None:
        self._stream, self._copy, self._run_dir = stream, copy, run_dir

    def write(self, text: str) -> int:
        self._stream.write(text.replace(self._copy, self._run_dir))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _train_again(scratch: Path, start: str, until: int) -> Path:
    from hf_recipes.pipeline.run import run
    from hf_recipes.recipe.read import read_recipe

    path = str(scratch / "recipe.yaml")
    section = read_recipe(path).trainer
    overrides = {"output_dir": scratch / "out", "resume_from_checkpoint": start, "report_to": "none"}
    run(path, [f"{section}.{key}={value}" for key, value in overrides.items()], planned=False, until=until)
    return scratch / "out" / folders.checkpoint_name(until)


def _compare(last: Path, again: Path, since: int, say: Callable[[str], None]) -> bool:
    step = folders.step_of(last)
    then, now = (_logged_numbers(path, since) for path in (last, again))
    differing = [key for key in then if not _equal(then[key], now.get(key))]
    weights = [path.name for path in last.glob("*.safetensors") if not _same_bytes(path, again / path.name)]
    if not differing and not weights:
        say(f"replayed steps {since + 1} to {step}: {len(then)} logged numbers and all weights are equal, bit for bit")
        return True
    at_step, name = min(differing, default=(step, "weights"))
    worst = max((_relative(then[key], now.get(key)) for key in differing), default=0.0)
    say(
        f"replayed steps {since + 1} to {step}: {len(differing)} of {len(then)} logged numbers differ, by {worst:.1e} "
        f"at most, first {name} at step {at_step}; weights {'differ' if weights else 'are equal'}"
    )
    body = manifest.read_manifest(last) or {}
    if str(body.get("device", "")).endswith("(cpu)") or worst > NEAR:
        return False
    say(f"this is within {NEAR:g}, which the kernels of {body.get('device')} may cause")
    return True


def _logged_numbers(checkpoint: Path, since: int) -> dict[tuple[int, str], float]:
    history: list[dict[str, Any]] = json.loads((checkpoint / folders.TRAINER_STATE).read_text(encoding="utf-8"))[
        "log_history"
    ]
    entries = [entry for entry in history if entry["step"] > since]
    return {(entry["step"], name): entry[name] for entry in entries for name in LOGGED if name in entry}


def _equal(a: float, b: float | None) -> bool:
    return a == b or (b is not None and math.isnan(a) and math.isnan(b))


def _relative(a: float, b: float | None) -> float:
    if b is None or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def _same_bytes(a: Path, b: Path) -> bool:
    return b.is_file() and manifest.compute_digest(a) == manifest.compute_digest(b)
