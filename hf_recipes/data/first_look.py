"""What a data file seems to hold: its task, its columns, its classes. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_recipes.catalog.other_tools import PREFERENCE_COLUMNS
from hf_recipes.common.files import describe_special_file
from hf_recipes.common.text import nearest
from hf_recipes.data.chat_messages import list_of_text, messages_of
from hf_recipes.data.first_columns import describe_columns, name_all, problem_of
from hf_recipes.data.first_file import ONE_BYTE, OTHER_ENCODINGS, Rows, Section, read_first_rows
from hf_recipes.data.splits import EXTENSIONS
from hf_recipes.data.tag_schemes import is_prefixed
from hf_recipes.errors import DataError

MOST_CLASSES = 100
LABELS = (
    "label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "rating", "stars", "gold_label",
    "is_duplicate",
)  # fmt: skip
SCORES = ("score", "scores", "similarity", "value")
TEXTS = ("text", "sentence", "review", "content", "message", "body", "comment", "title", "question", "document")
TAGS = ("tags", "ner_tags", "labels", "pos_tags", "chunk_tags", "ner", "tag", "pos", "upos", "xpos")
IDS = ("id", "idx", "index", "uid", "guid", "qid1", "qid2", "unnamed: 0", "")
PAIRS = (
    ("prompt", "completion"), ("instruction", "output"), ("instruction", "response"), ("question", "answer"),
    ("prompt", "response"), ("query", "response"), ("input", "output"), ("user", "assistant"),
)  # fmt: skip
# Two texts with one label: the usual data of inference, paraphrases and relevance.
TEXT_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"),
    ("text_a", "text_b"), ("text", "text_pair"), ("question1", "question2"), ("question", "sentence"),
    ("query", "passage"), ("query", "document"), ("question", "passage"), ("title", "body"), ("title", "text"),
)  # fmt: skip
USUAL = {*LABELS, *SCORES, *TEXTS, *TAGS, *(name for pair in (*PAIRS, *TEXT_PAIRS) for name in pair)}
BESIDE = {"chat": ("system", "tools", "input", "context", "history")}  # columns that are read by their names


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a file seems to be. `dataset`: the section that reads it; `why`: in words."""

    task: str | None
    dataset: Mapping[str, Any]
    why: str
    rows: int
    longest: int = 0  # bytes of the longest text looked at
    size: int = 0  # bytes of all that was looked at
    counts: Mapping[str, int] = field(default_factory=dict)  # of classes
    problem: str = ""  # model.problem_type, where a text has several labels or a score
    metrics: tuple[str, ...] = ()  # where the task's own do not fit
    notes: tuple[str, ...] = ()  # what is not read, or will be refused


def look(data: str, task: str | None = None) -> Seen:
    """What a file seems to hold; `task`: what its user wants of it. Raises DataError for a file that is not there,
    that cannot be read, or that cannot teach that task."""
    path = _find(data)
    rows, section = read_first_rows(path, USUAL, tagged=task == "token-classification")
    section["data_files"] = {"train": data}
    preferences = [name for name in PREFERENCE_COLUMNS if name in rows[0]]
    if len(preferences) == 2 and not {"messages", "completion"} & set(rows[0]):
        what = f"has preferences ({' and '.join(preferences)}): methods for them are not offered here"
        raise DataError.at(data, what, "TRL has them: trl dpo --config FILE")
    if not any(rows):
        raise DataError.at(data, "its rows have no columns", "name another file")
    found = _tell(rows, section)
    found = found if task in (None, found.task) else _tell_of_task(rows, section, str(task), data)
    return replace(found, notes=(*_guessed_letters(rows, section), *found.notes))


def _guessed_letters(rows: Rows, section: Section) -> tuple[str, ...]:
    """A warning with some of the letters that a guessed encoding makes."""
    if section.get("encoding") not in ONE_BYTE:
        return ()
    texts = (str(part) for row in rows for pair in row.items() for part in pair)
    words = dict.fromkeys(word for text in texts for word in text.split() if not word.isascii())
    sample = ", ".join(list(words)[:5])
    what = f"warning: {section['encoding']} is a guess; it gives these words: {sample[:80]}"
    return (f"{what}; if they are wrong, write another in dataset.encoding ({OTHER_ENCODINGS})",)


