"""Entity-level F1, default and strict.

An `evaluate` module: `evaluate.load(<path of this file>)` or the class itself; both work offline.
"""

# One import a line: evaluate's scanner of imports reads no commas.
from typing import Any

import datasets
import evaluate

from hf_recipes.evaluation.metrics import functions


class SpanF1(evaluate.Metric):
    """The function `span_f1` of functions.py as an `evaluate.Metric`; same inputs, same keys."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=functions.span_f1.__doc__ or "",
            citation="",
            inputs_description="See the description.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, scheme: str = "") -> dict[str, float]:
        return functions.span_f1(predictions, references, scheme)
