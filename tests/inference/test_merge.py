"""`hf-recipes merge`: an adapter in its base model's weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.commands.merge import command
from hf_recipes.commands.predict import predict
from hf_recipes.errors import RecipeError
from hf_recipes.inference.merge import describe_merge, merge
from hf_recipes.inference.trained import find_trained

Enter = Callable[..., Path]


def test_a_merged_model_says_what_the_adapter_says_with_the_same_metrics(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("text-classification", lora=True)
    one = merge(find_trained("out"), str(tmp_path / "merged"), data="validation.jsonl", say=lambda line: None)
    assert one.dtype == "float32"
    assert one.difference < 1e-4 < one.largest
    assert one.before is not None and one.after is not None
    assert one.after.metrics["f1"] == one.before.metrics["f1"]
    assert one.after.metrics["loss"] == pytest.approx(one.before.metrics["loss"], rel=1e-5)
    rows = [{"text": "a good film"}, {"text": "a bad film"}]
    adapter, merged = (list(predict(find_trained(name), rows)) for name in ("out", str(tmp_path / "merged")))
    for a, b in zip(adapter, merged, strict=True):
        assert b["probabilities"] == pytest.approx(a["probabilities"], abs=1e-5)
    assert any("largest difference of a logit" in line for line in describe_merge(one))


def test_a_merged_chat_model_keeps_its_template_and_the_files_dtype(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("chat", lora=True)
    lines: list[str] = []
    command("out", output=str(tmp_path / "merged"), dtype="bfloat16", say=lines.append)
    assert lines[0] == "merged in float32, written in bfloat16, read back"
    found = find_trained(str(tmp_path / "merged"))
    assert (found.task, found.adapter) == ("chat", False)
    assert not list(tmp_path.glob("*.part"))


def _refusal(run: str, output: Path) -> str:
    with pytest.raises(RecipeError) as raised:
        command(run, output=str(output), say=lambda line: None)
    return str(raised.value)


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("text-classification")
    assert _refusal("out", tmp_path / "m") == (
        "out: there is no adapter in it: it is a complete model already; use it as it is"
    )
    folder = enter_run("text-classification", lora=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("keep")
    assert "is there already; name another folder with --output" in _refusal("out", tmp_path / "there")
    shutil.copytree(folder / "out", tmp_path / "run" / "out")
    assert not (tmp_path / "m").exists()


def test_rows_that_cannot_be_evaluated_leave_no_merged_model(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("chat", lora=True)
    (tmp_path / "pair.csv").write_text("premise,label\nit rains,1\nit snows,0\n")
    with pytest.raises(RecipeError, match="neither a messages column nor"):
        merge(find_trained("out"), str(tmp_path / "m"), data=str(tmp_path / "pair.csv"), say=lambda line: None)
    assert [one.name for one in tmp_path.iterdir()] == ["pair.csv"]
