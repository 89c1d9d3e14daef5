"""Evaluation in batches of rows of like length, longest first; results come back in the data's order.

A batch is as long as its longest row: in the data's order much of it is padding. The longest batch comes first, so that
what does not fit fails at once. Upstream does not sort an evaluation unless training is grouped by length, and then
hands the results out in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.utils.data import Sampler

READ = 10_000  # rows at a time


class InOrder(Sampler[int]):
    """The rows in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def longest_first(rows: Any) -> list[int] | None:
    """Row numbers by falling length, rows of one length in the data's order; None where nothing would change."""
    lengths = row_lengths(rows)
    if lengths is None:
        return None
    order = np.argsort(-lengths, kind="stable")
    return None if (order == np.arange(len(order))).all() else [int(one) for one in order]


def row_lengths(rows: Any) -> np.ndarray | None:
    """Tokens of each row of a datasets.Dataset, without making lists of them; None for other rows."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    if not isinstance(rows, Dataset) or "input_ids" not in rows.column_names:
        return None
    kind = rows.data.schema.field("input_ids").type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return None
    parts = [
        np.asarray(pc.list_value_length(batch["input_ids"]).to_numpy())
        for batch in rows.select_columns(["input_ids"]).with_format("arrow").iter(READ)
    ]
    return np.concatenate(parts) if parts else None


def put_back(values: Any, order: Sequence[int]) -> Any:
    """What was computed in `order`, in the data's order; nested as it is."""
    if isinstance(values, tuple | list):
        return type(values)(put_back(one, order) for one in values)
    if isinstance(values, dict):
        return {name: put_back(one, order) for name, one in values.items()}
    if not isinstance(values, np.ndarray) or values.shape[:1] != (len(order),):
        return values
    found = np.empty_like(values)
    found[np.asarray(order)] = values
    return found


class EvaluationOrder:
    """The order of one trainer's evaluations. Each loader remembers its own: upstream keeps loaders with workers."""

    def __init__(self) -> None:
        self._chosen: list[int] | None = None

    def choose(self, trainer: Any, rows: Any) -> InOrder | None:
        """A sampler of `rows`; None where the data's order is as good. Without compute_metrics results are handed to
        the caller batch by batch, and padding_free batches have no padding."""
        args = trainer.args
        if rows is None or trainer.compute_metrics is None or args.batch_eval_metrics or is_padding_free(args):
            return None
        self._chosen = longest_first(rows)
        return None if self._chosen is None else InOrder(self._chosen)

    def remember(self, loader: Any) -> Any:
        """The loader that was made with the sampler that was chosen last."""
        if self._chosen is not None:
            loader.row_order, self._chosen = self._chosen, None
        return loader

    @contextmanager
    def kept(self, trainer: Any, loader: Any) -> Iterator[Callable[[Any], Any]]:
        """While `loader` is evaluated, compute_metrics gets the data's order; the result's rows are put into it by what
        is yielded."""
        order, compute = getattr(loader, "row_order", None), trainer.compute_metrics
        if order is None:
            yield lambda output: output
            return

        def compute_in_order(prediction: Any) -> Any:
            names = ("predictions", "label_ids", "inputs", "losses")
            return compute(type(prediction)(**{name: put_back(getattr(prediction, name), order) for name in names}))

        trainer.compute_metrics = compute_in_order
        try:
            yield lambda output: output._replace(
                predictions=put_back(output.predictions, order), label_ids=put_back(output.label_ids, order)
            )
        finally:
            trainer.compute_metrics = compute


def is_padding_free(args: Any) -> bool:
    return bool(getattr(args, "padding_free", False) or getattr(args, "packing", False))
