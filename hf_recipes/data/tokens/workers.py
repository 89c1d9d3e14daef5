"""Processes that tokenize units of rows side by side.

Plain child processes over pipes, not `multiprocessing`: they import nothing of the program that started them, so they
are small, start in a moment, and neither a notebook nor a script without `if __name__` is run again in them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from hf_recipes.data.tokens.encode import Encoding

TRIES = 2  # of a unit whose worker dies


class WorkerError(Exception):
    """A worker ended by itself, more than once, with the same rows."""


class Worker:
    """One child process; started with its first unit, and again after it died."""

    def __init__(self, encoding: Encoding):
        self.encoding = encoding
        self.process: subprocess.Popen[bytes] | None = None
        self.greeted = self.closed = False

    def write(self, texts: Sequence[str | None], path: Path) -> None:
        """Raises OSError for a part that cannot be written, WorkerError for rows that no worker survives."""
        status = 0
        for _ in range(TRIES):
            process = self.process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                if not self.greeted:
                    pickle.dump(self.encoding, process.stdin)
                    self.greeted = True
                pickle.dump((texts, str(path)), process.stdin)
                process.stdin.flush()
                answer = pickle.load(process.stdout)
            except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):
                status = self._reap(process)
                continue
            if answer is not None:
                raise OSError(*answer)
            return
        raise WorkerError(f"signal {-status}" if status < 0 else f"status {status}")

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        process.kill()
        self.process = None
        with contextlib.suppress(BrokenPipeError), process:  # closes its pipes; what it did not read is still in one
            pass
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        if self.closed:
            raise WorkerError("closed")
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_recipes.data.tokens.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.greeted = False
        return self.process

    def kill(self) -> None:
        self.closed = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def working(encoding: Encoding, count: int) -> Iterator[queue.SimpleQueue[Worker]]:
    """`count` workers, free ones in a queue; none is left afterwards, however it ends."""
    workers = [Worker(encoding) for _ in range(count)]
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    try:
        yield free
    finally:
        for worker in workers:
            worker.kill()


def write_with_workers(
    encoding: Encoding,
    count: int,
    units: Sequence[int],
    read: Callable[[int], Sequence[str | None]],
    path_of: Callable[[int], Path],
) -> Iterator[int]:
    """Writes the part of every unit; yields each unit's number when it is written."""

    def work(unit: int, free: queue.SimpleQueue[Worker]) -> int:
        worker = free.get()
        try:
            worker.write(read(unit), path_of(unit))
        finally:
            free.put(worker)
        return unit

    waiting: set[Future[int]] = set()
    pool = ThreadPoolExecutor(count)
    try:
        with working(encoding, count) as free:  # ends before the pool does: its threads wait for workers
            for unit in units:
                if len(waiting) >= 2 * count:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
                waiting.add(pool.submit(work, unit, free))
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
    finally:
        pool.shutdown(cancel_futures=True)
