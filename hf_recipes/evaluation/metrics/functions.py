"""The metrics: one plain function each on arrays, no `evaluate`, no files. Sums in float64, results plain floats.

Positions whose reference is -100 are left out everywhere, as upstream's losses do (padding, sub-tokens, prompts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_recipes.errors import DataError

IGNORED = -100
# Tag schemes by the prefixes in use: seqeval's strict mode needs the scheme's name. (Source: seqeval.scheme.)
# BILOU is IOBES with other letters (last = end, unit = single), which seqeval's default mode does not know.
SCHEMES = (("IOB2", frozenset("BIO")), ("IOBES", frozenset("BIOES")), ("BILOU", frozenset("BILOU")))
BILOU = {"L": "E", "U": "S"}


def f1(predictions: Any, references: Any) -> dict[str, float]:
    """Macro (`f1`), micro and weighted F1, each in [0, 1].

    predictions, references: integers of one shape, (N,) or padded (N, S); -100 in references is left out. The label set
    is scikit-learn's default: the labels that occur in the references or in the predictions. So a label of the model
    that the split lacks and that is never predicted does not count, and one that is wrongly predicted counts as 0.
    Raises DataError if nothing is left to score. Source: sklearn.metrics.f1_score with zero_division=0.
    """
    from sklearn.metrics import f1_score

    predicted, gold = _scored("f1", predictions, references)
    scores = {average: f1_score(gold, predicted, average=average, zero_division=0) for average in _AVERAGES}
    return {"f1": float(scores["macro"]), "f1_micro": float(scores["micro"]), "f1_weighted": float(scores["weighted"])}


_AVERAGES = ("macro", "micro", "weighted")


def accuracy(predictions: Any, references: Any) -> dict[str, float]:
    """Share of right predictions in [0, 1]; shapes, -100 and errors as in `f1`."""
    predicted, gold = _scored("accuracy", predictions, references)
    return {"accuracy": float(np.mean(predicted == gold))}


def span_f1(predictions: Iterable[Sequence[str]], references: Iterable[Sequence[str]]) -> dict[str, float]:
    """Entity-level F1, precision and recall (micro, seqeval's default mode: conlleval's) and `span_f1_strict`.

    predictions, references: one list of tags (`B-PER`, `I-PER`, `O`) a sentence, of equal length in both; positions
    labelled -100 are already gone. Strict mode counts only spans that are well formed in the tags' scheme, which is
    read off the prefixes (IOB2, IOBES or BILOU). No span at all gives 0.
    Raises DataError for tags without prefixes, lengths that differ, or no tag at all. Source: seqeval 1.2.
    """
    from seqeval import scheme as schemes
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    predicted, gold = [list(tags) for tags in predictions], [list(tags) for tags in references]
    if [len(tags) for tags in predicted] != [len(tags) for tags in gold]:
        raise DataError.at("metric span_f1", "predictions and references differ in length")
    tags = {tag for sentences in (gold, predicted) for sentence in sentences for tag in sentence}
    if not tags:
        raise DataError.at("metric span_f1", "no tag is left to score", "is the split empty, or every label -100?")
    name = _scheme(tags)
    if name == "BILOU":
        name, gold, predicted = (
            "IOBES",
            *(
                [[BILOU.get(tag[0], tag[0]) + tag[1:] for tag in sentence] for sentence in sentences]
                for sentences in (gold, predicted)
            ),
        )
    precision, recall, score, _ = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    strict = f1_score(gold, predicted, mode="strict", scheme=getattr(schemes, name), average="micro", zero_division=0)
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


def scheme_of(tags: set[str]) -> tuple[str, dict[str, str]]:
    """The scheme in which seqeval reads these tags, and the letters to replace in them first."""
    name = _scheme(tags)
    return ("IOBES", BILOU) if name == "BILOU" else (name, {})


def _scheme(tags: set[str]) -> str:
    for tag in sorted(tags):
        if tag != "O" and (len(tag) < 3 or tag[0] not in "BILOUES" or tag[1] != "-"):
            raise DataError.at(
                "metric span_f1",
                f"the tag {tag!r} has no prefix such as 'B-'",
                "use accuracy for tags without spans",
            )
    prefixes = {tag[0] for tag in tags} | {"O"}
    for name, allowed in SCHEMES:
        if prefixes <= allowed:
            return name
    found = ", ".join(sorted(prefixes))
    raise DataError.at("metric span_f1", f"the tags' prefixes {found} do not belong to one scheme (IOB2, IOBES, BILOU)")
