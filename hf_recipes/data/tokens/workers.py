"""Processes that encode units of rows side by side.

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
from typing import Any

from hf_recipes.data.tokens.encode import UnitError

TRIES = 2  # of a unit whose worker dies


class WorkerError(Exception):
    """A worker ended by itself, more than once, with the same rows."""


class Worker:
    """One child process; started with its first unit, and again after it died."""

    def __init__(self, encode: Callable[[Any], Any]):
        self.encode = encode
        self.process: subprocess.Popen[bytes] | None = None
        self.greeted = self.closed = False

    def write(self, values: Any, path: Path) -> None:
        """Raises OSError for a part that cannot be written, UnitError for values that `encode` refuses, WorkerError
        for values that no worker survives."""
        status = 0
        for _ in range(TRIES):
            process = self.process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                if not self.greeted:
                    pickle.dump(self.encode, process.stdin)
                    self.greeted = True
                pickle.dump((values, str(path)), process.stdin)
                process.stdin.flush()
                answer = pickle.load(process.stdout)
            except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):
                status = self._reap(process)
                continue
            if answer is not None:
                raise answer
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
def working(encode: Callable[[Any], Any], count: int) -> Iterator[queue.SimpleQueue[Worker]]:
    """`count` workers, free ones in a queue; none is left afterwards, however it ends."""
    workers = [Worker(encode) for _ in range(count)]
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    try:
        yield free
    finally:
        for worker in workers:
            worker.kill()


def write_with_workers(
    encode: Callable[[Any], Any],
    count: int,
    units: Sequence[int],
    read: Callable[[int], Any],
    path_of: Callable[[int], Path],
) -> Iterator[int]:
    """Writes the part of every unit; yields each unit's number when it is written. Of several units with a UnitError
    the first one's is raised, as one process alone would."""

    def work(unit: int, free: queue.SimpleQueue[Worker]) -> int:
        worker = free.get()
        try:
            worker.write(read(unit), path_of(unit))
        finally:
            free.put(worker)
        return unit

    waiting: dict[Future[int], int] = {}
    pool = ThreadPoolExecutor(count)
    try:
        with working(encode, count) as free:  # ends before the pool does: its threads wait for workers
            for unit in units:
                if len(waiting) >= 2 * count:
                    yield from _finished(waiting)
                waiting[pool.submit(work, unit, free)] = unit
            while waiting:
                yield from _finished(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(waiting: dict[Future[int], int]) -> list[int]:
    """Takes out the units that are done, at least one. Raises the error of the first that failed."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    if any(isinstance(one.exception(), UnitError) for one in done):
        wait(waiting)
        done = set(waiting)
    units = sorted((waiting.pop(one), one) for one in done)
    return [one.result() for _, one in units]
