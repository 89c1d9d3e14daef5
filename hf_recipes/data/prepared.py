"""The four tasks as plain facts. Light: nothing here imports torch; each task's file holds what needs it.

Adding a task is one entry in `TASKS` and one file with `prepare(splits, tokenizer, recipe, max_length) -> Prepared`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Splits turned into what a Trainer eats. `evals` holds "eval" (the validation split) and perhaps "test"."""

    train: Dataset
    evals: Mapping[str, Dataset]
    collator: Callable[..., Any]
    config: Mapping[str, Any]  # fields of the model's config that the data decides: num_labels, id2label, label2id
    label_names: tuple[str, ...]
    stats: Mapping[
        str, Mapping[str, int]
    ]  # "train" | "eval" | "test" -> counts: rows, tokens, label_tokens, bytes, ...
    ids: Mapping[str, list[str]]  # "eval" | "test" -> one content id a row, in order
    row_bytes: Mapping[str, list[int]]  # "eval" | "test" -> UTF-8 bytes that each row predicts; {} for classifiers
    sources: Mapping[str, tuple[Dataset, list[str]]]  # split -> the rows as loaded and the columns that were used
    notes: tuple[str, ...]  # what was done to the rows, said before training
