"""Rows of tagged words, made of what people have: lists written as text, or a text with the positions of its entities.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_recipes.data.splits import Splits, find_column, find_text_column
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

TOKENS, TAGS = "tokens", "tags"
# A word, a sign, or one letter of a script that writes no blanks (Chinese, Japanese, Thai, ...).
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
# Names of the parts of an entity in the usual tools.
START, END = ("start", "start_offset", "begin"), ("end", "end_offset", "stop")
LABEL = ("label", "type", "tag", "entity", "entity_group", "entity_type", "name")
OF_ENTITIES = "read as words with IOB2 tags"  # in the notes of a run
NUMPY_LIST = re.compile(r"""\[(\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"\[\]]+))*\s*\]""")
NUMPY_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"\[\]]+""")


@dataclass(frozen=True, kw_only=True)
class TaggedRows:
    """Splits whose rows are a list of words and a list of tags, and the names of both columns."""

    splits: Splits
    tokens: str
    tags: str
    notes: tuple[str, ...] = ()


def tagged_rows(recipe: Recipe, splits: Splits) -> TaggedRows:
    """Raises DataError for columns that are missing, and for rows that are neither lists nor text with entities."""
    columns = splits.train.column_names
    tokens_key = recipe.get("dataset.tokens_column", TOKENS)
    entities_key = recipe.get("dataset.entities_column", "entities")
    if recipe.get("dataset.entities_column") is not None or (tokens_key not in columns and entities_key in columns):
        return _of_entities(recipe, splits)
    if tokens_key not in columns and columns == ["text"] and recipe.get("dataset.path") == "text":
        what = "each row is one line of text, and token-classification needs words with tags"
        raise DataError.at(recipe.location("dataset.path"), what, "for CoNLL files write format: conll")
    tokens = find_column(recipe, splits.train, "tokens_column", TOKENS)
    tags = find_column(recipe, splits.train, "tags_column", TAGS)
    locations = {tokens: recipe.location("dataset.tokens_column"), tags: recipe.location("dataset.tags_column")}

    def read(part: Dataset, split: str) -> Dataset:
        for name in (tokens, tags):
            part = read_lists_as_text(part, name, split, locations[name])
        return part

    return TaggedRows(splits=_each(splits, read), tokens=tokens, tags=tags)


def _each(splits: Splits, change: Any) -> Splits:
    test = None if splits.test is None else change(splits.test, "test")
    return replace(splits, train=change(splits.train, "train"), validation=change(splits.validation, "eval"), test=test)


# lists that are written as text ---------------------------------------------------------------------------------------


def read_lists_as_text(part: Dataset, name: str, split: str, location: str) -> Dataset:
    """The split with lists in a column that holds them as text, as CSV files do; every other split as it is. Raises
    DataError for a row whose text is no list."""
    if name in part.column_names and _holds_lists_as_text(part, name):
        return _read_lists(part, name, split, location)
    return part


def _holds_lists_as_text(part: Dataset, name: str) -> bool:
    if getattr(part.features[name], "dtype", "") not in ("string", "large_string"):
        return False
    first = next((one for one in part.select(range(min(part.num_rows, 100)))[name] if one), "")
    return first.strip().startswith("[")


