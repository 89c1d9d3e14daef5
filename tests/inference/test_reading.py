"""Files that are given to a trained run: read as they are, with the keys that a recipe's `dataset` has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_recipes.cli import main
from hf_recipes.data.chat_rows import choose_reader, read_question
from hf_recipes.inference.generate import prompt_ids
from hf_recipes.inference.trained import find_trained, load_trained
from hf_recipes.recipe.recipe import Recipe

Enter = Callable[..., Path]
TEXTS = ["un très bon film", "ni bon ni mauvais, je l'ai vu deux fois"]


def _table(separator: str = ",") -> str:
    return "\n".join([separator.join(("text", "label")), *(f'"{text}"{separator}pos' for text in TEXTS)]) + "\n"


FILES: dict[str, tuple[bytes, str]] = {
    "latin.csv": (_table().encode("latin-1"), "--set dataset.encoding=latin-1"),
    "wide.csv": (_table().encode("utf-16"), "--set dataset.encoding=utf-16"),
    "points.csv": (_table(";").encode(), "--set 'dataset.delimiter=\";\"'"),
    "below.json": (json.dumps({"rows": [{"text": text} for text in TEXTS]}).encode(), "--set dataset.field=rows"),
    "latin.txt": ("\n".join(TEXTS).encode("latin-1"), "--set dataset.encoding=latin-1"),
}


def _status(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("name", FILES)
def test_the_option_that_a_refused_file_is_advised_reads_its_rows(
    enter_run: Enter, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    import shlex

    enter_run("text-classification")
    content, option = FILES[name]
    file = tmp_path / name
    file.write_bytes(content)
    assert _status(["predict", "out", "--cpu", "--file", str(file)]) == 2
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and len(shown.err.splitlines()) == 1
    assert shown.err.rstrip().endswith(f"to this command: {option}")
    assert _status(["predict", "out", "--cpu", "--file", str(file), *shlex.split(option)]) == 0
    shown = capfd.readouterr()
    assert [json.loads(line)["text"] for line in shown.out.splitlines()] == TEXTS and shown.err == ""


def test_evaluate_takes_the_name_of_another_label_column(
    enter_run: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_run("text-classification")
    names = list(find_trained("out").record.data["train"].labels or ())  # type: ignore[union-attr]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text, "mood": names[0]}) + "\n" for text in TEXTS))
    words = ["evaluate", "out", "--cpu", "--data", str(file), "--output", str(tmp_path / "found")]
    assert _status(words) == 2
    assert "to this command: --set dataset.label_column=NAME" in capsys.readouterr().err
    assert _status([*words, "--set", "dataset.label_column=mood"]) == 0
    assert "on 2 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dataset.feild=rows", "dataset.feild is not a known key"),
        ("dataset.data_files=other.csv", "dataset.data_files is not this command's to change"),
        ("model.dtype=float16", "model changes nothing here"),
    ],
)
def test_a_key_that_reads_no_file_is_refused(
    enter_run: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    enter_run("text-classification")
    file = tmp_path / "rows.json"
    file.write_bytes(FILES["below.json"][0])
    assert _status(["predict", "out", "--cpu", "--file", str(file), "--set", option]) == 2
    assert message in capsys.readouterr().err


def test_empty_lines_of_a_text_file_are_left_out_as_those_of_stdin_are(
    enter_run: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_run("text-classification")
    file = tmp_path / "rows.txt"
    file.write_text("\n" + "\n\n".join(TEXTS) + "\n\n")
    assert _status(["predict", "out", "--cpu", "--file", str(file)]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == TEXTS


ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"user_template": "How {{ q }}?", "assistant_template": "{{ a }}"}, {"q": "far", "a": "3 miles"}),
    (
        {"system_template": "{{ s }}", "user_template": "{{ q }} {{ more }}", "assistant_template": "{{ a }}"},
        {"s": "Be short.", "q": "how far", "more": None, "a": "3 miles"},
    ),
    ({}, {"instruction": "Add.", "input": "1 2", "output": "3"}),
    ({}, {"instruction": "Add.", "input": "", "output": "3"}),
    ({}, {"instruction": "And 4?", "history": [["Add 1 2", "3"]], "output": "7"}),
]


@pytest.mark.parametrize(("dataset", "row"), ASKED)
def test_a_row_without_its_answer_is_asked_as_training_asked_it(dataset: dict[str, Any], row: dict[str, Any]) -> None:
    recipe = Recipe(path="r", sections={"task": "chat", "dataset": dataset, "SFTConfig": {}}, locations={})
    rows = Dataset.from_list([row])
    trained = choose_reader(recipe, rows).read(rows[0])
    asked = {key: value for key, value in rows[0].items() if key not in ("output", "a")}
    assert read_question(recipe, asked) == trained.messages[:-1]  # type: ignore[union-attr]


def test_a_text_stands_for_the_only_column_of_the_runs_template(enter_run: Enter) -> None:
    enter_run("chat")
    found = find_trained("out")
    trained = load_trained(found, cpu=True)
    as_message = prompt_ids(trained, {"messages": [{"role": "user", "content": "How far is it?"}]})
    sections = dict(found.recipe.sections)
    sections["dataset"] = {**found.recipe.section("dataset"), "user_template": "How {{ q }} is it?"}
    record = replace(found.record, recipe=replace(found.record.recipe, sections=sections))  # type: ignore[type-var, union-attr]
    other = replace(trained, found=replace(found, record=record))
    assert prompt_ids(other, {"text": "far"}) == prompt_ids(other, {"q": "far"}) == as_message
