"""`hf_recipes.api`: the commands from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hf_recipes import api
from hf_recipes.errors import RecipeError
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import folder_of, rows_of

SECTIONS = {
    "task": "text-classification",
    "model": {"pretrained_model_name_or_path": "base", "dtype": "float32"},
    "dataset": {
        "path": "json",
        "data_files": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "max_length": 64,
    },
    "TrainingArguments": {"output_dir": "out", "max_steps": 2, "save_strategy": "no", "report_to": "none"},
}


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, hf_recipes.api; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dict_is_checked_with_every_error() -> None:
    wrong = {**SECTIONS, "TrainingArguments": {"output_dir": "out", "max_stesp": 2}}
    found = api.check(wrong)
    assert (found.ok, found.errors) == (False, 1)
    assert "did you mean 'max_steps'?" in str(found)
    assert found._repr_html_().startswith("<pre>")
    assert "<" not in found._repr_html_().removeprefix("<pre>").removesuffix("</pre>")


def test_twenty_lines_run_compare_evaluate_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of("text-classification")
    monkeypatch.chdir(tmp_path)
    for name in ("base", "train.jsonl", "validation.jsonl"):
        (tmp_path / name).symlink_to(source / name)
    a = api.run(SECTIONS, {"TrainingArguments.output_dir": "a"})
    b = api.run(SECTIONS, {"TrainingArguments.output_dir": "b", "TrainingArguments.learning_rate": 1e-3})
    assert a.metrics.keys() >= {"loss", "f1", "accuracy"}
    assert "<td>f1</td>" in a._repr_html_()
    found = api.compare(a, b, resamples=200)
    assert str(found) and found.values
    write_rows("other.jsonl", rows_of("sentiment", 300, 20))
    other = api.evaluate(b, "other.jsonl")
    assert other.folder == Path("b/evaluations/other") and other.record.data["eval"].rows == 20
    labels = api.predict(b, ["a good film", {"text": "a bad one"}])
    assert [one["text"] for one in labels] == ["a good film", "a bad one"]
    with pytest.raises(RecipeError):
        api.predict(b, "one text")
