"""A recipe's `dataset` section to splits: load_dataset's arguments, the columns, a share of train for validation.

Everything that needs no rows (a missing file, a path without a loader) is checked first, before the model is loaded.
Rows are Arrow tables on disk: a data set need not fit in memory.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.files import describe_special_file
from hf_recipes.common.text import first_line, nearest
from hf_recipes.data.columns import needed_columns
from hf_recipes.data.conll import load_conll
from hf_recipes.data.csv_files import with_types
from hf_recipes.data.files import file_names, find_other_format, literal_names
from hf_recipes.data.load import load
from hf_recipes.data.mixture import is_mixture, mix
from hf_recipes.data.row_origins import ROW, Origins, number_rows, one_file
from hf_recipes.errors import DataError, Diagnostic
from hf_recipes.recipe.schema.own_keys import DATASET, FILE_BUILDERS, SPLIT_KEYS

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.streaming import Stream
    from hf_recipes.recipe.recipe import Recipe

ROLES = ("train", "validation", "test")
DEFAULT_TEST_SIZE = 0.1
DEFAULT_SPLIT_SEED = 42
SPLIT_OFF = {"test_size": DEFAULT_TEST_SIZE, "seed": DEFAULT_SPLIT_SEED, "stratify_by_column": None}
EXTENSIONS = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet", "txt": "text"}
CONLL_ENDINGS = ("conll", "bio", "iob", "iob2")  # text files with `format: conll`


@dataclass(frozen=True, kw_only=True)
class Splits:
    """`train` is trained on, `validation` is scored during and after training, `test` only after it."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    notes: tuple[str, ...] = ()
    stream: Stream | None = None  # the train split with streaming: true; `train` has its first rows then
    origins: Origins | None = None  # of rows that test_size split off

    def by_name(self) -> dict[str, Dataset]:
        """ "train", "eval" (the validation split, as Trainer calls it) and, if there is one, "test"."""
        named = {"train": self.train, "eval": self.validation}
        return named if self.test is None else {**named, "test": self.test}


def loader_arguments(recipe: Recipe) -> dict[str, Any]:
    """The keys of the `dataset` section that are arguments of load_dataset; names of files as it takes them."""
    found = {k: v for k, v in recipe.section("dataset").items() if k not in SPLIT_KEYS and k not in DATASET}
    for key in ("path", "data_dir"):
        if isinstance(found.get(key), str):
            found[key] = os.path.expanduser(found[key])
    if "data_files" in found and isinstance(found.get("path"), str):
        base = "" if found["path"] in FILE_BUILDERS else found["path"]
        found["data_files"] = literal_names(found["data_files"], os.path.join(base, found.get("data_dir") or ""))
    return found


def file_errors(recipe: Recipe) -> list[Diagnostic]:
    """Errors that need only the file system: data files that are missing, a path that no loader fits."""
    arguments = loader_arguments(recipe)
    path, files = arguments.get("path"), arguments.get("data_files")
    location = recipe.location("dataset.path")
    if not isinstance(path, str):
        named = sorted(file_names(files).values())[:1]
        builder = EXTENSIONS.get(named[0].removesuffix(".gz").rpartition(".")[2], "json") if named else "json"
        return [
            Diagnostic(location=location, message="dataset has no path", fix=f"name its loader, e.g. path: {builder}")
        ]
    errors = list(_unknown_splits(recipe))
    if path in FILE_BUILDERS and not files and not arguments.get("data_dir"):
        fix = "add data_files: {train: ..., validation: ...}"
        errors.append(
            Diagnostic(location=location, message=f"dataset.path is {path} but no data_files are given", fix=fix)
        )
    if path in FILE_BUILDERS or os.path.isdir(path):
        base = os.path.join("" if path in FILE_BUILDERS else path, arguments.get("data_dir") or "")
        if not os.path.isdir(base or "."):
            what = f"dataset.data_dir {arguments['data_dir']!r} is not a folder on this machine"
            errors.append(
                Diagnostic(
                    location=recipe.location("dataset.data_dir"), message=what, fix=_suggest_path(base.rstrip("/"))
                )
            )
        else:
            for key, name in file_names(files).items():
                errors.extend(_missing_file(recipe, name, key, os.path.join(base, name)))
    looks_local = path.startswith((".", "/", "~")) or path.endswith(tuple(EXTENSIONS)) or path.count("/") > 1
    if path not in FILE_BUILDERS and looks_local and not os.path.exists(path):
        errors.append(
            Diagnostic(location=location, message=f"dataset.path {path!r} does not exist", fix=_suggest_path(path))
        )
    if os.path.isfile(path):
        builder = EXTENSIONS.get(path.removesuffix(".gz").rpartition(".")[2], "json")
        fix = f"write path: {builder} and data_files: {path}"
        errors.append(Diagnostic(location=location, message=f"dataset.path {path!r} is a file, not a loader", fix=fix))
    return errors


