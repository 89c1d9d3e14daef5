"""A process of a run that is frozen: the others wait for it in a sum over all, for half an hour by torch's default.

Each rank writes a beat into the launch's store from a thread, and reads those of the others; a second thread looks at
what was heard, since the first one waits for good where the store's own process is frozen (torch's timeout does not end
its wait for an answer). A rank whose beat stays
away for FROZEN seconds, while its process is stopped or cannot be seen from here, ends this run: one line says which,
and the launcher ends the rest. A process that is on this machine and runs is waited for, however long its beat is away:
it may be busy outside of Python.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.errors import LaunchError

BEAT = 5.0  # seconds between two beats
FROZEN = 35.0  # seconds without one
KEY = "hf_recipes/beat/"


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank last wrote, and how many beats this one had made then: while both are stopped, neither counts."""

    text: str  # "host process count"
    seen: int


@dataclass(kw_only=True)
class Exchange:
    """What the thread that talks to the store last heard. It may wait there for good: nobody waits for it."""

    texts: dict[int, str] = field(default_factory=dict)  # of the other ranks
    rounds: int = 0  # made to the end
    is_over: bool = False  # the store is gone: whoever waits for its holder sees that


@contextmanager
def watching_ranks(rank: int, world_size: int) -> Iterator[None]:
    """Ends this process with status 2 where another rank of the run is frozen. Nothing for one process."""
    if world_size <= 1:
        yield
        return
    from torch.distributed.distributed_c10d import _get_default_store

    ended = threading.Event()
    connection: Any = _get_default_store()
    store = connection.clone()  # a connection of its own: the other may be waiting for an answer
    exchange = Exchange()
    for name, work in (
        ("rank-beats", lambda: _exchange(store, rank, world_size, ended, exchange)),
        ("rank-watch", lambda: _watch(rank, ended, exchange)),
    ):
        threading.Thread(target=work, daemon=True, name=name).start()
    try:
        yield
    finally:
        ended.set()


def _exchange(store: Any, rank: int, world_size: int, ended: threading.Event, exchange: Exchange) -> None:
    count = 0
    while not ended.wait(BEAT):
        count += 1
        try:
            store.set(f"{KEY}{rank}", f"{socket.gethostname()} {os.getpid()} {count}")
            exchange.texts = {one: _read(store, one) for one in range(world_size) if one != rank}
        except RuntimeError:  # torch's DistStoreError
            exchange.is_over = True
            return
        exchange.rounds += 1


def _watch(rank: int, ended: threading.Event, exchange: Exchange) -> None:
    beats: dict[int, Beat] = {}
    count, rounds, answered = 0, 0, 0
    while not ended.wait(BEAT) and not exchange.is_over:
        count += 1
        if exchange.rounds != rounds:
            rounds, answered = exchange.rounds, count
        elif (count - answered) * BEAT >= FROZEN:
            holder = "the process that holds the launch's store (rank 0, or its launcher)"
            _end(rank, [], f"{holder} has not answered for {FROZEN:.0f} s")
        for one, text in exchange.texts.items():
            if text and (one not in beats or beats[one].text != text):
                beats[one] = Beat(text=text, seen=count)
        if answered != count:
            continue  # what the others wrote since is not known
        silent = [one for one, beat in beats.items() if (count - beat.seen) * BEAT >= FROZEN]
        frozen = [one for one in silent if _is_frozen(beats[one].text)]
        if frozen and not ended.is_set():
            host, process, _ = beats[frozen[0]].text.split()
            what = f"rank {frozen[0]} (process {process} on {host}) has not answered for {FROZEN:.0f} s"
            _end(rank, [one for one in beats if one not in silent], what, [beats[one].text for one in frozen])


def _read(store: Any, rank: int) -> str:
    key = f"{KEY}{rank}"
    return store.get(key).decode() if store.check([key]) else ""


def _is_frozen(text: str) -> bool:
    """Whether a process is stopped, or cannot be looked at from here."""
    import psutil  # accelerate's

    host, process, _ = text.split()
    if host != socket.gethostname():
        return True
    try:
        return bool(psutil.Process(int(process)).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    except psutil.Error:
        return False  # it ended: whoever waits for it sees that


def _end(rank: int, answering: list[int], what: str, frozen: Sequence[str] = ()) -> None:
    """Says it on the lowest rank that answers, and ends: the main thread cannot be reached inside a sum over all.
    `frozen`: their beats; those on this machine are killed, or the launcher would wait another 30 seconds for them."""
    if rank <= min(answering, default=rank):
        fix = "--resume continues from the latest checkpoint"
        error = LaunchError.at("accelerate launch", f"{what}: this run waits for it and is ended", fix)
        print(f"error: {error}", file=sys.stderr, flush=True)
        for host, process, _ in (beat.split() for beat in frozen):
            if host == socket.gethostname():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(int(process), signal.SIGKILL)
    else:
        time.sleep(1)  # its line first
    os._exit(2)
