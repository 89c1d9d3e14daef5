"""Run folders that commit 587a747 wrote (tests/data/README.md) work with today's commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.compare.runs import read_runs
from hf_recipes.errors import RecordError
from hf_recipes.pipeline.run import run
from hf_recipes.report.of_run import write_report
from tests.support.hub_double import HubDouble


@pytest.fixture
def old(root: Path, folder: Path) -> Path:
    """The working directory holds a copy of the recipe, its rows and its three runs."""
    shutil.copytree(root / "tests" / "data" / "run-587a747", folder, dirs_exist_ok=True)
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; it ends without an exit status."""
    capsys.readouterr()
    main(arguments)
    return capsys.readouterr().out


@pytest.mark.usefixtures("old")
def test_an_old_run_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {one["run"]: one for one in json.loads(printed(capsys, "runs", "--json"))}
    assert sorted(rows) == ["seed1", "seed42", "stopped"]
    first = rows["seed42"]
    assert (first["status"], first["task"], first["model"]) == ("finished", "text-classification", "gpt2")
    assert (first["metric"], first["steps"], first["seed"]) == ("f1", 16, 42)
    assert first["low"] < first["value"] < first["high"]
    assert (rows["stopped"]["status"], rows["stopped"]["steps"], rows["stopped"]["value"]) == ("stopped", 7, None)


@pytest.mark.usefixtures("old")
def test_two_old_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "compare", "runs/seed42", "runs/seed1", "--json"))
    records = [json.loads(Path("runs", name, "record.json").read_text()) for name in ("seed42", "seed1")]
    f1 = next(one for one in found["findings"] if one["metric"] == "f1")
    reported = [one["metrics"]["eval"]["eval_f1"] for one in records]
    assert [f1["first_value"], f1["second_value"]] == pytest.approx(reported)


@pytest.mark.usefixtures("old")
def test_an_old_run_and_a_comparison_of_two_get_their_report(capsys: pytest.CaptureFixture[str]) -> None:
    complaints: list[str] = []
    (run,) = read_runs(["runs/seed42"])
    write_report(run.path.parent, run.record, complaints.append)
    assert complaints == []
    assert "3,560 parameters" in Path("runs/seed42/report.md").read_text()
    printed(capsys, "compare", "runs/seed42", "runs/seed1", "--output", "compared")
    assert "f1" in Path("compared/compare.md").read_text()


@pytest.mark.usefixtures("old")
def test_an_old_stopped_run_is_resumed_to_the_end_of_the_straight_one(capsys: pytest.CaptureFixture[str]) -> None:
    straight = json.loads(Path("runs/seed42/record.json").read_text())
    overrides = ["TrainingArguments.output_dir=runs/stopped", "TrainingArguments.save_total_limit=2"]
    out = printed(capsys, "run", "recipe.yaml", *overrides, "--resume")
    assert "runs/stopped/checkpoint-7" in out
    resumed = json.loads(Path("runs/stopped/record.json").read_text())
    assert (resumed["status"], resumed["steps"], resumed["tokens"]) == ("finished", 16, straight["tokens"])
    for part, key in (("eval", "eval_loss"), ("eval", "eval_f1")):  # on the same kind of CPU equal to the digit
        assert resumed["metrics"][part][key] == pytest.approx(straight["metrics"][part][key], rel=0.05)
    assert [entry["step"] for entry in resumed["log_history"]] == [entry["step"] for entry in straight["log_history"]]


@pytest.mark.usefixtures("old")
def test_a_run_of_a_newer_version_is_not_resumed_and_keeps_its_record(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("runs/stopped/record.json")
    newer = json.dumps({**json.loads(path.read_text()), "schema": 99})
    path.write_text(newer)
    with pytest.raises(RecordError, match="a record of version 99; this hf_recipes reads up to"):
        run("recipe.yaml", ["TrainingArguments.output_dir=runs/stopped"], resume=True)
    assert path.read_text() == newer


@pytest.mark.usefixtures("old")
def test_an_old_runs_checkpoints_are_verified_and_its_steps_are_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        out = printed(capsys, "verify", "runs/stopped")
    except SystemExit:  # another CPU adds in another order
        out = capsys.readouterr().out
    assert "checkpoint-7: 9 files" in out
    assert "checkpoint-4: 9 files" in out
    assert out.count("as written") == 2
    assert "replayed steps 5 to 7: " in out
    assert "hf-recipes-verify-" not in out  # no line names the copy that is replayed


def test_an_old_run_is_pushed_with_its_model_card_and_record(old: Path, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    with HubDouble() as hub:
        environment = {**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **hub.environment}
        command = [sys.executable, "-m", "hf_recipes", "push", "runs/seed1", "--repo", "user/old"]
        done = subprocess.run(
            command, cwd=old, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        files = hub.repos["user/old"].files()
    assert done.stdout.startswith(f"pushed: {hub.url}/user/old (")
    assert files["model.safetensors"] == (old / "runs/seed1/model.safetensors").read_bytes()
    before, pushed = json.loads((old / "runs/seed1/record.json").read_text()), json.loads(files["record.json"])
    changed = [key for key in before if pushed[key] != before[key]]
    assert list(pushed) == list(before) and set(changed) <= {"recipe", "model"}, changed  # paths of that machine
    assert b"3,560 parameters" in files["README.md"]