def _unknown_splits(recipe: Recipe) -> Iterator[Diagnostic]:
    """A split of another name would be loaded and never used: {train: ..., dev: ...}."""
    for key in ("split", "data_files"):
        named = recipe.get(f"dataset.{key}")
        if not isinstance(named, Mapping) or (key == "data_files" and recipe.get("dataset.split") is not None):
            continue
        for role in named:
            if role not in ROLES:
                near = nearest(str(role), ROLES) or "validation"
                what = f"dataset.{key} has {role!r}: the splits are train, validation and test"
                yield Diagnostic(
                    location=recipe.location(f"dataset.{key}.{role}"), message=what, fix=f"did you mean {near!r}?"
                )


def _missing_file(recipe: Recipe, name: str, key: str, path: str) -> list[Diagnostic]:
    location = recipe.location(key.partition("[")[0])
    if os.path.isfile(path):
        other = find_other_format(path, str(recipe.get("dataset.path")))
        return [Diagnostic(location=location, message=f"{path} {other[0]}", fix=other[1])] if other else []
    if "://" in path or (glob.has_magic(path) and glob.glob(path, recursive=True)):
        return []
    if os.path.isdir(path):
        return [
            Diagnostic(location=location, message=f"data file {name!r} is a folder", fix=f"write {name.rstrip('/')}/*")
        ]
    odd = describe_special_file(path)
    if odd:
        return [Diagnostic(location=location, message=f"data file {name!r} {odd}", fix="name a regular file")]
    what = f"data file {name!r} does not exist"
    if glob.has_magic(path):
        what = f"no data file matches {name!r}"
    return [
        Diagnostic(
            location=location, message=f"{what} (paths are relative to the working directory)", fix=_suggest_path(path)
        )
    ]


