"""`dataset.streaming: true`: the train split is read while the run trains, and nothing of it is stored.

The rows are those of load_dataset(streaming=True), shuffled by IterableDataset.shuffle: files, and a buffer of
`dataset.buffer_size` rows to draw from. Documents are tokenized, ended, joined and cut into blocks as in causal_lm.py,
conversations become rows of their own as in chat.py (streamed_rows.py).
When the data are at their end they begin again in another order, so the stream has none, and max_steps ends the run.

The order follows from the seed alone. Each process of a launch reads it and takes its own rows of every batch. A
resumed run reads from the beginning what it has learned from already, and throws it away: the next row is the one that
an uninterrupted run would read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.data.files import local_files
from hf_recipes.data.json_files import find_bad_line, find_other_row, find_row
from hf_recipes.data.load import explain, reading_arguments
from hf_recipes.data.mixture import is_mixture, mix
from hf_recipes.data.streamed_rows import ChatRows, TextBlocks
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.chat_messages import RowError
    from hf_recipes.data.chat_tokens import RowEncoder
    from hf_recipes.recipe.recipe import Recipe

MakeRows = Callable[[Iterable[Mapping[str, Any]]], Iterator[dict[str, list[int]]]]

HEAD = 1_000  # rows that stand for the split where columns, kinds and copies are looked at
BUFFER = 1_000  # IterableDataset.shuffle's own default
SHOWN = 80  # characters of a row in a message
LOOKED_AT = 256  # rows of tokens that stand for all of them
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
    """Rows of tokens without end, pass after pass over the data. `begin` makes what turns source rows into them, new
    for each iteration (data/streamed_rows.py); `text_column` holds texts, "" where `begin` reads other rows;
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

    def _read(self, rows: Any) -> Iterator[Mapping[str, Any]]:
        try:
            for row in rows:
                text = row[self.text_column] if self.text_column else None
                if not isinstance(text, str | None):
                    raise TypeError(f"the column {self.text_column!r} has {str(text)[:40]}, not a text")
                yield row
        except Exception as problem:  # readers may raise anything
            raise self.explain(problem) from problem


def load_stream(recipe: Recipe, path: str, arguments: Mapping[str, Any]) -> Stream:
    """The train split of the `dataset` section. Raises DataError for what cannot be read."""
    import datasets

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
    column = recipe.get("dataset.text_column", "text") if recipe.task == "causal-lm" else None
    columns: list[str] | None = None
    open_part = partial(_open, path, nested=recipe.task == "chat")
    try:
        if is_mixture(recipe):
            names = given.pop("data_files")["train"]
            parts = [open_part({**given, "data_files": {"train": [name]}}) for name in names]
            rows, shares = mix(recipe, parts, recipe.get("dataset.data_files.train"))
        else:
            parts = [rows := open_part(given)]
            shares = []
        columns = list(parts[0].features or []) or None
        head = list(rows.take(HEAD))
        table = datasets.Dataset.from_list(head, features=rows.features)
        if column and any("Json" in str((one.features or {}).get(column)) for one in parts):
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


def _open(path: str, given: Mapping[str, Any], *, nested: bool) -> Any:
    """The rows of a stream. Behind a file's first 10 MB, `datasets` reads all texts of a part in which one row has a
    value of another kind as JSON, with quotes around them, unless on_mixed_types is none: then it raises.

    `nested`: columns of lists and objects hold any JSON, so that each row has the keys that it has in its file, as in a
    table, and may have others than the first rows."""
    import datasets

    rows = datasets.load_dataset(path, **given)
    if rows.info.builder_name != "json":
        return rows
    if nested and rows.features and "features" not in given:
        kinds = {
            name: kind if isinstance(kind, datasets.Value) else datasets.Json() for name, kind in rows.features.items()
        }
        return datasets.load_dataset(path, **given, features=datasets.Features(kinds))
    if "on_mixed_types" in given or "Json" in str(rows.features):
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
        texts = [recipe.get("dataset.text_column", "text")] if recipe.task == "causal-lm" else []
        for name in files:
            if other := find_other_row(name, texts, columns):
                return DataError.at(where, *other)
    if isinstance(problem, TypeError) and str(problem).startswith("the column"):
        return DataError.at(where, f"{', '.join(files) or path}: {problem}", "write all of them as texts")
    return explain(recipe, path, arguments, problem)


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


def _refuse_row(recipe: Recipe, key: str, row: Mapping[str, Any], problem: RowError) -> DataError:
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
