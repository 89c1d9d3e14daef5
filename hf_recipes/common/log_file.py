"""What a run prints, into a file as well, or only there. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hf_recipes.errors import OutputDirError


class _Copies:
    """A text stream that writes into several; all else is the first one's."""

    def __init__(self, *streams: IO[str]) -> None:
        self._streams = streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams[0], name)

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
            stream.flush()
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


@contextlib.contextmanager
def printing_to(path: str | None, *, quiet: bool) -> Iterator[None]:
    """Within it standard output goes into the file `path` too (appended), and with `quiet` not to the terminal.
    Errors stay on standard error. Raises OutputDirError for a file that cannot be written."""
    if path is None and not quiet:
        yield
        return
    with contextlib.ExitStack() as stack:
        copies: list[Any] = [] if quiet else [sys.stdout]
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                copies.append(stack.enter_context(open(path, "a", encoding="utf-8")))
            except OSError as problem:
                what = f"{path!r} cannot be written ({problem.strerror})"
                raise OutputDirError.at("argument '--log-file'", what, "name another file") from None
        if not copies:
            copies.append(stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
        stack.enter_context(contextlib.redirect_stdout(_Copies(*copies)))  # type: ignore[type-var]
        yield
