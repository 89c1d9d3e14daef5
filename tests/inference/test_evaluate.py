"""`hf-recipes evaluate`: a trained model on another file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.commands import compare
from hf_recipes.commands.evaluate import command
from hf_recipes.errors import RecipeError
from hf_recipes.record.file import read_record
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import TASKS, rows_of

Enter = Callable[..., Path]


@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=pytest.mark.slow) if t in ("causal-lm", "token-classification") else t for t in TASKS],
)
def test_the_validation_file_evaluated_again_gives_the_numbers_scores_and_ids_of_the_run(
    enter_run: Enter, tmp_path: Path, task: str
) -> None:
    import pyarrow.parquet as pq

    enter_run(task)
    file = "validation.txt" if task == "causal-lm" else "validation.jsonl"
    lines: list[str] = []
    command("out", file, output=str(tmp_path / "again"), say=lines.append)
    run, again = read_record(Path("out/record.json")), read_record(tmp_path / "again" / "record.json")
    expected = {k: v for k, v in run.metrics.of("eval").items() if "second" not in k and "runtime" not in k}
    found = {k: v for k, v in again.metrics.of("eval").items() if k in expected}
    assert found == pytest.approx(expected, rel=1e-6)
    assert again.intervals is not None and run.intervals is not None
    assert again.intervals["eval"].keys() == run.intervals["eval"].keys()
    first, second = (pq.read_table(folder / "scores.parquet") for folder in (Path("out"), tmp_path / "again"))
    assert first["id"].equals(second["id"])
    assert again.steps == 0
    assert again.data.keys() == {"eval"}
    name = next(iter(run.intervals["eval"]))
    assert any(line.split()[0] == name and "(95 %)" in line for line in lines if line.strip())


@pytest.mark.slow
def test_two_models_evaluated_on_one_file_are_compared(enter_run: Enter, tmp_path: Path) -> None:
    folder = enter_run("text-classification", lora=True)
    enter_run("text-classification")
    write_rows(tmp_path / "other.jsonl", rows_of("sentiment", 300, 50))
    shutil.copytree(folder, tmp_path / "lora")
    for run, name in (("out", "a"), (str(folder / "out"), "b")):
        base = str(folder / "base") if name == "b" else None
        command(run, str(tmp_path / "other.jsonl"), output=str(tmp_path / name), base_model=base, say=lambda line: None)
    text = "\n".join(compare.command([str(tmp_path / "a"), str(tmp_path / "b")], resamples=200))
    assert "f1" in text and "50 examples" in text


def test_a_data_file_of_other_labels_is_refused_and_nothing_is_left(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("text-classification")
    write_rows(tmp_path / "stars.jsonl", [{"text": "good", "label": "positive"}, {"text": "fine", "label": "neutral"}])
    with pytest.raises(RecipeError) as raised:
        command("out", str(tmp_path / "stars.jsonl"), output=str(tmp_path / "e"), say=lambda line: None)
    assert "row 1 of the eval split has the label 'neutral'" in str(raised.value)
    assert "the labels are negative, positive" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stars.jsonl"]


def test_an_empty_file_and_one_without_the_column_are_refused(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("text-classification")
    (tmp_path / "empty.jsonl").write_text("")
    write_rows(tmp_path / "other.jsonl", [{"sentence": "good", "label": "positive"}])
    messages = []
    for name in ("empty.jsonl", "other.jsonl", "gone.jsonl"):
        with pytest.raises(RecipeError) as raised:
            command("out", str(tmp_path / name), output=str(tmp_path / "e"), say=lambda line: None)
        messages.append(str(raised.value))
    assert "empty.jsonl: is empty" in messages[0]
    assert "the data has no column 'text' (it has sentence, label)" in messages[1]
    assert "gone.jsonl' does not exist" in messages[2]


def test_a_folder_of_something_else_is_not_replaced_and_an_earlier_evaluation_is(
    enter_run: Enter, tmp_path: Path
) -> None:
    enter_run("text-classification")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RecipeError) as raised:
        command("out", "validation.jsonl", output=str(tmp_path / "mine"), say=lambda line: None)
    assert "is there already and is no evaluation; name another with --output" in str(raised.value)
    for _ in range(2):
        command("out", "validation.jsonl", output=str(tmp_path / "e"), say=lambda line: None)
    assert json.loads((tmp_path / "e" / "record.json").read_text())["done"] == ["evaluation", "report"]