def _find(data: str) -> Path:
    special = describe_special_file(data)
    if special:
        raise DataError.at(data, special, "name a data file")
    path = Path(data)
    if path.is_dir():
        raise DataError.at(data, "is a folder", "name one data file")
    if path.exists():
        return path
    folder = path.parent
    near = nearest(path.name, os.listdir(folder)) if folder.is_dir() else ""
    fix = f"did you mean {str(folder / near)!r}?" if near else "paths are relative to the working directory"
    known = path.name.lower().removesuffix(".gz").rpartition(".")[2] in EXTENSIONS
    if re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not known and not folder.is_dir():
        fix = f"of a data set on the Hub download a file first: hf download --repo-type dataset {data}"
    raise DataError.at(data, "no such file", fix)


def _tell(rows: Rows, section: Section) -> Seen:
    rows = [{name: messages_of(value) for name, value in row.items()} for row in rows]  # they may be JSON in a text
    columns = list(rows[0])
    lists = [name for name in columns if any(isinstance(row.get(name), list) for row in rows[:50])]
    first: dict[str, list[Any]] = {name: next((row[name] for row in rows if row.get(name)), []) for name in lists}
    of_words = [name for name in lists if first[name] and isinstance(first[name][0], str)]
    talks = [name for name in lists if first[name] and isinstance(first[name][0], Mapping)]
    talks = [name for name in talks if {"role", "from"} & set(first[name][0])]
    count = _sizes(rows)
    if section.get("format") == "conll":
        return _tagged(rows, section, "tokens", "tags", {}, "CoNLL, a word and its tag a line")
    if section["path"] == "text":
        return Seen(task="causal-lm", dataset=section, why="a text without labels", **count)
    if {"prompt", "completion"} <= set(talks):
        why = "conversations in 'prompt', answered by 'completion'"
        return Seen(task="chat", dataset=section, why=why, notes=_unread(columns, talks, "chat"), **count)
    for name in talks:
        named = {} if name in ("messages", "conversations") else {"messages_column": name}
        notes = _unread(columns, [name], "chat")
        why = f"conversations in {name!r}"
        return Seen(task="chat", dataset={**section, **named}, why=why, notes=notes, **count)
    tags = _first(lists, TAGS)
    words = next((name for name in of_words if name != tags), None)
    if tags and words:
        named = {"tokens_column": words, "tags_column": tags}
        return _tagged(rows, section, words, tags, named, f"words in {words!r}, tags in {tags!r}")
    texts = _texts(rows, columns)
    marked = next(
        (name for name in lists if isinstance((first[name] or [0])[0], Mapping) and "start" in first[name][0]), ""
    )
    if marked and texts:
        text = _first(texts, TEXTS) or texts[0]
        named = {} if text == "text" else {"text_column": text}
        named |= {} if marked == "entities" else {"entities_column": marked}
        notes, why = (
            _unread(columns, (text, marked), "token-classification"),
            f"texts in {text!r}, entities in {marked!r}",
        )
        return Seen(task="token-classification", dataset={**section, **named}, why=why, notes=notes, **count)
    label = _target(rows, columns)
    pair = _pair(texts)
    if pair:
        notes = _unread(columns, pair, "chat")
        why = f"{pair[0]!r} is answered by {pair[1]!r}"
        return Seen(task="chat", dataset={**section, **_named_pair(*pair)}, why=why, notes=notes, **count)
    found = _text_columns(rows, texts, label)
    if label and found:
        return _labelled(rows, section, found, label)
    if found and len(columns) == 1:
        named = {} if found[0] == "text" else {"text_column": found[0]}
        why = "texts without labels" + (f" in {found[0]!r}, the only column" if named else "")
        return Seen(task="causal-lm", dataset={**section, **named}, why=why, **count)
    return Seen(task=None, dataset=section, why=f"its columns are {name_all(columns)}", **count)


def _tell_of_task(rows: Rows, section: Section, task: str, data: str) -> Seen:
    """For a task that the rows do not suggest: the columns that could serve it, by their kind and their order."""
    columns = list(rows[0])
    count = _sizes(rows)
    texts = _texts(rows, columns)
    label = _target(rows, columns)
    if task == "text-classification":
        label = label or _only_label(rows, columns, texts, data)
    found = _text_columns(rows, texts, label) or (_text_columns(rows, texts, None) if task == "causal-lm" else ())
    if task == "causal-lm" and found:
        named = {} if found[0] == "text" else {"text_column": found[0]}
        notes = _unread(columns, found[:1], task)
        return Seen(task=task, dataset={**section, **named}, why=f"the texts in {found[0]!r}", notes=notes, **count)
    if task == "text-classification" and found and label:
        _refuse_no_classes(rows, label, data)
        return _labelled(rows, section, found, label)
    if task == "token-classification" and (both := _lists_of_one_length(rows, columns)):
        named = {"tokens_column": both[0], "tags_column": both[1]}
        return _tagged(rows, section, *both, named, f"words in {both[0]!r}, tags in {both[1]!r}")
    if task == "chat":
        texts = [name for name in texts if name not in BESIDE["chat"] and not _is_id(name)]
        others = [name for name in columns if name not in (*texts, *BESIDE["chat"]) and not _is_id(name)]
        if len(texts) > 2 or (texts and others):
            what = f"it is not clear which columns are the prompt and its answer (it has {describe_columns(rows)})"
            raise DataError.at(data, what, "call them prompt and completion in the file")
    if task == "chat" and len(texts) == 2:
        why = f"{texts[0]!r} is answered by {texts[1]!r}"
        named, notes = _named_pair(texts[0], texts[1]), _unread(columns, texts[:2], task)
        return Seen(task=task, dataset={**section, **named}, why=why, notes=notes, **count)
    needed = {"causal-lm": "a text", "text-classification": "a text and a class", "chat": "a prompt and an answer"}
    what = f"it has no columns with {needed.get(task, 'words and their tags')} (it has {describe_columns(rows)})"
    raise DataError.at(data, what, "name another file, or another task with --task")


