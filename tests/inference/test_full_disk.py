"""A disk that is full: one message, and nothing under the final name."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest

from hf_recipes.cli import main
from tests.support.trained_runs import folder_of

COMMANDS = {
    "evaluate": ["evaluate", "out", "--data", "validation.jsonl", "--output", "TARGET", "--cpu"],
    "predict": ["predict", "out", "--file", "train.jsonl", "--output", "TARGET", "--cpu"],
    "merge": ["merge", "out", "--output", "TARGET", "--cpu"],
    "merge and evaluate": ["merge", "out", "--data", "validation.jsonl", "--output", "TARGET", "--cpu"],
    "runs": ["runs", ".", "--html", "TARGET"],
    "init": ["init", "--data", "train.jsonl", "--model", "scratch", "--yes", "--output", "TARGET"],
    "recipes": ["recipes", "cp", "quickstart", "TARGET"],
    "plan": ["plan", "recipe.yaml", "--cpu", "--svg", "TARGET"],
}


def _limited(arguments: Sequence[str], limit: int, answer: multiprocessing.connection.Connection) -> None:
    """Runs a command whose files may have `limit` bytes, as on a full disk; the data are in the cache already."""
    printed = io.StringIO()
    code: object = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            main(list(arguments))
    except SystemExit as ended:
        code = ended.code
    except BaseException as problem:
        code = repr(problem)
    answer.send((code, printed.getvalue()))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_message_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("chat", lora=True) if name.startswith("merge") else folder_of("text-classification")
    monkeypatch.chdir(folder)
    target = tmp_path / "target"
    arguments = [str(target) if one == "TARGET" else one for one in COMMANDS[name]]
    if name in ("evaluate", "predict", "merge and evaluate"):
        with contextlib.redirect_stdout(io.StringIO()):  # fills the cache of data sets
            main([str(tmp_path / "before") if one == "TARGET" else one for one in COMMANDS[name]])
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_limited, args=(arguments, 100, theirs))
    child.start()
    assert ours.poll(240)
    code, printed = ours.recv()
    child.join()
    assert code == 2, (code, printed)
    assert "cannot be written" in printed and "Traceback" not in printed
    assert len(printed.strip().splitlines()[-1:]) == 1
    assert [one for one in os.listdir(tmp_path) if one.startswith("target")] == []
