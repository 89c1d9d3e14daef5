"""The metrics: one plain function each on arrays, no `evaluate`, no files. Sums in float64, results plain floats.

Positions whose reference is -100 are left out everywhere, as upstream's losses do (padding, sub-tokens, prompts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_recipes.data.tag_schemes import SEQEVAL, as_seqeval, find_scheme
from hf_recipes.errors import DataError

IGNORED = -100


def f1(predictions: Any, references: Any, multilabel: bool = False) -> dict[str, float]:
    """Macro (`f1`), micro and weighted F1, each in [0, 1].

    predictions, references: integers of one shape, (N,) or padded (N, S); -100 in references is left out. The label set
    is scikit-learn's default: the labels that occur in the references or in the predictions. So a label of the model
    that the split lacks and that is never predicted does not count, and one that is wrongly predicted counts as 0.
    multilabel: both are (N, L) indicators, 0 or 1; the label set is then all L, as scikit-learn's.
    Raises DataError if nothing is left to score. Source: sklearn.metrics.f1_score with zero_division=0.
    """
    from sklearn.metrics import f1_score

    read = _indicators if multilabel else _scored
    predicted, gold = read("f1", predictions, references)
    scores = {average: f1_score(gold, predicted, average=average, zero_division=0) for average in _AVERAGES}
    return {"f1": float(scores["macro"]), "f1_micro": float(scores["micro"]), "f1_weighted": float(scores["weighted"])}


_AVERAGES = ("macro", "micro", "weighted")


def accuracy(predictions: Any, references: Any, multilabel: bool = False) -> dict[str, float]:
    """Share of right predictions in [0, 1]; shapes, -100 and errors as in `f1`. multilabel: an example is right if all
    its labels are (scikit-learn's accuracy_score)."""
    if multilabel:
        predicted, gold = _indicators("accuracy", predictions, references)
        return {"accuracy": float((predicted == gold).all(axis=1).mean())}
    predicted, gold = _scored("accuracy", predictions, references)
    return {"accuracy": float(np.mean(predicted == gold))}


def mse(predictions: Any, references: Any) -> dict[str, float]:
    """Mean squared error, in the square of the score's unit. predictions, references: (N,) numbers. Raises DataError if
    there are none. Source: sklearn.metrics.mean_squared_error."""
    predicted, gold = _numbers("mse", predictions, references)
    return {"mse": float(np.mean((predicted - gold) ** 2))}


def pearsonr(predictions: Any, references: Any) -> dict[str, float]:
    """Pearson's correlation in [-1, 1]; NaN where either side is constant. Shapes and errors as in `mse`. Source:
    scipy.stats.pearsonr."""
    return {"pearsonr": correlation(*_numbers("pearsonr", predictions, references))}


def spearmanr(predictions: Any, references: Any) -> dict[str, float]:
    """Spearman's rank correlation, ties at their mean rank; else as `pearsonr`. Source: scipy.stats.spearmanr."""
    from scipy.stats import rankdata

    predicted, gold = _numbers("spearmanr", predictions, references)
    return {"spearmanr": correlation(rankdata(predicted), rankdata(gold))}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The logistic function in float64, without overflow."""
    found: np.ndarray = np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))
    return found


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two (N,) arrays; NaN where either is constant."""
    a, b = first - first.mean(), second - second.mean()
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return float("nan")
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def span_f1(
    predictions: Iterable[Sequence[str]], references: Iterable[Sequence[str]], scheme: str = ""
) -> dict[str, float]:
    """Entity-level F1, precision and recall (micro, seqeval's default mode: conlleval's) and `span_f1_strict`.

    predictions, references: one list of tags (`B-PER`, `I-PER`, `O`) a sentence, of equal length in both; positions
    labelled -100 are already gone. Strict mode counts only spans that are well formed in the scheme: a name of
    tag_schemes.SEQEVAL, else that of the references. No span at all gives 0.
    Raises DataError for tags without prefixes, lengths that differ, or no tag at all. Source: seqeval 1.2.
    """
    from seqeval import scheme as schemes
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    predicted, gold = [list(tags) for tags in predictions], [list(tags) for tags in references]
    if [len(tags) for tags in predicted] != [len(tags) for tags in gold]:
        raise DataError.at("metric span_f1", "predictions and references differ in length")
    if not any(gold):
        raise DataError.at("metric span_f1", "no tag is left to score", "is the split empty, or every label -100?")
    name = scheme or find_scheme(gold, {tag for tags in predicted for tag in tags}).name
    gold, predicted = as_seqeval(gold, name), as_seqeval(predicted, name)
    strictly = getattr(schemes, SEQEVAL[name][0])
    precision, recall, score, _ = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    strict = f1_score(gold, predicted, mode="strict", scheme=strictly, average="micro", zero_division=0)
    return {
        "span_f1": float(score),
        "span_precision": float(precision),
        "span_recall": float(recall),
        "span_f1_strict": float(strict),
    }


def perplexity(predictions: Any) -> dict[str, float]:
    """exp(sum of nll / sum of tokens): token-weighted, so the same at any batch size and world size; inf on overflow.

    predictions: (N, 2), one row [summed negative log-likelihood in nats, predicted tokens] an example.
    Raises DataError if no token was predicted.
    """
    with np.errstate(over="ignore"):
        return {"perplexity": float(np.exp(mean_nll(predictions)))}


def bits_per_byte(predictions: Any, total_bytes: int) -> dict[str, float]:
    """sum of nll / ln 2 / bytes: the only one of these that compares across tokenizers.

    predictions: (N, 2) as in `perplexity`; total_bytes: UTF-8 bytes of the text of these tokens.
    Raises DataError if no token was predicted or there are no bytes.
    """
    nll, _ = _sums("bits_per_byte", predictions)
    if total_bytes <= 0:
        raise DataError.at("metric bits_per_byte", f"the evaluated text has {total_bytes} bytes")
    return {"bits_per_byte": float(nll / np.log(2.0) / total_bytes)}


def mean_nll(predictions: Any) -> float:
    """Mean negative log-likelihood of a token in nats, in float64; the rows are those of `perplexity`."""
    nll, tokens = _sums("perplexity", predictions)
    return float(nll / tokens)


def _sums(metric: str, predictions: Any) -> tuple[float, float]:
    rows = np.asarray(predictions, dtype=np.float64).reshape(-1, 2)
    nll, tokens = rows.sum(axis=0)
    if tokens <= 0:
        raise DataError.at(f"metric {metric}", "no token is left to score", "is the split empty, or every label -100?")
    return float(nll), float(tokens)


def _scored(metric: str, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    predicted, gold = np.asarray(predictions), np.asarray(references)
    if predicted.shape != gold.shape:
        raise DataError.at(f"metric {metric}", f"predictions have shape {predicted.shape}, references {gold.shape}")
    keep = gold != IGNORED
    if not keep.any():
        raise DataError.at(f"metric {metric}", "no label is left to score", "is the split empty, or every label -100?")
    return predicted[keep], gold[keep]


def _numbers(metric: str, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    predicted, gold = (np.asarray(one, dtype=np.float64).reshape(-1) for one in (predictions, references))
    if predicted.shape != gold.shape:
        raise DataError.at(f"metric {metric}", f"{len(predicted)} predictions for {len(gold)} references")
    if not len(gold):
        raise DataError.at(f"metric {metric}", "no score is left to compare", "is the split empty?")
    return predicted, gold


def _indicators(metric: str, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    predicted, gold = (np.asarray(one).astype(np.int8) for one in (predictions, references))
    if predicted.ndim != 2 or predicted.shape != gold.shape or not gold.size:
        what = f"predictions have shape {predicted.shape}, references {gold.shape}"
        raise DataError.at(f"metric {metric}", f"{what}: both must be (examples, labels)")
    return predicted, gold
