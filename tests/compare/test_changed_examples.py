"""Which examples two runs answer differently."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from hf_recipes.compare.differences import find_changed_examples
from hf_recipes.evaluation.scores import Scores


def _losses(values: list[float]) -> Scores:
    columns = {"id": [str(i) for i in range(len(values))], "nll_sum": values, "n_tokens": [10] * len(values)}
    return Scores(task="causal-lm", label_names=(), table=pa.table(columns))


def test_losses_that_differ_by_rounding_are_neither_gained_nor_lost() -> None:
    before = np.linspace(20, 40, 8)
    rounded = before * (1 + 1e-6 * np.array([1, -1] * 4))
    same = find_changed_examples(_losses(list(before)), _losses(list(rounded)))
    assert (same.gained_count, same.lost_count) == (0, 0)
    moved = rounded + np.array([-1.0, 2.0, *[0.0] * 6])
    found = find_changed_examples(_losses(list(before)), _losses(list(moved)))
    assert found.gained == (("0", "-0.100 nats a token"),) and found.lost == (("1", "+0.200 nats a token"),)