def _only_label(rows: Rows, columns: Sequence[str], texts: Sequence[str], data: str) -> str | None:
    """The column that a user who wants classes means. Raises DataError where several could be it."""
    few = _of_few_values(rows, columns)
    if len(few) > 1:
        what = f"several columns could be the class: {name_all(few)}"
        fix = "call the one that is meant label; for several labels a row write a column labels with lists of them"
        raise DataError.at(data, what, fix)
    text = _text_columns(rows, texts, None)
    left = [name for name in columns if name not in text and not _is_id(name) and str(name).lower() not in TEXTS]
    return next(iter([*few, *left[::-1]]), None)


def _lists_of_one_length(rows: Rows, columns: Sequence[str]) -> tuple[str, str] | None:
    """(words, tags): the two columns of lists that are equally long in every row; the tags have fewer values."""
    lists = [name for name in columns if all(isinstance(row.get(name), list) for row in rows)]
    if len(lists) != 2 or not all(len(row[lists[0]]) == len(row[lists[1]]) for row in rows):
        return None
    kinds = {name: len({str(item) for row in rows for item in row[name]}) for name in lists}
    words, tags = sorted(lists, key=lambda name: -kinds[name])
    return (words, tags) if all(isinstance(item, str) for row in rows for item in row[words]) else None


def _is_id(name: Any) -> bool:
    return str(name).lower() in IDS


def _texts(rows: Rows, columns: Sequence[str]) -> list[str]:
    """Columns of texts, some of which may be missing."""
    found = []
    for name in columns:
        values = [row.get(name) for row in rows[:50]]
        if all(value is None or isinstance(value, str) for value in values) and any(values):
            found.append(name)
    return found


def _text_columns(rows: Rows, texts: Sequence[str], label: str | None) -> tuple[str, ...]:
    """The column of the text, or of both texts of a pair."""
    free = [name for name in texts if name != label]
    lower = {name.lower(): name for name in free}
    pair = next((pair for pair in TEXT_PAIRS if set(pair) <= set(lower)), None) if label else None
    if pair:
        return lower[pair[0]], lower[pair[1]]
    one = _first(free, TEXTS) or _longest_column(rows, free, label)
    return (one,) if one else ()


def _labelled(rows: Rows, section: Section, texts: Sequence[str], label: str) -> Seen:
    named = {
        "text_column": texts[0],
        **({"text_pair_column": texts[1]} if len(texts) > 1 else {}),
        "label_column": label,
    }
    notes = list(_unread(list(rows[0]), (*texts, label), "text-classification"))
    for name, what in (*((one, "text") for one in texts), (label, "label")):
        missing = [i for i, row in enumerate(rows) if _is_missing(row.get(name))]
        if missing:
            counted = f"{count_rows(len(missing))} {'has' if len(missing) == 1 else 'have'}"
            line = f"warning: {counted} no {what} in {name!r} (the first is row {missing[0]})"
            notes.append(f"{line}: a run refuses such rows; remove them")
    found = _seen_labels(rows, texts, label)
    if len(found.get("counts", ())) == 1 and not found.get("problem"):
        notes.append(f"warning: {label!r} has one value only in the rows looked at: there is nothing to learn from it")
    return Seen(task="text-classification", dataset={**section, **named}, notes=tuple(notes), **found, **_sizes(rows))


