"""causal-lm: documents to fixed-length blocks (Trainer) or to pieces that TRL packs (SFTTrainer).

A document ends with the tokenizer's end token. With TrainingArguments all documents of a split are joined, a million
tokens at a time, and cut into blocks of exactly `max_length` tokens (as transformers' run_clm.py does); a last piece
shorter than a block is dropped from training and used in evaluation. With SFTConfig a document longer than
`max_length` becomes several pieces (TRL's bfd packing would drop the overflow), and TRL does the packing.

Each token has a count of the UTF-8 bytes of text that it adds; bits per byte divides by their sum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits, find_column, find_text_column
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

TOKENS_AT_ONCE = 1_000_000


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows of text (or of `input_ids`, already tokenized) to rows of `input_ids` and `labels` of at most `max_length`.

    Empty documents are left out and counted. Evaluation rows carry `bytes`: the UTF-8 bytes of the tokens that are
    predicted (all but each row's first), for bits per byte.
    Raises DataError if a split has no text.
    """
    from transformers import DataCollatorForSeq2Seq

    parts = splits.by_name()
    tokenized = _is_tokenized(splits.train, recipe)
    join = recipe.trainer == "TrainingArguments"
    encoded: dict[str, Dataset] = {}
    stats: dict[str, SplitStats] = {}
    notes = []
    row_bytes: dict[str, list[int]] = {}
    for split, part in parts.items():
        column = _column(recipe, part, tokenized, tokenizer)
        rows, counts = _documents(part, column, tokenizer, tokenized, recipe, split)
        drop = split == "train" and join
        # A million tokens are joined at a time: what does not fill a block is then a negligible part, and a split of
        # any size needs no more memory than this.
        at_once = max(1, TOKENS_AT_ONCE * rows.num_rows // counts.tokens)
        blocks = rows.map(
            _joined if join else _pieces,
            batched=True,
            batch_size=at_once,
            remove_columns=rows.column_names,
            fn_kwargs={"max_length": max_length, "drop": drop, "version": __version__},
            desc=f"{split} blocks",
        )
        if not blocks.num_rows:
            dotted = "dataset.max_length" if join else "SFTConfig.max_length"
            what = f"the {split} split has {counts.tokens} tokens, less than one block of {max_length}"
            raise DataError.at(recipe.location(dotted), what, f"shorten {dotted} or add text")
        used = _count_tokens(blocks)
        if split != "train":
            row_bytes[split] = list(blocks["bytes"])
        stats[split] = SplitStats(
            rows=blocks.num_rows,
            tokens=used,
            longest=min(max_length, counts.tokens),
            documents=counts.documents,
            empty=counts.empty,
            bytes=sum(row_bytes[split]) if split in row_bytes else None,
        )
        if counts.empty:
            notes.append(f"{split}: {counts.empty} empty documents left out")
        if used < counts.tokens:
            notes.append(f"{split}: {counts.tokens - used} tokens at the end do not fill a block and are left out")
        encoded[split] = blocks
    evals = {split: part.remove_columns("bytes") for split, part in encoded.items() if split != "train"}
    return Prepared(
        train=encoded["train"].remove_columns("bytes"),
        evals=evals,
        collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        config={},
        label_names=(),
        stats=stats,
        ids={split: row_ids(part, ["input_ids"]) for split, part in evals.items()},
        row_bytes=row_bytes,
        sources={split: Source(rows=part, columns=(column,)) for split, part in parts.items()},
        notes=tuple(notes),
    )


def _is_tokenized(train: Dataset, recipe: Recipe) -> bool:
    if recipe.get("dataset.input_ids_column") is not None:
        return True
    return "input_ids" in train.column_names and recipe.get("dataset.text_column", "text") not in train.column_names


def _column(recipe: Recipe, part: Dataset, tokenized: bool, tokenizer: Any) -> str:
    if not tokenized:
        if not tokenizer.is_fast:
            what = "causal-lm needs a fast tokenizer (for the position of each token in the text)"
            raise DataError.at(recipe.location("tokenizer"), what, "use a model with a tokenizer.json")
        return find_text_column(recipe, part, "text_column", "text")
    name = find_column(recipe, part, "input_ids_column", "input_ids")
    kind = getattr(part.features[name], "feature", None)
    if "int" not in str(getattr(kind, "dtype", "")):
        what = f"the column {name!r} does not hold lists of token ids"
        raise DataError.at(
            recipe.location("dataset.input_ids_column"), what, "name another with dataset.input_ids_column"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class _DocumentCounts:
    documents: int
    empty: int
    tokens: int


def _count_tokens(rows: Dataset) -> int:
    return sum(len(ids) for batch in rows.select_columns(["input_ids"]).iter(1000) for ids in batch["input_ids"])


def _documents(
    part: Dataset, column: str, tokenizer: Any, tokenized: bool, recipe: Recipe, split: str
) -> tuple[Dataset, _DocumentCounts]:
    """One row a document: `input_ids` with the end token, and each token's `bytes` of text."""
    eos = tokenizer.eos_token_id
    location = recipe.location("dataset.input_ids_column" if tokenized else "dataset.text_column")
    sizes = vocabulary_bytes(tokenizer) if tokenized else []

    # upstream's cache finds its rows by what these functions close over: not the recipe, but our version.
    def measure(batch: dict[str, list], version: str = __version__) -> dict[str, list]:
        documents = [list(ids) for ids in batch[column] if ids]
        unknown = next((i for ids in documents for i in ids if not 0 <= i < len(sizes)), None)
        if unknown is not None:
            what = f"the {split} split has the token id {unknown}, and the tokenizer has {len(sizes)} tokens"
            raise DataError.at(location, what, "name the tokenizer that wrote these ids in the tokenizer section")
        return {"input_ids": documents, "bytes": [[sizes[i] for i in ids] for ids in documents]}

    def encode(batch: dict[str, list], version: str = __version__) -> dict[str, list]:
        texts = [text for text in batch[column] if text and text.strip()]
        if not texts:
            return {"input_ids": [], "bytes": []}
        encoded = tokenizer(texts, return_offsets_mapping=True, verbose=False, return_attention_mask=False)
        rows = zip(encoded["input_ids"], texts, encoded["offset_mapping"], strict=True)
        ended = [_ended(list(ids), _token_bytes(text, spans), text, eos) for ids, text, spans in rows]
        return {"input_ids": [ids for ids, _ in ended], "bytes": [row for _, row in ended]}

    rows = part.map(
        measure if tokenized else encode, batched=True, remove_columns=part.column_names, desc=f"{split} documents"
    )
    if not rows.num_rows:
        raise DataError.at(location, f"the {split} split has no text: all of its {part.num_rows} documents are empty")
    tokens = _count_tokens(rows)
    if not tokens or (not tokenized and tokens <= rows.num_rows and eos is not None):
        raise DataError.at(location, f"the {split} split's texts give no tokens", "is this the right tokenizer?")
    return rows, _DocumentCounts(documents=rows.num_rows, empty=part.num_rows - rows.num_rows, tokens=tokens)


def _ended(ids: list[int], sizes: list[int], text: str, eos: int | None) -> tuple[list[int], list[int]]:
    """The document with its end token, which gets the bytes that no token covers (a space at the end)."""
    if eos is not None and (not ids or ids[-1] != eos):
        ids.append(eos)
        sizes.append(0)
    if sizes:
        sizes[-1] += len(text.encode()) - sum(sizes)
    return ids, sizes


def vocabulary_bytes(tokenizer: Any) -> list[int]:
    """UTF-8 bytes of text of each token id; special tokens have none.

    A byte-level token has one character per byte; SentencePiece writes a space as U+2581, a lone byte as
    <0x0A>; WordPiece marks a word's continuation with ##.
    """
    special, added = set(tokenizer.all_special_ids), tokenizer.added_tokens_decoder
    byte_level = tokenizer.is_fast and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    sizes = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if i in special or token is None:
            sizes.append(0)
        elif i in added:
            sizes.append(len(token.encode()))
        elif byte_level:
            sizes.append(len(token))
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            sizes.append(1)
        else:
            sizes.append(len(token.removeprefix("##").replace("\u2581", " ").encode()))
    return sizes


def _token_bytes(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes each token adds: its end less the furthest end so far, so that the sum is the text's, whatever
    overlaps (a character split over tokens) or is skipped (a space that no token covers)."""
    sizes, done = [], 0
    for _, end in spans:
        sizes.append(len(text[done:end].encode()) if end > done else 0)
        done = max(done, end)
    return sizes


def _joined(batch: dict[str, list], max_length: int, drop: bool, version: str) -> dict[str, list]:
    """All documents of the batch in one stream, cut every `max_length` tokens."""
    ids, sizes = list(chain.from_iterable(batch["input_ids"])), list(chain.from_iterable(batch["bytes"]))
    return _rows([(ids, sizes)], max_length, drop)


def _pieces(batch: dict[str, list], max_length: int, drop: bool, version: str) -> dict[str, list]:
    """Each document on its own, cut every `max_length` tokens."""
    return _rows(zip(batch["input_ids"], batch["bytes"], strict=True), max_length, drop)


def _rows(streams: Any, max_length: int, drop: bool) -> dict[str, list]:
    cuts = list(_cut(streams, max_length, drop))
    return {
        "input_ids": [ids for ids, _ in cuts],
        "labels": [list(ids) for ids, _ in cuts],
        "bytes": [sum(sizes[1:]) for _, sizes in cuts],  # a row's first token is never predicted
    }


def _cut(streams: Any, max_length: int, drop: bool) -> Iterator[tuple[list[int], list[int]]]:
    for ids, sizes in streams:
        for start in range(0, len(ids), max_length):
            piece = ids[start : start + max_length]
            if len(piece) == max_length or (not drop and len(piece) > 1):  # a single token predicts nothing
                yield piece, sizes[start : start + max_length]
