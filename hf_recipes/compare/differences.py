"""Where two runs differ: examples, labels, calibration, curves, cost, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_recipes.common.typed_json import to_json
from hf_recipes.compare.measures import F1_OF_ALL, SPAN_F1, available, entities, label_rows
from hf_recipes.compare.runs import RUN_KEYS, Run
from hf_recipes.data.tag_schemes import type_of
from hf_recipes.evaluation.metrics.functions import IGNORED
from hf_recipes.evaluation.scores import Scores
from hf_recipes.record import RunRecord

SHOWN = 20  # examples of each side that a report lists
ROUNDED = 5e-4  # a change of loss or error that three decimals show as 0.000 is rounding, no gain or loss
BINS = 10  # of a reliability diagram: equally wide
NOT_SET = "(not set)"
OF_TERMINAL = "disable_tqdm"  # a run has no progress bar where its output is no terminal


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One label in every run: precision, recall and F1 in [0, 1], and how many gold examples (or tags) it has."""

    label: str
    gold: int
    rates: tuple[tuple[float, float, float], ...]  # one a run


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Of one classifier: a bin's mean confidence, accuracy and examples; `error` is the expected calibration error."""

    bins: tuple[tuple[float, float, int], ...]
    error: float


@dataclass(frozen=True, kw_only=True)
class ChangedExamples:
    """Examples whose prediction became right or wrong, by id; for language models those whose loss changed most."""

    gained: tuple[tuple[str, str], ...]  # (id, what changed), the first SHOWN of them
    lost: tuple[tuple[str, str], ...]
    gained_count: int
    lost_count: int


def find_changed_examples(first: Scores, second: Scores) -> ChangedExamples:
    """What the second run gets right that the first does not, and the other way round. Rows are aligned."""
    ids = first.table["id"].to_pylist()
    if first.task == "multi-label-classification":
        correct = [scores.table["correct"].to_numpy(zero_copy_only=False) for scores in (first, second)]
        up, down = np.flatnonzero(~correct[0] & correct[1]), np.flatnonzero(correct[0] & ~correct[1])
        gold, a, b = (t[c].to_pylist() for t, c in ((first.table, "gold"), (first.table, "predicted"),
                                                    (second.table, "predicted")))  # fmt: skip

        def describe(i: int) -> str:
            shown = [", ".join(first.label_names[n] for n in one[i]) or "none" for one in (gold, a, b)]
            return f"{shown[0]}: {shown[1]} -> {shown[2]}"
    elif first.task == "text-classification":
        names = first.label_names
        gold, a, b = (
            t[c].to_numpy() for t, c in ((first.table, "gold"), (first.table, "predicted"), (second.table, "predicted"))
        )
        up, down = np.flatnonzero((a != gold) & (b == gold)), np.flatnonzero((a == gold) & (b != gold))

        def describe(i: int) -> str:
            return f"{names[gold[i]]}: {names[a[i]]} -> {names[b[i]]}"
    else:
        if first.task == "token-classification":
            change, unit = _right_tags(second) - _right_tags(first), "tags"
        elif first.task == "text-regression":
            change = _absolute_errors(first) - _absolute_errors(second)
            unit = "of error"
        else:
            # a token is another piece of text in another tokenizer: then by the bytes
            same = first.table["n_tokens"].equals(second.table["n_tokens"])
            column, scale = ("n_tokens", 1.0) if same else ("n_bytes", np.log(2.0))
            unit = "nats a token" if same else "bits a byte"
            of_each = [
                s.table["nll_sum"].to_numpy() / np.maximum(s.table[column].to_numpy(), 1) / scale
                for s in (first, second)
            ]
            change = of_each[0] - of_each[1]
        order = np.argsort(-change, kind="stable")
        least = 0.0 if unit == "tags" else ROUNDED
        up, down = order[change[order] > least], order[::-1][change[order[::-1]] < -least]

        def describe(i: int) -> str:
            return f"{change[i]:+d} right {unit}" if unit == "tags" else f"{-change[i]:+.3f} {unit}"

    return ChangedExamples(
        gained=tuple((ids[i], describe(i)) for i in up[:SHOWN]),
        lost=tuple((ids[i], describe(i)) for i in down[:SHOWN]),
        gained_count=len(up),
        lost_count=len(down),
    )


def _right_tags(scores: Scores) -> np.ndarray:
    gold, predicted = (scores.table[name].to_pylist() for name in ("gold", "predicted"))
    return np.array([sum(g == p for g, p in zip(*row, strict=True)) for row in zip(gold, predicted, strict=True)])


def _absolute_errors(scores: Scores) -> np.ndarray:
    gold, predicted = (scores.table[name].to_numpy() for name in ("gold", "predicted"))
    found: np.ndarray = np.abs(predicted - gold)
    return found


def score_labels(*every: Scores) -> tuple[LabelRow, ...]:
    """Each label's precision, recall and F1 in every run, of tags with prefixes each entity type's (over entities, as
    span_f1 counts them); () for language models."""
    names = every[0].label_names
    if not names:
        return ()
    if has_entities(every[0]):
        names = tuple(sorted({type_of(tag) for tag in names} - {"O"}))
        tables = [_count_entities(scores, names) for scores in every]
    else:
        tables = [_counts(scores, len(names)) for scores in every]
    return tuple(
        LabelRow(
            label=name,
            gold=int(tables[0][2, i]),
            rates=tuple(_rates(*table[:, i]) for table in tables),
        )
        for i, name in enumerate(names)
    )


def has_entities(scores: Scores) -> bool:
    """Whether its labels are tags of entities."""
    return scores.task == "token-classification" and SPAN_F1 in available(scores.task, [scores])


