"""No orphans: a run ends when its supervisor or launcher is killed, and when another process of it dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.common import parent_watch
from hf_recipes.common.parent_watch import SUPERVISOR, find_parent_to_watch, is_launcher
from hf_recipes.common.ranks import is_lost_connection
from hf_recipes.training import trainer
from tests.support.forks import fork, is_loss, run_ranks
from tests.support.killed_runs import KillAt

RECIPE = """
task: text-classification
model:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
BpeTrainer: {vocab_size: 300}
dataset: {path: json, data_files: {train: rows.jsonl, validation: val.jsonl}, max_length: 16}
TrainingArguments:
  {output_dir: out, max_steps: 5000, save_steps: 1000, per_device_train_batch_size: 2, logging_steps: 1, use_cpu: true}
"""


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., str]) -> str:
    rows = [{"text": f"{word} day {i}", "label": word} for i in range(8) for word in ("good", "bad")]
    for name, part in (("rows.jsonl", rows[:12]), ("val.jsonl", rows[12:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return write_recipe(RECIPE)


def test_a_run_whose_supervisor_is_killed_saves_a_checkpoint_and_ends(recipe: str) -> None:
    ended, alive = os.pipe()  # closed when the run has ended
    log = os.open("run.log", os.O_WRONLY | os.O_CREAT)

    def run() -> None:
        os.environ[SUPERVISOR] = str(os.getppid())
        main(["run", recipe])

    def supervise() -> None:
        os.waitpid(fork(run, log), 0)

    supervisor = fork(supervise, log)
    os.close(alive)
    while not is_loss(Path("run.log").read_text()):
        time.sleep(0.05)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    assert os.read(ended, 1) == b""
    record = json.loads(Path("out/record.json").read_text())
    assert record["status"] == "stopped" and 0 < record["steps"] < 5000
    assert [path.name for path in Path("out").glob("checkpoint-*")] == [f"checkpoint-{record['steps']}"]


def test_only_a_run_below_our_supervisor_or_a_launcher_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_parent_to_watch({}) is None  # a shell, nohup, tmux
    assert find_parent_to_watch({SUPERVISOR: str(os.getppid())}) == os.getppid()
    assert find_parent_to_watch({"LOCAL_RANK": "0"}) is None  # a script that sets a launcher's variables
    assert not parent_watch.watch_parent()
    gone = fork(lambda: None, 1)
    os.waitpid(gone, 0)
    with pytest.raises(SystemExit) as ended:  # it died before the run could watch it
        find_parent_to_watch({SUPERVISOR: str(gone)})
    assert ended.value.code == 143


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python /venv/bin/accelerate launch --num_processes 2 x.py", True),
        ("python -m accelerate.commands.launch x.py", True),
        ("python /venv/lib/accelerate/commands/launch.py x.py", True),
        ("python /venv/bin/torchrun --nproc_per_node 2 x.py", True),
        ("python -m torch.distributed.run x.py", True),
        ("python launch.py", False),
        ("bash train.sh", False),
        ("tmux new -s train", False),
    ],
)
def test_a_launcher_is_known_by_its_command_line(command: str, expected: bool) -> None:
    assert is_launcher(command.split()) is expected


def test_where_one_process_dies_the_other_ends_without_a_traceback(recipe: str) -> None:
    def rank(number: int) -> None:
        if number == 1:
            upstreams = trainer.callbacks
            trainer.callbacks = lambda *args: [*upstreams(*args), KillAt(3)]
        main(["run", recipe, "TrainingArguments.save_steps=2"])

    code, output = run_ranks(rank)
    assert code == -signal.SIGKILL
    assert "Traceback" not in output, output[-3000:]
    assert Path("out/checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[../gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:61576: Connection reset by peer", True),
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
        ("[Errno 104] Connection reset by peer", False),  # of a download
    ],
)
def test_an_error_of_the_connection_between_processes_is_known(text: str, lost: bool) -> None:
    assert is_lost_connection(RuntimeError(text)) is lost
