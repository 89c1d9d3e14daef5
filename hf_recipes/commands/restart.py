"""`run --restart N`: a run in a child process that is restarted from its latest complete checkpoint when it crashes.

Restarted: a child that a signal killed (SIGKILL of the out-of-memory killer, SIGSEGV, SIGBUS) or that ended with a
traceback. Not restarted: an error that the user can fix (exit code 2; a full disk is one), a run that diverged (3),
Ctrl-C (130), a SIGTERM (143, or the signal itself) or another request to stop (SIGHUP, SIGUSR1), success.
The supervisor holds output_dir's lock together with its child (common/run_lock.py); the child ends when the supervisor
dies (common/parent_watch.py). Imports neither torch nor transformers: only the child does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hf_recipes.checkpoints import folders, select
from hf_recipes.common import run_lock
from hf_recipes.common.parent_watch import SUPERVISOR, die_with_parent
from hf_recipes.common.run_lock import FolderLock
from hf_recipes.errors import DivergedError, LaunchError, RecipeError
from hf_recipes.pipeline.finish import describe_left, list_left
from hf_recipes.pipeline.output_dir import output_dir_of
from hf_recipes.record import COMPLETE, EndStep, RunRecord
from hf_recipes.record.file import find_record

# Exit codes after which nothing is restarted: ended by a signal (training/signals.py), finished, refused, diverged.
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SIGNALLED = tuple(code for number in PASSED_ON for code in (128 + number, -number))
ENDED = (0, RecipeError.exit_status, DivergedError.exit_status, *SIGNALLED)
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; doubled each time


def supervise(
    recipe: str,
    overrides: Sequence[str],
    flags: Sequence[str],
    restarts: int,
    *,
    say: Callable[[str], None] = print,
    pause: Callable[[float], None] = time.sleep,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Runs `hf-recipes run` and restarts it up to `restarts` times; returns the last exit code, as a shell's.

    `flags`: of the first start ("--resume", "--smoke", ...). Raises LaunchError under a launcher.
    """
    if "WORLD_SIZE" in environment:
        what = "--restart works for one process, and a launcher started several"
        fix = "use the launcher's own: accelerate launch --max_restarts N, with --resume"
        raise LaunchError.at("argument '--restart'", what, fix)
    folder, where = _output_dir(recipe, overrides, "--smoke" in flags)
    with run_lock.hold_folder(folder, where, say) as lock:
        code = _run_and_restart(recipe, overrides, flags, restarts, say, pause, folder, lock)
    return code if code >= 0 else 128 - code


def _run_and_restart(
    recipe: str, overrides: Sequence[str], flags: Sequence[str], restarts: int, say: Callable[[str], None],
    pause: Callable[[float], None], output_dir: Path, lock: FolderLock | None,
) -> int:  # fmt: skip
    command = [sys.executable, "-m", "hf_recipes", "run", recipe, *overrides, *flags]
    # A run that dies before its own first checkpoint does not continue an earlier one whose checkpoints are there too.
    others = () if "--resume" in flags else {folders.run_of(path) for path in folders.list_checkpoints(output_dir)}
    before = find_record(output_dir)
    for attempt in range(restarts + 1):
        began = time.monotonic()
        code = run_child(command, lock)
        if code in ENDED or attempt == restarts:
            break
        seconds = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
        record = find_record(output_dir)
        record = None if record == before else record  # then it is an earlier run's, or of an earlier session
        if record is not None and is_finished(output_dir, record):
            say(f"{_describe_end(code)}, after it had finished: {output_dir} is complete")
            break
        resumed, source = _find_start(output_dir, others, record)
        say(
            f"{_describe_end(code)} after {time.monotonic() - began:.0f} s; "
            f"start {attempt + 2} of {restarts + 1} in {seconds:.0f} s, {source}"
        )
        pause(seconds)
        command = [part for part in command if part != "--resume"] + (["--resume"] if resumed else [])
    return code


def run_child(command: Sequence[str], lock: FolderLock | None = None) -> int:
    """A child's exit code (negative: the signal). Signals that ask for an end are passed on to it, and it ends if this
    process is killed. `lock`: shared with the child."""
    environment = {**os.environ, SUPERVISOR: str(os.getpid())}
    if lock is not None and lock.file is not None:
        environment[run_lock.INHERITED] = str(lock.file)
        process = subprocess.Popen(command, env=environment, pass_fds=[lock.file])
    else:  # a launcher, perhaps, which does not watch its parent by itself
        process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent if os.name != "nt" else None)
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        process.send_signal(number)

    heard = [each for each in PASSED_ON if signal.getsignal(each) is not signal.SIG_IGN]  # nohup: the child, too
    before: dict[int, Any] = {each: signal.signal(each, pass_on) for each in heard}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if lock is not None:
            lock.sign()
    return 128 + asked[0] if asked and code not in ENDED else code


def _output_dir(recipe: str, overrides: Sequence[str], smoke: bool) -> tuple[Path, str]:
    """The run's output_dir and its place in the recipe. Raises RecipeError."""
    from hf_recipes.recipe.read import read_recipe

    read = read_recipe(recipe, overrides)
    folder = output_dir_of(read)
    return (Path(f"{folder}-smoke") if smoke else folder), read.location(f"{read.trainer}.output_dir")


def is_finished(output_dir: Path, record: RunRecord) -> bool:
    """Whether the run came to its end and nothing of it is left to do."""
    return record.status in COMPLETE and not list_left(output_dir, record)


def _find_start(output_dir: Path, others: Collection[str | None], record: RunRecord | None) -> tuple[bool, str]:
    """`others`: runs that were there before. `record`: what this one has written."""
    if record is not None and (record.status in COMPLETE or EndStep.WEIGHTS in record.done):
        return True, f"to finish it ({describe_left(list_left(output_dir, record))})"
    folders.clean_leftovers(output_dir)
    chosen, _ = select.choose_checkpoint(output_dir)
    if chosen is not None and (chosen.run or "") in others:
        chosen = None
    return (True, f"from {chosen.path}") if chosen else (False, "from the beginning (no complete checkpoint yet)")


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"the run ended with exit code {code}"
    try:
        return f"the run was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the run was killed by signal {-code}"
