"""Files for `predict --file` and `evaluate --data`: written otherwise than the run's own, and refused with a fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.commands.predict import predict
from hf_recipes.inference.generate import prompt_ids
from hf_recipes.inference.trained import find_trained, load_trained
from hf_recipes.record.file import read_record
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import rows_of

Enter = Callable[..., Path]
TEXTS = ("a caf\xe9 that I liked", "a waste of time", "good, really")
FILES = {
    "a.csv": ("text,label\n" + "".join(f'"{text}",positive\n' for text in TEXTS), "utf-8"),
    "semicolon.csv": ("text;label\n" + "".join(f"{text};positive\n" for text in TEXTS), "utf-8"),
    "a.tsv": ("text\tlabel\n" + "".join(f"{text}\tpositive\n" for text in TEXTS), "utf-8"),
    "latin.csv": ("text;label\n" + "".join(f"{text};positive\n" for text in TEXTS), "latin-1"),
    "wide.csv": ("text;label\n" + "".join(f"{text};positive\n" for text in TEXTS), "utf-16"),
    "lines.txt": ("\n".join([TEXTS[0], "", *TEXTS[1:], "", ""]), "latin-1"),
    "a.jsonl": ("".join(json.dumps({"text": text, "label": "positive"}) + "\n" for text in TEXTS), "utf-8"),
    "a.json": (json.dumps([{"text": text, "label": "positive"} for text in TEXTS], indent=1), "utf-8"),
    "below.json": (json.dumps({"data": [{"text": text, "label": "positive"} for text in TEXTS]}, indent=1), "utf-8"),
}


def _cli(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_written_otherwise_is_predicted(
    enter_run: Enter, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    enter_run("text-classification")
    text, encoding = FILES[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    capfd.readouterr()  # of the run
    assert _cli("predict", "out", "--file", str(tmp_path / name), "--cpu") == 0
    printed = capfd.readouterr()
    assert [json.loads(line)["text"] for line in printed.out.splitlines()] == list(TEXTS)
    assert "split" not in printed.err and "\r" not in printed.err


@pytest.mark.parametrize("name", [name for name in FILES if name != "lines.txt"])
def test_a_file_that_is_written_otherwise_is_evaluated(enter_run: Enter, tmp_path: Path, name: str) -> None:
    enter_run("text-classification")
    text, encoding = FILES[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert _cli("evaluate", "out", "--data", str(tmp_path / name), "--output", str(tmp_path / "e"), "--cpu") == 0
    record = read_record(tmp_path / "e" / "record.json")
    assert record.data["eval"].rows == 3 and "eval_accuracy" in record.metrics.of("eval")


def test_how_a_file_is_read_can_be_said(enter_run: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enter_run("text-classification")
    file = tmp_path / "a.csv"
    file.write_text('words,opinion\na "good film,positive\nbad,negative\n')
    options = ["--set", "dataset.quoting=3", "--set", "dataset.text_column=words"]
    assert _cli("predict", "out", "--file", str(file), "--cpu", *options) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ['a "good film', "bad"]
    evaluated = ["evaluate", "out", "--data", str(file), "--output", str(tmp_path / "e"), "--cpu"]
    assert _cli(*evaluated, *options) == 2
    assert "here as --set dataset.KEY=VALUE" in capsys.readouterr().err
    assert _cli(*evaluated, *options, "--set", "dataset.label_column=opinion") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "GenerationConfig.temprature=1", "a"], "GenerationConfig has no 'temprature'"),
        (["--set", "GenerationConfig.do_sample=maybe", "a"], "GenerationConfig.do_sample"),
        (["--set", "dataset.encodng=latin-1", "--file", "train.jsonl"], "encodng"),
        (["--set", "TrainingArguments.seed=1", "a"], "TrainingArguments has no effect on this command"),
        (["a", "", "b"], "row 1: its text in 'text' is empty; give a text in every row"),
    ],
)
def test_settings_and_texts_that_cannot_be_used_are_refused(
    enter_run: Enter, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    enter_run("text-classification" if "" in arguments or "dataset" in str(arguments) else "causal-lm")
    assert _cli("predict", "out", "--cpu", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "message"), [([], "'tokens' is empty"), ("abc", "'tokens' is no list of words")])
def test_words_that_are_none_are_named(enter_run: Enter, tokens: object, message: str) -> None:
    enter_run("token-classification")
    with pytest.raises(Exception, match=message):
        list(predict(find_trained("out"), [{"tokens": tokens}], cpu=True))


def test_one_row_has_no_interval(enter_run: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enter_run("causal-lm")
    (tmp_path / "one.txt").write_text("she was not sure that it would be so")
    assert _cli("evaluate", "out", "--data", str(tmp_path / "one.txt"), "--output", str(tmp_path / "e"), "--cpu") == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed and "on 1 row\n" in printed
    assert not (read_record(tmp_path / "e" / "record.json").intervals or {})["eval"]


def test_rows_of_a_recipe_with_templates_are_prompted_as_in_training(enter_run: Enter) -> None:
    from dataclasses import replace

    enter_run("chat")
    trained = load_trained(find_trained("out"), cpu=True)
    record = trained.found.record
    assert record is not None
    templates = {"user_template": "{{ q }} in {{ n }} words", "system_template": "{{ how }}"}
    dataset = {**record.recipe.sections["dataset"], **templates}
    recipe = replace(record.recipe, sections={**record.recipe.sections, "dataset": dataset})
    made = replace(trained, found=replace(trained.found, record=replace(record, recipe=recipe)))
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why in 3 words"}]
    row = {"q": "why", "n": 3, "how": "be short"}
    assert prompt_ids(made, row) == prompt_ids(trained, {"messages": messages})


def test_a_file_is_named_once(enter_run: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enter_run("text-classification")
    file = tmp_path / "a.csv"
    file.write_text("")
    assert _cli("predict", "out", "--file", str(file), "--cpu") == 2
    assert capsys.readouterr().err.count(str(file)) == 1
    write_rows(str(tmp_path / "b.jsonl"), [*rows_of("sentiment", 0, 2), {"text": "x", "label": None}])
    assert _cli("evaluate", "out", "--data", str(tmp_path / "b.jsonl"), "--output", str(tmp_path / "e"), "--cpu") == 2
    assert "split: {" not in capsys.readouterr().err
