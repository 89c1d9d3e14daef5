"""A finished run of each task, in its own working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trained_runs import folder_of


@pytest.fixture
def enter_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Changes into the folder of a task's run: `out` is the run, `base` its base model."""

    def enter(task: str, *, lora: bool = False) -> Path:
        folder = folder_of(task, lora=lora)
        monkeypatch.chdir(folder)
        return folder

    return enter
