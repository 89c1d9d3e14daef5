"""`python -m hf_recipes.data.tokens.worker`: encodes what it reads from standard input until that ends.

Its parent is the process that prepares the rows: the two talk in pickles, over pipes that only they hold.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path
from typing import IO, Any, NoReturn

from hf_recipes.data.tokens.encode import UnitError
from hf_recipes.data.tokens.parts import write_part


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for every core
    read, write = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a package prints is no answer
    encode = _read(read)
    while True:
        values, path = _read(read)
        answer: Exception | None = None
        try:
            write_part(Path(path), encode(values))
        except OSError as problem:
            answer = OSError(problem.errno, problem.strerror, path)
        except UnitError as problem:
            answer = problem
        try:
            pickle.dump(answer, write)
            write.flush()
        except BrokenPipeError:
            _end()


def _read(pipe: IO[bytes]) -> Any:
    try:
        return pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):  # the latter: the parent was killed while it wrote
        _end()


def _end() -> NoReturn:
    """The parent is gone, or needs no more: nobody waits for an answer or a message, and what Python does at its end
    would write both once more."""
    os._exit(0)


if __name__ == "__main__":
    main()
