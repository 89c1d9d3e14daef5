"""Macro, micro and weighted F1.

An `evaluate` module: `evaluate.load(<path of this file>)` or the class itself; both work offline.
"""

# One import a line: evaluate's scanner of imports reads no commas.
from typing import Any

import datasets
import evaluate

from hf_recipes.evaluation.metrics import functions


class F1(evaluate.Metric):
    """The function `f1` of functions.py as an `evaluate.Metric`; same inputs, same keys.

    Its configuration "multilabel" takes (N, L) indicators.
    """

    def _info(self) -> evaluate.MetricInfo:
        one = datasets.Value("int64")
        kind = datasets.Sequence(one) if self.config_name == "multilabel" else one
        return evaluate.MetricInfo(
            description=functions.f1.__doc__ or "",
            citation="",
            inputs_description="See the description.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return functions.f1(predictions, references, multilabel=self.config_name == "multilabel")
