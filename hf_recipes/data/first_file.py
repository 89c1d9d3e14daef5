"""The first rows of a data file and the keys of `dataset` that read it: encoding, delimiter, header, `field`, format.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.common.text import join_words
from hf_recipes.data.files import find_damage, find_other_format, guess_encoding, open_file
from hf_recipes.data.first_columns import lacks_header, name_columns
from hf_recipes.data.json_files import AS_LINES, LISTED, find_bad_line
from hf_recipes.data.splits import CONLL_ENDINGS, EXTENSIONS
from hf_recipes.errors import DataError

ONE_BYTE = ("cp1252", "latin-1")  # every byte is a letter of these, so a guess of them never fails
OTHER_SCRIPT = 0.5
OTHER_ENCODINGS = "cp1251: Cyrillic, gbk: Chinese, shift_jis: Japanese"
ROWS, BYTES = 2_000, 2**22  # that are looked at
LINES = 50  # that a rare delimiter must divide
TEXTS = LISTED - {"prompt", "completion"}  # those two may be lists of messages
CONLL = re.compile(r"\S+[ \t]+(?:.*[ \t])?(?:O|[BIESLU]-\S+)\s*")
SPLITS = ("train", "training", "data", "rows", "examples")  # the usual names of what is below one JSON object

Rows = list[dict[str, Any]]
Section = dict[str, Any]  # of the recipe


def read_first_rows(path: Path, usual: set[str], *, tagged: bool) -> tuple[Rows, Section]:
    """(the first rows, the `dataset` section that reads the file). `usual`: names of columns; `tagged`: the user says
    that a text file has a word and its tag a line. Raises DataError for a file that cannot be read."""
    name = path.name.lower().removesuffix(".gz")
    ending = name.rpartition(".")[2]
    builder = EXTENSIONS.get(ending, "text" if ending in CONLL_ENDINGS else None)
    if builder is None:
        if other := find_other_format(str(path), ""):
            raise DataError.at(str(path), *other)
        what = "is no data file that is known"
        raise DataError.at(str(path), what, f"the formats are {', '.join(EXTENSIONS)}, conll")
    for problem in (find_damage(str(path)), find_other_format(str(path), builder)):
        if isinstance(problem, tuple):
            raise DataError.at(str(path), *problem)
        if problem:
            raise DataError.at(str(path), f"cannot be read: {problem}", "copy or download it again")
    tagged = tagged or ending in CONLL_ENDINGS
    readers: dict[str, Callable[[Path], tuple[Rows, Section]]] = {
        "csv": lambda path: _read_csv(path, usual),
        "json": _read_json,
        "parquet": _read_parquet,
        "text": _read_conll if tagged else _read_text,
    }
    try:
        rows, more = readers[builder](path)
    except UnicodeDecodeError:
        raise DataError.at(str(path), "is not UTF-8 text", "convert it to UTF-8") from None
    except (OSError, ValueError, csv.Error, RecursionError) as problem:
        raise DataError.at(str(path), *_describe(problem, builder, str(path))) from None
    if not rows:
        raise DataError.at(str(path), "there are no rows in it", "name a file with some")
    return rows, {"path": builder, "data_files": {"train": str(path)}, **more}


def _describe(problem: Exception, builder: str, name: str) -> tuple[str, str]:
    bad = find_bad_line(name) if isinstance(problem, json.JSONDecodeError) else None
    if bad:
        return f"cannot be read as json: line {bad.removeprefix(name + ':')}", "fix that line, or remove it"
    text, _, fix = str(problem).partition("; ")
    shown = "CoNLL" if builder == "text" else builder
    return f"cannot be read as {shown}: {text.splitlines()[0] if text else type(problem).__name__}", fix or "check it"


def _read_begin(path: Path, most: int = BYTES) -> tuple[str, Section]:
    """(the text at the file's beginning, in complete lines, and its encoding as a key where it is not UTF-8)."""
    with open_file(str(path)) as content:
        data = content.read(most)
    if len(data) == most and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
    try:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        return decoder.decode(data, final=len(data) < most), {}
    except UnicodeDecodeError:
        encoding = guess_encoding(str(path))
        if encoding in ONE_BYTE and _is_other_script(data):
            what = "it is not UTF-8, and its bytes do not show which encoding it is"
            fix = f"convert it from the one that it has: iconv -f cp1251 -t utf-8 {path} > FILE ({OTHER_ENCODINGS})"
            raise ValueError(f"{what}; {fix}") from None
        return data.decode(encoding, errors="ignore").removeprefix("\ufeff"), {"encoding": encoding}


def _is_other_script(data: bytes) -> bool:
    """Whether most letters are outside ASCII: of a language of Latin letters few are."""
    outside = sum(byte >= 0x80 for byte in data)
    return outside > OTHER_SCRIPT * (outside + sum(bytes([byte]).isalpha() for byte in data))


def _read_csv(path: Path, usual: set[str]) -> tuple[Rows, Section]:
    text, more = _read_begin(path)
    lines = [line for line in text.splitlines()[:LINES] if line]
    delimiter = max(",;\t|", key=(lines or [""])[0].count)
    if lines and delimiter not in lines[0]:  # a rarer one divides all lines in the same way
        rare = (mark for mark in "^~:" if len({line.count(mark) for line in lines}) == 1 and mark in lines[0])
        delimiter = next(rare, ",")
    more |= {} if delimiter == "," else {"delimiter": delimiter}
    limit = csv.field_size_limit(2**31 - 1)  # a document is longer than the 128 KB of Python's default
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        cells = [(reader.line_num, row) for _, row in zip(range(ROWS + 1), reader, strict=False) if row]
    finally:
        csv.field_size_limit(limit)
    if not cells:
        return [], more
    first = cells[0][1]
    if lacks_header(first, [(row + [""] * len(first))[: len(first)] for _, row in cells[1:]], usual):
        more["column_names"] = names = name_columns([row for _, row in cells])
    else:
        names, cells = first, cells[1:]
    wide = next((line for line, row in cells if len(row) > len(names)), None)
    if wide is not None:
        what = f"line {wide} has more fields than the {len(names)} column{'s' * (len(names) != 1)} ({', '.join(names)})"
        if names[0].startswith("#"):
            raise ValueError(f"{what}; remove the comments above the line with the names of the columns")
        raise ValueError(f"{what}; put texts that hold {delimiter!r} into quotes")
    return [dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=True)) for _, row in cells], more


