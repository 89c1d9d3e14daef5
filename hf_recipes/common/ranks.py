"""What the processes of one run agree on. Imports torch only where there are several."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_recipes.common.device import processes_launched
from hf_recipes.errors import LaunchError

# How torch's backends and its store report that the other end of a connection is gone.
CLOSED = re.compile(
    r"(?i)closed by peer|connection reset|broken pipe|connection was (closed|likely closed)|remote process"
)
BACKENDS = re.compile(r"(?i)gloo|nccl|tcpstore|processgroup|socket")


@contextmanager
def explain_lost_rank() -> Iterator[None]:
    """Where another process of the run died, this one's own traceback about a connection says nothing: one line does.

    Raises LaunchError.
    """
    try:
        yield
    except RuntimeError as problem:
        if processes_launched() == 1 or not is_lost_connection(problem):
            raise
        what = "another process of this run has ended, and this one cannot continue without it"
        fix = "see that one's message; without one it was killed, perhaps since memory ran out. --resume continues"
        raise LaunchError.at("accelerate launch", what, fix) from problem


def is_lost_connection(problem: BaseException) -> bool:
    """Whether an error is about the connection to another process of the run."""
    text = str(problem)
    ours = type(problem).__name__.startswith("Dist") or BACKENDS.search(text) is not None
    return ours and CLOSED.search(text) is not None


def largest_of_ranks(*values: float, args: Any) -> list[float]:
    """Of each value the largest that any process has. Every process must call it.

    `args`: TrainingArguments, for the number of processes and this one's device.
    """
    if args.world_size <= 1:
        return list(values)
    import torch

    largest = torch.tensor([float(value) for value in values], device=args.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return list(largest.tolist())
