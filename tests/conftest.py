"""Tests run offline, on the CPU, each in a folder of its own, on real (small) models and data."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

# Read at import by huggingface_hub, datasets and torch: set before any of them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: more threads only wait for each other
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as a run on a CPU sets it
os.environ.pop("HF_TOKEN", None)

import pytest

# A shell starts what it puts in the background with Ctrl-C ignored, nohup what it starts with SIGHUP ignored, and a run
# leaves an ignored signal ignored.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

ROOT = Path(__file__).resolve().parent.parent


DRAWN = ("report", "test_docs.py", "test_tables.py")  # folders and files whose subject is drawings


@pytest.fixture(autouse=True)
def _quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a tiny run's time is matplotlib's, for a report that no test but those of reports looks at; a fifth is
    accelerate's garbage collection, which walks all that was imported."""
    if not set(DRAWN) & set(request.path.parts):
        from hf_recipes.report import plots

        for name in ("curves", "differences", "reliability", "confusion", "parts"):
            monkeypatch.setattr(plots, name, lambda *args, **kwargs: "<svg></svg>")
    gc.collect()
    gc.freeze()


@pytest.fixture
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_recipe(folder: Path) -> Callable[[str], str]:
    """Writes a recipe's text into the working directory and returns its path as a user would type it."""

    def write(text: str, name: str = "recipe.yaml") -> str:
        (folder / name).write_text(text, encoding="utf-8")
        return name

    return write
