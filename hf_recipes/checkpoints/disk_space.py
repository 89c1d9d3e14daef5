"""Is there room for a checkpoint, and was it the disk that ended a write? Light."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from hf_recipes.common.text import megabytes

MARGIN = 1.05
LEAST = 2**20  # bytes kept beside a checkpoint: the record, the log
SAYING = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")


def shortage(folder: Path, needed: int) -> str | None:
    """Says how much is missing for `needed` bytes; None if they fit."""
    free = shutil.disk_usage(folder).free
    wanted = int(needed * MARGIN) + LEAST
    return None if free >= wanted else f"it needs {megabytes(wanted)} and {megabytes(free)} are free"


def is_full(problem: BaseException, folder: Path) -> bool:
    """Whether the problem, or what caused it, is a full disk.

    safetensors and tokenizers say it in words, torch.save says only that a write failed: then the disk is asked.
    """
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(cause) for words in SAYING):
            return True
        if isinstance(cause, RuntimeError) and "write" in str(cause) and shutil.disk_usage(folder).free < LEAST:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
