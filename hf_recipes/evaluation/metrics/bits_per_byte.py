"""Bits per byte.

An `evaluate` module: `evaluate.load(<path of this file>)` or the class itself; both work offline.
"""

# One import a line: evaluate's scanner of imports reads no commas.
from typing import Any

import datasets
import evaluate

from hf_recipes.evaluation.metrics import functions


class BitsPerByte(evaluate.Metric):
    """The function `bits_per_byte` of functions.py as an `evaluate.Metric`; same inputs, same keys."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=functions.bits_per_byte.__doc__ or "",
            citation="",
            inputs_description="See the description.",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions: Any, total_bytes: int) -> dict[str, float]:
        return functions.bits_per_byte(predictions, total_bytes)
