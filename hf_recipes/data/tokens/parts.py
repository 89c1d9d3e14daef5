"""The units of a split made into parts on disk, by this process or by several, and what several runs share.

A part is a zip file of NumPy arrays: complete or absent, and its checksums show damage. What a killed call has made is
used by the next one. One process makes the parts of a folder, and the others wait for it however long it takes.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.common.device import say
from hf_recipes.common.files import remove
from hf_recipes.common.text import format_duration
from hf_recipes.data.tokens.workers import WorkerError, write_with_workers
from hf_recipes.errors import DataError

PATIENCE = 10  # seconds before a process says that it waits
EVERY = 60  # seconds between lines about the progress
APART = 8  # units that are worth the start of a process

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Work:
    """`units` of `rows_of_unit` rows each. `encode` makes a unit's arrays of what `read` gives for its number; where
    `processes` is more than one, or they are `apart`, both it and that are sent to other processes. A tokenizer needs a
    fifth less CPU time in a small process of one thread."""

    split: str
    noun: str  # "documents" | "rows"
    rows: int
    rows_of_unit: int
    units: int
    read: Callable[[int], Any]
    encode: Callable[[Any], Arrays]
    processes: int
    apart: bool = False  # one process, too, is another one than this


def write_part(path: Path, arrays: Arrays) -> None:
    """Complete or absent. Raises OSError that names the file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        if path.is_dir():
            remove(path)
        os.replace(draft, path)
    except OSError as problem:
        draft.unlink(missing_ok=True)
        raise type(problem)(problem.errno, problem.strerror, str(path)) from problem


def read_part(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
    """`names` of the arrays that are read, or all. None for a part that is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in names or found.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def make_parts(work: Work, folder: Path) -> None:
    """Every unit's part, with a bar or lines about the progress. Raises DataError, OSError, and whatever `encode`
    raises for the first unit that has a problem."""
    if not folder.is_dir():
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for unit in _show_progress(work, _write_missing(work, folder)):
        del unit


def read_parts(work: Work, folder: Path, *names: str) -> Iterator[dict[str, np.ndarray]]:
    for unit in range(work.units):
        found = read_part(_path_of(folder, unit), names)
        if found is None:
            what = f"what was prepared of the {work.split} split changed meanwhile ({str(folder)!r})"
            raise DataError.at("environment", what, "run again: what is complete is used again")
        yield found


def _path_of(folder: Path, unit: int) -> Path:
    return folder / f"{unit:06}.npz"


def _write_missing(work: Work, folder: Path) -> Iterator[int]:
    """Yields each unit when its part is there."""
    missing = []
    for unit in range(work.units):
        if read_part(_path_of(folder, unit)) is None:
            missing.append(unit)
        else:
            yield unit
    count = min(work.processes, len(missing) // 2)  # a process takes as long to start as to tokenize a megabyte
    if count < 2 and not (work.apart and len(missing) >= APART):
        for unit in missing:
            write_part(_path_of(folder, unit), work.encode(work.read(unit)))
            yield unit
        return
    try:
        yield from write_with_workers(
            work.encode, max(1, count), missing, work.read, lambda unit: _path_of(folder, unit)
        )
    except WorkerError as problem:
        what = f"a process that tokenizes the {work.split} split ended by {problem}, twice with the same rows"
        fix = "if memory is short, split long documents, or take fewer processes (dataset.num_proc: 1)"
        raise DataError.at("environment", what, fix) from None


@contextmanager
def lock(folder: Path, split: str) -> Iterator[None]:
    """Held by one process; the kernel releases it when that process ends, however it ends."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    found = FileLock(folder / "lock")
    try:
        found.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"process {os.getpid()} waits: another process prepares the {split} split", flush=True)
        found.acquire()
    try:
        yield
    finally:
        found.release()


def _show_progress(work: Work, units: Iterator[int]) -> Iterator[int]:
    """A bar with the remaining time on a terminal, else a line a minute."""
    from datasets.utils import tqdm

    with tqdm(total=work.rows, unit=f" {work.noun}", desc=f"{work.split} {work.noun}") as bar:
        began = shown = time.monotonic()
        already = 0
        for done, unit in enumerate(units, 1):
            bar.update(min(work.rows_of_unit, bar.total - bar.n))
            now = time.monotonic()
            if now - began < 1:  # found, not made
                already = done
            elif bar.disable and now - shown > EVERY and done < work.units:
                shown = now
                left = (now - began) / max(1, done - already) * (work.units - done)
                share = f"{done / work.units:.0%} of the {work.noun}"
                say(f"{work.split}: {share} tokenized, {format_duration(left)} left")
            yield unit
