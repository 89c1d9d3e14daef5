"""What training takes of a stream's rows: blocks of text, or conversations with the loss on their answers.

Each is called with the rows of one pass over the data after the other. Rows come out in the order of what goes in, so
that the next pass, and a resumed run, continue where the last one ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.data.chat_tokens import BadRowError, RowEncoder
from hf_recipes.data.tokens.encode import batches_of, with_end

if TYPE_CHECKING:
    from hf_recipes.data.chat_messages import RowError

DOCUMENTS_AT_ONCE = 256
CONVERSATIONS_AT_ONCE = 64

Row = Mapping[str, Any]


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
