"""`python -m hf_recipes.data.tokens.worker`: tokenizes what it reads from standard input until that ends.

Its parent is the process that prepares the rows: the two talk in pickles, over pipes that only they hold.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

from hf_recipes.data.tokens.encode import Encoding, encode, load_backend, write_part


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for every core
    read, write = sys.stdin.buffer, sys.stdout.buffer
    encoding: Encoding = pickle.load(read)
    backend = load_backend(encoding)
    while True:
        try:
            texts, path = pickle.load(read)
        except EOFError:
            return
        try:
            write_part(Path(path), encode(texts, backend, encoding))
            answer = None
        except OSError as problem:
            answer = (problem.errno, problem.strerror, path)
        pickle.dump(answer, write)
        write.flush()


if __name__ == "__main__":
    main()
