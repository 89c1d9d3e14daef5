"""What a data file seems to hold: its task, its columns, its classes. Imports neither torch nor transformers."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_recipes.common.files import describe_special_file
from hf_recipes.common.text import first_line, nearest
from hf_recipes.data.chat_messages import list_of_text
from hf_recipes.data.first_columns import lacks_header, name_columns, problem_of
from hf_recipes.data.splits import CONLL_ENDINGS, EXTENSIONS
from hf_recipes.errors import DataError

ROWS, BYTES = 2_000, 2**22  # that are looked at
MOST_CLASSES = 100
LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "rating", "stars")
SCORES = ("score", "scores", "similarity", "value")
TEXTS = ("text", "sentence", "review", "content", "message", "body", "comment", "title", "question", "document")
TAGS = ("tags", "ner_tags", "labels", "pos_tags", "ner", "tag")
PAIRS = (
    ("prompt", "completion"), ("instruction", "output"), ("instruction", "response"), ("question", "answer"),
    ("prompt", "response"), ("query", "response"), ("input", "output"), ("user", "assistant"),
)  # fmt: skip
USUAL = {*LABELS, *SCORES, *TEXTS, *TAGS, *(name for pair in PAIRS for name in pair)}
CONLL = re.compile(r"\S+[ \t]+(?:.*[ \t])?(?:O|[BIESLU]-\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a file seems to be. `dataset`: the section that reads it; `why`: in words."""

    task: str | None
    dataset: Mapping[str, Any]
    why: str
    rows: int
    longest: int = 0  # bytes of the longest text looked at
    counts: Mapping[str, int] = field(default_factory=dict)  # of classes
    problem: str = ""  # model.problem_type, where a text has several labels or a score


def look(data: str, task: str | None = None) -> Seen:
    """What a file seems to hold; `task`: what its user wants of it. Raises DataError for a file that is not there,
    that cannot be read, or that cannot teach that task."""
    special = describe_special_file(data)
    if special:
        raise DataError.at(data, special, "name a data file")
    path = Path(data)
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", data):
            why = "a data set on the Hub, which is not read here"
            return Seen(task=None, dataset={"path": data}, why=why, rows=0)
        folder = path.parent
        near = nearest(path.name, os.listdir(folder)) if folder.is_dir() else ""
        fix = f"did you mean {str(folder / near)!r}?" if near else "paths are relative to the working directory"
        raise DataError.at(data, "no such file", fix)
    if path.is_dir():
        raise DataError.at(data, "is a folder", "name one data file")
    ending = path.name.lower().rpartition(".")[2]
    builder = EXTENSIONS.get(ending, "text" if ending in CONLL_ENDINGS else None)
    if builder is None:
        raise DataError.at(data, "is no data file that is known", f"the formats are {', '.join(EXTENSIONS)}, conll")
    tagged = ending in CONLL_ENDINGS or task == "token-classification"
    readers: dict[str, Callable[[Path], tuple[list[dict[str, Any]], dict[str, Any]]]] = {
        "csv": _read_csv,
        "json": _read_json,
        "parquet": _read_parquet,
        "text": _read_conll if tagged else _read_text,
    }
    try:
        rows, more = readers[builder](path)
    except UnicodeDecodeError:
        raise DataError.at(data, "is not UTF-8 text", "convert it to UTF-8") from None
    except (OSError, ValueError, csv.Error, RecursionError) as problem:
        shown = "CoNLL" if builder == "text" else builder
        raise DataError.at(data, f"cannot be read as {shown}: {first_line(problem)}", "check the file") from None
    if not rows:
        raise DataError.at(data, "there are no rows in it", "name a file with some")
    section: dict[str, Any] = {"path": builder, "data_files": {"train": data}, **more}
    found = _tell(rows, section)
    return found if task in (None, found.task) else _tell_of_task(rows, section, str(task), data)


