"""A caller's own code in a run: callbacks, metrics, rows and a loss. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_recipes.common.text import first_line
from hf_recipes.errors import DataError, MetricError

if TYPE_CHECKING:
    from hf_recipes.data.splits import Splits


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller adds to a recipe, from Python only. The record names it: the recipe alone does not repeat the run.

    callbacks: transformers' TrainerCallback. metrics: name -> function of transformers' EvalPrediction, measured beside
    the recipe's at every evaluation. formatting: a row of the data files as a dict to the row that the task reads, as
    TRL's formatting_func. loss: (outputs, labels, num_items_in_batch) -> a scalar tensor, Trainer's compute_loss_func:
    a sum over num_items_in_batch, the labels of a whole step, since Trainer adds up what its micro-batches give.
    """

    callbacks: Sequence[Any] = ()
    metrics: Mapping[str, Callable[[Any], float]] = field(default_factory=dict)
    formatting: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    loss: Callable[..., Any] | None = None

    def describe(self) -> str:
        """For the record's notes; "" where there is nothing."""
        parts = [f"callback {type(one).__name__}" for one in self.callbacks]
        parts += [f"metric {name}" for name in self.metrics]
        parts += [f"{kind} {_name(one)}" for kind, one in (("formatting", self.formatting), ("loss", self.loss)) if one]
        return f"code of the caller: {', '.join(parts)}" if parts else ""

    def format_splits(self, splits: Splits) -> Splits:
        """Every row through `formatting`. Raises DataError where it raises."""
        if self.formatting is None:
            return splits
        formatting = self.formatting

        def change(part: Any) -> Any:
            if part is None:
                return None
            try:  # its columns are the function's: none of the file's stays unless it returns it
                return part.map(lambda row: dict(formatting(dict(row))), remove_columns=part.column_names)
            except Exception as problem:  # somebody's program: it may raise anything
                what = f"{_name(formatting)} raises {type(problem).__name__}: {first_line(problem)}"
                raise DataError.at("hooks.formatting", what, "it gets a row as a dict and returns one") from problem

        parts = {name: change(getattr(splits, name)) for name in ("train", "validation", "test")}
        return replace(splits, **parts)

    def check_names(self, taken: Sequence[str]) -> None:
        """Raises MetricError for a metric that has the name of one of the task's: its interval and its comparisons
        would be the task's."""
        wrong = [name for name in self.metrics if name in (*taken, "loss")]
        if wrong:
            raise MetricError.at("hooks.metrics", f"{wrong[0]!r} is a metric of the task", "give yours another name")

    def add_metrics(self, compute: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, float]]:
        """`compute` with the caller's metrics. The result raises MetricError where one of them raises."""
        if not self.metrics:
            return compute

        def both(prediction: Any) -> dict[str, float]:
            found = dict(compute(prediction))
            for name, function in self.metrics.items():
                try:
                    found[name] = float(function(prediction))
                except Exception as problem:  # as above
                    what = f"{name} raises {type(problem).__name__}: {first_line(problem)}"
                    fix = "it gets transformers' EvalPrediction and returns a number"
                    raise MetricError.at("hooks.metrics", what, fix) from problem
            return found

        return both


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


NONE = Hooks()
