"""Lengths, padding and copies of rows, against counts made by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, List, Value

from hf_recipes.data.near_duplicates import find_near_duplicates
from hf_recipes.data.prepared import Source
from hf_recipes.data.row_measures import histogram, measure_rows, packed_share, padding_share


def test_tokens_and_label_tokens_are_those_of_each_row_and_of_what_is_within_the_length() -> None:
    rows = {"input_ids": [[1, 2, 3, 4], [5], [6, 7, 8]], "labels": [[-100, 2, 3, 4], [-100], [-100, -100, 8]]}
    found = measure_rows(Dataset.from_dict(rows), max_length=2)
    assert (found.tokens.tolist(), found.learned.tolist(), found.kept.tolist()) == ([4, 1, 3], [3, 0, 1], [1, 0, 0])
    assert found.lost == 0.75 and found.rows_without_label == 1
    assert [found.length_for(share) for share in (0.3, 0.6, 1.0)] == [1, 3, 4]


@pytest.mark.parametrize("labels", [[0, 1], [0.5, 1.5]])
def test_a_label_of_the_whole_row_is_lost_for_no_row(labels: list[Any]) -> None:
    found = measure_rows(Dataset.from_dict({"input_ids": [[1, 2, 3], [4]], "labels": labels}), max_length=2)
    assert found.tokens.tolist() == [3, 1] and found.learned.tolist() == found.kept.tolist() == [1, 1]


def test_labels_of_several_classes_are_no_labels_of_tokens() -> None:
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3], [4]], "labels": [[0.0, 1.0], [1.0, 0.0]]})
    found = measure_rows(rows.cast_column("labels", List(Value("float32"))), max_length=2)
    assert found.tokens.tolist() == [3, 1] and found.learned.tolist() == [1, 1]


def test_padding_of_one_batch_is_counted_by_hand() -> None:
    lengths = np.array([1, 2, 3, 10])
    assert padding_share(lengths, 4, grouped=False) == pytest.approx(1 - 16 / 40)
    assert padding_share(np.array([5] * 20), 4, grouped=False) == 0
    draw = random.Random(0)
    many = np.array([draw.randint(1, 100) for _ in range(4000)])
    assert padding_share(many, 8, grouped=True) < 0.05 < 0.3 < padding_share(many, 8, grouped=False)


def test_packed_rows_are_those_of_trl() -> None:
    from trl import pack_dataset

    draw = random.Random(1)
    lengths = [draw.randint(1, 60) for _ in range(500)]
    rows = Dataset.from_dict({"input_ids": [[7] * n for n in lengths]})
    packed = pack_dataset(rows, 64, "bfd")
    assert packed_share(np.array(lengths), 64) == pytest.approx(1 - sum(lengths) / (64 * packed.num_rows))


def test_a_histogram_has_every_row_once() -> None:
    lengths = np.array([3, 3, 4, 50, 99])
    found = histogram(lengths)
    assert sum(count for _, _, count in found) == 5 and (found[0][0], found[-1][1]) == (3, 99)
    assert histogram(np.array([8, 8])) == [(8, 8, 2)]


def test_near_duplicates_are_found_within_and_between_splits_and_nothing_else() -> None:
    draw = random.Random(0)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(200)]
    near = texts[3].replace(texts[3].split()[30], "another", 1)
    train = Dataset.from_dict({"text": [*texts, near], "label": [0] * 201})
    other = Dataset.from_dict({"text": [" ".join(draw.choices(words, k=60)), texts[7] + " more"], "label": [1, 1]})
    sources = {
        split: Source(rows=rows, columns=("text", "label")) for split, rows in {"train": train, "eval": other}.items()
    }
    found = find_near_duplicates(sources, 1, 1000)
    assert (found.within, found.between) == ({"train": 1, "eval": 0}, {"train": 0, "eval": 1})
    assert found.example == ("train row 200", "train row 3")
    assert find_near_duplicates(sources, 1, 100).rows == {"train": 100, "eval": 2}
