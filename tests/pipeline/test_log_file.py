"""What a run prints where nobody watches it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_recipes.cli import main
from tests.support.trained_runs import folder_of

OVERRIDES = ["TrainingArguments.max_steps=2", "TrainingArguments.logging_steps=1"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source = folder_of("text-classification")
    for name in ("base", "train.jsonl", "validation.jsonl", "recipe.yaml"):
        (tmp_path / name).symlink_to(source / name)
    monkeypatch.chdir(tmp_path)
    return "recipe.yaml"


def test_a_log_file_has_every_line_and_no_carriage_return(recipe: str, capfd: pytest.CaptureFixture[str]) -> None:
    main(["run", recipe, *OVERRIDES, "--log-file", "logs/run.txt"])
    printed = capfd.readouterr()
    text = Path("logs/run.txt").read_bytes().decode()
    assert text == printed.out
    assert "\r" not in text + printed.err
    assert "task       text-classification" in text
    steps = [line.split()[0] for line in text.partition("grad norm")[2].splitlines() if re.match(r" +\d+ ", line)]
    assert steps[:2] == ["1", "2"]
    tried = [
        line for line in text.splitlines() if "hf-recipes predict out" in line or "hf-recipes evaluate out" in line
    ]
    assert len(tried) == 2 and tried[0].startswith("try ")


def test_a_quiet_run_prints_errors_only(recipe: str, capfd: pytest.CaptureFixture[str]) -> None:
    main(["run", recipe, *OVERRIDES, "--quiet"])
    assert capfd.readouterr().out == ""
    assert Path("out/record.json").is_file()


def test_a_log_file_that_cannot_be_written_is_refused_before_the_run(
    recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", recipe, "--log-file", "recipe.yaml/run.txt"])
    assert ended.value.code == 2
    assert "error: argument '--log-file': 'recipe.yaml/run.txt' cannot be written" in capfd.readouterr().err
    assert not Path("out").exists()
