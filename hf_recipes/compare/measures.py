"""A metric as a function of sums over examples, so that resampling examples means resampling rows of numbers.

`rows` of a metric: (N, m) float64, one row an example; `value` maps sums (..., m) to values (...). Each equals
evaluation/metrics/functions.py's number on the whole evaluation set, which tests hold to scikit-learn and seqeval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_recipes.catalog.metrics import LOWER_IS_BETTER
from hf_recipes.compare import answers, correlations
from hf_recipes.data.tag_schemes import Span, find_scheme, spans
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.metrics.functions import IGNORED
from hf_recipes.evaluation.scores import Scores

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric of one task."""

    name: str
    rows: Callable[[Scores], Array]
    value: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None  # of a value of the ratio of two sums: its derivative by the ratio
    units: Callable[[Array], Array] | None = None  # of a share: rows -> (N, L), things that each example has of a label
    linear: bool = False  # rows are each example's share of the value: the jackknife holds at any number of examples
    positive: bool = False  # a mean of values that are never negative: a run's interval is that of its logarithm
    extremes: Callable[[Array], tuple[Array, Array]] | None = None  # of a share: rows -> examples all right, all wrong

    @property
    def percent(self) -> bool:
        """Whether it is a share of one, and shown as one."""
        return self.units is not None

    @property
    def higher_is_better(self) -> bool:
        return self.name not in LOWER_IS_BETTER


def ratio(sums: Array) -> Array:
    """sums (..., 2) -> first / second; NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = sums[..., 0] / sums[..., 1]
    return found


def exponential(sums: Array) -> Array:
    """sums (..., 2) of [nats, tokens] -> perplexity."""
    with np.errstate(over="ignore"):
        found: Array = np.exp(ratio(sums))
    return found


def bits(sums: Array) -> Array:
    """sums (..., 2) of [nats, bytes] -> bits per byte."""
    return ratio(sums) / np.log(2.0)


def per_bit(sums: Array) -> Array:
    """The derivative of `bits` by the ratio."""
    return np.full(sums.shape[:-1], 1 / np.log(2.0))


def macro_f1(sums: Array) -> Array:
    """sums (..., 3K) of [true positives, predicted, gold] a label -> mean F1 of the labels that occur in either, as
    scikit-learn's default label set; NaN without any."""
    hits, predicted, gold = np.split(sums, 3, axis=-1)
    both = predicted + gold
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(both > 0, 2 * hits / np.where(both > 0, both, 1), 0.0)
        found: Array = each.sum(axis=-1) / (both > 0).sum(axis=-1)
    return found


def macro_f1_of_all(sums: Array) -> Array:
    """As macro_f1, over all K labels: scikit-learn's of multi-label indicators."""
    hits, predicted, gold = np.split(sums, 3, axis=-1)
    both = predicted + gold
    found: Array = np.where(both > 0, 2 * hits / np.where(both > 0, both, 1), 0.0).mean(axis=-1)
    return found


def weighted_f1(sums: Array) -> Array:
    """As macro_f1, each label weighted by its gold examples."""
    hits, predicted, gold = np.split(sums, 3, axis=-1)
    both = predicted + gold
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(both > 0, 2 * hits / np.where(both > 0, both, 1), 0.0)
        found: Array = (each * gold).sum(axis=-1) / gold.sum(axis=-1)
    return found


def micro_f1(sums: Array) -> Array:
    """sums (..., 3) of [true positives, predicted, gold] -> F1; 0 where nothing is predicted and nothing is there."""
    both = sums[..., 1] + sums[..., 2]
    found: Array = np.where(both > 0, 2 * sums[..., 0] / np.where(both > 0, both, 1), 0.0)
    return found


def label_rows(gold: Sequence[Array], predicted: Sequence[Array], labels: int) -> Array:
    """(N, 3K): for each example and label true positives, predictions, gold."""
    owner = np.repeat(np.arange(len(gold)), [len(one) for one in gold])
    golds = np.concatenate(gold) if len(gold) else np.zeros(0, int)
    guesses = np.concatenate(predicted) if len(predicted) else np.zeros(0, int)
    kept = golds != IGNORED
    owner, golds, guesses = owner[kept], golds[kept], guesses[kept]
    found = np.zeros((len(gold), 3, labels))
    np.add.at(found, (owner[golds == guesses], 0, golds[golds == guesses]), 1)
    np.add.at(found, (owner, 1, guesses), 1)
    np.add.at(found, (owner, 2, golds), 1)
    return found.reshape(len(gold), 3 * labels)


# small samples: how much an example is, and what one that is all right or all wrong would be --------------------------


def _ratio_units(rows: Array) -> Array:
    return rows[:, 1:2]


def _ratio_extremes(rows: Array) -> tuple[Array, Array]:
    size = rows[:, 1].mean()
    return np.array([[size, size]]), np.array([[0.0, size]])


