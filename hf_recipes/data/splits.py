"""A recipe's `dataset` section to splits: load_dataset's words, the columns checked, a validation share split off.

Everything that can be told without reading the rows (a missing file, a path without a loader) is told first,
before the model is loaded. Rows are Arrow tables on disk: a data set need not fit in memory.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes.common.text import first_line
from hf_recipes.data.load import file_names, load
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.schema.own_keys import DATASET, FILE_BUILDERS

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

SPLIT_WORDS = ("test_size", "seed", "stratify_by_column")  # of Dataset.train_test_split
ROLES = ("train", "validation", "test")
ROW = "hf_recipes: row"  # a column of ours for a moment: no user's column has this name
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
        """ "train", "eval" (the validation split, in Trainer's word) and, if there is one, "test"."""
        named = {"train": self.train, "eval": self.validation}
        return named if self.test is None else {**named, "test": self.test}


def load_words(recipe: Recipe) -> dict[str, Any]:
    """The part of the `dataset` section that load_dataset understands."""
    return {k: v for k, v in recipe.section("dataset").items() if k not in SPLIT_WORDS and k not in DATASET}


def file_errors(recipe: Recipe) -> list[Diagnostic]:
    """What the file system alone can tell: data files that are not there, a path that no loader fits."""
    words = load_words(recipe)
    path, files = words.get("path"), words.get("data_files")
    where = recipe.location("dataset.path")
    if not isinstance(path, str):
        named = sorted(file_names(files).values())[:1]
        builder = EXTENSIONS.get(named[0].removesuffix(".gz").rpartition(".")[2], "json") if named else "json"
        return [
            Diagnostic(location=where, message="dataset has no path", fix=f"say what loads it, e.g. path: {builder}")
        ]
    errors = list(_strange_roles(recipe))
    if path in FILE_BUILDERS and not files and not words.get("data_dir"):
        fix = "add data_files: {train: ..., validation: ...}"
        errors.append(
            Diagnostic(location=where, message=f"dataset.path is {path} but no data_files are given", fix=fix)
        )
    if path in FILE_BUILDERS or os.path.isdir(path):
        base = os.path.join("" if path in FILE_BUILDERS else path, words.get("data_dir") or "")
        if not os.path.isdir(base or "."):
            what = f"dataset.data_dir {words['data_dir']!r} is no folder here"
            errors.append(
                Diagnostic(location=recipe.location("dataset.data_dir"), message=what, fix=_near(base.rstrip("/")))
            )
        else:
            for key, name in file_names(files).items():
                errors.extend(_missing_file(recipe, name, key, os.path.join(base, name)))
    looks_local = path.startswith((".", "/", "~")) or path.endswith(tuple(EXTENSIONS)) or path.count("/") > 1
    if path not in FILE_BUILDERS and looks_local and not os.path.exists(path):
        errors.append(Diagnostic(location=where, message=f"dataset.path {path!r} does not exist", fix=_near(path)))
    if os.path.isfile(path):
        builder = EXTENSIONS.get(path.removesuffix(".gz").rpartition(".")[2], "json")
        fix = f"write path: {builder} and data_files: {path}"
        errors.append(Diagnostic(location=where, message=f"dataset.path {path!r} is a file, not a loader", fix=fix))
    return errors


def _strange_roles(recipe: Recipe) -> Iterator[Diagnostic]:
    """A split that is none of ours would be loaded and never used: {train: ..., dev: ...}."""
    for word in ("split", "data_files"):
        named = recipe.get(f"dataset.{word}")
        if not isinstance(named, Mapping) or (word == "data_files" and recipe.get("dataset.split") is not None):
            continue
        for role in named:
            if role not in ROLES:
                near = difflib.get_close_matches(str(role), ROLES, n=1) or ["validation"]
                what = f"dataset.{word} has {role!r}: the splits are train, validation and test"
                yield Diagnostic(
                    location=recipe.location(f"dataset.{word}.{role}"), message=what, fix=f"did you mean {near[0]!r}?"
                )


def _missing_file(recipe: Recipe, name: str, key: str, path: str) -> list[Diagnostic]:
    if "://" in path or (glob.has_magic(path) and glob.glob(path, recursive=True)) or os.path.isfile(path):
        return []
    where = recipe.location(key.partition("[")[0])
    if os.path.isdir(path):
        return [
            Diagnostic(location=where, message=f"data file {name!r} is a folder", fix=f"write {name.rstrip('/')}/*")
        ]
    what = f"data file {name!r} does not exist"
    if glob.has_magic(path):
        what = f"no data file matches {name!r}"
    return [
        Diagnostic(location=where, message=f"{what} (paths are relative to the working directory)", fix=_near(path))
    ]


def _near(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"there is no folder {folder!r} either"
    names = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), n=1, cutoff=0.6)
    return f"did you mean {os.path.join(os.path.dirname(path), names[0])!r}?" if names else ""


