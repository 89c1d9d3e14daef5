"""A batch in pieces is the same samples in the same order, whatever its shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_recipes.evaluation.exact import LENGTHS
from hf_recipes.training.batch_split import count_samples, is_flattened, join_outputs, split_batch


def flattened(lengths: list[int]) -> dict[str, Any]:
    """Documents of these lengths in one row, as a padding-free collator makes it."""
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tokens = int(ends[-1])
    return {
        "input_ids": torch.arange(tokens)[None] + 1,
        "labels": torch.arange(tokens)[None] + 1,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


@pytest.mark.parametrize(
    ("rows", "pieces"), [(rows, pieces) for rows in range(1, 14) for pieces in (1, 2, 3, 4, 8, 64)]
)
def test_rows_are_kept_in_their_order_and_no_piece_is_larger_than_its_share(rows: int, pieces: int) -> None:
    batch = {"input_ids": torch.arange(rows * 3).reshape(rows, 3), "labels": torch.arange(rows), "return_loss": True}
    parts = split_batch(batch, pieces)
    for name in ("input_ids", "labels"):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    assert count_samples(batch) == rows and len(parts) <= min(pieces, rows)
    assert max(len(part["labels"]) for part in parts) == -(-rows // min(pieces, rows))
    assert all(part["return_loss"] is True for part in parts)


@pytest.mark.parametrize("seed", range(60))
def test_a_flattened_batch_is_cut_between_documents_only_and_its_borders_are_counted_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, pieces = rng.integers(1, 10, rng.integers(1, 13)).tolist(), int(rng.integers(1, 20))
    batch = flattened(lengths)
    parts = split_batch(batch, pieces)
    assert torch.equal(torch.cat([part["input_ids"] for part in parts], 1), batch["input_ids"])
    found = []
    for part in parts:
        documents = part["cu_seq_lens_q"].diff().tolist()
        assert part["position_ids"][0, 0] == 0 and part["cu_seq_lens_q"][0] == 0
        assert sum(documents) == part["input_ids"].shape[1] and max(documents) == part["max_length_q"]
        found += documents
    assert found == lengths and len(parts) <= max(1, pieces)


def test_documents_can_be_cut_down_to_one_each() -> None:
    assert count_samples(flattened([3, 1, 4])) == 3
    assert [part["input_ids"].shape[1] for part in split_batch(flattened([3, 1, 4]), 3)] == [3, 1, 4]


def test_the_outputs_of_pieces_are_those_of_the_whole_and_the_loss_is_the_mean_over_samples() -> None:
    logits, labels = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    whole = join_outputs(
        [(torch.tensor(1.0), logits[:3], labels[:3]), (torch.tensor(2.0), logits[3:], labels[3:])], sizes=[3, 2]
    )
    assert whole[0] == pytest.approx(1.4) and torch.equal(whole[1], logits) and torch.equal(whole[2], labels)
    assert join_outputs([(None, None, None)], sizes=[1]) == (None, None, None)


def test_a_batch_without_tensors_is_one_sample_and_scalars_go_to_every_piece() -> None:
    assert count_samples({"return_loss": True}) == 1 and split_batch({"return_loss": True}, 4) == [
        {"return_loss": True}
    ]
    batch = {"count": torch.tensor(7), "input_ids": torch.zeros(4, 3), "other": torch.arange(3)}
    first, second = split_batch(batch, 2)
    assert (first["count"], second["count"]) == (7, 7) and torch.equal(second["other"], torch.arange(3))
    assert [len(part["input_ids"]) for part in split_batch(batch, 0)] == [4]


def test_only_one_row_with_positions_and_without_a_mask_is_flattened() -> None:
    batch = flattened([2, 3])
    assert is_flattened(batch)
    assert not is_flattened({**batch, "attention_mask": torch.ones(1, 5)})
    assert not is_flattened({"input_ids": batch["input_ids"]})
    assert not is_flattened({"position_ids": batch["position_ids"]})
    assert not is_flattened({**batch, "input_ids": torch.zeros(2, 5)})


def test_a_flattened_batch_is_cut_at_the_borders_nearest_to_equal_shares() -> None:
    def sizes(lengths: list[int], pieces: int) -> list[int]:
        return [part["input_ids"].shape[1] for part in split_batch(flattened(lengths), pieces)]

    assert sizes([1, 1, 1, 1, 8], 2) == [4, 8]
    assert sizes([5, 5, 2], 2) == [5, 7]
    assert sizes([1, 7, 1, 3], 3) == [1, 7, 4]  # shares end at 4 and 8
    assert sizes([3, 1, 4], 1) == [8] and sizes([3, 1, 4], 0) == [8]
    assert sizes([3, 1, 4], 2) == [4, 4] and sizes([3, 1, 4], 9) == [3, 1, 4]


def test_an_example_of_several_documents_is_kept_together_in_evaluation() -> None:
    batch = {**flattened([2, 3, 1, 4]), LENGTHS: torch.tensor([5, 5])}
    assert count_samples(batch) == 2
    first, second = split_batch(batch, 4)
    assert torch.equal(first[LENGTHS], torch.tensor([5])) and torch.equal(second[LENGTHS], torch.tensor([5]))
    assert first["cu_seq_lens_q"].tolist() == [0, 2, 5] and second["cu_seq_lens_k"].tolist() == [0, 1, 5]
    assert (first["max_length_q"], second["max_length_k"]) == (3, 4)


def test_each_of_three_examples_can_be_a_piece_of_its_own() -> None:
    batch = {**flattened([2, 3, 1, 4]), LENGTHS: torch.tensor([2, 4, 4])}
    assert count_samples(batch) == 3
    assert [part["input_ids"].shape[1] for part in split_batch(batch, 3)] == [2, 4, 4]


def test_the_numbers_of_documents_begin_anew_in_each_piece() -> None:
    lengths = [2, 3]
    batch = {**flattened(lengths), "seq_idx": torch.tensor([[0, 0, 1, 1, 1]], dtype=torch.int32)}
    first, second = split_batch(batch, 2)
    assert first["seq_idx"].tolist() == [[0, 0]] and second["seq_idx"].tolist() == [[0, 0, 0]]
    plain = {name: batch[name] for name in ("input_ids", "position_ids", "max_length_q")}
    assert split_batch(plain, 2)[1]["max_length_q"] == 3  # without the borders it stays as it is


def test_outputs_of_several_tensors_are_joined_each() -> None:
    one, two = torch.ones(2, 3), torch.zeros(1, 3)
    _, logits, labels = join_outputs([(None, (one, one), None), (torch.tensor(1.0), (two, two), two)], sizes=[2, 1])
    assert isinstance(logits, tuple) and all(torch.equal(part, torch.cat([one, two])) for part in logits)
    assert labels is None
