"""`dataset.streaming: true`: the train split is read while the run trains, and nothing of it is stored.

The rows are those of load_dataset(streaming=True), shuffled by IterableDataset.shuffle: files, and a buffer of
`dataset.buffer_size` rows to draw from. Documents are tokenized, ended, joined and cut into blocks as in causal_lm.py.
When the data are at their end they begin again in another order, so the stream has none, and max_steps ends the run.

The order follows from the seed alone. A resumed run reads from the beginning what it has learned from already, and
throws it away: the next block is the one that an uninterrupted run would read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.common.device import processes_launched
from hf_recipes.data.files import local_files
from hf_recipes.data.json_files import find_bad_line, find_other_row
from hf_recipes.data.load import explain, reading_arguments
from hf_recipes.data.mixture import is_mixture, mix
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

HEAD = 1_000  # rows that stand for the split where columns, kinds and copies are looked at
BUFFER = 1_000  # IterableDataset.shuffle's own default
DOCUMENTS_AT_ONCE = 256
DEFAULT_SEED = 42  # TrainingArguments'


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A train split that is read while the run trains. `head`: its first rows as a table; `notes`: on the shares of a
    mixture; `explain`: the DataError of what its reader raises."""

    rows: Any
    head: Dataset
    notes: list[str]
    explain: Callable[[Exception], DataError]


class TokenStream(torch.utils.data.IterableDataset[dict[str, list[int]]]):
    """Blocks of exactly `max_length` tokens, without end. Raises DataError where a whole pass gives no block, and the
    error that `explain` makes of what the reader raises, whenever it meets a row that it cannot read."""

    def __init__(
        self, rows: Any, column: str, tokenizer: Any, *, max_length: int, seed: int, buffer_size: int, location: str,
        explain: Callable[[Exception], Exception],
    ) -> None:  # fmt: skip
        self.rows, self.column, self.tokenizer, self.explain = rows, column, tokenizer, explain
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

        texts = self._texts(rows)
        while batch := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
            for some in batches_of(batch):
                for ids in self.tokenizer(some, verbose=False)["input_ids"]:
                    yield with_end(ids, self.tokenizer.eos_token_id)

    def _texts(self, rows: Any) -> Iterator[str | None]:
        try:
            for row in rows:
                text = row[self.column]
                if not isinstance(text, str | None):
                    raise TypeError(f"the column {self.column!r} has {str(text)[:40]}, not a text")
                yield text
        except Exception as problem:  # readers may raise anything
            raise self.explain(problem) from problem


def load_stream(recipe: Recipe, path: str, arguments: Mapping[str, Any]) -> Stream:
    """The train split of the `dataset` section. Raises DataError for what cannot be read."""
    import datasets

    if processes_launched() > 1:
        where = recipe.location("dataset.streaming")
        raise DataError.at(where, "streaming: true trains on one process", "leave it out: rows are stored once for all")
    files, split = arguments.get("data_files"), arguments.get("split")
    if isinstance(files, Mapping):
        files = {"train": files.get("train")}
        arguments = {**arguments, "data_files": files}
    if isinstance(split, Mapping):
        split = split.get("train")
    reading = reading_arguments(recipe, path, arguments, list(local_files(path, arguments)))
    given = {**reading, "streaming": True, "split": split or "train"}
    shown = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its own error lines would appear beside ours
    column = recipe.get("dataset.text_column", "text")
    columns: list[str] | None = None
    try:
        if is_mixture(recipe):
            names = given.pop("data_files")["train"]
            parts = [_open(path, {**given, "data_files": {"train": [name]}}) for name in names]
            rows, shares = mix(recipe, parts, recipe.get("dataset.data_files.train"))
        else:
            parts = [rows := _open(path, given)]
            shares = []
        columns = list(parts[0].features or []) or None
        head = list(rows.take(HEAD))
        table = datasets.Dataset.from_list(head, features=rows.features)
        if any("Json" in str((one.features or {}).get(column)) for one in parts):
            raise TypeError(f"the column {column!r} mixes kinds of values")
    except DataError:
        raise
    except Exception as problem:  # readers may raise anything
        raise explain_stream(recipe, path, arguments, columns, problem) from problem
    finally:
        datasets.logging.set_verbosity(shown)
    if not head:
        raise DataError.at(recipe.location("dataset.path"), "the train split has no rows", "add some rows")
    explained = partial(explain_stream, recipe, path, arguments, table.column_names)
    return Stream(rows=rows, head=table, notes=shares, explain=explained)


def _open(path: str, given: Mapping[str, Any]) -> Any:
    """The rows of a stream. Behind a file's first 10 MB, `datasets` reads all texts of a part in which one row has a
    value of another kind as JSON, with quotes around them, unless on_mixed_types is none: then it raises."""
    import datasets

    rows = datasets.load_dataset(path, **given)
    if rows.info.builder_name != "json" or "on_mixed_types" in given or "Json" in str(rows.features):
        return rows
    return datasets.load_dataset(path, **given, on_mixed_types=None)


def explain_stream(
    recipe: Recipe, path: str, arguments: Mapping[str, Any], columns: Sequence[str] | None, problem: Exception
) -> DataError:
    """The error of a reader in one message, with the file and its line where they can be found: the files are read
    again for it. `columns`: of the first rows, where they are known."""
    if isinstance(problem, DataError):
        return problem
    files, where = list(local_files(path, arguments)), recipe.location("dataset.data_files")
    if isinstance(problem, OSError) and problem.filename:
        what = f"{problem.filename} cannot be read: {problem.strerror}"
        return DataError.at(where, what, "keep the data files where they are until the run has ended")
    if path == "json" and "field" not in arguments and not any(map(find_bad_line, files)):
        column = recipe.get("dataset.text_column", "text")
        for name in files:
            if other := find_other_row(name, [column], columns):
                return DataError.at(where, *other)
    if isinstance(problem, TypeError) and str(problem).startswith("the column"):
        return DataError.at(where, f"{', '.join(files) or path}: {problem}", "write all of them as texts")
    return explain(recipe, path, arguments, problem)


def make_stream(recipe: Recipe, stream: Stream, column: str, tokenizer: Any, max_length: int) -> TokenStream:
    seed = recipe.training.get("data_seed")
    return TokenStream(
        stream.rows, column, tokenizer,
        max_length=max_length,
        seed=int(recipe.training.get("seed", DEFAULT_SEED) if seed is None else seed),
        buffer_size=int(recipe.get("dataset.buffer_size") or BUFFER),
        location=recipe.location("dataset.max_length"),
        explain=stream.explain,
    )  # fmt: skip


def first_rows(rows: Any, count: int) -> Dataset:
    """The first rows of a split as a table, of a stream too."""
    if not isinstance(rows, TokenStream):
        found: Dataset = rows.select(range(min(count, rows.num_rows)))
        return found
    from datasets import Dataset

    return Dataset.from_list(list(itertools.islice(rows, min(count, DOCUMENTS_AT_ONCE))))