def _micro_units(rows: Array) -> Array:
    found: Array = rows[:, 1:].mean(axis=1, keepdims=True)
    return found


def _micro_extremes(rows: Array) -> tuple[Array, Array]:
    size = rows[:, 1:].mean()
    return np.full((1, 3), size), np.array([[0.0, size, size]])


def _label_units(rows: Array) -> Array:
    _, predicted, gold = np.split(rows, 3, axis=1)
    found: Array = (predicted + gold) / 2
    return found


def _all_label_units(rows: Array) -> Array:
    found: Array = _label_units(rows).sum(axis=1, keepdims=True)
    return found


def _label_extremes(rows: Array) -> tuple[Array, Array]:
    """An example of each label that occurs; where it is wrong, it is predicted as the others alike."""
    units = _label_units(rows)
    labels, used = units.shape[1], np.flatnonzero(units.any(axis=0))
    size = units.sum() / len(rows)
    right, wrong = np.zeros((len(used), 3, labels)), np.zeros((len(used), 3, labels))
    for i, label in enumerate(used):
        others = used[used != label] if len(used) > 1 else np.delete(np.arange(labels), label)
        right[i, :, label] = wrong[i, 2, label] = size
        wrong[i, 1, others] = size / max(len(others), 1)
    return right.reshape(-1, 3 * labels), wrong.reshape(-1, 3 * labels)


# the tasks' measures ------------------------------------------------------------------------------------------------


def _columns(scores: Scores) -> tuple[list[Array], list[Array]]:
    """Gold and predicted tags, one array an example."""
    return _lists(scores.table["gold"]), _lists(scores.table["predicted"])


def _lists(column: Any) -> list[Array]:
    array = column.combine_chunks()
    offsets, values = array.offsets.to_numpy(), array.values.to_numpy(zero_copy_only=False)
    return [values[offsets[i] : offsets[i + 1]] for i in range(len(array))]


def _class_rows(scores: Scores) -> Array:
    """label_rows of one label an example, or of any number, without a loop."""
    if scores.task == "multi-label-classification":
        return _indicator_rows(scores)
    if scores.task != "text-classification":
        return label_rows(*_columns(scores), len(scores.label_names))
    gold, predicted = (scores.table[name].to_numpy() for name in ("gold", "predicted"))
    n, labels = len(gold), len(scores.label_names)
    found = np.zeros((n, 3, labels))
    every = np.arange(n)
    hit = gold == predicted
    found[every[hit], 0, gold[hit]] = 1
    found[every, 1, predicted] = 1
    found[every, 2, gold] = 1
    return found.reshape(n, 3 * labels)


def _indicator_rows(scores: Scores) -> Array:
    """(N, 3K) of examples that have several labels."""
    n, labels = len(scores.table), len(scores.label_names)
    found = np.zeros((n, 3, labels))
    for place, lists in zip((2, 1), _columns(scores), strict=True):
        owner = np.repeat(np.arange(n), [len(one) for one in lists])
        found[owner, place, np.concatenate(lists)] = 1
    found[:, 0] = found[:, 1] * found[:, 2]
    return found.reshape(n, 3 * labels)


def _correct_rows(scores: Scores) -> Array:
    if "correct" in scores.table.column_names:
        correct = scores.table["correct"].to_numpy()
        return np.stack([correct, np.ones(len(correct))], axis=1).astype(float)
    gold, predicted = _columns(scores)
    return np.array([[(g == p).sum(), len(g)] for g, p in zip(gold, predicted, strict=True)], float).reshape(-1, 2)


def _micro_rows(scores: Scores) -> Array:
    whole = _class_rows(scores).reshape(len(scores.table), 3, -1)
    found: Array = whole.sum(axis=2)
    return found


def entities(scores: Scores, strict: bool = False) -> list[tuple[set[Span], set[Span]]]:
    """Of each example, the entities that are there and those that are predicted."""
    names, columns = scores.label_names, _columns(scores)
    gold, predicted = ([[names[tag] for tag in tags] for tags in column] for column in columns)
    scheme = scores.scheme or find_scheme(gold, names).name
    return [
        (spans(there, scheme, strict=strict), spans(said, scheme, strict=strict))
        for there, said in zip(gold, predicted, strict=True)
    ]


def _span_rows(scores: Scores, strict: bool) -> Array:
    """(N, 3): spans found, spans predicted, spans there."""
    found = [(len(there & said), len(said), len(there)) for there, said in entities(scores, strict)]
    return np.array(found, float).reshape(-1, 3)


def _pair(first: str, second: str) -> Callable[[Scores], Array]:
    def rows(scores: Scores) -> Array:
        parts = [scores.table[name].to_numpy(zero_copy_only=False).astype(float) for name in (first, second)]
        return np.stack(parts, axis=1)

    return rows


