"""benchmarks/torture in short: interrupted runs end in the straight run's bits. docs/torture.md is its full form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def torture(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package's modules by name."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    return lambda name: import_module(f"torture.{name}")


def _part(number: int, **facts: Any) -> dict[str, Any]:
    run = {"kills": {"any": 2}, "signals": {"SIGINT, group": 1}, "ended_as": {}, "straight": {"weights": "w"}}
    run |= dict.fromkeys(("chains", "resumes", "ends", "equal_ends", "seconds", "half", "lost", "staging"), 1)
    run |= {"orphans": 0, "second_runs": 0, "second_runs_refused": 0, "failures": [], "straight_seconds": 1.0}
    whole = {"commit": "c", "versions": {}, "seed": 1, "part": number, "of": 2, "runs": {"a": run}, "parents": {}}
    return {**whole, "files": [], "disks": [], "seconds": 5.0, **facts}


def test_a_run_survives_kills_and_signals_at_any_moment_and_ends_as_if_there_were_none(torture: Any) -> None:
    chains, kinds = torture("chains"), torture("kinds")
    torture("processes").preload()
    run = {**kinds.RUNS["Trainer: dropout, evaluation, best model"]}
    run["TrainingArguments"] = {**run["TrainingArguments"], "max_steps": 6}
    found = chains.in_scratch(run, lambda: chains.interrupt_kind("short", 2, 1, seed=1))
    assert found["failures"] == [] and found["kills"].total() >= 2 and found["signals"].total() >= 1
    assert found["equal_ends"] == found["ends"] == found["chains"] > 0
    assert (found["half"], found["lost"], found["orphans"]) == (0, 0, 0)


@pytest.mark.slow
def test_every_kind_of_run_survives_every_kind_of_interruption(root: Path) -> None:
    words = ["--kills", "10", "--signals", "5", "--parents", "1"]
    done = subprocess.run(
        [sys.executable, "benchmarks/torture", *words], cwd=root, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    total = json.loads(done.stdout[done.stdout.rindex("\n{") :])
    assert total["failures"] == 0, done.stdout
    assert total["kills"] >= 10 and total["signals"] >= 5 and total["ends"] == total["equal_ends"] >= 10
    assert total["second_runs"] == total["second_runs_refused"]
    assert (total["half_checkpoints"], total["steps_lost_beyond_a_save"], total["orphans"]) == (0, 0, 0)


def test_parts_are_joined_into_one_record(torture: Any) -> None:
    record = torture("record")
    found = record.merge([_part(2), _part(1)])
    assert found["runs"]["a"]["kills"] == {"any": 4} and found["totals"]["kills"] == 4
    assert found["totals"]["signals"] == 2 and found["totals"]["failures"] == 0


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([_part(1), _part(2, commit="other")], "the parts differ in commit"),
        ([_part(1), _part(2, seed=2)], "the parts differ in seed"),
        ([_part(1)], r"parts \[1\] are not 1 to 2"),
        ([_part(1), _part(1)], r"parts \[1, 1\] are not 1 to 2"),
    ],
)
def test_parts_of_different_code_or_not_all_of_them_are_refused(torture: Any, parts: Any, why: str) -> None:
    with pytest.raises(SystemExit, match=why):
        torture("record").merge(parts)


def test_a_part_has_its_share_of_every_kind(torture: Any) -> None:
    main, kinds = torture("__main__"), torture("kinds")
    shares = [[main.share_of(1003, (part, 3), kind) for kind in range(len(kinds.RUNS))] for part in (1, 2, 3)]
    assert sum(map(sum, shares)) == 1003 and max(map(max, shares)) - min(map(min, shares)) <= 1
