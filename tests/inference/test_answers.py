"""`hf-recipes evaluate --metric`: generated answers against references, and modules of the `evaluate` package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_recipes.commands import compare
from hf_recipes.commands.evaluate import command
from hf_recipes.compare.answers import bleu
from hf_recipes.errors import MetricError
from hf_recipes.evaluation.metrics.generated import score_texts
from hf_recipes.inference.answers import split_row
from hf_recipes.record.file import read_record
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import conversations, rows_of

Enter = Callable[..., Path]
SAID = ["the cat sat on the mat", "a dog ran", "", "she was not sure that a new day had come"]
MEANT = [
    "the cat is on the mat",
    "a dog ran away from the house",
    "nothing",
    "she was not sure that a new day had come",
]
MODULE = '''"""How often the label is the first one."""
import datasets
import evaluate


class FirstLabel(evaluate.Metric):
    def _info(self):
        one = datasets.Value("int64")
        features = datasets.Features({"predictions": one, "references": one})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"first_label": sum(one == 0 for one in predictions) / len(predictions), "rows": len(references)}
'''


def test_bleu_of_sums_is_sacrebleus_corpus_score() -> None:
    from sacrebleu.metrics import BLEU

    rows = np.array(score_texts(["bleu"], SAID, MEANT)["bleu"])
    for chosen in ([0, 1, 2, 3], [0, 1], [3], [2], [0, 0, 1]):
        expected = BLEU().corpus_score([SAID[i] for i in chosen], [[MEANT[i] for i in chosen]]).score
        assert float(bleu(rows[chosen].sum(axis=0))) == pytest.approx(expected, abs=1e-9)


def test_exact_match_ignores_blanks_at_the_ends_and_rouge_is_googles() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    found = score_texts(["exact_match", "rouge"], [" a dog", "a dog", "A dog"], ["a dog\n", "a cat", "a dog"])
    assert found["exact_match"] == [1, 0, 0]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    assert found["rougeL"][1] == scorer.score("a cat", "a dog")["rougeL"].fmeasure == 0.5


def test_a_row_is_cut_before_its_last_answer() -> None:
    asked = split_row([1, 2, 3, 4, 5, 6], [-100, 2, -100, -100, 5, 6])
    assert asked is not None and (asked.prompt, asked.reference) == ([1, 2, 3, 4], [5, 6])
    assert split_row([1, 2], [1, 2]) is None


def test_answers_are_generated_scored_with_intervals_written_and_compared(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("chat")
    rows = conversations(100, 12)
    write_rows(tmp_path / "other.jsonl", rows)
    lines: list[str] = []
    for name in ("a", "b"):
        target = str(tmp_path / name)
        command("out", str(tmp_path / "other.jsonl"), output=target, metrics=("exact_match", "rouge", "bleu"),
                say=lines.append)  # fmt: skip
    record = read_record(tmp_path / "a" / "record.json")
    found = record.metrics.of("eval")
    names = {"exact_match", "rouge1", "rouge2", "rougeL", "bleu"}
    assert {f"eval_{name}" for name in names} <= found.keys()
    assert record.intervals is not None and names <= record.intervals["eval"].keys()
    answers = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    assert [one["reference"] for one in answers] == [row["messages"][1]["content"] for row in rows]
    assert all(row["messages"][0]["content"] in one["prompt"] for row, one in zip(rows, answers, strict=True))
    from sacrebleu.metrics import BLEU

    expected = BLEU().corpus_score([one["answer"] for one in answers], [[one["reference"] for one in answers]])
    assert found["eval_bleu"] == pytest.approx(expected.score, abs=1e-6)
    assert any(line.split()[:1] == ["rougeL"] and "(95 %)" in line for line in lines)
    text = "\n".join(compare.command([str(tmp_path / "a"), str(tmp_path / "b")], metric="rougeL", resamples=200))
    assert "rougeL: no difference" in text


def test_a_module_of_a_folder_is_computed_and_saved(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("text-classification")
    (tmp_path / "first_label").mkdir()
    (tmp_path / "first_label" / "first_label.py").write_text(MODULE)
    write_rows(tmp_path / "other.jsonl", rows_of("sentiment", 300, 20))
    module, target = str(tmp_path / "first_label"), tmp_path / "e"
    command("out", str(tmp_path / "other.jsonl"), output=str(target), metrics=(module,), say=lambda line: None)
    found = read_record(target / "record.json").metrics.of("eval")
    saved = json.loads((target / "metrics" / "first_label.json").read_text())
    assert (found["eval_first_label"], found["eval_rows"]) == (saved["first_label"], 20)


@pytest.mark.parametrize(
    ("task", "metric", "message"),
    [
        ("text-classification", "bleu", "bleu compares generated answers, and the task is text-classification"),
        ("text-classification", "mcc", "'mcc' is no file here; a metric of the Hub is a program that runs on this"),
        ("text-classification", "empty", "'empty' cannot be loaded: "),
        ("causal-lm", "mcc", "'mcc' needs predictions to compare, and causal-lm has none"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused_before_anything_is_written(
    enter_run: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, metric: str, message: str
) -> None:
    run = enter_run(task) / "out"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_rows("other.jsonl", rows_of("sentiment", 300, 5))
    with pytest.raises(MetricError) as raised:
        command(str(run), "other.jsonl", output="e", metrics=(metric,), say=lambda line: None)
    assert str(raised.value).startswith(f"argument '--metric': {message}")
    assert not Path("e").exists()
