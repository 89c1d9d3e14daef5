"""SIGTERM, Ctrl-C and a machine's notice: the step is finished and saved, and the run says how it goes on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_recipes.cli import main
from hf_recipes.training import trainer
from hf_recipes.training.signals import Listener, Stopped
from tests.support import killed_runs
from tests.support.forks import read_and_signal, run_forked
from tests.support.killed_runs import final_state
from tests.support.tiny_models import save_bert, wordpiece, write_rows
from tests.training.test_out_of_memory import texts

RECIPE = """
task: text-classification
model: {pretrained_model_name_or_path: model, hidden_dropout_prob: 0.1}
dataset: {path: json, data_files: rows.jsonl}
TrainingArguments: {output_dir: out, max_steps: 150, per_device_train_batch_size: 2, logging_steps: 1, save_steps: 1000}
"""


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., str]) -> str:
    save_bert("model", wordpiece(sorted({word for text in texts() for word in text.split()})))
    write_rows("rows.jsonl", ({"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts())))
    return write_recipe(RECIPE)


def run_command(command: list[str], root: Path, number: int | None) -> tuple[int, str]:
    """Exit code and output of a command that gets a signal at its first loss."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = read_and_signal(process.pid, process.stdout, number)
    return process.wait(timeout=120), output


def again(output: str) -> list[str]:
    """The resume command that the run printed."""
    return shlex.split(output.partition("to resume from it:\n")[2].splitlines()[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_printed_command_ends_as_the_straight_run(
    recipe: str, number: int, code: int
) -> None:
    if number == signal.SIGTERM:
        assert run_forked(["run", recipe], None)[0] == 0
        straight = final_state()
        shutil.move("out", "straight")
    ended, output = run_forked(["run", recipe], number)
    assert ended == code, output[-3000:]
    assert "Traceback" not in output
    record = json.loads(Path("out/record.json").read_text())
    assert record["status"] == "stopped" and 0 < record["steps"] < 150
    assert [path.name for path in Path("out").glob("*checkpoint-*")] == [f"checkpoint-{record['steps']}"]
    command = again(output)
    assert command[-3:] == ["run", recipe, "--resume"]
    if number == signal.SIGTERM:
        ended, output = run_forked(command[-3:], None)
        assert ended == 0, output[-3000:]
        assert final_state() == straight


@pytest.mark.slow  # three launches; the signal handler's own tests and the runs above are in the default set
def test_sigterm_to_a_launcher_of_two_processes_leaves_one_whole_checkpoint_and_a_command_that_works(
    recipe: str, root: Path
) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    launch += [str(root / "accelerate_configs/cpu_2.yaml"), "-m", "hf_recipes.run", recipe]
    ended, output = run_command(launch, root, signal.SIGTERM)
    assert ended != 0
    record = json.loads(Path("out/record.json").read_text())
    assert record["status"] == "stopped" and 0 < record["steps"] < 150
    assert [path.name for path in Path("out").glob("*checkpoint-*")] == [f"checkpoint-{record['steps']}"]
    command = again(output)
    assert command[-1] == "--resume"
    ended, output = run_command(command, root, None)
    assert ended == 0, output[-3000:]
    assert json.loads(Path("out/record.json").read_text())["steps"] == 150


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_waits_for_the_step() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with Listener(said.append, launched=False).listening() as listener:
        listener.training = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert listener.received == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)  # in this thread, at once
            signal.getsignal(signal.SIGINT)
    assert said == ["\nSIGTERM: this step is finished and saved"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_before_training_a_signal_ends_the_run_at_once() -> None:
    with Listener(print, launched=False).listening(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


def test_an_error_is_shown_although_a_launcher_sends_sigterm_at_once() -> None:
    with Listener(print, launched=False).listening() as listener, pytest.raises(RuntimeError, match="a real error"):
        try:
            with listener.errors_first():
                raise RuntimeError("a real error")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_middle_of_a_printed_line_ends_the_run_no_less(capfd: pytest.CaptureFixture[str]) -> None:
    def busy(line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")  # as CPython says it

    with Listener(busy, launched=False).listening() as listener:
        listener.training = True
        signal.raise_signal(signal.SIGTERM)
        assert listener.received == signal.SIGTERM
    assert capfd.readouterr().err == "\nSIGTERM: this step is finished and saved\n"


def test_a_second_ctrl_c_says_what_was_saved_and_what_was_not(recipe: str) -> None:
    class Impatient(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for _ in range(2 if state.global_step == 5 else 0):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)

    def work() -> None:
        upstreams = trainer.callbacks
        trainer.callbacks = lambda *args: [*upstreams(*args), Impatient()]
        main(["run", recipe, "TrainingArguments.save_steps=2"])

    status = os.waitstatus_to_exitcode(killed_runs.run_forked(work))
    output = Path("child.log").read_text()
    assert status == 130, output[-3000:]
    assert "SIGINT: this step is finished and saved; once more ends at once" in output
    assert (
        "stopped in training after 5 steps; record out/record.json\n"
        "not saved: step 5 is lost, and made again by the next start\n"
        "out/checkpoint-4 is complete; to resume from it:\n"
    ) in output
