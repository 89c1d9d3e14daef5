"""text-classification: a text, or a pair of texts, with one label, several labels or a score (`model.problem_type`).

What the labels become is in targets.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes.data.columns import values_of
from hf_recipes.data.encoded import encode_rows, tokenizer_facts
from hf_recipes.data.label_checks import warn_of_labels
from hf_recipes.data.labels import weigh_classes
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits, find_column, find_text_column
from hf_recipes.data.tagged_rows import read_lists_as_text
from hf_recipes.data.targets import Targets, make_targets
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows (text, label) or (text, text_pair, label) to (input_ids, attention_mask, labels), cut to `max_length`
    tokens. labels: int, a list of 0.0 and 1.0 (multi-label), or float (regression). `config`: the checkpoint's, whose
    head may name the labels (labels.py).

    Raises DataError for an empty text, a missing label, or a label outside the set, with the split and the first row.
    """
    from transformers import DataCollatorWithPadding

    parts = splits.by_name()
    texts = _text_columns(recipe, splits.train)
    label = find_column(recipe, splits.train, "label_column", "label")
    if recipe.get("model.problem_type") == "multi_label_classification":
        where = recipe.location("dataset.label_column")
        parts = {split: read_lists_as_text(part, label, split, where) for split, part in parts.items()}
    text_location, label_location = recipe.location("dataset.text_column"), recipe.location("dataset.label_column")
    targets = make_targets(recipe, parts["train"], label, config)

    # No place of the recipe is among them: another learning rate, or a line more, would tokenize again.
    facts = {
        **tokenizer_facts(tokenizer),
        "targets": {name: repr(value) for name, value in vars(targets).items() if name != "location"},
        "columns": [texts, label],
        "max_length": max_length,
    }

    def rows(split: str, part: Dataset) -> Dataset:
        _text_columns(recipe, part)
        find_column(recipe, part, "label_column", "label")
        to_target = targets.reader(part, split)

        def encode(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
            contents = [[one or "" for one in batch[name]] for name in texts]
            encoded = tokenizer(*contents, truncation=True, max_length=max_length, verbose=False)
            labels = [to_target(value, row) for value, row in zip(batch[label], rows, strict=True)]
            for row, content, tokens in zip(rows, zip(*contents, strict=True), encoded["input_ids"], strict=True):
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
            return {**encoded, "labels": labels, "cut": cut}

        return encode_rows(recipe, part, (*texts, label), encode, facts, split)

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _count(part, targets) for split, part in encoded.items()}
    weights, lines = weigh_classes(recipe, stats["train"].labels or {}, stats["train"].rows, targets.several)
    notes = [*targets.notes, *targets.describe(encoded["train"]), *lines]
    notes += warn_of_labels(label_location, stats["train"].labels or {}, parts, texts, label, splits.origins)
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
        config=targets.config,
        label_names=targets.names,
        class_weights=weights,
        label_order=targets.order,
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


def _count(part: Dataset, targets: Targets) -> SplitStats:
    lengths = [len(ids) for ids in values_of(part, "input_ids")]
    return SplitStats(
        rows=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths),
        cut_rows=sum(values_of(part, "cut")),
        labels=targets.count(values_of(part, "labels")),
    )
