"""token-classification: words with one tag each. Entity-level F1 (seqeval) and word accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.data import splits as data
from hf_recipes.data.prepared import Prepared
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.text_classification import label_id
from hf_recipes.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe


def prepare(splits: data.Splits, tokenizer: Any, recipe: Recipe, max_length: int) -> Prepared:
    """Rows (tokens, tags) to (input_ids, attention_mask, labels): a word's tag stands on its first sub-token, the
    others are -100. Words beyond `max_length` sub-tokens are cut off and counted.

    Raises RecipeError for an empty row, tokens and tags of different counts, or a tag outside the train split's set.
    """
    from transformers import DataCollatorForTokenClassification

    if not tokenizer.is_fast:
        what = "token-classification needs a fast tokenizer (word_ids)"
        raise RecipeError.at(recipe.location("tokenizer"), what, "take a model with a tokenizer.json")
    parts = splits.by_name()
    words = data.column(recipe, splits.train, "tokens_column", "tokens")
    tags = data.column(recipe, splits.train, "tags_column", "tags")
    where_words, where_tags = recipe.location("dataset.tokens_column"), recipe.location("dataset.tags_column")
    _check_kinds(splits.train, words, tags, where_words, where_tags)
    names = tag_names(splits.train, tags)
    index = {name: i for i, name in enumerate(names)}

    def rows(split: str, part: Dataset) -> Dataset:  # what `encode` holds: as in text_classification
        data.column(recipe, part, "tokens_column", "tokens")
        data.column(recipe, part, "tags_column", "tags")
        _check_kinds(part, words, tags, where_words, where_tags)
        own_names = _feature_names(part, tags)

        def encode(batch: dict[str, list], rows: list[int], version: str = __version__) -> dict[str, list]:
            for row, row_words, row_tags in zip(rows, batch[words], batch[tags], strict=True):
                _check_row(where_words, where_tags, f"row {row} of the {split} split", row_words, row_tags)
            encoded = tokenizer(batch[words], is_split_into_words=True, truncation=True, max_length=max_length)
            labels, lost = [], []
            for i, row_tags in enumerate(batch[tags]):
                of_word = encoded.word_ids(i)
                firsts = [w is not None and w != before for w, before in zip(of_word, [None, *of_word], strict=False)]
                ids = [label_id(tag, index, own_names) for tag in row_tags]
                if None in ids:
                    what = f"row {rows[i]} of the {split} split has the tag {row_tags[ids.index(None)]!r}, "
                    what += "outside the train split's set"
                    raise RecipeError.at(where_tags, what, f"the tags are {', '.join(names)}")
                labels.append([ids[w] if f else -100 for w, f in zip(of_word, firsts, strict=True)])
                lost.append(len(row_tags) - sum(firsts))
            return {**encoded, "labels": labels, "lost": lost}

        return part.map(encode, batched=True, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part) for split, part in encoded.items()}
    for split, counts in stats.items():
        if not counts["label_tokens"]:
            what = f"no word of the {split} split has a sub-token within {max_length} tokens: all labels are masked"
            raise RecipeError.at(recipe.location("dataset.max_length"), what, "raise dataset.max_length")
    notes = tuple(
        f"{split}: {counts['lost_words']} words stand beyond {max_length} sub-tokens or have none: they are not scored"
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
        ids={split: row_ids(parts[split], [words, tags]) for split in kept},
        row_bytes={},
        sources={split: (part, [words, tags]) for split, part in parts.items()},
        notes=notes,
    )


def _check_kinds(part: Dataset, words: str, tags: str, where_words: str, where_tags: str) -> None:
    for column, where in ((words, where_words), (tags, where_tags)):
        kind = part.features[column]
        if not hasattr(kind, "feature") and not isinstance(kind, list):
            shown = getattr(kind, "dtype", type(kind).__name__)
            what = f"the column {column!r} holds {shown}, not a list a row: a list of words, and one of their tags"
            raise RecipeError.at(where, what, "split the text into words first")


def _check_row(where_words: str, where_tags: str, name: str, words: Any, tags: Any) -> None:
    if not words:
        raise RecipeError.at(where_words, f"{name} has no tokens", "remove such rows")
    if not all(isinstance(word, str) for word in words):
        raise RecipeError.at(where_words, f"{name} has a token that is no text", "write every token as a text")
    if len(words) != len(tags or ()):
        raise RecipeError.at(
            where_tags, f"{name} has {len(words)} tokens but {len(tags or ())} tags", "give every token one tag"
        )


def _feature_names(part: Dataset, tags: str) -> list[str] | None:
    return getattr(getattr(part.features[tags], "feature", None), "names", None)


def tag_names(train: Dataset, tags: str) -> tuple[str, ...]:
    """A ClassLabel's names, else "O" and the other distinct tags of the train split, sorted (numbers by size)."""
    names = _feature_names(train, tags)
    if names:
        return tuple(names)
    found = {tag for batch in train.select_columns([tags]).iter(1000) for row in batch[tags] for tag in row or ()}
    return tuple(map(str, sorted(found - {None}, key=lambda tag: (tag != "O", isinstance(tag, str), tag))))


def _counts(part: Dataset) -> dict[str, int]:
    lengths = [len(ids) for ids in part["input_ids"]]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "label_tokens": sum(label != -100 for labels in part["labels"] for label in labels),
        "lost_words": sum(part["lost"]),
    }
