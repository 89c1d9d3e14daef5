"""`dataset.streaming: true`: the train split is read while the run trains, and nothing of it is stored.

The rows are those of load_dataset(streaming=True), shuffled by IterableDataset.shuffle: files, and a buffer of
`dataset.buffer_size` rows to draw from. Documents are tokenized, ended, joined and cut into blocks as in causal_lm.py.
When the data are at their end they begin again in another order, so the stream has none, and max_steps ends the run.

The order follows from the seed alone. A resumed run reads from the beginning what it has learned from already, and
throws it away: the next block is the one that an uninterrupted run would read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.common.device import processes_launched
from hf_recipes.common.text import first_line
from hf_recipes.data.mixture import is_mixture, mix
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

HEAD = 1_000  # rows that stand for the split where columns, kinds and copies are looked at
BUFFER = 1_000  # IterableDataset.shuffle's own default
DOCUMENTS_AT_ONCE = 256
DEFAULT_SEED = 42  # TrainingArguments'


class TokenStream(torch.utils.data.IterableDataset[dict[str, list[int]]]):
    """Blocks of exactly `max_length` tokens, without end. Raises DataError where a whole pass gives no block."""

    def __init__(
        self, rows: Any, column: str, tokenizer: Any, *, max_length: int, seed: int, buffer_size: int, location: str
    ) -> None:
        self.rows, self.column, self.tokenizer = rows, column, tokenizer
        self.max_length, self.seed, self.buffer_size, self.location = max_length, seed, buffer_size, location

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        rows = self.rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        left: list[int] = []
        for number in itertools.count():
            rows.set_epoch(number)
            found = 0
            for ids in self._documents(rows):
                left += ids
                while len(left) >= self.max_length:
                    block, left = left[: self.max_length], left[self.max_length :]
                    found += 1
                    yield {"input_ids": block, "labels": list(block)}
            if not found:
                what = f"the train split has less than one block of {self.max_length} tokens"
                raise DataError.at(self.location, what, "shorten dataset.max_length or add text")

    def _documents(self, rows: Any) -> Iterator[list[int]]:
        """Each document's ids with the end token; empty ones are left out."""
        from hf_recipes.data.tokens.encode import batches_of, with_end

        texts = (row[self.column] for row in rows)
        while batch := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
            for some in batches_of(batch):
                for ids in self.tokenizer(some, verbose=False)["input_ids"]:
                    yield with_end(ids, self.tokenizer.eos_token_id)


def load_stream(recipe: Recipe, path: str, arguments: Mapping[str, Any]) -> tuple[Any, Dataset, list[str]]:
    """(the rows of the train split as a stream, its first rows as a table, lines on the shares of a mixture). Raises
    DataError for what cannot be read."""
    import datasets

    if processes_launched() > 1:
        where = recipe.location("dataset.streaming")
        raise DataError.at(where, "streaming: true trains on one process", "leave it out: rows are stored once for all")
    given = {**arguments, "streaming": True, "split": "train"}
    files, split = arguments.get("data_files"), arguments.get("split")
    if isinstance(files, Mapping):
        given["data_files"] = {"train": files.get("train")}
    if isinstance(split, Mapping):
        given["split"] = split.get("train", "train")
    try:
        if is_mixture(recipe):
            names = given.pop("data_files")["train"]
            parts = [datasets.load_dataset(path, data_files={"train": [name]}, **given) for name in names]
            rows, shares = mix(recipe, parts, recipe.get("dataset.data_files.train"))
        else:
            rows, shares = datasets.load_dataset(path, **given), []
        head = list(rows.take(HEAD))
    except DataError:
        raise
    except Exception as problem:  # readers may raise anything
        what = f"the train split cannot be streamed: {first_line(problem)}"
        raise DataError.at(
            recipe.location("dataset.path"), what, "streaming: false names the file and its line"
        ) from problem
    if not head:
        raise DataError.at(recipe.location("dataset.path"), "the train split has no rows", "add some rows")
    return rows, datasets.Dataset.from_list(head), shares


def make_stream(recipe: Recipe, rows: Any, column: str, tokenizer: Any, max_length: int) -> TokenStream:
    seed = recipe.training.get("data_seed")
    return TokenStream(
        rows, column, tokenizer,
        max_length=max_length,
        seed=int(recipe.training.get("seed", DEFAULT_SEED) if seed is None else seed),
        buffer_size=int(recipe.get("dataset.buffer_size") or BUFFER),
        location=recipe.location("dataset.max_length"),
    )  # fmt: skip


def first_rows(rows: Any, count: int) -> Dataset:
    """The first rows of a split as a table, of a stream too."""
    if not isinstance(rows, TokenStream):
        found: Dataset = rows.select(range(min(count, rows.num_rows)))
        return found
    from datasets import Dataset

    return Dataset.from_list(list(itertools.islice(rows, min(count, DOCUMENTS_AT_ONCE))))
