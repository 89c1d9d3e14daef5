"""A collated batch to pieces of fewer samples, and their evaluation outputs back to one. Pure: tensors in, tensors out.

Rows are split along the first dimension. A flattened batch (padding_free: one row of many documents) is split at
document borders, and its sequence boundaries are counted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from hf_recipes.evaluation.exact import LENGTHS

STARTS = ("cu_seq_lens_q", "cu_seq_lens_k")  # where each document of a flattened batch begins, and the last one ends
LONGEST = ("max_length_q", "max_length_k")


def is_flattened(inputs: Mapping[str, Any]) -> bool:
    """Whether the batch is one row of several documents, which positions that begin at 0 again tell apart."""
    ids, positions = inputs.get("input_ids"), inputs.get("position_ids")
    return torch.is_tensor(ids) and torch.is_tensor(positions) and ids.shape[0] == 1 and "attention_mask" not in inputs


def split_batch(inputs: Mapping[str, Any], pieces: int) -> list[dict[str, Any]]:
    """At most `pieces` batches that hold the same samples in the same order; fewer where there are not as many."""
    if is_flattened(inputs):
        return [_stretch(inputs, first, last) for first, last in _stretches(inputs, pieces)]
    rows = _rows(inputs)
    size = -(-rows // max(1, min(pieces, rows)))
    return [_some_rows(inputs, rows, start, min(start + size, rows)) for start in range(0, rows, size)]


def count_samples(inputs: Mapping[str, Any]) -> int:
    """Into how many pieces the batch can be split at most."""
    return len(_borders(inputs)) - 1 if is_flattened(inputs) else _rows(inputs)


def _rows(inputs: Mapping[str, Any]) -> int:
    return next((len(value) for value in inputs.values() if torch.is_tensor(value) and value.dim()), 1)


def _some_rows(inputs: Mapping[str, Any], rows: int, start: int, stop: int) -> dict[str, Any]:
    return {
        name: value[start:stop] if torch.is_tensor(value) and value.dim() and len(value) == rows else value
        for name, value in inputs.items()
    }


def _borders(inputs: Mapping[str, Any]) -> list[int]:
    """Token indices at which a flattened batch may be cut, its two ends included.

    In evaluation the collator says how long each example is: an example of several documents keeps them together,
    since its score is one.
    """
    tokens = int(inputs["input_ids"].shape[1])
    lengths = inputs.get(LENGTHS)
    if torch.is_tensor(lengths):
        inner = lengths.cumsum(0).tolist()[:-1]
    else:
        inner = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
    return [0, *(border for border in inner if 0 < border < tokens), tokens]


def _stretches(inputs: Mapping[str, Any], pieces: int) -> list[tuple[int, int]]:
    """(first token, end) of each piece: the borders nearest to equal shares of the tokens."""
    ends = _borders(inputs)
    if 1 < pieces < len(ends) - 1:
        marks = [ends[-1] * i / pieces for i in range(1, pieces)]
        inner = {min(ends[1:-1], key=lambda border: abs(border - mark)) for mark in marks}
        ends = [0, *sorted(inner), ends[-1]]
    elif pieces <= 1:
        ends = [0, ends[-1]]
    return list(pairwise(ends))


def _stretch(inputs: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    tokens = inputs["input_ids"].shape[1]
    found = {
        name: value[:, first:last] if torch.is_tensor(value) and value.shape[:2] == (1, tokens) else value
        for name, value in inputs.items()
    }
    for name in STARTS:
        if name in found:
            starts = inputs[name]
            found[name] = starts[(starts >= first) & (starts <= last)] - first
    for name, starts in zip(LONGEST, STARTS, strict=True):
        if name in found and starts in found:
            found[name] = int(found[starts].diff().max())
    if "seq_idx" in found:
        found["seq_idx"] = found["seq_idx"] - found["seq_idx"][:, :1]
    if LENGTHS in found:
        ends = inputs[LENGTHS].cumsum(0)
        found[LENGTHS] = inputs[LENGTHS][(ends > first) & (ends <= last)]
    return found


def join_outputs(outputs: Sequence[tuple[Any, Any, Any]], sizes: Sequence[int]) -> tuple[Any, Any, Any]:
    """prediction_step's (loss, logits, labels) of the pieces as those of the whole; a loss is the mean over samples."""
    losses = [loss for loss, _, _ in outputs]
    loss = None
    if all(loss is not None for loss in losses):
        loss = sum(one * size for one, size in zip(losses, sizes, strict=True)) / sum(sizes)
    return loss, _concatenated([o[1] for o in outputs]), _concatenated([o[2] for o in outputs])


def _concatenated(parts: Sequence[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    if torch.is_tensor(parts[0]):
        return torch.cat(list(parts))
    return type(parts[0])(_concatenated(one) for one in zip(*parts, strict=True))