def _refuse_no_classes(rows: Rows, label: str, data: str) -> None:
    """Of a task that was asked for: texts or vectors are no classes."""
    values = [row.get(label) for row in rows if not _is_missing(row.get(label))]
    kinds, problem = len({str(value) for value in values}), problem_of(values)
    fix = "name another file, or another task with --task"
    if not problem and any(isinstance(value, list | Mapping) for value in values):
        raise DataError.at(data, f"the column {label!r} holds lists or objects, not classes", fix)
    if not problem and kinds > max(2, len(values) // 2):
        what = f"no column has classes: {label!r} has {kinds} values in {count_rows(len(values))}"
        raise DataError.at(data, what, fix)


def _tagged(rows: Rows, section: Section, words: str, tags: str, named: Mapping[str, str], why: str) -> Seen:
    values = sorted({str(tag) for row in rows for tag in row.get(tags) or ()})
    metrics: tuple[str, ...] = ()
    notes = _unread(list(rows[0]), (words, tags), "token-classification")
    if not all(map(is_prefixed, values)):
        metrics = ("accuracy",)
        odd = next(value for value in values if not is_prefixed(value))
        notes = (*notes, f"the tags have no prefixes such as B- ({odd!r}): words are scored, not entities")
    return Seen(
        task="token-classification", dataset={**section, **named}, why=why, metrics=metrics, notes=notes,
        **_sizes(rows),
    )  # fmt: skip


def _unread(columns: Sequence[str], read: Sequence[str], task: str) -> tuple[str, ...]:
    """A line on the columns that are not read."""
    left = [name for name in columns if name not in read and name not in BESIDE.get(task, ())]
    return (f"not read: {name_all(left)}",) if left else ()


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def count_rows(number: int) -> str:
    """ "1 row", "1,200 rows"."""
    return f"{number:,} row{'s' * (number != 1)}"


def _pair(columns: Sequence[str]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if set(pair) <= set(columns)), None)


def _named_pair(prompt: str, answer: str) -> dict[str, str]:
    """The keys that name a prompt and its answer; none where data/chat_rows.py knows the columns."""
    known = (prompt, answer) == ("prompt", "completion") or prompt == "instruction"
    return {} if known else {"prompt_column": prompt, "completion_column": answer}


def _seen_labels(rows: Rows, texts: Sequence[str], label: str) -> dict[str, Any]:
    """`why`, `counts` and `problem` of texts with a class, several labels or a score."""
    values = [row.get(label) for row in rows if not _is_missing(row.get(label))]
    text = f"a text in {texts[0]!r}" if len(texts) == 1 else f"two texts in {texts[0]!r} and {texts[1]!r}"
    problem = problem_of(values)
    if problem == "regression":
        return {"why": f"{text}, its score in {label!r}", "problem": problem}
    if problem:
        lists = [value if isinstance(value, list) else list_of_text(str(value)) or [] for value in values]
        names = [] if all(set(one) <= {0, 1} for one in lists) else [str(name) for one in lists for name in one]
        return {"why": f"{text}, its labels in {label!r}", "problem": problem, "counts": _count(names)}
    return {"why": f"{text}, its class in {label!r}", "counts": _count(map(str, values))}


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _first(columns: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for word in known for name in columns if str(name).lower() == word), None)


def _target(rows: Rows, columns: Sequence[str]) -> str | None:
    """The column that a text is to be labelled with: a class, else lists of labels or scores under a usual name."""
    several = [name for name in columns if problem_of([row.get(name) for row in rows])]
    return _first(several, (*LABELS, *SCORES)) or _label(rows, columns)


def _label(rows: Rows, columns: Sequence[str]) -> str | None:
    """A column of that name, else the only one of few values that repeat."""
    found = _of_few_values(rows, columns)
    return _first(found, LABELS) or (found[0] if len(found) == 1 and len(columns) <= 3 else None)


def _of_few_values(rows: Rows, columns: Sequence[str]) -> list[str]:
    found = []
    for name in columns:
        values = [row.get(name) for row in rows if not _is_missing(row.get(name))]
        if not values or not all(isinstance(value, str | int | bool) and len(str(value)) < 60 for value in values):
            continue
        kinds = len(set(values))
        if 2 <= kinds <= min(MOST_CLASSES, max(2, len(values) // 2)):
            found.append(name)
    return found


def _longest_column(rows: Rows, texts: Sequence[str], label: str | None) -> str | None:
    sizes = {name: sum(len(row.get(name) or "") for row in rows[:50]) for name in texts if name != label}
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _sizes(rows: Rows) -> dict[str, Any]:
    """`rows`, `longest` and `size`."""
    sizes = [len(json.dumps(row, ensure_ascii=False, default=str).encode()) for row in rows]
    return {"rows": len(rows), "longest": max(sizes), "size": sum(sizes)}
