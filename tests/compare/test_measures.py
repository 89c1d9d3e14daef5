"""Each metric as a function of sums, at the edges: labels that do not occur, nothing predicted, nothing there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hf_recipes.compare import measures
from hf_recipes.evaluation.scores import Scores


def _scores(task: str, labels: tuple[str, ...], **columns: list) -> Scores:
    return Scores(task=task, label_names=labels, table=pa.table(columns))


def test_a_label_that_occurs_nowhere_has_no_part_in_a_mean() -> None:
    sums = np.array([2.0, 0, 0, 3, 1, 0, 4, 0, 0])  # hits, predicted, gold of three labels
    first = 2 * 2 / 7
    assert measures.macro_f1(sums) == pytest.approx(first / 2)  # the second was predicted once, the third never occurs
    assert measures.weighted_f1(sums) == pytest.approx(first)
    assert np.isnan(measures.macro_f1(np.zeros(9))) and np.isnan(measures.weighted_f1(np.zeros(9)))
    both = measures.macro_f1(np.stack([sums, sums * 2]))
    assert both.shape == (2,) and both[0] == pytest.approx(both[1])
    one = np.array([1.0, 1, 0])  # a label with one example in all
    assert measures.macro_f1(one) == pytest.approx(2.0)  # 2 * 1 / 1: not a possible sum, and no division by zero


def test_micro_f1_is_zero_where_nothing_is_there_and_nothing_is_predicted() -> None:
    found = measures.micro_f1(np.array([[0.0, 0, 0], [0, 1, 0], [1, 1, 1], [3, 4, 5]]))
    assert found.tolist() == pytest.approx([0, 0, 1, 6 / 9])


def test_ratios_and_their_slopes_have_the_shape_of_their_sums() -> None:
    sums = np.array([[[2.0, 4.0], [3.0, 0.0]]])
    ratio = measures.ratio(sums)
    assert ratio.shape == (1, 2) and ratio[0, 0] == 0.5 and not np.isfinite(ratio[0, 1])
    assert measures.exponential(sums)[0, 0] == pytest.approx(np.exp(0.5))
    assert measures.bits(sums)[0, 0] == pytest.approx(0.5 / np.log(2))
    assert measures.per_bit(sums).shape == (1, 2) and measures.per_bit(sums)[0, 1] == pytest.approx(1 / np.log(2))


def test_counts_of_each_example_leave_ignored_tokens_out() -> None:
    rows = measures.label_rows([np.array([0, 1, -100]), np.array([], int)], [np.array([0, 0, 1]), np.array([], int)], 2)
    assert rows.tolist() == [[1, 0, 2, 0, 1, 1], [0] * 6]
    assert measures.label_rows([], [], 2).shape == (0, 6)


def test_classes_and_tags_are_counted_alike() -> None:
    classes = _scores(
        "text-classification", ("a", "b"), id=["x", "y"], gold=[0, 1], predicted=[0, 0], correct=[True, False]
    )
    assert measures.F1.rows(classes).tolist() == [[1, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 1]]
    assert measures.F1_MICRO.rows(classes).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert measures.ACCURACY.rows(classes).tolist() == [[1, 1], [0, 1]]
    tags = _scores("token-classification", ("O", "B-X"), id=["x", "y"], gold=[[0, 1], []], predicted=[[0, 0], []])
    assert measures.F1.rows(tags).tolist() == [[1, 0, 2, 0, 1, 1], [0] * 6]
    assert measures.ACCURACY.rows(tags).tolist() == [[1, 2], [0, 0]]
    assert measures.SPAN_F1.rows(tags).tolist() == [[0, 0, 1], [0, 0, 0]]


def test_measures_that_the_scores_cannot_give_are_left_out() -> None:
    def names(task: str, *every: Scores) -> list[str]:
        return [measure.name for measure in measures.available(task, list(every))]

    spans, plain = (_scores("token-classification", labels, id=["x"]) for labels in (("O", "B-X"), ("0", "1")))
    assert names("token-classification", spans) == ["span_f1", "span_f1_strict", "accuracy", "f1"]
    assert names("token-classification", plain) == ["accuracy", "f1"]
    known, unknown = (_scores("chat", (), id=["x"], n_bytes=pa.array([size], pa.int64())) for size in (3, None))
    assert names("chat", known, known) == ["perplexity", "bits_per_byte"]
    assert names("chat", known, unknown) == ["perplexity"]
    classes = _scores("text-classification", ("0", "1"), id=["x"])
    assert names("text-classification", classes) == ["f1", "accuracy", "f1_micro", "f1_weighted"]


def test_spans_of_tags_that_end_with_their_prefix_are_read_and_strict_ones_begin_with_b() -> None:
    labels = ("O", "B-X", "I-X")
    scores = _scores(
        "token-classification", labels, id=["x", "y"], gold=[[1, 2, 0], [0, 2, 2]], predicted=[[1, 2, 0], [0, 1, 2]]
    )
    assert measures.SPAN_F1.rows(scores).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert measures.SPAN_F1_STRICT.rows(scores).tolist() == [[1, 1, 1], [0, 1, 0]]  # a span of I- alone is none
