"""From a data file to a model in use, outside the clone, from a wheel: benchmarks/first_run.py and its transcript."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import first_run
import pytest


def test_the_transcript_has_every_command_of_the_script_and_each_ended_well() -> None:
    record = json.loads(first_run.RECORD.read_text(encoding="utf-8"))
    assert list(record["files"]) == list(first_run.FILES)
    for file, steps in record["files"].items():
        assert [step["command"] for step in steps] == first_run.commands(file)
        assert not [step["command"] for step in steps if step["status"]]
        assert not [step["command"] for step in steps if "\r" in step["output"] or "Traceback" in step["output"]]


@pytest.mark.slow
@pytest.mark.parametrize("file", first_run.FILES)
def test_a_file_becomes_a_model_in_use_outside_the_clone(root: Path, tmp_path: Path, file: str) -> None:
    target = tmp_path / "record.json"
    command = [sys.executable, "benchmarks/first_run.py", "--only", file, "--output", str(target)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(target.read_text(encoding="utf-8"))["files"][file]
    by_command = {
        step["command"].split()[1 if step["command"].startswith("hf-recipes") else -2]: step for step in steps
    }
    assert set(by_command) == {"init", "run", "evaluate", "predict", "compare"}
    assert "(95 %)" in by_command["evaluate"]["output"]
    lines = [json.loads(line) for line in by_command["predict"]["output"].splitlines() if line.startswith("{")]
    assert len(lines) == first_run.ASKED if file != "novel.txt" else len(lines) == 3
    assert any(word in by_command["compare"]["output"] for word in ("cannot tell", "better", "worse", "no difference"))
