"""The last rows of an epoch, where they do not fill a batch on every process.

accelerate (1.15, data_loader.py: BatchSamplerShard) fills the processes up with the epoch's first rows, so that these
are learned from twice and the step's loss is another than on one process. Here they are filled up with rows that have
no label. The loss is divided by the labels of all processes, so that such rows count for nothing, and each step has the
rows that it has on one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

IN_ORDER = ("random", "sequential")  # other orders are made of the rows' lengths, and look at the dataset themselves


def build_train_loader(trainer: Any, upstream: Callable[[], Any]) -> Any:
    """`upstream`: its get_train_dataloader. As that one, but for an epoch's last rows on several processes."""
    rows = trainer.train_dataset
    if not _can_fill_up(trainer):
        return upstream()
    trainer.train_dataset = WithEmptyRow(rows)
    try:
        loader = upstream()
    finally:
        trainer.train_dataset = rows
    batches = loader.batch_sampler.batch_sampler  # below accelerate's, which deals them out
    batches.sampler = FilledUp(batches.sampler, empty=len(rows), multiple=batches.batch_size * trainer.args.world_size)
    return loader


def _can_fill_up(trainer: Any) -> bool:
    """Whether there are several processes, and a row without labels counts for nothing."""
    import datasets

    args, rows = trainer.args, trainer.train_dataset
    dealt = trainer.accelerator.dataloader_config
    return bool(
        args.world_size > 1
        and args.average_tokens_across_devices
        and (trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None)
        and isinstance(rows, datasets.Dataset)
        and "labels" in rows.column_names
        and not args.dataloader_drop_last
        and args.train_sampling_strategy in IN_ORDER
        and not (dealt.split_batches or dealt.dispatch_batches)
        and len(rows) % (args.train_batch_size * args.world_size)
    )


class WithEmptyRow(Dataset[Any]):
    """A dataset with one row more behind the last: the first one without its labels. Its length is that of the rows."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index] if index < len(self.rows) else self._empty_row()

    def __getitems__(self, indices: list[int]) -> list[Any]:
        found = iter(self.rows.__getitems__([index for index in indices if index < len(self.rows)]))
        return [next(found) if index < len(self.rows) else self._empty_row() for index in indices]

    def _empty_row(self) -> dict[str, Any]:
        row = dict(self.rows[0])
        labels = torch.as_tensor(row["labels"])
        return {**row, "labels": torch.full_like(labels, -100).tolist()}


class FilledUp(Sampler[int]):
    """The indices of `inner`, and behind them `empty` until their number is a multiple of `multiple`."""

    def __init__(self, inner: Any, *, empty: int, multiple: int) -> None:
        self.inner, self.empty, self.multiple = inner, empty, multiple

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.inner, "set_epoch"):
            self.inner.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.inner) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.inner
        yield from [self.empty] * (len(self) - len(self.inner))