def _read_json(path: Path) -> tuple[Rows, Section]:
    text, more = _read_begin(path)
    if str(more.get("encoding", "")).startswith("utf-16"):  # `datasets` cuts its bytes at line ends
        fix = f"convert it: iconv -f {more['encoding']} -t utf-8 {path} > FILE"
        raise ValueError(f"it is {more['encoding']}, of which JSON is not read here; {fix}")
    document = _whole_document(path, text, str(more.get("encoding", "utf-8-sig")))
    if document is not None and "encoding" in more:  # 5.2 json.py:190 reads it as UTF-8 before the encoding is used
        fix = f"convert it: iconv -f {more['encoding']} -t utf-8 {path} > FILE"
        raise ValueError(f"it is {more['encoding']}, and a file that is one JSON document is read as UTF-8 only; {fix}")
    if isinstance(document, Mapping):
        rows, key = _rows_below(document)
        more |= {"field": key} if key else {}
    elif document is not None:
        rows = document
    else:
        rows = [json.loads(line) for line in text.splitlines()[:ROWS] if line.strip()]
        if len(rows) == 1 and isinstance(rows[0], dict) and any(isinstance(rows[0].get(one), list) for one in TEXTS):
            raise ValueError(f"it holds one object of columns, each a list; {AS_LINES}")
    if not all(isinstance(row, dict) for row in rows[:ROWS]):
        raise ValueError("a row is not a JSON object; write each row as an object with its columns")
    return rows[:ROWS], more


