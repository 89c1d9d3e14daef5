"""What is predicted: texts of the command line, of stdin or of a file. Imports nothing heavy but for data files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hf_recipes.common.files import describe_special_file
from hf_recipes.data.first_file import is_conll
from hf_recipes.data.splits import CONLL_ENDINGS, EXTENSIONS, SPLIT_KEYS
from hf_recipes.errors import DataError
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.schema.own_keys import DATASET

if TYPE_CHECKING:
    from datasets import Dataset

STDIN = "standard input"
LOOKED_AT, FEW = 200, 5  # lines
MARKS = ("-DOCSTART-", "#")  # of CoNLL files
Row = Mapping[str, Any]  # {"text": ...}, {"tokens": [...]}, {"messages": [...]}, {"prompt": ...}


def rows_of_texts(texts: Iterable[str], where: str = STDIN) -> Iterator[Row]:
    """A row a line, without its line break. Where the first line is a JSON object every line must be one.

    Raises DataError with the line's number. Empty lines are left out.
    """
    objects: bool | None = None
    for number, line in enumerate(texts, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if objects is None:
            objects = isinstance(_parsed(text), dict)
        if not objects:
            yield {"text": text}
            continue
        value = _parsed(text)
        if not isinstance(value, dict):
            raise DataError.at(f"{where}:{number}", "is no JSON object, and the first line is one", "fix that line")
        yield value


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def rows_of_stream(stream: IO[bytes]) -> Iterator[Row]:
    """`rows_of_texts` of bytes. Raises DataError for a line that is not UTF-8."""

    def lines() -> Iterator[str]:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError.at(f"{STDIN}:{number}", "is not UTF-8 text", "convert it to UTF-8") from None

    return rows_of_texts(lines())


def dataset_of_file(recipe: Recipe, file: str, split: str = "train") -> Recipe:
    """The recipe with a `dataset` section that reads this file as `split`; columns and reading options stay, the
    latter only where the file has the format of the recipe's own files. Raises DataError for what no loader reads."""
    special = describe_special_file(file)
    path = Path(file)
    if special:
        raise DataError.at(file, special, "name a data file")
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    tagged = ending in CONLL_ENDINGS
    builder = "text" if tagged else EXTENSIONS.get(ending)
    if builder is None and path.is_file():
        raise DataError.at(file, "is no data file that is known", f"the formats are {', '.join(EXTENSIONS)}, conll")
    own = {k: v for k, v in recipe.section("dataset").items() if k in DATASET}
    section: dict[str, Any] = {"path": file, **own}
    if builder is not None:
        section = {"path": builder, "data_files": {split: file}}
        if recipe.get("dataset.path") == builder:
            dropped = ("path", "data_files", "data_dir", "split", "name", "revision", *SPLIT_KEYS)
            own |= {k: v for k, v in recipe.section("dataset").items() if k not in dropped}
        elif path.name.lower().removesuffix(".gz").endswith(".tsv"):
            section["delimiter"] = "\t"
        section |= own
        if tagged:
            section["format"] = "conll"
        elif section.get("format") == "conll" and (builder != "text" or _is_sentences(path)):
            del section["format"]  # of the recipe's own CoNLL files
    return recipe.with_values({"dataset": section}, file)


def _is_sentences(path: Path) -> bool:
    """Whether a text file has lines of text rather than a word and its tag: of different numbers of words."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line for line in islice(file, LOOKED_AT) if line.strip() and not line.startswith(MARKS)]
    except (OSError, UnicodeDecodeError):
        return False  # the reader says what is wrong
    return not is_conll(lines) and (len(lines) < FEW or len({len(line.split()) for line in lines}) > 1)


def load_file(recipe: Recipe, file: str) -> Dataset:
    """The rows of one file, or of a data set's folder or Hub id. Raises DataError for what cannot be read."""
    from hf_recipes.data.splits import file_errors, load_parts

    asked = dataset_of_file(recipe, file)
    errors = file_errors(asked)
    if errors:
        raise DataError(errors)
    parts, _ = load_parts(asked)
    rows = next((parts[name] for name in ("test", "validation", "train") if name in parts), None)
    if rows is None or not rows.num_rows:
        raise DataError.at(file, "there are no rows in it", "name a file with some")
    return rows
