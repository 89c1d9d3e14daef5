"""Whether a checkpoint fits on the disk, and whether a full disk ended a write.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from hf_recipes.common.text import format_bytes

MARGIN = 1.05
RESERVE = 2**20  # bytes beside a checkpoint: the record, the log
MESSAGES = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")


def find_shortage(folder: Path, needed: int) -> str | None:
    """How much `needed` bytes lack, as text; None if they fit."""
    free = shutil.disk_usage(folder).free
    wanted = int(needed * MARGIN) + RESERVE
    return None if free >= wanted else f"it needs {format_bytes(wanted)} and {format_bytes(free)} are free"


def is_disk_full(problem: BaseException, folder: Path) -> bool:
    """Whether the problem, or what caused it, is a full disk.

    safetensors and tokenizers report it in their messages; torch.save only that a write failed: then the disk is asked.
    """
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(message in str(cause) for message in MESSAGES):
            return True
        if isinstance(cause, RuntimeError) and "write" in str(cause) and shutil.disk_usage(folder).free < RESERVE:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
