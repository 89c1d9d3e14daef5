"""A checkpoint is complete or not there: what is written, what is refused, what a full disk and a crash leave."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from hf_recipes.checkpoints import disk_space, folders, manifest, select
from hf_recipes.commands import restart, verify
from hf_recipes.common import run_lock
from hf_recipes.common.write_failures import find_failure
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run
from tests.support.killed_runs import final_state, run_until_killed

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 6, save_steps: 2, logging_steps: 1}}
"""


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE.format(root=root))


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_manifest_names_every_file_and_the_run_it_is_of(recipe: str) -> None:
    run(recipe)
    folder = Path("out/checkpoint-4")
    body = manifest.read_manifest(folder)
    assert body is not None
    assert set(body["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert list(manifest.find_errors(folder, body)) == []
    assert (body["step"], body["world_size"], body["state"]) == (4, 1, ["optimizer", "scheduler", "rng"])
    record = json.loads(Path("out/record.json").read_text())
    assert body["run"] == record["run"]
    assert body["data"] == {split: part["fingerprint"] for split, part in record["data"].items()}
    assert body["versions"]["torch"] == record["versions"]["torch"]
    assert body["recipe"]["arguments"]["learning_rate"] == 5e-5
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]


def test_every_damage_to_every_file_is_found_with_the_files_name(recipe: str, tmp_path: Path) -> None:
    run(recipe, ["TrainingArguments.max_steps=2"])
    shutil.copytree("out/checkpoint-2", "complete")
    names = sorted(path.name for path in Path("complete").iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"} <= set(names)
    for name in names:
        content = Path("complete", name).read_bytes()
        middle = len(content) // 2
        damages = {
            "truncated": content[:middle],
            "emptied": b"",
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "removed": None,
        }
        for damage, now in damages.items():
            folder = Path(f"{damage}-{name}")
            shutil.copytree("complete", folder)
            Path(folder, name).unlink() if now is None else Path(folder, name).write_bytes(now)
            wrong = select.find_errors(folder)
            assert len(wrong) == 1 and wrong[0].startswith(f"{name} "), (name, damage, wrong)
            shutil.rmtree(folder)


def test_the_checkpoint_of_a_rank_that_cannot_write_is_nowhere(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any failure while a checkpoint is written leaves the older ones and nothing else; a bug is not made up as one of
    the disk."""
    from transformers import Trainer

    upstreams, calls = Trainer._save_scaler, []

    def fails_at_the_second(self: object, output_dir: str) -> None:
        calls.append(output_dir)
        if len(calls) == 2:
            raise ZeroDivisionError("a bug")
        upstreams(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_scaler", fails_at_the_second)
    with pytest.raises(ZeroDivisionError):
        run(recipe)
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "checkpoint-2",
        "recipe.yaml",
        "record.json",
        "report-plots",
        "report.html",
        "report.md",
    ]
    assert select.find_errors(Path("out/checkpoint-2")) == []


# --- rotation --------------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path, run: str, saved: str, *, broken: bool = False) -> None:
    folder.mkdir()
    (folder / "a").write_text("1")
    manifest.write_manifest(folder, {"run": run, "saved": saved, "state": []}, manifest.flush_files(folder))
    if broken:
        (folder / "a").write_text("")


def test_rotation_keeps_the_best_the_latest_and_the_last_complete_one(folder: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        _checkpoint(folder / f"checkpoint-{step}", "a", f"2026-01-01T00:{step:02}", broken=step == 10)
    assert folders.remove_old_checkpoints(folder, None, [], "a") == []
    assert folders.remove_old_checkpoints(folder, 3, ["checkpoint-2", "checkpoint-10"], "a") == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert folders.remove_old_checkpoints(folder, 1, ["checkpoint-10"], "a") == ["checkpoint-2"]
    assert [path.name for path in folders.list_checkpoints(folder)] == ["checkpoint-10", "checkpoint-8"]


def test_the_newest_checkpoint_is_of_the_run_that_saved_last(folder: Path) -> None:
    _checkpoint(folder / "checkpoint-30", "old", "2026-01-01T00:30")
    _checkpoint(folder / "checkpoint-10", "new", "2026-01-02T00:10")
    _checkpoint(folder / "checkpoint-5", "new", "2026-01-02T00:05")
    (folder / "checkpoint-99").mkdir()  # upstream's
    names = [path.name for path in folders.list_checkpoints(folder)]
    assert names == ["checkpoint-10", "checkpoint-5", "checkpoint-30", "checkpoint-99"]
    assert folders.remove_old_checkpoints(folder, 1, ["checkpoint-10"], "new") == ["checkpoint-5"]


def test_save_total_limit_and_the_best_model_hold_through_a_run(recipe: str) -> None:
    run(recipe, ["TrainingArguments.save_total_limit=2"])
    assert sorted(path.name for path in Path("out").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


# --- full disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = folder / "out"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_without_room_ends_the_run_with_a_message_and_the_last_checkpoint_complete(
    recipe: str, small_disk: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        run(recipe)
    last = max(folders.step_of(path) for path in folders.list_checkpoints(small_disk))
    assert str(caught.value).startswith(
        f"recipe.yaml:9: the disk of 'out' has no room for checkpoint-{last + 2}: it needs "
    )
    assert str(caught.value).endswith(
        f"MiB are free; checkpoint-{last} is complete; make room there; the same command with --resume then continues "
        f"from checkpoint-{last}"
    )
    assert select.find_errors(small_disk / f"checkpoint-{last}") == []
    record = json.loads((small_disk / "record.json").read_text())
    assert (record["status"], record["stage"], record["steps"]) == ("failed", "training", last + 2)
    assert folders.list_leftovers(small_disk) == []


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_the_one_before(
    recipe: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before is switched off: the writers themselves fail, each with its own message."""
    monkeypatch.setattr(disk_space, "find_shortage", lambda folder, needed: None)
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["TrainingArguments.max_steps=20"])
    last = max(folders.step_of(path) for path in folders.list_checkpoints(small_disk))
    assert str(caught.value) == (
        f"recipe.yaml:9: 'out/checkpoint-{last + 2}' cannot be written: its disk is full; checkpoint-{last} is "
        f"complete; make room there; the same command with --resume then continues from checkpoint-{last}"
    )
    assert select.find_errors(small_disk / f"checkpoint-{last}") == []
    assert folders.list_leftovers(small_disk) == []
    assert json.loads((small_disk / "record.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_recognised_in_every_writers_words(folder: Path, problem: Exception) -> None:
    found = find_failure(problem, folder)
    assert found is not None and found.fix == "make room there"
    assert find_failure(RuntimeError("PytorchStreamWriter failed writing file"), folder) is None  # the disk has room


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_replays_the_last_steps_bit_for_bit_and_names_damaged_files(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    capsys.readouterr()
    lines: list[str] = []
    assert verify.verify("out", say=lines.append)
    assert [line.partition(",")[0] for line in lines[:3]] == [
        f"checkpoint-{step}: {len(list(Path('out/checkpoint-2').iterdir())) - 1} files" for step in (6, 4, 2)
    ]
    assert lines[3:] == ["replayed steps 5 to 6: 8 logged numbers and all weights are equal, bit for bit"]
    lines.clear()
    Path("out/checkpoint-4/scheduler.pt").unlink()
    assert not verify.verify("out", say=lines.append)  # although the replay, from checkpoint-2, is equal
    assert lines[1] == "checkpoint-4: scheduler.pt is missing"
    assert lines[3] == "replayed steps 3 to 6: 16 logged numbers and all weights are equal, bit for bit"


def test_verify_finds_a_run_that_did_something_else(recipe: str) -> None:
    run(recipe)
    folder = Path("out/checkpoint-6")
    state = json.loads((folder / "trainer_state.json").read_text())
    entry = next(entry for entry in state["log_history"] if entry["step"] == 6)
    entry["loss"] *= 1 + 1e-6
    (folder / "trainer_state.json").write_text(json.dumps(state))
    body = manifest.read_manifest(folder)
    assert body is not None
    manifest.write_manifest(folder, body, manifest.flush_files(folder))
    lines: list[str] = []
    assert not verify.verify("out", say=lines.append)
    assert lines[3] == (
        "replayed steps 5 to 6: 1 of 8 logged numbers differ, by 1.0e-06 at most, first loss at step 6; "
        "weights are equal"
    )


def test_verify_of_a_folder_without_checkpoints_is_one_message(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        verify.verify("nowhere")
    assert str(caught.value) == ("nowhere: there is no checkpoint in it; name the output_dir of a run that saved some")


# --- restart ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_started_again_and_ends_as_the_straight_one(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The children are forked here, so that each start is not a torch import."""
    run(recipe)
    straight = final_state()
    shutil.rmtree("out")
    deaths, seen = [1, 3, 5], []

    def child(command: list[str], lock: object) -> int:
        seen.append("--resume" in command)
        if deaths:
            run_until_killed(recipe, [], deaths.pop(0), resume="--resume" in command)
            return -signal.SIGKILL
        run(recipe, resume=True)
        return 0

    monkeypatch.setattr(restart, "run_child", child)
    # a child that is only forked does not get its parent's lock
    monkeypatch.setattr(run_lock, "hold_folder", lambda *_, **__: nullcontext())
    lines: list[str] = []
    pauses: list[float] = []
    assert restart.supervise(recipe, [], [], 5, say=lines.append, pause=pauses.append, environment={}) == 0
    assert (seen, pauses) == ([False, False, True, True], [1.0, 2.0, 4.0])
    assert [re.sub(r"after \d+ s", "after N s", line) for line in lines] == [
        "the run was killed by SIGKILL after N s; start 2 of 6 in 1 s, from the beginning (no complete checkpoint yet)",
        "the run was killed by SIGKILL after N s; start 3 of 6 in 2 s, from out/checkpoint-2",
        "the run was killed by SIGKILL after N s; start 4 of 6 in 4 s, from out/checkpoint-4",
    ]
    assert final_state() == straight


@pytest.mark.parametrize("code", [0, 2, 3, 130, 143, -signal.SIGINT, -signal.SIGTERM])
def test_what_the_user_can_mend_and_what_the_user_ended_is_not_started_again(
    recipe: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(restart, "run_child", lambda command, lock: (calls.append(command), code)[1])
    ended = restart.supervise(recipe, [], [], 3, pause=lambda seconds: None, environment={})
    assert (len(calls), ended) == (1, code if code >= 0 else 128 - code)


def test_a_run_that_dies_each_time_is_given_up_after_n_restarts(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(restart, "run_child", lambda command, lock: (calls.append(command), 1)[1])
    lines: list[str] = []
    ended = restart.supervise(recipe, [], [], 2, say=lines.append, pause=lambda seconds: None, environment={})
    assert (ended, len(calls)) == (1, 3)
    assert lines[1] == (
        "the run ended with exit code 1 after 0 s; start 3 of 3 in 2 s, from the beginning (no complete checkpoint yet)"
    )


def test_restart_under_a_launcher_is_refused(recipe: str) -> None:
    with pytest.raises(RecipeError) as caught:
        restart.supervise(recipe, [], [], 1, environment={"WORLD_SIZE": "2"})
    assert str(caught.value) == (
        "argument '--restart': --restart works for one process, and a launcher started several; "
        "use the launcher's own: accelerate launch --max_restarts N, with --resume"
    )


def test_a_term_signal_reaches_the_run_and_ends_the_restarts(recipe: str) -> None:
    code = "import signal, time; signal.signal(15, lambda *_: exit(143)); print('up', flush=True); time.sleep(60)"
    parent = (
        "import sys; from hf_recipes.commands import restart; "
        f"sys.exit(restart.run_child([sys.executable, '-c', {code!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 143


@pytest.mark.slow
def test_the_command_restarts_a_run_that_is_killed(recipe: str) -> None:
    """The whole path, with real children: about 25 s of imports."""
    command = [sys.executable, "-m", "hf_recipes", "run", recipe, "--restart", "2", "TrainingArguments.max_steps=400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if (
            re.match(r" +\d+ +\d+\.\d", line)
            and Path("out/checkpoint-20").is_dir()
            and not any("killed by" in old for old in said)
        ):
            children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
            os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
            said.append("killed by us")
    assert process.wait(timeout=120) == 0
    assert any("the run was killed by SIGKILL after " in line for line in said), said[-30:]  # may stand behind a bar
    assert json.loads(Path("out/record.json").read_text())["resumed"]["step"] >= 20