def _read_csv(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(2**16)
        delimiter = max(",;\t|", key=(head.splitlines() or [""])[0].count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        rows = [dict(row) for _, row in zip(range(ROWS), reader, strict=False)]
        more: dict[str, Any] = {} if delimiter == "," else {"delimiter": delimiter}
        first = list(reader.fieldnames or ())
        if lacks_header(first, [[row.get(name) for name in first] for row in rows], USUAL):
            file.seek(0)
            cells = [row for _, row in zip(range(ROWS), csv.reader(file, delimiter=delimiter), strict=False) if row]
            more["column_names"] = name_columns(cells)
            rows = [dict(zip(more["column_names"], row, strict=False)) for row in cells]
    return rows, more


def _read_json(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        begin = file.read(1)
        file.seek(0)
        if begin == "[":
            rows = json.load(file)[:ROWS]
        else:
            rows = [json.loads(line) for _, line in zip(range(ROWS), file, strict=False) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row is no JSON object")
    return rows, {}


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(path).iter_batches(batch_size=ROWS)
    return next((batch.to_pylist() for batch in batches), []), {}


def _read_text(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        lines = file.read(BYTES).splitlines()
    words = [line for line in lines if line.strip()]
    if is_conll(lines):
        return _conll_rows(lines), {"format": "conll"}
    if any(not line.strip() for line in lines[:-1]):
        parts = "\n".join(lines).split("\n\n")
        return [{"text": part} for part in parts if part.strip()], {"sample_by": "paragraph"}
    return [{"text": line} for line in words], {}


def is_conll(lines: Sequence[str]) -> bool:
    """Whether lines are words with entity tags. Other kinds of tags look like sentences of one length."""
    words = [line for line in lines if line.strip()]
    return bool(words) and sum(bool(CONLL.fullmatch(line)) for line in words) > 0.9 * len(words)


def _read_conll(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        lines = file.read(BYTES).splitlines()
    single = (
        i for i, line in enumerate(lines, 1) if len(line.split()) == 1 and not line.startswith(("#", "-DOCSTART-"))
    )
    alone = next(single, None)
    if alone is not None:
        raise ValueError(f"line {alone} has one column only ({lines[alone - 1].strip()[:40]!r}): a word needs its tag")
    return _conll_rows(lines), {"format": "conll"}


def _conll_rows(lines: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
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


def _tell(rows: list[dict[str, Any]], section: dict[str, Any]) -> Seen:
    columns = list(rows[0])
    lists = [name for name in columns if isinstance(rows[0][name], list)]
    of_words = [name for name in lists if rows[0][name] and isinstance(rows[0][name][0], str)]
    talks = [name for name in lists if rows[0][name] and isinstance(rows[0][name][0], Mapping)]
    count: dict[str, Any] = {"rows": len(rows), "longest": _longest(rows)}
    if section.get("format") == "conll":
        return Seen(task="token-classification", dataset=section, why="CoNLL, a word and its tag a line", **count)
    if section["path"] == "text":
        return Seen(task="causal-lm", dataset=section, why="a text without labels", **count)
    for name in talks:
        if {"role", "content"} & set(rows[0][name][0]) or {"from", "value"} & set(rows[0][name][0]):
            named = {} if name in ("messages", "conversations") else {"messages_column": name}
            return Seen(task="chat", dataset={**section, **named}, why=f"conversations in {name!r}", **count)
    tags = _first(lists, TAGS)
    words = next((name for name in of_words if name != tags), None)
    if tags and words:
        named = {"tokens_column": words, "tags_column": tags}
        why = f"words in {words!r}, tags in {tags!r}"
        return Seen(task="token-classification", dataset={**section, **named}, why=why, **count)
    pair = _pair(columns)
    if pair:
        why = f"{pair[0]!r} is answered by {pair[1]!r}"
        return Seen(task="chat", dataset={**section, **_named_pair(*pair)}, why=why, **count)
    texts = [name for name in columns if all(isinstance(row.get(name), str) for row in rows[:50])]
    label = _target(rows, columns)
    text = _first([name for name in texts if name != label], TEXTS) or _longest_column(rows, texts, label)
    if label and text:
        named = {"text_column": text, "label_column": label}
        count |= _seen_labels(rows, text, label)
        return Seen(task="text-classification", dataset={**section, **named}, **count)
    if text and len(columns) == 1:
        named = {} if text == "text" else {"text_column": text}
        return Seen(task="causal-lm", dataset={**section, **named}, why="texts without labels", **count)
    return Seen(task=None, dataset=section, why=f"its columns are {', '.join(map(str, columns))}", **count)


def _tell_of_task(rows: list[dict[str, Any]], section: dict[str, Any], task: str, data: str) -> Seen:
    """For a task that the rows do not suggest: the columns that could serve it, by their kind and their order."""
    columns = list(rows[0])
    count: dict[str, Any] = {"rows": len(rows), "longest": _longest(rows)}
    texts = [name for name in columns if all(isinstance(row.get(name), str) for row in rows[:50])]
    label = _target(rows, columns)
    free = [name for name in texts if name != label] or texts
    text = _first(free, TEXTS) or _longest_column(rows, free, None)
    if task == "causal-lm" and text:
        named = {} if text == "text" else {"text_column": text}
        return Seen(task=task, dataset={**section, **named}, why=f"the texts in {text!r}", **count)
    if task == "text-classification" and text and len(columns) > 1:
        label = label or next(name for name in reversed(columns) if name != text)
        named = {"text_column": text, "label_column": label}
        return Seen(task=task, dataset={**section, **named}, **count, **_seen_labels(rows, text, label))
    if task == "chat" and len(texts) > 1:
        why = f"{texts[0]!r} is answered by {texts[1]!r}"
        return Seen(task=task, dataset={**section, **_named_pair(texts[0], texts[1])}, why=why, **count)
    needed = {"causal-lm": "a text", "text-classification": "a text and a class", "chat": "a prompt and an answer"}
    what = f"it has no columns with {needed.get(task, 'words and their tags')} (it has {', '.join(map(str, columns))})"
    raise DataError.at(data, what, "name another file, or another task with --task")


def _pair(columns: Sequence[str]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if set(pair) <= set(columns)), None)


def _named_pair(prompt: str, answer: str) -> dict[str, str]:
    """The keys that name a prompt and its answer; none where data/chat_rows.py knows the columns."""
    known = (prompt, answer) == ("prompt", "completion") or prompt == "instruction"
    return {} if known else {"prompt_column": prompt, "completion_column": answer}


def _seen_labels(rows: list[dict[str, Any]], text: str, label: str) -> dict[str, Any]:
    """`why`, `counts` and `problem` of texts with a class, several labels or a score."""
    values = [row.get(label) for row in rows]
    problem = problem_of(values)
    if problem == "regression":
        return {"why": f"a text in {text!r}, its score in {label!r}", "problem": problem}
    if problem:
        lists = [value if isinstance(value, list) else list_of_text(str(value)) or [] for value in values]
        names = [] if all(set(one) <= {0, 1} for one in lists) else [str(name) for one in lists for name in one]
        return {"why": f"a text in {text!r}, its labels in {label!r}", "problem": problem, "counts": _count(names)}
    return {"why": f"a text in {text!r}, its class in {label!r}", "counts": _count(map(str, values))}


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _first(columns: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for word in known for name in columns if str(name).lower() == word), None)


def _target(rows: list[dict[str, Any]], columns: Sequence[str]) -> str | None:
    """The column that a text is to be labelled with: a class, else lists of labels or scores under a usual name."""
    several = [name for name in columns if problem_of([row.get(name) for row in rows])]
    return _first(several, (*LABELS, *SCORES)) or _label(rows, columns)


def _label(rows: list[dict[str, Any]], columns: Sequence[str]) -> str | None:
    """A column of that name, else the only one of few values that repeat."""
    found = []
    for name in columns:
        values = [row.get(name) for row in rows]
        if not all(isinstance(value, str | int | bool) and len(str(value)) < 60 for value in values):
            continue
        kinds = len(set(values))
        if 2 <= kinds <= min(MOST_CLASSES, max(2, len(rows) // 2)):
            found.append(name)
    return _first(found, LABELS) or (found[0] if len(found) == 1 and len(columns) <= 3 else None)


def _longest_column(rows: list[dict[str, Any]], texts: Sequence[str], label: str | None) -> str | None:
    sizes = {name: sum(len(row[name]) for row in rows[:50]) for name in texts if name != label}
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _longest(rows: list[dict[str, Any]]) -> int:
    return max(len(json.dumps(row, ensure_ascii=False, default=str).encode()) for row in rows)
