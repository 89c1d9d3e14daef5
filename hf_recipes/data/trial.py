"""The data of a recipe, read as a run reads them and refused where a run refuses them, without a tokenizer.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes.data import chat_rows, token_classification
from hf_recipes.data.chat_messages import RowError
from hf_recipes.data.labels import choose_labels
from hf_recipes.data.row_origins import naming_rows_of_files
from hf_recipes.data.splits import Splits, find_column, find_text_column, load_splits
from hf_recipes.data.tagged_rows import read_lists_as_text, tagged_rows
from hf_recipes.data.targets import make_targets
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

BATCH = 1000


def try_data(recipe: Recipe) -> tuple[str, ...]:
    """Reads every row; returns notes on what was read. Raises DataError for the first row that a run refuses."""
    splits = load_splits(recipe)
    check = {
        "text-classification": _try_texts,
        "token-classification": _try_tags,
        "chat": _try_conversations,
        "causal-lm": _try_text,
    }
    with naming_rows_of_files(splits.origins):
        check[recipe.task](recipe, splits)
    return splits.notes


def _try_text(recipe: Recipe, splits: Splits) -> None:
    if recipe.get("dataset.input_ids_column") is None:
        name = find_text_column(recipe, splits.train, "text_column", "text")
        need, size = recipe.get("dataset.max_length"), 0
        for batch in splits.train.select_columns([name]).iter(BATCH):
            size += sum(len((text or "").encode()) for text in batch[name])
            if not isinstance(need, int) or size >= need:  # a token has a byte at least
                return
        what = f"the train split has {size} bytes of text, less than one block of {need} tokens"
        raise DataError.at(recipe.location("dataset.max_length"), what, "add text")


def _try_texts(recipe: Recipe, splits: Splits) -> None:
    texts = [find_text_column(recipe, splits.train, "text_column", "text")]
    if recipe.get("dataset.text_pair_column") is not None:
        texts.append(find_text_column(recipe, splits.train, "text_pair_column", "text_pair"))
    label = find_column(recipe, splits.train, "label_column", "label")
    parts, where = splits.by_name(), recipe.location("dataset.label_column")
    if recipe.get("model.problem_type") == "multi_label_classification":
        parts = {split: read_lists_as_text(part, label, split, where) for split, part in parts.items()}
    targets = make_targets(recipe, parts["train"], label, None)
    for split, part in parts.items():
        read, row = targets.reader(part, split), 0
        for batch in part.select_columns([*texts, label]).iter(BATCH):
            for value, *contents in zip(batch[label], *(batch[name] for name in texts), strict=True):
                read(value, row)
                for name, content in zip(texts, contents, strict=True):
                    if not (content or "").strip():
                        what = f"row {row} of the {split} split has no text in its column {name!r} ({content!r})"
                        raise DataError.at(recipe.location("dataset.text_column"), what, "remove such rows")
                row += 1


def _try_tags(recipe: Recipe, splits: Splits) -> None:
    read = tagged_rows(recipe, splits)
    tokens_at, tags_at = recipe.location("dataset.tokens_column"), recipe.location("dataset.tags_column")
    token_classification.check_kinds(read.splits.train, read.tokens, read.tags, tokens_at, tags_at)
    choose_labels(recipe, token_classification.data_tags(read.splits.train, read.tags), None, "tags_column", read.tags)
    for split, part in read.splits.by_name().items():
        for row, (words, tags) in enumerate(_values(part, read.tokens, read.tags)):
            token_classification.check_row(tokens_at, tags_at, f"row {row} of the {split} split", words, tags)


def _try_conversations(recipe: Recipe, splits: Splits) -> None:
    reader, location = chat_rows.choose_reader(recipe, splits.train), recipe.location("dataset")
    for split, part in splits.by_name().items():
        reader.check(recipe, part)
        answered = False
        for index, row in enumerate(reader.select(part)):
            try:
                found = reader.read(row)
            except RowError as problem:
                raise chat_rows.refuse_row(reader, part, split, index, problem, location) from problem
            answered = answered or isinstance(found, chat_rows.Pair) or _has_answer(found)
        if not answered:
            what = f"no row of the {split} split has an answer: no message has the role 'assistant', or all are empty"
            raise DataError.at(location, what, "check the roles, or name the columns")


def _has_answer(found: Any) -> bool:
    return any(one.get("role") == "assistant" and one.get("content") for one in found.messages)


def _values(part: Dataset, *columns: str) -> Any:
    for batch in part.select_columns(list(columns)).iter(BATCH):
        yield from zip(*(batch[name] for name in columns), strict=True)
