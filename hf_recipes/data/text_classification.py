"""text-classification: one text, one label. Macro F1 and accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits, find_column, find_text_column
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

MOST_LABELS = 10_000  # more are texts or ids, not classes: the head would have millions of weights


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int) -> Prepared:
    """Rows (text, label) to (input_ids, attention_mask, labels: int), cut to `max_length` tokens.

    The label set is the train split's (a ClassLabel's names, or the sorted distinct values). Raises DataError for
    an empty text, a missing label, or a label outside that set, with the split and the first row.
    """
    from transformers import DataCollatorWithPadding

    parts = splits.by_name()
    text = find_text_column(recipe, splits.train, "text_column", "text")
    label = find_column(recipe, splits.train, "label_column", "label")
    text_location, label_location = recipe.location("dataset.text_column"), recipe.location("dataset.label_column")
    names = label_names(splits.train, label, label_location)
    index = {name: i for i, name in enumerate(names)}

    # upstream's cache finds its rows by what `encode` closes over: not the recipe (another learning rate would
    # tokenize again), but our version.
    def rows(split: str, part: Dataset) -> Dataset:
        find_text_column(recipe, part, "text_column", "text")
        find_column(recipe, part, "label_column", "label")
        own_names = getattr(part.features[label], "names", None)

        def encode(batch: dict[str, list], rows: list[int], version: str = __version__) -> dict[str, list]:
            ids = [label_id(value, index, own_names) for value in batch[label]]
            encoded = tokenizer(
                [one or "" for one in batch[text]], truncation=True, max_length=max_length, verbose=False
            )
            for row, value, chosen, content, tokens in zip(
                rows, batch[label], ids, batch[text], encoded["input_ids"], strict=True
            ):
                if chosen is None:
                    raise _outside(label_location, split, row, value, names)
                if not content or not content.strip():
                    what = f"row {row} of the {split} split has no text ({content!r})"
                    raise DataError.at(text_location, what, "remove such rows")
                if not tokens:
                    raise DataError.at(
                        text_location, f"row {row} of the {split} split gives no tokens ({content!r})", "remove it"
                    )
            full = [len(tokens) == max_length for tokens in encoded["input_ids"]]  # only these can have been cut
            cut = [
                long and len(tokenizer(content, verbose=False)["input_ids"]) > max_length
                for long, content in zip(full, batch[text], strict=True)
            ]
            return {**encoded, "labels": ids, "cut": cut}

        return part.map(encode, batched=True, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part) for split, part in encoded.items()}
    notes = tuple(
        f"{split}: {counts.cut_rows} of {counts.rows} texts are cut at {max_length} tokens"
        for split, counts in stats.items()
        if counts.cut_rows
    )
    ready = {split: part.remove_columns("cut") for split, part in encoded.items()}
    return Prepared(
        train=ready.pop("train"),
        evals=ready,
        collator=DataCollatorWithPadding(tokenizer),
        config={
            "problem_type": "single_label_classification",
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": index,
        },
        label_names=names,
        stats=stats,
        ids={split: row_ids(parts[split], [text, label]) for split in ready},
        row_bytes={},
        sources={split: Source(rows=part, columns=(text, label)) for split, part in parts.items()},
        notes=notes,
    )


def label_names(train: Dataset, label: str, location: str) -> tuple[str, ...]:
    """A ClassLabel's names, else the sorted distinct values of the train split as text.

    Raises DataError for labels that are lists or records, and for fewer than two of them.
    """
    from datasets import Value

    feature = train.features[label]
    if getattr(feature, "names", None):
        return tuple(feature.names)
    if not isinstance(feature, Value):  # a list, a record, or Json: numbers and texts in one column
        what = f"the column {label!r} holds {type(feature).__name__}, not one label a row"
        raise DataError.at(location, what, "name another with dataset.label_column")
    values = sorted((v for v in train.unique(label) if v is not None), key=lambda v: (isinstance(v, str), v))
    names = tuple(map(str, values))
    if len(names) < 2:
        found = f"one label only ({names[0]!r})" if names else "no label at all"
        raise DataError.at(location, f"the train split has {found}", "a classifier needs at least two")
    if len(names) > MOST_LABELS:
        what = f"the column {label!r} has {len(names)} distinct values: these are not labels"
        raise DataError.at(location, what, "name another with dataset.label_column")
    return names


def label_id(value: Any, index: dict[str, int], own_names: list[str] | None) -> int | None:
    """A label's number, None if it is outside the set. `own_names`: a ClassLabel's, of the split the label is from."""
    if own_names is not None and isinstance(value, int):
        return index.get(own_names[value]) if 0 <= value < len(own_names) else None
    return index.get(str(value)) if value is not None else None


def _outside(location: str, split: str, row: int, value: Any, names: tuple[str, ...]) -> DataError:
    if value is None or value == -1:  # -1: published test sets with hidden labels
        what = f"row {row} of the {split} split has no label ({value!r})"
        return DataError.at(
            location, what, "remove such rows, or leave the split out with split: {train: ..., validation: ...}"
        )
    what = f"row {row} of the {split} split has the label {value!r}, outside the train split's set"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return DataError.at(location, what, f"the labels are {shown}")


def _counts(part: Dataset) -> SplitStats:
    lengths = [len(ids) for ids in part["input_ids"]]
    return SplitStats(rows=len(lengths), tokens=sum(lengths), longest=max(lengths), cut_rows=sum(part["cut"]))
