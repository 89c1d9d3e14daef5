"""Several training loops in one process that take turns step by step, and the ratio of their steps with its interval.

Each loop is a thread, but only the one that has its turn runs: a step's seconds are the CPU time of the process between
the moment when it gets its turn and the end of its step. Rounds go through the loops forward and backward (A B B A), so
what slows the machine for a minute slows all of them. Two rounds are a pair; nothing is left out.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DRAWS = 4000


class CountElements(TorchDispatchMode):
    """Of the results of all operations, views left out: what a step computes, without the noise of a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.elements += sum(one.numel() for one in tree_leaves(found) if torch.is_tensor(one))
        return found


class Turn:
    """One loop's: it calls `end_step` after each of its steps. `counted`: the step whose elements are counted."""

    def __init__(self, counted: int) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.problem: BaseException | None = None
        self.counted, self.count = counted, CountElements()
        self.since = 0.0

    def begin(self) -> None:
        self.go.acquire()
        if len(self.seconds) == self.counted:
            self.count.__enter__()
        self.since = time.process_time()

    def end_step(self) -> None:
        self.seconds.append(time.process_time() - self.since)
        if len(self.seconds) == self.counted + 1:
            self.count.__exit__(None, None, None)
        self.done.release()
        self.begin()


def take_turns(
    loops: dict[str, Callable[[Turn], None]], steps: int, *, counted: int, ready: Callable[[dict[str, Turn]], None]
) -> dict[str, Turn]:
    """Runs all loops, each of `steps` steps and in a thread of its name. `ready` is called before the first. The first
    step's seconds have the building in them; one more entry is what follows the last."""
    turns = {name: Turn(counted) for name in loops}
    ready(turns)

    def run(name: str) -> None:
        turns[name].begin()
        try:
            loops[name](turns[name])
            turns[name].seconds.append(time.process_time() - turns[name].since)
        except BaseException as problem:  # a thread would drop it: the main one raises it, SystemExit too
            turns[name].problem = problem
        turns[name].done.release()

    threads = [threading.Thread(target=run, args=(name,), name=name, daemon=True) for name in loops]
    for one in threads:
        one.start()
    for number in range(steps + 1):  # one more: what follows the last step
        for name in list(loops)[:: 1 if number % 2 == 0 else -1]:
            turns[name].go.release()
            turns[name].done.acquire()
            if turns[name].problem is not None:
                raise SystemExit(f"{name}: {turns[name].problem!r}") from turns[name].problem
    return turns


def pair_ratios(some: list[float], base: list[float]) -> list[float]:
    """Of each two rounds that follow each other: the sum of two steps over the sum of the other's two."""
    firsts = range(0, len(base) - 1, 2)
    return [(some[i] + some[i + 1]) / (base[i] + base[i + 1]) for i in firsts]


def median_interval(ratios: list[float]) -> tuple[float, tuple[float, float]]:
    """The median of the pairs, and its interval of 95 % by bootstrap over them."""
    draw = random.Random(0)
    found = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return statistics.median(ratios), (found[round(DRAWS * 0.025)], found[round(DRAWS * 0.975) - 1])


def sum_interval(some: list[float], base: list[float]) -> tuple[float, tuple[float, float]]:
    """The ratio of the sums, and its interval of 95 % by bootstrap over pairs of rounds."""
    draw = random.Random(0)
    pairs = [(sum(some[i : i + 2]), sum(base[i : i + 2])) for i in range(0, len(base), 2)]

    def ratio(chosen: list[tuple[float, float]]) -> float:
        return sum(one for one, _ in chosen) / sum(other for _, other in chosen)

    found = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(DRAWS))
    return ratio(pairs), (found[round(DRAWS * 0.025)], found[round(DRAWS * 0.975) - 1])
