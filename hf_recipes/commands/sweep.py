"""`hf-recipes sweep`: a grid of ordinary runs, one after another, and their comparison at the end.

Every cell is a run in a child process, in a folder named by its settings; a cell that fails leaves its record and the
next one starts. The same command continues a sweep: finished cells are skipped, started ones are resumed. For searches
that decide what to try next use Optuna. Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.checkpoints import folders, select
from hf_recipes.commands.restart import SIGNALLED, run_child
from hf_recipes.common import run_lock
from hf_recipes.common.files import identify, put
from hf_recipes.errors import Diagnostic, OutputDirError, RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe, dump_recipe
from hf_recipes.record import COMPLETE, NAME, Status
from hf_recipes.record.file import find_record

PLAN = "sweep.json"  # in the sweep's folder: its recipe
SEED = 42  # upstream's default
IN_USE = "in use by another process"
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
    """Runs the cells of the grid that have not finished, and compares; returns whether every cell finished.

    Raises RecipeError, before anything runs, with every error of every cell.
    """
    base = read_recipe(path, overrides)
    folder = Path(output or f"{base.training.get('output_dir', 'runs/sweep')}-sweep")
    cells = grid(base, overrides, [parse_values(text) for text in sets], seeds, folder)
    _check_cells(path, cells)
    if dry_run:
        for cell in cells:
            say(f"{cell.folder}  {_state(cell)[0]}")
        return True
    with run_lock.hold_folder(folder, "argument '--output'", say):
        return _run_cells(path, base, cells, folder, seeds > 1, config_file, say)


def _run_cells(
    path: str, base: Recipe, cells: Sequence[Cell], folder: Path, grouped: bool, config_file: str | None,
    say: Callable[[str], None],
) -> bool:  # fmt: skip
    _check_folder(base, folder)
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
        if state in (IN_USE, Status.DIVERGED):
            failed.append(cell.name)
            continue
        before = identify(cell.folder / NAME)
        code = run_child([*launch, path, *cell.overrides, *(["--resume"] if resumed else [])])
        if code in SIGNALLED or (code and _was_stopped(cell, before)):
            say(f"\nsweep: stopped in {cell.name}; run the same command to continue")
            sys.exit(code if code > 0 else 128 - code)
        if code:
            failed.append(cell.name)
            say(f"sweep: {cell.name} failed (exit status {code}); see its record, if it wrote one")
    _compare(cells, folder, grouped, say)
    if failed:
        names = ", ".join(failed)
        diverged = [cell.name for cell in cells if _status(cell) == Status.DIVERGED]
        again = "; run the same command to try them again" if set(failed) - set(diverged) else ""
        say(f"\nsweep: {len(failed)} of {len(cells)} failed: {names}{again}")
        if diverged:
            say("sweep: a run that diverged is not tried again; remove its folder to do so")
    return not failed


def parse_values(text: str) -> tuple[str, list[str]]:
    """ "a.b=1e-4,[x,y]" -> ("a.b", ["1e-4", "[x,y]"]): commas inside brackets and quotes do not separate values."""
    key, found, rest = text.partition("=")
    values = _split(rest)
    if not found or not key or not all(values):
        what = "it needs a key and its values"
        raise RecipeError.at(f"argument '--set {text}'", what, "--set TrainingArguments.learning_rate=1e-4,2e-4")
    if len(set(values)) < len(values):
        raise RecipeError.at(f"argument '--set {text}'", "a value is given twice", "--seeds N repeats every cell")
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
        raise RecipeError.at("argument '--seeds'", f"--set {seed_key} already sets the seeds", "leave one of them out")
    short = [key.rpartition(".")[2] for key in keys]
    names = [key if short.count(last) > 1 else last for key, last in zip(keys, short, strict=True)]
    cells = []
    for values in itertools.product(*(values for _, values in sets)):
        settings = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
        given = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        for seed in range(first, first + seeds):
            # a single seed has a folder, too: a later call with more seeds finds it
            own = [] if seed_key in keys else [f"seed={seed}"]
            parts = ["-".join(map(_folder_name, settings)) or base.task, *own]
            output_dir = folder.joinpath(*parts)
            last = (*given, *([] if seed_key in keys else [f"{seed_key}={seed}"]))
            cell_overrides = (*overrides, *last, f"{base.trainer}.output_dir={output_dir}")
            cells.append(Cell(name="/".join(parts), folder=output_dir, overrides=cell_overrides))
    return cells


def _folder_name(text: str) -> str:
    """A name that file systems and shells accept, with a hash where something was changed."""
    plain = re.sub(r"[^A-Za-z0-9_.=+]+", "-", text).strip("-.")
    if len(plain) > LONGEST_NAME or plain != text.strip("-."):
        plain = f"{plain[:LONGEST_NAME]}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"
    return plain


def _check_cells(path: str, cells: Sequence[Cell]) -> None:
    """Raises RecipeError with every error of every cell, each once."""
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


def _check_folder(base: Recipe, folder: Path) -> None:
    """A sweep's folder has runs of one recipe. Raises OutputDirError for a folder of another."""
    about = {"recipe": base.path, "text": dump_recipe(base.with_values({f"{base.trainer}.output_dir": ""}, ""))}
    plan = folder / PLAN
    try:
        earlier: Any = json.loads(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if earlier is not None and earlier.get("text") != about["text"]:
        what = f"{str(folder)!r} contains a sweep of another recipe, or of an earlier version of this one"
        raise OutputDirError.at("argument '--output'", what, "choose another folder, or remove that one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        put(plan, json.dumps(about, indent=1) + "\n")
    except OSError as problem:
        raise OutputDirError.at(
            "argument '--output'", f"{str(folder)!r} cannot be written ({problem.strerror})"
        ) from None


def _state(cell: Cell) -> tuple[str, bool]:
    """("finished" | "resumed from checkpoint-N" | "starts" | IN_USE, whether to resume)."""
    status = _status(cell)
    if status in COMPLETE:
        return status.value, False
    if not cell.folder.is_dir():
        return "starts", False
    if run_lock.find_holder(cell.folder) is not None:
        return IN_USE, False
    folders.clean_leftovers(cell.folder)
    chosen, _ = select.choose_checkpoint(cell.folder)
    return (f"resumed from {Path(chosen.path).name}", True) if chosen else ("starts", False)


def _was_stopped(cell: Cell, before: tuple[int, ...]) -> bool:
    """Whether the run was asked to stop: a launcher's exit status does not show it. `before`: its record then."""
    return identify(cell.folder / NAME) != before and _status(cell) == Status.STOPPED


def _status(cell: Cell) -> Status | None:
    """None where there is no record that can be read."""
    found = find_record(cell.folder)
    return found.status if found is not None else None


def _compare(cells: Sequence[Cell], folder: Path, grouped: bool, say: Callable[[str], None]) -> None:
    """Compares all that finished: the first setting against each of the others."""
    from hf_recipes.commands.compare import command

    done: dict[str, list[str]] = {}
    for cell in cells:
        if _state(cell)[0] == "finished":
            done.setdefault(cell.name.rpartition("/")[0] if grouped else cell.name, []).append(str(cell.folder))
    single = [name for name, runs in done.items() if grouped and len(runs) < 2]
    if single:
        say(f"\nsweep: not compared, because fewer than two of their seeds finished: {', '.join(single)}")
    chosen = [runs for name, runs in done.items() if name not in single]
    if len(chosen) < 2:
        say("\nsweep: fewer than two settings to compare")
        return
    say("")
    runs = [run for one in chosen for run in one]
    try:
        for line in command(runs, group="recipe" if grouped else None, output=str(folder)):
            say(line)
    except RecipeError as problem:
        say(f"sweep: the runs finished, but cannot be compared: {problem}")
