"""Mean squared error.

An `evaluate` module: `evaluate.load(<path of this file>)` or the class itself; both work offline.
"""

# One import a line: evaluate's scanner of imports reads no commas.
from typing import Any

import datasets
import evaluate

from hf_recipes.evaluation.metrics import functions


class Mse(evaluate.Metric):
    """The function `mse` of functions.py as an `evaluate.Metric`; same inputs, same keys."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=functions.mse.__doc__ or "",
            citation="",
            inputs_description="See the description.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return functions.mse(predictions, references)
