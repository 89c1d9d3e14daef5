"""token-classification: words with one tag each. Entity-level F1 (seqeval) and word accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hf_recipes.data.columns import values_of
from hf_recipes.data.encoded import encode_rows, tokenizer_facts
from hf_recipes.data.label_checks import warn_of_labels
from hf_recipes.data.labels import DataLabels, choose_labels, count_labels, label_id, labels_of_data, weigh_classes
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits, describe_mixed, find_column
from hf_recipes.data.tag_schemes import Scheme, find_scheme, is_prefixed
from hf_recipes.data.tagged_rows import tagged_rows
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows (tokens, tags) to (input_ids, attention_mask, labels): the label of a word's first sub-token is its tag, the
    others are -100. Words beyond `max_length` sub-tokens are cut off and counted, and so are those without a
    sub-token (blanks). `config`: the checkpoint's, whose head may name the tags (labels.py).

    Raises DataError for an empty row, tokens and tags of different counts, or a tag outside the set.
    """
    from transformers import DataCollatorForTokenClassification

    if not tokenizer.is_fast:
        what = "token-classification needs a fast tokenizer (word_ids)"
        raise DataError.at(recipe.location("tokenizer"), what, "use a model with a tokenizer.json")
    read = tagged_rows(recipe, splits)
    splits, words, tags = read.splits, read.tokens, read.tags
    parts = splits.by_name()
    tokens_location, tags_location = recipe.location("dataset.tokens_column"), recipe.location("dataset.tags_column")
    check_kinds(splits.train, words, tags, tokens_location, tags_location)
    chosen = choose_labels(recipe, data_tags(splits.train, tags), config, "tags_column", tags)
    names, index = chosen.names, dict(chosen.index)
    scheme = _scheme(parts.values(), tags, names, index)

    facts = {
        **tokenizer_facts(tokenizer),
        "labels": [names, sorted((repr(tag), number) for tag, number in index.items())],
        "columns": [words, tags],
        "max_length": max_length,
    }

    def rows(split: str, part: Dataset) -> Dataset:
        find_column(recipe, part, "tokens_column", words)
        find_column(recipe, part, "tags_column", tags)
        check_kinds(part, words, tags, tokens_location, tags_location)
        own_names = _feature_names(part, tags)

        def encode(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
            for row, row_words, row_tags in zip(rows, batch[words], batch[tags], strict=True):
                check_row(tokens_location, tags_location, f"row {row} of the {split} split", row_words, row_tags)
            encoded = tokenizer(batch[words], is_split_into_words=True, truncation=True, max_length=max_length)
            labels, lost, blank = [], [], []
            for i, row_tags in enumerate(batch[tags]):
                of_word = encoded.word_ids(i)
                firsts = [w is not None and w != before for w, before in zip(of_word, [None, *of_word], strict=False)]
                ids = [label_id(tag, index, own_names) for tag in row_tags]
                if None in ids:
                    what = f"row {rows[i]} of the {split} split has the tag {row_tags[ids.index(None)]!r}, "
                    what += "which is none of the model's"
                    raise DataError.at(tags_location, what, f"the tags are {', '.join(names)}")
                labels.append([ids[w] if f else -100 for w, f in zip(of_word, firsts, strict=True)])
                cut = len(row_tags) - 1 - max((w for w in of_word if w is not None), default=-1)
                cut = cut if len(of_word) == max_length else 0  # else the last words are blanks
                lost.append(cut)
                blank.append(len(row_tags) - sum(firsts) - cut)
            return {**encoded, "labels": labels, "lost": lost, "blank": blank}

        return encode_rows(recipe, part, (words, tags), encode, facts, split)

    encoded = {split: rows(split, part) for split, part in parts.items()}
    stats = {split: _counts(part, names) for split, part in encoded.items()}
    for split, counts in stats.items():
        if not counts.label_tokens:
            if not counts.lost_words:
                what = f"no word in the {split} split has a sub-token: the tokenizer drops them all, as it drops blanks"
                raise DataError.at(tokens_location, what, "is it the tokenizer of this language?")
            what = f"the {split} split has no word with a sub-token within {max_length} tokens: all labels are masked"
            raise DataError.at(recipe.location("dataset.max_length"), what, "raise dataset.max_length")
    notes = [
        *read.notes,
        *chosen.notes,
        *_describe_scheme(scheme, tags_location),
        *warn_of_labels(tags_location, stats["train"].labels or {}, parts, [words], tags, splits.origins),
    ]
    for split, counts in stats.items():
        if counts.lost_words:
            notes.append(f"{split}: {counts.lost_words} words are beyond {max_length} sub-tokens, and are not scored")
        if counts.blank_words:
            what = f"{counts.blank_words} words have no sub-token, such as blanks, and are not scored"
            notes.append(f"{split}: {what}")
    weights, lines = weigh_classes(recipe, stats["train"].labels or {}, stats["train"].rows)
    notes += lines
    ready = {split: part.remove_columns(["lost", "blank"]) for split, part in encoded.items()}
    return Prepared(
        train=ready.pop("train"),
        evals=ready,
        collator=DataCollatorForTokenClassification(tokenizer),
        config=chosen.config,
        label_names=names,
        class_weights=weights,
        tag_scheme=scheme.name if scheme is not None else "",
        label_order=chosen.order,
        stats=stats,
        ids={split: row_ids(parts[split], [words, tags]) for split in ready},
        row_bytes={},
        sources={split: Source(rows=part, columns=(words, tags)) for split, part in parts.items()},
        notes=tuple(notes),
    )


def check_kinds(part: Dataset, words: str, tags: str, tokens_location: str, tags_location: str) -> None:
    """Raises DataError for columns that hold no lists."""
    for column, location in ((words, tokens_location), (tags, tags_location)):
        kind = part.features[column]
        if not hasattr(kind, "feature") and not isinstance(kind, list):
            shown = getattr(kind, "dtype", type(kind).__name__)
            what = f"the column {column!r} holds {shown}, not lists: each row needs a list of words and a list of tags"
            mixed = describe_mixed(part, column)
            if mixed:
                raise DataError.at(location, mixed, "write a list in every row")
            raise DataError.at(location, what, "split the text into words first")


def check_row(tokens_location: str, tags_location: str, name: str, words: Any, tags: Any) -> None:
    """Raises DataError for a row without words, or without a tag for each."""
    if not words:
        raise DataError.at(tokens_location, f"{name} has no tokens", "remove such rows")
    if not all(isinstance(word, str) for word in words):
        raise DataError.at(tokens_location, f"{name} has a token that is not text", "write every token as text")
    if len(words) != len(tags or ()):
        raise DataError.at(
            tags_location, f"{name} has {len(words)} tokens but {len(tags or ())} tags", "give every token one tag"
        )


def _feature_names(part: Dataset, tags: str) -> list[str] | None:
    return getattr(getattr(part.features[tags], "feature", None), "names", None)


def data_tags(train: Dataset, tags: str) -> DataLabels:
    """The tags that the train split has."""
    names = _feature_names(train, tags)
    found = {tag for batch in train.select_columns([tags]).iter(1000) for row in batch[tags] for tag in row or ()}
    return labels_of_data(found, names)


def _scheme(parts: Iterable[Dataset], tags: str, names: tuple[str, ...], index: dict[str, int]) -> Scheme | None:
    """The scheme of the tags of the first split that has entities, the train split first; None where they are no tags
    of entities."""
    found = None
    for part in parts:
        found = _scheme_of_split(part, tags, names, index)
        if found is None or found.entities:
            return found
    return found


def _scheme_of_split(part: Dataset, tags: str, names: tuple[str, ...], index: dict[str, int]) -> Scheme | None:
    own_names = _feature_names(part, tags)
    if not all(map(is_prefixed, names)):
        return None
    sentences = (
        [names[i] for tag in row or () if (i := label_id(tag, index, own_names)) is not None]
        for batch in part.select_columns([tags]).iter(1000)
        for row in batch[tags]
    )
    try:
        return find_scheme(sentences, names)
    except DataError:  # prefixes of several schemes: a metric that reads them refuses them
        return None


def _describe_scheme(scheme: Scheme | None, location: str) -> tuple[str, ...]:
    if scheme is None:
        return ()
    if not scheme.odd:
        return (f"tags: {scheme.name}",)
    what = f"the tags are read as {scheme.name}, and {scheme.odd:,} of {scheme.entities:,} entities of the train split "
    return (f"warning: {location}: {what}do not {'end' if 'E' in scheme.name else 'begin'} as {scheme.name} has it",)


def _counts(part: Dataset, names: tuple[str, ...]) -> SplitStats:
    lengths = [len(ids) for ids in values_of(part, "input_ids")]
    counts = count_labels((label for labels in values_of(part, "labels") for label in labels), names)
    return SplitStats(
        rows=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths),
        label_tokens=sum(counts.values()),
        lost_words=sum(values_of(part, "lost")),
        blank_words=sum(values_of(part, "blank")),
        labels=counts,
    )
