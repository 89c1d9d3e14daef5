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

from hf_recipes.common.text import first_line, nearest
from hf_recipes.data.conll import load_conll
from hf_recipes.data.load import file_names, load
from hf_recipes.errors import DataError, Diagnostic
from hf_recipes.recipe.schema.own_keys import DATASET, FILE_BUILDERS

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

SPLIT_KEYS = ("test_size", "seed", "stratify_by_column")  # of Dataset.train_test_split
ROLES = ("train", "validation", "test")
ROW = "hf_recipes: row"  # a temporary column: no user's column has this name
DEFAULT_TEST_SIZE = 0.1
DEFAULT_SPLIT_SEED = 42
EXTENSIONS = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet", "txt": "text"}


@dataclass(frozen=True, kw_only=True)
class Splits:
    """`train` is trained on, `validation` is scored during and after training, `test` only after it."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    notes: tuple[str, ...] = ()

    def by_name(self) -> dict[str, Dataset]:
        """ "train", "eval" (the validation split, as Trainer calls it) and, if there is one, "test"."""
        named = {"train": self.train, "eval": self.validation}
        return named if self.test is None else {**named, "test": self.test}


def loader_arguments(recipe: Recipe) -> dict[str, Any]:
    """The keys of the `dataset` section that are arguments of load_dataset."""
    return {k: v for k, v in recipe.section("dataset").items() if k not in SPLIT_KEYS and k not in DATASET}


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
    if "://" in path or (glob.has_magic(path) and glob.glob(path, recursive=True)) or os.path.isfile(path):
        return []
    location = recipe.location(key.partition("[")[0])
    if os.path.isdir(path):
        return [
            Diagnostic(location=location, message=f"data file {name!r} is a folder", fix=f"write {name.rstrip('/')}/*")
        ]
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
    if not os.path.isdir(folder):
        return f"there is no folder {folder!r} either"
    name = nearest(os.path.basename(path), os.listdir(folder))
    return f"did you mean {os.path.join(os.path.dirname(path), name)!r}?" if name else ""


def load_splits(recipe: Recipe) -> Splits:
    """Loads the train, validation and test splits. Raises DataError with the location and the fix."""
    errors = file_errors(recipe)
    if errors:
        raise DataError(errors)
    arguments = loader_arguments(recipe)
    path = arguments.pop("path")
    conll = recipe.get("dataset.format") == "conll"
    parts = load_conll(recipe, arguments) if conll else load(recipe, path, arguments)
    location = recipe.location("dataset.split") if recipe.get("dataset.split") else recipe.location("dataset.path")
    if "train" not in parts:
        names = ", ".join(parts)
        raise DataError.at(
            location, f"the data set has no train split (it has {names})", "name one with split: {train: ...}"
        )
    notes = []
    unused = [name for name in parts if name not in ROLES]
    if unused:
        notes.append(f"not used: {', '.join(unused)} (dataset.split chooses train, validation and test)")
    for name in ROLES:
        if name in parts and not parts[name].num_rows:
            raise DataError.at(
                recipe.location(f"dataset.data_files.{name}"), f"the {name} split has no rows", "add some rows"
            )
    train, validation = parts["train"], parts.get("validation")
    if validation is None:
        train, validation, note = _split_validation(recipe, train)
        notes.append(note)
    return Splits(train=train, validation=validation, test=parts.get("test"), notes=tuple(notes))


def _split_validation(recipe: Recipe, train: Dataset) -> tuple[Dataset, Dataset, str]:
    from datasets import ClassLabel

    share = recipe.get("dataset.test_size", DEFAULT_TEST_SIZE)
    seed = recipe.get("dataset.seed", DEFAULT_SPLIT_SEED)
    by = recipe.get("dataset.stratify_by_column")
    location = recipe.location("dataset.test_size" if by is None else "dataset.stratify_by_column")
    if by is not None:
        find_column(recipe, train, "stratify_by_column", by)
    try:
        if by is None or isinstance(train.features[by], ClassLabel):
            parts = train.train_test_split(test_size=share, seed=seed, stratify_by_column=by)
            rest, held_out = parts["train"], parts["test"]
        else:  # upstream stratifies by a ClassLabel only: one is made to draw the rows, and the column stays as it is
            numbered = train.select_columns([by]).class_encode_column(by).add_column(ROW, range(train.num_rows))
            parts = numbered.train_test_split(test_size=share, seed=seed, stratify_by_column=by)
            rest, held_out = (train.select(parts[name][ROW]) for name in ("train", "test"))
    except (ValueError, KeyError) as problem:
        fix = "give a validation split, more rows, or another test_size"
        raise DataError.at(location, f"cannot split off validation rows: {first_line(problem)}", fix) from problem
    note = f"validation: {held_out.num_rows} rows split off the {train.num_rows} (test_size {share}, seed {seed}"
    return rest, held_out, note + (f", stratified by {by})" if by else ")")


def find_column(recipe: Recipe, rows: Dataset, key: str, default: str) -> str:
    """The column that a key of the `dataset` section names. Raises DataError with the columns that the data has."""
    name = recipe.get(f"dataset.{key}", default)
    if name in rows.column_names:
        return name
    near = nearest(str(name), rows.column_names)
    fix = f"did you mean {near!r}?" if near else f"name it with dataset.{key}"
    columns = ", ".join(rows.column_names)
    raise DataError.at(recipe.location(f"dataset.{key}"), f"the data has no column {name!r} (it has {columns})", fix)


def find_text_column(recipe: Recipe, rows: Dataset, key: str, default: str) -> str:
    """`find_column`, of texts. Raises DataError for a column of numbers, lists, ..."""
    from datasets import Value

    name = find_column(recipe, rows, key, default)
    kind = rows.features[name]
    if isinstance(kind, Value) and kind.dtype in ("string", "large_string", "string_view", "null"):
        return name  # null: every text is missing, which the task reports with its row
    shown = kind.dtype if isinstance(kind, Value) else type(kind).__name__
    what = f"the column {name!r} holds {shown}, not text"
    raise DataError.at(recipe.location(f"dataset.{key}"), what, f"name another with dataset.{key}")
