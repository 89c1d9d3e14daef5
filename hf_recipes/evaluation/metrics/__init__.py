"""`evaluate` modules that work offline: `evaluate.load("f1")` by name downloads code from the Hub; these are local.

Each metric is one plain function in `functions.py`, used while training (`compute`), and one `evaluate.Metric` around
it in a file of its own (`load`). Importing this package is fast: only `load` imports `evaluate`, which takes 6 s.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from hf_recipes.catalog.metrics import METRICS


def compute(name: str, **inputs: Any) -> dict[str, float]:
    """The metric `name` of `inputs`, as plain floats; see the function of that name in functions.py for the inputs.

    The keys are METRICS[name].keys. Raises KeyError for a name that METRICS lacks, DataError if nothing can be
    scored. Imports scikit-learn or seqeval if the metric needs it (about 0.5 s once), never `evaluate`.
    """
    from hf_recipes.evaluation.metrics import functions

    if name not in METRICS:
        raise KeyError(name)
    result: dict[str, float] = getattr(functions, name)(**inputs)
    return result


def path(name: str) -> str:
    """The file of the metric, for `evaluate.load(path(name))`. Raises KeyError for a name that METRICS lacks."""
    spec = find_spec(METRICS[name].module)
    assert spec is not None and spec.origin is not None  # the table names files of this package
    return spec.origin


def load(name: str) -> Any:
    """The metric as an `evaluate.EvaluationModule`, from its file in this package: no network. Costs 6 s once."""
    import evaluate

    return evaluate.load(path(name))
