"""What is predicted: texts of the command line, of stdin or of a file. Imports nothing heavy but for data files."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from hf_recipes.common.files import describe_special_file
from hf_recipes.data.first_file import is_conll, read_first_rows
from hf_recipes.data.first_look import USUAL
from hf_recipes.data.splits import CONLL_ENDINGS, EXTENSIONS, SPLIT_KEYS
from hf_recipes.errors import DataError, Diagnostic
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.schema.own_keys import DATASET

if TYPE_CHECKING:
    from datasets import Dataset

STDIN = "standard input"
LOOKED_AT, FEW = 200, 5  # lines
MARKS = ("-DOCSTART-", "#")  # of CoNLL files
# Keys of `dataset` that say how one file is written: another file says it itself.
OF_ONE_FILE = ("encoding", "delimiter", "sep", "field", "column_names", "names")
KEYS = re.compile(r"dataset\.\w+|write \w+:|name another|did you mean|its encoding|role_names|without a header")
REMOVE = "remove such rows"
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


def dataset_of_file(
    recipe: Recipe, file: str, split: str = "train", options: Mapping[str, Any] = MappingProxyType({})
) -> Recipe:
    """The recipe with a `dataset` section that reads this file as `split`. Columns stay, and the reading options where
    the file has the format of the recipe's own files; encoding, delimiter, header and `field` are those of the file.
    `options`: keys of `dataset` that the user gives. Raises DataError for what no loader reads."""
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
        section |= _of_file(path, own)
        if tagged:
            section["format"] = "conll"
        elif section.get("format") == "conll" and (builder != "text" or _is_sentences(path)):
            del section["format"]  # of the recipe's own CoNLL files
    return recipe.with_values({"dataset": {**section, **options}}, file)


def _of_file(path: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's keys that read its own files, with those in which this file differs."""
    if not path.is_file():
        return dict(own)
    try:
        _, seen = read_first_rows(path, {*USUAL, *map(str, own.values())}, tagged=False)
    except DataError:
        return dict(own)  # the reader says what is wrong
    kept = {key: value for key, value in own.items() if key not in OF_ONE_FILE}
    if "encoding" in seen:
        kept["encoding"] = own.get("encoding") or seen["encoding"]
    named = own.get("column_names") or own.get("names")
    if named and "column_names" in seen:
        kept["column_names"] = named
    return kept | {key: seen[key] for key in ("delimiter", "field") if key in seen}


def _is_sentences(path: Path) -> bool:
    """Whether a text file has lines of text rather than a word and its tag: of different numbers of words."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line for line in islice(file, LOOKED_AT) if line.strip() and not line.startswith(MARKS)]
    except (OSError, UnicodeDecodeError):
        return False  # the reader says what is wrong
    return not is_conll(lines) and (len(lines) < FEW or len({len(line.split()) for line in lines}) > 1)


def load_file(recipe: Recipe, file: str, options: Mapping[str, Any] = MappingProxyType({})) -> Dataset:
    """The rows of one file, or of a data set's folder or Hub id. Raises DataError for what cannot be read."""
    import datasets

    from hf_recipes.data.splits import file_errors, load_parts

    asked = dataset_of_file(recipe, file, options=options)
    errors = file_errors(asked)
    if errors:
        raise DataError(errors)
    datasets.disable_progress_bars()  # of commands whose output may be read by a program
    parts, _ = load_parts(asked)
    rows = next((parts[name] for name in ("test", "validation", "train") if name in parts), None)
    if rows is None or not rows.num_rows:
        raise DataError.at(file, "there are no rows in it", "name a file with some")
    return rows


@contextlib.contextmanager
def advising(file: str | None) -> Iterator[None]:
    """Advice for a recipe as advice for this command: keys of `dataset` are given with --set. Names the file once."""
    try:
        yield
    except DataError as problem:
        if file is None:
            raise
        raise DataError(_advice(one, file) for one in problem.errors) from problem


def _advice(one: Diagnostic, file: str) -> Diagnostic:
    message = one.message
    if one.location == file:
        message = message.removeprefix(f"{file} ").replace(f" in {file}", " in it")
        message = re.sub(rf"^{re.escape(file)}:(\d+):?", r"line \1", message)
    fix = one.fix.replace("remove such rows, or leave the split out with split: {train: ..., validation: ...}", REMOVE)
    if KEYS.search(fix) and "--set" not in fix:
        fix = f"{fix}: here as --set dataset.KEY=VALUE"
    return Diagnostic(location=one.location, message=message, fix=fix)
