"""Measurements that share a GPU where their predicted memory leaves room: peaks are a process's own, times are not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from hf_recipes.plan.lab_record import LabRecord
from hf_recipes.plan.measure.worker import Child, start_child, stop_child

READY = 6  # children that import, or have imported and wait
AT_ONCE = 6  # measurements
MARGIN, CONTEXT = 1.4, 2**30  # of what a prediction may be wrong, and of CUDA's own in each process


class Scheduler:
    """`room`: bytes of the GPU; 0 where one measurement at a time is made, by a child that is started for it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.start: Callable[[], Child] = start_child
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.running: dict[Future[LabRecord], int] = {}  # -> bytes
        self.ready: deque[Child] = deque()

    def add(self, work: Callable[[Child | None], LabRecord], needed: int, *, alone: bool) -> Iterator[LabRecord]:
        """Starts `work` once there is room for its bytes; yields records that have come meanwhile."""
        share = int(needed * MARGIN) + CONTEXT
        while self.running and (
            alone or not self.room or len(self.running) >= AT_ONCE or sum(self.running.values()) + share > self.room
        ):
            yield from self._finished()
        while self.room and len(self.ready) < READY:
            self.ready.append(self.start())
        child = self.ready.popleft() if self.ready else None
        self.running[self.pool.submit(work, child)] = share
        if alone or not self.room:
            yield from self.wait()

    def wait(self) -> Iterator[LabRecord]:
        """The records of all that still runs."""
        while self.running:
            yield from self._finished()

    def _finished(self) -> Iterator[LabRecord]:
        done, _ = wait(self.running, return_when=FIRST_COMPLETED)
        for one in done:
            del self.running[one]
            yield one.result()

    def close(self) -> None:
        for child in self.ready:
            stop_child(child)
        self.pool.shutdown(wait=False, cancel_futures=True)
