"""`dataset.streaming: true`: the train split is read while the run trains, and nothing of it is stored.

The rows are those of load_dataset(streaming=True), shuffled by IterableDataset.shuffle: files, and a buffer of
`dataset.buffer_size` rows to draw from. Documents are tokenized, ended, joined and cut into blocks as in causal_lm.py,
conversations become rows of their own as in chat.py: streamed_rows.py does it.
When the data are at their end they begin again in another order, so the stream has none, and max_steps ends the run.

The order follows from the seed alone. Each process of a launch reads it and takes its own rows of every batch. A
resumed run reads from the beginning what it has learned from already, and throws it away: the next row is the one that
an uninterrupted run would read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_recipes.data.files import local_files
from hf_recipes.data.json_files import find_bad_line, find_other_row
from hf_recipes.data.load import explain, reading_arguments
from hf_recipes.data.mixture import is_mixture, mix
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

HEAD = 1_000  # rows that stand for the split where columns, kinds and copies are looked at


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A train split that is read while the run trains. `head`: its first rows as a table; `notes`: on the shares of a
    mixture; `explain`: the DataError of what its reader raises."""

    rows: Any
    head: Dataset
    notes: list[str]
    explain: Callable[[Exception], DataError]


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
