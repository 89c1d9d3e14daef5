"""Standard output and standard error that never end a run: a log on a full disk, a terminal that was closed, a reader
(`| head`) that has seen enough. Imports neither torch nor transformers.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

HEIR = {1: 2}  # what is lost on standard output is reported on standard error


class SafeOutput(io.TextIOWrapper):
    """A stream of text. What cannot be written any more is dropped, and `lost` says why ("" while it can)."""

    lost = ""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as problem:
            self._drop(problem)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as problem:
            self._drop(problem)

    def _drop(self, problem: OSError) -> None:
        """The rest goes nowhere, with what is still in the buffer."""
        if self.lost:
            return
        self.lost = problem.strerror or str(problem)
        file, nowhere = self.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file)
        os.close(nowhere)
        self.flush()
        if file in HEIR and not isinstance(problem, BrokenPipeError):
            print(f"warning: standard output cannot be written any more: {self.lost}", file=sys.stderr, flush=True)


def protect_output() -> None:
    """Makes the process's own streams safe; those that a test or a notebook has put in their place stay."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or type(stream) is not io.TextIOWrapper:
            continue
        words: dict[str, Any] = {
            "encoding": stream.encoding,
            "errors": "backslashreplace",
            "line_buffering": stream.line_buffering,
        }
        safe = SafeOutput(stream.detach(), **words)  # a file's name may hold what no terminal can print
        setattr(sys, name, safe)
        setattr(sys, f"__{name}__", safe)


def lost_output() -> str:
    """Why standard output could not be written; "" where it could, or where its reader had seen enough."""
    flush = getattr(sys.stdout, "flush", None)
    if flush is not None:
        flush()
    lost = getattr(sys.stdout, "lost", "")
    return "" if lost == os.strerror(errno.EPIPE) else str(lost)
