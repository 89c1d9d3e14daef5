"""load_dataset and load_from_disk, with one message for what cannot be read: where, and how to fix it.

Upstream says "An error occurred while generating the dataset" and hides the file; here the file is named and, in JSON,
the line.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.files import identify, put
from hf_recipes.common.text import first_line
from hf_recipes.common.write_failures import find_cache_failure
from hf_recipes.data.columns import CHAT
from hf_recipes.data.csv_files import check_lines, csv_arguments, find_wide_row
from hf_recipes.data.files import find_damage, guess_encoding, has_bom, is_blank, line_that_is_not_utf8, local_files
from hf_recipes.data.json_files import FIRST_PART, find_bad_line, find_bad_row, find_encoded_text, find_other_shape
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

# What readers raise for a file without a row.
NO_ROWS = ("StopIteration", "SchemaInferenceError", "EmptyDataError")
CAST_ERROR = ("requested_column_names", "table_column_names")  # of datasets' CastError
TEXT_FORMATS = ("json", "csv", "text")
ON_DISK = ("dataset_dict.json", "state.json")  # Dataset.save_to_disk writes one of them


def load(
    recipe: Recipe, path: str, arguments: Mapping[str, Any], needed: Collection[str]
) -> tuple[dict[str, Dataset], list[str]]:
    """Split name -> rows, as load_dataset(path, **arguments) gives them, or load_from_disk where `path` is its folder;
    and notes on what was read.

    One Dataset (a `split` that is a string) is "train". Where files differ in columns that are not `needed`, only the
    needed ones are read. Raises DataError for whatever cannot be loaded.
    """
    import datasets

    split = arguments.get("split")
    if isinstance(split, list):
        fix = "write split: {train: ..., validation: ...}"
        raise DataError.at(
            recipe.location("dataset.split"), "dataset.split is a list: it does not say which part is train", fix
        )
    if any(os.path.isfile(os.path.join(path, name)) for name in ON_DISK):
        return _load_saved(recipe, path, arguments), []
    files = list(local_files(path, arguments))
    given = reading_arguments(recipe, path, arguments, files)
    _check_cache(given)
    before = [identify(Path(name)) for name in files]
    shown = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its own error lines would appear beside ours
    try:
        parts = _by_role(_load_table(path, files, given))
    except Exception as problem:  # readers may raise anything: StopIteration, ParserError, ...
        error = explain(recipe, path, arguments, problem)
        try:
            generating = isinstance(problem, datasets.exceptions.DatasetGenerationError)
            parts = _load_apart(recipe, path, arguments, needed) if files and generating else {}
        except Exception:  # the first problem is the one to report
            raise error from problem
        if not parts:
            raise error from problem
    finally:
        datasets.logging.set_verbosity(shown)
    for name, one in zip(files, before, strict=True):
        if identify(Path(name)) != one:
            what = f"{name} changed while it was read"
            raise DataError.at(recipe.location("dataset.data_files"), what, "run again when it is complete")
    if not all(_is_valid(part) for part in parts.values()):
        raise _not_utf8(recipe, path, arguments, files)
    if path == "json" and "field" not in arguments:
        _check_shape(recipe, parts, files, needed)
        for part in parts.values():
            if other := find_encoded_text(part, needed, files, int(arguments.get("chunksize") or FIRST_PART)):
                raise DataError.at(recipe.location("dataset.data_files"), *other)
    if path != "csv":
        return parts, []
    # A slice has fewer rows than its file has lines.
    return parts, check_lines(recipe, arguments, files, 0 if split else sum(part.num_rows for part in parts.values()))


def _load_table(path: str, files: Sequence[str], arguments: Mapping[str, Any]) -> Any:
    """load_dataset, which finds the table that it stored of these files by their times only (5.2 data_files.py). A file
    that was replaced under its old time is read again: its state is kept in the table's own folder, and nobody can set
    the time of a change of the file itself."""
    import datasets
    import pyarrow as pa

    states = {os.path.abspath(name): _state(name) for name in files}
    loaded = datasets.load_dataset(path, **arguments)
    pa.default_memory_pool().release_unused()  # Arrow keeps what reading needed: 400 MB after a line of 200 MB
    memo = _memo(loaded)
    if memo is None:
        return loaded
    with contextlib.suppress(OSError, ValueError):  # none yet: the table is new, or was made by another program
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known != states:
            loaded = datasets.load_dataset(path, **{**arguments, "download_mode": "force_redownload"})
    with contextlib.suppress(OSError):
        put(memo, json.dumps(states))
    return loaded


def _memo(loaded: Any) -> Path | None:
    """Where the state of the data files is kept, beside the rows that `datasets` made of them; None for rows that are
    in no file."""
    for part in _by_role(loaded).values():
        for one in part.cache_files:
            return Path(one["filename"]).with_name("hf_recipes-files.json")
    return None


def _state(name: str) -> str:
    found = os.stat(name)
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino} {found.st_ctime_ns}"


def _by_role(loaded: Any) -> dict[str, Dataset]:
    import datasets

    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else {str(k): v for k, v in loaded.items()}


def reading_arguments(recipe: Recipe, path: str, arguments: Mapping[str, Any], files: list[str]) -> dict[str, Any]:
    """The arguments with what reads these files as they are."""
    if path == "csv":
        return csv_arguments(recipe, arguments, files)
    if path == "text" and "encoding" not in arguments and any(map(has_bom, files)):
        return {**arguments, "encoding": "utf-8-sig"}
    return dict(arguments)


def _check_cache(arguments: Mapping[str, Any]) -> None:
    """A cache that takes no file makes load_dataset wait for its lock, or fail with the lock's name."""
    import datasets

    given = arguments.get("cache_dir")
    folder = os.path.expanduser(str(given or datasets.config.HF_DATASETS_CACHE))
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        what = f"the cache of data sets {folder!r} cannot be written: {problem.strerror or problem}"
        name = "dataset.cache_dir" if given else "HF_DATASETS_CACHE (or HF_HOME)"
        fix = f"set {name} to a folder that can be written"
        raise DataError.at("environment", what, fix) from problem


