"""A frozen process of a run: the others say which one it is and end, instead of waiting for it for half an hour."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from hf_recipes.common import rank_watch
from tests.support.forks import KILLED, run_ranks


@pytest.mark.parametrize(
    ("frozen", "named"), [(1, "rank 1 (process "), (0, "the process that holds the launch's store (rank 0, or its")]
)
def test_a_frozen_rank_is_named_and_ends_the_run(
    frozen: int, named: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_watch, "BEAT", 0.1)
    monkeypatch.setattr(rank_watch, "FROZEN", 1.5)

    def work(rank: int) -> None:
        import torch

        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        with rank_watch.watching_ranks(rank, 2):
            torch.distributed.barrier()
            rank_watch.time.sleep(1)  # both have written a beat
            if rank == frozen:
                os.kill(os.getpid(), signal.SIGSTOP)
            torch.distributed.all_reduce(torch.ones(1))

    code, output = run_ranks(work, grace=3)
    assert code in (2, -signal.SIGKILL)  # the one that says it, or the frozen one that it kills
    assert f"error: accelerate launch: {named}" in output
    assert "this run waits for it and is ended; --resume continues from the latest checkpoint" in output
    assert frozen == 0 or KILLED not in output  # it was not left to the launcher


def test_a_process_that_only_takes_long_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not rank_watch._is_frozen(f"{socket.gethostname()} {os.getpid()} 1")
    assert rank_watch._is_frozen("another-host 1 1")


def test_one_process_is_not_watched() -> None:
    with rank_watch.watching_ranks(0, 1):
        pass
