"""Processes forked from the test's own: a run in one, or the ranks of a launch, without importing torch again."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

SECONDS = 300
KILLED = "(the launcher killed what was left)"
LOSS = "loss  grad norm"  # of the header above the columns of training/screen.py


def fork(work: Callable[[], object], output: int) -> int:
    """Starts `work` in a forked process whose output goes to a file descriptor; returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        # pytest's stand-ins write to files of its own.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def is_loss(text: str) -> bool:
    """Whether a run has printed its columns of a training step (training/screen.py): they begin below this header."""
    return LOSS in text


def read_and_signal(process: int, output: IO[str], number: int | None) -> str:
    """The output of a process, which gets a signal at its first loss."""
    text = ""
    for line in output:
        text += line
        if number is not None and is_loss(line):
            os.kill(process, number)
            number = None
    return text


def run_forked(arguments: list[str], number: int | None) -> tuple[int, str]:
    """Exit code and output of `hf-recipes ARGUMENTS`, which gets a signal at its first loss."""
    from hf_recipes.cli import main

    reader, writer = os.pipe()
    child = fork(lambda: main(arguments), writer)
    os.close(writer)
    with os.fdopen(reader) as lines:
        output = read_and_signal(child, lines, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def run_ranks(
    work: Callable[[int], object], count: int = 2, output: str = "ranks.log", grace: float = 30
) -> tuple[int, str]:
    """`work(rank)` in `count` forked processes with the variables that `accelerate launch` sets for a CPU file.

    Where one fails the others get SIGTERM, and SIGKILL after `grace` seconds, as torchrun does. Returns the first
    failure's exit code (negative: a signal), or 0, and the output of all, with KILLED behind it after a SIGKILL.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def one(rank: int) -> Callable[[], object]:
        def process() -> object:
            from accelerate.state import AcceleratorState, PartialState

            os.environ.update({name: str(value) for name, value in common.items()})
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_MIXED_PRECISION="no")
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState._reset_state()
            return work(rank)

        return process

    running = {fork(one(rank), log) for rank in range(count)}
    os.close(log)
    note = ""
    first, deadline, kill_at = 0, time.monotonic() + SECONDS, float("inf")
    while running:
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            running.discard(child)
            code = os.waitstatus_to_exitcode(status)
            if code and not first:
                first, kill_at = code, time.monotonic() + grace
                for other in running:
                    os.kill(other, signal.SIGTERM)
        if running and time.monotonic() > min(deadline, kill_at):
            first, note = first or -signal.SIGKILL, KILLED
            for other in running:
                os.kill(other, signal.SIGKILL)
            deadline = kill_at = float("inf")
        time.sleep(0.02)
    return first, Path(output).read_text(errors="replace") + note
