"""Files as people have them: read right, or refused with the key that reads them; never other rows in silence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_recipes.data.splits import Splits, find_text_column, load_splits
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import prepare, refusal, wordpiece, write_rows

Make = Callable[..., Recipe]
ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
TSV = "text\tlabel\n" + "".join(f"{'' if i % 7 else chr(34)}meal {i}\t{'ab'[i % 2]}\n" for i in range(64))
SWALLOWED = CSV.replace("text 3,", '"text 3,').replace("text 9,", 'text 9",')
LINES = "write one object a line; in pandas: to_json(..., orient='records', lines=True)"


@pytest.fixture
def read(folder: Path, make: Make) -> Callable[..., Splits]:
    """Loads a file of this content through a recipe."""

    def load(name: str, content: str | bytes, keys: str = "", task: str = "text-classification") -> Splits:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        kind = "text" if ".txt" in name else "csv" if ".csv" in name or ".tsv" in name else "json"
        return load_splits(make(task, f"data_files: {json.dumps(name)}{keys and ', ' + keys}", path=kind))

    return load


def rows_of(splits: Splits) -> list[dict]:
    """All rows, in the order of their text."""
    found = [*splits.train, *splits.validation]
    return sorted(({"text": row["text"], "label": row["label"]} for row in found), key=lambda row: row["text"])


IN_ORDER = sorted(ROWS, key=lambda row: row["text"])


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("bom.csv", "\ufeff" + CSV, ""),
        ("crlf.csv", CSV.replace("\n", "\r\n"), ""),
        ("blank.csv", CSV.replace("\n", "\n\n"), ""),
        ("wide.csv", CSV.encode("utf-16"), "encoding: utf-16"),
        ("semi.csv", CSV.replace(",", ";"), 'delimiter: ";"'),
        ("bare.csv", CSV.split("\n", 1)[1], "column_names: [text, label]"),
        ("packed.csv.gz", gzip.compress(CSV.encode(), mtime=0), ""),
        ("unread.csv", "".join(line + f",{i or 'x'}\n" for i, line in enumerate(CSV.splitlines())), ""),
        ("wide.jsonl", JSONL.encode("utf-16"), "encoding: utf-16"),
        ("bom.jsonl", "\ufeff" + JSONL, ""),
        ("crlf.jsonl", JSONL.replace("\n", "\r\n"), ""),
        ("rows.json", json.dumps({"version": 1, "data": ROWS}), "field: data"),
        ("train[1].jsonl", JSONL, ""),
        ("a b.jsonl", JSONL, ""),
        ("s*.jsonl", JSONL, ""),
        ("dir[x]/a.jsonl", JSONL, ""),
    ],
)
def test_a_file_is_read_as_it_is(read: Any, name: str, content: str | bytes, keys: str) -> None:
    assert rows_of(read(name, content, keys)) == IN_ORDER


@pytest.mark.parametrize(
    ("name", "content", "keys", "expected"),
    [
        ("a.tsv", TSV, 'sep: "\\t"', "a.tsv:2: the quote that opens here makes one row of 8 lines; write quoting: 3 "
         "(quotes are part of the texts), or close the quote and double those inside it"),
        ("a.csv", SWALLOWED, "", "a.csv:5: the quote that opens here makes one row of 7 lines; write quoting: 3 "
         "(quotes are part of the texts), or close the quote and double those inside it"),
        ("a.csv", CSV.replace(",", ";"), "", "a.csv has one column, 'text;label': its delimiter is ';', not ','; "
         'write delimiter: ";"'),
        ("a.tsv", CSV.replace(",", "\t"), "", "a.tsv has one column, 'text\\tlabel': its delimiter is '\\t', not ','; "
         'write delimiter: "\\t"'),
        ("a.csv", CSV, "column_names: [text, label]", "a.csv has a header, and column_names makes it a row; "
         "leave column_names out"),
        ("a.csv", "text,label\n" + "so, so,a\n" * 5, "", "the rows of a.csv have more fields than its header (text, "
         "label); put texts that hold ',' into quotes, complete the header, or write another delimiter"),
        ("a.csv", CSV + "so, so,a\n", "", "a.csv:22 has 3 fields, and the lines before it have 2; put texts that hold "
         "the delimiter into quotes, or name another: delimiter"),
        ("a.csv", (CSV + "“é”,a\n").encode("cp1252"), "", "a.csv:22 is not UTF-8 text; convert it, or name its "
         "encoding, e.g. encoding: cp1252"),
        ("a.csv", CSV.encode("utf-16"), "", "a.csv:1 is not UTF-8 text; convert it, or name its encoding, e.g. "
         "encoding: utf-16"),
        ("a.json", json.dumps([*ROWS, {"text": "é", "label": "a"}], ensure_ascii=False).encode("latin-1"),
         "encoding: latin-1", "a.json:1 is not UTF-8 text; a file that is one JSON list is read as UTF-8 only: convert "
         "it (iconv -f latin-1 -t utf-8)"),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "",
         "a.json holds one object, and its rows are below 'data'; write field: data"),
        ("a.json", json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}), "",
         f"a.json holds one object of columns (text, label) with a value for each row number; {LINES}"),
        ("a.json", json.dumps({"text": ["a", "b"], "label": ["x", "y"]}), "",
         f"a.json holds one object of columns, each a list; {LINES}"),
        ("a.json", json.dumps({f"id {i}": row for i, row in enumerate(ROWS)}), "",
         f"a.json holds one object with a name for each row, not a list of rows; {LINES}"),
        ("a.json", json.dumps({"columns": ["text"], "index": [0], "data": [["a"]]}), "",
         f"a.json holds columns, index and data (pandas' orient='split'); {LINES}"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 99, mtime=0)[:-30], "", "a.csv.gz cannot be read: it is cut off; "
         "copy or download it again"),
        ("a.jsonl", JSONL.split("\n")[0], "", "the train split has one row, and validation needs some; "
         "give a validation split, or more rows"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_refused_with_what_reads_it(
    read: Any, name: str, content: str | bytes, keys: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        read(name, content, keys)
    assert str(raised.value) == f"recipe.yaml:3: {expected}"


def test_quotes_that_are_text_are_read_with_quoting_3_and_every_line_is_a_row(read: Any) -> None:
    found = read("a.tsv", TSV, 'sep: "\\t", quoting: 3')
    assert found.train.num_rows + found.validation.num_rows == 64


def test_texts_with_line_breaks_are_read_and_counted(read: Any) -> None:
    found = read("a.csv", CSV + '"one, two\nthree",a\n')
    assert found.notes[0] == (
        "a.csv: 1 rows have line breaks in their texts (2 lines of the file); if the quotes there are part of the "
        "texts, write quoting: 3"
    )
    assert rows_of(found)[0] == {"text": "one, two\nthree", "label": "a"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("null,a NA,b", [("NA", "b"), ("null", "a")]),  # what pandas calls missing
        ("x,007 y,042 z,7", [("x", "007"), ("y", "042"), ("z", "7")]),
        ("x,0 y,1 z,1", [("x", 0), ("y", 1), ("z", 1)]),
        ("x,0.5 y,1 z,-2", [("x", 0.5), ("y", 1.0), ("z", -2.0)]),
        ("1,a 2,b", [("1", "a"), ("2", "b")]),  # a text of digits
        ("x,True y,False", [("x", "True"), ("y", "False")]),
    ],
)
def test_fields_of_csv_are_what_is_written_there(read: Any, fields: str, expected: list) -> None:
    found = read("a.csv", "text,label\n" + fields.replace(" ", "\n") + "\n")
    assert [tuple(row.values()) for row in rows_of(found)] == expected


def test_an_empty_field_is_missing_and_na_is_where_the_recipe_says_so(read: Any) -> None:
    found = read("b.csv", CSV + "NA,a\n,b\n", "keep_default_na: true")
    assert [*found.train["text"], *found.validation["text"]].count(None) == 2
    found = read("c.csv", CSV + "NA,a\n,b\n")
    assert [*found.train["text"], *found.validation["text"]].count(None) == 1


@pytest.mark.parametrize("other", [{"id": "x"}, {"other": 2}, {"id": {"x": [1]}}, {}])
def test_a_column_that_nobody_reads_may_differ_from_file_to_file(folder: Path, make: Make, other: dict) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps({**row, "id": 1}) + "\n" for row in ROWS))
    (folder / "b.jsonl").write_text("".join(json.dumps({**row, **other}) + "\n" for row in ROWS[:6]))
    found = load_splits(make("text-classification", "data_files: {train: a.jsonl, validation: b.jsonl}"))
    assert (found.train.num_rows, found.validation.num_rows) == (20, 6)
    found = load_splits(make("text-classification", "data_files: [a.jsonl, b.jsonl], split: 'train[:22]'"))
    assert found.train.num_rows + found.validation.num_rows == 22


def test_a_column_of_texts_with_a_number_is_refused_with_its_row(read: Any, make: Make) -> None:
    recipe = make("text-classification")
    rows = read(
        "a.jsonl", json.dumps({"text": 5, "label": "a"}) + "\n" + JSONL, "split: {train: train, validation: train}"
    )
    with pytest.raises(RecipeError) as raised:
        find_text_column(recipe, rows.train, "text_column", "text")
    assert str(raised.value) == (
        "recipe.yaml:3: the column 'text' mixes kinds of values: row 0 of the train split is 5, row 1 of the "
        "train split is 'text 0'; "
        "write all of them as texts"
    )


@pytest.mark.parametrize(
    ("task", "column", "given", "problem"),
    [
        ("text-classification", "label", [0, 1, "pos"], None),
        ("text-classification", "label", [0.5, "high"], "regression"),
        ("text-classification", "label", [["a"], "b"], "multi_label_classification"),
        ("token-classification", "tags", [["O", "O"], "O O"], None),
    ],
)
def test_a_column_of_labels_of_two_kinds_is_refused_with_a_row_of_each(
    folder: Path, make: Make, task: str, column: str, given: list, problem: str | None
) -> None:
    rest = {"tokens": ["a", "b"]} if column == "tags" else {"text": "a b"}
    write_rows(folder / "a.jsonl", [{**rest, column: one} for one in given])
    recipe = make(task, "data_files: {train: a.jsonl, validation: a.jsonl}")
    if problem:
        recipe = replace(recipe, sections={**recipe.sections, "model": {"problem_type": problem}})
    train = load_splits(recipe).train
    first, last = (f"row {i} of the train split is" for i in (0, len(given) - 1))
    mixes = f"mixes kinds of values: {first} {given[0]}, {last} {given[-1]!r}"
    assert refusal(recipe, train, wordpiece(["a", "b"])).startswith(f"recipe.yaml:3: the column '{column}' {mixes}; ")


def test_a_file_without_a_header_is_refused_with_the_key_that_names_its_columns(read: Any, make: Make) -> None:
    found = read("a.csv", CSV.split("\n", 1)[1].replace("text", "row"))
    with pytest.raises(RecipeError) as raised:
        find_text_column(make("text-classification", path="csv"), found.train, "text_column", "text")
    assert "; for files without a header: column_names: [text, label" in str(raised.value)


def test_two_files_without_a_header_are_refused_for_that_and_not_for_their_number_of_rows(
    folder: Path, make: Make
) -> None:
    for name, word in (("t.csv", "row"), ("v.csv", "line")):
        (folder / name).write_text(CSV.split("\n", 1)[1].replace("text", word))
    recipe = make("text-classification", "data_files: {train: t.csv, validation: v.csv}", path="csv")
    with pytest.raises(RecipeError) as raised:
        find_text_column(recipe, load_splits(recipe).train, "text_column", "text")
    assert str(raised.value) == (
        "recipe.yaml:3: the data has no column 'text' (it has row 0, a); name it with dataset.text_column; "
        "for files without a header: column_names: [text, label]"
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ("0.5 1 2.5 -3e-1", ""),
        ("+0.5 .25 007 1.", ""),
        ("0.5 1 good 2", "'good' in 'label', which is not a number; write a number there, remove such rows, or name "
         "another column with dataset.label_column"),
        ("0.5 1 2,5 2", "'2,5' in 'label', which is not a number; write 2.5; in a CSV file, dataset.decimal: \",\" "
         "reads all of them"),
    ],
)  # fmt: skip
def test_scores_written_as_texts_are_numbers_or_refused_with_their_row(
    folder: Path, make: Make, scores: str, expected: str
) -> None:
    rows = [{"text": "a", "label": score} for score in scores.split()]
    write_rows(folder / "t.jsonl", rows)
    write_rows(folder / "v.jsonl", rows)
    recipe = make("text-classification", "data_files: {train: t.jsonl, validation: v.jsonl}")
    recipe = replace(recipe, sections={**recipe.sections, "model": {"problem_type": "regression"}})
    splits = load_splits(recipe)
    if not expected:
        prepared = prepare(recipe, splits.train, wordpiece(["a"]))
        assert prepared.train["labels"] == [float(score) for score in scores.split()]
    else:
        found = refusal(recipe, splits.train, wordpiece(["a"]))
        assert found == f"recipe.yaml:3: row 2 of the train split has {expected}"


def test_one_long_document_gives_its_end_to_validation(read: Any) -> None:
    text = "A line of text.\n" * 100
    found = read("a.txt", text, "sample_by: document", task="causal-lm")
    (before,), (after,) = found.train["text"], found.validation["text"]
    assert before + after == text and before.endswith("\n") and 0.05 < len(after) / len(text) < 0.15
    assert found.notes == (f"validation: the last {len(after)} characters of the one document",)


def test_a_byte_order_mark_is_no_text(read: Any) -> None:
    found = read("a.txt", "\ufeff" + "line\n" * 9, task="causal-lm")
    assert {*found.train["text"], *found.validation["text"]} == {"line"}


def test_the_home_folder_and_backslashes(folder: Path, make: Make, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    read("data/a.jsonl", JSONL)
    assert load_splits(make("text-classification", "data_files: {train: ~/data/a.jsonl}")).train.num_rows == 18
    with pytest.raises(RecipeError) as raised:
        load_splits(make("text-classification", r"data_files: data\a.jsonl"))
    assert str(raised.value) == (
        "recipe.yaml:3: data file 'data\\\\a.jsonl' does not exist (paths are relative to the working directory); "
        "write slashes: 'data/a.jsonl'"
    )


def test_a_cache_that_takes_no_file_is_reported_at_the_environment(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/sys")
    with pytest.raises(RecipeError) as raised:
        read("a.jsonl", JSONL)
    assert str(raised.value) == (
        "environment: the cache of data sets '/proc/sys' cannot be written: No such file or directory; "
        "set HF_DATASETS_CACHE (or HF_HOME) to a folder that can be written"
    )
    with pytest.raises(RecipeError, match=r"; set dataset.cache_dir to a folder that can be written$"):
        read("a.jsonl", JSONL, "cache_dir: /proc/sys")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/v1\n", "is a Git LFS pointer, not the data; git lfs pull"),
        ("a.csv", b"\n<!DOCTYPE html><html>404</html>", "is a web page, not the data; download the file itself"),
        ("a.json", b"PAR1" + b"\0" * 40, "is a parquet file; write path: parquet"),
        ("a.csv", b"PK\x03\x04\0\0[Content_Types].xml", "is an Excel file; save it as CSV (UTF-8)"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Excel file; save it as CSV (UTF-8)"),
    ],
)  # fmt: skip
def test_a_file_of_another_format_is_named_for_what_it_is(read: Any, name: str, content: bytes, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read(name, content)
    assert str(raised.value) == f"recipe.yaml:3: {name} {message}"


def test_lists_of_labels_that_a_csv_file_has_as_text_are_read(folder: Path, make: Make) -> None:
    lines = ['sea,"[""a"", ""b""]"', "house,[]", "sea house,\"['b']\"", "good,[a]"] * 4
    (folder / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    recipe = make("text-classification", "data_files: {train: a.csv, validation: a.csv}", path="csv")
    recipe = replace(recipe, sections={**recipe.sections, "model": {"problem_type": "multi_label_classification"}})
    splits = load_splits(recipe)
    found = prepare(recipe, splits.train, wordpiece(["sea", "house", "good"]))
    assert found.label_names == ("a", "b")
    assert found.train["labels"][:4] == [[1, 1], [0, 0], [0, 1], [1, 0]]


WIDE = "text,label\n" + '"two\nlines",a\n' * 9 + "so, so, so,a\n" + CSV.split("\n", 1)[1]
FIELDS = "put texts that hold the delimiter into quotes, or name another: delimiter"


@pytest.mark.parametrize(
    ("name", "content", "keys", "expected"),
    [
        ("a.csv", WIDE, "", f"a.csv:20 has 4 fields, and the lines before it have 2; {FIELDS}"),
        ("a.csv", WIDE.encode("utf-16"), ", encoding: utf-16",
         f"a.csv:20 has 4 fields, and the lines before it have 2; {FIELDS}"),
        ("a.jsonl", JSONL * 900 + "[1, 2]\n", ", chunksize: 20000",
         "a.jsonl:18001 is not a JSON object; write each row as an object with its columns"),
        ("a.jsonl", JSONL * 900 + '{"text": "a", "label": "a", "text": "b"}\n', ", chunksize: 20000",
         "a.jsonl:18001 has the key 'text' twice; leave one of them out, or rename it"),
        ("a.jsonl", '{"text": "a", "label": "a", "text": "b"}\n' + JSONL, "",
         "a.jsonl:1 has the key 'text' twice; leave one of them out, or rename it"),
        ("a.jsonl", "\n \r\n", "", "there are no rows in a.jsonl; add some rows"),
        ("a.csv", "\n\n", "", "there are no rows in a.csv; add some rows"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [True, False])
def test_a_row_that_cannot_be_read_is_named_by_its_file_and_line_also_beside_another_file(
    folder: Path, make: Make, name: str, content: str | bytes, keys: str, expected: str, beside: bool
) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    good = f"good{Path(name).suffix}"
    (folder / good).write_bytes((CSV if good.endswith("csv") else JSONL).encode("utf-16" if "utf" in keys else "utf-8"))
    files = f"{{validation: {good}, train: {name}}}" if beside else name
    with pytest.raises(RecipeError) as raised:
        load_splits(make("text-classification", f"data_files: {files}{keys}", path="csv" if "csv" in name else "json"))
    assert str(raised.value) == f"recipe.yaml:3: {expected}"
