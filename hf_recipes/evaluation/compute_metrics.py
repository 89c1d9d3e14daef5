"""compute_metrics and preprocess_logits_for_metrics of each task, for Trainer and SFTTrainer.

Each returns "loss" too, which Trainer prefixes and writes over its own eval_loss: the exact mean over examples or
tokens at any batch size and number of processes, where upstream's is a mean of batch means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_recipes.errors import DataError, ModelError
from hf_recipes.evaluation import metrics
from hf_recipes.evaluation.metrics.functions import IGNORED, mean_nll, probabilities

Metrics = dict[str, float]
ComputeMetrics = Callable[[Any], Metrics]  # transformers.EvalPrediction -> names without the prefix "eval_"


def lm_compute_metrics(
    total_bytes: int | None = None, names: Sequence[str] = ("perplexity", "bits_per_byte")
) -> ComputeMetrics:
    """For the rows of evaluation/exact.py: {"loss", "perplexity", "bits_per_byte"}, which Trainer prefixes with eval_.

    total_bytes: UTF-8 bytes of the text whose tokens are predicted in the one evaluation set; None leaves bits per byte
    out. loss is the mean over all predicted tokens, in nats. Raises DataError if no token is predicted.
    """
    names = [name for name in names if name != "bits_per_byte" or total_bytes is not None]

    def compute(prediction: Any) -> Metrics:
        rows = prediction.predictions
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 2:
            raise ModelError.at(
                "evaluation", "the model returns no [nll_sum, n_tokens] rows", "is it a causal language model?"
            )
        found = {"loss": mean_nll(rows)}
        for name in names:
            extra = {"total_bytes": total_bytes} if name == "bits_per_byte" else {}
            found.update(metrics.compute(name, predictions=rows, **extra))
        return found

    return compute


def keep_logits(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """preprocess_logits_for_metrics of text classification: (N, C) logits alone, without hidden states and the like."""
    first: torch.Tensor = logits[0] if isinstance(logits, tuple | list) else logits
    return first


def classification_compute_metrics(names: Sequence[str], label_names: Sequence[str]) -> ComputeMetrics:
    """For (N, C) logits and (N,) labels: {"loss"} as the exact mean over examples, and the metrics `names`.

    C is len(label_names); raises DataError for another C and for a label outside 0..C-1.
    """

    def compute(prediction: Any) -> Metrics:
        logits, gold = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
        _check_labels(gold, logits.shape[-1], label_names)
        rows = _nll_rows(torch.from_numpy(logits)[:, None], torch.from_numpy(gold)[:, None]).numpy()
        found = {"loss": mean_nll(rows)}
        for name in names:
            found.update(metrics.compute(name, predictions=logits.argmax(axis=-1), references=gold))
        return found

    return compute


def multi_label_compute_metrics(
    names: Sequence[str], label_names: Sequence[str], threshold: float = 0.5
) -> ComputeMetrics:
    """For (N, L) logits and (N, L) labels of 0 and 1: {"loss"}, the mean of the binary cross-entropy over examples and
    labels, and the metrics `names`. A label counts as predicted from the probability `threshold` on. L is
    len(label_names); raises ModelError for another L."""

    def compute(prediction: Any) -> Metrics:
        logits, gold = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
        if logits.shape[-1] != len(label_names):
            _check_labels(np.zeros(0, int), logits.shape[-1], label_names)
        nll = np.logaddexp(0, logits) - logits * gold
        found = {"loss": float(nll.mean())}
        for name in names:
            predicted = probabilities(logits) >= threshold
            found.update(metrics.compute(name, predictions=predicted, references=gold, multilabel=True))
        return found

    return compute


def regression_compute_metrics(names: Sequence[str]) -> ComputeMetrics:
    """For (N, 1) predicted and (N,) true scores: {"loss"}, the mean squared error, and the metrics `names`."""

    def compute(prediction: Any) -> Metrics:
        scores = {"predictions": prediction.predictions, "references": prediction.label_ids}
        found = {"loss": metrics.compute("mse", **scores)["mse"]}
        for name in names:
            found.update(metrics.compute(name, **scores))
        return found

    return compute


def tags_and_rows(logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """preprocess_logits_for_metrics of token classification: (B, S) predicted tags and (B, 2) rows, no (B, S, C)."""
    logits = keep_logits(logits, labels)
    return logits.argmax(dim=-1), _nll_rows(logits, labels)


def token_compute_metrics(names: Sequence[str], label_names: Sequence[str], scheme: str = "") -> ComputeMetrics:
    """For what `tags_and_rows` gives and (N, S) labels: {"loss"} as the exact mean over tags, and the metrics `names`.

    span_f1 reads tags (label_names[i]) by `scheme` (that of the labels where it is
    ""), accuracy and f1 the integers; -100 is left out. Raises DataError for a label
    outside 0..len(label_names)-1.
    """

    def compute(prediction: Any) -> Metrics:
        (predicted, rows), gold = prediction.predictions, np.asarray(prediction.label_ids)
        _check_labels(gold, len(label_names), label_names)
        found = {"loss": mean_nll(rows)}
        for name in names:
            inputs: dict[str, Any] = {"predictions": predicted, "references": gold}
            if name == "span_f1":
                inputs = {key: tag_names(ids, gold, label_names) for key, ids in inputs.items()}
                inputs["scheme"] = scheme
            found.update(metrics.compute(name, **inputs))
        return found

    return compute


def tag_names(ids: np.ndarray, gold: np.ndarray, label_names: Sequence[str]) -> list[list[str]]:
    """(N, S) label ids to lists of names, one a row; positions where gold is -100 are left out."""
    scored = gold != IGNORED
    return [[label_names[tag] for tag in row[keep]] for row, keep in zip(ids, scored, strict=True)]


@dataclass(kw_only=True)
class RecordingMetrics:
    """A compute_metrics that stores the last EvalPrediction, so that per-example scores need no second evaluation."""

    compute: ComputeMetrics
    last: Any = None  # transformers.EvalPrediction of the latest evaluation, every rank's rows in the data set's order

    def __call__(self, prediction: Any) -> Metrics:
        self.last = prediction
        return self.compute(prediction)


def _nll_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, S, C) logits, (B, S) labels -> (B, 2) rows, nothing shifted."""
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    wanted = logits if logits.dtype == torch.float64 else logits.float()
    nll = nn.functional.cross_entropy(wanted.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").to(exact)
    return torch.stack([nll.sum(dim=1), (labels != IGNORED).sum(dim=1).to(exact)], dim=1)


def _check_labels(gold: np.ndarray, count: int, label_names: Sequence[str]) -> None:
    if count != len(label_names):
        raise ModelError.at("evaluation", f"the model has {count} labels, the recipe's data {len(label_names)}")
    labels = gold[gold != IGNORED]
    if len(labels) and (labels.min() < 0 or labels.max() >= count):
        raise DataError.at(
            "evaluation", f"labels range from {labels.min()} to {labels.max()}, the model has 0 to {count - 1}"
        )
