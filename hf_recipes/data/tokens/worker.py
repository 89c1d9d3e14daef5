"""`python -m hf_recipes.data.tokens.worker`: encodes what it reads from standard input until that ends.

Its parent is the process that prepares the rows: the two talk in pickles, over pipes that only they hold.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

from hf_recipes.data.tokens.encode import UnitError
from hf_recipes.data.tokens.parts import write_part


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for every core
    read, write = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a package prints is no answer
    encode = pickle.load(read)
    while True:
        try:
            values, path = pickle.load(read)
        except EOFError:
            return
        answer: Exception | None = None
        try:
            write_part(Path(path), encode(values))
        except OSError as problem:
            answer = OSError(problem.errno, problem.strerror, path)
        except UnitError as problem:
            answer = problem
        pickle.dump(answer, write)
        write.flush()


if __name__ == "__main__":
    main()
