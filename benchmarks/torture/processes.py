"""Runs in forked processes: this process imports torch once, and a start costs no import."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 120.0  # seconds after which a run hangs
LAUNCH = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK")


def preload() -> None:
    """What a run imports, once; no tensor is computed in this process, so that forks find no threads."""
    import bitsandbytes  # noqa: F401
    import datasets
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401

    import hf_recipes.cli
    import hf_recipes.commands.restart
    import hf_recipes.data.chat
    import hf_recipes.data.text_classification
    import hf_recipes.pipeline.run
    import hf_recipes.training.trainer

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    assert hf_recipes.pipeline.run and hf_recipes.data.chat and hf_recipes.cli and hf_recipes.commands.restart
    assert hf_recipes.data.text_classification and hf_recipes.training.trainer


def start(work: Callable[[], object], log: str = "child.log") -> int:
    """Forks a process (its own group, its output in a file) that does `work`; returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is shared by forks: one that is killed inside would keep it for all
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as problem:
        os.write(2, f"\n{type(problem).__name__}: {problem}\n".encode())
    finally:
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit status (negative: the signal) of a process of ours, None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(child: int, seconds: float = LIMIT) -> int | None:
    """The exit status; None for a process that has not ended in time and is then killed."""
    deadline = time.monotonic() + seconds
    while (status := ended(child)) is None:
        if time.monotonic() > deadline:
            kill(child)
            return None
        time.sleep(0.005)
    return status


def kill(child: int, *, alone: bool = False) -> int:
    """SIGKILL to the process and its loader workers; the exit status, -9 unless it had ended by itself.

    `alone`: to rank 1 only; rank 0 notices (gloo's connection is gone) and has a minute to end by itself.
    """
    if alone and Path("rank1.pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(Path("rank1.pid").read_text(encoding="utf-8")), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status = ended(child)
            if status is not None:
                return status
            time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sweep(child: int) -> None:
    """Whoever is left of the group of a process that has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def is_alive(process: int) -> bool:
    """Whether a process runs: one that has ended and that nobody has asked about does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def in_ranks(processes: int, work: Callable[[], object]) -> None:
    """`work` in this process and, as rank 1, in a fork of it; their group is this process's."""
    if processes == 1:
        work()
        return
    port = free_port()
    other = os.fork()
    os.environ.update(rank_environment(0 if other else 1, processes, port))
    if not other:
        Path("rank1.pid").write_text(str(os.getpid()), encoding="utf-8")
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as problem:
            os.write(2, f"\nrank 1: {type(problem).__name__}: {problem}\n".encode())
        finally:
            os._exit(code)
    try:
        work()
    except SystemExit as end:
        if end.code:  # this process ends at once and the other one's connections break, as below a launcher
            raise
    with contextlib.suppress(ChildProcessError):
        os.waitpid(other, 0)


def rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    values = (processes, processes, "127.0.0.1", port, rank, rank)
    return {name: str(value) for name, value in zip(LAUNCH, values, strict=True)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
