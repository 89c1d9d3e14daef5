"""token-classification: words with one tag each. Entity-level F1 (seqeval) and word accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import data
from hf_recipes.errors import fault
from hf_recipes.tasks import Prepared

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe import Recipe


def prepare(splits: data.Splits, tokenizer: Any, recipe: Recipe, max_length: int) -> Prepared:
    """Rows (tokens, tags) to (input_ids, attention_mask, labels): a word's tag stands on its first sub-token, the
    others are -100. Words beyond `max_length` sub-tokens are cut off and counted.

    Raises RecipeError for an empty row, tokens and tags of different counts, or a tag outside the train split's set.
    """
    from transformers import DataCollatorForTokenClassification

    if not tokenizer.is_fast:
        what = "token-classification needs a fast tokenizer (word_ids)"
        raise fault(recipe.place("tokenizer"), what, "take a model with a tokenizer.json")
    parts = {"train": splits.train, "eval": splits.validation, **({"test": splits.test} if splits.test else {})}
    words = data.column(recipe, splits.train, "tokens_column", "tokens")
    tags = data.column(recipe, splits.train, "tags_column", "tags")
    names = tag_names(splits.train, tags)
    index = {name: i for i, name in enumerate(names)}
    feature_names = _feature_names(splits.train, tags)

    def rows(split: str, part: Dataset) -> Dataset:
        data.column(recipe, part, "tokens_column", "tokens")
        data.column(recipe, part, "tags_column", "tags")

        def encode(batch: dict[str, list], first: list[int]) -> dict[str, list]:
            for row, (row_words, row_tags) in enumerate(zip(batch[words], batch[tags], strict=True), first[0]):
                _check_row(recipe, split, row, row_words, row_tags)
            encoded = tokenizer(batch[words], is_split_into_words=True, truncation=True, max_length=max_length)
            labels, lost = [], []
            for i, row_tags in enumerate(batch[tags]):
                of_word = encoded.word_ids(i)
                firsts = [w is not None and w != before for w, before in zip(of_word, [None, *of_word], strict=False)]
                ids = [_tag_id(tag, index, feature_names) for tag in row_tags]
                if None in ids:
                    what = f"row {first[0] + i} of the {split} split has the tag {row_tags[ids.index(None)]!r}, "
                    what += "outside the train split's set"
                    raise fault(recipe.place("dataset.tags_column"), what, f"the tags are {', '.join(names)}")
                labels.append([ids[w] if f else -100 for w, f in zip(of_word, firsts, strict=True)])
                lost.append(len(row_tags) - sum(firsts))
            return {**encoded, "labels": labels, "lost": lost}

        return part.map(encode, batched=True, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part) for split, part in encoded.items()}
    notes = tuple(
        f"{split}: {counts['lost_words']} words stand beyond {max_length} sub-tokens (or have none): they are not scored"
        for split, counts in stats.items()
        if counts["lost_words"]
    )
    kept = {split: part.remove_columns("lost") for split, part in encoded.items()}
    return Prepared(
        train=kept.pop("train"),
        evals=kept,
        collator=DataCollatorForTokenClassification(tokenizer),
        config={"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": index},
        label_names=names,
        stats=stats,
        ids={split: data.row_ids(parts[split], [words, tags]) for split in kept},
        row_bytes={},
        sources={split: (part, [words, tags]) for split, part in parts.items()},
        notes=notes,
    )


def _check_row(recipe: Recipe, split: str, row: int, words: Any, tags: Any) -> None:
    if not words:
        where = recipe.place("dataset.tokens_column")
        raise fault(where, f"row {row} of the {split} split has no tokens", "remove such rows")
    if not isinstance(words, list) or not isinstance(tags, list):
        what = f"row {row} of the {split} split: tokens and tags are lists of words and of tags"
        raise fault(recipe.place("dataset.tokens_column"), what)
    if len(words) != len(tags):
        what = f"row {row} of the {split} split has {len(words)} tokens but {len(tags)} tags"
        raise fault(recipe.place("dataset.tags_column"), what, "give every token one tag")


def _feature_names(train: Dataset, tags: str) -> list[str] | None:
    return getattr(getattr(train.features[tags], "feature", None), "names", None)


def tag_names(train: Dataset, tags: str) -> tuple[str, ...]:
    """A ClassLabel's names, else "O" and the other distinct tags of the train split, sorted."""
    names = _feature_names(train, tags)
    if names:
        return tuple(names)
    found = {str(tag) for batch in train.select_columns([tags]).iter(1000) for row in batch[tags] for tag in row or ()}
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag)))


def _tag_id(tag: Any, index: dict[str, int], feature_names: list[str] | None) -> int | None:
    if feature_names is not None and isinstance(tag, int):
        return tag if 0 <= tag < len(feature_names) else None
    return index.get(str(tag))


def _counts(part: Dataset) -> dict[str, int]:
    lengths = [len(ids) for ids in part["input_ids"]]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "label_tokens": sum(label != -100 for labels in part["labels"] for label in labels),
        "lost_words": sum(part["lost"]),
    }
