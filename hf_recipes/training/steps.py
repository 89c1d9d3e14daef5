"""How many optimizer steps a run has. Imports neither torch nor transformers: plan counts them, too."""

from __future__ import annotations

from typing import Any


def count_steps(args: Any, rows: int) -> int:
    """As Trainer counts them: batches of all devices, then accumulation, then epochs, each rounded up. `args` has the
    fields of TrainingArguments that are read here."""
    if args.max_steps > 0:
        return int(args.max_steps)
    batch = args.per_device_train_batch_size * args.world_size
    batches = rows // batch if args.dataloader_drop_last else -(-rows // batch)
    an_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
    return int(-(-an_epoch * args.num_train_epochs // 1))
