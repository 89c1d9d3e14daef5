"""What a run wrote and got wrong: samples during training side by side, and the examples that it failed most."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hf_recipes.compare.runs import Run
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.metrics.functions import IGNORED
from hf_recipes.evaluation.scores import Scores
from hf_recipes.record import SAMPLES
from hf_recipes.report.blocks import Block, Cell, Heading, Paragraph, Table

MOST_STEPS = 5  # columns of samples
SHOWN = 10  # examples


def sample_blocks(folder: Path) -> Iterator[Block]:
    """A row for each prompt, a column for each of some steps: the first, the last, and some between them."""
    found = read_samples(folder)
    steps = sorted({step for step, _ in found})
    if not steps:
        return
    if len(steps) > MOST_STEPS:
        steps = [steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in range(MOST_STEPS)]
    prompts = list(dict.fromkeys(prompt for _, prompt in found))
    rows = [[prompt, *(found.get((step, prompt), "") for step in steps)] for prompt in prompts]
    yield Heading(text="Samples")
    yield Table(head=("prompt", *(f"step {step:,}" for step in steps)), rows=rows)


def read_samples(folder: Path) -> dict[tuple[int, str], str]:
    """(step, prompt) -> what the model wrote then; {} without a file. Of a step that was made again, the last."""
    found = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (folder / SAMPLES).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was cut off
                one = json.loads(line)
                found[int(one["step"]), str(one["prompt"])] = str(one["text"])
    return found


def example_blocks(run: Run) -> Iterator[Block]:
    """The examples that a classifier got wrong with the highest confidence, or that a model failed most."""
    if "eval" not in run.record.scores:
        return
    with contextlib.suppress(RecipeError):
        scores = run.scores("eval")
        title, head, rows = _worst(scores)
        if not rows:
            return
        texts = run.texts("eval", [name for name, _ in rows])
        yield Heading(text=title)
        if not texts:
            yield Paragraph(text="The texts are not beside the scores; these are the ids of the examples.")
        yield Table(head=(*head, "example"), rows=[[*cells, texts.get(name, name)] for name, cells in rows])


Rows = list[tuple[str, list[str | Cell]]]  # id of an example, and its cells


def _worst(scores: Scores) -> tuple[str, tuple[str, ...], Rows]:
    if scores.task == "text-classification":
        return _confidently_wrong(scores)
    if scores.task == "multi-label-classification":
        return _wrong_labels(scores)
    if scores.task == "text-regression":
        return _largest_errors(scores)
    return _least_expected(scores)


def _confidently_wrong(scores: Scores) -> tuple[str, tuple[str, ...], Rows]:
    gold, predicted = (scores.table[name].to_numpy() for name in ("gold", "predicted"))
    sure = np.array(scores.table["probabilities"].to_pylist(), float).reshape(len(gold), -1).max(axis=1)
    wrong = np.flatnonzero(gold != predicted)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:SHOWN]
    names, ids = scores.label_names, scores.table["id"]
    rows: Rows = [
        (ids[int(i)].as_py(), [names[predicted[i]], names[gold[i]], Cell(text=f"{100 * sure[i]:.1f} %", value=sure[i])])
        for i in chosen
    ]
    return f"Wrong and most confident ({len(wrong):,} wrong)", ("predicted", "gold", "confidence"), rows


def _wrong_labels(scores: Scores) -> tuple[str, tuple[str, ...], Rows]:
    """By the probability that is furthest from the truth."""
    labels = len(scores.label_names)
    probabilities = np.array(scores.table["probabilities"].to_pylist(), float).reshape(-1, labels)
    gold, predicted = scores.table["gold"].to_pylist(), scores.table["predicted"].to_pylist()
    truth = np.zeros_like(probabilities)
    for i, there in enumerate(gold):
        truth[i, there] = 1
    error = np.abs(truth - probabilities).max(axis=1)
    wrong = np.flatnonzero(~scores.table["correct"].to_numpy(zero_copy_only=False))
    chosen = wrong[np.argsort(-error[wrong], kind="stable")][:SHOWN]

    def shown(found: list[int]) -> str:
        return ", ".join(scores.label_names[i] for i in found) or "none"

    ids = scores.table["id"]
    rows: Rows = [
        (ids[int(i)].as_py(), [shown(predicted[i]), shown(gold[i]), Cell(text=f"{error[i]:.3f}", value=error[i])])
        for i in chosen
    ]
    return f"Wrong and most confident ({len(wrong):,} wrong)", ("predicted", "gold", "largest error"), rows


def _largest_errors(scores: Scores) -> tuple[str, tuple[str, ...], Rows]:
    gold, predicted = (scores.table[name].to_numpy() for name in ("gold", "predicted"))
    chosen = np.argsort(-np.abs(gold - predicted), kind="stable")[:SHOWN]
    ids = scores.table["id"]
    rows: Rows = [
        (ids[int(i)].as_py(), [Cell(text=f"{one[i]:.4g}", value=float(one[i])) for one in (predicted, gold)])
        for i in chosen
    ]
    return "Largest errors", ("predicted", "gold"), rows


def _least_expected(scores: Scores) -> tuple[str, tuple[str, ...], Rows]:
    """By the loss of a token (or tag); of tags also how many are wrong."""
    tokens = scores.table["n_tokens"].to_numpy().astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.where(tokens > 0, scores.table["nll_sum"].to_numpy() / tokens, -np.inf)
    chosen = [int(i) for i in np.argsort(-loss, kind="stable")[:SHOWN] if np.isfinite(loss[i])]
    ids = scores.table["id"]
    rows: Rows = [(ids[i].as_py(), [Cell(text=f"{loss[i]:.3g}", value=float(loss[i]))]) for i in chosen]
    if scores.task != "token-classification":
        return "Least expected", ("loss a token",), rows
    for i, (_, cells) in zip(chosen, rows, strict=True):
        gold, predicted = (np.array(scores.table[name][i].as_py()) for name in ("gold", "predicted"))
        wrong = int(((gold != predicted) & (gold != IGNORED)).sum())
        cells.append(Cell(text=f"{wrong} of {len(gold)}", value=wrong))
    return "Least expected", ("loss a tag", "wrong tags"), rows
