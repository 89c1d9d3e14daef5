"""An error of a row names the row of the user's file, though `test_size` shuffled the rows that it split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_recipes.commands.init import command
from hf_recipes.data.splits import load_splits
from hf_recipes.data.trial import try_data
from hf_recipes.errors import DataError
from hf_recipes.recipe.read import read_recipe

ROWS = 60
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
WORDS = {"tokens": ["Anne", "smiled"], "tags": ["B-PER", "O"]}
JSON_LINES = {  # task -> a row like the others, and one that a run refuses
    "text-classification": ({"text": "a b", "label": "x"}, {"text": "a b", "label": None}),
    "token-classification": (WORDS, {**WORDS, "tags": ["O"]}),
    "chat": ({"messages": TALK}, {"messages": []}),
    "regression": ({"text": "a b", "score": 0.5}, {"text": "", "score": 0.5}),
    "kinds": ({"text": "a b", "label": "x"}, {"text": "a b", "label": 5}),
}


@pytest.mark.parametrize("at", [2, 30, 59])
@pytest.mark.parametrize("name", JSON_LINES)
def test_the_row_that_is_named_is_that_of_a_json_lines_file(folder: Path, name: str, at: int) -> None:
    good, bad = JSON_LINES[name]
    rows = [dict(bad if i == at else good) for i in range(ROWS)]
    for i, row in enumerate(rows):
        row |= {"text": f"a b {i}"} if row.get("text") else {}
        row |= {"label": "xy"[i % 2]} if row.get("label") == "x" else {}
    lines = list(map(json.dumps, rows))
    blank = name != "kinds"  # of a column of two kinds `datasets` reads no empty line
    lines[1:1] = [""] * blank  # rows are counted without it, and lines with it
    Path("a.jsonl").write_text("\n".join(lines) + "\n")
    said: list[str] = []
    try:
        command("a.jsonl", model="scratch", task=name if "-" in name else None, yes=True, say=said.append)
    except DataError as problem:
        said.append(str(problem))
    assert f"row {at} of a.jsonl (line {at + 1 + blank})" in "\n".join(said), said


CSV = [f'"some\ntext {i}",{"xy"[i % 2]}' for i in range(ROWS)]  # each over two lines


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("by", [None, "label"])
@pytest.mark.parametrize("at", [0, 41])
def test_the_row_that_is_named_is_that_of_a_csv_file(folder: Path, at: int, by: str | None, header: bool) -> None:
    lines = [f'"\n",{"xy"[i % 2]}' if i == at else line for i, line in enumerate(CSV)]
    Path("a.csv").write_text("\n".join(["text,label"] * header + lines) + "\n")
    more = [] if header else ["  column_names: [text, label]"]
    more += [f"  stratify_by_column: {by}"] if by else []
    Path("r.yaml").write_text("\n".join([RECIPE, *more]))
    with pytest.raises(DataError) as raised:
        try_data(read_recipe("r.yaml"))
    assert f"row {at} of a.csv (line {2 * at + 1 + header})" in str(raised.value)


RECIPE = """task: text-classification
model: {config: {model_type: distilbert}}
BpeTrainer: {vocab_size: 300}
TrainingArguments: {output_dir: out}
dataset:
  path: csv
  data_files: {train: a.csv}"""


@pytest.mark.parametrize("by", [None, "label"])
def test_every_row_of_a_split_is_found_again_where_it_stood(folder: Path, by: str | None) -> None:
    Path("a.csv").write_text("\n".join(["text,label", *(f"t{i},{'xy'[i % 2]}" for i in range(ROWS))]) + "\n")
    Path("r.yaml").write_text(RECIPE + (f"\n  stratify_by_column: {by}" if by else ""))
    splits = load_splits(read_recipe("r.yaml"))
    assert splits.origins is not None
    for split, part in splits.by_name().items():
        for row, text in enumerate(part["text"]):
            number = int(text[1:])
            assert splits.origins.name_row(split, row) == f"row {number} of a.csv (line {number + 2})"
