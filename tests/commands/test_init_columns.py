"""`hf-recipes init`: which columns it reads, and what it refuses to guess."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.commands.check import check
from hf_recipes.commands.init import command
from hf_recipes.data.first_look import look
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.report.plots import _drawing
from tests.support.tiny_models import write_rows

ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("some text 0,a\nsome text 1,b\nsome text 2,a\nsome text 3,b\n", ["text", "label"]),
        ("1;it was a dull play;7\n0;it was a great play;8\n1;dull;9\n0;great;3\n", ["label", "text", "column_3"]),
        ("the day 1,0.25\nthe day 2,0.5\nthe day 3,2.75\nthe day 4,1.5\n", ["text", "label"]),
        ("it was a long and dull day\nit rained\nit snowed\n", ["text"]),
        ("words,kind\nsome text 1,b\nsome text 2,a\nsome text 3,b\n", None),
        ("text,label\ntext,a\nq 1,b\nq 2,a\nq 3,b\n", None),
        ("what is it,question\nit is,answer\nwho is it,question\nwhy is it,question\n", ["text", "label"]),
        ("text,2019\nsome text 1,b\nsome text 2,a\nsome text 3,b\n", None),
        ("text,label\na,b\nc,d\ntext,label\na,b\nc,d\n", None),
    ],
)
def test_a_csv_file_without_a_header_loses_no_row(folder: Path, content: str, named: list[str] | None) -> None:
    Path("a.csv").write_text(content)
    seen = look("a.csv")
    assert seen.dataset.get("column_names") == named
    assert seen.rows == content.count("\n") - (named is None)
    if named:
        said: list[str] = []
        command("a.csv", yes=True, say=said.append)
        assert f"warning: a.csv has no header; its columns are named {', '.join(named)} (dataset.column_names)" in said
        assert check("recipe.yaml")[1] == 0


@pytest.mark.parametrize(
    ("name", "content", "task", "problem"),
    [
        ("a.jsonl", [["b"], ["a", "b"], []], None, "multi_label_classification"),
        ("a.jsonl", [[0, 1, 1], [1, 0, 0], [0, 0, 0]], None, "multi_label_classification"),
        ("a.jsonl", [0.5, 1, 2.25], None, "regression"),
        ("a.jsonl", [1.0, 2.0, 1.0, 2.0], "text-classification", None),
        ("a.csv", "text,score\nq0,0.00\nq1,0.37\nq2,1.1\n", "text-classification", "regression"),
        ("a.csv", "text,mood\nq0,0.00\nq1,0.37\nq2,1.1\n", "text-classification", "regression"),
        ("a.csv", "text,labels\nq0,\"['a']\"\nq1,\"['a', 'b']\"\nq2,[]\n", None, "multi_label_classification"),
    ],
)
@pytest.mark.parametrize("model", [None, "scratch"])
def test_lists_of_labels_and_scores_get_their_problem_type(
    folder: Path, name: str, content: str | list, task: str | None, problem: str | None, model: str | None
) -> None:
    if isinstance(content, str):
        Path(name).write_text(content)
    else:
        write_rows(name, [{"text": f"q {i}", "label": value} for i, value in enumerate(content)])
    command(name, task=task, model=model, yes=True, say=lambda line: None)
    recipe = read_recipe("recipe.yaml")
    assert (recipe.task, recipe.get("model.problem_type")) == ("text-classification", problem)
    assert check("recipe.yaml")[1] == 0


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], None, "a.jsonl: has preferences (chosen and rejected): "),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "chat", "a.jsonl: has preferences (chosen and rejected): "),
        ([{"text": f"text {i}", "other": f"text {i}"} for i in range(9)], "text-classification",
         "a.jsonl: no column has classes: 'other' has 9 values in 9 rows; "),
        ([{"text": f"text {i}", "vector": [0.5, i]} for i in range(9)], "text-classification",
         "a.jsonl: the column 'vector' holds lists or objects, not classes; "),
        ([{"text": ["a", "b"], "label": [1, 2]}], None,
         "a.jsonl: cannot be read as json: it holds one object of columns, each a list; write one object a line; "),
    ],
)  # fmt: skip
def test_what_nothing_can_be_learned_from_is_refused_and_nothing_is_written(
    folder: Path, rows: list, task: str | None, message: str
) -> None:
    write_rows("a.jsonl", rows)
    with pytest.raises(RecipeError) as raised:
        command("a.jsonl", task=task, yes=True, say=lambda line: None)
    assert str(raised.value).startswith(message)
    assert not Path("recipe.yaml").exists()


LETTERS = {
    "cp1251": "\u0434\u043e\u043c \u0441\u0442\u0430\u0440\u044b\u0439",
    "gbk": "\u597d\u7684\u5f88",
    "shift_jis": "\u3044\u3044\u3067\u3059",
    "koi8-r": "\u0434\u043e\u043c \u0441\u0442\u0430\u0440\u044b\u0439",
}


@pytest.mark.parametrize("encoding", LETTERS)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_letters_of_another_script_are_not_read_as_latin_ones(folder: Path, name: str, encoding: str) -> None:
    word = LETTERS[encoding]
    rows = {
        "a.csv": f"{word},{word}1\n",
        "a.jsonl": json.dumps({"text": word}, ensure_ascii=False) + "\n",
        "a.txt": f"{word}\n",
    }
    Path(name).write_bytes((rows[name] * 20).encode(encoding))
    with pytest.raises(RecipeError, match="its bytes do not show which encoding it is; convert it"):
        command(name, yes=True, say=lambda line: None)
    assert not Path("recipe.yaml").exists()


def test_a_guessed_encoding_is_a_warning_with_words_that_it_gives(folder: Path) -> None:
    Path("a.csv").write_bytes(("text,label\n" + "a caf\xe9 in town,x\na street,y\n" * 9).encode("latin-1"))
    lines: list[str] = []
    assert command("a.csv", yes=True, say=lines.append)
    assert [line for line in lines if line.startswith("warning: latin-1 is a guess; it gives these words: caf\xe9; if")]


@pytest.mark.parametrize("mark", ["^", "~", ":", ";", "|", "\t"])
def test_a_delimiter_that_divides_every_line_alike_is_found(folder: Path, mark: str) -> None:
    Path("a.csv").write_text(f"text{mark}label\n" + "".join(f"day {i}, late{mark}{'ab'[i % 2]}\n" for i in range(20)))
    seen = look("a.csv")
    assert (seen.task, seen.dataset["delimiter"]) == ("text-classification", mark)


def test_a_mark_of_some_lines_is_no_delimiter(folder: Path) -> None:
    Path("a.csv").write_text("text\n" + "".join(f"note: day {i}\nanother day {i}\n" for i in range(20)))
    seen = look("a.csv")
    assert seen.task == "causal-lm" and "delimiter" not in seen.dataset


PAIR = {"id": 1, "question1": "a b", "question2": "c d"}
WORDS = {"tokens": ["Anne", "smiled", "twice"]}
TALK_AS_TEXT = {"messages": json.dumps([ASKED, ANSWERED])}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("rows", "task", "section"),
    [
        ([{**PAIR, "is_duplicate": i % 2} for i in range(20)], "text-classification",
         {"text_column": "question1", "text_pair_column": "question2", "label_column": "is_duplicate"}),
        ([{**WORDS, "pos": ["NOUN", "VERB", "ADV"]}] * 9, "token-classification",
         {"tokens_column": "tokens", "tags_column": "pos"}),
        ([{**WORDS, "chunk_tags": ["B-NP", "B-VP", "O"]}] * 9, "token-classification", {"tags_column": "chunk_tags"}),
        ([TALK_AS_TEXT] * 9, "chat", {"path": "json"}),
    ],
)  # fmt: skip
def test_columns_under_usual_names_are_read_with_and_without_the_task(
    folder: Path, rows: list, task: str, section: dict[str, Any], asked: bool
) -> None:
    write_rows("a.jsonl", rows)
    seen = look("a.jsonl", task if asked else None)
    assert seen.task == task and section.items() <= seen.dataset.items()


def test_words_and_tags_under_other_names_are_told_apart_by_their_values(folder: Path) -> None:
    rows = [{"kinds": ["N", "V"], "form": [f"name{i}", f"verb{i}"]} for i in range(9)]
    write_rows("a.jsonl", rows)
    seen = look("a.jsonl", "token-classification")
    assert (seen.dataset["tokens_column"], seen.dataset["tags_column"]) == ("form", "kinds")


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ({"comment": "a b", "toxic": 1, "spam": 0}, "text-classification",
         "several columns could be the class: toxic, spam; call the one that is meant label; "),
        ({"text": ["a", "b"], "label": "x"}, "text-classification",
         "it has no columns with a text and a class (it has text: lists of texts, label: texts); "),
        ({"context": "a", "question": "b", "answers": {"text": ["x"]}}, "chat",
         "it is not clear which columns are the prompt and its answer (it has context: texts, question: texts, "),
        ({"title": "a", "question": "b", "answers": {"text": ["x"]}}, "chat",
         "it is not clear which columns are the prompt and its answer (it has title: texts, question: texts, "
         "answers: objects (text)); call them prompt and completion in the file"),
        ({"dialog": [{"speaker": "user", "text": "a"}]}, "chat",
         "it has no columns with a prompt and an answer (it has dialog: lists of objects (speaker, text)); "),
        ({}, None, "its rows have no columns; "),
        ({f"{i}": i for i in range(70)}, None,
         "it is not clear what is to be learned from it: its columns are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, and 58 "
         "more; "),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_an_error_with_what_was_found(
    folder: Path, row: dict[str, Any], task: str | None, message: str
) -> None:
    other = {name: 1 - value if value in (0, 1) else value for name, value in row.items()}
    write_rows("a.jsonl", [row, other] * 9)
    with pytest.raises(RecipeError) as raised:
        command("a.jsonl", task=task, yes=True, say=lambda line: None)
    assert str(raised.value).startswith(f"a.jsonl: {message}")
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", f"{json.dumps([ASKED, ANSWERED])}\n" * 3,
         "a row is not a JSON object; write each row as an object with its columns"),
        ("a.json", '[{"text": "a"},]', "line 1 is not JSON: "),
        ("a.csv", "# exported\n\ntext,label\na,b\n",
         "line 3 has more fields than the 1 column (# exported); remove the comments above the line with the names"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named_by_its_line(folder: Path, name: str, content: str, message: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(RecipeError) as raised:
        command(name, yes=True, say=lambda line: None)
    assert message in str(raised.value)


def test_a_column_without_a_name_is_called_so(folder: Path) -> None:
    Path("a.csv").write_text("text,label,\n" + "".join(f"day {i},{'ab'[i % 2]},\n" for i in range(20)))
    assert "not read: a column without a name" in look("a.csv").notes


def test_a_text_that_is_shorter_than_a_block_is_refused_by_init(folder: Path) -> None:
    Path("a.txt").write_text("one\n")
    lines: list[str] = []
    assert not command("a.txt", model="scratch", yes=True, say=lines.append)
    assert any("bytes of text, less than one block of 8 tokens; add text" in line for line in lines)


def test_a_chart_with_letters_of_any_script_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _drawing(2) as (_, axes, made):
            axes[0][0].barh(["\u597d", "\u0639\u0627\u062f\u064a"], [1, 2])
    assert "\u597d" in made[0]
