"""A run's evaluation: the task's metrics during training and after it, and per-example scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import Task
from hf_recipes.data.tag_schemes import is_prefixed, usual_spelling
from hf_recipes.errors import DataError
from hf_recipes.evaluation import compute_metrics as of_trainer
from hf_recipes.evaluation.compute_metrics import ComputeMetrics, RecordingMetrics
from hf_recipes.evaluation.scores import EXAMPLES, score_batches, write_examples, write_scores

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_recipes.data.prepared import Prepared


DECODED = 100  # tokens: more than a report shows


class Scoring:
    """The metrics of one run's evaluation splits ("eval", and "test" if there is one), and their per-example rows."""

    def __init__(
        self,
        task: Task,
        prepared: Prepared,
        names: Sequence[str],
        location: str = "metrics",
        threshold: float = 0.5,
        add: Callable[[ComputeMetrics], ComputeMetrics] = lambda compute: compute,
    ):
        """`location`: of `metrics` in the recipe; `threshold`: probability from which on a label of a multi-label task
        counts as predicted; `add`: metrics of the caller. Raises DataError for a metric that these labels cannot
        have."""
        if "span_f1" in names:
            _check_span_tags(prepared.label_names, location)
        self.task, self.prepared, self.threshold = task, prepared, threshold
        self.of_split = {
            split: RecordingMetrics(compute=add(_COMPUTE[task.scored_as](prepared, split, names, threshold)))
            for split in prepared.evals
        }

    @property
    def compute_metrics(self) -> RecordingMetrics:
        """What the Trainer gets: the metrics of the "eval" split."""
        return self.of_split["eval"]

    @property
    def preprocess_logits(self) -> Callable[..., Any] | None:
        """Reduces the logits during an evaluation; causal LMs need none (evaluation/exact.py)."""
        if self.task.generates:
            return None
        return of_trainer.tags_and_rows if self.task.name == "token-classification" else of_trainer.keep_logits

    def evaluate(self, trainer: Trainer) -> dict[str, dict[str, float] | None]:
        """{"before", "eval", "test"}: metrics before training (if the recipe has eval_on_start), and at its end.

        If training has just evaluated the same weights, that evaluation is used.
        """
        history: list[dict[str, Any]] = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        before = next((entry for entry in history if entry["step"] == 0), None)
        found: dict[str, dict[str, float] | None] = {"before": _numbers(before) if before else None}
        last = history[-1] if history else None
        same = last is not None and last["step"] == trainer.state.global_step > 0
        if (
            last is not None
            and same
            and not trainer.args.load_best_model_at_end
            and self.compute_metrics.last is not None
        ):
            found["eval"] = _numbers(last)
        else:
            found["eval"] = _numbers(trainer.evaluate())
        found["test"] = None
        if "test" in self.prepared.evals:
            trainer.compute_metrics = self.of_split["test"]
            # Not evaluate(test): with persistent workers Trainer 5.23 hands out the cached loader of the eval split.
            predicted = trainer.predict(self.prepared.evals["test"], metric_key_prefix="test")
            found["test"] = _numbers(predicted.metrics or {})
            trainer.compute_metrics = self.compute_metrics
        return found

    def write(self, trainer: Trainer, folder: Path) -> dict[str, str]:
        """Writes scores.parquet (and scores-test.parquet); returns split -> file name."""
        written = {}
        if trainer.is_world_process_zero():
            for name in ("scores-test.parquet", f"{EXAMPLES}-test.parquet"):  # of an earlier run, if this one has none
                (folder / name).unlink(missing_ok=True)
        for split, recorded in self.of_split.items():
            if recorded.last is None or not trainer.is_world_process_zero():
                continue
            name = "scores.parquet" if split == "eval" else f"scores-{split}.parquet"
            batches = score_batches(
                self.task.scored_as,
                ids=self.prepared.ids[split],
                predictions=recorded.last.predictions,
                label_ids=recorded.last.label_ids,
                n_bytes=self.prepared.row_bytes.get(split),
                threshold=self.threshold,
            )
            write_scores(
                folder / name,
                self.task.scored_as,
                batches,
                label_names=self.prepared.label_names,
                scheme=self.prepared.tag_scheme,
            )
            texts = self._texts(split, trainer.processing_class)
            write_examples(folder / name.replace("scores", EXAMPLES), self.prepared.ids[split], texts)
            written[split] = name
        return written

    def _texts(self, split: str, tokenizer: Any) -> Iterator[str]:
        """The text of each evaluated row, for reports."""
        if self.task.generates:
            for batch in self.prepared.evals[split].select_columns(["input_ids"]).iter(1000):
                yield from (tokenizer.decode(ids[:DECODED]) for ids in batch["input_ids"])
            return
        source = self.prepared.sources[split]
        columns = list(source.columns[:-1])  # without the label's
        for batch in source.rows.select_columns(columns).iter(1000):
            for parts in zip(*(batch[column] for column in columns), strict=True):
                yield " | ".join(one if isinstance(one, str) else " ".join(map(str, one)) for one in parts)


def _check_span_tags(names: Sequence[str], location: str) -> None:
    """Before training, because seqeval would report it only after it."""
    for name in names:
        if not is_prefixed(name):
            what = f"span_f1 reads tags such as B-PER, I-PER and O, and the data has {name!r}"
            usual = all(map(usual_spelling, set(names) - {"O"})) and usual_spelling(name)
            fix = f"write it as {usual!r}, and the others so" if usual else "add the prefixes to the tags"
            raise DataError.at(location, what, f"{fix}, or write metrics: [accuracy]")


def _of_language_models(prepared: Prepared, split: str, names: Sequence[str], threshold: float) -> ComputeMetrics:
    return of_trainer.lm_compute_metrics(prepared.stats[split].bytes, names)


# What is predicted of an example (Task.scored_as) -> its compute_metrics, of (prepared, split, metrics, threshold).
_COMPUTE: dict[str, Callable[[Prepared, str, Sequence[str], float], ComputeMetrics]] = {
    "causal-lm": _of_language_models,
    "chat": _of_language_models,
    "text-classification": lambda prepared, _, names, __: of_trainer.classification_compute_metrics(
        names, prepared.label_names
    ),
    "multi-label-classification": lambda prepared, _, names, threshold: of_trainer.multi_label_compute_metrics(
        names, prepared.label_names, threshold
    ),
    "text-regression": lambda prepared, _, names, __: of_trainer.regression_compute_metrics(names),
    "token-classification": lambda prepared, _, names, __: of_trainer.token_compute_metrics(
        names, prepared.label_names, prepared.tag_scheme
    ),
}


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    dropped = ("step", "epoch", "total_flos", "num_input_tokens_seen")
    values = {k: v for k, v in entry.items() if k not in dropped and not k.endswith("_model_preparation_time")}
    return {k: v for k, v in values.items() if isinstance(v, int | float)}
