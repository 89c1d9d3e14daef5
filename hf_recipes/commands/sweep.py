"""The verb `sweep`: a grid of ordinary runs, one after another, resumable, that ends in their comparison. Light.

Every cell is a run of its own in a child process, in a folder named by what it sets; a cell that fails keeps its record
and the next one begins. The same command goes on where a sweep was left: finished cells are passed over, begun ones are
resumed. Searches that decide what to try next belong elsewhere (Optuna).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes import record
from hf_recipes.checkpoints import folders, select
from hf_recipes.commands.restart import SIGNALLED, run_child
from hf_recipes.common.files import put
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe, dump_recipe

PLAN = "sweep.json"  # in the sweep's folder: what it is a sweep of
SEED = 42  # upstream's default
LONGEST_NAME = 100  # characters of a folder


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    name: str
    folder: Path
    overrides: tuple[str, ...]


def sweep(
    path: str,
    overrides: Sequence[str] = (),
    *,
    sets: Sequence[str],
    seeds: int = 1,
    output: str | None = None,
    config_file: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Runs what is left of the grid and compares; whether every cell finished. Raises RecipeError, before anything
    runs, for a fault of any cell."""
    base = read_recipe(path, overrides)
    folder = Path(output or f"{base.training.get('output_dir', 'runs/sweep')}-sweep")
    cells = grid(base, overrides, [values_of(text) for text in sets], seeds, folder)
    _refuse_errors(path, cells)
    if dry_run:
        for cell in cells:
            say(f"{cell.folder}  {_state(cell)[0]}")
        return True
    _same_sweep(base, folder)
    launch = [sys.executable, "-m", "hf_recipes", "run"]
    if config_file is not None:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
        launch += ["-m", "hf_recipes.run"]
    failed = []
    for i, cell in enumerate(cells):
        state, resumed = _state(cell)
        say(f"\nsweep: {i + 1} of {len(cells)}, {cell.name}: {state}")
        if state == "finished":
            continue
        began = time.time()
        code = run_child([*launch, path, *cell.overrides, *(["--resume"] if resumed else [])])
        if code in SIGNALLED or (code and _was_stopped(cell, began)):
            say(f"\nsweep: stopped in {cell.name}; the same command goes on")
            sys.exit(code if code > 0 else 128 - code)
        if code:
            failed.append(cell.name)
            say(f"sweep: {cell.name} failed (exit status {code}); its record, as far as there is one, is kept")
    _compare(cells, folder, seeds > 1, say)
    if failed:
        say(f"\nsweep: {len(failed)} of {len(cells)} failed: {', '.join(failed)}; the same command tries them again")
    return not failed


def values_of(text: str) -> tuple[str, list[str]]:
    """ "a.b=1e-4,[x,y]" -> ("a.b", ["1e-4", "[x,y]"]): commas inside brackets and quotes divide nothing."""
    key, found, rest = text.partition("=")
    values = _split(rest)
    if not found or not key or not all(values):
        what = "a key and its values are wanted"
        raise RecipeError.at(f"argument '--set {text}'", what, "--set TrainingArguments.learning_rate=1e-4,2e-4")
    if len(set(values)) < len(values):
        raise RecipeError.at(f"argument '--set {text}'", "a value stands there twice", "--seeds N repeats every cell")
    return key, values


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def grid(
    base: Recipe, overrides: Sequence[str], sets: Sequence[tuple[str, list[str]]], seeds: int, folder: Path
) -> list[Cell]:
    """Every combination, the last key turning fastest; `seeds` of each, counted up from the recipe's."""
    keys = [key for key, _ in sets]
    seed_key, first = f"{base.trainer}.seed", int(base.training.get("seed", SEED))
    doubled = next((key for key in keys if keys.count(key) > 1), None)
    if doubled is not None:
        raise RecipeError.at("argument '--set'", f"{doubled} is given twice", "one --set with all of its values")
    if seed_key in keys and seeds > 1:
        raise RecipeError.at(
            "argument '--seeds'", f"--set {seed_key} says which seeds already", "leave one of them out"
        )
    short = [key.rpartition(".")[2] for key in keys]
    names = [key if short.count(last) > 1 else last for key, last in zip(keys, short, strict=True)]
    cells = []
    for values in itertools.product(*(values for _, values in sets)):
        words = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
        given = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        for seed in range(first, first + seeds):
            # one seed is still a folder: a later call with more seeds finds it
            own = [] if seed_key in keys else [f"seed={seed}"]
            parts = ["-".join(map(_folder_name, words)) or base.task, *own]
            place = folder.joinpath(*parts)
            last = (*given, *([] if seed_key in keys else [f"{seed_key}={seed}"]))
            words_of_cell = (*overrides, *last, f"{base.trainer}.output_dir={place}")
            cells.append(Cell(name="/".join(parts), folder=place, overrides=words_of_cell))
    return cells


