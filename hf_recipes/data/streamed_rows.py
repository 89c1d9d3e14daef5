"""What training takes of a stream's rows: blocks of text, or conversations with the loss on their answers.

Each is called with the rows of one pass over the data after the other. Rows come out in the order of what goes in, so
that the next pass, and a resumed run, continue where the last one ended.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_recipes.data.chat_tokens import BadRowError, RowEncoder
from hf_recipes.data.files import local_files
from hf_recipes.data.json_files import find_row
from hf_recipes.data.tokens.encode import batches_of, with_end
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.chat_messages import RowError
    from hf_recipes.data.streaming import Stream
    from hf_recipes.recipe.recipe import Recipe

DOCUMENTS_AT_ONCE = 256
CONVERSATIONS_AT_ONCE = 64
LOOKED_AT = 256  # rows of tokens that stand for all of them
SHOWN = 80  # characters of a row in a message
BUFFER = 1_000  # IterableDataset.shuffle's own default
DEFAULT_SEED = 42  # TrainingArguments'

Row = Mapping[str, Any]
MakeRows = Callable[[Iterable[Row]], Iterator[dict[str, list[int]]]]


class TokenStream(torch.utils.data.IterableDataset[dict[str, list[int]]]):
    """Rows of tokens without end, pass after pass over the data. `begin` makes what turns source rows into them, new
    for each iteration; `text_column` holds texts, "" where `begin` reads other rows;
    `tokens_of_row`: of all rows, or of the first ones on average. Raises `empty` where a whole pass gives no row, and
    the error that `explain` makes of what the reader raises, whenever it meets a row that it cannot read."""

    def __init__(
        self, rows: Any, begin: Callable[[], MakeRows], *, text_column: str, seed: int, buffer_size: int,
        tokens_of_row: float, empty: Exception, explain: Callable[[Exception], Exception],
    ) -> None:  # fmt: skip
        self.rows, self.begin, self.text_column = rows, begin, text_column
        self.seed, self.buffer_size, self.tokens_of_row = seed, buffer_size, tokens_of_row
        self.empty, self.explain = empty, explain

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        rows, make = self.rows.shuffle(seed=self.seed, buffer_size=self.buffer_size), self.begin()
        for number in itertools.count():
            rows.set_epoch(number)
            found = 0
            for row in make(self._read(rows)):
                found += 1
                yield row
            if not found:
                raise self.empty

    def _read(self, rows: Any) -> Iterator[Row]:
        try:
            for row in rows:
                text = row[self.text_column] if self.text_column else None
                if not isinstance(text, str | None):
                    raise TypeError(f"the column {self.text_column!r} has {str(text)[:40]}, not a text")
                yield row
        except Exception as problem:  # readers may raise anything
            raise self.explain(problem) from problem


class TextBlocks:
    """Blocks of exactly `max_length` tokens. Documents end with the end token, and are joined across passes."""

    def __init__(self, column: str, tokenizer: Any, max_length: int) -> None:
        self.column, self.tokenizer, self.max_length = column, tokenizer, max_length
        self.left: list[int] = []

    def __call__(self, rows: Iterable[Row]) -> Iterator[dict[str, list[int]]]:
        for ids in self._documents(rows):
            self.left += ids
            while len(self.left) >= self.max_length:
                block, self.left = self.left[: self.max_length], self.left[self.max_length :]
                yield {"input_ids": block, "labels": list(block)}

    def _documents(self, rows: Iterable[Row]) -> Iterator[list[int]]:
        """Each document's ids with the end token; empty ones are left out."""
        texts = (row[self.column] for row in rows)
        while batch := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
            for some in batches_of(batch):
                for ids in self.tokenizer(some, verbose=False)["input_ids"]:
                    yield with_end(ids, self.tokenizer.eos_token_id)


class ChatRows:
    """Conversations as data/chat.py stores them: -100 where there is no loss, none without an answer. `refuse` makes
    the error of a row that is no conversation."""

    def __init__(
        self, encoder: RowEncoder, columns: tuple[str, ...], refuse: Callable[[Row, RowError], Exception]
    ) -> None:
        self.encoder, self.columns, self.refuse = encoder, columns, refuse

    def __call__(self, rows: Iterable[Row]) -> Iterator[dict[str, list[int]]]:
        source = iter(rows)
        while batch := list(itertools.islice(source, CONVERSATIONS_AT_ONCE)):
            values = {name: [row[name] for row in batch] for name in self.columns}
            try:
                found = self.encoder((0, values))
            except BadRowError as bad:
                raise self.refuse(batch[bad.index], bad.problem) from bad.__cause__
            labels = np.where(found["learned"], found["ids"].astype(np.int32), np.int32(-100))
            begin = 0
            for length, answered in zip(found["lengths"], found["answered"], strict=True):
                end = begin + int(length)
                if answered:
                    yield {"input_ids": found["ids"][begin:end].tolist(), "labels": labels[begin:end].tolist()}
                begin = end


def make_text_stream(recipe: Recipe, stream: Stream, column: str, tokenizer: Any, max_length: int) -> TokenStream:
    what = f"the train split has less than one block of {max_length} tokens"
    return _make_stream(
        recipe, stream, partial(TextBlocks, column, tokenizer, max_length),
        text_column=column,
        tokens_of_row=max_length,
        empty=DataError.at(recipe.location("dataset.max_length"), what, "shorten dataset.max_length or add text"),
    )  # fmt: skip


def make_chat_stream(
    recipe: Recipe, stream: Stream, encoder: RowEncoder, columns: Sequence[str], tokens_of_row: float, empty: DataError
) -> TokenStream:
    refuse = partial(_refuse_row, recipe, encoder.reader.keys[0])
    begin = partial(ChatRows, encoder, tuple(columns), refuse)
    return _make_stream(recipe, stream, begin, text_column="", tokens_of_row=tokens_of_row, empty=empty)


def _make_stream(
    recipe: Recipe, stream: Stream, begin: Callable[[], MakeRows], *, text_column: str, tokens_of_row: float,
    empty: Exception,
) -> TokenStream:  # fmt: skip
    seed = recipe.training.get("data_seed")
    return TokenStream(
        stream.rows, begin,
        text_column=text_column,
        seed=int(recipe.training.get("seed", DEFAULT_SEED) if seed is None else seed),
        buffer_size=int(recipe.get("dataset.buffer_size") or BUFFER),
        tokens_of_row=tokens_of_row,
        empty=empty,
        explain=stream.explain,
    )  # fmt: skip


def _refuse_row(recipe: Recipe, key: str, row: Row, problem: RowError) -> DataError:
    """The error of a row that is no conversation, with its line where the files have lines of JSON."""
    arguments = recipe.section("dataset")
    files = [] if arguments.get("path") != "json" or "field" in arguments else local_files("json", arguments)
    place = next(filter(None, (find_row(name, row) for name in files)), "")
    if not place:
        shown = json.dumps(row, ensure_ascii=False, default=str)
        place = f"a row of the train split ({shown if len(shown) <= SHOWN else f'{shown[:SHOWN]} ...'})"
    return DataError.at(recipe.location(f"dataset.{key}"), f"{place}: {problem.what}", problem.fix)


def first_rows(rows: Any, count: int) -> Dataset:
    """The first rows of a split as a table, of a stream too."""
    if not isinstance(rows, TokenStream):
        found: Dataset = rows.select(range(min(count, rows.num_rows)))
        return found
    from datasets import Dataset

    return Dataset.from_list(list(itertools.islice(rows, min(count, LOOKED_AT))))