def load_splits(recipe: Recipe) -> Splits:
    """Loads the data and gives it its three roles. Raises RecipeError with the place and the mend."""
    errors = file_errors(recipe)
    if errors:
        raise RecipeError(errors)
    words = load_words(recipe)
    parts = load(recipe, words.pop("path"), words)
    where = recipe.location("dataset.split") if recipe.get("dataset.split") else recipe.location("dataset.path")
    if "train" not in parts:
        names = ", ".join(parts)
        raise RecipeError.at(
            where, f"the data set has no train split (it has {names})", "name one with split: {train: ...}"
        )
    notes = []
    unused = [name for name in parts if name not in ROLES]
    if unused:
        notes.append(f"not used: {', '.join(unused)} (dataset.split says which one is train, validation, test)")
    for name in ROLES:
        if name in parts and not parts[name].num_rows:
            raise RecipeError.at(
                recipe.location(f"dataset.data_files.{name}"), f"the {name} split has no rows", "give it some"
            )
    train, validation = parts["train"], parts.get("validation")
    if validation is None:
        train, validation, note = _split_off(recipe, train)
        notes.append(note)
    return Splits(train=train, validation=validation, test=parts.get("test"), notes=tuple(notes))


def _split_off(recipe: Recipe, train: Dataset) -> tuple[Dataset, Dataset, str]:
    from datasets import ClassLabel

    share = recipe.get("dataset.test_size", DEFAULT_TEST_SIZE)
    seed = recipe.get("dataset.seed", DEFAULT_SPLIT_SEED)
    by = recipe.get("dataset.stratify_by_column")
    where = recipe.location("dataset.test_size" if by is None else "dataset.stratify_by_column")
    if by is not None:
        column(recipe, train, "stratify_by_column", by)
    try:
        if by is None or isinstance(train.features[by], ClassLabel):
            parts = train.train_test_split(test_size=share, seed=seed, stratify_by_column=by)
            kept, held_out = parts["train"], parts["test"]
        else:  # upstream stratifies by a ClassLabel only: its rows are drawn by one, and the column stays as it is
            numbered = train.select_columns([by]).class_encode_column(by).add_column(ROW, range(train.num_rows))
            parts = numbered.train_test_split(test_size=share, seed=seed, stratify_by_column=by)
            kept, held_out = (train.select(parts[name][ROW]) for name in ("train", "test"))
    except (ValueError, KeyError) as problem:
        fix = "give a validation split, more rows, or another test_size"
        raise RecipeError.at(where, f"no validation share can be split off: {first_line(problem)}", fix) from problem
    note = f"validation: {held_out.num_rows} rows split off the {train.num_rows} (test_size {share}, seed {seed}"
    return kept, held_out, note + (f", stratified by {by})" if by else ")")


def column(recipe: Recipe, rows: Dataset, word: str, default: str) -> str:
    """The column that a word of ours names, held against the data. Raises with the columns that there are."""
    name = recipe.get(f"dataset.{word}", default)
    if name in rows.column_names:
        return name
    near = difflib.get_close_matches(str(name), rows.column_names, n=1, cutoff=0.6)
    fix = f"did you mean {near[0]!r}?" if near else f"say which one with dataset.{word}"
    columns = ", ".join(rows.column_names)
    raise RecipeError.at(recipe.location(f"dataset.{word}"), f"the data has no column {name!r} (it has {columns})", fix)


def text_column(recipe: Recipe, rows: Dataset, word: str, default: str) -> str:
    """`column`, of texts. Raises for a column of numbers, lists, ..."""
    from datasets import Value

    name = column(recipe, rows, word, default)
    kind = rows.features[name]
    if isinstance(kind, Value) and kind.dtype in ("string", "large_string", "string_view", "null"):
        return name  # null: every text is missing, which the task tells with its row
    shown = kind.dtype if isinstance(kind, Value) else type(kind).__name__
    what = f"the column {name!r} holds {shown}, not text"
    raise RecipeError.at(recipe.location(f"dataset.{word}"), what, f"name another with dataset.{word}")