def _folder_name(text: str) -> str:
    """What a file system and a shell take, with a hash where something had to be cut."""
    plain = re.sub(r"[^A-Za-z0-9_.=+]+", "-", text).strip("-.")
    if len(plain) > LONGEST_NAME or plain != text.strip("-."):
        plain = f"{plain[:LONGEST_NAME]}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"
    return plain


def _refuse_errors(path: str, cells: Sequence[Cell]) -> None:
    """Every fault of every cell, each once."""
    from hf_recipes.data.splits import file_errors

    found: dict[str, Diagnostic] = {}
    for i, cell in enumerate(cells):
        try:
            recipe = read_recipe(path, cell.overrides)
            errors = file_errors(recipe) if i == 0 else []
        except RecipeError as problem:
            errors = list(problem.errors)
        for one in errors:
            found.setdefault(str(one), one)
    if found:
        raise RecipeError(list(found.values()))


def _same_sweep(base: Recipe, folder: Path) -> None:
    """A sweep's folder holds runs of one recipe. Raises RecipeError for those of another."""
    about = {"recipe": base.path, "text": dump_recipe(base.with_values({f"{base.trainer}.output_dir": ""}, ""))}
    place = folder / PLAN
    try:
        earlier: Any = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if earlier is not None and earlier.get("text") != about["text"]:
        what = f"{str(folder)!r} holds a sweep of another recipe, or of this one before it was changed"
        raise RecipeError.at("argument '--output'", what, "choose another folder, or remove that one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        put(place, json.dumps(about, indent=1) + "\n")
    except OSError as problem:
        raise RecipeError.at("argument '--output'", f"{str(folder)!r} cannot be written ({problem.strerror})") from None


def _state(cell: Cell) -> tuple[str, bool]:
    """("finished" | "resumed from checkpoint-N" | "begins", whether to resume)."""
    if _record(cell).get("status") == "finished":
        return "finished", False
    if not cell.folder.is_dir():
        return "begins", False
    folders.clean_leftovers(cell.folder)
    chosen, _ = select.choose_checkpoint(cell.folder)
    return (f"resumed from {Path(chosen.path).name}", True) if chosen else ("begins", False)


def _was_stopped(cell: Cell, since: float) -> bool:
    """Whether the run that began then was asked to end: a launcher's own exit status does not say."""
    path = cell.folder / record.NAME
    return path.is_file() and path.stat().st_mtime >= since and _record(cell).get("status") == "stopped"


def _record(cell: Cell) -> dict[str, Any]:
    """{} where there is none that can be read."""
    try:
        found = json.loads((cell.folder / record.NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _compare(cells: Sequence[Cell], folder: Path, grouped: bool, say: Callable[[str], None]) -> None:
    """All that finished, the first setting against each other one."""
    from hf_recipes.commands.compare import command

    done: dict[str, list[str]] = {}
    for cell in cells:
        if _state(cell)[0] == "finished":
            done.setdefault(cell.name.rpartition("/")[0] if grouped else cell.name, []).append(str(cell.folder))
    lonely = [name for name, runs in done.items() if grouped and len(runs) < 2]
    if lonely:
        say(f"\nsweep: not compared, since fewer than two of their seeds finished: {', '.join(lonely)}")
    chosen = [runs for name, runs in done.items() if name not in lonely]
    if len(chosen) < 2:
        say("\nsweep: fewer than two settings to compare")
        return
    say("")
    runs = [run for one in chosen for run in one]
    try:
        for line in command(runs, group="recipe" if grouped else None, output=str(folder)):
            say(line)
    except RecipeError as problem:
        say(f"sweep: the runs are there, and cannot be compared: {problem}")
