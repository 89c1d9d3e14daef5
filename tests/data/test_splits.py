"""The `dataset` section: every file format, slices and shares; every error has its location and its fix."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from hf_recipes.common.run_lock import hold_folder
from hf_recipes.data.row_ids import fingerprint
from hf_recipes.data.splits import file_errors, find_column, find_text_column, load_splits
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import write_rows

PACKED = b"".join(b'{"text": "row %d"}\n' % n for n in range(99))
ROWS = [{"text": f"text {i}", "label": ("bad", "good", "good")[i % 3]} for i in range(30)]
Make = Callable[[str], Recipe]


@pytest.fixture
def make(write_recipe: Callable[..., str]) -> Make:
    """A recipe whose dataset section (line 3) is the given flow mapping."""

    def recipe(dataset: str) -> Recipe:
        model = "model: {pretrained_model_name_or_path: bert-base-uncased}"
        text = f"task: text-classification\n{model}\ndataset: {dataset}\nTrainingArguments: {{output_dir: out}}\n"
        return read_recipe(write_recipe(text))

    return recipe


def message(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as raised:
        load_splits(recipe)
    return str(raised.value)


def write_all(folder: Path) -> None:
    rows = Dataset.from_list(ROWS)
    write_rows(folder / "a.jsonl", ROWS)
    (folder / "a.json").write_text(json.dumps(ROWS))
    (folder / "nested.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    rows.to_csv(folder / "a.csv", index=False)
    rows.to_csv(folder / "a.tsv", index=False, sep="\t")
    rows.to_parquet(folder / "a.parquet")
    with gzip.open(folder / "a.jsonl.gz", "wt") as packed:
        packed.write((folder / "a.jsonl").read_text())
    rows.save_to_disk(str(folder / "saved"))
    DatasetDict(train=rows, test=rows.select(range(5))).save_to_disk(str(folder / "saved_dict"))
    for part in ("one", "two"):
        (folder / "parts").mkdir(exist_ok=True)
        write_rows(folder / "parts" / f"{part}.jsonl", ROWS[:15] if part == "one" else ROWS[15:])


@pytest.mark.parametrize(
    "dataset",
    [
        "{path: json, data_files: a.jsonl}",
        "{path: json, data_files: a.json}",
        "{path: json, data_files: a.jsonl.gz}",
        "{path: json, data_files: nested.json, field: data}",
        "{path: csv, data_files: a.csv}",
        '{path: csv, data_files: a.tsv, sep: "\\t"}',
        "{path: parquet, data_files: a.parquet}",
        "{path: json, data_files: parts/*.jsonl}",
        "{path: json, data_files: [parts/one.jsonl, parts/two.jsonl]}",
        "{path: json, data_dir: parts, data_files: [one.jsonl, two.jsonl]}",
        "{path: json, data_files: {train: parts/one.jsonl, validation: parts/two.jsonl}, split: train+validation}",
        "{path: parts, data_files: {train: ['*.jsonl']}}",
        "{path: saved}",
        "{path: saved_dict, split: train}",
    ],
)
def test_the_same_rows_come_out_of_every_kind_of_file(folder: Path, make: Make, dataset: str) -> None:
    write_all(folder)
    splits = load_splits(make(dataset))
    assert (splits.train.num_rows, splits.validation.num_rows, splits.test) == (27, 3, None)
    both = [*splits.train, *splits.validation]
    assert sorted(row["text"] for row in both) == sorted(row["text"] for row in ROWS)
    assert splits.notes == ("validation: 3 rows split off the 30 (test_size 0.1, seed 42)",)


def test_text_files_give_one_row_a_line(folder: Path, make: Make) -> None:
    (folder / "a.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    splits = load_splits(make("{path: text, data_files: {train: a.txt, validation: a.txt}}"))
    assert splits.train["text"] == ["one", "two", "", "three"]


def test_slices_say_which_rows_are_trained_on_and_which_are_scored(folder: Path, make: Make) -> None:
    write_all(folder)
    split = '{train: "train[:20]", validation: "train[20:24]", test: "train[-2:]"}'
    for dataset in ("path: json, data_files: a.jsonl", "path: saved", "path: saved_dict"):
        splits = load_splits(make(f"{{{dataset}, split: {split}}}"))
        assert splits.train["text"] == [f"text {i}" for i in range(20)]
        assert splits.validation["text"] == [f"text {i}" for i in range(20, 24)]
        assert splits.test is not None and splits.test["text"] == ["text 28", "text 29"]


def test_a_test_split_beside_the_train_split_is_used_only_at_the_end(folder: Path, make: Make) -> None:
    write_all(folder)
    splits = load_splits(make("{path: saved_dict, test_size: 6}"))
    assert (splits.train.num_rows, splits.validation.num_rows) == (24, 6)
    assert splits.test is not None and splits.by_name().keys() == {"train", "eval", "test"}


def test_the_validation_share_is_the_same_at_every_run_and_another_with_another_seed(folder: Path, make: Make) -> None:
    write_all(folder)

    def held_out(keys: str) -> list[str]:
        return load_splits(make(f"{{path: json, data_files: a.jsonl, {keys}}}")).validation["text"]

    first = list(held_out("test_size: 0.2, seed: 1"))
    assert first == list(held_out("test_size: 0.2, seed: 1"))
    assert len(first) == 6 and set(first) != set(held_out("test_size: 0.2, seed: 2"))


def test_a_stratified_share_has_every_label_as_often_and_leaves_the_labels_as_they_were(
    folder: Path, make: Make
) -> None:
    rows = [{"text": f"text {i}", "label": (3, 10, 10)[i % 3]} for i in range(30)]
    write_rows(folder / "a.jsonl", rows)
    splits = load_splits(make("{path: json, data_files: a.jsonl, test_size: 6, stratify_by_column: label}"))
    assert sorted(splits.validation["label"]) == [3, 3, 10, 10, 10, 10]  # as numbers, not as 0 and 1
    assert not set(splits.validation["text"]) & set(splits.train["text"])
    assert splits.notes == ("validation: 6 rows split off the 30 (test_size 6, seed 42, stratified by label)",)


def test_a_class_label_column_is_stratified_as_it_is(folder: Path, make: Make) -> None:
    Dataset.from_list(ROWS).cast_column("label", ClassLabel(names=["good", "bad"])).save_to_disk(str(folder / "saved"))
    splits = load_splits(make("{path: saved, test_size: 6, stratify_by_column: label}"))
    assert sorted(splits.validation["label"]) == [0, 0, 0, 0, 1, 1]


def test_splits_that_are_not_used_are_reported(folder: Path, make: Make) -> None:
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, unsupervised=rows).save_to_disk(str(folder / "saved"))
    notes = load_splits(make("{path: saved}")).notes
    assert notes[0] == "not used: unsupervised (dataset.split chooses train, validation and test)"


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            "{path: json, data_files: b.jsonl}",
            "data file 'b.jsonl' does not exist (paths are relative to the working directory); did you mean 'a.jsonl'?",
        ),
        (
            "{path: json, data_files: {train: a.jsonl, validation: no/b.jsonl}}",
            "data file 'no/b.jsonl' does not exist (paths are relative to the working directory); "
            "there is no folder 'no' either",
        ),
        (
            "{path: json, data_files: parts/*.json}",
            "no data file matches 'parts/*.json' (paths are relative to the working directory); "
            "did you mean 'parts/two.jsonl'?",
        ),
        ("{path: json, data_files: /dev/zero}", "data file '/dev/zero' is a device, not a file; name a regular file"),
        ("{path: json, data_files: parts}", "data file 'parts' is a folder; write parts/*"),
        (
            "{path: json, data_dir: part, data_files: one.jsonl}",
            "dataset.data_dir 'part' is not a folder on this machine; did you mean 'parts'?",
        ),
        (
            "{path: json}",
            "dataset.path is json but no data_files are given; add data_files: {train: ..., validation: ...}",
        ),
        ("{path: a.jsonl}", "dataset.path 'a.jsonl' is a file, not a loader; write path: json and data_files: a.jsonl"),
        ("{path: ./save}", "dataset.path './save' does not exist; did you mean './saved'?"),
        (
            "{path: json, data_files: {train: a.jsonl, valid: a.jsonl}}",
            "dataset.data_files has 'valid': the splits are train, validation and test; did you mean 'validation'?",
        ),
        (
            "{path: saved, split: {train: train, dev: train}}",
            "dataset.split has 'dev': the splits are train, validation and test; did you mean 'validation'?",
        ),
    ],
)
def test_errors_in_files_and_paths_are_reported_without_reading_a_row(
    folder: Path, make: Make, dataset: str, expected: str
) -> None:
    write_all(folder)
    recipe = make(dataset)
    assert [str(found) for found in file_errors(recipe)] == [f"recipe.yaml:3: {expected}"]


@pytest.mark.parametrize(
    ("name", "content", "arguments", "expected"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b"\n{"text": "c"}\n',
            "path: json",
            "a.jsonl:2 is not JSON: Expecting ',' delimiter (column 13); fix that line, or remove it",
        ),
        (
            "a.json",
            b'[{"text": "a"},\n {"text" "b"}]',
            "path: json",
            "a.json:2 is not JSON: Expecting ':' delimiter (column 10); fix that line, or remove it",
        ),
        ("a.jsonl", b"", "path: json", "a.jsonl is empty; add some rows"),
        ("a.jsonl", b"\n\n", "path: json", "there are no rows in a.jsonl; add some rows"),
        ("a.json", b"[]", "path: json", "there are no rows in a.json; add some rows"),
        ("a.csv", b"", "path: csv", "a.csv is empty; add some rows"),
        ("a.csv", b"text,label\n", "path: csv", "there are no rows in a.csv; add some rows"),
        ("a.txt", b"", "path: text", "a.txt is empty; add some rows"),
        (
            "a.csv",
            "text,label\ncafé,1\n".encode("latin-1"),
            "path: csv",
            "a.csv:2 is not UTF-8 text; convert it, or name its encoding, e.g. encoding: latin-1",
        ),
        (
            "a.txt",
            "café\n".encode("latin-1"),
            "path: text",
            "a.txt:1 is not UTF-8 text; convert it, or name its encoding, e.g. encoding: latin-1",
        ),
        (
            "a.jsonl",  # Arrow reads it as it is
            '{"text": "a"}\n{"text": "café"}\n'.encode("latin-1"),
            "path: json",
            "a.jsonl:2 is not UTF-8 text; convert it, or name its encoding, e.g. encoding: latin-1",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n'.encode("utf-16"),
            "path: json",
            "a.jsonl:1 is not UTF-8 text; convert it, or name its encoding, e.g. encoding: utf-16",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(PACKED, mtime=0)[:-20],
            "path: json",
            "a.jsonl.gz cannot be read: it is cut off; copy or download it again",
        ),
        (
            "a.jsonl.xz",
            lzma.compress(PACKED)[:-20],
            "path: json",
            "a.jsonl.xz cannot be read: it is cut off; copy or download it again",
        ),
        (
            "a.jsonl.bz2",
            bz2.compress(PACKED)[:-20],
            "path: json",
            "a.jsonl.bz2 cannot be read: it is cut off; copy or download it again",
        ),
        (
            "a.jsonl.zip",
            b"PK\x03\x04" + PACKED,
            "path: json",
            "a.jsonl.zip cannot be read: it is cut off, or no zip file (File is not a zip file); "
            "copy or download it again",
        ),
        (
            "a.jsonl.gz",
            b"no archive",
            "path: json",
            "a.jsonl.gz cannot be read: it is no gzip file; copy or download it again",
        ),
        (
            "a.jsonl.gz",
            gzip.compress('{"text": "café"}\n'.encode("latin-1"), mtime=0),
            "path: json",
            "a.jsonl.gz:1 is not UTF-8 text; convert it, or name its encoding, e.g. encoding: latin-1",
        ),
        (
            "a.parquet",
            b"PAR1 no",
            "path: parquet",
            "a.parquet cannot be read as parquet: Parquet file size is 7 bytes, smaller than the minimum file footer "
            "(8 bytes); is the file complete, and in that format?",
        ),
        (
            "a.csv",
            b'text,label\na,b\n"c,d\ne,f,g,h\n',
            "path: csv",
            "a.csv:3: the quote that opens here makes one row of 2 lines; write quoting: 3 (quotes are part of the "
            "texts), or close the quote and double those inside it",
        ),
    ],
)
def test_an_unreadable_file_is_named_with_its_line_where_it_has_one(
    folder: Path,
    make: Make,
    capfd: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    arguments: str,
    expected: str,
) -> None:
    (folder / name).write_bytes(content)
    assert message(make(f"{{{arguments}, data_files: {name}}}")) == f"recipe.yaml:3: {expected}"
    assert "Failed to" not in capfd.readouterr().err  # upstream's own lines are not shown beside ours


def test_the_bad_file_among_many_is_named(folder: Path, make: Make) -> None:
    write_all(folder)
    (folder / "parts" / "three.jsonl").write_text('{"text": "a", "label": "bad"}\n{text: b}\n')
    assert message(make("{path: json, data_files: parts/*.jsonl}")) == (
        "recipe.yaml:3: parts/three.jsonl:2 is not JSON: Expecting property name enclosed in double quotes (column 2); "
        "fix that line, or remove it"
    )


def test_files_with_other_columns_are_reported_with_the_columns_of_both(folder: Path, make: Make) -> None:
    write_rows(folder / "a.jsonl", ROWS)
    write_rows(folder / "b.jsonl", [{"text": "a", "lable": "bad"}])
    assert message(make("{path: json, data_files: {train: a.jsonl, validation: b.jsonl}}")) == (
        "recipe.yaml:3: the data files differ in their columns: the first has text, label, another lable; "
        "give all the same columns"
    )


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            "{path: json, data_files: a.jsonl, split: valid}",
            "dataset.split: Unknown split \"valid\". Should be one of ['train'].",
        ),
        (
            "{path: saved, split: valid}",
            "dataset.split: Unknown split \"valid\". Should be one of ['train'].",
        ),
        (
            '{path: saved, split: "train[:x]"}',
            "dataset.split: Unrecognized instruction format: train[:x]",
        ),
        (
            '{path: json, data_files: a.jsonl, split: "train[:0]"}',
            "there are no rows in a.jsonl; add some rows",
        ),
        (
            "{path: saved_dict, split: {validation: test}}",
            "the data set has no train split (it has validation); name one with split: {train: ...}",
        ),
        (
            "{path: json, data_files: {test: a.jsonl}}",
            "the data set has no train split (it has test); name one with split: {train: ...}",
        ),
        (
            "{path: saved, name: small}",
            "dataset.name has no effect: 'saved' is a folder written by save_to_disk; leave it out",
        ),
        (
            "{path: saved, stratify_by_column: lable}",
            "the data has no column 'lable' (it has text, label); did you mean 'label'?",
        ),
        (
            "{path: saved, test_size: 30}",
            "cannot split off validation rows: test_size=30 should be either positive and smaller than the number "
            "of samples 30 or a float in the (0, 1) range; give a validation split, more rows, or another test_size",
        ),
        (
            "{path: saved, test_size: 1, stratify_by_column: label}",
            "cannot split off validation rows: The test_size = 1 should be greater or equal to the number of "
            "classes = 2; give a validation split, more rows, or another test_size",
        ),
    ],
)
def test_a_wrong_split_is_reported_with_its_location(folder: Path, make: Make, dataset: str, expected: str) -> None:
    write_all(folder)
    assert message(make(dataset)) == f"recipe.yaml:3: {expected}"


def test_a_folder_of_save_to_disk_without_its_rows_is_reported(folder: Path, make: Make) -> None:
    write_all(folder)
    next((folder / "saved").glob("*.arrow")).write_bytes(b"no arrow")
    assert message(make("{path: saved}")).startswith(
        "recipe.yaml:3: 'saved' cannot be read as a folder written by save_to_disk: "
    )


def test_a_hub_name_that_cannot_be_reached_is_reported(make: Make) -> None:
    assert message(make("{path: nobody/nothing}")) == (
        "recipe.yaml:3: the data set 'nobody/nothing' cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub "
        "(OfflineModeIsEnabled); check the name, and that this machine can reach the Hub; for local files write "
        "path: json, ..."
    )


def test_streaming_is_refused_with_its_reason(make: Make) -> None:
    with pytest.raises(RecipeError) as raised:
        make("{path: json, data_files: a.jsonl, streaming: true}")
    assert str(raised.value) == (
        "recipe.yaml:3: dataset.streaming: true trains causal-lm with TrainingArguments, and chat; leave it out: rows "
        "are stored once as tables on disk, which need not fit in memory"
    )


def test_a_missing_column_is_reported_with_the_columns_of_the_data(make: Make) -> None:
    rows = Dataset.from_list(ROWS)
    recipe = make("{path: json, text_column: txt}")
    with pytest.raises(RecipeError) as raised:
        find_column(recipe, rows, "text_column", "text")
    assert str(raised.value) == (
        "recipe.yaml:3: the data has no column 'txt' (it has text, label); did you mean 'text'?"
    )


def test_a_column_of_numbers_is_refused_as_text(make: Make) -> None:
    rows = Dataset.from_list([{"text": 1}])
    with pytest.raises(RecipeError) as raised:
        find_text_column(make("{path: json}"), rows, "text_column", "text")
    assert str(raised.value) == (
        "recipe.yaml:3: the column 'text' holds int64, not text; name another with dataset.text_column"
    )


def test_an_output_dir_that_is_a_file_is_reported_and_left_as_it_is(folder: Path) -> None:
    (folder / "out").write_text("mine")
    for name in ("out", "out/run"):
        with pytest.raises(RecipeError) as raised, hold_folder(Path(name), "recipe.yaml:4"):
            pass
        assert str(raised.value) == (
            f"recipe.yaml:4: output_dir '{name}' is not writable ('out' is a file); choose another"
        )
    assert (folder / "out").read_text() == "mine"


def test_an_output_dir_that_can_be_written_is_made_and_an_empty_one_does_not_stay(folder: Path) -> None:
    with hold_folder(Path("a/b"), "recipe.yaml:4"):
        assert [path.name for path in Path("a/b").iterdir()] == [".lock"]
    assert not Path("a").exists()


def test_the_fingerprint_is_of_the_rows_and_their_order() -> None:
    rows = Dataset.from_list(ROWS)
    same = Dataset.from_list([dict(reversed(row.items())) for row in ROWS])
    assert fingerprint(rows, ["text", "label"]) == fingerprint(same, ["label", "text"])
    assert fingerprint(rows, ["text"]) != fingerprint(rows.select(range(29, -1, -1)), ["text"])
    assert fingerprint(rows, ["text"], limit=10).startswith("every 3th:")


def test_missing_files_are_found_without_importing_torch_or_datasets(folder: Path) -> None:
    code = "import sys, hf_recipes.data.splits; sys.exit(any(m in sys.modules for m in ('torch', 'datasets', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
