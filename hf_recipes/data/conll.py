"""CoNLL files (`path: text`, `format: conll`): a word a line with its columns, a blank line between sentences.

The first column is the word, the last one its tag; `column_names` names all of them, if others are wanted. Imports
neither torch nor transformers.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import IO, TYPE_CHECKING, Any

from hf_recipes.data.files import COMPRESSED, file_names, guess_encoding
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

HEAD = 1_000  # lines that show how many columns a file has, and its tags
DOCUMENT = "-DOCSTART-"  # CoNLL-2003 begins its documents so
KNOWN = ("data_files", "data_dir", "split", "encoding", "delimiter", "column_names")


def load_conll(recipe: Recipe, arguments: Mapping[str, Any]) -> dict[str, Dataset]:
    """Split name -> rows of `tokens` and `tags` (or of `column_names`). Raises DataError with file and line."""
    from datasets import Dataset

    for name in arguments:
        if name not in KNOWN:
            what = f"dataset.{name} has no effect on CoNLL files"
            raise DataError.at(recipe.location(f"dataset.{name}"), what, "leave it out")
    location = recipe.location("dataset.data_files")
    given = arguments.get("data_files")
    roles = given if isinstance(given, Mapping) else {"train": given}
    encoding = arguments.get("encoding") or "utf-8-sig"
    parts = {}
    for role, files in roles.items():
        columns: dict[str, list] = {}
        for name in _local_files(arguments.get("data_dir") or "", files):
            try:
                with _open_file(name) as binary, io.TextIOWrapper(binary, encoding=encoding) as lines:
                    for sentence in _sentences(name, lines, arguments.get("delimiter"), location):
                        _add(columns, sentence, arguments.get("column_names"), name, location)
            except UnicodeDecodeError:
                fix = f"convert it, or name its encoding, e.g. encoding: {guess_encoding(name)}"
                raise DataError.at(location, f"{name} is not {encoding.removesuffix('-sig')} text", fix) from None
        if not columns:
            shown = ", ".join(file_names(files).values())
            raise DataError.at(location, f"there are no sentences in {shown}", "add some rows")
        parts[str(role)] = Dataset.from_dict(columns)
    split = arguments.get("split")
    if split is None:
        return parts
    wanted = split if isinstance(split, Mapping) else {"train": split}
    try:
        return {str(role): _cut(parts, str(spec)) for role, spec in wanted.items()}
    except (ValueError, KeyError) as problem:
        raise DataError.at(recipe.location("dataset.split"), f"dataset.split: {problem}") from problem


def _local_files(folder: str, files: Any) -> Iterator[str]:
    for name in file_names(files).values():
        full = os.path.join(folder, name)
        yield from [full] if os.path.isfile(full) else sorted(glob.glob(full, recursive=True))


def _open_file(name: str) -> IO[bytes]:
    with open(name, "rb") as file:
        begin = file.read(6)
    opener: Any = next((opener for magic, opener in COMPRESSED.items() if begin.startswith(magic)), open)
    found: IO[bytes] = opener(name, "rb")
    return found


def _cut(parts: Mapping[str, Dataset], spec: str) -> Dataset:
    """load_dataset's slices ("train[:10%]+test")."""
    from datasets import ReadInstruction, concatenate_datasets

    pieces = ReadInstruction.from_spec(spec).to_absolute({name: part.num_rows for name, part in parts.items()})
    return concatenate_datasets([parts[p.splitname].select(range(p.from_ or 0, p.to or 0)) for p in pieces])


def _sentences(name: str, lines: Any, delimiter: str | None, location: str) -> Iterator[list[list[str]]]:
    """Each sentence as the columns of its lines."""
    sentence: list[list[str]] = []
    lines = iter(lines)
    head = list(islice(lines, HEAD))
    begin = [_cells(line, delimiter) for line in head if line.strip() and not line.startswith(("#", DOCUMENT))]
    tags = {cells[-1] for cells in begin}
    width = 0
    for number, line in enumerate(chain(head, lines), 1):
        if not line.strip():
            if sentence:
                yield sentence
            sentence = []
            continue
        cells = _cells(line, delimiter)
        a_word = len(cells) == (width or len(begin[0] if begin else cells)) and (width or cells[-1] in {*tags, "O"})
        if cells[0] == DOCUMENT or (cells[0].startswith("#") and not a_word and not sentence):
            continue  # the start of a document; a comment before a sentence
        if len(cells) < 2:
            what = f"{name}:{number} has one column only ({line.strip()[:40]!r}): a word needs its tag"
            raise DataError.at(location, what, "fix that line, or name the delimiter")
        if width and len(cells) != width:
            what = f"{name}:{number} has {len(cells)} columns, and the lines before it {width}"
            raise DataError.at(location, what, "fix that line, or name the delimiter")
        width = len(cells)
        sentence.append(cells)
    if sentence:
        yield sentence


def _cells(line: str, delimiter: str | None) -> list[str]:
    line = line.rstrip("\r\n")
    return line.split(delimiter or ("\t" if "\t" in line else None))


def _add(columns: dict[str, list], sentence: list[list[str]], names: Any, file: str, location: str) -> None:
    width = len(sentence[0])
    chosen = {"tokens": 0, "tags": width - 1}
    if names is not None:
        if not isinstance(names, list) or len(names) != width:
            count = len(names) if isinstance(names, list) else 1
            what = f"dataset.column_names has {count} names, and {file} {width} columns"
            raise DataError.at(location, what, "name every column, in their order")
        chosen = {str(name): i for i, name in enumerate(names)}
    for name, i in chosen.items():
        columns.setdefault(name, []).append([cells[i] for cells in sentence])
