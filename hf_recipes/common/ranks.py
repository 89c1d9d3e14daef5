"""What the processes of one run agree on. Imports torch only where there are several."""

from __future__ import annotations

from typing import Any


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
