"""The training loss of classifiers: summed over a micro-batch, divided by the labels of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional


def classification_loss(
    scored_as: str, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Callable[..., torch.Tensor]:
    """The compute_loss_func of a task's kind: cross-entropy of classes and tags, binary cross-entropy of each label of
    a multi-label task, squared error of a score. The divisor counts the labels of all devices and all accumulation.

    class_weights: one a label. A class's examples weigh that much; a label of a multi-label task weighs that much where
    it is present (torch's pos_weight). The divisor is not weighted: with balanced weights their mean is 1.

    The models' own loss is too large by the number of accumulation steps and of devices: their heads take **kwargs, so
    Trainer 5.23 believes that they divide by num_items_in_batch, and they drop it (transformers #47688). This may go
    when BertForSequenceClassification gives the same loss for 16 x 1 as for 8 x 2.
    """
    total = {"multi-label-classification": _of_each_label, "text-regression": _of_scores}.get(scored_as, _of_classes)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
        summed = total(logits, labels, weights, label_smoothing)
        return summed / (num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum())

    return loss


def _of_classes(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        weight=weights,
        reduction="sum",
        label_smoothing=smoothing,
    )


def _of_each_label(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")


def _of_scores(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    return functional.mse_loss(logits.reshape(-1), labels.float().reshape(-1), reduction="sum")
