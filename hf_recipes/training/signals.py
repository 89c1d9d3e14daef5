"""SIGTERM, Ctrl-C and the like: the run ends after the step that it is in, with a checkpoint.

SLURM's and spot machines' notice is SIGTERM (or SIGUSR1, by --signal); a closed terminal's is SIGHUP. What is ignored
already stays so (nohup). A second Ctrl-C ends at once.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
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
        self.launched = "WORLD_SIZE" in os.environ if launched is None else launched
        self.received = 0  # the signal's number
        self.training = False
        self._at = 0.0

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Handlers are the process's: they are put back."""
        before: dict[int, Any] = {}
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                try:
                    before[number] = signal.signal(number, self._receive)
                except ValueError:  # not the main thread
                    break
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        again = bool(self.received) and number == signal.SIGINT and not (self.launched and now - self._at < ECHO)
        if not self.training or again:
            self.received = number
            raise Stopped(number)
        if not self.received:
            self.received, self._at = number, now
            more = "; once more ends at once" if number == signal.SIGINT else ""
            line = f"\n{signal.Signals(number).name}: this step is finished and saved{more}"
            try:
                self.say(line)
            except RuntimeError:  # the signal came in the middle of a write to the same stream, which refuses another
                os.write(2, f"{line}\n".encode())
