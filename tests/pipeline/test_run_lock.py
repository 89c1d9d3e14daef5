"""One run a folder: a second one is refused at once, whatever it is, and changes nothing in the first one's folder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.cli import main
from hf_recipes.commands.verify import verify
from hf_recipes.common import run_lock
from hf_recipes.common.run_lock import LOCK, find_holder, hold_folder, keep_folder
from hf_recipes.errors import RecipeError
from hf_recipes.hub.push import push_command
from hf_recipes.pipeline.run import run
from tests.support.forks import fork, run_ranks

RECIPE = """
task: text-classification
model:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
BpeTrainer: {vocab_size: 300}
dataset: {path: json, data_files: {train: rows.jsonl, validation: rows.jsonl}, max_length: 16}
TrainingArguments: {output_dir: out, max_steps: 1}
"""


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., str]) -> str:
    rows = [{"text": f"{word} day {i}", "label": word} for i in range(8) for word in ("good", "bad")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(RECIPE)


@contextmanager
def another_run(folder: str = "out", *, end: int = signal.SIGKILL, workers: bool = False) -> Iterator[int]:
    """A process that holds the folder, as a run does; its id."""
    ready, wrote = os.pipe()

    def hold() -> None:
        sys.argv = ["/bin/hf-recipes", "run", "first.yaml", "TrainingArguments.hub_token=secret", "--resume"]
        with hold_folder(Path(folder), "first.yaml:1"):
            if workers:
                multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,), daemon=True).start()
            os.write(wrote, b"1")
            time.sleep(60)

    child = fork(hold, wrote)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, end)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(wrote)


def everything(folder: str) -> dict[str, tuple[float, bytes]]:
    return {str(p): (p.stat().st_mtime, p.read_bytes()) for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("words", [[], ["--resume"], ["--restart", "3"]])
def test_a_second_run_is_refused_with_the_process_of_the_first_and_nothing_is_changed(
    recipe: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("out/.staging-checkpoint-7").mkdir(parents=True)
    with another_run() as process:
        before = everything("out")
        with pytest.raises(SystemExit) as ended:
            main(["run", recipe, *words])
        assert everything("out") == before
    assert ended.value.code == 2
    line, _, since = capfd.readouterr().err.partition(", since ")
    assert line == (
        f"error: recipe.yaml:7: 'out' is in use by process {process} "
        "(hf-recipes run first.yaml TrainingArguments.hub_token=... --resume"
    )
    assert since.partition("); ")[2] == f"wait until it ends, or stop it (kill {process})\n"
    assert Path("out/.staging-checkpoint-7").is_dir()


def test_the_second_run_is_refused_before_torch_is_imported(recipe: str, root: Path) -> None:
    code = (
        "import sys; from hf_recipes.pipeline.run import run\n"
        "try: run('recipe.yaml')\n"
        "except Exception as problem: print(type(problem).__name__, 'torch' in sys.modules)"
    )
    with another_run():
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "OutputDirError False\n", done.stderr


def test_a_run_that_is_killed_leaves_the_folder_free_although_its_workers_still_live(folder: Path) -> None:
    with another_run(workers=True):
        pass
    assert Path("out/.lock").exists()
    with hold_folder(Path("out"), "a.yaml:1"):
        assert json.loads(Path("out/.lock").read_text())["pid"] == os.getpid()
    assert list(Path("out").iterdir()) == []


def test_a_run_that_ends_leaves_no_lock_and_one_that_is_refused_no_folder(recipe: str) -> None:
    with hold_folder(Path("a/b"), "a.yaml:1"):
        Path("a/b/file").write_text("kept")
    assert [path.name for path in Path("a/b").iterdir()] == ["file"]
    with pytest.raises(RecipeError):
        run(recipe, ["TrainingArguments.optim=no_such"])
    assert not Path("out").exists()


def test_a_lock_that_somebody_removed_is_taken_again_before_the_next_write(folder: Path) -> None:
    with hold_folder(Path("out"), "a.yaml:1"):
        Path("out/.lock").unlink()
        keep_folder(Path("out"), "a.yaml:1")
        assert json.loads(Path("out/.lock").read_text())["pid"] == os.getpid()
    assert not Path("out").exists()


def test_a_run_whose_folder_another_run_took_meanwhile_writes_nothing_more(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Any] = []

    def lose(*arguments: Any) -> None:
        """After this run's first step its folder is made anew, and another run begins there."""
        if not others:
            shutil.rmtree("out")
            others.append(another_run())
            others.append(others[0].__enter__())
            others.append(everything("out"))
        return keep(*arguments)

    keep = run_lock.keep_folder
    monkeypatch.setattr("hf_recipes.checkpoints.saving.keep_folder", lose)
    with pytest.raises(RecipeError) as refused:
        run(recipe, ["disable_guards=[overlap]"])
    try:
        assert str(refused.value).startswith(f"recipe.yaml:7: 'out' is in use by process {others[1]} (")
        assert "this run's record is not written" in capsys.readouterr().out
        assert everything("out") == others[2]
    finally:
        others[0].__exit__(None, None, None)


def test_a_lock_that_another_machine_left_is_explained(folder: Path) -> None:
    (folder / "out").mkdir()
    left = {"pid": 12, "host": "node7", "command": "hf-recipes run a.yaml", "began": "2026-11-27T10:00:00+00:00"}
    (folder / "out" / LOCK).write_text(json.dumps(left))
    lines: list[str] = []
    with hold_folder(Path("out"), "a.yaml:3", lines.append):
        pass
    assert lines == [
        "warning: a.yaml:3: 'out/.lock' was left by process 12 on node7 (hf-recipes run a.yaml, since "
        "2026-11-27T10:00:00+00:00): that run was killed, or it is still running on a disk whose locks do not reach "
        "this machine; make sure that it has ended"
    ]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    lines: list[str] = []
    with hold_folder(Path("out"), "a.yaml:3", lines.append):
        assert Path("out").is_dir()
    assert lines == [
        f"warning: a.yaml:3: the file system of 'out' has no locks ({os.strerror(number)}): nothing keeps a second run "
        "out of it"
    ]


def test_whoever_asks_takes_nothing(folder: Path) -> None:
    assert find_holder(Path("out")) is None
    with another_run() as process:
        holder = find_holder(Path("out"))
        assert holder is not None and (holder.pid, holder.host) == (process, platform.node())
    assert find_holder(Path("out")) is None


def test_a_push_beside_a_living_run_is_refused_and_a_verify_says_whose_checkpoints_it_reads(folder: Path) -> None:
    Path("out/checkpoint-1").mkdir(parents=True)
    with another_run() as process:  # which has saved no weights yet
        with pytest.raises(RecipeError) as refused:
            push_command("out", "org/name")
        assert str(refused.value).startswith(f"argument RUN_DIR: 'out' is in use by process {process} (")
        lines: list[str] = []
        verify("out", replay=False, say=lines.append)
    assert lines[0].startswith(f"out is in use by process {process} (") and lines[0].endswith("come and go")


def test_two_ranks_beside_another_run_are_both_refused(recipe: str) -> None:
    def rank(number: int) -> None:
        try:
            run(recipe, ["TrainingArguments.use_cpu=true"])
        except RecipeError as refused:
            print(f"rank {number}: {type(refused).__name__}", flush=True)
            time.sleep(1)
            raise SystemExit(2) from None

    with another_run():
        code, output = run_ranks(rank)
    assert code == 2
    assert sorted(output.splitlines()) == ["rank 0: OutputDirError", "rank 1: OutputDirError"]