def _load_apart(recipe: Recipe, path: str, arguments: Mapping[str, Any], needed: Collection[str]) -> dict[str, Dataset]:
    """Each file on its own, without the columns that nobody reads: they may differ from file to file."""
    import datasets

    if path not in ("json", "csv", "parquet"):
        return {}
    given = {k: v for k, v in arguments.items() if k not in ("data_files", "data_dir", "split", "features")}
    if path == "json":
        given["chunksize"] = 2**30  # a column may change its type further down
    named = arguments.get("data_files")
    parts: dict[str, Dataset] = {}
    columns: list[set[str]] = []
    for role, names in (named if isinstance(named, Mapping) else {"train": named}).items():
        pieces = []
        for name in local_files(path, {**arguments, "data_files": names}):
            reading = csv_arguments(recipe, given, [name]) if path == "csv" else given
            escaped = glob.escape(os.path.abspath(name))
            rows = _load_table(path, [name], {**reading, "data_files": {"train": [escaped]}, "split": "train"})
            read = [column for column in rows.column_names if column in needed]
            pieces.append(rows.select_columns(read) if read else rows)  # whole, for the message on what it lacks
            columns.append(set(rows.column_names) & (set(needed) - set(CHAT)))
        parts[str(role)] = datasets.concatenate_datasets(pieces)
    if any(names != columns[0] for names in columns):  # a column that is read is not in every file
        return {}
    split = arguments.get("split")
    if split is None:
        return parts
    roles = split if isinstance(split, Mapping) else {"train": split}
    return {str(role): _cut(parts, str(spec)) for role, spec in roles.items()}


def _check_shape(recipe: Recipe, parts: Mapping[str, Dataset], files: list[str], needed: Collection[str]) -> None:
    for part in parts.values():
        other = find_other_shape(part, needed, recipe.task) if 0 < part.num_rows <= len(files) else None
        if other:
            what, fix = other
            raise DataError.at(recipe.location("dataset.data_files"), f"{files[0]} {what}", fix)


def _is_valid(rows: Dataset) -> bool:
    """Whether every text of the rows is UTF-8: Arrow's reader of JSON takes any bytes, and they fail when used."""
    import pyarrow as pa

    try:
        for batch in rows.data.to_batches():
            batch.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return False
    return True


def _not_utf8(recipe: Recipe, path: str, arguments: Mapping[str, Any], files: list[str]) -> DataError:
    found = next(((name, line) for name in files if (line := line_that_is_not_utf8(name))), None)
    where = f"{found[0]}:{found[1]} is not UTF-8 text" if found else f"{path} holds text that is not UTF-8"
    given, guess = arguments.get("encoding"), guess_encoding(found[0]) if found else "latin-1"
    fix = f"convert it, or name its encoding, e.g. encoding: {guess}"
    if given and path == "json":  # 5.2 json.py:190 reads a list as UTF-8 before the encoding is used
        fix = f"a file that is one JSON list is read as UTF-8 only: convert it (iconv -f {given} -t utf-8)"
    elif given:
        where = where.replace("UTF-8", str(given)) if not found else f"{found[0]} is not {given}"
    return DataError.at(recipe.location("dataset.data_files"), where, fix)


def _load_saved(recipe: Recipe, path: str, arguments: Mapping[str, Any]) -> dict[str, Dataset]:
    """A folder of Dataset.save_to_disk. `split` works as in load_dataset; the other arguments have no effect."""
    import datasets

    location = recipe.location("dataset.path")
    for name in arguments:
        if name != "split":
            what = f"dataset.{name} has no effect: {path!r} is a folder written by save_to_disk"
            raise DataError.at(recipe.location(f"dataset.{name}"), what, "leave it out")
    try:
        loaded = datasets.load_from_disk(path)
    except Exception as problem:  # as above
        what = f"{path!r} cannot be read as a folder written by save_to_disk: {first_line(problem)}"
        raise DataError.at(location, what, "write it again") from problem
    parts = {"train": loaded} if isinstance(loaded, datasets.Dataset) else {str(k): v for k, v in loaded.items()}
    split = arguments.get("split")
    if split is None:
        return parts
    roles = split if isinstance(split, Mapping) else {"train": split}
    try:
        return {str(role): _cut(parts, str(spec)) for role, spec in roles.items()}
    except (ValueError, KeyError) as problem:
        raise DataError.at(recipe.location("dataset.split"), f"dataset.split: {first_line(problem)}") from problem


