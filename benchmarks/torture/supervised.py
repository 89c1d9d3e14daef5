"""Kills of what started a run: the supervisor of --restart, a launcher. No rank may outlive it by ten seconds."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture import look
from torture.chains import Failure, clean, members, run_straight, wait_for_none
from torture.child import Session, train, train_rank
from torture.processes import LIMIT, ended, free_port, is_alive, rank_environment, start, sweep, wait

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file")


def kill_parents(name: str, begin: Callable[[], int], count: int, seed: int, part: tuple[int, int]) -> dict[str, Any]:
    """`count` times: a parent is killed at some moment, its ranks must end, and the resumed run is the straight one."""
    found: dict[str, Any] = {"parents": 0, "orphans": 0, "resumes": 0, "ends": 0, "equal_ends": 0, "failures": []}
    seconds, straight = run_straight()
    for index in range(part[0] - 1, count, part[1]):
        Path("child.log").unlink(missing_ok=True)
        try:
            _kill_parent(begin, random.Random(f"{seed}/{name}/{index}"), seconds, straight, found)
        except Failure as problem:
            failure = {"kind": name, "seed": seed, "chain": index, "what": str(problem), "log": look.tail()}
            found["failures"].append(failure)
            print(f"{name}, {index}: {problem}\n    " + "\n    ".join(look.tail().splitlines()[-8:]), flush=True)
        clean()
    return found


def _kill_parent(
    begin: Callable[[], int], draw: random.Random, seconds: float, straight: dict[str, str], found: dict[str, Any]
) -> None:
    parent = begin()
    deadline = time.monotonic() + LIMIT
    while not Path("saves.log").exists() and not list(Path().glob("out/checkpoint-*")):  # training has begun
        if ended(parent) is not None or time.monotonic() > deadline:
            raise Failure("a run ended by itself, or never saved")
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.6 * seconds))
    if ended(parent) is not None:  # it was at its end before the moment came
        return
    ranks = descendants(parent)  # torchrun starts each in a group of its own
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    found["parents"] += 1
    left = wait_for_none(lambda: [*members(parent), *filter(is_alive, ranks)])
    found["orphans"] += len(left)
    sweep(parent)
    for rank in filter(is_alive, ranks):
        os.kill(rank, signal.SIGKILL)
    if left:
        raise Failure(f"{len(left)} processes were left ten seconds after their parent was killed")
    state = look.after_an_end()
    if state["half"] or state["lost"]:
        raise Failure(f"after the parent's death: {state}")
    if not state["complete"]:
        found["resumes"] += 1
        status = wait(start(lambda: train(Session(resume=True))))
        if status != 0:
            raise Failure(f"a resumed run ended with {status}")
    found["ends"] += 1
    differ = look.differences(look.result(), straight)
    found["equal_ends"] += not differ
    if differ:
        raise Failure(f"the end is not the straight run's: {', '.join(differ)}")


def descendants(parent: int) -> list[int]:
    """Processes below this one."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(above, []).append(int(path.name))
    found = list(below.get(parent, ()))
    for one in found:
        found += below.get(one, ())
    return found


# --- parents ---------------------------------------------------------------------------------------------------------


class ForkedRun:
    """Stands in for subprocess.Popen below the supervisor: the same command in a fork, which need not import torch."""

    def __init__(self, command: list[str], env: dict[str, str], pass_fds: tuple[int, ...] = (), **_: Any) -> None:
        from hf_recipes.cli import main
        from hf_recipes.common import run_lock

        inherited = [os.dup(file) for file in pass_fds]  # a fork closes the lock's own file
        self.pid = os.fork()
        if self.pid:
            for file in inherited:
                os.close(file)
            return
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
            os.environ.update(env)
            if inherited:
                os.environ[run_lock.INHERITED] = str(inherited[0])
            main(command[3:])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def supervisor() -> int:
    """`hf-recipes run --restart 2`, whose run is a fork."""

    def work() -> None:
        from hf_recipes.cli import main
        from hf_recipes.commands import restart

        restart.subprocess = type(sys)("subprocess")  # type: ignore[assignment]
        restart.subprocess.Popen = ForkedRun  # type: ignore[attr-defined]
        main(["run", "recipe.yaml", "--restart", "2"])

    return start(work)


def forked_launcher() -> int:
    """A launcher's stand-in: two ranks below a process that only waits."""

    def work() -> None:
        from hf_recipes.common import parent_watch

        parent_watch.is_launcher = lambda arguments: True
        port = free_port()
        ranks = []
        for rank in range(2):
            child = os.fork()
            if not child:
                code = 1
                try:
                    os.environ.update(rank_environment(rank, 2, port))
                    train_rank(Session())
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
                finally:
                    os._exit(code)
            ranks.append(child)
        for child in ranks:
            os.waitpid(child, 0)

    return start(work)


def real_launcher() -> int:
    """`accelerate launch` of two processes on a CPU: imports and all."""
    command = [*LAUNCH, str(ROOT / "accelerate_configs/cpu_2.yaml"), "-m", "hf_recipes.run", "recipe.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open("child.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    return process.pid
