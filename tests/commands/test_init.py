"""`hf-recipes init`: what it takes a file for, and a recipe that passes `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_recipes.commands.check import check
from hf_recipes.commands.init import choose_target, command, recipe_text
from hf_recipes.data.first_look import look
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from tests.support.tiny_models import save_bert, wordpiece, write_rows

CONLL = "Anne B-PER\nElliot I-PER\nsmiled O\n\nThe O\nsea O\n\n" * 3
FILES = {
    "a.csv": "review,stars\n" + "a good film,5\na bad film,1\n" * 5,
    "a.tsv": "text\tlabel\n" + "good\tyes\nbad\tno\n" * 5,
    "b.csv": "label;text\n" + "yes;a good film, really\nno;bad\n" * 5,
    "chat.jsonl": json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    "share.json": json.dumps([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3),
    "pairs.jsonl": json.dumps({"prompt": "1 + 1 =", "completion": " 2"}),
    "words.jsonl": json.dumps({"tokens": ["Anne", "smiled"], "ner_tags": ["B-PER", "O"]}),
    "a.conll": CONLL,
    "b.txt": CONLL,
    "book.txt": "It is a truth.\nUniversally acknowledged.\n\nA second paragraph.\n" * 3,
    "lines.txt": "one sentence\nanother one\n" * 3,
}
EXPECTED = {
    "a.csv": ("text-classification", {"text_column": "review", "label_column": "stars"}),
    "a.tsv": ("text-classification", {"delimiter": "\t"}),
    "b.csv": ("text-classification", {"delimiter": ";", "text_column": "text"}),
    "chat.jsonl": ("chat", {"path": "json"}),
    "share.json": ("chat", {"path": "json"}),
    "pairs.jsonl": ("chat", {"path": "json"}),
    "words.jsonl": ("token-classification", {"tokens_column": "tokens", "tags_column": "ner_tags"}),
    "a.conll": ("token-classification", {"path": "text", "format": "conll"}),
    "b.txt": ("token-classification", {"path": "text", "format": "conll"}),
    "book.txt": ("causal-lm", {"sample_by": "paragraph"}),
    "lines.txt": ("causal-lm", {"path": "text"}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_taken_for_what_it_is(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name])
    seen = look(name)
    task, section = EXPECTED[name]
    assert seen.task == task
    assert section.items() <= seen.dataset.items()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "chat.jsonl", "words.jsonl", "book.txt"])
def test_the_recipe_passes_check_and_reads_back(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name])
    lines: list[str] = []
    command(name, yes=True, say=lines.append)
    assert check("recipe.yaml")[1] == 0
    recipe = read_recipe("recipe.yaml")
    assert recipe.task == EXPECTED[name][0]
    assert recipe.get("dataset.data_files") == {"train": name}
    assert lines[-1].startswith("written: recipe.yaml\nnext     hf-recipes run recipe.yaml")
    assert lines[0].startswith(f"{name}: ")


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


def test_what_cannot_be_told_is_asked_and_with_yes_refused(folder: Path) -> None:
    write_rows("odd.jsonl", [{"a": f"the day {i}", "b": f"the night {i}", "c": i + 0.5} for i in range(9)])
    with pytest.raises(RecipeError) as raised:
        command("odd.jsonl", yes=True, say=lambda line: None)
    assert str(raised.value) == (
        "odd.jsonl: it is not clear what is to be learned from it: its columns are a, b, c; "
        "name it with --task: causal-lm, chat, text-classification, token-classification"
    )
    asked: list[str] = []

    def answer(what: str, answers: object) -> str:
        asked.append(what)
        return "causal-lm"

    command("odd.jsonl", say=lambda line: None, ask=answer)
    assert asked == ["task"]
    assert read_recipe("recipe.yaml").get("dataset.text_column") == "b"


@pytest.mark.parametrize(
    ("name", "task", "section"),
    [
        ("a.csv", "causal-lm", {"text_column": "review"}),
        ("pairs.jsonl", "causal-lm", {"text_column": "prompt"}),
        ("pairs.jsonl", "text-classification", {"text_column": "prompt", "label_column": "completion"}),
        ("a.csv", "chat", {"prompt_column": "review", "completion_column": "stars"}),
        ("b.txt", "token-classification", {"format": "conll"}),
    ],
)
def test_a_task_that_is_asked_for_reads_the_columns_that_could_serve_it(
    folder: Path, name: str, task: str, section: dict[str, str]
) -> None:
    Path(name).write_text(FILES[name])
    seen = look(name, task)
    assert seen.task == task and section.items() <= seen.dataset.items()


def test_a_task_that_the_file_cannot_teach_is_refused(folder: Path) -> None:
    write_rows("numbers.jsonl", [{"a": 1.5, "b": 2.5}, {"a": 3.5, "b": 1.0}])
    with pytest.raises(RecipeError) as raised:
        command("numbers.jsonl", task="chat", say=lambda line: None)
    assert str(raised.value) == (
        "numbers.jsonl: it has no columns with a prompt and an answer (it has a, b); "
        "name another file, or another task with --task"
    )
    Path("lines.txt").write_text("one\ntwo\n")
    with pytest.raises(RecipeError, match=r"cannot be read as CoNLL: line 1 has one column only \('one'\)"):
        command("lines.txt", task="token-classification", say=lambda line: None)
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize("name", ["a.csv", "share.json", "words.jsonl", "b.txt", "lines.txt"])
def test_a_recipe_from_scratch_needs_no_download_and_passes_check(folder: Path, name: str) -> None:
    Path(name).write_text(FILES[name])
    command(name, model="scratch", yes=True, say=lambda line: None)
    assert check("recipe.yaml")[1] == 0
    assert "BpeTrainer" in read_recipe("recipe.yaml").sections


def test_a_model_that_is_not_here_is_named_where_the_hub_is_off(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    lines: list[str] = []
    command("a.csv", yes=True, say=lines.append)
    assert (
        "warning: distilbert/distilbert-base-uncased is not on this machine, and the Hub is off: "
        "--model FOLDER, or --model scratch"
    ) in lines


@pytest.mark.slow
def test_a_recipe_for_a_gpu_has_its_batch_and_its_precision(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    save_bert("model", wordpiece(("good", "bad")))
    lines: list[str] = []
    command("a.csv", model="model", gpu="rtx-3070", yes=True, say=lines.append)
    recipe = read_recipe("recipe.yaml")
    assert recipe.get("TrainingArguments.bf16") is True
    assert recipe.get("TrainingArguments.per_device_train_batch_size") == 32
    assert "rtx-3070: 32 rows of 32 tokens fit, by plan" in lines
    assert lines[-1].endswith("hf-recipes plan recipe.yaml --gpu rtx-3070    does it fit, how long will it take?")


def test_a_gpu_without_bf16_trains_in_fp16(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    assert "  fp16: true" in recipe_text(look("a.csv"), "scratch", "a", 8, choose_target("t4"), "a.csv")


def test_a_gpu_that_is_not_known_is_refused_before_anything_is_written(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    with pytest.raises(RecipeError, match="unknown GPU 'rtx-3071'"):
        command("a.csv", gpu="rtx-3071", yes=True, say=lambda line: None)
    assert not Path("recipe.yaml").exists()


def test_files_that_cannot_be_read_are_refused(folder: Path) -> None:
    Path("empty.csv").write_text("")
    Path("bad.json").write_text("{")
    Path("latin.csv").write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    messages = []
    for name in ("empty.csv", "bad.json", "latin.csv", "emtpy.csv", "a.docx"):
        Path("a.docx").write_text("x")
        with pytest.raises(RecipeError) as raised:
            command(name, yes=True, say=lambda line: None)
        messages.append(str(raised.value))
    assert messages[0] == "empty.csv: there are no rows in it; name a file with some"
    assert messages[1].startswith("bad.json: cannot be read as json: ")
    assert messages[2] == "latin.csv: is not UTF-8 text; convert it to UTF-8"
    assert messages[3] == "emtpy.csv: no such file; did you mean 'empty.csv'?"
    assert messages[4].startswith("a.docx: is no data file that is known; the formats are json, ")
    assert not Path("recipe.yaml").exists()


def test_a_recipe_that_is_there_is_not_replaced(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    Path("recipe.yaml").write_text("task: chat\n")
    with pytest.raises(RecipeError) as raised:
        command("a.csv", yes=True, say=lambda line: None)
    assert str(raised.value) == "recipe.yaml: is there already; name another file with --output"


def test_a_place_that_cannot_be_written_is_refused(folder: Path) -> None:
    Path("a.csv").write_text(FILES["a.csv"])
    with pytest.raises(RecipeError) as raised:
        command("a.csv", output="no/such/recipe.yaml", yes=True, say=lambda line: None)
    assert str(raised.value) == (
        "argument '--output': 'no/such/recipe.yaml' cannot be written (No such file or directory); choose another place"
    )