def _read_lists(part: Dataset, name: str, split: str, location: str) -> Dataset:
    def convert(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        found = []
        for row, text in zip(rows, batch[name], strict=True):
            items = read_list(text) if text else []
            if items is None:
                what = (
                    f"row {row} of the {split} split has a text that is no list in the column {name!r}: {text[:60]!r}"
                )
                raise DataError.at(location, what, 'write lists as JSON: ["EU", "rejects"]')
            found.append(items)
        texts = not all(isinstance(item, int) for items in found for item in items)
        return {name: [[str(item) for item in items] if texts else items for items in found]}

    return part.map(convert, batched=True, batch_size=part.num_rows, with_indices=True, desc=f"{split} lists")


def read_list(text: str) -> list[Any] | None:
    """A list as JSON, Python or NumPy (no commas) writes it; None for another text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
        return found if isinstance(found, list) else None
    except ValueError:
        pass
    if NUMPY_LIST.fullmatch(text):  # before Python, which joins 'a' 'b' to 'ab'
        return [_item(one) for one in NUMPY_ITEM.findall(text)]
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _item(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# texts with the positions of their entities ---------------------------------------------------------------------------


def _of_entities(recipe: Recipe, splits: Splits) -> TaggedRows:
    text = find_text_column(recipe, splits.train, "text_column", "text")
    column = find_column(recipe, splits.train, "entities_column", "entities")
    location = recipe.location("dataset.entities_column")

    def convert_split(part: Dataset, split: str) -> Dataset:
        from datasets import Features, List, Value

        find_text_column(recipe, part, "text_column", "text")
        find_column(recipe, part, "entities_column", "entities")

        def convert(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
            found: dict[str, list] = {TOKENS: [], TAGS: []}
            for row, content, entities in zip(rows, batch[text], batch[column], strict=True):
                name = f"row {row} of the {split} split"
                words, tags = tag_words(content or "", _entities(entities, location, name), location, name)
                found[TOKENS].append(words)
                found[TAGS].append(tags)
            return found

        features = Features({TOKENS: List(Value("string")), TAGS: List(Value("string"))})
        return part.map(
            convert, batched=True, with_indices=True, remove_columns=part.column_names, features=features,
            desc=f"{split} entities",
        )  # fmt: skip

    note = f"{text}, {column}: {OF_ENTITIES}; an entity ends a word where it begins or ends inside one"
    return TaggedRows(splits=_each(splits, convert_split), tokens=TOKENS, tags=TAGS, notes=(note,))


def _entities(given: Any, location: str, name: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, label) of each entity, whatever a tool calls them."""
    if isinstance(given, str):
        given = read_list(given)
    if isinstance(given, Mapping):  # datasets makes a mapping of lists of a list of mappings
        keys = list(given)
        given = [dict(zip(keys, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if not isinstance(given, list | tuple) and given is not None:
        what = f"{name} has {given!r} where a list of entities is expected"
        raise DataError.at(location, what, "write a list of {start, end, label}")
    found: list[Any]
    for one in given or ():
        if isinstance(one, Mapping):
            found = [next((one[key] for key in keys if one.get(key) is not None), None) for keys in (START, END, LABEL)]
        else:
            found = list(one) if isinstance(one, list | tuple) else []
        if len(found) != 3 or None in found:
            what = f"{name} has the entity {one!r}"
            raise DataError.at(location, what, "each needs start, end (after its last character) and label")
        try:
            yield int(found[0]), int(found[1]), str(found[2])
        except (TypeError, ValueError):
            what = f"{name} has the entity {one!r}, whose start and end are not integers"
            raise DataError.at(location, what, "count characters from 0") from None


def tag_words(
    text: str, entities: Iterator[tuple[int, int, str]], location: str = "", name: str = "the row"
) -> tuple[list[str], list[str]]:
    """Words and IOB2 tags of a text; entities are (start, end, label) in characters, the end not included.

    Raises DataError for an entity outside the text or without a word, and for two that overlap.
    """
    ordered, before = sorted(entities), None
    for start, end, label in ordered:
        if not 0 <= start < end <= len(text):
            what = f"{name} has an entity {label} from {start} to {end}, and its text {len(text)} characters"
            raise DataError.at(location, what, "count characters from 0; the end is not included")
        if before is not None and start < before[1]:
            what = f"{name} has entities that overlap: {_quote(text, before)} and {_quote(text, (start, end, label))}"
            raise DataError.at(location, what, "keep one of them: a word has one tag")
        before = (start, end, label)
    words, tags, rest = [], [], list(ordered)
    opened = None
    for begin, stop in _pieces(text, sorted({place for start, end, _ in ordered for place in (start, end)})):
        while rest and rest[0][1] <= begin:
            if opened is not rest[0]:
                what = f"{name} has an entity {_quote(text, rest[0])} that holds no word"
                raise DataError.at(location, what, "remove it")
            rest.pop(0)
        inside = rest[0] if rest and rest[0][0] <= begin else None
        words.append(text[begin:stop])
        tags.append("O" if inside is None else f"{'I' if inside is opened else 'B'}-{inside[2]}")
        opened = inside if inside is not None else opened
    left = [one for one in rest if one is not opened]
    if left:
        what = f"{name} has an entity {_quote(text, left[0])} that holds no word"
        raise DataError.at(location, what, "remove it")
    return words, tags


def _pieces(text: str, cuts: list[int]) -> Iterator[tuple[int, int]]:
    """Words as (begin, end), cut where an entity begins or ends."""
    for match in WORD.finditer(text):
        begin, stop = match.span()
        for cut in cuts:
            if begin < cut < stop:
                yield begin, cut
                begin = cut
        yield begin, stop


def _quote(text: str, entity: tuple[int, int, str]) -> str:
    start, end, label = entity
    return f"{label} {text[start:end]!r} ({start} to {end})"
