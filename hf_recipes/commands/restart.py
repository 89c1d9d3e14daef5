"""`run --restart N`: a run in a child process that is restarted from its latest complete checkpoint when it crashes.

Restarted: a child that a signal killed (SIGKILL of the out-of-memory killer, SIGSEGV, SIGBUS) or that ended with a
traceback. Not restarted: an error that the user can fix (exit code 2), a run that diverged (3), Ctrl-C (130), a SIGTERM
(143, or the signal itself) or another request to stop (SIGHUP, SIGUSR1), success.
Imports neither torch nor transformers: only the child does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hf_recipes.checkpoints import folders, select
from hf_recipes.errors import DivergedError, LaunchError, RecipeError
from hf_recipes.record import find_record

# Exit codes after which nothing is restarted: ended by a signal (training/signals.py), finished, refused, diverged.
SIGNALLED = (129, 130, 138, 143, -signal.SIGINT, -signal.SIGTERM)
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
    command = [sys.executable, "-m", "hf_recipes", "run", recipe, *overrides, *flags]
    for attempt in range(restarts + 1):
        began = time.monotonic()
        code = run_child(command)
        if code in ENDED or attempt == restarts:
            break
        seconds = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
        output_dir = _output_dir(recipe, overrides, "--smoke" in flags)
        if _is_finished(output_dir):
            say(f"{_describe_end(code)}, after it had finished: {output_dir} is complete")
            break
        resumed, source = _find_start(output_dir)
        say(
            f"{_describe_end(code)} after {time.monotonic() - began:.0f} s; "
            f"start {attempt + 2} of {restarts + 1} in {seconds:.0f} s, {source}"
        )
        pause(seconds)
        command = [part for part in command if part != "--resume"] + (["--resume"] if resumed else [])
    return code if code >= 0 else 128 - code


def run_child(command: Sequence[str]) -> int:
    """A child's exit code (negative: the signal). Ctrl-C reaches it directly; a SIGTERM is passed on."""
    process = subprocess.Popen(command)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _output_dir(recipe: str, overrides: Sequence[str], smoke: bool) -> Path:
    from hf_recipes.recipe.read import read_recipe

    return Path(str(read_recipe(recipe, overrides).training["output_dir"]) + ("-smoke" if smoke else ""))


def _is_finished(output_dir: Path) -> bool:
    """Whether the run came to its end and nothing of it is left to do; a push that failed was the Hub's."""
    record = find_record(output_dir)
    if record is None or record.status not in COMPLETE:
        return False
    chosen, _ = select.choose_checkpoint(output_dir)
    return (chosen is None or record.run == chosen.run) and not list_left(output_dir, record)


def _find_start(output_dir: Path) -> tuple[bool, str]:
    folders.clean_leftovers(output_dir)
    chosen, _ = select.choose_checkpoint(output_dir)
    return (True, f"from {chosen.path}") if chosen else (False, "from the beginning (no complete checkpoint yet)")


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"the run ended with exit code {code}"
    try:
        return f"the run was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the run was killed by signal {-code}"
