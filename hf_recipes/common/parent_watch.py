"""No orphans: a run below our supervisor or a launcher ends when that process is killed.

Linux sends SIGTERM to a child whose parent dies (PR_SET_PDEATHSIG); training/signals.py answers it with a checkpoint.
A thread watches the parent's id besides: it sends the signal elsewhere, and ends what has not ended in time. A run
under nohup, tmux or a plain shell is not watched. Imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence

SUPERVISOR = "HF_RECIPES_SUPERVISOR"  # environment: the id of the process that supervises this one
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "LOCAL_RANK")  # environment of a launcher's child
LAUNCHERS = (
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.launch",
    "accelerate_cli.py",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed",
    "deepspeed.launcher.launch",
)
LOOK = 0.5  # seconds between two looks at the parent's id
GRACE = 7  # seconds from the parent's death for a step and a checkpoint
PR_SET_PDEATHSIG = 1


_watched = False


def is_watched() -> bool:
    """Whether this process ends with its parent; that one passes signals on."""
    return _watched


def watch_parent() -> bool:
    """Ends this process when its supervisor or launcher dies; whether there is one. To be called in the main thread."""
    parent = find_parent_to_watch()
    os.environ.pop(SUPERVISOR, None)  # not of what this process starts
    if parent is None:
        return False
    asked = die_with_parent()
    if os.getppid() != parent:  # it died before it could be watched
        raise SystemExit(128 + signal.SIGTERM)
    global _watched
    _watched = True
    threading.Thread(target=_watch, args=(parent, asked), daemon=True, name="parent-watch").start()
    return True


def find_parent_to_watch(environment: Mapping[str, str] = os.environ) -> int | None:
    """The process that started this run, if it is our supervisor or a launcher. May raise SystemExit: it is dead."""
    parent, supervisor = os.getppid(), environment.get(SUPERVISOR)
    if supervisor == str(parent):
        return parent
    if any(name in environment for name in LAUNCHED):
        import psutil  # accelerate's

        with contextlib.suppress(psutil.Error):
            if is_launcher(psutil.Process(parent).cmdline()):
                return parent
    elif supervisor is not None and supervisor.isdigit() and not _is_alive(int(supervisor)):
        raise SystemExit(128 + signal.SIGTERM)
    return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def is_launcher(arguments: Sequence[str]) -> bool:
    """Whether a command line starts accelerate, torchrun or the like."""
    return find_launcher(arguments) is not None


def find_launcher(arguments: Sequence[str]) -> int | None:
    """Where in a command line the launcher's name stands; None if it is no launcher's."""
    for place, word in enumerate(arguments[:4]):
        name = os.path.basename(word)
        if name in LAUNCHERS or (name == "launch.py" and "accelerate" in word):
            return place
    return None


def die_with_parent() -> bool:
    """Asks the kernel to send SIGTERM when the parent dies; whether it will. Linux only."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int, asked: bool) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    if not asked:
        os.kill(os.getpid(), signal.SIGTERM)
    if hasattr(signal, "alarm"):
        signal.alarm(GRACE)  # ends the process also where no Python can run
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
