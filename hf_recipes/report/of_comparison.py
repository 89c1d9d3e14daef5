"""The report of a comparison: verdicts first, then where the runs differ, their cost and their settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hf_recipes.compare import differences, text
from hf_recipes.compare.runs import Run
from hf_recipes.compare.statistics import LEVEL
from hf_recipes.compare.verdict import Comparison, Finding, Side
from hf_recipes.evaluation.scores import Scores
from hf_recipes.report import plots
from hf_recipes.report.blocks import Block, Cell, Document, Figure, Heading, Note, Paragraph, Table, Verdict

SETTINGS = 40  # rows beyond which a table of settings is folded
LABELS = 14  # beyond which a confusion matrix is no picture


def build_report(comparison: Comparison) -> Document:
    """The whole report."""
    paired, sides = comparison.paired, comparison.sides
    blocks: list[Block] = [
        Paragraph(
            text=f"{paired.runs[0].scored_as}, {paired.examples:,} examples of the {paired.split} split, "
            "paired by content. "
            f"{LEVEL:.0%} confidence intervals; {comparison.resamples:,} resamples, seed "
            f"{comparison.seed}."
        )
    ]
    blocks += [Note(text=note) for note in comparison.notes]
    for i, (side, findings) in enumerate(zip(sides[1:], comparison.findings, strict=True)):
        blocks += _compare_sides(comparison, sides[0], side, findings, str(i + 1))
    blocks += [Heading(text="Training"), *_curves(paired.runs), _cost(paired.runs)]
    title = " and ".join(side.name for side in sides[1:]) + f" against {sides[0].name}"
    return Document(title=title, blocks=blocks)


def _compare_sides(
    comparison: Comparison, first: Side, second: Side, findings: Sequence[Finding], number: str
) -> Iterator[Block]:
    paired = comparison.paired
    yield Heading(text=f"{second.name} against {first.name}")
    for finding in findings[: text.SHOWN]:
        yield Verdict(word=finding.verdict, text=text.describe_finding(finding, first.name, second.name))
    yield _metrics(findings, first.name, second.name)
    rows = [_row(finding) for finding in findings]
    yield Figure(
        name=f"differences-{number}",
        svg=plots.differences(rows),
        caption=f"{second.name} minus {first.name}, with {LEVEL:.0%} intervals. Zero is no difference.",
    )
    indices = first.runs[0], second.runs[0]
    runs = [paired.runs[i] for i in indices]
    scores = [paired.scores[i] for i in indices]
    if len(first.runs) > 1 or len(second.runs) > 1:
        yield Note(text=f"the following sections compare one run each: {runs[0].name} and {runs[1].name}")
    yield from _classes(runs, scores, number)
    yield from _changed_examples(runs, scores, paired.split)
    yield from _settings("Recipe", differences.recipe_differences(*runs), runs)
    yield from _settings("Environment and data", differences.environment_differences(*runs), runs)


def _row(finding: Finding) -> tuple[str, float, float, float]:
    scale = 100 if finding.percent else 1
    apart = finding.difference
    unit = ", points" if finding.percent else ""
    return f"{finding.metric}{unit}", scale * apart.value, scale * apart.low, scale * apart.high


def _metrics(findings: Sequence[Finding], first: str, second: str) -> Table:
    rows = []
    for f in findings:
        rows.append(
            (
                f.metric,
                Cell(text=text.format_number(f.first.value, f.percent), value=f.first.value),
                Cell(text=text.format_number(f.second.value, f.percent), value=f.second.value),
                Cell(text=text.format_difference(f.difference.value, f.percent), value=f.difference.value),
                text.format_interval(f.difference, f.percent),
                Cell(text=f"{f.p_corrected:.3g}", value=f.p_corrected),
                f.verdict,
                text.explain_unknown(f),
            )
        )
    head = ("metric", first, second, "difference", f"{LEVEL:.0%} interval", "p (Holm)", "verdict", "why not")
    used = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return Table(head=head[:used], rows=[row[:used] for row in rows])


def _classes(runs: Sequence[Run], scores: Sequence[Scores], number: str) -> Iterator[Block]:
    """Labels, confusion, calibration: of classifiers."""
    names = [run.name for run in runs]
    table = label_table(names, scores)
    if table is None:
        return
    yield Heading(text="Labels", level=3)
    yield table
    if len(differences.confusion_labels(scores[0])) <= LABELS and differences.count_confusions(scores[0]) is not None:
        for i, (name, of_run) in enumerate(zip(names, scores, strict=True)):
            yield confusion_figure(name, of_run, f"confusion-{number}-{i + 1}")
    calibrated = {name: differences.measure_calibration(of_run) for name, of_run in zip(names, scores, strict=True)}
    yield from calibration_blocks({k: v for k, v in calibrated.items() if v is not None}, f"reliability-{number}")


def label_table(names: Sequence[str], scores: Sequence[Scores]) -> Table | None:
    """Precision, recall and F1 of each label, a column a run; None for language models."""
    rows = differences.score_labels(*scores)
    if not rows:
        return None
    head = ["entity" if differences.has_entities(scores[0]) else "label", "gold"]
    for measure in ("precision", "recall", "F1"):
        head += [f"{measure}, {name}" if len(names) > 1 else measure for name in names]
    table: list[list[str | Cell]] = []
    for row in rows:
        cells: list[str | Cell] = [row.label, Cell(text=f"{row.gold:,}", value=row.gold)]
        for i in range(3):
            cells += [Cell(text=f"{100 * rates[i]:.1f}", value=rates[i]) for rates in row.rates]
        table.append(cells)
    return Table(head=head, rows=table)


def confusion_figure(run: str, scores: Scores, name: str) -> Figure:
    """Of one run."""
    counts = differences.count_confusions(scores)
    assert counts is not None
    return Figure(
        name=name, svg=plots.confusion(counts, differences.confusion_labels(scores)), caption=f"{run}: confusion matrix"
    )


def calibration_blocks(calibrated: dict[str, differences.Calibration], name: str) -> Iterator[Block]:
    """The reliability diagram and the expected calibration error of each run."""
    if not calibrated:
        return
    errors = "; ".join(f"{run} {100 * one.error:.1f} points" for run, one in calibrated.items())
    caption = "Calibration: on the diagonal, confidence equals accuracy. Expected calibration error, "
    caption += f"{differences.BINS} bins: {errors}."
    bins = {run: one.bins for run, one in calibrated.items()}
    yield Figure(name=name, svg=plots.reliability(bins), caption=caption)


def _changed_examples(runs: Sequence[Run], scores: Sequence[Scores], split: str) -> Iterator[Block]:
    change = differences.find_changed_examples(*scores)
    texts = runs[0].texts(split, [one for one, _ in (*change.gained, *change.lost)])
    yield Heading(text="Examples that changed", level=3)
    counts = f"{change.gained_count:,} gained and {change.lost_count:,} lost by {runs[1].name}"
    shown = (
        ", the first or largest of them here" if change.gained_count + change.lost_count > 2 * differences.SHOWN else ""
    )
    yield Paragraph(text=f"{counts}{shown}.")
    rows = [(side, what, texts.get(name, name)) for side, moved in (("gained", change.gained), ("lost", change.lost))
            for name, what in moved]  # fmt: skip
    if rows:
        yield Table(head=("", "what", "example"), rows=rows, folded=f"{len(rows)} examples")


def _settings(title: str, rows: Sequence[tuple[str, Any, Any]], runs: Sequence[Run]) -> Iterator[Block]:
    if not rows:
        yield Heading(text=f"{title}: the same", level=3)
        return
    yield Heading(text=title, level=3)
    cells = [(key, str(a), str(b)) for key, a, b in rows]
    folded = f"{len(rows)} differences" if len(rows) > SETTINGS else ""
    yield Table(head=("", runs[0].name, runs[1].name), rows=cells, code=frozenset({1, 2}), folded=folded)


def _curves(runs: Sequence[Run]) -> Iterator[Block]:
    """Training loss, and evaluation loss where it was measured during training."""
    for key, name, title in (("loss", "loss", "training loss"), ("eval_loss", "eval-loss", "evaluation loss")):
        lines = {run.name: differences.read_curve(run, key) for run in runs}
        lines = {run: points for run, points in lines.items() if len(points) > 1}
        if lines:
            yield Figure(name=name, svg=plots.curves(lines, title), caption=title.capitalize())


def _cost(runs: Sequence[Run]) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for run in runs:
        cost = differences.read_cost(run.record)
        rows.append((run.name, *(cost_cell(key, cost[key]) for key in COST)))
    return Table(head=("run", *COST.values()), rows=rows)


COST = {"train_seconds": "training", "tokens_per_second": "tokens/s", "peak_bytes": "peak memory"}


def cost_cell(key: str, value: float | None) -> Cell:
    """A figure of differences.read_cost with its unit; a dash where it is not known."""
    if value is None:
        return Cell(text="–")
    texts = {"train_seconds": f"{value:,.0f} s", "tokens_per_second": f"{value:,.0f}"}
    return Cell(text=texts.get(key, f"{value / 2**30:.2f} GiB"), value=value)
