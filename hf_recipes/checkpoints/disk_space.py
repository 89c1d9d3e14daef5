"""Whether a checkpoint fits on the disk, and whether all that a run keeps does.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hf_recipes.common.text import format_bytes

MARGIN = 1.05
RESERVE = 2**20  # bytes beside a checkpoint: the record, the log
STATE_BYTES = {"8bit": 2, "4bit": 1, "sgd": 0, "adafactor": 0, "lion": 4, "rmsprop": 4}  # of a trained parameter
ADAM_BYTES = 8


def find_shortage(folder: Path, needed: int) -> str | None:
    """How much `needed` bytes lack, as text; None if they fit."""
    free = shutil.disk_usage(folder).free
    wanted = int(needed * MARGIN) + RESERVE
    return None if free >= wanted else f"it needs {format_bytes(wanted)} and {format_bytes(free)} are free"


def find_shortage_of_run(folder: Path, args: Any, steps: int, weights: int, trained: int) -> str | None:
    """A warning if the checkpoints that a run of `steps` keeps do not fit, before the first is written.

    `weights`: bytes of the weights that a checkpoint has; `trained`: parameters that the optimizer keeps a state of.
    """
    count = count_checkpoints(args, steps)
    if not count:
        return None
    state = 0 if args.save_only_model else trained * _state_bytes(str(getattr(args.optim, "value", args.optim)))
    needed = count * (weights + state) + weights  # and the final model
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    if needed * MARGIN + RESERVE <= free:
        return None
    many = f"{count} checkpoints of about {format_bytes(weights + state)}" if count > 1 else "a checkpoint"
    what = f"the disk of {str(folder)!r} has {format_bytes(free)} free, and {many} and the model need "
    return what + f"{format_bytes(needed)}: set save_total_limit, or save_only_model: true"


def count_checkpoints(args: Any, steps: int) -> int:
    """How many checkpoints lie in the folder at one time, at most."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    if strategy == "epoch":
        made = max(1, int(args.num_train_epochs))
    elif strategy == "steps":
        each = args.save_steps if args.save_steps >= 1 else max(1, int(steps * args.save_steps))
        made = max(1, -(-steps // int(each)))
    else:  # best
        made = 1
    limit = args.save_total_limit
    return min(made, limit + 1) if limit else made  # the oldest is removed when the new one is complete


def _state_bytes(optim: str) -> int:
    return next((size for name, size in STATE_BYTES.items() if name in optim), ADAM_BYTES)