def _suggest_path(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if "\\" in path and os.path.exists(path.replace("\\", "/")):
        return f"write slashes: {path.replace(chr(92), '/')!r}"
    if not os.path.isdir(folder):
        return f"there is no folder {folder!r} either"
    name = nearest(os.path.basename(path), os.listdir(folder))
    return f"did you mean {os.path.join(os.path.dirname(path), name)!r}?" if name else ""


def load_parts(recipe: Recipe) -> tuple[dict[str, Dataset], list[str]]:
    """Split name -> rows of the `dataset` section, and notes on what was read. Raises DataError."""
    arguments = loader_arguments(recipe)
    path, needed = arguments.pop("path"), needed_columns(recipe)
    if recipe.get("dataset.format") == "conll":
        return load_conll(recipe, arguments), []
    parts, notes = load(recipe, path, arguments, needed)
    if path == "csv" and "features" not in arguments:
        label = recipe.get("dataset.label_column", "label")
        parts = with_types(parts, needed, label if isinstance(label, list) else [label])
    return parts, notes


def load_splits(recipe: Recipe) -> Splits:
    """Loads the train, validation and test splits. Raises DataError with the location and the fix."""
    errors = file_errors(recipe)
    if errors:
        raise DataError(errors)
    if recipe.get("dataset.streaming") is True:
        return _load_streaming(recipe)
    parts, read = _load_mixture(recipe) if is_mixture(recipe) else load_parts(recipe)
    location = recipe.location("dataset.split") if recipe.get("dataset.split") else recipe.location("dataset.path")
    if "train" not in parts:
        names = ", ".join(parts)
        raise DataError.at(
            location, f"the data set has no train split (it has {names})", "name one with split: {train: ...}"
        )
    notes = list(read)
    unused = [name for name in parts if name not in ROLES]
    if unused:
        notes.append(f"not used: {', '.join(unused)} (dataset.split chooses train, validation and test)")
    for name in ROLES:
        if name in parts and not parts[name].num_rows:
            raise DataError.at(
                recipe.location(f"dataset.data_files.{name}"), f"the {name} split has no rows", "add some rows"
            )
    train, validation, origins = parts["train"], parts.get("validation"), None
    if validation is None:
        options = {key: recipe.get(f"dataset.{key}", default) for key, default in SPLIT_OFF.items()}
        file = "" if is_mixture(recipe) else one_file(recipe)
        if train.num_rows > 1:
            origins = Origins(rows=train, options=options, file=file, section=recipe.section("dataset"))
        train, validation, note = _split_validation(recipe, train)
        notes.append(note)
    return Splits(train=train, validation=validation, test=parts.get("test"), notes=tuple(notes), origins=origins)


def _load_streaming(recipe: Recipe) -> Splits:
    """The train split as a stream; the others, which are scored row by row, as tables."""
    from hf_recipes.data.streaming import load_stream

    arguments = loader_arguments(recipe)
    for key in ("streaming", "buffer_size"):
        arguments.pop(key, None)
    stream = load_stream(recipe, arguments.pop("path"), arguments)
    parts, notes = load_parts(_without_train(recipe.without_key("dataset.streaming")))
    if "validation" not in parts:
        where = recipe.location("dataset.streaming")
        raise DataError.at(where, "a stream has no share to split off", "name a validation split")
    note = "train: streamed, and not stored; its first rows stand for it in the checks of columns and copies"
    notes = [*notes, *stream.notes, note]
    return Splits(
        train=stream.head, validation=parts["validation"], test=parts.get("test"), notes=tuple(notes), stream=stream
    )


def _without_train(recipe: Recipe) -> Recipe:
    """The recipe with its evaluation splits alone."""
    named = {
        f"dataset.{key}": {role: value for role, value in recipe.get(f"dataset.{key}").items() if role != "train"}
        for key in ("data_files", "split")
        if isinstance(recipe.get(f"dataset.{key}"), Mapping)
    }
    return recipe.with_values(named, recipe.location("dataset"))


def _load_mixture(recipe: Recipe) -> tuple[dict[str, Dataset], list[str]]:
    """As `load_parts`, the train split drawn from its files."""
    files = recipe.get("dataset.data_files.train")
    parts, notes = load_parts(_without_train(recipe))
    trained = []
    for name in files:
        one = recipe.with_values({"dataset.data_files": {"train": [name]}}, recipe.location("dataset.data_files"))
        found, lines = load_parts(one)
        trained.append(found["train"])
        notes += lines
    train, shares = mix(recipe, trained, files)
    return {"train": train, **parts}, [*notes, *shares]


def _split_validation(recipe: Recipe, train: Dataset) -> tuple[Dataset, Dataset, str]:
    from datasets import ClassLabel

    share = recipe.get("dataset.test_size", DEFAULT_TEST_SIZE)
    seed = recipe.get("dataset.seed", DEFAULT_SPLIT_SEED)
    by = recipe.get("dataset.stratify_by_column")
    location = recipe.location("dataset.test_size" if by is None else "dataset.stratify_by_column")
    if by is not None:
        find_column(recipe, train, "stratify_by_column", by)
    if train.num_rows == 1:
        return _split_document(recipe, train, share, location)
    try:
        if by is None or isinstance(train.features[by], ClassLabel):
            parts = train.train_test_split(test_size=share, seed=seed, stratify_by_column=by)
            rest, held_out = parts["train"], parts["test"]
        else:  # upstream stratifies by a ClassLabel only: one is made to draw the rows, and the column stays as it is
            parts = number_rows(train, by).train_test_split(test_size=share, seed=seed, stratify_by_column=by)
            rest, held_out = (train.select(parts[name][ROW]) for name in ("train", "test"))
    except (ValueError, KeyError) as problem:
        fix = "give a validation split, more rows, or another test_size"
        raise DataError.at(location, f"cannot split off validation rows: {first_line(problem)}", fix) from problem
    note = f"validation: {held_out.num_rows} rows split off the {train.num_rows} (test_size {share}, seed {seed}"
    return rest, held_out, note + (f", stratified by {by})" if by else ")")


def _split_document(recipe: Recipe, train: Dataset, share: Any, location: str) -> tuple[Dataset, Dataset, str]:
    """One long document: its end is the validation split."""
    from datasets import Dataset

    name = recipe.get("dataset.text_column", "text")
    text = train[0].get(name) if isinstance(name, str) else None
    if recipe.task != "causal-lm" or not isinstance(text, str) or not isinstance(share, float):
        fix = "give a validation split, or more rows"
        raise DataError.at(location, "the train split has one row, and validation needs some", fix)
    at = int(len(text) * (1 - share))
    at = next((text.rfind(end, 0, at) + len(end) for end in ("\n\n", "\n", " ") if end in text[:at]), at)
    parts = [Dataset.from_dict({name: [part]}) for part in (text[:at], text[at:])]
    return parts[0], parts[1], f"validation: the last {len(text) - at:,} characters of the one document"


def find_column(recipe: Recipe, rows: Dataset, key: str, default: str) -> str:
    """The column that a key of the `dataset` section names. Raises DataError with the columns that the data has."""
    name = recipe.get(f"dataset.{key}", default)
    if name in rows.column_names:
        return name
    near = nearest(str(name), rows.column_names)
    fix = f"did you mean {near!r}?" if near else f"name it with dataset.{key}"
    if recipe.get("dataset.path") == "csv" and not near and recipe.get("dataset.column_names") is None:
        needed = [column for key, column in TASKS[recipe.task].columns.items() if key != "text_pair_column"]
        fix += f"; for files without a header: column_names: [{', '.join(needed)}]"
    columns = ", ".join(rows.column_names)
    raise DataError.at(recipe.location(f"dataset.{key}"), f"the data has no column {name!r} (it has {columns})", fix)


def find_text_column(recipe: Recipe, rows: Dataset, key: str, default: str) -> str:
    """`find_column`, of texts. Raises DataError for a column of numbers, lists, ..."""
    from datasets import Value

    name = find_column(recipe, rows, key, default)
    kind = rows.features[name]
    if isinstance(kind, Value) and kind.dtype in ("string", "large_string", "string_view", "null"):
        return name  # null: every text is missing, which the task reports with its row
    mixed = describe_mixed(rows, name)
    if mixed:
        raise DataError.at(recipe.location(f"dataset.{key}"), mixed, "write all of them as texts")
    shown = kind.dtype if isinstance(kind, Value) else type(kind).__name__
    what = f"the column {name!r} holds {shown}, not text"
    raise DataError.at(recipe.location(f"dataset.{key}"), what, f"name another with dataset.{key}")


def describe_mixed(rows: Dataset, name: str, split: str = "train") -> str:
    """ "the column 'text' mixes kinds: row 0 of the train split is 'a', row 7 ... is 5"; "" for one kind."""
    if "Json" not in str(rows.features[name]):
        return ""
    first: dict[type, tuple[int, Any]] = {}
    for i, value in enumerate(rows[name]):
        if value is not None and type(value) not in first:
            first[type(value)] = (i, value)
    if len(first) < 2:
        return ""
    shown = ", ".join(
        f"row {i} of the {split} split is {str(value)[:40]!r}"
        if isinstance(value, str)
        else f"row {i} of the {split} split is {str(value)[:40]}"
        for i, value in list(first.values())[:2]
    )
    return f"the column {name!r} mixes kinds of values: {shown}"
