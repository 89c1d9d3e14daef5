"""load_dataset and load_from_disk, with one message for what cannot be read: where, and how to fix it.

Upstream says "An error occurred while generating the dataset" and hides the file; here the file is named and, in JSON,
the line.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from hf_recipes.common.text import first_line
from hf_recipes.common.write_failures import find_cache_failure
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

# What readers raise for a file without a row.
NO_ROWS = ("StopIteration", "SchemaInferenceError", "EmptyDataError")
TEXT_FORMATS = ("json", "csv", "text")
COMPRESSED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}  # by their first bytes
KINDS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
ON_DISK = ("dataset_dict.json", "state.json")  # Dataset.save_to_disk writes one of them


def file_names(files: Any, key: str = "dataset.data_files") -> dict[str, str]:
    """Dotted key of the recipe -> file name or pattern, whatever shape data_files has."""
    if isinstance(files, str):
        return {key: files}
    if isinstance(files, Mapping):
        return {k: v for split, part in files.items() for k, v in file_names(part, f"{key}.{split}").items()}
    if isinstance(files, list | tuple):
        return {f"{key}[{i}]": name for i, name in enumerate(files) if isinstance(name, str)}
    return {}


def load(recipe: Recipe, path: str, arguments: Mapping[str, Any]) -> dict[str, Dataset]:
    """Split name -> rows, as load_dataset(path, **arguments) gives them, or load_from_disk where `path` is its folder.

    One Dataset (a `split` that is a string) is "train". Raises DataError for whatever cannot be loaded.
    """
    import datasets

    split = arguments.get("split")
    if isinstance(split, list):
        fix = "write split: {train: ..., validation: ...}"
        raise DataError.at(
            recipe.location("dataset.split"), "dataset.split is a list: it does not say which part is train", fix
        )
    if any(os.path.isfile(os.path.join(path, name)) for name in ON_DISK):
        return _load_saved(recipe, path, arguments)
    shown = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its own error lines would appear beside ours
    try:
        loaded = datasets.load_dataset(path, **arguments)
    except Exception as problem:  # readers may raise anything: StopIteration, ParserError, ...
        raise _explain(recipe, path, arguments, problem) from problem
    finally:
        datasets.logging.set_verbosity(shown)
    parts = {"train": loaded} if isinstance(loaded, datasets.Dataset) else {str(k): v for k, v in loaded.items()}
    if not all(_is_valid(part) for part in parts.values()):
        raise _not_utf8(recipe, path, list(_files(path, arguments)))
    return parts


def _is_valid(rows: Dataset) -> bool:
    """Whether every text of the rows is UTF-8: Arrow's reader of JSON takes any bytes, and they fail when used."""
    import pyarrow as pa

    try:
        for batch in rows.data.to_batches():
            batch.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return False
    return True


def _not_utf8(recipe: Recipe, path: str, files: list[str]) -> DataError:
    found = next(((name, line) for name in files if (line := _line_that_is_not_utf8(name))), None)
    where = f"{found[0]}:{found[1]} is not UTF-8 text" if found else f"{path} holds text that is not UTF-8"
    fix = "convert it, or name its encoding, e.g. encoding: latin-1"
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


def _explain(recipe: Recipe, path: str, arguments: Mapping[str, Any], problem: BaseException) -> DataError:
    """The error of load_dataset in one message."""
    cache = find_cache_failure(problem, loading=True)
    if cache is not None:
        variable, failure = cache
        what = f"the cache {variable} cannot be written: {failure.what}"
        return DataError.at("environment", what, f"{failure.fix}, or set {variable.split()[0]} to another folder")
    import datasets

    location, of_files = recipe.location("dataset.path"), recipe.location("dataset.data_files")
    generating = isinstance(problem, datasets.exceptions.DatasetGenerationError)
    cause = problem.__cause__ or problem if generating else problem
    files = list(_files(path, arguments))
    names = ", ".join(files[:3]) or path
    for name in files:
        if damage := find_damage(name):
            return DataError.at(of_files, f"{name} cannot be read: {damage}", "copy or download it again")
    if type(cause).__name__ in NO_ROWS or "corresponds to no data" in str(cause):
        empty = [name for name in files if os.path.getsize(name) == 0]
        location = recipe.location("dataset.split") if "[" in str(arguments.get("split")) else of_files
        return DataError.at(
            location, f"{empty[0]} is empty" if empty else f"there are no rows in {names}", "add some rows"
        )
    text = path in TEXT_FORMATS and "encoding" not in arguments
    if isinstance(cause, UnicodeDecodeError) or (text and any(map(_line_that_is_not_utf8, files))):
        return _not_utf8(recipe, path, files)
    if path == "json":
        bad = next(filter(None, map(_bad_json, files)), None)
        if bad:
            return DataError.at(of_files, bad, "fix that line, or remove it")
    if hasattr(cause, "requested_column_names"):  # datasets' CastError
        first: list[str] = list(cause.requested_column_names)
        others = [name for name in getattr(cause, "table_column_names", ()) if name not in first]
        what = f"the data files differ in their columns: the first has {', '.join(first)}, another {', '.join(others)}"
        return DataError.at(of_files, what, "give all the same columns")
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


def _files(path: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """The local files that load_dataset was to read, patterns expanded."""
    base = os.path.join(path if os.path.isdir(path) else "", arguments.get("data_dir") or "")
    for name in dict.fromkeys(file_names(arguments.get("data_files")).values()):
        full = os.path.join(base, name)
        found = [full] if os.path.isfile(full) else sorted(glob.glob(full, recursive=True))
        yield from filter(os.path.isfile, found)


def _open(name: str) -> IO[bytes]:
    """The file's content, decompressed; by its first bytes, as `datasets` does it."""
    with open(name, "rb") as file:
        begin = file.read(6)
    for magic, opener in COMPRESSED.items():
        if begin.startswith(magic):
            return opener(name)
    return open(name, "rb")


def find_damage(name: str) -> str:
    """Why a compressed file cannot be read to its end; "" for a file that can, and for one that is not compressed."""
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(name) as archive:
                bad = archive.testzip()
                return f"{bad} in it is damaged" if bad else ""
        if not name.endswith(tuple(KINDS)):
            return ""
        with open(name, "rb") as file:
            if not file.read(6).startswith(tuple(COMPRESSED)):
                return f"it is no {KINDS[os.path.splitext(name)[1]]} file"
        with _open(name) as content:
            while content.read(2**20):
                pass
    except EOFError:
        return "it is cut off"
    except zipfile.BadZipFile as problem:
        return f"it is cut off, or no zip file ({first_line(problem)})"
    except (OSError, zlib.error, lzma.LZMAError, ValueError) as problem:
        return f"it is damaged ({first_line(problem)})"
    return ""


def _line_that_is_not_utf8(name: str) -> int:
    """The number of the first line that is not UTF-8; 0 if every line is, or the file cannot be read."""
    try:
        with _open(name) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return 0
    return 0


def _bad_json(name: str) -> str | None:
    """ "data/a.jsonl:2 is not JSON: Expecting ',' delimiter (column 13)"; None for a file that Python's json reads."""
    number = 0
    try:
        with _open(name) as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if number == 1 and (text.startswith(b"[") or text == b"{"):  # one document, not one a line
                    json.loads(line + lines.read())
                    return None
                if text:
                    json.loads(text)
    except json.JSONDecodeError as problem:
        return f"{name}:{number + problem.lineno - 1} is not JSON: {problem.msg} (column {problem.colno})"
    except (ValueError, RecursionError, OSError) as problem:
        return f"{name}:{number or 1} is not JSON: {first_line(problem)}"
    return None
