"""causal-lm: documents to fixed-length blocks (Trainer) or to pieces that TRL packs (SFTTrainer).

A document ends with the tokenizer's end token. With TrainingArguments all documents of a split are joined, a million
tokens (or 16 blocks) at a time, and cut into blocks of exactly `max_length` tokens (as transformers' run_clm.py does);
a last piece shorter than a block is dropped from training and used in evaluation. With SFTConfig a document longer than
`max_length` becomes several pieces (TRL's bfd packing would drop the overflow), and TRL does the packing.

Each token of an evaluation split has a count of the UTF-8 bytes of text that it adds; bits per byte divides by their
sum. Rows are made once and stored (data/tokens/).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.splits import Splits, find_column, find_text_column
from hf_recipes.data.tokens.encode import count_ids
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.tokens.rows import Counts
    from hf_recipes.recipe.recipe import Recipe

TOKENS_AT_ONCE, BLOCKS_AT_ONCE = 1_000_000, 16


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows of text (or of `input_ids`, already tokenized) to rows of `input_ids` and `labels` of at most `max_length`.

    Empty documents are left out and counted. Evaluation rows have a count in `row_bytes`: the UTF-8 bytes of the tokens
    that are predicted (all but each row's first), for bits per byte.
    Raises DataError if a split has no text.
    """
    from transformers import DataCollatorForSeq2Seq

    from hf_recipes.data.tokens.documents import Job, prepare_documents
    from hf_recipes.data.tokens.rows import Counts, Cut
    from hf_recipes.data.tokens.source import Columns, IdError
    from hf_recipes.data.tokens.store import count_processes, find_store

    parts = splits.by_name()
    tokenized = _is_tokenized(splits.train, recipe)
    join = recipe.trainer == "TrainingArguments"
    sizes = vocabulary_bytes(tokenizer) if tokenized else []
    location = recipe.location("dataset.input_ids_column" if tokenized else "dataset.text_column")
    columns = {split: _column(recipe, part, tokenized, tokenizer) for split, part in parts.items()}
    # What does not fill a block is then a negligible part, also of long blocks.
    at_once = max(TOKENS_AT_ONCE, BLOCKS_AT_ONCE * max_length)
    found, counts = {}, {}
    notes = []
    for split, part in parts.items():
        if split == "train" and splits.stream is not None:
            continue

        def check(made: Counts, split: str = split) -> None:
            _check_counts(made, split, location, ended=not tokenized and tokenizer.eos_token_id is not None)

        job = Job(
            split=split,
            column=Columns(rows=part, names=(columns[split],)),
            tokenizer=tokenizer,
            sizes=sizes,
            with_sizes=split != "train",
            cut=Cut(max_length=max_length, join=join, drop=split == "train" and join, at_once=at_once),
            root=find_store(recipe),
            processes=count_processes(recipe),
        )
        try:
            rows = found[split] = prepare_documents(job, check)
            counts[split] = Counts(**rows.counts)
        except IdError as problem:
            fix = "name the tokenizer that wrote these ids in the tokenizer section"
            raise DataError.at(location, f"the {split} split {problem}", fix) from None
        if not rows.data.num_rows:
            dotted = "dataset.max_length" if join else "SFTConfig.max_length"
            what = f"the {split} split has {counts[split].tokens} tokens, less than one block of {max_length}"
            raise DataError.at(recipe.location(dotted), what, f"shorten {dotted} or add text")
        if counts[split].empty:
            notes.append(f"{split}: {counts[split].empty} empty documents left out")
        if rows.tokens < counts[split].tokens:
            left = counts[split].tokens - rows.tokens
            notes.append(f"{split}: {left} tokens at the end do not fill a block and are left out")
    evals = {split: rows for split, rows in found.items() if split != "train"}
    if splits.stream is None:
        train, streamed = found["train"].data, {}
    else:
        from hf_recipes.data.streamed_rows import make_text_stream

        train = make_text_stream(recipe, splits.stream, columns["train"], tokenizer, max_length)
        streamed = {"train": SplitStats(rows=0, tokens=0, longest=max_length)}  # nobody has counted them
    return Prepared(
        train=train,
        evals={split: rows.data for split, rows in evals.items()},
        collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        config={},
        label_names=(),
        stats=streamed
        | {
            split: SplitStats(
                rows=rows.data.num_rows,
                tokens=rows.tokens,
                longest=min(max_length, counts[split].tokens),
                documents=counts[split].documents,
                empty=counts[split].empty,
                bytes=sum(rows.row_bytes) if split in evals else None,
            )
            for split, rows in found.items()
        },
        ids={split: rows.ids for split, rows in evals.items()},
        row_bytes={split: rows.row_bytes for split, rows in evals.items()},
        sources={split: Source(rows=part, columns=(columns[split],)) for split, part in parts.items()},
        notes=tuple(notes),
    )


def _check_counts(counts: Counts, split: str, location: str, ended: bool) -> None:
    """`ended`: each document has an end token, which is no text."""
    if not counts.documents:
        raise DataError.at(location, f"the {split} split has no text: all of its {counts.empty} documents are empty")
    if not counts.tokens or (ended and counts.tokens <= counts.documents):
        raise DataError.at(location, f"the {split} split's texts give no tokens", "is this the right tokenizer?")


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


def vocabulary_bytes(tokenizer: Any) -> list[int]:
    """UTF-8 bytes of text of each token id; special tokens have none.

    A byte-level token has one character per byte; SentencePiece writes a space as U+2581, a lone byte as
    <0x0A>; WordPiece marks a word's continuation with ##.
    """
    special, added = set(tokenizer.all_special_ids), tokenizer.added_tokens_decoder
    byte_level = tokenizer.is_fast and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    sizes = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(count_ids(tokenizer))))):
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
