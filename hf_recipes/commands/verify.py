"""`hf-recipes verify RUN`: are its checkpoints what was written, and do its last steps come out the same again?

The replay resumes from an earlier checkpoint in a folder of its own, makes the steps to a later one, and compares every
logged figure of these steps and the weights' bytes with what that one holds. On a CPU both must be equal.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, manifest, select
from hf_recipes.common.text import format_bytes
from hf_recipes.errors import RecipeError

FIGURES = ("loss", "grad_norm", "learning_rate", "eval_loss", "num_input_tokens_seen")
NEAR = 1e-2  # relative, of a loss that kernels add in another order: what a GPU's replay may differ by


def verify(folder: str, *, steps: int = 0, replay: bool = True, say: Callable[[str], None] = print) -> bool:
    """Says what it finds, line by line; whether all is as it was written. Raises RecipeError for a folder of no run.

    `steps`: at least so many are replayed, from an earlier checkpoint if need be; 0 takes the last two checkpoints.
    """
    run_dir = Path(folder)
    found = folders.list_checkpoints(run_dir)
    if not found:
        raise RecipeError.at(folder, "there is no checkpoint in it", "name the output_dir of a run that saved some")
    good, whole = True, []
    for path in found:
        wrong = select.find_errors(path, without_state=True)
        good = good and not wrong
        body = None if wrong else manifest.read_manifest(path)
        if wrong:
            say(f"{path.name}: {'; '.join(wrong)}")
        elif body is None:
            say(f"{path.name}: {select.NO_MANIFEST}")
        else:
            size = format_bytes(manifest.total_bytes(body))
            say(f"{path.name}: {len(body['files'])} files, {size}, as written")
            whole.append(path)
    for path in folders.list_leftovers(run_dir):
        say(f"{path.name}: left by a run that died over it; the next start cleans it")
    return (_replayed(run_dir, whole, steps, say) and good) if replay else good


def _replayed(run_dir: Path, whole: list[Path], steps: int, say: Callable[[str], None]) -> bool:
    """`whole`: newest first."""
    last = whole[0] if whole else None
    wanted = max(steps, 1)
    first = next((path for path in whole[1:] if last and folders.step_of(path) <= folders.step_of(last) - wanted), None)
    recipe = run_dir / "recipe.yaml"
    if last is None or first is None or not recipe.is_file():
        apart = f" {steps} steps apart" if steps else ""
        lacks = f"two whole checkpoints{apart}" if recipe.is_file() else "recipe.yaml"
        say(f"not replayed: {run_dir} has no {lacks}")
        return True
    processes = (manifest.read_manifest(last) or {}).get("world_size")
    if processes != 1:
        say(f"not replayed: {processes} processes wrote {last.name}, and this is one")
        return True
    with tempfile.TemporaryDirectory(prefix="hf-recipes-verify-") as scratch:
        shutil.copy(recipe, Path(scratch, "recipe.yaml"))
        again = _replay(Path(scratch), str(first.absolute()), folders.step_of(last))
        return _same(last, again, folders.step_of(first), say)


def _replay(scratch: Path, start: str, until: int) -> Path:
    from hf_recipes.pipeline.run import run
    from hf_recipes.recipe.read import read_recipe

    path = str(scratch / "recipe.yaml")
    section = read_recipe(path).trainer
    words = {"output_dir": scratch / "out", "resume_from_checkpoint": start, "report_to": "none"}
    run(path, [f"{section}.{key}={value}" for key, value in words.items()], planned=False, until=until)
    return scratch / "out" / folders.checkpoint_name(until)


def _same(last: Path, again: Path, since: int, say: Callable[[str], None]) -> bool:
    step = folders.step_of(last)
    then, now = (_figures(path, since) for path in (last, again))
    differing = [key for key in then if not _equal(then[key], now.get(key))]
    weights = [path.name for path in last.glob("*.safetensors") if not _same_bytes(path, again / path.name)]
    if not differing and not weights:
        say(f"replayed steps {since + 1} to {step}: {len(then)} logged figures and all weights are equal, bit for bit")
        return True
    where, figure = min(differing, default=(step, "weights"))
    worst = max((_relative(then[key], now.get(key)) for key in differing), default=0.0)
    say(
        f"replayed steps {since + 1} to {step}: {len(differing)} of {len(then)} logged figures differ, by {worst:.1e} "
        f"at most, first {figure} at step {where}; weights {'differ' if weights else 'are equal'}"
    )
    body = manifest.read_manifest(last) or {}
    if str(body.get("device", "")).endswith("(cpu)") or worst > NEAR:
        return False
    say(f"that is within {NEAR:g}, as kernels of {body.get('device')} may")
    return True


def _figures(checkpoint: Path, since: int) -> dict[tuple[int, str], float]:
    history: list[dict[str, Any]] = json.loads((checkpoint / folders.TRAINER_STATE).read_text(encoding="utf-8"))[
        "log_history"
    ]
    entries = [entry for entry in history if entry["step"] > since]
    return {(entry["step"], name): entry[name] for entry in entries for name in FIGURES if name in entry}


def _equal(a: float, b: float | None) -> bool:
    return a == b or (b is not None and math.isnan(a) and math.isnan(b))


def _relative(a: float, b: float | None) -> float:
    if b is None or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def _same_bytes(a: Path, b: Path) -> bool:
    return b.is_file() and manifest.compute_digest(a) == manifest.compute_digest(b)
