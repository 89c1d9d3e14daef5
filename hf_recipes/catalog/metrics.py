"""The metrics that a recipe can name. Imports neither torch nor evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class MetricEntry:
    """One metric: where its `evaluate.Metric` is, and what it computes."""

    module: str
    class_name: str
    keys: tuple[str, ...]  # of what compute() returns; the first is the metric's own name
    lower_is_better: bool = False


METRICS: Mapping[str, MetricEntry] = MappingProxyType(
    {
        "f1": MetricEntry(
            module="hf_recipes.evaluation.metrics.f1", class_name="F1", keys=("f1", "f1_micro", "f1_weighted")
        ),
        "accuracy": MetricEntry(
            module="hf_recipes.evaluation.metrics.accuracy", class_name="Accuracy", keys=("accuracy",)
        ),
        "span_f1": MetricEntry(
            module="hf_recipes.evaluation.metrics.span_f1",
            class_name="SpanF1",
            keys=("span_f1", "span_precision", "span_recall", "span_f1_strict"),
        ),
        "mse": MetricEntry(
            module="hf_recipes.evaluation.metrics.mse", class_name="Mse", keys=("mse",), lower_is_better=True
        ),
        "pearsonr": MetricEntry(
            module="hf_recipes.evaluation.metrics.pearsonr", class_name="Pearsonr", keys=("pearsonr",)
        ),
        "spearmanr": MetricEntry(
            module="hf_recipes.evaluation.metrics.spearmanr", class_name="Spearmanr", keys=("spearmanr",)
        ),
        "perplexity": MetricEntry(
            module="hf_recipes.evaluation.metrics.perplexity",
            class_name="Perplexity",
            keys=("perplexity",),
            lower_is_better=True,
        ),
        "bits_per_byte": MetricEntry(
            module="hf_recipes.evaluation.metrics.bits_per_byte",
            class_name="BitsPerByte",
            keys=("bits_per_byte",),
            lower_is_better=True,
        ),
    }
)
# Of the answers that a chat model generates, computed once, at the end of a run: name -> what each reports.
GENERATED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"exact_match": ("exact_match",), "rouge": ("rouge1", "rouge2", "rougeL"), "bleu": ("bleu",)}
)
# Every value of which less is better, by the name that an evaluation gives it.
LOWER_IS_BETTER = frozenset({"loss", *(key for one in METRICS.values() if one.lower_is_better for key in one.keys)})


def names_a_module(name: str) -> bool:
    """Whether it is a module of the `evaluate` package: a file, a folder (./my_metric) or a Hub id (user/metric)."""
    return "/" in name or name.endswith(".py")


def is_local_module(name: str) -> bool:
    """Whether it names a place on this machine, be something there or not."""
    return name.startswith((".", "/", "~")) or name.endswith(".py") or name.count("/") > 1
