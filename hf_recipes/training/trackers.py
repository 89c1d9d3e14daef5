"""Trackers (`report_to`): one that fails or hangs never ends or delays a training; TensorBoard continues a resumed run.

Each tracker's events run, in order, on a thread of its own; the training waits for one a few seconds at most. One that
fails is dropped, with a line. TensorBoard writes into the folder of the run's first session; what it logged behind the
checkpoint there is taken back (its own `purge_step`), since those steps are made again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

FIRST_SECONDS = 60.0  # to sign in when training begins
SECONDS = 10.0  # for any later event
INTEGRATIONS = "transformers.integrations"
EVENTS = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))


class LimitedTracker(TrainerCallback):
    """A tracker's callback whose events cannot raise and cannot delay the training."""

    def __init__(
        self, inner: Any, say: Callable[[str], None], first_seconds: float = FIRST_SECONDS, seconds: float = SECONDS
    ) -> None:
        self.inner, self.say = inner, say
        self.first_seconds, self.seconds = first_seconds, seconds
        self.dropped = False
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], list[Any], threading.Event]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _work(self) -> None:
        while True:
            job, outcome, done = self._jobs.get()
            try:
                job()
            except BaseException as problem:  # of the tracker, not of the run
                outcome.append(problem)
            done.set()

    def _event(self, name: str, args: Any, state: Any, control: Any, kwargs: Any) -> None:
        if self.dropped:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
            self._thread.start()
        outcome: list[Any] = []
        done = threading.Event()
        limit = self.first_seconds if name in ("on_init_end", "on_train_begin") else self.seconds
        self._jobs.put((lambda: getattr(self.inner, name)(args, state, control, **kwargs), outcome, done))
        if not done.wait(limit):
            self._drop(f"did not answer for {limit:.0f} s")
        elif outcome:
            first = (str(outcome[0]).strip().splitlines() or [type(outcome[0]).__name__])[0]
            self._drop(f"failed: {first}")

    def _drop(self, why: str) -> None:
        self.dropped = True
        self.say(
            f"report_to: {type(self.inner).__name__} {why}; the run continues without it, its log is in record.json"
        )


def _forward(name: str) -> Callable[..., None]:
    def event(self: LimitedTracker, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._event(name, args, state, control, kwargs)

    return event


for _name in EVENTS:
    setattr(LimitedTracker, _name, _forward(_name))


def read_tracker_folders(callbacks: Iterable[Any], output_dir: Path) -> dict[str, str]:
    """What a checkpoint keeps: TensorBoard's folder, relative to output_dir where it is inside."""
    folder = next((one.logging_dir for one in _tensorboards(callbacks) if one.logging_dir), None)
    if folder is None:
        return {}
    inside = Path(folder).absolute().is_relative_to(output_dir.absolute())
    kept = Path(folder).absolute().relative_to(output_dir.absolute()) if inside else Path(folder).absolute()
    return {"tensorboard": kept.as_posix()}


def continue_trackers(callbacks: Iterable[Any], found: Mapping[str, str], output_dir: Path, step: int) -> None:
    """Before training begins: the log of the run that is resumed. `step`: the checkpoint's."""
    folder = output_dir / found["tensorboard"] if found.get("tensorboard") else None
    for one in _tensorboards(callbacks):
        if folder is not None and folder.is_dir() and one.logging_dir is None:
            one.logging_dir = str(folder)
        if one.logging_dir is not None:  # also where TENSORBOARD_LOGGING_DIR names it
            one._SummaryWriter = _purge_once(one, step + 1)


def _purge_once(callback: Any, step: int) -> Callable[..., Any]:
    """The writer that takes back what was logged from a step on; the next one (after training) does not."""
    kind = callback._SummaryWriter

    def open_writer(log_dir: str) -> Any:
        callback._SummaryWriter = kind
        return kind(log_dir=log_dir, purge_step=step)

    return open_writer


def _tensorboards(callbacks: Iterable[Any]) -> list[Any]:
    found = (one.inner if isinstance(one, LimitedTracker) else one for one in callbacks)
    return [one for one in found if isinstance(one, TensorBoardCallback)]


def limit_trackers(trainer: Any, say: Callable[[str], None]) -> None:
    """Puts every tracker of the trainer behind `LimitedTracker`."""
    handler = trainer.callback_handler
    handler.callbacks = [
        LimitedTracker(one, say) if type(one).__module__.startswith(INTEGRATIONS) else one for one in handler.callbacks
    ]
