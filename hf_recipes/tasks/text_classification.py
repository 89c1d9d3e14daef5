"""text-classification: one text, one label. Macro F1 and accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import data
from hf_recipes.errors import fault
from hf_recipes.tasks import Prepared

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe import Recipe


def prepare(splits: data.Splits, tokenizer: Any, recipe: Recipe, max_length: int) -> Prepared:
    """Rows (text, label) to (input_ids, attention_mask, labels: int), cut to `max_length` tokens.

    The label set is the train split's (a ClassLabel's names, or the sorted distinct values). Raises RecipeError for
    an empty text, a missing label, or a label outside that set, with the split and the first row.
    """
    from transformers import DataCollatorWithPadding

    parts = {"train": splits.train, "eval": splits.validation, **({"test": splits.test} if splits.test else {})}
    text = data.column(recipe, splits.train, "text_column", "text")
    label = data.column(recipe, splits.train, "label_column", "label")
    names = label_names(splits.train, label)
    if len(names) < 2:
        raise fault(recipe.place("dataset.label_column"), f"the train split has one label only ({names[0]!r})")
    index = {name: i for i, name in enumerate(names)}
    feature_names = getattr(splits.train.features[label], "names", None)

    def rows(split: str, part: Dataset) -> Dataset:
        data.column(recipe, part, "text_column", "text")
        data.column(recipe, part, "label_column", "label")

        def encode(batch: dict[str, list], first: list[int]) -> dict[str, list]:
            ids = [_label_id(v, index, feature_names) for v in batch[label]]
            for row, (value, chosen, words) in enumerate(zip(batch[label], ids, batch[text], strict=True), first[0]):
                if chosen is None:
                    what = f"row {row} of the {split} split has the label {value!r}, outside the train split's set"
                    raise fault(recipe.place("dataset.label_column"), what, f"the labels are {', '.join(names)}")
                if not isinstance(words, str) or not words.strip():
                    what = f"row {row} of the {split} split has no text ({words!r})"
                    raise fault(recipe.place("dataset.text_column"), what, "remove such rows")
            encoded = tokenizer(batch[text], truncation=True, max_length=max_length)
            full = [len(ids_) == max_length for ids_ in encoded["input_ids"]]  # only these can have been cut
            cut = [f and len(tokenizer(t, verbose=False)["input_ids"]) > max_length
                   for f, t in zip(full, batch[text], strict=True)]
            return {**encoded, "labels": ids, "cut": cut}

        return part.map(encode, batched=True, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part) for split, part in encoded.items()}
    notes = tuple(
        f"{split}: {counts['cut_rows']} of {counts['rows']} texts are longer than {max_length} tokens and lose their end"
        for split, counts in stats.items()
        if counts["cut_rows"]
    )
    kept = {split: part.remove_columns("cut") for split, part in encoded.items()}
    return Prepared(
        train=kept.pop("train"),
        evals=kept,
        collator=DataCollatorWithPadding(tokenizer),
        config={"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": index},
        label_names=names,
        stats=stats,
        ids={split: data.row_ids(parts[split], [text, label]) for split in kept},
        row_bytes={},
        sources={split: (part, [text, label]) for split, part in parts.items()},
        notes=notes,
    )


def label_names(train: Dataset, label: str) -> tuple[str, ...]:
    """A ClassLabel's names, else the sorted distinct values of the train split as text."""
    feature = train.features[label]
    if getattr(feature, "names", None):
        return tuple(feature.names)
    values = [value for value in train.unique(label) if value is not None]
    return tuple(str(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v)))


def _label_id(value: Any, index: dict[str, int], feature_names: list[str] | None) -> int | None:
    if feature_names is not None and isinstance(value, int):
        return value if 0 <= value < len(feature_names) else None
    return index.get(str(value)) if value is not None else None


def _counts(part: Dataset) -> dict[str, int]:
    lengths = [len(ids) for ids in part["input_ids"]]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "cut_rows": sum(part["cut"]),
    }
