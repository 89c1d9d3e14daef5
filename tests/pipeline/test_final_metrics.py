"""`metrics:` of a recipe: generated answers and modules of `evaluate`, computed once, when training has ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_recipes.commands.check import check
from hf_recipes.commands.evaluate import command as evaluate
from hf_recipes.errors import DataError, MetricError
from hf_recipes.hub.pushed_files import files_to_push
from hf_recipes.pipeline.run import run
from hf_recipes.record.file import read_record
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import conversations, folder_of, rows_of

MODULE = """import datasets
import evaluate


class Right(evaluate.Metric):
    def _info(self):
        one = datasets.Value("%s")
        features = datasets.Features({"predictions": one, "references": one})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        same = [float(a == b) for a, b in zip(predictions, references, strict=True)]
        length = [float(len(str(a))) for a in predictions]
        return {"right": sum(same) / len(same), "rows": len(same), "length": length}
"""


def _recipe(task: str, metrics: str, more: str = "") -> str:
    """The recipe of a run of `folder_of(task)` with other metrics."""
    folder = folder_of(task)
    text = (folder / "recipe.yaml").read_text()
    for name in ("base", "train.jsonl", "validation.jsonl"):
        if not Path(name).exists():
            os.symlink(folder / name, name)
    Path("recipe.yaml").write_text(f"{text}metrics: [{metrics}]\n{more}")
    return "recipe.yaml"


def _module(name: str, kind: str) -> None:
    Path(name).mkdir()
    Path(name, f"{name}.py").write_text(MODULE % kind)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_chat_run_reports_generated_answers_with_intervals_as_evaluate_does() -> None:
    metrics = "perplexity, exact_match, rouge, bleu, ./right"
    _module("right", "string")
    run(_recipe("chat", metrics, "GenerationConfig: {do_sample: true, temperature: 5.0, top_p: 0.9}\n"))
    record = read_record(Path("out/record.json"))
    found = record.metrics.of("eval")
    names = {"exact_match", "rouge1", "rouge2", "rougeL", "bleu"}
    assert {f"eval_{name}" for name in (*names, "right", "rows", "length", "perplexity")} <= found.keys()
    assert record.intervals is not None and {*names, "length"} <= record.intervals["eval"].keys()
    assert found["eval_right"] == found["eval_exact_match"]
    asked = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert [one["reference"] for one in asked] == [row["messages"][1]["content"] for row in conversations(60, 20)]
    assert json.loads(Path("out/metrics/right.json").read_text())["rows"] == 20
    assert not [name for name in files_to_push(Path("out")) if "answers" in name]
    evaluate("out", "validation.jsonl", output="again", say=lambda line: None)  # the recipe's metrics, greedily again
    again = read_record(Path("again/record.json")).metrics.of("eval")
    same = (*names, "right", "length")
    assert {name: again[f"eval_{name}"] for name in same} == pytest.approx({n: found[f"eval_{n}"] for n in same})


def test_a_module_has_an_interval_where_its_value_is_the_mean_of_the_rows_and_says_where_not() -> None:
    _module("right", "int32")
    run(_recipe("text-classification", "accuracy, ./right"))
    record = read_record(Path("out/record.json"))
    found = record.metrics.of("eval")
    assert found["eval_right"] == pytest.approx(found["eval_accuracy"])
    assert record.intervals is not None
    mine, ours = record.intervals["eval"]["right"], record.intervals["eval"]["accuracy"]
    assert (mine.low, mine.high) == pytest.approx((ours.low, ours.high))
    assert "rows" not in record.intervals["eval"]
    line = "rows of 'right': no interval, since it could not be shown to be the mean of the rows' values"
    assert line in record.notes


@pytest.mark.parametrize(
    ("task", "metrics", "line"),
    [
        ("chat", "exact_mach", "task chat has no metric 'exact_mach'; did you mean 'exact_match'?"),
        ("text-classification", "bleu", "task text-classification has no metric 'bleu'; it has f1, accuracy"),
        ("text-classification", "mine", "has no metric 'mine'; of a module of `evaluate` write the path: ./mine"),
        ("causal-lm", "./mine", "'./mine' needs predictions to compare, and task causal-lm has none"),
        ("chat", "./none", "warning: recipe.yaml:5: there is no metric './none' (paths are relative to the working"),
        ("chat", "a/b", "warning: recipe.yaml:5: 'a/b' is a program of the Hub: it runs only if you trust it; start"),
    ],
)
def test_check_reads_the_metrics(task: str, metrics: str, line: str) -> None:
    _module("mine", "int32")
    text = (folder_of(task) / "recipe.yaml").read_text()
    Path("recipe.yaml").write_text(f"{text}metrics: [{metrics}]\n")
    lines, _ = check("recipe.yaml")
    assert any(line in one for one in lines), lines


def test_the_best_model_is_not_chosen_by_what_is_computed_at_the_end() -> None:
    path = _recipe("chat", "rouge")
    lines, _ = check(path, ["SFTConfig.metric_for_best_model=rougeL", "SFTConfig.greater_is_better=true"])
    what = "metric_for_best_model: 'rougeL' is computed once, at the end of a run; choose the best model by loss"
    assert any(line.endswith(what) for line in lines), lines


@pytest.mark.parametrize(("metrics", "message"), [("./none", "'./none' is no file"), ("a/b", "'a/b' is no file here")])
def test_a_metric_that_is_not_here_is_refused_before_training(metrics: str, message: str) -> None:
    with pytest.raises(MetricError, match=message) as raised:
        run(_recipe("text-classification", metrics))
    assert str(raised.value).startswith("recipe.yaml:5: ")
    assert not Path("out/model.safetensors").exists()


def test_rows_without_a_prompt_are_refused_before_training() -> None:
    path = _recipe("chat", "exact_match")
    with pytest.raises(DataError, match="row 0 has no prompt"):
        run(path, ["SFTConfig.assistant_only_loss=false"])
    assert not Path("out/model.safetensors").exists()


def test_a_module_that_fails_at_the_end_costs_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text((MODULE % "int32").replace("same = [", "raise KeyError('no')\n        same = ["))
    run(_recipe("text-classification", "accuracy, ./mine.py"))
    record = read_record(Path("out/record.json"))
    assert record.status == "finished" and "eval_accuracy" in record.metrics.of("eval")
    assert "'mine' refuses the predictions of this task" in capsys.readouterr().out


@pytest.mark.slow
def test_several_processes_answer_a_part_of_the_rows_each() -> None:
    path = _recipe("chat", "exact_match, rouge")
    run(path)
    one = Path("out/answers.jsonl").read_text()
    file = str(Path(__file__).parents[2] / "accelerate_configs" / "cpu_2.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "-m", "hf_recipes.run"]
    model = ["model.pretrained_model_name_or_path=out", "SFTConfig.do_train=false", "SFTConfig.output_dir=two"]
    subprocess.run([*command, path, *model], check=True, timeout=300)
    assert Path("two/answers.jsonl").read_text() == one


def test_rows_of_data_that_evaluate_reads_have_the_modules_of_the_recipe_or_a_warning() -> None:
    _module("right", "int32")
    run(_recipe("text-classification", "accuracy, ./right"))
    write_rows("other.jsonl", rows_of("sentiment", 300, 10))
    evaluate("out", "other.jsonl", output="there", say=lambda line: None)
    assert "eval_right" in read_record(Path("there/record.json")).metrics.of("eval")
    Path("right").rename("elsewhere")
    lines: list[str] = []
    evaluate("out", "other.jsonl", output="gone", say=lines.append)
    assert lines[0].startswith("warning: metrics of the run's recipe: './right' is no file here")
    assert "eval_right" not in read_record(Path("gone/record.json")).metrics.of("eval")
