"""A disk, a folder or a limit that ends a run is one message, and a record that cannot be written never hides it."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from hf_recipes.checkpoints.disk_space import count_checkpoints, find_shortage_of_run
from hf_recipes.common.write_failures import (
    find_cache_failure,
    find_failure,
    find_shared_memory_failure,
)
from hf_recipes.errors import LaunchError, OutputDirError, RecipeError
from hf_recipes.pipeline.output_dir import explain_write_failures
from hf_recipes.training import trainer
from tests.support.killed_runs import run_forked

RECIPE = """
task: text-classification
model:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
BpeTrainer: {vocab_size: 300}
dataset: {path: json, data_files: {train: rows.jsonl, validation: val.jsonl}, max_length: 16}
TrainingArguments: {output_dir: out, max_steps: 4, save_steps: 1, per_device_train_batch_size: 2}
"""


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., str]) -> str:
    rows = [{"text": f"{word} day {i}", "label": word} for i in range(8) for word in ("good", "bad")]
    for name, part in (("rows.jsonl", rows[:12]), ("val.jsonl", rows[12:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return write_recipe(RECIPE)


class At(TrainerCallback):
    """Does something at the end of the second step."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def on_step_end(self, args: object, state: SimpleNamespace, control: object, **_: object) -> None:
        if state.global_step == 2:
            self.what()


def ended(recipe: str, what: Callable[[], object]) -> tuple[int, list[str]]:
    """Exit status and last lines of a run to which something happens."""
    from hf_recipes.cli import main

    def work() -> None:
        upstreams = trainer.callbacks
        trainer.callbacks = lambda *args: [*upstreams(*args), At(what)]
        main(["run", recipe])

    code = os.waitstatus_to_exitcode(run_forked(work))
    return code, [line for line in Path("child.log").read_text().splitlines() if line.startswith(("error", "warning"))]


def test_a_folder_that_is_moved_away_is_one_message_and_the_record_does_not_hide_it(recipe: str) -> None:
    code, lines = ended(recipe, lambda: os.rename("out", "moved"))
    assert (code, lines[-1]) == (
        2,
        "error: recipe.yaml:7: 'out/checkpoint-2' cannot be written: the folder is gone: moved, removed or unmounted; "
        "put it back; the same command with --resume then continues from its latest checkpoint",
    )
    output = Path("child.log").read_text()
    assert "warning: 'out/record.json' cannot be written: the folder is gone" in output
    assert "Traceback" not in output


def test_a_limit_on_the_size_of_files_is_named(recipe: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, resource.RLIM_INFINITY))

    code, lines = ended(recipe, limit)
    assert code == 2
    assert lines[-1] == (
        "error: recipe.yaml:7: 'out/checkpoint-2' cannot be written: no file may be larger than 16.0 KiB here "
        "(ulimit -f); checkpoint-1 is complete; raise that limit; the same command with --resume then continues from "
        "checkpoint-1"
    )


@pytest.mark.parametrize(
    ("problem", "what"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "its disk is full"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "the disk quota is used up"),
        (OSError(errno.EROFS, "Read-only file system", "out/record.json.part"), "its disk is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "this user may not write there (any more)"),
        (OSError(errno.ESTALE, "Stale file handle"), "its disk fails (Stale file handle)"),
        (RuntimeError("I/O error: Input/output error (os error 5)"), "its disk fails (Input/output error)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "out/x"), "the folder is gone: moved, removed or unmounted"),
        (
            RuntimeError("[fail at inline_container.cc:664] . unexpected pos 97 vs 96"),
            "a file could not be written completely ([fail at inline_container.cc:664] . unexpected pos 97 vs 96)",
        ),
        (KeyError("loss"), None),
        (RuntimeError("shapes cannot be multiplied"), None),
    ],
)  # fmt: skip
def test_why_a_file_could_not_be_written(folder: Path, problem: Exception, what: str | None) -> None:
    found = find_failure(problem, Path("out") if "gone" in str(what) else folder)
    assert (found.what if found else None) == what


def test_no_room_for_the_loaders_workers_is_no_full_disk(folder: Path) -> None:
    problem = RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")
    found = find_shared_memory_failure(problem)
    assert found is not None and found.fix.startswith("set dataloader_num_workers: 0, or give the container more")
    with pytest.raises(LaunchError), explain_write_failures(folder, "r.yaml:3", print):
        raise problem


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("x")
    cache = Path("file/cache").absolute()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    found = find_cache_failure(OSError(errno.EROFS, "Read-only file system", str(cache / "json" / "x.lock")))
    assert found is not None
    assert (found[0], found[1].what) == (f"HF_DATASETS_CACHE ({cache})", "its disk is read-only")
    assert find_cache_failure(OSError(errno.EROFS, "Read-only file system", "elsewhere/x")) is None
    found = find_cache_failure(NotADirectoryError(errno.ENOTDIR, "Not a directory", str(cache)))
    assert found is not None and found[1].fix == "name another folder"


def test_a_record_that_cannot_be_written_never_hides_why_the_run_ended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError) as caught, explain_write_failures(folder, "r.yaml:3", print):
        try:
            raise RecipeError.at("r.yaml:9", "the loss is nan")
        finally:
            raise OSError(errno.ENOSPC, "No space left on device", "out/record.json")
    assert str(caught.value) == "r.yaml:9: the loss is nan"
    assert capsys.readouterr().out == "warning: 'out/record.json' cannot be written: its disk is full\n"


def test_a_card_that_cannot_be_written_is_one_message(folder: Path) -> None:
    with pytest.raises(OutputDirError) as caught, explain_write_failures(folder, "r.yaml:3", print):
        raise OSError(errno.ENOSPC, "No space left on device", "out/README.md")
    assert str(caught.value) == (
        "r.yaml:3: 'out/README.md' cannot be written: its disk is full; make room there; the same command with "
        "--resume then continues"
    )


def arguments(**changed: object) -> SimpleNamespace:
    given = {"save_strategy": "steps", "save_steps": 10, "save_total_limit": None, "num_train_epochs": 3}
    return SimpleNamespace(**{**given, "save_only_model": False, "optim": "adamw_torch", **changed})


def test_checkpoints_that_will_not_fit_are_reported_at_the_start(recipe: str) -> None:
    assert count_checkpoints(arguments(), 95) == 10
    assert count_checkpoints(arguments(save_total_limit=2), 95) == 3
    assert count_checkpoints(arguments(save_strategy="no"), 95) == 0
    assert find_shortage_of_run(Path("."), arguments(), 100, 1000, 250) is None
    line = find_shortage_of_run(Path("."), arguments(), 1000, 2**40, 2**38)
    assert line is not None and "100 checkpoints of about 3,072.00 GiB and the model need 308,224.00 GiB" in line
    assert line.endswith("set save_total_limit, or save_only_model: true")
    smaller = find_shortage_of_run(Path("."), arguments(save_only_model=True, save_total_limit=1), 1000, 2**42, 2**40)
    assert smaller is not None and "2 checkpoints of about 4,096.00 GiB" in smaller
