"""benchmarks/turns.py: loops that take turns step by step."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.turns import Turn, median_interval, pair_ratios, sum_interval, take_turns


def test_loops_take_turns_forward_and_backward_and_their_operations_are_counted() -> None:
    order: list[str] = []

    def loop(name: str, size: int, turn: Turn) -> None:
        for _ in range(4):
            order.append(name)
            torch.ones(size).add(1).view(-1)
            turn.end_step()
        order.append(f"{name} ends")

    turns = take_turns({"a": partial(loop, "a", 3), "b": partial(loop, "b", 6)}, 4, counted=1, ready=lambda _: None)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a", "a ends", "b ends"]
    assert [len(turn.seconds) for turn in turns.values()] == [5, 5]
    assert [turn.count.elements for turn in turns.values()] == [6, 12]  # ones and their sum; a view computes nothing


def test_an_error_in_a_loop_ends_all_and_names_it() -> None:
    def fails(turn: Turn) -> None:
        raise ValueError("no rows")

    with pytest.raises(SystemExit, match=r"bad: ValueError\('no rows'\)"):
        take_turns({"bad": fails}, 2, counted=0, ready=lambda _: None)


def test_ratios_are_of_pairs_of_rounds() -> None:
    assert pair_ratios([1.0, 3.0, 2.0, 2.0], [1.0, 1.0, 4.0, 4.0]) == [2.0, 0.5]
    assert median_interval([2.0, 2.0, 2.0]) == (2.0, (2.0, 2.0))
    ratio, (low, high) = sum_interval([1.0, 3.0, 2.0, 2.0], [1.0, 1.0, 4.0, 4.0])
    assert ratio == 0.8 and low == 0.5 and high == 2.0