def _score_rows(rows: Callable[[Array, Array], Array]) -> Callable[[Scores], Array]:
    """Of gold and predicted scores."""

    def of(scores: Scores) -> Array:
        return rows(scores.table["gold"].to_numpy(), scores.table["predicted"].to_numpy())

    return of


def one(sums: Array) -> Array:
    """The derivative of a ratio by itself."""
    return np.ones(sums.shape[:-1])


ACCURACY = Measure(name="accuracy", rows=_correct_rows, value=ratio, units=_ratio_units, extremes=_ratio_extremes)
F1 = Measure(name="f1", rows=_class_rows, value=macro_f1, units=_label_units, extremes=_label_extremes)
F1_MICRO = Measure(name="f1_micro", rows=_micro_rows, value=micro_f1, units=_micro_units, extremes=_micro_extremes)
F1_WEIGHTED = Measure(
    name="f1_weighted", rows=_class_rows, value=weighted_f1, units=_all_label_units, extremes=_label_extremes
)
SPAN_F1 = Measure(
    name="span_f1",
    rows=lambda scores: _span_rows(scores, False),
    value=micro_f1,
    units=_micro_units,
    extremes=_micro_extremes,
)
SPAN_F1_STRICT = Measure(
    name="span_f1_strict",
    rows=lambda scores: _span_rows(scores, True),
    value=micro_f1,
    units=_micro_units,
    extremes=_micro_extremes,
)
F1_OF_ALL = Measure(name="f1", rows=_class_rows, value=macro_f1_of_all, units=_label_units, extremes=_label_extremes)
MSE = Measure(name="mse", rows=_score_rows(correlations.squared_errors), value=ratio, slope=one, positive=True)
PEARSON = Measure(
    name="pearsonr",
    rows=_score_rows(correlations.pearson_rows),
    value=correlations.tanh_of_mean,
    slope=correlations.tanh_slope,
    linear=True,
)
SPEARMAN = Measure(
    name="spearmanr",
    rows=_score_rows(correlations.spearman_rows),
    value=correlations.tanh_of_mean,
    slope=correlations.tanh_slope,
    linear=True,
)
PERPLEXITY = Measure(
    name="perplexity",
    rows=_pair("nll_sum", "n_tokens"),
    value=exponential,
    slope=exponential,  # exp is its own derivative
)
BITS_PER_BYTE = Measure(name="bits_per_byte", rows=_pair("nll_sum", "n_bytes"), value=bits, slope=per_bit)


def mean_of(values: Sequence[float]) -> Measure:
    """A mean of somebody's values, for rows of [value, 1]; of values that are 0 or 1 a share."""
    if set(values) <= {0.0, 1.0}:
        return Measure(name="", rows=_correct_rows, value=ratio, units=_ratio_units, extremes=_ratio_extremes)
    return Measure(name="", rows=_correct_rows, value=ratio, slope=one)


# Of generated answers, where an evaluation asked for them (evaluation/metrics/generated.py).
EXACT_MATCH = Measure(
    name="exact_match", rows=answers.share_rows("exact_match"), value=ratio, units=_ratio_units,
    extremes=_ratio_extremes,
)  # fmt: skip
ROUGE = tuple(Measure(name=name, rows=answers.share_rows(name), value=ratio, slope=one) for name in answers.ROUGE)
BLEU = Measure(name="bleu", rows=answers.bleu_rows, value=answers.bleu)
OF_ANSWERS = (EXACT_MATCH, *ROUGE, BLEU)

MEASURES: dict[str, tuple[Measure, ...]] = {
    "text-classification": (F1, ACCURACY, F1_MICRO, F1_WEIGHTED),
    "multi-label-classification": (F1_OF_ALL, ACCURACY, F1_MICRO, F1_WEIGHTED),
    "text-regression": (MSE, PEARSON, SPEARMAN),
    "token-classification": (SPAN_F1, SPAN_F1_STRICT, ACCURACY, F1),
    "causal-lm": (PERPLEXITY, BITS_PER_BYTE),
    "chat": (PERPLEXITY, BITS_PER_BYTE, *OF_ANSWERS),
}


def available(task: str, every: Sequence[Scores]) -> list[Measure]:
    """A task's measures, without bits per byte where the bytes are not known and span F1 where the labels are no
    tags."""
    found = [one for one in MEASURES[task] if one not in OF_ANSWERS or answers.has_column(every, one.name)]
    if BITS_PER_BYTE in found and any(scores.table["n_bytes"].null_count for scores in every):
        found.remove(BITS_PER_BYTE)
    if SPAN_F1 in found and not _are_spans(every[0].label_names):
        found = [measure for measure in found if measure not in (SPAN_F1, SPAN_F1_STRICT)]
    return found


def _are_spans(tags: Sequence[str]) -> bool:
    """Whether the tags belong to a scheme."""
    try:
        find_scheme([], tags)
    except RecipeError:
        return False
    return True
