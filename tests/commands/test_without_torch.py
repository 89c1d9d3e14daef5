"""What works where torch is not installed, and one line where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "data" / "run-587a747" / "runs"
# Python's own search for modules finds no torch, in this process and in its children.
WITHOUT = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] == "torch" else find(name, *rest)
)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    Path("site").mkdir(exist_ok=True)
    Path("site/sitecustomize.py").write_text(WITHOUT)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path("site").resolve()), str(ROOT)))}
    return subprocess.run(
        [sys.executable, "-m", "hf_recipes", *arguments], env=variables, capture_output=True, text=True, timeout=120
    )


def test_recipes_and_results_are_read_without_torch(folder: Path) -> None:
    Path("a.csv").write_text("text,label\ngood,a\nbad,b\n" * 5)
    assert (
        "next     hf-recipes run recipe.yaml" in _run("init", "--data", "a.csv", "--model", "scratch", "--yes").stdout
    )
    assert _run("check", "recipe.yaml").stdout.endswith("recipe.yaml: ok\n")
    for arguments in (["recipes"], ["--help"], ["runs", str(RUNS)],
                      ["compare", str(RUNS / "seed1"), str(RUNS / "seed42"), "--resamples", "100"]):  # fmt: skip
        done = _run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    doctor = _run("doctor")
    assert doctor.returncode == 1 and "torch does not load" in doctor.stdout and "Traceback" not in doctor.stderr


@pytest.mark.parametrize(
    "command", [["run", "recipe.yaml"], ["predict", str(RUNS / "seed1"), "a"], ["inspect", "recipe.yaml"]]
)
def test_a_command_that_needs_torch_says_so_in_a_line(folder: Path, command: list[str]) -> None:
    Path("a.csv").write_text("text,label\ngood,a\nbad,b\n" * 5)
    _run("init", "--data", "a.csv", "--model", "scratch", "--yes")
    done = _run(*command)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: torch is not installed, and this command needs it: "
        "https://pytorch.org/get-started has the one for your GPU"
    )
    assert "Traceback" not in done.stderr
