"""A loader's workers ignore the signals that end a run, which are often sent to the whole group: the run answers them.

They end with the run: upstream leaves persistent ones to the garbage collector, which may close their pipes first and
then waits 5 seconds for each.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.queues
import multiprocessing.util
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


def numbers() -> list[int]:
    """Of the signals that end a run, as far as this platform has them."""
    return [number for name in NAMES if (number := getattr(signal, name, None)) is not None]


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """A loader's worker_init_fn. `then`: the loader's own."""

    then: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        for number in numbers():
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers())
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
        if self.then is not None:
            self.then(worker)


def _end_worker(problem: Exception, batch: Any) -> None:
    """A batch that cannot be passed on is lost, and the run would wait for it for ever."""
    os.write(2, f"a loader's worker cannot pass on a batch: {problem}\n".encode())
    os._exit(1)


_loaders: weakref.WeakSet[Any] = weakref.WeakSet()  # whose workers a run started


def follow_loader(loader: Any) -> None:
    """A DataLoader whose workers are to end with the run."""
    _loaders.add(loader)


@contextmanager
def workers_ended() -> Iterator[None]:
    """However the block ends, the persistent workers of its loaders end, too."""
    try:
        yield
    finally:
        for loader in list(_loaders):
            if loader._iterator is not None:
                loader._iterator._shutdown_workers()
                loader._iterator = None
        _loaders.clear()


_blocks = False
_masks: list[Any] = []  # of the thread that is forking


def block_in_forks(on: bool) -> None:
    """Whether signals wait in a forked process. torch gives a worker a handler of its own, by which SIGTERM ends it,
    before it calls worker_init_fn."""
    global _blocks
    _blocks = on


def _before_fork() -> None:
    if _blocks:
        _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, numbers()))


def _after_fork() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _end_workers() -> None:
    """multiprocessing ends workers by SIGTERM when this process exits, and waits for them: these would not end."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if not workers:
        return
    with contextlib.suppress(ValueError, AttributeError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes a killed worker for an error
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.kill()


if hasattr(os, "register_at_fork") and hasattr(signal, "pthread_sigmask"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_masks.clear)
atexit.register(_end_workers)  # before multiprocessing's own, which was registered when it was imported
