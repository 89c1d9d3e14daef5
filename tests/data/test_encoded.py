"""Rows of classifiers are tokenized once, found by what makes them, and made again if they were damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.data.prepared import Prepared
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import TEXTS, prepare, wordpiece

Make = Callable[..., Recipe]
WORDS = sorted({word for text in TEXTS for word in text.split()})
TEXT_ROWS = [{"text": TEXTS[i % 4], "label": ("no", "yes")[i % 2], "other": TEXTS[i % 3]} for i in range(40)]
TAG_ROWS = [{"tokens": (some := TEXTS[i % 4].split()), "tags": ["B-X", *["O"] * (len(some) - 1)]} for i in range(40)]
TASKS = {"text-classification": TEXT_ROWS, "token-classification": TAG_ROWS}


def file_of(found: Prepared) -> Path:
    return Path(found.train.cache_files[0]["filename"])


def content(found: Prepared) -> Any:
    return {split: part[:] for split, part in {"train": found.train, **found.evals}.items()}, found.stats, found.ids


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_second_run_finds_the_rows_whatever_its_training_is(make: Make, folder: Path, task: str) -> None:
    rows, tokenizer = TASKS[task], wordpiece(WORDS)
    store = f"cache_dir: {folder / 'cache'}"
    first = prepare(make(task, store), rows, tokenizer)
    state = file_of(first).stat()
    tokenizer(TEXTS[0], truncation=True, max_length=3)  # leaves its truncation behind
    again = prepare(make(task, f"test_size: 0.2, {store}", arguments="learning_rate: 0.5"), rows, tokenizer)
    assert content(again) == content(first) and file_of(again) == file_of(first)
    assert file_of(again).stat().st_ino == state.st_ino and file_of(again).stat().st_mtime_ns == state.st_mtime_ns


def test_what_changes_the_rows_makes_others(make: Make, folder: Path, task: str) -> None:
    rows, tokenizer = TASKS[task], wordpiece(WORDS)
    recipe = make(task, f"cache_dir: {folder / 'cache'}")
    found = [
        prepare(recipe, rows, tokenizer),
        prepare(recipe, rows, tokenizer, length=63),
        prepare(recipe, rows[:-1], tokenizer),
        prepare(recipe, rows, wordpiece(WORDS[9:])),
    ]
    if task == "text-classification":
        found += [
            prepare(make(task, f"cache_dir: {folder / 'cache'}, text_column: other"), rows, tokenizer),
            prepare(recipe, [{**row, "label": f"not {row['label']}"} for row in rows], tokenizer),
            prepare(recipe, [{**row, "label": "no"} for row in rows[:-1]] + rows[-1:], tokenizer),
        ]
    assert len({file_of(one) for one in found}) == len(found)


@pytest.mark.parametrize("damage", ["flipped", "cut", "killed before its digest"])
def test_a_damaged_file_is_made_again(make: Make, folder: Path, task: str, damage: str) -> None:
    rows, tokenizer = TASKS[task], wordpiece(WORDS)
    recipe = make(task, f"cache_dir: {folder / 'cache'}")
    first = prepare(recipe, rows, tokenizer)
    path, good = file_of(first), content(first)
    values = bytearray(path.read_bytes())
    if damage == "flipped":
        middle = values.index(bytes(first.train[0]["input_ids"][0].to_bytes(4, "little")), len(values) // 3)
        values[middle] ^= 1
    if damage == "cut":
        values = values[: len(values) // 2]
    path.unlink()
    path.write_bytes(values)
    if damage.startswith("killed"):
        path.with_suffix(".json").unlink()
    assert content(prepare(recipe, rows, tokenizer)) == good


def test_whatever_takes_the_place_of_rows_they_are_made_again(make: Make, folder: Path) -> None:
    recipe, tokenizer = make("text-classification", f"cache_dir: {folder / 'cache'}"), wordpiece(WORDS)
    other = file_of(prepare(recipe, TEXT_ROWS[:-1], tokenizer))
    first = prepare(recipe, TEXT_ROWS, tokenizer)
    path, good = file_of(first), content(first)
    shutil.rmtree(path.parent)
    shutil.copytree(other.parent, path.parent)  # complete, but of other texts
    assert content(prepare(recipe, TEXT_ROWS, tokenizer)) == good
    for one in (path, path.with_suffix(".json")):
        one.unlink()
        one.mkdir()
    assert content(prepare(recipe, TEXT_ROWS, tokenizer)) == good


def test_a_store_that_cannot_be_written_is_named(make: Make, folder: Path) -> None:
    from hf_recipes.errors import DataError

    (folder / "cache").write_text("a file")
    with pytest.raises(DataError, match="environment: the prepared rows"):
        prepare(make("text-classification", f"cache_dir: {folder / 'cache'}"), TEXT_ROWS, wordpiece(WORDS))