def _cut(parts: Mapping[str, Dataset], spec: str) -> Dataset:
    """load_dataset's slices ("train[:10%]+test") of rows that are loaded already."""
    from datasets import ReadInstruction, concatenate_datasets

    lengths = {name: part.num_rows for name, part in parts.items()}
    pieces = ReadInstruction.from_spec(spec).to_absolute(lengths)
    return concatenate_datasets([parts[p.splitname].select(range(p.from_ or 0, p.to or 0)) for p in pieces])


def explain(recipe: Recipe, path: str, arguments: Mapping[str, Any], problem: BaseException) -> DataError:
    """The error of load_dataset in one message."""
    cache = find_cache_failure(problem, loading=True, cache_dir=arguments.get("cache_dir"))
    if cache is not None:
        name, failure = cache
        what = f"the cache {name} cannot be written: {failure.what}"
        return DataError.at("environment", what, f"{failure.fix}, or set {name.split()[0]} to another folder")
    import datasets

    location, of_files = recipe.location("dataset.path"), recipe.location("dataset.data_files")
    generating = isinstance(problem, datasets.exceptions.DatasetGenerationError)
    cause = problem.__cause__ or problem if generating else problem
    files = list(local_files(path, arguments))
    names = ", ".join(files[:3]) or path
    for name in files:
        if damage := find_damage(name):
            return DataError.at(of_files, f"{name} cannot be read: {damage}", "copy or download it again")
    blank = [name for name in files if path in ("json", "csv") and is_blank(name)]
    without_columns = blank and any(hasattr(cause, name) and not list(getattr(cause, name)) for name in CAST_ERROR)
    if type(cause).__name__ in NO_ROWS or "corresponds to no data" in str(cause) or without_columns:
        empty = [name for name in files if os.path.getsize(name) == 0]
        location = recipe.location("dataset.split") if "[" in str(arguments.get("split")) else of_files
        what = f"{empty[0]} is empty" if empty else f"there are no rows in {', '.join(blank[:3]) or names}"
        return DataError.at(location, what, "add some rows")
    text = path in TEXT_FORMATS and ("encoding" not in arguments or path == "json")
    if isinstance(cause, UnicodeError) or (text and any(map(line_that_is_not_utf8, files))):
        return _not_utf8(recipe, path, arguments, files)
    if path == "json":
        bad = next(filter(None, map(find_bad_line, files)), None)
        if bad:
            return DataError.at(of_files, bad, "fix that line, or remove it")
        if generating and "field" not in arguments and (row := next(filter(None, map(find_bad_row, files)), None)):
            return DataError.at(of_files, *row)
    if hasattr(cause, "requested_column_names"):  # datasets' CastError
        first: list[str] = list(cause.requested_column_names)
        others = [name for name in getattr(cause, "table_column_names", ()) if name not in first]
        what = f"the data files differ in their columns: the first has {', '.join(first)}, another {', '.join(others)}"
        return DataError.at(of_files, what, "give all the same columns")
    if path == "csv" and "Error tokenizing data" in str(cause) and "quoting" not in arguments:
        check_lines(recipe, arguments, files, 0)  # raises for an unbalanced quote
    wide = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(cause))
    if wide:
        found = (find_wide_row(name, arguments, int(wide[1]), int(wide[3])) for name in files)
        where = next(filter(None, found), f"line {wide[2]} of {names}")
        what = f"{where} has {wide[3]} fields, and the lines before it have {wide[1]}"
        return DataError.at(of_files, what, "put texts that hold the delimiter into quotes, or name another: delimiter")
    if generating or type(cause).__name__.startswith("Arrow"):
        fix = "is the file complete, and in that format?"
        return DataError.at(of_files, f"{names} cannot be read as {path}: {first_line(cause)}", fix)
    if isinstance(problem, ConnectionError | datasets.exceptions.DatasetNotFoundError):
        fix = "check the name, and that this machine can reach the Hub; for local files write path: json, ..."
        return DataError.at(location, f"the data set {path!r} cannot be loaded: {first_line(problem)}", fix)
    if "split" in str(problem) or "nstruction" in str(problem) or "slice" in str(problem):
        return DataError.at(recipe.location("dataset.split"), f"dataset.split: {first_line(problem)}")
    return DataError.at(
        location, f"load_dataset rejects {path!r}: {first_line(problem)}", "see its arguments in `hf-recipes schema`"
    )