def _count_entities(scores: Scores, types: Sequence[str]) -> np.ndarray:
    """(3, K): entities of each type that are found, predicted, there."""
    place = {name: i for i, name in enumerate(types)}
    found = np.zeros((3, len(types)))
    for there, said in entities(scores):
        for row, some in enumerate((there & said, said, there)):
            for name, _, _ in some:
                found[row, place[name]] += 1
    return found


def _counts(scores: Scores, labels: int) -> np.ndarray:
    """(3, K): true positives, predicted, gold."""
    if scores.task == "multi-label-classification":
        summed: np.ndarray = F1_OF_ALL.rows(scores).sum(axis=0).reshape(3, labels)
        return summed
    gold, predicted = _arrays(scores)
    found: np.ndarray = label_rows([gold], [predicted], labels).reshape(3, labels)
    return found


def _arrays(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    gold, predicted = (scores.table[name].combine_chunks() for name in ("gold", "predicted"))
    if scores.task == "token-classification":
        gold, predicted = gold.flatten(), predicted.flatten()
    return gold.to_numpy(zero_copy_only=False), predicted.to_numpy(zero_copy_only=False)


def _rates(hits: float, predicted: float, gold: float) -> tuple[float, float, float]:
    precision = hits / predicted if predicted else 0.0
    recall = hits / gold if gold else 0.0
    both = predicted + gold
    return float(precision), float(recall), float(2 * hits / both if both else 0.0)


def confusion_labels(scores: Scores) -> tuple[str, ...]:
    """Rows and columns of `count_confusions`: the labels; of tags with prefixes O and the entity types."""
    if not has_entities(scores):
        return scores.label_names
    return tuple(dict.fromkeys(["O", *sorted({type_of(tag) for tag in scores.label_names} - {"O"})]))


def count_confusions(scores: Scores) -> np.ndarray | None:
    """(K, K) counts, rows gold, columns predicted; None for language models and where an example has several labels."""
    if not scores.label_names or scores.task == "multi-label-classification":
        return None
    names = confusion_labels(scores)
    count = len(names)
    gold, predicted = _arrays(scores)
    if names != scores.label_names:
        numbers = np.array([names.index(type_of(tag)) for tag in scores.label_names])
        predicted = numbers[predicted]
        gold = np.where(gold == IGNORED, IGNORED, numbers[gold])
    kept = gold != IGNORED
    found = np.bincount(gold[kept] * count + predicted[kept], minlength=count * count)
    return found.reshape(count, count)


def measure_calibration(scores: Scores) -> Calibration | None:
    """Confidence against accuracy of a text classifier of one label in BINS bins of confidence (Guo et al. 2017)."""
    if scores.task != "text-classification":
        return None
    column = scores.table["probabilities"].combine_chunks()
    probabilities = column.flatten().to_numpy(zero_copy_only=False).reshape(len(scores.table), -1)
    confidence = probabilities.max(axis=1)
    if not np.isfinite(confidence).all():
        return None  # a run that diverged
    right = scores.table["correct"].to_numpy()
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for b in range(BINS):
        inside = which == b
        size = int(inside.sum())
        if size:
            sure, hit = float(confidence[inside].mean()), float(right[inside].mean())
            bins.append((sure, hit, size))
            error += size / len(right) * abs(sure - hit)
    return Calibration(bins=tuple(bins), error=error)


def read_curve(run: Run, key: str) -> list[tuple[float, float]]:
    """(step, value) of the log entries that have `key`, such as "loss" or "eval_loss"."""
    history = run.record.log_history
    return [(float(entry["step"]), float(entry[key])) for entry in history if isinstance(entry.get(key), int | float)]


def read_cost(record: RunRecord) -> dict[str, float | None]:
    """Training seconds, tokens a second, and the measured peak memory in bytes (of the GPU, else of the process)."""
    return {
        "train_seconds": record.time.train_seconds,
        "tokens_per_second": record.tokens_per_second,
        "peak_bytes": record.memory.peak_bytes,
    }


def recipe_differences(first: Run, second: Run) -> list[tuple[str, Any, Any]]:
    """(dotted key, first, second) of the resolved recipes and of upstream's defaults; a run's own settings (seed,
    folder) included."""
    a, b = _flatten(first.sections), _flatten(second.sections)
    names = {key.rpartition(".")[2] for key in (*a, *b)}
    defaults = [
        {f"upstream.{name}": value for name, value in run.record.upstream_defaults.items()} for run in (first, second)
    ]
    for flat in defaults:
        for name in [name for name in flat if name.rpartition(".")[2] in (*names, *RUN_KEYS, OF_TERMINAL)]:
            del flat[name]
    return _list_differences(a, b) + _list_differences(*defaults)


def environment_differences(first: Run, second: Run) -> list[tuple[str, Any, Any]]:
    """Versions, commit, device, model and data fingerprints that differ."""
    found = []
    for part in ("versions", "device", "model", "tokenizer", "data"):
        a, b = (_flatten(to_json(getattr(run.record, part)) or {}) for run in (first, second))
        found += [(f"{part}.{key}", x, y) for key, x, y in _list_differences(a, b)]
    if first.record.commit != second.record.commit:
        found.append(("commit", first.record.commit, second.record.commit))
    return found


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flatten(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = inner
    return found


def _list_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = list(dict.fromkeys((*a, *b)))
    return [
        (key, a.get(key, NOT_SET), b.get(key, NOT_SET)) for key in keys if a.get(key, NOT_SET) != b.get(key, NOT_SET)
    ]
