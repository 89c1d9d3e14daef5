"""Files that are already in output_dir and would be lost, or be mistaken for files of this run.

A second run into one folder writes over the first one's files; a file that it would not write over must not stay
beside them, and a file that no run wrote is never replaced. Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hf_recipes.checkpoints.folders import CHECKPOINT
from hf_recipes.common import run_lock
from hf_recipes.common.device import rank
from hf_recipes.common.write_failures import (
    chain_of,
    find_cache_failure,
    find_failure,
    find_shared_memory_failure,
)
from hf_recipes.errors import Diagnostic, LaunchError, OutputDirError, RecipeError

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

OURS = "Made with hf_recipes"  # in every model card (hub/model_card.py) and report
RUN = (run_lock.LOCK, "record.json", "recipe.yaml")  # a folder with one of them is a run's
PEFTS = ("library_name: peft", "# Model Card for Model ID", "[More Information Needed]")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_model.safetensors",)
WRITTEN = (*RUN[1:], "README.md", "report.md", "report.html", "scores.parquet", "config.json", *WEIGHTS, *ADAPTER)


def find_foreign_files(recipe: Recipe, folder: Path) -> Iterator[Diagnostic]:
    """Files of `folder` that this run would spoil. Reads nothing but a recipe.yaml, a README.md and a report."""
    where = recipe.location(f"{recipe.trainer}.output_dir")
    for name in WRITTEN:
        if (folder / name).is_dir():
            what = f"output_dir {str(folder)!r} has a folder {name}, where the run writes a file"
            yield Diagnostic(location=where, message=what, fix="move it away, or choose another output_dir")
    there = folder / "recipe.yaml"
    if there.is_file() and Path(recipe.path).is_file() and there.samefile(recipe.path) and not _written_here(there):
        what = f"output_dir {str(folder)!r} has the recipe itself, and the resolved recipe would be written over it"
        yield Diagnostic(location=where, message=what, fix="choose another output_dir, or give the recipe another name")
    for name, ours in {"README.md": "model card", "report.md": "report", "report.html": "report"}.items():
        theirs = folder / name
        if theirs.is_file() and not _replaceable(theirs.read_text(encoding="utf-8", errors="replace")):
            what = f"output_dir {str(folder)!r} has a {name} that no run wrote: the {ours} would replace it"
            yield Diagnostic(location=where, message=what, fix="choose another output_dir")
    others: tuple[str, ...]
    if recipe.training.get("do_train") is False:
        others, why = (*WEIGHTS, *ADAPTER), "this evaluation would replace its record"
    elif "LoraConfig" in recipe.sections:
        others, why = WEIGHTS, "this one writes an adapter: both would be pushed"
    else:
        others, why = ADAPTER, "this one writes a full model: both would be pushed"
    found = [name for name in others if (folder / name).is_file()]
    if found:
        what = f"output_dir {str(folder)!r} has {found[0]} of another run, and {why}"
        yield Diagnostic(location=where, message=what, fix="choose another output_dir")


def _replaceable(text: str) -> bool:
    """Whether no user wrote it: it is from a run, or empty, or the template that peft puts beside an adapter before the
    model card replaces it (a run may crash between the two)."""
    return OURS in text or not text.strip() or all(mark in text for mark in PEFTS)


def _written_here(path: Path) -> bool:
    """Whether a run wrote it: it says what its dump says, without a comment or another order."""
    from hf_recipes.recipe.read import read_recipe
    from hf_recipes.recipe.recipe import dump_recipe
    from hf_recipes.recipe.upgrade import upgrade_text

    text, _ = upgrade_text(path.read_text(encoding="utf-8"), str(path))  # an older version's run had older keys
    return text == dump_recipe(read_recipe(str(path)))


def output_dir_of(recipe: Recipe) -> Path:
    """As TrainingArguments will have it."""
    return Path(os.path.expanduser(str(recipe.training["output_dir"])))


@contextmanager
def hold_output_dir(recipe: Recipe, say: Callable[[str], None] = print) -> Iterator[Path]:
    """The output folder, made and locked by rank 0 for as long as the run takes.

    Raises OutputDirError on every rank, before anything is changed, if another run is in it or it cannot be written.
    """
    folder, where = output_dir_of(recipe), recipe.location(f"{recipe.trainer}.output_dir")
    if CHECKPOINT.fullmatch(folder.absolute().name) and any((folder.absolute().parent / name).exists() for name in RUN):
        what = f"output_dir {str(folder)!r} is a checkpoint's place in the folder of another run"
        raise OutputDirError.at(where, what, "choose another output_dir")
    if rank() == 0:
        with run_lock.hold_folder(folder, where, say), explain_write_failures(folder, where, say):
            yield folder
    else:
        run_lock.refuse_other_launch(folder, where)
        run_lock.make_folder(folder, where)  # on another machine, perhaps
        with explain_write_failures(folder, where, say):
            yield folder


@contextmanager
def explain_write_failures(folder: Path, where: str, say: Callable[[str], None]) -> Iterator[None]:
    """A file that cannot be written is one message; and a record that cannot be written never hides why a run ended."""
    try:
        yield
    except RecipeError:
        raise
    except BaseException as problem:
        chain = chain_of(problem)
        cache, shared = find_cache_failure(problem), find_shared_memory_failure(problem)
        if cache is not None:
            variable, why = cache
            what = f"the cache {variable} cannot be written: {why.what}"
            fix = f"{why.fix}, or set {variable.split()[0]} to another folder"
            raise OutputDirError.at("environment", what, fix) from problem
        if shared is not None:
            raise LaunchError.at("dataloader_num_workers", shared.what, shared.fix) from problem
        files = [each for each in chain if isinstance(each, OSError)]
        failure = find_failure(problem, folder) if files or not isinstance(problem, KeyboardInterrupt) else None
        if failure is None:
            raise
        name = next((str(each.filename) for each in files if each.filename), str(folder))
        own = next((each for each in chain if isinstance(each, RecipeError | KeyboardInterrupt)), None)
        if own is not None:
            say(f"warning: {name!r} cannot be written: {failure.what}")
            raise own from None
        fix = f"{failure.fix}; the same command with --resume then continues"
        raise OutputDirError.at(where, f"{name!r} cannot be written: {failure.what}", fix) from problem
