"""text-classification: one text, or a pair of texts, with one label. Macro F1 and accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.data.label_checks import warn_of_labels
from hf_recipes.data.labels import DataLabels, choose_labels, count_labels, label_id, labels_of_data
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits, find_column, find_text_column
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows (text, label) or (text, text_pair, label) to (input_ids, attention_mask, labels: int), cut to `max_length`
    tokens. `config`: the checkpoint's, whose head may name the labels (labels.py).

    Raises DataError for an empty text, a missing label, or a label outside the set, with the split and the first row.
    """
    from transformers import DataCollatorWithPadding

    parts = splits.by_name()
    texts = _text_columns(recipe, splits.train)
    label = find_column(recipe, splits.train, "label_column", "label")
    text_location, label_location = recipe.location("dataset.text_column"), recipe.location("dataset.label_column")
    stated = recipe.get("model.problem_type") == "single_label_classification"
    labels = choose_labels(
        recipe, _data_labels(splits.train, label, label_location, stated), config, "label_column", label
    )
    index, names = dict(labels.index), labels.names

    # upstream's cache finds its rows by what `encode` closes over: not the recipe (another learning rate would
    # tokenize again), but our version.
    def rows(split: str, part: Dataset) -> Dataset:
        _text_columns(recipe, part)
        find_column(recipe, part, "label_column", "label")
        own_names = getattr(part.features[label], "names", None)

        def encode(batch: dict[str, list], rows: list[int], version: str = __version__) -> dict[str, list]:
            ids = [label_id(value, index, own_names) for value in batch[label]]
            contents = [[one or "" for one in batch[name]] for name in texts]
            encoded = tokenizer(*contents, truncation=True, max_length=max_length, verbose=False)
            for row, value, chosen, content, tokens in zip(
                rows, batch[label], ids, zip(*contents, strict=True), encoded["input_ids"], strict=True
            ):
                if chosen is None:
                    raise _outside(label_location, split, row, value, names)
                blank = next((name for name, one in zip(texts, content, strict=True) if not one.strip()), None)
                if blank is not None:
                    shown = batch[blank][row - rows[0]]
                    what = f"row {row} of the {split} split has no {_word(blank, texts)} ({shown!r})"
                    raise DataError.at(text_location, what, "remove such rows")
                if not tokens:
                    shown = content[0] if len(content) == 1 else content
                    raise DataError.at(
                        text_location, f"row {row} of the {split} split gives no tokens ({shown!r})", "remove it"
                    )
            full = [len(tokens) == max_length for tokens in encoded["input_ids"]]  # only these can have been cut
            cut = [
                long and len(tokenizer(*content, verbose=False)["input_ids"]) > max_length
                for long, content in zip(full, zip(*contents, strict=True), strict=True)
            ]
            return {**encoded, "labels": ids, "cut": cut}

        return part.map(encode, batched=True, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part, names) for split, part in encoded.items()}
    notes = [*labels.notes, *warn_of_labels(label_location, stats["train"].labels or {}, parts, texts, label)]
    notes += [
        f"{split}: {counts.cut_rows} of {counts.rows} texts are cut at {max_length} tokens"
        for split, counts in stats.items()
        if counts.cut_rows
    ]
    ready = {split: part.remove_columns("cut") for split, part in encoded.items()}
    return Prepared(
        train=ready.pop("train"),
        evals=ready,
        collator=DataCollatorWithPadding(tokenizer),
        config={"problem_type": "single_label_classification", **labels.config},
        label_names=names,
        label_order=labels.order,
        stats=stats,
        ids={split: row_ids(parts[split], [*texts, label]) for split in ready},
        row_bytes={},
        sources={split: Source(rows=part, columns=(*texts, label)) for split, part in parts.items()},
        notes=tuple(notes),
    )


def _text_columns(recipe: Recipe, rows: Dataset) -> tuple[str, ...]:
    """The column of the text, and that of the second text where the recipe names one."""
    first = find_text_column(recipe, rows, "text_column", "text")
    if recipe.get("dataset.text_pair_column") is None:
        return (first,)
    return first, find_text_column(recipe, rows, "text_pair_column", "text_pair")


def _word(column: str, texts: tuple[str, ...]) -> str:
    return "text" if len(texts) == 1 else f"text in its column {column!r}"


def _data_labels(train: Dataset, label: str, location: str, stated: bool) -> DataLabels:
    """The labels that the train split has. Raises DataError for lists, records and fractions."""
    from datasets import Value

    feature = train.features[label]
    class_names = getattr(feature, "names", None)
    if class_names:
        return labels_of_data((), class_names)
    if hasattr(feature, "feature") or isinstance(feature, list):
        what = f"the column {label!r} holds lists: several labels a row"
        raise DataError.at(location, what, "write model.problem_type: multi_label_classification")
    if not isinstance(feature, Value):  # a record, or Json: numbers and texts in one column
        what = f"the column {label!r} holds {type(feature).__name__}, not one label a row"
        raise DataError.at(location, what, "name another with dataset.label_column")
    values = train.unique(label)
    if feature.dtype.startswith(("float", "double", "decimal")):
        values = _whole_numbers(values, label, location, stated)
    return labels_of_data(values, None)


def _whole_numbers(values: list[Any], label: str, location: str, stated: bool) -> list[int]:
    """Labels that a reader made floats of, because one is missing. `stated`: the recipe says that they are classes."""
    found = [value for value in values if value is not None and value == value]
    whole = all(value == int(value) for value in found)
    if whole and (stated or len(found) < len(values)):
        return [int(value) for value in found]
    example = next((value for value in found if value != int(value)), found[0] if found else None)
    what = f"the column {label!r} holds floats, such as {example!r}: scores, not classes"
    fix = "write model.problem_type: regression"
    raise DataError.at(location, what, fix + (", or give the classes as whole numbers or text" if whole else ""))


def _outside(location: str, split: str, row: int, value: Any, names: tuple[str, ...]) -> DataError:
    if value is None or value == -1 or value != value:  # -1: published test sets with hidden labels
        what = f"row {row} of the {split} split has no label ({value!r})"
        return DataError.at(
            location, what, "remove such rows, or leave the split out with split: {train: ..., validation: ...}"
        )
    what = f"row {row} of the {split} split has the label {value!r}, which is none of the model's"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return DataError.at(location, what, f"the labels are {shown}")


def _counts(part: Dataset, names: tuple[str, ...]) -> SplitStats:
    lengths = [len(ids) for ids in part["input_ids"]]
    return SplitStats(
        rows=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths),
        cut_rows=sum(part["cut"]),
        labels=count_labels(part["labels"], names),
    )
