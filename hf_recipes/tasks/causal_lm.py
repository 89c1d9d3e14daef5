"""causal-lm: documents to fixed-length blocks (Trainer) or to pieces that TRL packs (SFTTrainer).

A document ends with the tokenizer's end token. With TrainingArguments all documents of the train split are joined
and cut into blocks of exactly `max_length` tokens (transformers' run_clm.py does the same); the rest of less than a
block is left out of training and kept, shorter, in evaluation. With SFTConfig a document longer than `max_length`
becomes several pieces (TRL's bfd packing would drop what overflows), and packing itself is TRL's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_recipes import data
from hf_recipes.errors import fault
from hf_recipes.tasks import Prepared

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe import Recipe


def prepare(splits: data.Splits, tokenizer: Any, recipe: Recipe, max_length: int) -> Prepared:
    """Rows of text (or of `input_ids`, already tokenized) to rows of `input_ids` and `labels` of at most `max_length`.

    Empty documents are left out and counted. Evaluation rows carry `bytes`: the UTF-8 bytes of the tokens that are
    predicted (all but each row's first), for bits per byte; rows that came tokenized are decoded for it.
    Raises RecipeError if a split has no text.
    """
    from transformers import DataCollatorForSeq2Seq

    parts = {"train": splits.train, "eval": splits.validation, **({"test": splits.test} if splits.test else {})}
    tokenized = _is_tokenized(splits.train, recipe)
    word, default = ("input_ids_column", "input_ids") if tokenized else ("text_column", "text")
    column = data.column(recipe, splits.train, word, default)
    join = recipe.trainer == "TrainingArguments"
    encoded, stats, notes = {}, {}, []
    row_bytes: dict[str, list[int]] = {}
    for split, part in parts.items():
        data.column(recipe, part, word, default)
        rows, counts = _documents(part, column, tokenizer, tokenized, recipe, split)
        drop = split == "train" and join
        blocks = rows.map(
            _joined if join else _pieces,
            batched=True,
            batch_size=1000 if drop else rows.num_rows,  # evaluation: one join, so that nothing is left out
            remove_columns=rows.column_names,
            fn_kwargs={"max_length": max_length, "drop": drop},
            desc=f"{split} blocks",
        )
        if not blocks.num_rows:
            what = f"the {split} split has {counts['tokens']} tokens, less than one block of {max_length}"
            raise fault(recipe.place("dataset.max_length"), what, "shorten dataset.max_length or add text")
        kept = sum(len(ids) for batch in blocks.select_columns(["input_ids"]).iter(1000) for ids in batch["input_ids"])
        stats[split] = {**counts, "rows": blocks.num_rows, "tokens": kept, "longest": min(max_length, counts["tokens"])}
        if split != "train":
            row_bytes[split] = list(blocks["bytes"])
            stats[split]["bytes"] = sum(row_bytes[split])
        if counts["empty"]:
            notes.append(f"{split}: {counts['empty']} empty documents left out")
        if kept < counts["tokens"]:
            notes.append(f"{split}: the last {counts['tokens'] - kept} tokens do not fill a block and are left out")
        encoded[split] = blocks
    evals = {split: part.remove_columns("bytes") for split, part in encoded.items() if split != "train"}
    return Prepared(
        train=encoded["train"].remove_columns("bytes"),
        evals=evals,
        collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        config={},
        label_names=(),
        stats=stats,
        ids={split: data.row_ids(part, ["input_ids"]) for split, part in evals.items()},
        row_bytes=row_bytes,
        sources={split: (part, [column]) for split, part in parts.items()},
        notes=tuple(notes),
    )


def _is_tokenized(train: Dataset, recipe: Recipe) -> bool:
    if recipe.get("dataset.input_ids_column") is not None:
        return True
    return "input_ids" in train.column_names and recipe.get("dataset.text_column", "text") not in train.column_names


def _documents(
    part: Dataset, column: str, tokenizer: Any, tokenized: bool, recipe: Recipe, split: str
) -> tuple[Dataset, dict[str, int]]:
    """One row a document: `input_ids` with the end token, and each token's `bytes` of text."""
    eos = tokenizer.eos_token_id
    where = recipe.place("dataset.input_ids_column" if tokenized else "dataset.text_column")

    def encode(batch: dict[str, list]) -> dict[str, list]:
        if tokenized:
            documents = [list(ids) for ids in batch[column] if ids]
            if split == "train":  # bits per byte are of evaluation rows only
                return {"input_ids": documents, "bytes": [[0] * len(ids) for ids in documents]}
            texts = [[tokenizer.decode([i], skip_special_tokens=True) for i in ids] for ids in documents]
            return {"input_ids": documents, "bytes": [[len(t.encode()) for t in row] for row in texts]}
        texts = [text for text in batch[column] if isinstance(text, str) and text.strip()]
        if not texts:
            return {"input_ids": [], "bytes": []}
        encoded = tokenizer(texts, return_offsets_mapping=True, verbose=False, return_attention_mask=False)
        sizes = [_token_bytes(text, spans) for text, spans in zip(texts, encoded["offset_mapping"], strict=True)]
        ids = encoded["input_ids"]
        for row, size in zip(ids, sizes, strict=True):
            if eos is not None and (not row or row[-1] != eos):
                row.append(eos)
                size.append(0)
        return {"input_ids": ids, "bytes": sizes}

    rows = part.map(encode, batched=True, remove_columns=part.column_names, desc=f"{split} documents")
    if not rows.num_rows:
        raise fault(where, f"the {split} split has no text: all of its {part.num_rows} documents are empty")
    tokens = sum(len(ids) for batch in rows.select_columns(["input_ids"]).iter(1000) for ids in batch["input_ids"])
    if not tokenized and tokens <= rows.num_rows and eos is not None:
        raise fault(where, f"the {split} split's texts give no tokens at all", "is this the right tokenizer?")
    return rows, {"documents": rows.num_rows, "empty": part.num_rows - rows.num_rows, "tokens": tokens}


def _token_bytes(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes each token adds: its end less the furthest end so far, so that the sum is the text's, whatever
    overlaps (a character split over tokens) or is skipped (a blank that no token covers)."""
    sizes, done = [], 0
    for _, end in spans:
        sizes.append(len(text[done:end].encode()) if end > done else 0)
        done = max(done, end)
    return sizes


def _joined(batch: dict[str, list], max_length: int, drop: bool) -> dict[str, list]:
    """All documents of the batch in one stream, cut every `max_length` tokens."""
    ids, sizes = list(chain.from_iterable(batch["input_ids"])), list(chain.from_iterable(batch["bytes"]))
    return _rows([(ids, sizes)], max_length, drop)


def _pieces(batch: dict[str, list], max_length: int, drop: bool) -> dict[str, list]:
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
            if len(piece) == max_length or (not drop and len(piece) > 1):  # one token alone predicts nothing
                yield piece, sizes[start : start + max_length]