def _whole_document(path: Path, begin: str, encoding: str) -> Any:
    """The file's one list or one object of rows; None where it has an object a line."""
    if begin.lstrip()[:1] not in ("[", "{"):
        return None
    first, _, others = begin.lstrip().partition("\n")
    if first.startswith("{"):
        try:
            row = json.loads(first)
        except ValueError:
            row = None
        rows_below = isinstance(row, dict) and not others.strip() and _lists_of_rows(row)
        if row is not None and not rows_below:
            return None
        if row is None and not re.match(r'\{\s*(["}]|$)', first):
            return None
    with open_file(str(path)) as content:
        whole = content.read().decode(encoding)
    try:
        return json.loads(whole)
    except json.JSONDecodeError:
        if find_bad_line(str(path)) is None:  # each line is JSON by itself
            return None
        raise


def _lists_of_rows(document: Mapping[str, Any]) -> list[str]:
    found = [key for key, value in document.items() if isinstance(value, list) and value]
    talks = {"role", "content", "from", "value"}  # one conversation is no list of rows
    return [key for key in found if all(isinstance(row, dict) and not talks & set(row) for row in document[key])]


def _rows_below(document: Mapping[str, Any]) -> tuple[Rows, str]:
    keys = _lists_of_rows(document)
    if keys:
        usual = [key for name in SPLITS for key in keys if key.lower() == name]
        key = usual[0] if usual else max(keys, key=lambda one: len(document[one]))
        return list(document[key]), key
    lists = [key for key, value in document.items() if isinstance(value, list | Mapping)]
    if lists:
        raise ValueError(f"it holds one object of columns or names ({join_words(lists[:4])}), not rows; {AS_LINES}")
    return [dict(document)], ""


def _read_parquet(path: Path) -> tuple[Rows, Section]:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(path).iter_batches(batch_size=ROWS)
    return next((batch.to_pylist() for batch in batches), []), {}


def _read_text(path: Path) -> tuple[Rows, Section]:
    text, more = _read_begin(path)
    lines = text.splitlines()
    words = [line for line in lines if line.strip()]
    if is_conll(lines):
        return _conll_rows(lines), {"format": "conll", **more}
    if any(not line.strip() for line in lines[:-1]):
        parts = "\n".join(lines).split("\n\n")
        return [{"text": part} for part in parts if part.strip()], {"sample_by": "paragraph", **more}
    return [{"text": line} for line in words], more


def is_conll(lines: Sequence[str]) -> bool:
    """Whether lines are words with entity tags. Other kinds of tags look like sentences of one length."""
    words = [line for line in lines if line.strip()]
    return bool(words) and sum(bool(CONLL.fullmatch(line)) for line in words) > 0.9 * len(words)


def _read_conll(path: Path) -> tuple[Rows, Section]:
    text, more = _read_begin(path)
    lines = text.splitlines()
    single = (
        i for i, line in enumerate(lines, 1) if len(line.split()) == 1 and not line.startswith(("#", "-DOCSTART-"))
    )
    alone = next(single, None)
    if alone is not None:
        raise ValueError(f"line {alone} has one column only ({lines[alone - 1].strip()[:40]!r}): a word needs its tag")
    return _conll_rows(lines), {"format": "conll", **more}


def _conll_rows(lines: Sequence[str]) -> Rows:
    rows: Rows = []
    tokens: list[str] = []
    tags: list[str] = []
    for line in (*lines, ""):
        parts = line.split()
        if parts and not parts[0].startswith("-DOCSTART-"):
            tokens.append(parts[0])
            tags.append(parts[-1])
        elif tokens:
            rows.append({"tokens": tokens, "tags": tags})
            tokens, tags = [], []
    return rows
