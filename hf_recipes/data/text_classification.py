"""text-classification: one text, one label. Macro F1 and accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.data import splits as data
from hf_recipes.data.prepared import Prepared
from hf_recipes.data.row_ids import row_ids
from hf_recipes.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

MOST_LABELS = 10_000  # more are no classes, but texts or ids: the head alone would have millions of weights


def prepare(splits: data.Splits, tokenizer: Any, recipe: Recipe, max_length: int) -> Prepared:
    """Rows (text, label) to (input_ids, attention_mask, labels: int), cut to `max_length` tokens.

    The label set is the train split's (a ClassLabel's names, or the sorted distinct values). Raises RecipeError for
    an empty text, a missing label, or a label outside that set, with the split and the first row.
    """
    from transformers import DataCollatorWithPadding

    parts = splits.by_name()
    text = data.text_column(recipe, splits.train, "text_column", "text")
    label = data.column(recipe, splits.train, "label_column", "label")
    where_text, where_label = recipe.location("dataset.text_column"), recipe.location("dataset.label_column")
    names = label_names(splits.train, label, where_label)
    index = {name: i for i, name in enumerate(names)}

    # What `encode` holds decides whether upstream's cache knows its rows again: no recipe (another learning rate
    # would tokenize anew), but our version.
    def rows(split: str, part: Dataset) -> Dataset:
        data.text_column(recipe, part, "text_column", "text")
        data.column(recipe, part, "label_column", "label")
        own_names = getattr(part.features[label], "names", None)

        def encode(batch: dict[str, list], rows: list[int], version: str = __version__) -> dict[str, list]:
            ids = [label_id(value, index, own_names) for value in batch[label]]
            encoded = tokenizer(
                [words or "" for words in batch[text]], truncation=True, max_length=max_length, verbose=False
            )
            for row, value, chosen, words, tokens in zip(
                rows, batch[label], ids, batch[text], encoded["input_ids"], strict=True
            ):
                if chosen is None:
                    raise _outside(where_label, split, row, value, names)
                if not words or not words.strip():
                    what = f"row {row} of the {split} split has no text ({words!r})"
                    raise RecipeError.at(where_text, what, "remove such rows")
                if not tokens:
                    raise RecipeError.at(
                        where_text, f"row {row} of the {split} split gives no token ({words!r})", "remove it"
                    )
            full = [len(tokens) == max_length for tokens in encoded["input_ids"]]  # only these can have been cut
            cut = [
                long and len(tokenizer(words, verbose=False)["input_ids"]) > max_length
                for long, words in zip(full, batch[text], strict=True)
            ]
            return {**encoded, "labels": ids, "cut": cut}

        return part.map(encode, batched=True, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part) for split, part in encoded.items()}
    notes = tuple(
        f"{split}: {counts['cut_rows']} of {counts['rows']} texts are cut at {max_length} tokens"
        for split, counts in stats.items()
        if counts["cut_rows"]
    )
    kept = {split: part.remove_columns("cut") for split, part in encoded.items()}
    return Prepared(
        train=kept.pop("train"),
        evals=kept,
        collator=DataCollatorWithPadding(tokenizer),
        config={
            "problem_type": "single_label_classification",
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": index,
        },
        label_names=names,
        stats=stats,
        ids={split: row_ids(parts[split], [text, label]) for split in kept},
        row_bytes={},
        sources={split: (part, [text, label]) for split, part in parts.items()},
        notes=notes,
    )


def label_names(train: Dataset, label: str, where: str) -> tuple[str, ...]:
    """A ClassLabel's names, else the sorted distinct values of the train split as text.

    Raises RecipeError for labels that are lists or records, and for fewer than two of them.
    """
    from datasets import Value

    feature = train.features[label]
    if getattr(feature, "names", None):
        return tuple(feature.names)
    if not isinstance(feature, Value):  # a list, a record, or Json: numbers and texts in one column
        what = f"the column {label!r} holds {type(feature).__name__}, not one label a row"
        raise RecipeError.at(where, what, "name another with dataset.label_column")
    values = sorted((v for v in train.unique(label) if v is not None), key=lambda v: (isinstance(v, str), v))
    names = tuple(map(str, values))
    if len(names) < 2:
        found = f"one label only ({names[0]!r})" if names else "no label at all"
        raise RecipeError.at(where, f"the train split has {found}", "a classifier needs two")
    if len(names) > MOST_LABELS:
        what = f"the column {label!r} has {len(names)} distinct values: these are no labels"
        raise RecipeError.at(where, what, "name another with dataset.label_column")
    return names


def label_id(value: Any, index: dict[str, int], own_names: list[str] | None) -> int | None:
    """A label's number, None if it is outside the set. `own_names`: a ClassLabel's, of the split the label is from."""
    if own_names is not None and isinstance(value, int):
        return index.get(own_names[value]) if 0 <= value < len(own_names) else None
    return index.get(str(value)) if value is not None else None


def _outside(where: str, split: str, row: int, value: Any, names: tuple[str, ...]) -> RecipeError:
    if value is None or value == -1:  # -1: published test sets whose labels are kept secret
        what = f"row {row} of the {split} split has no label ({value!r})"
        return RecipeError.at(
            where, what, "remove such rows, or leave the split out with split: {train: ..., validation: ...}"
        )
    what = f"row {row} of the {split} split has the label {value!r}, outside the train split's set"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return RecipeError.at(where, what, f"the labels are {shown}")


def _counts(part: Dataset) -> dict[str, int]:
    lengths = [len(ids) for ids in part["input_ids"]]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "cut_rows": sum(part["cut"]),
    }
