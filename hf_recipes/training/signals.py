"""SIGTERM, Ctrl-C and the like: the run ends after the step that it is in, with a checkpoint.

SLURM's and spot machines' notice is SIGTERM (or SIGUSR1, by --signal); a closed terminal's is SIGHUP. What is ignored
already stays so (nohup). A second Ctrl-C ends at once. Signals often go to the whole process group: a loader's workers
ignore them, since they are the run's to answer.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hf_recipes.common import parent_watch, worker_signals

ECHO = 3.0  # seconds: a launcher passes on the Ctrl-C that the terminal has sent already


class Stopped(KeyboardInterrupt):
    """The run was asked to end. `number`: of the signal; a shell's exit code is 128 and that."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Listener:
    """Remembers the first signal. Before and after training it ends the run at once; a step is finished first."""

    def __init__(self, say: Callable[[str], None], *, launched: bool | None = None) -> None:
        self.say = say
        self.launched = "WORLD_SIZE" in os.environ or parent_watch.is_watched() if launched is None else launched
        self.received = 0  # the signal's number
        self.training = False
        self.has_loaders = False
        self._ending = False
        self._at = 0.0
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Handlers are the process's: they are put back."""
        before: dict[int, Any] = {}
        for number in worker_signals.numbers():
            if signal.getsignal(number) is not signal.SIG_IGN:
                try:
                    before[number] = signal.signal(number, self._receive)
                except ValueError:  # not the main thread
                    break
        try:
            yield self
        finally:
            worker_signals.block_in_forks(False)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def errors_first(self) -> Iterator[None]:
        """What ends the block is an error: it is recorded and shown before any signal. (A launcher sends SIGTERM to the
        others as soon as one process has failed.)"""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._ending = True
            raise

    def expect_workers(self) -> None:
        """What is forked from here on is a loader's worker."""
        self.has_loaders = True
        worker_signals.block_in_forks(True)

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # in a worker: of a loader, which stays, or of datasets' map, which is ended
            if number == signal.SIGTERM and not self.has_loaders:
                os._exit(128 + number)
            return
        replace_lost_output()
        now = time.monotonic()
        again = bool(self.received) and number == signal.SIGINT and not (self.launched and now - self._at < ECHO)
        if self._ending and not again:
            self.received, self._at = self.received or number, now
            return
        if not self.training or again:
            self.received, self._at, self._ending = number, now, True
            raise Stopped(number)
        if not self.received:
            self.received, self._at = number, now
            more = "; once more ends at once" if number == signal.SIGINT else ""
            line = f"\n{signal.Signals(number).name}: this step is finished and saved{more}"
            try:
                self.say(line)
            except RuntimeError:  # the signal came in the middle of a write to the same stream, which refuses another
                os.write(2, f"{line}\n".encode())


def replace_lost_output() -> None:
    """Output to a terminal that was closed, or to a program that ended, would fail in the middle of the last step."""
    if not hasattr(select, "poll"):
        return
    for file in (1, 2):
        watched = select.poll()
        watched.register(file, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file)
            os.close(nowhere)
