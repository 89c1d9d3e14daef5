"""The metrics that a recipe can name: where each lives and which keys it gives. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# name -> (module with the evaluate.Metric, its class, the keys that compute() gives)
METRICS: Mapping[str, tuple[str, str, tuple[str, ...]]] = MappingProxyType(
    {
        "f1": ("hf_recipes.evaluation.metrics.f1", "F1", ("f1", "f1_micro", "f1_weighted")),
        "accuracy": ("hf_recipes.evaluation.metrics.accuracy", "Accuracy", ("accuracy",)),
        "span_f1": (
            "hf_recipes.evaluation.metrics.span_f1",
            "SpanF1",
            ("span_f1", "span_precision", "span_recall", "span_f1_strict"),
        ),
        "perplexity": ("hf_recipes.evaluation.metrics.perplexity", "Perplexity", ("perplexity",)),
        "bits_per_byte": ("hf_recipes.evaluation.metrics.bits_per_byte", "BitsPerByte", ("bits_per_byte",)),
    }
)
