"""The rows of a split: found by what makes them, or made and stored.

The key is a digest of everything that changes a row: the values of the columns, what makes rows of them, this code and
the versions of the packages that do it. Runs, seeds and sweeps share what is stored.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.catalog import chat_roles
from hf_recipes.common.write_failures import find_failure
from hf_recipes.data.tokens.parts import Work, lock, make_parts, read_parts
from hf_recipes.data.tokens.rows import StoredRows, read_rows
from hf_recipes.data.tokens.source import Columns
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

FOLDER, ROWS = "hf_recipes", "rows"

ReadParts = Callable[..., Iterator[dict[str, np.ndarray]]]  # names of the arrays that are read, or all
WriteRows = Callable[[ReadParts, Path], None]


def find_or_make(root: Path, columns: Columns, facts: Mapping[str, Any], work: Work, write: WriteRows) -> StoredRows:
    """The rows below `root` of these columns and `facts`. `write` makes the folder of rows of the parts.

    Raises DataError for a store that cannot be written, and what `work.encode` and `write` raise. What a killed call
    has made is used by the next one."""
    try:
        named = {"values": columns.known_digest(root / "digests"), **facts}
        key = blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16).hexdigest()
        folder = root / key
        found = read_rows(folder / ROWS)
        if found is not None:
            return found
        with lock(folder, work.split):
            found = read_rows(folder / ROWS)
            if found is None:
                parts = folder / f"parts-{work.rows_of_unit}"  # of other units are other parts
                make_parts(work, parts)
                write(functools.partial(read_parts, work, parts), folder / ROWS)
                found = read_rows(folder / ROWS)
                assert found is not None, "rows that were just written cannot be read"
                shutil.rmtree(parts, ignore_errors=True)
            return found
    except OSError as problem:
        failure = find_failure(problem, root)
        if failure is None:
            if not isinstance(problem, FileExistsError | IsADirectoryError | NotADirectoryError):
                raise
            what = f"{str(problem.filename)!r} is not what is stored there: {problem.strerror}"
            raise DataError.at("environment", what, "remove it: what is missing is made again") from problem
        what = f"the prepared rows cannot be written to {str(root)!r}: {failure.what}"
        again = "what is prepared so far is used again"
        fix = f"{failure.fix} ({again}), or set {setting_of(root)} to another folder"
        raise DataError.at("environment", what, fix) from problem


def setting_of(root: Path) -> str:
    """What decides where the rows are."""
    import datasets

    default = root == Path(os.path.expanduser(str(datasets.config.HF_DATASETS_CACHE))) / FOLDER
    return "HF_DATASETS_CACHE or dataset.cache_dir" if default else "dataset.cache_dir"


@functools.cache
def code_facts(*packages: str) -> dict[str, str]:
    """This package's code of data, and the versions of the packages that take part."""
    digest = blake2b(digest_size=16)
    for path in [*sorted(Path(__file__).parents[1].rglob("*.py")), Path(chat_roles.__file__)]:
        digest.update(path.read_bytes())
    return {"code": digest.hexdigest(), **{name: importlib.metadata.version(name) for name in packages}}


def find_store(recipe: Recipe) -> Path:
    """The folder of prepared rows: beside what load_dataset stores."""
    import datasets

    cache = recipe.get("dataset.cache_dir") or datasets.config.HF_DATASETS_CACHE
    return Path(os.path.expanduser(str(cache))) / FOLDER


def count_processes(recipe: Recipe) -> int:
    """Processes that tokenize: dataset_num_proc of SFTConfig, or num_proc of load_dataset, or one a core."""
    given = recipe.get("SFTConfig.dataset_num_proc") or recipe.get("dataset.num_proc")
    if given:
        return int(given)
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(usable(0)) if usable else os.cpu_count() or 1
